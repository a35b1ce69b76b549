"""Finds files of the Hugging Face Hub on this machine, downloads and uploads them.

Only this module and san.clip.open_clip_adapter import huggingface_hub.

Downloads and cache are those of huggingface_hub, with its variables HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN.
Files that were downloaded manually are in a separate folder, `hand_folder`.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from san.io.errors import one_line
from san.io.files import home_folder, user_path
from san.io.redaction import redact

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"


def hand_folder(cache_dir: str | Path | None = None) -> Path | None:
    """Return the folder of manually downloaded files: `cache_dir` or ~/.cache/san/models; None without a home."""
    return user_path(str(cache_dir), "cache_dir") if cache_dir else home_folder("~/.cache/san/models")


def hub_folder(cache_dir: str | Path | None = None) -> Path | None:
    """Return the cache folder of huggingface_hub; None if it is below a home folder that does not exist."""
    from huggingface_hub import constants

    return user_path(str(cache_dir), "cache_dir") if cache_dir else home_folder(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class HubFile:
    """A file of the hub.

    Attributes:
        repo_id: "owner/name".
        file: file name in the repository.
        repo_type: "model", "space" or "dataset".
        revision: branch, tag or commit; None for the main branch.
    """

    repo_id: str
    file: str
    repo_type: str = "model"
    revision: str | None = None

    @property
    def repository(self) -> str:
        """The repository's name in messages."""
        return self.repo_id if self.repo_type == "model" else f"{self.repo_id} ({self.repo_type})"


def cached_file(wanted: HubFile, *, cache_dir: str | Path | None = None) -> Path | None:
    """Return a file that is already in huggingface_hub's cache on this machine, or None."""
    from huggingface_hub import try_to_load_from_cache

    folder = hub_folder(cache_dir)
    found = folder and try_to_load_from_cache(
        wanted.repo_id,
        wanted.file,
        cache_dir=folder,
        revision=wanted.revision,
        repo_type=wanted.repo_type,
    )
    return Path(found) if isinstance(found, str) else None


def fetch(
    wanted: HubFile, *, cache_dir: str | Path | None = None, local_files_only: bool = False, put_into: Path | None
) -> Path:
    """Return a file from huggingface_hub's cache, downloading it if necessary.

    Args:
        wanted: the file.
        cache_dir: replaces huggingface_hub's cache folder.
        local_files_only: do not use the network.
        put_into: folder for a manual download, for the message; None without a home folder.

    Raises:
        FileNotFoundError: the file is not on this machine and cannot be downloaded; the message names the file, its
            URL and the folder to put it into.
        ValueError: the hub has no such repository, revision or file, or does not show it to this user.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    folder = hub_folder(cache_dir)
    offline = local_files_only or constants.HF_HUB_OFFLINE
    reason, cause = "the network is off", None
    try:
        # hf_hub_download may use the network even with local_files_only
        if offline or not folder or not _reachable(constants.ENDPOINT):
            if here := cached_file(wanted, cache_dir=cache_dir):
                return here
        else:
            return Path(
                huggingface_hub.hf_hub_download(
                    wanted.repo_id,
                    wanted.file,
                    repo_type=wanted.repo_type,
                    revision=wanted.revision,
                    cache_dir=folder,
                )
            )
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:  # type: ignore[attr-defined]
        refused = _refusal(wanted, error)
        if refused:
            raise ValueError(refused) from error
        cause = error
    if not offline:
        reason = "the hub cannot be reached" if folder else "there is no home folder for the cache (set HF_HOME)"
    address = huggingface_hub.hf_hub_url(
        wanted.repo_id, wanted.file, repo_type=wanted.repo_type, revision=wanted.revision
    )
    raise FileNotFoundError(
        f"{wanted.file} of {wanted.repository} is not on this machine and {reason}; download {address} elsewhere "
        f"and put it into {put_into or 'a folder that you pass as cache_dir'} (huggingface_hub's cache"
        f"{f' in {folder}' if folder else ''} was searched too)"
    ) from cause


def _refusal(wanted: HubFile, error: Exception) -> str:
    """Return the reason why the hub refused a file; "" if it was not reached."""
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):  # also raised for gated ones
        return (
            f"repository {wanted.repository!r} is not found on the hub; check the name, or log in (`hf auth login`, or "
            "HF_TOKEN) if it is private or needs an agreement"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{wanted.repository} has no revision {wanted.revision!r}; use a branch, a tag or a commit"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"{wanted.repository} has no file {wanted.file!r}; a model has {CONFIG_FILE} and {WEIGHTS_FILE}"
    if isinstance(error, errors.HFValidationError):
        return f"{wanted.repo_id!r} is not a repository name of the hub ({error}); use owner/name"
    return ""


def _reachable(endpoint: str) -> bool:
    """Whether the hub's host name resolves, to fail at once without a network instead of after retries."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlparse(endpoint).hostname, 443)
    except OSError:
        return False
    return True


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None,
    token: str | None,
    branch: str | None,
) -> str:
    """Upload a folder's model, creating the repository if missing; returns the URL of the commit.

    Only config, weights and card are uploaded, no other files of the folder. The token appears in no message.

    Raises:
        ValueError: the hub refused; the message contains its reason.
    """
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id=repo_id, repo_type="model", private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(repo_id=repo_id, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=str(folder),
            commit_message=commit_message,
            revision=branch,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
        )
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        reason = one_line(redact(str(error), [token] if token else []), limit=300)
        raise ValueError(
            f"the hub refused {repo_id!r} ({reason}); check the name, the network, and that you are logged "
            "in with a token that has write access (`hf auth login`, or HF_TOKEN)"
        ) from None  # the original may contain the token
    logger.info("uploaded %s to %s", folder, repo_id)
    return str(commit.commit_url)

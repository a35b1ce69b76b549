"""Loads a model by name, from a file, a folder or the hub, and uploads one."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from san.checkpoint import brings_clip, fits, load_checkpoint_file, load_weights
from san.clip.loader import load_clip
from san.hub.folder import WEIGHTS_SUFFIXES, load_folder, read_config, save_pretrained
from san.hub.locations import find_known
from san.hub.remote import CONFIG_FILE, WEIGHTS_FILE, HubFile, fetch, hand_folder, upload_folder
from san.hub.table import MODELS
from san.io.errors import excerpt
from san.model.build import ModelClass, build_outline, build_san, freeze
from san.model.config import VARIANTS, SANConfig, variant
from san.model.san import SANModel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@torch.inference_mode(False)
def load_pretrained(
    source: str | Path,
    config: str | SANConfig | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    model_class: ModelClass = SANModel,
) -> SANModel:
    """Load a model in single precision on the CPU. No code from any file is run.

    Single-precision weights stay memory-mapped: loading reads them once, to check them, without a copy. Do not write
    into the file while the model is in use; replace it by a new one.

    Args:
        source: a name of `MODELS` ("shapes", "san_vit_b_16", "san_vit_large_14"); a checkpoint file (.pth or
            .safetensors, with published, mmsegmentation's or own names); a folder written by `save_pretrained`; or a
            repository "owner/name" of the hub with such files. A name takes precedence over a file or folder of the
            same name: use "./shapes" for the latter.
        config: model of a bare checkpoint file: the name of a variant, or a configuration; by default the variant that
            has its tensors.
        revision: branch, tag or commit of a repository.
        cache_dir: replaces the caches of huggingface_hub and open_clip, and ~/.cache/san/models for files downloaded
            manually.
        local_files_only: do not use the network.
        model_class: class or function that builds the model: a subclass of `SANModel`, or a function that takes
            config, arch and tokenizer and returns one.

    Raises:
        FileNotFoundError: the file does not exist and cannot be downloaded; the message names the file to download and
            the folder to put it into.
        ValueError: the name is unknown, config is missing for a bare file or given for another source, or the weights
            do not fit.
    """
    path, name = Path(source), str(source)
    remote: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    known = MODELS.get(name) if isinstance(source, str) else None
    is_hub_id = isinstance(source, str) and _HUB_ID.fullmatch(name) and path.suffix not in WEIGHTS_SUFFIXES
    if known is None and path.is_file() and not _is_in_folder(path, config):
        return _load_file(path, config, model_class, **remote)
    if known is None and path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{excerpt(name)} is a pipe, a socket or a device; pass a regular file or a folder")
    if known is None and not path.exists() and not is_hub_id:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise FileNotFoundError(
            f"unknown model {name!r}, which is also not a file or folder; {hint}pass one of {', '.join(MODELS)}, a "
            "checkpoint file, a folder written by save_pretrained, or a repository owner/name of the hub"
        )
    _refuse_config(config, name)
    if known is not None:
        return _load_file(find_known(known, **remote), known.variant, model_class, **remote)
    folder = (path if path.is_dir() else path.parent) if path.exists() else _fetch_folder(name, **remote)
    return load_folder(folder, model_class=model_class)


def push_to_hub(
    model: SANModel | str | Path,
    repo_id: str,
    *,
    commit_message: str = "Upload SAN",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    half: bool = False,
    dtype: str = "float32",
) -> str:
    """Upload a model to the Hugging Face Hub, as config.json, model.safetensors and README.md.

    Args:
        model: any SAN, or a folder written by `save_pretrained`; its README.md may be edited.
        repo_id: "owner/name"; created if missing.
        commit_message: message of the commit.
        private: whether a new repository is private; None uses the owner's default.
        token: access token of the hub; by default that of the login, or HF_TOKEN. It is never logged.
        branch: branch to upload to, created if missing; None for the main branch.
        half: the same as dtype "float16".
        dtype: number type of a model's weights in the file, see `save_pretrained`.

    Returns:
        the URL of the commit.

    Raises:
        ValueError, FileNotFoundError: the folder is not a model's, or the hub refuses the upload.
    """
    upload: dict[str, Any] = {
        "commit_message": commit_message,
        "private": private,
        "token": token,
        "branch": branch,
    }
    if not isinstance(model, SANModel):
        if half or dtype != "float32":
            raise ValueError("half and dtype need a model; a folder is uploaded unchanged: save it with that dtype")
        load_folder(Path(model))  # check that it can be loaded
        _refuse_local_path(Path(model))
        return upload_folder(Path(model), repo_id, **upload)
    with tempfile.TemporaryDirectory() as made:
        return upload_folder(save_pretrained(model, Path(made), half=half, dtype=dtype), repo_id, **upload)


def _is_in_folder(path: Path, config: object) -> bool:
    """Whether a file is the weights of a saved folder, so that the folder's config.json is used."""
    return config is None and path.name == WEIGHTS_FILE and path.with_name(CONFIG_FILE).is_file()


def _refuse_local_path(folder: Path) -> None:
    """Refuse to publish a local path of CLIP weights, which earlier versions could write."""
    clip = read_config(folder).model.clip
    if clip.pretrained != clip.public_pretrained:
        raise ValueError(
            f"{str(folder / CONFIG_FILE)!r} would publish the local path {excerpt(clip.pretrained)} (model.clip."
            f"pretrained); replace it by {clip.public_pretrained!r} there and in README.md"
        )


def _refuse_config(config: object, name: str) -> None:
    if config is not None:
        raise ValueError(f"{name!r} has its own configuration; omit config, which is only for a bare checkpoint file")


def _load_file(
    path: Path,
    config: str | SANConfig | None,
    model_class: ModelClass,
    *,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> SANModel:
    """Load a model from a checkpoint file; without a configuration, it is recognized by its name or its tensors.

    The file may need CLIP's weights, to which `revision` does not apply.
    """
    if config is None:
        config = next((known.variant for known in MODELS.values() if known.repo_id and known.file == path.name), None)
    content = load_checkpoint_file(path)
    config = config or recognised_variant(content)
    if config is None:
        raise ValueError(
            f"{str(path)!r} has no configuration, and its tensors are of no known model; pass config: one of "
            f"{', '.join(VARIANTS)}, or a SANConfig"
        )
    resolved = variant(config) if isinstance(config, str) else config
    clip = load_clip(
        resolved.clip.name,
        resolved.clip.pretrained,
        weights=not brings_clip(content),
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    complete = clip.state_dict is not None or brings_clip(content)
    model = build_san(resolved, clip=clip, model_class=model_class, drawn=not complete)
    try:
        load_weights(model, content)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    return model


def recognised_variant(content: Mapping[str, Any]) -> str | None:
    """Return the variant with a checkpoint's tensor names and shapes; None if there is none, or several.

    Settings that do not affect the tensors, such as templates or CLIP's input scale, are those of the variant.

    Args:
        content: as returned by `load_checkpoint_file`.
    """
    found = []
    for name in VARIANTS:
        config = variant(name)
        model = build_outline(config, load_clip(config.clip.name, config.clip.pretrained, weights=False))
        freeze(model)  # a slim file has the tensors that are trained
        if fits(model, content):
            found.append(name)
    return found[0] if len(found) == 1 else None


def _fetch_folder(repo_id: str, *, revision: str | None, cache_dir: str | Path | None, local_files_only: bool) -> Path:
    """Return the folder of a repository's config and weights, both from one commit."""
    home = hand_folder(cache_dir)
    by_hand = home and home / repo_id.replace("/", "--")
    if revision is None and by_hand and (by_hand / CONFIG_FILE).is_file():
        return by_hand
    published = [name for name, known in MODELS.items() if known.repo_id == repo_id]
    if published:
        raise ValueError(f"{repo_id!r} contains several models; pass one of {', '.join(published)}")
    where: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "put_into": by_hand}
    config = fetch(HubFile(repo_id, CONFIG_FILE, revision=revision), **where)
    fetch(HubFile(repo_id, WEIGHTS_FILE, revision=config.parent.name), **where)  # the folder is named by the commit
    return config.parent

"""Checkpoints of a run: Detectron2's names and content, written whole or not at all, read strictly and safely."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, BinaryIO

import torch

from san.checkpoint import brings_clip, load_checkpoint_file
from san.d2 import stopping
from san.d2.api import DetectionCheckpointer
from san.files import replacing, sha256_of
from san.hub.remote import CONFIG_FILE, WEIGHTS_FILE

LAST = "last_checkpoint"
SUM = ".sha256"
"""Ending of the file beside a checkpoint that holds its SHA-256, as sha256sum writes it."""

logger = logging.getLogger("san.d2.checkpointer")


class SANCheckpointer(DetectionCheckpointer):
    """Reads own and published checkpoints as plain tensors, and refuses those that do not fit the model entirely.

    Files are ``model_0004999.pth`` ... ``model_final.pth`` with the keys model, trainer and iteration;
    ``last_checkpoint`` names the latest, and beside each lies its SHA-256.
    """

    failure = ""
    """Why the latest `save` did not write; "" if it did."""

    def save(self, name: str, *, latest: bool = True, **extra: Any) -> bool:
        """Writes a checkpoint; a killed process or a full disk leaves the former ones as they were.

        Args:
            name: of the file, without ``.pth``.
            latest: whether it is the one to resume from.
            **extra: further entries, such as the iteration.

        Returns:
            Whether it is written. Where it cannot be, a warning says why, and the run may go on.
        """
        if not self.save_dir or not self.save_to_disk:
            return True
        content = {"model": self.model.state_dict()}
        content |= {key: each.state_dict() for key, each in self.checkpointables.items()} | extra
        path = Path(self.save_dir) / f"{name}.pth"
        try:
            write_checkpoint(content, path)
            if latest:
                self.tag_last_checkpoint(path.name)
        except OSError as error:
            self.failure = str(error.strerror or error)
            logger.warning(
                "The checkpoint %s could not be written (%s); earlier ones are untouched and training goes on. Make "
                "room before the next.",
                path,
                self.failure,
            )
            return False
        self.failure = ""
        logger.info("Saved %s", path)
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes a checkpoint the latest."""
        with replacing(Path(self.save_dir) / LAST, durable=True) as partial:
            partial.write_text(last_filename_basename, encoding="utf-8")

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return latest_checkpoint(self.save_dir) is not None

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume from, "" where there is none."""
        return str(latest_checkpoint(self.save_dir) or "")

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint, or that of a folder (see `weights_file`); "" loads nothing.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no checkpoint, or does not fit the model.
        """
        content: dict[str, Any] = super().load(weights_file(path), *args, **kwargs)
        return content

    def _load_file(self, f: str) -> dict[str, Any]:
        return load_checkpoint_file(f)

    def _load_model(self, checkpoint: Any) -> None:
        """Hands over the whole content, so that the model sees what a slim file says of its CLIP."""
        self.model.load_state_dict(checkpoint)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a file of `torch.save` and its SHA-256 beside it; either all of it takes its place or nothing does.

    Raises:
        OSError: it cannot be written.
    """
    sum_file = path.with_name(path.name + SUM)
    with replacing(path, durable=True) as partial:
        with open(partial, "wb") as file:  # given a name, torch would write that name into the file
            telling = _Telling(file)
            try:
                torch.save(content, telling)  # type: ignore[arg-type]
            except RuntimeError as error:  # what torch makes of a full disk
                stopping.check_interrupted()  # which torch takes for the file's failure
                reason = str(error).splitlines()[0]
                raise telling.error or OSError(f"{path} cannot be written: {reason}") from error
        digest = sha256_of(partial)
        sum_file.unlink(missing_ok=True)  # a sum of the former content must not accuse the new one
    with replacing(sum_file, durable=True) as partial:
        partial.write_text(f"{digest}  {path.name}\n", encoding="utf-8")


class _Telling:
    """A file that remembers why it could not be written, which torch does not tell."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint and its SHA-256."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + SUM).unlink(missing_ok=True)


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run.

    That is the one ``last_checkpoint`` names, unless it is damaged or gone: then a warning says so, and the one before
    it is taken.

    Args:
        folder: OUTPUT_DIR.

    Returns:
        None where there is no ``last_checkpoint``.

    Raises:
        ValueError: there are checkpoints, but no whole one.
    """
    tag = Path(folder) / LAST
    if not tag.is_file():
        return None
    named = Path(folder) / Path(tag.read_text(encoding="utf-8").strip()).name
    others = [path for path in Path(folder).glob("model_*.pth") if path.stem != "model_best"]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    problems: list[str] = []
    for path in dict.fromkeys([named, *others]):
        problem = damage_of(path)
        if problem is None:
            if problems:
                _warn_once(f"{'; '.join(problems)}; going on from the one before, {path}")
            return path
        problems.append(problem)
    raise ValueError(
        f"{'; '.join(problems)}: no checkpoint in {folder} can be gone on from; restore one, or start anew without "
        "--resume in another OUTPUT_DIR"
    )


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None if it is whole."""
    if not path.is_file():
        return f"checkpoint {path} does not exist"
    sum_file = path.with_name(path.name + SUM)
    if sum_file.is_file():
        wanted = sum_file.read_text(encoding="utf-8", errors="replace").split(" ", 1)[0]
        state = path.stat()
        whole = _known_sum(path, state.st_mtime_ns, state.st_size) == wanted
        return None if whole else f"checkpoint {path} is damaged: its SHA-256 is not that of {sum_file.name}"
    try:
        load_checkpoint_file(path)
    except ValueError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=16)
def _known_sum(path: Path, modified: int, size: int) -> str:
    """A file's SHA-256; a run asks several times for that of one large file."""
    return sha256_of(path)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def weights_file(path: str) -> str:
    """The file that MODEL.WEIGHTS means.

    Args:
        path: a file, an address, "", or a folder: that of a run means its latest or final checkpoint, whichever is
            newer, one of `san.hub.save_pretrained` the weights in it.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no weights.
        ValueError: as `latest_checkpoint`.
    """
    if not path or "://" in path:
        return path
    folder = Path(path)
    if not folder.is_dir():
        if not folder.is_file():
            raise FileNotFoundError(f"checkpoint {path} does not exist; correct MODEL.WEIGHTS or OUTPUT_DIR")
        return path
    if (folder / CONFIG_FILE).is_file():
        return weights_file(str(folder / WEIGHTS_FILE))
    latest = latest_checkpoint(folder)
    final = folder / "model_final.pth"
    # without last_checkpoint the folder was copied, and its times may say nothing
    candidates = [latest, *folder.glob(final.name)] if latest else [*folder.glob("model_*.pth")]
    found = max(candidates, key=lambda each: (not latest and each == final, each.stat().st_mtime_ns), default=None)
    if found is None:
        raise FileNotFoundError(
            f"folder {path} is that of a run without a checkpoint (model_*.pth), and none of save_pretrained "
            f"({CONFIG_FILE}, {WEIGHTS_FILE}); train on with --resume, or name another"
        )
    return str(found)


def slim_note(path: str) -> dict[str, Any] | None:
    """What a checkpoint says of the CLIP that it leaves out.

    Args:
        path: MODEL.WEIGHTS.

    Returns:
        ``clip`` and ``clip_fingerprint`` as far as the file has them, nothing for "" and addresses; None where the file
        brings CLIP's weights itself, so that they need not be had from anywhere else.

    Raises:
        FileNotFoundError, ValueError: as loading it would.
    """
    path = weights_file(path)
    if not path or "://" in path:
        return {}
    content = load_checkpoint_file(path)
    if brings_clip(content["model"]):
        return None
    return {key: content[key] for key in ("clip", "clip_fingerprint") if key in content}


def starting_weights(weights: str, folder: str, *, resume: bool) -> str:
    """The checkpoint a run starts from.

    Args:
        weights: MODEL.WEIGHTS.
        folder: OUTPUT_DIR.
        resume: whether to prefer the latest checkpoint of the folder.

    Returns:
        Its path; "" for none.

    Raises:
        ValueError: as `latest_checkpoint`.
    """
    latest = latest_checkpoint(folder) if resume else None
    return str(latest or weights_file(weights))

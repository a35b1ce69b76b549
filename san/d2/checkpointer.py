"""Checkpoints of a run: Detectron2's names and content, written whole or not at all, read strictly and safely."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, BinaryIO

import torch

from san.checkpoint import load_checkpoint_file, load_weights
from san.d2.api import DetectionCheckpointer
from san.files import replacing, sha256_of

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
        """Loads a checkpoint; "" loads nothing.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no checkpoint, or does not fit the model.
        """
        check_exists(path)
        content: dict[str, Any] = super().load(path, *args, **kwargs)
        return content

    def _load_file(self, f: str) -> dict[str, Any]:
        return load_checkpoint_file(f)

    def _load_model(self, checkpoint: Any) -> None:
        """Loads the tensors of a checkpoint; unlike the base's, nothing that does not fit is skipped."""
        content = {key: value for key, value in checkpoint.items() if key not in ("trainer", "iteration")}
        load_weights(self.model.model, content)


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
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
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


def check_exists(path: str) -> None:
    """Refuses a path, other than "" or an address, where there is no file."""
    if path and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; correct MODEL.WEIGHTS or OUTPUT_DIR")


def holds_clip(path: str) -> bool:
    """Whether a checkpoint holds CLIP's weights too, so that they need not be had from anywhere else.

    Args:
        path: checkpoint; "" or an address give False.

    Raises:
        FileNotFoundError, ValueError: as loading it would.
    """
    check_exists(path)
    return bool(path) and "://" not in path and "format" not in load_checkpoint_file(path)


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
    return str(latest or weights)

"""OUTPUT_DIR of a training run: its lock, the run's id and configuration, and moving an earlier run aside."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from san.d2.api import CfgNode, forget_log_files
from san.io.errors import excerpt, listed, one_line, printable
from san.io.files import write_whole
from san.io.plain_file import read_plain_file

CONFIG = "config.yaml"
"""The configuration of the run, written when training starts."""

RECORD = "run.json"
"""Contains the run's id, which its checkpoints also contain."""

LOCK = ".lock"
"""Locked by the main process while a run trains."""

LAST = "last_checkpoint"

PATTERNS = (
    CONFIG, RECORD, LAST, "log.txt*", "metrics.json", "events.out.tfevents*", "curves.png", "model_*.pth",
    "model_*.pth.sha256", "bad_data.json", "nonfinite_*.json", "nonfinite_*.pth*", "inference", "wandb",
)  # fmt: skip
"""The files of a run, which --move-aside moves."""

_FOLDERS = ("inference", "wandb")

logger = logging.getLogger("san.d2.run_folder")


def new_run_id() -> str:
    """Return a unique id of 16 letters and digits; Weights & Biases uses the same one."""
    return secrets.token_hex(8)


@contextlib.contextmanager
def occupied(folder: Path, *, resume: bool, move_aside: bool) -> Iterator[None]:
    """Context manager that creates and locks the folder of a training run; for the main process.

    Args:
        folder: OUTPUT_DIR; created if missing.
        resume: whether the existing run is resumed.
        move_aside: whether the files of an existing run are moved to a new folder next to it.

    Raises:
        ValueError: the folder cannot be created; another run is training there; it contains a run, and neither
            `resume` nor `move_aside` is set; or something that a run reads or writes there is not a regular file.
        OSError: it cannot be written.
    """
    make_folder(folder)
    check_kinds(folder)
    with _locked(folder):
        if not resume and (found := traces_of_run(folder)):
            if not move_aside:
                raise ValueError(
                    f"OUTPUT_DIR {folder} already has a run ({listed(found)}); "
                    "resume it with --resume, move it aside with --move-aside, or use another OUTPUT_DIR"
                )
            logger.warning("The run in %s was moved to %s", folder, move_run(folder))
        yield


def make_folder(folder: Path) -> None:
    """Create OUTPUT_DIR if it is missing.

    Raises:
        ValueError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"OUTPUT_DIR {excerpt(str(folder))} cannot be created ({reason}); set it to a folder that you may write to"
        ) from error


def check_weights_stay(weights: str, folder: Path) -> None:
    """Check that the weights of a new run still exist after an existing run is moved aside.

    Args:
        weights: MODEL.WEIGHTS.
        folder: OUTPUT_DIR.

    Raises:
        ValueError: the weights are in the folder and would be moved too.
        FileNotFoundError: the weights do not exist.
    """
    if not weights or "://" in weights:
        return
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {weights} does not exist; correct MODEL.WEIGHTS")
    if path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"MODEL.WEIGHTS {weights} is in OUTPUT_DIR {folder}, and --move-aside would move it; use another OUTPUT_DIR"
        )


def check_kinds(folder: Path) -> None:
    """Raise if a file of a run is not a regular file; opening a pipe or a device may block forever.

    Raises:
        ValueError: the message names the path.
    """
    for path in [folder / LOCK, *_files(folder)]:
        wrong = not path.is_dir() if path.name in _FOLDERS else not path.is_file()
        if wrong and (path.exists() or path.is_symlink()):
            kind = "folder" if path.name in _FOLDERS else "regular file"
            raise ValueError(f"{path} is not a {kind}, as a run needs it; remove it, or use another OUTPUT_DIR")


def traces_of_run(folder: Path) -> list[str]:
    """Return the names of the checkpoints and metrics files in a folder, which show that a run has trained there."""
    checkpoints = sorted(path.name for path in folder.glob("model_*.pth"))
    metrics = folder / "metrics.json"
    return [*checkpoints, *([metrics.name] if metrics.is_file() and metrics.stat().st_size else [])]


def move_run(folder: Path) -> Path:
    """Move the files of a run to a new folder next to its own, named by the time; other files are kept.

    Returns:
        the new folder.

    Raises:
        OSError: the new folder cannot be created, or is on another disk.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    own = folder.resolve()
    target = own.with_name(f"{own.name}-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = own.with_name(f"{own.name}-{stamp}-{number}")
    target.mkdir()
    for path in _files(folder):
        os.rename(path, target / path.name)
    forget_log_files()
    return target


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in PATTERNS for path in folder.glob(pattern)})


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends.

    The lock belongs to the process, not to the file: loader workers, which may outlive a killed run, do not hold it.
    """
    try:
        import fcntl
    except ImportError:  # only on Unix
        yield
        return
    with open(folder / LOCK, "a+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = printable(file.read(200).decode("utf-8", "replace"))
            raise ValueError(
                f"another run is training in OUTPUT_DIR {folder} ({holder or 'unknown process'}); wait until it ends, "
                "stop it, or use another OUTPUT_DIR"
            ) from error
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): do not start a second run in this folder",
                folder / LOCK,
                error.strerror or error,
            )
        with contextlib.suppress(OSError):  # without disk space, the lock is still held
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def recorded_run(folder: Path) -> str | None:
    """Return the id of the run in a folder; None if it is not recorded, with a warning if the record is damaged."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        content = read_plain_file(path, "record of the run")
        found = content.get("id") if isinstance(content, dict) else None
        if isinstance(found, str) and re.fullmatch("[0-9a-zA-Z_-]{1,64}", found):
            return found
        problem = f"its id is {excerpt(found)}"
    except (ValueError, OSError) as error:
        problem = one_line(error, limit=300)
    logger.warning("%s is ignored (%s); the run's id is that of its latest checkpoint", path, problem)
    return None


def record_start(folder: Path, run_id: str, cfg: CfgNode) -> None:
    """Write the run's id and configuration; called only when training starts.

    Raises:
        OSError: they cannot be written.
    """
    write_whole(folder / RECORD, json.dumps({"id": run_id}) + "\n")
    write_config(folder, cfg)


def write_config(folder: Path, cfg: CfgNode) -> None:
    """Write a configuration to ``config.yaml`` in a folder, which is created if missing.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CONFIG, cfg.dump())
    logger.info("Configuration: %s", folder / CONFIG)

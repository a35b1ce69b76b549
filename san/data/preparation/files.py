"""Files that appear whole or not at all, one run at a time under a root, and enough room before anything is written."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from san.files import PARTIAL, replacing

logger = logging.getLogger(__name__)

STATE_FOLDER = ".preparation"
"""Folder under the root for the lock and the notes on unpacked archives."""

_SPARE_BYTES = 64 << 20  # a file system filled to the last byte hurts others


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill an empty temporary file beside `path`, then give it the name `path`.

    A process killed at any moment leaves the old file or the new one; what may stay behind is the temporary file, which
    `remove_partial_files` clears away. The data is not forced to the disk (that costs several milliseconds a file):
    after a power failure, `--check` tells which files suffered.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, keep_ending=False) as partial:  # one that is left is no label or image to anyone
        write(partial)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda partial: partial.write_bytes(content))


def place_file(source: Path, path: Path, *, link: bool) -> None:
    """Copy a file byte by byte, or make a symbolic link to it, atomically."""

    def make_link(partial: Path) -> None:
        partial.unlink()  # the empty file in its place
        partial.symlink_to(source.resolve())

    write_atomically(path, make_link if link else lambda partial: shutil.copyfile(source, partial))


def remove_partial_files(folders: Iterable[Path]) -> int:
    """Delete the temporary files that a killed run left in these folders and below; returns how many."""
    found = {path for folder in folders if folder.is_dir() for path in folder.rglob(f".*{PARTIAL}")}
    for path in found:
        path.unlink(missing_ok=True)
    if found:
        logger.info("removed %d half-written temporary files of an earlier run", len(found))
    return len(found)


def check_disk_space(folder: Path, needed: int) -> None:
    """Refuse to start what would fill the disk.

    Args:
        folder: where files will be written; need not exist yet.
        needed: estimated bytes to write.

    Raises:
        ValueError: names the folder, the bytes needed and the bytes free.
    """
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + _SPARE_BYTES > free:
        raise ValueError(
            f"{folder} needs about {readable_bytes(needed)} but the disk has {readable_bytes(free)} free: free some, "
            "give another --root, or --link instead of copies of the images"
        )


def readable_bytes(count: float) -> str:
    """A byte count for people, in units of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextmanager
def only_run(root: Path) -> Iterator[None]:
    """Hold the root's lock; it goes with the process, however that ends.

    Raises:
        ValueError: another run holds it.
    """
    folder = root / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another preparation is writing below {root}; wait until it ends, or give another --root"
            ) from error
        yield

"""Atomic writes, a lock against concurrent runs below one root, and a check of the free disk space."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from san.io.files import PARTIAL, replacing

logger = logging.getLogger(__name__)

STATE_FOLDER = ".preparation"
"""Folder below the root for the lock and the notes on unpacked archives."""

_SPARE_BYTES = 64 << 20  # leave some space to other programs


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill an empty temporary file beside `path`, then rename it to `path`.

    A process killed at any moment leaves the old file or the new one, and possibly the temporary file, which
    `remove_partial_files` deletes. The data is not synced to the disk, which would cost several milliseconds per file:
    after a power failure, `--check` reports the damaged files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, keep_ending=False) as partial:  # a leftover does not count as a label or image
        write(partial)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda partial: partial.write_bytes(content))


def place_file(source: Path, path: Path, *, link: bool) -> None:
    """Copy a file, or make a symbolic link to it, atomically."""

    def make_link(partial: Path) -> None:
        partial.unlink()  # the empty temporary file
        partial.symlink_to(source.resolve())

    write_atomically(path, make_link if link else lambda partial: shutil.copyfile(source, partial))


def remove_partial_files(folders: Iterable[Path]) -> int:
    """Delete the temporary files that a killed run left below these folders; returns their number."""
    found = {path for folder in folders if folder.is_dir() for path in folder.rglob(f".*{PARTIAL}")}
    for path in found:
        path.unlink(missing_ok=True)
    if found:
        logger.info("removed %d incomplete temporary files of an earlier run", len(found))
    return len(found)


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise if the disk has too little free space.

    Args:
        folder: folder to write to; it need not exist.
        needed: estimated bytes to write.

    Raises:
        ValueError: the disk is too small; the message names the folder, the bytes needed and the bytes free.
    """
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + _SPARE_BYTES > free:
        raise ValueError(
            f"{folder} needs about {readable_bytes(needed)} but the disk has {readable_bytes(free)} free: free some "
            "space, use another --root, or use --link instead of copying the images"
        )


def readable_bytes(count: float) -> str:
    """Format a byte count in units of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextmanager
def only_run(root: Path) -> Iterator[None]:
    """Hold the root's lock, where the system has such locks (not Windows), which releases it when the process ends.

    Raises:
        ValueError: another run holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # only on Unix
        yield
        return
    folder = root / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another preparation is writing below {root}; wait until it ends, or use another --root"
            ) from error
        yield

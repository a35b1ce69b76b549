"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from san.errors import excerpt

PARTIAL = ".partial"
"""In the names of the hidden files that a killed process may leave behind; nothing reads them."""

FORMATS = {
    "overlay": "_overlay.png",
    "labels": "_labels.png",
    "rle": "_rle.json",
    "json": ".json",
    "panel": "_panel.png",
}
"""What `san.segmentation.Segmentation.save` can write, and how the files' names end."""

MAX_PATH = 4096
"""Characters of a path; no system takes more."""


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = False, keep_ending: bool = True) -> Iterator[Path]:
    """A file to write that takes its place when all went well, and vanishes otherwise.

    Args:
        path: its place; the folder is there.
        durable: survive a power cut too: the content is on the disk before the move, and the move before the return.
        keep_ending: the unfinished file's name ends as `path` does, which some writers go by; else in `PARTIAL`, so
            that nobody who looks for such endings finds what a killed process left.

    Yields:
        An empty file in the same folder, hidden, with the user's permissions.

    Raises:
        OSError: it cannot be written; what stood in its place stands still.
    """
    path = Path(path)
    stem = path.stem[:40]  # the name stays below the longest that a file system takes
    ending = path.suffix if keep_ending else ""
    partial = path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}{ending}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # safetensors puts a file in its place that nobody else may read
        if durable:
            _sync(partial)
        os.replace(partial, path)
        if durable:
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Writes several files so that all of them appear, or none, and files of the same names stay as they were.

    Args:
        writers: what writes each file, given the path to write to, which ends as the file does; folders are made.

    Raises:
        OSError: a folder or file cannot be written.
    """
    with contextlib.ExitStack() as moves:  # to their places once all are written
        for file, write in writers.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write(moves.enter_context(replacing(file)))
        blocked = [file for file in writers if file.is_dir()]
        if blocked:
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(blocked[0]))


def write_text(path: str | Path, text: str) -> None:
    r"""A text file in UTF-8.

    What stands for a byte of a file name that is not UTF-8 is written as ``\udce9``: JSON's own escape, which
    ``json.loads`` and ``os.fsencode`` bring back to that name.

    Args:
        path: the file.
        text: its content.
    """
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def home_folder(place: str) -> Path | None:
    """A folder of the user's; None where there is no home folder, as under a number that no user of the machine has.

    Args:
        place: it, beginning with ``~``.
    """
    found = os.path.expanduser(place)
    return None if found.startswith("~") else Path(found)


def user_path(text: str, where: str) -> Path:
    """A path that somebody wrote, ``~`` standing for a home folder.

    Raises:
        ValueError: there is no such user, or it can be no path.
    """
    if "\0" in text or len(text) > MAX_PATH:
        raise ValueError(f"{where} is {excerpt(text)}, which can be no path: it is too long or holds a zero byte")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{where} is {excerpt(text)} ({error}); write the folder out") from None


def expand_home(text: str, where: str) -> str:
    """A text that may be a path, with the home folder that a ``~`` at its beginning stands for.

    Raises:
        ValueError: see `user_path`.
    """
    return str(user_path(text, where)) if text.startswith("~") else text


def check_file_size(path: Path, limit: int) -> None:
    """Refuses to read a file of more bytes than its kind has.

    Raises:
        ValueError: with the file, its size and the limit.
    """
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path} has {size:,} bytes, but at most {limit:,} are read; move it away or replace it")


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

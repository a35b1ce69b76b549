"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"
"""Ending of the files that a killed process may leave behind; nothing reads them."""


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A file to write that takes its place when all went well, and vanishes otherwise.

    Args:
        path: its place; the folder is there.
        durable: survive a power cut too: the content is on the disk before the move, and the move before the return.

    Yields:
        An empty file in the same folder, with the user's permissions and the ending of `path`.

    Raises:
        OSError: it cannot be written; what stood in its place stands still.
    """
    path = Path(path)
    stem = path.stem[:40]  # the name stays below the longest that a file system takes
    partial = path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}{path.suffix}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, path)
        if durable:
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


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

"""Atomic writes of files: a temporary file is written, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from san.io.errors import excerpt

_WINDOWS = sys.platform == "win32"

PARTIAL = ".partial"
"""Part of the names of temporary files, which a killed process may leave behind; they are never read."""

FORMATS = {
    "overlay": "_overlay.png",
    "labels": "_labels.png",
    "rle": "_rle.json",
    "json": ".json",
    "panel": "_panel.png",
}
"""Formats of `san.inference.segmentation.Segmentation.save` and their file name endings."""

VIDEO_FORMATS = {"overlay": ("_overlay.mp4", "_overlay.mkv"), "labels": ("_labels",), "json": (".json",)}
"""What `san.video.results.VideoResults` can write, and how the names may end: of one of two files, of a folder, of a
file."""

LABEL_FORMATS = ("coco", "coco-panoptic", "yolo-seg", "voc", "png", "labelme", "label-studio", "cvat", "geojson")
"""Formats of `san label`; `san.labelling.formats.WRITERS` has the writers."""

MAX_PATH = 4096
"""Maximum number of characters of a path on any system."""


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = False, keep_ending: bool = True) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` on success and is deleted on an error.

    Args:
        path: file to replace; its folder must exist.
        durable: survive a power failure: sync the content before the rename, and the rename before the return.
        keep_ending: give the temporary file the extension of `path`, which some writers need; otherwise its name ends
            with `PARTIAL`, so that a search for the extension does not find a leftover.

    Yields:
        an empty hidden file in the same folder, with the user's permissions.

    Raises:
        OSError: the file cannot be written; the old file is unchanged.
    """
    path = Path(path)
    stem = path.stem[:40]  # keeps the name below the limit of file systems
    ending = path.suffix if keep_ending else ""
    partial = path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}{ending}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # safetensors creates a file that only the user may read
        if durable:
            _sync(partial)
        os.replace(partial, path)
        if durable:
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write several files so that all of them appear or none; on an error, existing files are unchanged.

    Args:
        writers: file -> function that writes it to a given path of the same extension; missing folders are created.

    Raises:
        OSError: a folder or file cannot be written.
    """
    with contextlib.ExitStack() as moves:  # renames, done once all files are written
        for file, write in writers.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write(moves.enter_context(replacing(file)))
        blocked = [file for file in writers if file.is_dir()]
        if blocked:
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(blocked[0]))


def write_text(path: str | Path, text: str) -> None:
    r"""Write a text file in UTF-8.

    A byte of a file name that is not UTF-8 is written as a JSON escape such as ``\udce9``, from which ``json.loads``
    and ``os.fsencode`` restore the name.

    Args:
        path: the file.
        text: its content.
    """
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def write_whole(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file atomically, see `replacing` and `write_text`; folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as partial:
        write_text(partial, text)


def home_folder(place: str) -> Path | None:
    """Expand a folder in the user's home; None without a home folder, as for an unknown user id.

    Args:
        place: path that starts with ``~``.
    """
    found = os.path.expanduser(place)
    return None if found.startswith("~") else Path(found)


def user_path(text: str, where: str) -> Path:
    """Return a path that a user wrote, with ``~`` expanded.

    Raises:
        ValueError: the user of ``~user`` is unknown, or the text is not a valid path.
    """
    if "\0" in text or len(text) > MAX_PATH:
        raise ValueError(f"{where} is {excerpt(text)}, which is not a valid path: too long or with a zero byte")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{where} is {excerpt(text)} ({error}); use the full path") from None


def expand_home(text: str, where: str) -> str:
    """Expand a leading ``~`` of a text that may be a path.

    Raises:
        ValueError: see `user_path`.
    """
    return str(user_path(text, where)) if text.startswith("~") else text


def check_file_size(path: Path, limit: int) -> None:
    """Raise if a file is larger than a limit.

    Raises:
        ValueError: the file is too large; the message names it, its size and the limit.
    """
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path} has {size:,} bytes, but at most {limit:,} are read; move it away or replace it")


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Sync a file, or a folder's list of files, to the disk; Windows opens no folder and syncs only writable files."""
    if _WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

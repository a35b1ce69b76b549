"""Lists the files of a folder and its sub-folders: links are followed once, hidden and system names are skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from san.io.errors import listed, printable

SYSTEM_NAMES = frozenset(
    (
        "@eadir",
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "__macosx",
        "desktop.ini",
        "lost+found",
        "system volume information",
        "thumbs.db",
    )
)
"""Lower-case names of files that operating systems add: thumbnails, attributes, recycle bins."""

_NUM_SHOWN = 5


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not listed.

    Attributes:
        path: path of the file or folder.
        reason: reason, such as "hidden".
        missed: whether it may be wanted and cannot be read, unlike hidden names and entries that are already listed.
    """

    path: Path
    reason: str
    missed: bool = False


@dataclass(frozen=True)
class Listing:
    """The content of a folder.

    Attributes:
        files: the files of each folder by name, then those of its sub-folders.
        skipped: wanted files that were skipped, and folders that were not searched.
    """

    files: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()


def list_files(
    folder: Path, wanted: Callable[[str], bool], *, recursive: bool = True, apart: Path | None = None
) -> Listing:
    """List the files with wanted names below a folder, following links.

    A folder that is also the target of links is listed once, under its own name if that is below `folder`. A link to a
    file is listed even if it is broken, so that reading it reports the problem.

    Args:
        folder: an existing folder.
        wanted: whether a file of this name is wanted.
        recursive: search sub-folders.
        apart: a folder that is not searched.

    Raises:
        OSError: the folder cannot be read.
    """
    files: list[Path] = []
    skipped: list[Skipped] = []
    left_out = _identity(apart) if apart is not None and os.path.isdir(apart) else None
    seen = {left_out}
    folders, links = [folder], list[Path]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        try:
            identity = _identity(here)
            if identity in seen:
                if identity != left_out:
                    skipped.append(Skipped(here, "listed under another name"))
                continue
            seen.add(identity)
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            if here == folder:
                raise
            skipped.append(Skipped(here, f"cannot be read: {error.strerror}", missed=True))
            continue
        for entry in entries:
            path, kind = here / entry.name, _kind(entry)
            looked_at = recursive if kind == "folder" else wanted(entry.name)
            if not looked_at:
                continue
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                skipped.append(Skipped(path, "hidden, or a system's own"))
            elif kind == "folder":
                waiting = links if entry.is_symlink() else folders
                waiting.append(path)
            elif kind == "file":
                files.append(path)
            else:
                skipped.append(Skipped(path, "pipe, socket or device", missed=True))
    return Listing(tuple(sorted(files, key=_by_folder)), tuple(sorted(skipped, key=lambda each: each.path)))


def describe_skipped(skipped: Iterable[Skipped]) -> list[str]:
    """Return a line per reason: the number of skipped files and folders, and the names of the first few."""
    groups: dict[str, list[str]] = {}
    for each in skipped:
        groups.setdefault(each.reason, []).append(printable(str(each.path)))
    return [f"{len(paths)} {reason}: {listed(paths, _NUM_SHOWN)}" for reason, paths in groups.items()]


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file" or "other"; for a link, the type of its target."""
    if not entry.is_symlink():  # known without a system call per file
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"
    if os.path.isdir(entry.path):
        return "folder"
    return "file" if os.path.isfile(entry.path) or not os.path.exists(entry.path) else "other"


def _identity(folder: Path) -> tuple[int, int]:
    """The same for all names in a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _by_folder(path: Path) -> tuple[tuple[bool, str], ...]:
    """Return the sort key that puts the files of a folder before those of its sub-folders."""
    *folders, name = path.parts
    return (*((True, each) for each in folders), (False, name))

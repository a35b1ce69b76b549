"""The files of a folder and of those below it: links are followed once, hidden and system names are skipped."""

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
"""What systems put beside people's files, in lower case: thumbnails, attributes, bins."""

_NUM_SHOWN = 5


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not listed.

    Attributes:
        path: of it.
        reason: why, such as "hidden".
        missed: it may be what somebody wanted and cannot be read, unlike hidden names and what is listed already.
    """

    path: Path
    reason: str
    missed: bool = False


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        files: those of each folder by name, then those of its sub-folders.
        skipped: wanted files that were left out, and folders that were not looked into.
    """

    files: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()


def list_files(
    folder: Path, wanted: Callable[[str], bool], *, recursive: bool = True, apart: Path | None = None
) -> Listing:
    """The files below a folder whose names are wanted, wherever links lead.

    A folder that links lead to as well is listed once, under its own name where that is below `folder`. A link to a
    file is listed, also one that leads nowhere, so that whoever reads it says so.

    Args:
        folder: an existing folder.
        wanted: whether a file of this name is looked for.
        recursive: look into sub-folders.
        apart: a folder that is not looked into.

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
    """A line for each reason: how many files and folders were left out for it, and which, of many the first few."""
    groups: dict[str, list[str]] = {}
    for each in skipped:
        groups.setdefault(each.reason, []).append(printable(str(each.path)))
    return [f"{len(paths)} {reason}: {listed(paths, _NUM_SHOWN)}" for reason, paths in groups.items()]


def _kind(entry: os.DirEntry[str]) -> str:
    """Either "folder", "file" or "other"; of a link, what it leads to."""
    if not entry.is_symlink():  # known without asking the file system for each
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"
    if os.path.isdir(entry.path):
        return "folder"
    return "file" if os.path.isfile(entry.path) or not os.path.exists(entry.path) else "other"


def _identity(folder: Path) -> tuple[int, int]:
    """The same for all names of a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _by_folder(path: Path) -> tuple[tuple[bool, str], ...]:
    """Sorts the files of a folder before those of its sub-folders."""
    *folders, name = path.parts
    return (*((True, each) for each in folders), (False, name))

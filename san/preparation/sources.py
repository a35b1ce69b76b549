"""Finds the parts of a raw download, unpacked or as archives, and unpacks the archives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from san.preparation.archives import unpack
from san.preparation.files import STATE_FOLDER

logger = logging.getLogger(__name__)

_NOTE_SUFFIX = ".unpacking"  # of the note that exists while an archive is being unpacked


@dataclass(frozen=True)
class PreparationOptions:
    """Options of a preparation.

    Attributes:
        root: root of the prepared data sets.
        raw: files and folders of the download, searched before the root.
        workers: number of worker processes; 1 converts in this process.
        splits: "train", "val" or both.
        link: make symbolic links to images instead of copies.
        partial: accept fewer images than published.
        progress: show progress bars on a terminal.
    """

    root: Path
    raw: tuple[Path, ...] = ()
    workers: int = 1
    splits: tuple[str, ...] = ("train", "val")
    link: bool = False
    partial: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers} but must be at least 1")
        wrong = set(self.splits) - {"train", "val"}
        if wrong or not self.splits:
            raise ValueError(f"splits is {self.splits} but must be train, val or both")
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"root {self.root} is not a folder; correct --root")
        for path in self.raw:
            if not path.exists():
                raise FileNotFoundError(f"raw download {path} does not exist; correct --raw")


@dataclass(frozen=True)
class DownloadPart:
    """One part of a download.

    Attributes:
        what: name for messages.
        folders: folders it may be unpacked to, relative to the root or a raw folder; "." is that folder itself.
        sign: path below such a folder that identifies it.
        archives: file names of its archive; `*` matches any characters.
        home: folder below the root that the archive is unpacked to.
        pattern: regular expression of the needed members, see `unpack`.
        source: where to download it, for messages.
    """

    what: str
    folders: tuple[str, ...]
    sign: str
    archives: tuple[str, ...]
    home: str
    pattern: str
    source: str


def find_part(part: DownloadPart, options: PreparationOptions) -> Path:
    """Return the folder of a part, after unpacking its archive if one is found.

    Raw folders are searched before the root, archives before folders.

    Raises:
        FileNotFoundError: the part is not found; the message names the paths searched and the source.
        ValueError: the archive is refused or damaged, or unpacking was interrupted and the archive no longer exists.
    """
    found = find_part_if_any(part, options)
    if found is None:
        wanted = [*(str(Path(folder) / part.sign) for folder in part.folders), *part.archives]
        raise FileNotFoundError(
            f"{part.what} not found: looked for {', '.join(wanted)} in {_searched(options)}; get {part.source} and "
            "pass its folder or file with --raw"
        )
    return found


def find_part_if_any(part: DownloadPart, options: PreparationOptions) -> Path | None:
    """Like `find_part`, but return None if the part is not found."""
    home = options.root / part.home
    for base in (*options.raw, options.root):
        for archive in _archives(part, base):
            note = options.root / STATE_FOLDER / f"{archive.name}{_NOTE_SUFFIX}"
            unpack(archive, home, part.pattern, note=note, progress=options.progress)
            return home
        for folder in part.folders:
            if (base / folder / part.sign).exists():
                _refuse_interrupted(part, options, base / folder)
                return base / folder
    return None


def find_file(what: str, names: tuple[str, ...], options: PreparationOptions) -> Path | None:
    """Return the first of some relative file names that exists in a raw folder, as a raw file, or below the root."""
    for base in (*options.raw, options.root):
        for name in names:
            path = base if base.is_file() and base.name == Path(name).name else base / name
            if path.is_file():
                logger.info("%s: %s", what, path)
                return path
    return None


def need_file(what: str, names: tuple[str, ...], options: PreparationOptions, source: str) -> Path:
    """Like `find_file`, but raise if the file is not found.

    Raises:
        FileNotFoundError: the file is not found; the message names the paths searched and the source.
    """
    path = find_file(what, names, options)
    if path is None:
        raise FileNotFoundError(
            f"{what} not found: looked for {', '.join(names)} in {_searched(options)}; get {source} and pass it with "
            "--raw"
        )
    return path


def files_by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of a folder, not of its subfolders, by stem. Hidden files (macOS's `._name`) are skipped.

    Raises:
        FileNotFoundError: the folder does not exist or contains no such file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist; unpack the download again")
    with os.scandir(folder) as entries:  # is_file follows links, so a broken link is skipped
        names = sorted(e.name for e in entries if e.name.endswith(suffix) and e.name[0] != "." and e.is_file())
    found = {name.removesuffix(suffix): folder / name for name in names}
    if not found:
        raise FileNotFoundError(f"folder {folder} contains no *{suffix} file; unpack the download again")
    return found


def _archives(part: DownloadPart, base: Path) -> Iterator[Path]:
    """Yield the part's archives in a raw folder or the set's folder below it, or the raw file itself if it is one."""
    for name in part.archives:
        if base.is_file():
            yield from [base] if fnmatch(base.name, name) else []
        else:
            for folder in (base, base / Path(part.home).parts[0]):
                yield from (path for path in sorted(folder.glob(name)) if path.is_file())


def _refuse_interrupted(part: DownloadPart, options: PreparationOptions, folder: Path) -> None:
    if folder.resolve() != (options.root / part.home).resolve():
        return
    for name in part.archives:
        for note in (options.root / STATE_FOLDER).glob(f"{name}{_NOTE_SUFFIX}"):
            archive = note.name.removesuffix(_NOTE_SUFFIX)
            raise ValueError(
                f"unpacking {archive} to {folder} was interrupted: pass {archive} with --raw to finish it; or, if "
                f"the folder is complete, delete {note}"
            )


def _searched(options: PreparationOptions) -> str:
    return ", ".join(map(str, (*options.raw, options.root)))

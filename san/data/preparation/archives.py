"""Unpacks the needed part of a zip or tar file: resumable, each file whole or absent, nothing outside the folder."""

from __future__ import annotations

import gzip
import logging
import lzma
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from san.data.preparation.files import (
    check_disk_space,
    readable_bytes,
    remove_partial_files,
    write_atomically,
    write_bytes,
)

logger = logging.getLogger(__name__)

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    EOFError,
    zlib.error,
    struct.error,
    LookupError,
    ArithmeticError,
    UnicodeError,
    NotImplementedError,
    RuntimeError,
)
_CHUNK = 1 << 20
_LARGEST_HEADER = 1 << 20
_HEADERS = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True)
class Member:
    """One regular file of an archive that is needed.

    Attributes:
        target: where it goes below the home folder.
        size: bytes when unpacked.
        position: bytes of the archive up to its end, for the progress bar.
        open: gives its content.
    """

    target: str
    size: int
    position: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, home: Path, pattern: str, *, note: Path, progress: bool = False) -> None:
    """Unpack the members that match a pattern; files that are there already in full size stay.

    Args:
        archive: a .zip, .tar, .tar.gz or .tgz file.
        home: folder to fill.
        pattern: regular expression for the whole member name; its first group is the path below `home`.
        note: file that is there from the first file unpacked to the last, so that a stopped unpacking is known.
        progress: show a bar.

    Raises:
        ValueError: the archive is damaged; a member's name is absolute or leads out with `..`, or a needed member is
            a link or a device; nothing matches; or the disk is too small.
    """
    remove_partial_files([home])
    num_bytes, seen = archive.stat().st_size, 0
    logger.info("unpacking what is needed of %s (%s) to %s", archive, readable_bytes(num_bytes), home)
    with (
        tqdm(total=num_bytes, unit="B", unit_scale=True, desc=archive.name, disable=_bar(progress)) as bar,
        _open(archive, home, re.compile(pattern)) as members,
    ):
        for member in members:
            seen += 1
            target = home / member.target
            if not (target.is_file() and target.stat().st_size == member.size):
                if not note.is_file():
                    write_bytes(note, archive.name.encode())
                write_atomically(target, lambda partial, member=member: _copy(member, partial))  # type: ignore[misc]
            bar.update(member.position - bar.n)
    if not seen:
        raise ValueError(f"archive {archive} holds none of the files wanted ({pattern}); it is not the one named so")
    note.unlink(missing_ok=True)


def _bar(progress: bool) -> bool | None:
    return None if progress else True  # None: shown on a terminal only


def _copy(member: Member, partial: Path) -> None:
    with member.open() as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK)
    if partial.stat().st_size != member.size:
        raise EOFError(f"{member.target} ends early")


class _TarInfo(tarfile.TarInfo):
    """A member whose headers are of a sane size; tarfile would read any into memory."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        member: tarfile.TarInfo = super()._proc_member(tarfile_)  # type: ignore[misc]
        return member


@contextmanager
def _open(archive: Path, home: Path, pattern: re.Pattern[str]) -> Iterator[Iterator[Member]]:
    """The needed members of either kind of archive; damage becomes one clear error."""
    try:
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as pack:
                yield _zip_members(archive, pack, home, pattern)
        else:
            with archive.open("rb") as file, tarfile.open(fileobj=file, tarinfo=_TarInfo) as pack:
                there = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
                check_disk_space(home, max(0, archive.stat().st_size - there))
                yield _tar_members(archive, pack, file, home, pattern)
    except _DAMAGED as error:
        raise ValueError(f"archive {archive} is damaged or incomplete ({error}); download it again") from error


def _zip_members(archive: Path, pack: zipfile.ZipFile, home: Path, pattern: re.Pattern[str]) -> Iterator[Member]:
    chosen = []
    for info in pack.infolist():
        target = _target(archive, info.filename, pattern)
        if target is None or info.is_dir():
            continue
        kind = info.external_attr >> 28  # file type bits of the Unix mode, where the packer stored one
        if kind not in (0, 0o10):
            raise ValueError(_refusal(archive, info.filename, "is a link or a device"))
        chosen.append((info, target))
    missing = (info.file_size for info, target in chosen if not (home / target).is_file())
    check_disk_space(home, sum(missing))
    position = 0
    for info, target in chosen:
        position += info.compress_size
        yield Member(target, info.file_size, position, lambda info=info: _zip_content(pack, info))  # type: ignore[misc]


def _zip_content(pack: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return pack.open(info)
    except (OSError, ValueError) as error:  # it is said to lie before the file's beginning
        raise zipfile.BadZipFile(str(error)) from error


def _tar_members(
    archive: Path, pack: tarfile.TarFile, file: IO[bytes], home: Path, pattern: re.Pattern[str]
) -> Iterator[Member]:
    for info in pack:
        target = _target(archive, info.name, pattern)
        if target is None or info.isdir():
            continue
        if not info.isfile():
            raise ValueError(_refusal(archive, info.name, "is a link or a device"))
        if not (home / target).is_file():
            check_disk_space(home, info.size)  # compressed zeros take no room in the archive
        yield Member(target, info.size, file.tell(), lambda info=info: _tar_content(pack, info))  # type: ignore[misc]


def _tar_content(pack: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = pack.extractfile(info)
    assert content is not None, "checked to be a regular file"
    return content


def _target(archive: Path, name: str, pattern: re.Pattern[str]) -> str | None:
    """Path below the home folder of a needed member, None for others.

    Raises:
        ValueError: the name leads out of the folder, needed or not: no publisher's archive has such a one.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise ValueError(_refusal(archive, name, "leads out of the folder"))
    if "__MACOSX" in path.parts or path.name.startswith("."):
        return None
    match = pattern.fullmatch(path.as_posix())
    return match[1] if match else None


def _refusal(archive: Path, name: str, why: str) -> str:
    return f"archive {archive} is refused: its member {name!r} {why}; take the publisher's own archive"

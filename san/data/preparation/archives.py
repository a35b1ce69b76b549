"""Unpacks the needed part of a zip or tar file: resumable, each file whole or absent, nothing outside the folder."""

from __future__ import annotations

import errno
import gzip
import logging
import lzma
import os
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
from typing import IO, Any

from tqdm import tqdm

from san.data.preparation.files import (
    check_disk_space,
    readable_bytes,
    remove_partial_files,
    write_atomically,
    write_bytes,
)
from san.errors import excerpt, one_line

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
_MAX_HEADERS = 1 << 16
"""Bytes of a tar member's further headers; paths and attributes take 10,000 at most."""
_MAX_MEMBERS = 1_500_000
"""Members of an archive; ADE20K's full set has the most, one for every object."""
_ENDS = ("EOFHeaderError", "EmptyHeaderError")
"""What tarfile calls a block of zeros, and the end of the file, where a header could be."""
_HEADERS = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True)
class Member:
    """One regular file of an archive that is needed.

    Attributes:
        name: in the archive.
        target: where it goes below the home folder.
        size: bytes when unpacked.
        position: bytes of the archive up to its end, for the progress bar.
        open: gives its content.
    """

    name: str
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
        ValueError: the archive is damaged, or has more headers or members than any data set; a member's name is
            absolute, leads out with `..` or can be no path, or a needed member is a link, a device, or a file where
            another needs a folder; nothing matches; or the disk is too small. The archive is named, and the member.
    """
    remove_partial_files([home])
    num_bytes, member = archive.stat().st_size, None
    logger.info("unpacking what is needed of %s (%s) to %s", archive, readable_bytes(num_bytes), home)
    try:
        with (
            tqdm(total=num_bytes, unit="B", unit_scale=True, desc=archive.name, disable=_bar(progress)) as bar,
            _open(archive, home, re.compile(pattern)) as members,
        ):
            for member in members:
                _place(archive, member, home / member.target, note)
                bar.update(member.position - bar.n)
    except _DAMAGED as error:
        where = f" near its member {excerpt(member.name)}" if member else ""
        reason = one_line(error, limit=300)
        raise ValueError(f"archive {archive} is damaged or incomplete{where} ({reason}); download it again") from error
    if member is None:
        raise ValueError(f"archive {archive} holds none of the files wanted ({pattern}); it is not the one named so")
    note.unlink(missing_ok=True)


def _bar(progress: bool) -> bool | None:
    return None if progress else True  # None: shown on a terminal only


def _place(archive: Path, member: Member, target: Path, note: Path) -> None:
    """Writes a member unless it is there already.

    Raises:
        ValueError: a folder is where the file should be, or a file where its folder should be; or the name is too long.
    """
    try:
        if target.is_file() and target.stat().st_size == member.size:
            return
        if not note.is_file():
            write_bytes(note, archive.name.encode())
        write_atomically(target, lambda partial: _copy(member, partial))
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise  # of the disk
        reason = f"cannot be written to {excerpt(str(target))} ({error.strerror})"
        raise ValueError(_refusal(archive, member.name, reason)) from error


def _copy(member: Member, partial: Path) -> None:
    with member.open() as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK)
    if partial.stat().st_size != member.size:
        raise EOFError(f"{member.target} ends early")


class _TarInfo(tarfile.TarInfo):
    """A member whose headers are of a sane size; tarfile would read any into memory, and keep those of a row."""

    def _proc_member(self, pack: _TarFile) -> _TarInfo:
        pack.count_header(self)
        member: _TarInfo = super()._proc_member(pack)  # type: ignore[misc]
        return member

    def _block(self, count: int) -> int:
        """Bytes that a content takes; with a negative one, tarfile would read all of the file, or one member for ever.

        Later releases take it for the archive's end.
        """
        if count < 0:
            raise tarfile.TarError("a negative size")
        size: int = super()._block(count)  # type: ignore[misc]
        return size

    @classmethod
    def fromtarfile(cls, pack: tarfile.TarFile) -> _TarInfo:
        """The next member; a damaged header is an error, where tarfile would take it for the archive's end."""
        try:
            member: _TarInfo = super().fromtarfile(pack)
        except tarfile.HeaderError as error:
            if type(error).__name__ not in _ENDS:
                raise tarfile.TarError(f"a header is damaged: {error}") from error
            raise
        return member

    def _no_sparse_file(self, *_: object) -> tarfile.TarInfo:
        """The list of its pieces could be of any length."""
        raise tarfile.TarError("a sparse file, which no data set has")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse_file


class _TarFile(tarfile.TarFile):
    """An archive that is read as a stream: it remembers no members, and few bytes of headers."""

    tarinfo = _TarInfo
    _headers = 0  # bytes before the next member
    _shared = 0  # bytes of headers that are for all further members

    def count_header(self, header: tarfile.TarInfo) -> None:
        """Called before a header's content is read.

        Raises:
            tarfile.TarError: it would be too much.
        """
        self._headers = self._headers + header.size if header.type in _HEADERS else 0
        self._shared += header.size if header.type == tarfile.XGLTYPE else 0
        if max(self._headers, self._shared) > _MAX_HEADERS:
            raise tarfile.TarError(f"headers of over {readable_bytes(_MAX_HEADERS)}")

    def each_member(self) -> Iterator[tarfile.TarInfo]:
        """The members in their order.

        Raises:
            tarfile.TarError: there are too many.
        """
        number = 0
        while (info := self.next()) is not None:
            self.members: list[tarfile.TarInfo] = []  # it would keep them all
            number += 1
            if number > _MAX_MEMBERS:
                raise tarfile.TarError(f"over {_MAX_MEMBERS:,} members")
            yield info


class _ZipMembers(list[zipfile.ZipInfo]):
    """The members of a zip archive, few enough for the memory."""

    def append(self, member: zipfile.ZipInfo) -> None:
        """Called for each while the archive is opened."""
        if len(self) >= _MAX_MEMBERS:
            raise zipfile.BadZipFile(f"over {_MAX_MEMBERS:,} members")
        super().append(member)


class _ZipFile(zipfile.ZipFile):
    """An archive whose list of members is limited while it is read."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _ZipMembers(value) if name == "filelist" else value)


@contextmanager
def _open(archive: Path, home: Path, pattern: re.Pattern[str]) -> Iterator[Iterator[Member]]:
    """The needed members of either kind of archive."""
    if archive.name.endswith(".zip"):
        with _ZipFile(archive) as pack:
            yield _zip_members(archive, pack, home, pattern)
    else:
        with archive.open("rb") as file, _TarFile.open(fileobj=file) as pack:
            there = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
            check_disk_space(home, max(0, archive.stat().st_size - there))
            yield _tar_members(archive, pack, file, home, pattern)


def _zip_members(archive: Path, pack: zipfile.ZipFile, home: Path, pattern: re.Pattern[str]) -> Iterator[Member]:
    chosen = []
    for info in pack.infolist():
        target = _target(archive, info.orig_filename, pattern)
        if target is None or info.is_dir():
            continue
        kind = info.external_attr >> 28  # file type bits of the Unix mode, where the packer stored one
        if kind not in (0, 0o10):
            raise ValueError(_refusal(archive, info.filename, "is a link or a device"))
        chosen.append((info, target))
    missing = (info.file_size for info, target in chosen if not os.path.isfile(home / target))
    check_disk_space(home, sum(missing))
    position = 0
    for info, target in chosen:
        position += info.compress_size
        yield Member(info.filename, target, info.file_size, position, lambda info=info: _zip_content(pack, info))  # type: ignore[misc]


def _zip_content(pack: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return pack.open(info)
    except (OSError, ValueError) as error:  # it is said to lie before the file's beginning
        raise zipfile.BadZipFile(str(error)) from error


def _tar_members(
    archive: Path, pack: _TarFile, file: IO[bytes], home: Path, pattern: re.Pattern[str]
) -> Iterator[Member]:
    for info in pack.each_member():
        target = _target(archive, info.name, pattern)
        if target is None or info.isdir():
            continue
        if not info.isfile():
            raise ValueError(_refusal(archive, info.name, "is a link or a device"))
        if not os.path.isfile(home / target):
            check_disk_space(home, info.size)  # compressed zeros take no room in the archive
        yield Member(info.name, target, info.size, file.tell(), lambda info=info: _tar_content(pack, info))  # type: ignore[misc]


def _tar_content(pack: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = pack.extractfile(info)
    assert content is not None, "checked to be a regular file"
    return content


def _target(archive: Path, name: str, pattern: re.Pattern[str]) -> str | None:
    """Path below the home folder of a needed member, None for others.

    Raises:
        ValueError: the name leads out of the folder, needed or not: no publisher's archive has such a one.
    """
    if "\0" in name:
        raise ValueError(_refusal(archive, name, "has a zero byte in its name"))
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise ValueError(_refusal(archive, name, "leads out of the folder"))
    if "__MACOSX" in path.parts or path.name.startswith("."):
        return None
    match = pattern.fullmatch(path.as_posix())
    return match[1] if match else None


def _refusal(archive: Path, name: str, why: str) -> str:
    return f"archive {archive} is refused: its member {excerpt(name)} {why}; take the publisher's own archive"

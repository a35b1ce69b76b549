"""Unpacks the needed members of a zip or tar file: resumable, atomic per file, never outside the target folder."""

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

from san.io.errors import excerpt, one_line
from san.preparation.files import (
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
_MAX_HEADERS = 1 << 16
"""Bytes of a tar member's extended headers; paths and attributes need at most 10,000."""
_MAX_MEMBERS = 1_500_000
"""Members of an archive; ADE20K's full set has the most, one per object."""
_END_ERRORS = ("EOFHeaderError", "EmptyHeaderError")
"""Errors of tarfile for a block of zeros and for the end of the file, which both end an archive."""
_EXTENDED_HEADERS = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True)
class Member:
    """One regular file to unpack from an archive.

    Attributes:
        name: name in the archive.
        target: path below the home folder.
        size: unpacked size in bytes.
        position: offset of the member's end in the archive, in bytes, for the progress bar.
        open: opens its content.
    """

    name: str
    target: str
    size: int
    position: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, home: Path, pattern: str, *, note: Path, progress: bool = False) -> None:
    """Unpack the members that match a pattern. Files that exist with the right size are kept.

    Args:
        archive: a .zip, .tar, .tar.gz or .tgz file.
        home: folder to unpack to.
        pattern: regular expression for the whole member name; its first group is the path below `home`.
        note: file that exists while the archive is being unpacked, so that an interrupted run is detected.
        progress: show a progress bar.

    Raises:
        ValueError: the archive is damaged or too large in headers or members; a member's name is absolute, contains
            `..` or is not a valid path; a needed member is a link, a device, or a file where another member needs a
            folder; no member matches; or the disk is too small. The message names the archive and the member.
    """
    remove_partial_files([home])
    num_bytes, member = archive.stat().st_size, None
    logger.info("unpacking the needed files of %s (%s) to %s", archive, readable_bytes(num_bytes), home)
    try:
        with (
            tqdm(total=num_bytes, unit="B", unit_scale=True, desc=archive.name, disable=_disable_bar(progress)) as bar,
            _open(archive, home, re.compile(pattern)) as members,
        ):
            for member in members:
                _write_member(archive, member, home / member.target, note)
                bar.update(member.position - bar.n)
    except _DAMAGED as error:
        where = f" near its member {excerpt(member.name)}" if member else ""
        reason = one_line(error, limit=300)
        raise ValueError(f"archive {archive} is damaged or incomplete{where} ({reason}); download it again") from error
    if member is None:
        raise ValueError(f"archive {archive} contains no file that matches {pattern}; download the published archive")
    note.unlink(missing_ok=True)


def _disable_bar(progress: bool) -> bool | None:
    return None if progress else True  # None: tqdm shows the bar only on a terminal


def _write_member(archive: Path, member: Member, target: Path, note: Path) -> None:
    """Write a member unless it exists.

    Raises:
        ValueError: the target is a folder, a parent of the target is a file, or the name is too long.
    """
    try:
        if target.is_file() and target.stat().st_size == member.size:
            return
        if not note.is_file():
            write_bytes(note, archive.name.encode())
        write_atomically(target, lambda partial: _copy(member, partial))
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise  # an error of the disk
        reason = f"cannot be written to {excerpt(str(target))} ({error.strerror})"
        raise ValueError(_refusal(archive, member.name, reason)) from error


def _copy(member: Member, partial: Path) -> None:
    with member.open() as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK)
    if partial.stat().st_size != member.size:
        raise EOFError(f"{member.target} is truncated")


class _TarInfo(tarfile.TarInfo):
    """A member with limited headers; tarfile would read headers of any size into memory."""

    def _proc_member(self, pack: _TarFile) -> _TarInfo:
        pack.count_header(self)
        member: _TarInfo = super()._proc_member(pack)  # type: ignore[misc]
        return member

    def _block(self, count: int) -> int:
        """Return the bytes that a content occupies.

        A negative count makes tarfile read the whole file, loop forever, or (later releases) end the archive.
        """
        if count < 0:
            raise tarfile.TarError("a header has a negative size")
        size: int = super()._block(count)  # type: ignore[misc]
        return size

    @classmethod
    def fromtarfile(cls, pack: tarfile.TarFile) -> _TarInfo:
        """Return the next member. A damaged header raises; tarfile would treat it as the end of the archive."""
        try:
            member: _TarInfo = super().fromtarfile(pack)
        except tarfile.HeaderError as error:
            if type(error).__name__ not in _END_ERRORS:
                raise tarfile.TarError(f"a header is damaged: {error}") from error
            raise
        return member

    def _refuse_sparse_file(self, *_: object) -> tarfile.TarInfo:
        """The list of a sparse file's pieces has no limit."""
        raise tarfile.TarError("it has a sparse file, which no data set contains")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse_file


class _TarFile(tarfile.TarFile):
    """An archive that is read as a stream: it keeps no list of members and limits the headers."""

    tarinfo = _TarInfo
    _headers = 0  # header bytes before the next member
    _global_headers = 0  # bytes of global headers, which apply to all further members

    def count_header(self, header: tarfile.TarInfo) -> None:
        """Count a header before its content is read.

        Raises:
            tarfile.TarError: the headers exceed the limit.
        """
        self._headers = self._headers + header.size if header.type in _EXTENDED_HEADERS else 0
        self._global_headers += header.size if header.type == tarfile.XGLTYPE else 0
        if max(self._headers, self._global_headers) > _MAX_HEADERS:
            raise tarfile.TarError(f"its headers exceed {readable_bytes(_MAX_HEADERS)}")

    def each_member(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members in order.

        Raises:
            tarfile.TarError: the archive has too many members.
        """
        number = 0
        while (info := self.next()) is not None:
            self.members: list[tarfile.TarInfo] = []  # tarfile would keep them all
            number += 1
            if number > _MAX_MEMBERS:
                raise tarfile.TarError(f"it has more than {_MAX_MEMBERS:,} members")
            yield info


class _ZipMembers(list[zipfile.ZipInfo]):
    """A list of zip members with a limited length."""

    def append(self, member: zipfile.ZipInfo) -> None:
        """Add a member; zipfile calls this while it opens the archive."""
        if len(self) >= _MAX_MEMBERS:
            raise zipfile.BadZipFile(f"it has more than {_MAX_MEMBERS:,} members")
        super().append(member)


class _ZipFile(zipfile.ZipFile):
    """A zip archive with a limited number of members."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _ZipMembers(value) if name == "filelist" else value)


@contextmanager
def _open(archive: Path, home: Path, pattern: re.Pattern[str]) -> Iterator[Iterator[Member]]:
    """Open a zip or tar archive and yield an iterator over its needed members."""
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
        kind = info.external_attr >> 28  # file type bits of the Unix mode, 0 if not stored
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
    except (OSError, ValueError) as error:  # its offset is negative
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
            check_disk_space(home, info.size)  # the compressed size is not an estimate: zeros compress to nothing
        yield Member(info.name, target, info.size, file.tell(), lambda info=info: _tar_content(pack, info))  # type: ignore[misc]


def _tar_content(pack: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = pack.extractfile(info)
    assert content is not None, "checked to be a regular file"
    return content


def _target(archive: Path, name: str, pattern: re.Pattern[str]) -> str | None:
    """Return the path of a needed member below the home folder, None for other members.

    Raises:
        ValueError: the name, needed or not, leads out of the folder; published archives have no such member.
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
    return f"archive {archive} is refused: its member {excerpt(name)} {why}; use the published archive"

"""The reader of weights files: it checks the size first, maps the tensors into memory, and never runs code.

Two formats: safetensors, by the file's ending, and that of `torch.save`, which is a zip archive, or before torch 1.6 a
sequence of pickles. The size of the file bounds what is loaded: nothing is compressed, and no tensor has more values
than the file.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from san.clip.pickle_check import MAX_BYTES, check_pickle
from san.io.errors import excerpt, one_line
from san.torch_defaults import torch_defaults

DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)
"""Errors of the readers for a file that is cut, of another kind, or contains more than tensors."""

MAX_HEADER = 4 << 20
"""Bytes of a safetensors file's header; that of 8000 tensors has 1 MB."""

_MAX_DIRECTORY = 4 << 20  # bytes of a zip archive's list of members; that of 8000 tensors has 1 MB
_END, _LOCATOR, _END64 = 22, 20, 56  # bytes of the records at the end of a zip archive


@contextlib.contextmanager
def writing_safetensors() -> Iterator[None]:
    """Raise what safetensors raises, such as for a full disk, as an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"the weights cannot be written: {one_line(error)}") from error


@torch_defaults()
def read_tensors(path: Path) -> Any:
    """Read a weights file without running code from it.

    Tensors are mapped from the file if its format allows: they are read when they are used, and until then the file
    must not be overwritten in place.

    Returns:
        Dictionaries, lists, tuples, sets, numbers and texts, and dense tensors on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, contains more than dense tensors and plain data, or describes more than its
            size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {str(path)!r}; check the path")
    try:
        if path.suffix == ".safetensors":
            _check_header(path)
            return load_file(path)
        mapped = _check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return _Plain(path.stat().st_size).copy(content)
    except DAMAGED as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a weights file ({one_line(error, limit=200)}); download or write it again"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty if it has none or is another kind of file."""
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, ValueError, SafetensorError):
        return {}


def open_archive(path: Path) -> zipfile.ZipFile | None:
    """Open a file of `torch.save` as a zip archive; None if it is not one.

    Raises:
        ValueError: its list of members is too long, or two readers could see different ones.
        zipfile.BadZipFile: it is damaged.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # torch decides by this
            return None
        file.seek(max(0, size - _END - _LOCATOR - _END64))
        start = _directory_start(file.read(), size)
    if size - start > _MAX_DIRECTORY:
        raise ValueError("its list of members is longer than weights need")
    archive = zipfile.ZipFile(path)
    members = archive.infolist()
    names = {info.filename.lower() for info in members if info.filename == info.orig_filename}
    if archive.start_dir != start or len(names) != len(members):
        archive.close()
        raise ValueError("its list of members can be read in two ways")
    return archive


def _directory_start(tail: bytes, size: int) -> int:
    """Return the start of the list of members, from the same records at the end of the file as torch's reader."""
    end = tail[-_END:]
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise ValueError("it is cut short, or something follows its end")
    locator = tail[-_END - _LOCATOR : -_END]
    if locator[:4] != b"PK\6\7":
        return int.from_bytes(end[16:20], "little")
    if int.from_bytes(locator[8:16], "little") != size - _END - _LOCATOR - _END64:
        raise ValueError("its list of members can be read in two ways")
    return int.from_bytes(tail[48:56], "little")


def _check_pickles(path: Path) -> bool:
    """Measure what a file of `torch.save` would create; return whether it is an archive, which can be mapped.

    Raises:
        ValueError: it would make more than it holds, or more than tensors and plain data.
    """
    archive = open_archive(path)
    if archive is None:
        with open(path, "rb") as file:
            head = file.read(MAX_BYTES)
        if _is_tar(head):
            raise ValueError("it is a tar archive, as torch wrote before version 0.1.10")
        stream = io.BytesIO(head)
        for _ in range(5):  # magic number, version, machine, content, keys of the storages
            check_pickle(stream)
        return False
    with archive, open(path, "rb") as file:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("its members are compressed, which torch.save does not do")
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members are said to be larger than the file")
        info = archive.getinfo(archive.namelist()[0].split("/")[0] + "/data.pkl")
        if info.file_size > MAX_BYTES:
            raise ValueError(f"its pickle has {info.file_size:,} bytes, far more than weights take")
        file.seek(info.header_offset)
        lengths = struct.unpack("<26xHH", file.read(30))  # of the member's name and of its extra field
        file.seek(sum(lengths), io.SEEK_CUR)
        check_pickle(io.BytesIO(file.read(info.file_size)))  # zipfile would check a sum that torch may have left out
    return True


def _is_tar(head: bytes) -> bool:
    """Whether torch would take this for a tar archive, and unpack it onto the disk."""
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True


def _check_header(path: Path) -> None:
    """Refuse a safetensors file whose header is longer than weights need."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length:,} bytes, far more than weights take")


class _Plain:
    """Copies the containers of a file's content as plain ones, and checks every tensor.

    Shared objects stay shared, so that a state that is saved again has the same bytes.

    Args:
        size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._room = 2 * size  # a tensor may have two names
        self._copies: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        """Return a copy of a value; tensors are not copied."""
        if not isinstance(value, (Tensor, dict, list, tuple)):
            return value
        if id(value) not in self._copies:
            self._copies[id(value)] = self._checked(value) if isinstance(value, Tensor) else self._copy(value)
        return self._copies[id(value)]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, dict):  # by dict's own method: an OrderedDict of a file may have attributes of any name
            return {key: self.copy(each) for key, each in dict.items(value)}
        copied = [self.copy(each) for each in value]
        return copied if isinstance(value, list) else tuple(copied)

    def _checked(self, tensor: Tensor) -> Tensor:
        flaw = kind_of_flaw(tensor)
        if flaw:
            raise ValueError(f"it holds a {flaw} tensor; only dense ones are read")
        self._room -= tensor.numel() * tensor.element_size()
        if self._room < 0:
            raise ValueError("its tensors describe more values than the file contains")
        return tensor.detach()


def kind_of_flaw(tensor: Tensor) -> str:
    """Return why a tensor is not a plain array in memory ("sparse", "quantised", ...); "" if it is one."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return excerpt(type(tensor).__name__)
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    return "meta" if tensor.is_meta else ""

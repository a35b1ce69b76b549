"""Reads pickled lists, dicts, numbers, strings and NumPy arrays, and nothing that could run code.

NumPy's own functions are not handed to the pickle either: fed with made-up states, `numpy.dtype` and `numpy.ndarray`
take numbers of the file for addresses in memory. Stand-ins of ours check what they are given first.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_CODE = re.compile(r"[|<>=]?([biufc]\d{1,2}|[SU]\d{1,6}|O8?|\?)")
"""Types of numbers, truth values, texts of fixed length and objects; none with fields, dates or raw bytes."""


class UnsafePickleError(ValueError):
    """A pickle asks for something beyond plain data."""


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 stores bytes; other codecs, which may unpack bombs, are refused."""
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"it decodes text as {encoding!r}")
    return text.encode("latin-1")


class _DType:
    """Stands in for `numpy.dtype`: a plain type and its byte order."""

    def __init__(self, code: str, *flags: bool) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise UnsafePickleError(f"it describes an array of type {str(code)[:40]!r}")
        self.dtype = np.dtype(code)
        if not self.dtype.itemsize:
            raise UnsafePickleError("it describes an array of values without any bytes")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Version, byte order, then what only types with parts, fields or metadata have."""
        order, parts = state[1], state[2:5]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts) or len(state) not in (8, 9):
            raise UnsafePickleError("it describes an array of a type with parts")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array that takes no state but one that fits; `load_plain_pickle` gives arrays of NumPy's own class."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        version, shape, kind, fortran, content = state
        if version != 1 or not isinstance(kind, _DType):
            raise UnsafePickleError("it describes an array in another way than NumPy does")
        size = _size(shape)
        wanted, given = size if kind.dtype.hasobject else size * kind.dtype.itemsize, len(content)
        if wanted != given or isinstance(content, list) != kind.dtype.hasobject:
            raise ValueError(f"an array of shape {shape} has {given} values or bytes, not {wanted}")
        super().__setstate__((version, shape, kind.dtype, bool(fortran), content))  # type: ignore[arg-type]


def _size(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise UnsafePickleError(f"it describes an array of shape {str(shape)[:40]}")
    return math.prod(shape)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """NumPy pickles an array as an empty one, which is given its state afterwards."""
    return np.empty(0).view(_Array)


def _scalar(kind: _DType, content: Any) -> Any:
    if kind.dtype.hasobject:
        raise UnsafePickleError("it holds an object as a NumPy number")
    return np.frombuffer(content, kind.dtype, count=1)[0]


def _from_buffer(content: Any, kind: _DType, shape: Any, order: str) -> Any:
    if kind.dtype.hasobject:
        raise UnsafePickleError("it takes bytes for objects")
    _size(shape)
    return np.frombuffer(content, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ArithmeticError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    MemoryError,
    RecursionError,
    struct.error,
)

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "the class of an array, which is only named",
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): dict,
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in {"set": set, "frozenset": frozenset, "list": list, "dict": dict, "tuple": tuple}.items()
    },
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Function:
    """A function without attributes: a pickle may set those of what it names."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"it sets {name!r} of a function")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            named = _ALLOWED[module, name]
            return named if isinstance(named, (type, str)) else _Function(named)
        except KeyError:
            raise UnsafePickleError(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("it refers to objects outside the file")


def load_plain_pickle(path: Path) -> Any:
    """The content of a pickle that holds only plain data.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or asks for any class or function beyond NumPy arrays and plain containers.
            Nothing of it has been run then.
    """
    if not path.is_file():
        raise FileNotFoundError(f"pickle {path} does not exist; unpack the download again")
    try:
        content = path.read_bytes()
        _check_memory(content)
        return _as_numpy(_PlainUnpickler(io.BytesIO(content), encoding="latin1").load())
    except UnsafePickleError as error:
        raise ValueError(
            f"{path} is refused: {error}, but only NumPy arrays and plain lists, dicts, strings and numbers are read; "
            "take the file from the publisher's own archive"
        ) from error
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"pickle {path} cannot be read ({reason}); unpack the download again") from error


def _check_memory(content: bytes) -> None:
    """Refuses a pickle that numbers what it remembers with gaps, for which the reader would make room, gigabytes even.

    A piece that is said to be longer than the file is an error of `pickletools`.
    """
    remembered = -1
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            number = int(argument or 0)
            if number > remembered + 1:
                raise UnsafePickleError(f"it numbers a value {number:,} where {remembered + 1:,} would be the next")
            remembered = max(remembered, number)
        elif opcode.name == "MEMOIZE":
            remembered += 1


def _as_numpy(content: Any) -> Any:
    """Arrays at the top, or in the dictionary there, as NumPy's own class; those further in stay of ours."""
    if isinstance(content, dict):
        return {key: _as_numpy(value) if isinstance(value, np.ndarray) else value for key, value in content.items()}
    return content.view(np.ndarray) if isinstance(content, _Array) else content

"""Reads pickled lists, dicts, numbers, strings and NumPy arrays, without running any code of the pickle.

NumPy's own classes are not exposed to the pickle: given a forged state, `numpy.dtype` and `numpy.ndarray` use numbers
of the file as memory addresses. The replacements in this module validate the state first.
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

_TYPE_CODE = re.compile(r"[|<>=]?([biufc]\d{1,2}|[SU]\d{1,6}|O8?|\?)")
"""Accepted types: numbers, booleans, strings of fixed length and objects; no fields, dates or raw bytes."""


class UnsafePickleError(ValueError):
    """A pickle that contains more than plain data."""


def _latin1(text: str, encoding: str) -> bytes:
    """Decode bytes as protocol 2 stores them. Other codecs are refused: some decompress without a limit."""
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"it decodes text as {encoding!r}")
    return text.encode("latin-1")


class _DType:
    """Replacement for `numpy.dtype`: a plain type and its byte order."""

    def __init__(self, code: str, *flags: bool) -> None:
        if not isinstance(code, str) or not _TYPE_CODE.fullmatch(code):
            raise UnsafePickleError(f"it contains an array of type {str(code)[:40]!r}")
        self.dtype = np.dtype(code)
        if not self.dtype.itemsize:
            raise UnsafePickleError("it contains an array with an item size of 0")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Set the byte order; the other entries belong to types with fields or metadata, which are refused."""
        order, fields = state[1], state[2:5]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in fields) or len(state) not in (8, 9):
            raise UnsafePickleError("it contains an array whose type has fields")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array that validates its pickled state; `load_plain_pickle` converts it to NumPy's own class."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        version, shape, kind, fortran, content = state
        if version != 1 or not isinstance(kind, _DType):
            raise UnsafePickleError("it contains an array in a format that NumPy does not write")
        size = _size(shape)
        wanted, given = size if kind.dtype.hasobject else size * kind.dtype.itemsize, len(content)
        if wanted != given or isinstance(content, list) != kind.dtype.hasobject:
            raise ValueError(f"an array of shape {shape} has {given} values or bytes, not {wanted}")
        super().__setstate__((version, shape, kind.dtype, bool(fortran), content))  # type: ignore[arg-type]


def _size(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise UnsafePickleError(f"it contains an array of shape {str(shape)[:40]}")
    return math.prod(shape)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """Return an empty array; the pickle sets its state afterwards."""
    return np.empty(0).view(_Array)


def _scalar(kind: _DType, content: Any) -> Any:
    if kind.dtype.hasobject:
        raise UnsafePickleError("it contains a Python object as a NumPy scalar")
    return np.frombuffer(content, kind.dtype, count=1)[0]


def _from_buffer(content: Any, kind: _DType, shape: Any, order: str) -> Any:
    if kind.dtype.hasobject:
        raise UnsafePickleError("it contains an array of Python objects made from bytes")
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
    ("numpy", "ndarray"): "the class of an array, which is named but never called",
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
    """A function with read-only attributes, because a pickle may set attributes of the objects it names."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"it sets the attribute {name!r} of a function")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            named = _ALLOWED[module, name]
            return named if isinstance(named, (type, str)) else _Function(named)
        except KeyError:
            raise UnsafePickleError(f"it refers to {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("it refers to objects outside the file")


def load_plain_pickle(path: Path) -> Any:
    """Load a pickle that contains only plain data.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or refers to a class or function other than NumPy arrays and plain containers.
            It is raised before any of them is called.
    """
    if not path.is_file():
        raise FileNotFoundError(f"pickle {path} does not exist; unpack the download again")
    try:
        content = path.read_bytes()
        _check_memory(content)
        return _as_numpy(_PlainUnpickler(io.BytesIO(content), encoding="latin1").load())
    except UnsafePickleError as error:
        raise ValueError(
            f"{path} is refused: {error}, but only NumPy arrays, lists, dicts, strings and numbers are accepted; "
            "use the file of the published archive"
        ) from error
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"pickle {path} cannot be read ({reason}); unpack the download again") from error


def _check_memory(content: bytes) -> None:
    """Refuse a pickle with gaps in its memo indices, for which the unpickler would allocate memory.

    `pickletools` raises for an item that is longer than the file.
    """
    last_index = -1
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            number = int(argument or 0)
            if number > last_index + 1:
                raise UnsafePickleError(f"it uses memo index {number:,} where {last_index + 1:,} is next")
            last_index = max(last_index, number)
        elif opcode.name == "MEMOIZE":
            last_index += 1


def _as_numpy(content: Any) -> Any:
    """Convert a top-level array, or the arrays of a top-level dict, to NumPy's own class."""
    if isinstance(content, dict):
        return {key: _as_numpy(value) if isinstance(value, np.ndarray) else value for key, value in content.items()}
    return content.view(np.ndarray) if isinstance(content, _Array) else content

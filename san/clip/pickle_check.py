"""Measures what a pickle of weights would create, before it is loaded.

`torch.load(weights_only=True)` runs no code of a file, but creates every value that the file describes. A few bytes can
describe gigabytes, with values nested in each other many times, or with constructors that take a size.
"""

from __future__ import annotations

import pickletools
import re
from typing import IO, Any

MAX_BYTES = 8 << 20
"""Bytes of a pickle, without the numbers of its tensors. A pickle of 8000 tensors has 0.8 MB."""

MAX_STEPS = 500_000
"""Instructions of a pickle; 8000 tensors take 270,000."""

MAX_VALUES = 4_000_000
"""Values of all parts of a pickle, each counted wherever it is contained; 8000 tensors have 1.4 million."""

_CALLED = re.compile(
    r"collections (OrderedDict|Counter)|(builtins|__builtin__) (set|complex)|torch (Size|device)"
    r"|torch\._utils _rebuild_(parameter|tensor(_v2|_v3)?)"
)
"""What may be called: constructors of plain data and dense tensors, which create no more than their arguments."""

_NAMED = re.compile(r"torch ([a-z]\w*|\w+Storage)|torch\.storage UntypedStorage")
"""What may be referenced but not called: number types and storages."""

_VALUES = (
    "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
)  # fmt: skip
_TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1, "REDUCE": 2, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
"""How many values an instruction takes from the stack; those of `_MARKED` take all down to the mark."""

_MARKED = ("TUPLE", "APPENDS", "SETITEMS")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
"""They add what they take to the value below it; the others create a new value."""

_CHARACTERS = 16  # of a text that count as one value


class _Part:
    """A value in the pickle.

    Attributes:
        size: number of values in it.
        kind: the name of a global, or "made by" and that name; else "".
        shared: fetched from the memo, so that several values may hold it.
    """

    __slots__ = ("kind", "shared", "size")

    def __init__(self, size: int, kind: str = "") -> None:
        self.size, self.kind, self.shared = size, kind, False


def check_pickle(stream: IO[bytes]) -> None:
    """Refuse a pickle with anything but dense tensors and plain data, or with more of them than weights need.

    Args:
        stream: positioned at the pickle's first byte; afterwards after its last.

    Raises:
        ValueError: names what is refused; a damaged pickle may also raise LookupError.
    """
    stack: list[_Part] = []
    marks: list[int] = []
    memo: dict[int, _Part] = {}
    values = 0
    argument: Any
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            memo[argument].shared = True
            stack.append(memo[argument])
        elif name in _VALUES:
            stack.append(_Part(1 + len(argument) // _CHARACTERS if isinstance(argument, str) else 1))
        elif name == "GLOBAL":
            stack.append(_Part(1, _checked_name(argument)))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TAKEN or name in _MARKED:
            start = marks.pop() if name in _MARKED else len(stack) - _TAKEN[name]
            taken = stack[max(start, 0) :]
            del stack[max(start, 0) :]
            size = sum(part.size for part in taken)
            if name in _FILLS:
                _check_filling(name, stack[-1])
                stack[-1].size += size
            else:
                stack.append(_Part(1 + size, _called(taken[0].kind) if name == "REDUCE" else ""))
            values += 1 + size  # what may be hashed, compared or shown in this step
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"its pickle holds the instruction {name}, which torch.save does not write")
        if steps >= MAX_STEPS or values > MAX_VALUES:
            raise ValueError(
                f"its pickle has over {MAX_STEPS:,} instructions, or describes over {MAX_VALUES:,} values, far more "
                "than weights take"
            )


def _checked_name(name: str) -> str:
    if not _CALLED.fullmatch(name) and not _NAMED.fullmatch(name):
        raise ValueError(f"it contains {name.replace(' ', '.')}, but only dense tensors and plain data are read")
    return name


def _called(name: str) -> str:
    if not _CALLED.fullmatch(name):
        raise ValueError(f"it calls {name.replace(' ', '.') or 'a value'}, which makes no dense tensor or plain data")
    return f"made by {name}"


def _check_filling(instruction: str, target: _Part) -> None:
    """Refuse changes of values that others have counted already, and attributes of anything but an OrderedDict."""
    if target.shared or (instruction == "BUILD" and target.kind != "made by collections OrderedDict"):
        raise ValueError("it changes a value in a way that torch.save does not write")

"""Dataclasses from plain data, as a file's JSON has it, strictly: and the ranges of their numbers."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from san.errors import excerpt

Record = TypeVar("Record")


def parse_json(text: str) -> Any:
    """Plain data from JSON; ValueError where it is none, however deep its lists lie in each other."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists and objects lie in each other too deep") from None


def read_record(kind: type[Record], content: Any, where: str = "") -> Record:
    """A dataclass from plain data, strictly.

    A field with a default may be missing, as in files from before there was such a field; but not if it stands in the
    class's FIRST_FIELDS, the names of those that every file has had: their defaults may be wrong for the file.

    Args:
        kind: a dataclass of numbers, strings, tuples and dataclasses.
        content: what `dataclasses.asdict` gives, through JSON.
        where: the field's name with a dot, for messages.

    Raises:
        ValueError: a field is unknown, missing or of another type.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where or 'the content'} is {excerpt(content)}; give an object of fields")
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = [each.name for each in fields]
    for name in content:
        if name not in names:
            near = difflib.get_close_matches(name[:100], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise ValueError(f"unknown field {excerpt(where + name)}; {hint}")
    needed = {each.name for each in fields if each.default is each.default_factory is dataclasses.MISSING}
    needed |= set(getattr(kind, "FIRST_FIELDS", "").split())
    missing = [where + name for name in names if name in needed and name not in content]
    if missing:
        raise ValueError(f"missing fields {', '.join(missing)}; write the file again")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read_value(hints[name], content[name], where + name) for name in names if name in content})


def _read_value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return read_record(typing.cast(type, hint), value, f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        fitting = [kind for kind in arguments if (typing.get_origin(kind) is tuple) == isinstance(value, list)]
        return _read_value((fitting or arguments)[0], value, where)
    if origin is tuple and isinstance(value, list):
        repeated = arguments[-1] is Ellipsis
        if repeated or len(value) == len(arguments):
            kinds = [arguments[0]] * len(value) if repeated else arguments
            return tuple(_read_value(kind, each, where) for kind, each in zip(kinds, value, strict=True))
    accepted = (int, float) if hint is float else (hint,)
    if origin is None and type(value) in accepted and (type(value) is not float or math.isfinite(value)):
        return value
    raise ValueError(f"{where} is {excerpt(value)}; give {getattr(hint, '__name__', hint) if origin is None else hint}")


def check_ranges(record: object, what: str, place: str, **ranges: tuple[float, float]) -> None:
    """Refuses numbers that no model has, before memory is taken for them.

    Args:
        record: a dataclass.
        what: what it is of, for messages.
        place: where its fields stand, with a dot at the end; of capitals for a key, and the fields' names then too.
        ranges: by name of a field, the smallest and the largest number that is accepted; a smallest one that is a float
            is itself refused: 0.0 asks for a number above 0.

    Raises:
        ValueError: a number is out of its range, or NaN.
    """
    for name, limits in ranges.items():
        key = place + (name.upper() if place.isupper() else name)
        check_range(getattr(record, name), limits, f"{name} of {what}", key)


def check_range(value: float, limits: tuple[float, float], what: str, key: str) -> None:
    """Refuses one number, see `check_ranges`.

    Args:
        value: the number.
        limits: the smallest and the largest one.
        what: it is, for messages.
        key: where it stands.

    Raises:
        ValueError: it is out of its range, or NaN.
    """
    (least, most), above = limits, isinstance(limits[0], float)
    if not (least < value <= most if above else least <= value <= most):
        accepted = f"above {least:g} and at most {most:g}" if above else f"within {least}..{most}"
        raise ValueError(f"{what} is {excerpt(value)}; set {'it' if what == key else key} {accepted}")

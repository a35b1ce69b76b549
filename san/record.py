"""Dataclasses of options: fields with help text and constraint, and strict reading from plain data.

A field made by `option` has a default, a help text and a constraint; configuration keys, docs/configuration.md and
config.json are generated from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from san.io.errors import excerpt

Record = TypeVar("Record")

AUTO: Any = "auto"
"""Value of a field with ``auto=True``; it is replaced by a value derived from CLIP when a model is built."""


class FieldError(ValueError):
    """An option has a value that cannot be used.

    Args:
        message: message with dotted field names, such as "clip.shallow_depth".
        names: the field names in it, so that `san.d2` can replace each by its configuration key.
    """

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


class FieldFileError(FileNotFoundError):
    """An option names a file that does not exist; see `FieldError`."""

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Legal values of a field, or of each element if it is a tuple.

    Attributes:
        least: smallest number.
        above: number that must be exceeded, instead of `least`.
        most: largest number.
        choices: legal values, instead of a range.
        auto: whether `AUTO` is accepted too.
    """

    least: float | None = None
    above: float | None = None
    most: float = math.inf
    choices: tuple[Any, ...] = ()
    auto: bool = False

    def text(self) -> str:
        """Return the constraint in words; "" if every value is legal."""
        if self.choices:
            words = f"one of {', '.join(str(each) or repr('') for each in self.choices)}"
        elif self.above is not None:
            words = f"above {self.above:g}" + ("" if self.most == math.inf else f" and at most {self.most:g}")
        elif self.least is not None:
            words = f"at least {self.least:,}" if self.most == math.inf else f"within {self.least}..{self.most}"
        else:
            words = ""
        return f"{words}, or auto".removeprefix(", ") if self.auto else words

    def accepts(self, value: Any) -> bool:
        """Whether a value, or each element of a tuple, is legal; NaN is not."""
        if value is None or (self.auto and value == AUTO):
            return True  # the type says whether a field may be None
        if isinstance(value, (tuple, list)):
            return all(self.accepts(each) for each in value)
        if self.choices:
            return value in self.choices
        if self.above is not None:
            return bool(self.above < value <= self.most) and value != math.inf
        return self.least is None or (bool(self.least <= value <= self.most) and value != math.inf)


def field_metadata(
    help: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float = math.inf,
    choices: Sequence[Any] = (),
    auto: bool = False,
    **metadata: Any,
) -> dict[str, Any]:
    """Return the metadata of a dataclass field with its meaning and legal values.

    Args:
        help: meaning and unit, without a full stop.
        least: see `Constraint`, as the next four.
        above: a number.
        most: a number.
        choices: values.
        auto: whether `AUTO` is accepted.
        metadata: further entries.
    """
    return {"help": help, "constraint": Constraint(least, above, most, tuple(choices), auto), **metadata}


def option(default: Any, help: str = "", **constraint: Any) -> Any:
    """Return a dataclass field with a default, its meaning and its legal values.

    Args:
        default: default value; a class is called for a new instance.
        help: meaning and unit, without a full stop.
        constraint: see `field_metadata`.
    """
    metadata = field_metadata(help, **constraint)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of records with fields made by `option`; the constraints are checked when a record is created.

    Raises:
        FieldError: a value violates its field's constraint.
    """

    PLACE: ClassVar[str] = ""
    """Prefix of field names in messages: the record's place in a configuration, with a dot at the end."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            constraint, value = each.metadata.get("constraint"), getattr(self, each.name)
            if constraint is not None and not constraint.accepts(value):
                name, to = self.PLACE + each.name, "to " if constraint.choices else ""
                raise FieldError(f"{name} is {excerpt(value)}; set it {to}{constraint.text()}", name)


def parse_json(text: str) -> Any:
    """Read plain data from JSON.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None


def read_record(kind: type[Record], content: Any, where: str = "") -> Record:
    """Build a dataclass from plain data, strictly.

    A field with a default may be missing, as in files written before the field existed. Fields in the class's
    FIRST_FIELDS, which every version has written, must be present: their defaults may be wrong for the file.

    Args:
        kind: a dataclass of numbers, strings, tuples, mappings of plain data and dataclasses. If it has a class
            attribute SHORT_FIELD, a string is read as a record with only that field.
        content: result of `dataclasses.asdict`, read back from JSON.
        where: name of the field, with a dot, for messages.

    Raises:
        ValueError: a field is unknown, missing or of another type.
    """
    short = getattr(kind, "SHORT_FIELD", "")
    if isinstance(content, str) and short:
        content = {short: content}
    if not isinstance(content, Mapping):
        raise ValueError(f"{where or 'the content'} is {excerpt(content)}; give an object of fields")
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = [each.name for each in fields]
    for name in content:
        if name not in names:
            near = difflib.get_close_matches(name[:100], names, n=1)
            known = f"known are {', '.join(names)}" if names else "there is none"
            hint = f"did you mean {near[0]!r}?" if near else known
            raise FieldError(f"unknown field {excerpt(where + name)}; {hint}", where + name)
    needed = {each.name for each in fields if each.default is each.default_factory is dataclasses.MISSING}
    needed |= set(getattr(kind, "FIRST_FIELDS", "").split())
    missing = [where + name for name in names if name in needed and name not in content]
    if missing:
        raise FieldError(f"missing fields {', '.join(missing)}; write the file again", *missing)
    hints = typing.get_type_hints(kind)
    automatic = {each.name for each in fields if _is_automatic(each)}
    values = {}
    for name in names:
        if name in content:
            is_auto = name in automatic and content[name] == AUTO
            values[name] = AUTO if is_auto else _read_value(hints[name], content[name], where + name)
    try:
        return kind(**values)
    except FieldError as error:
        if getattr(kind, "PLACE", "") or not error.names:
            raise
        raise FieldError(where + str(error), *(where + name for name in error.names)) from None  # options of a part


def _is_automatic(field: dataclasses.Field[Any]) -> bool:
    return "constraint" in field.metadata and field.metadata["constraint"].auto


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
    if origin in (dict, Mapping) and isinstance(value, dict):
        return value
    accepted = (int, float) if hint is float else (hint,)
    if origin is None and type(value) in accepted and (type(value) is not float or math.isfinite(value)):
        return value
    wanted = getattr(hint, "__name__", hint) if origin is None else hint
    raise FieldError(f"{where} is {excerpt(value)}; give {wanted}", where)

"""Converts values of a configuration file or the command line to the type of their key."""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {int: "whole numbers", float: "numbers", str: "names"}


def parse(text: str) -> Any:
    """Parse a command-line value: a Python literal, true or false, else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two from nested brackets
        return text


def coerce(value: Any, raw: Any, hint: Any) -> Any:
    """Convert a value to the type of a hint; tuples are returned as lists.

    Args:
        value: plain data.
        raw: the same value; scalars are the text that the user wrote.
        hint: bool, int, float, str, a tuple of these, a mapping, or a union of such types.

    Raises:
        TypeError: it has another type; the message names the expected one.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _coerce_union(value, raw, arguments)
    if origin is tuple:
        return _coerce_list(value, raw, arguments)
    if hint is str:
        return "" if value is None else as_text(value, raw)
    if hint is float:
        return _as_number(value, float)
    if isinstance(value, Mapping) if hint is dict or origin in (dict, Mapping) else type(value) is hint:
        return value
    raise TypeError(wanted(hint))


def wanted(hint: Any) -> str:
    """Describe a type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(wanted(each) for each in arguments if each is not type(None))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{KINDS.get(arguments[0], 'mappings')}"
    if hint is dict or origin in (dict, Mapping):
        return "a mapping"
    return f"a {getattr(origin or hint, '__name__', hint)}"


def _coerce_union(value: Any, raw: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    lists = [each for each in hints if typing.get_origin(each) is tuple]
    if lists and str in hints:
        return coerce(value, raw, lists[0]) if isinstance(value, (list, tuple)) else as_text(value, raw)
    return coerce(value, raw, next(each for each in hints if each is not type(None)))


def _coerce_list(value: Any, raw: Any, kinds: tuple[Any, ...]) -> list[Any]:
    """Convert a value to a list: text is split at commas, a number becomes one element."""
    kind = kinds[0]
    if kind not in KINDS:
        if not isinstance(value, (list, tuple)):
            raise TypeError(wanted(tuple[kinds]))  # type: ignore[valid-type]
        return list(value)
    if isinstance(value, str) or (kind is str and isinstance(value, (int, float))):
        parts: Sequence[Any] = split(as_text(value, raw))
        texts: Sequence[Any] = parts
    elif isinstance(value, (int, float)):
        parts = texts = [value]
    elif isinstance(value, (list, tuple)):
        parts = value
        texts = split(raw) if isinstance(raw, str) else raw
        if not isinstance(texts, (list, tuple)) or len(texts) != len(parts):
            texts = parts
    else:
        raise TypeError(wanted(tuple[kinds]))  # type: ignore[valid-type]
    try:
        if kinds[-1] is not Ellipsis and len(parts) != len(kinds):
            raise TypeError
        if kind is str:
            return [as_text(part, text) for part, text in zip(parts, texts, strict=True)]
        return [_as_number(parse(part) if isinstance(part, str) else part, kind) for part in parts]
    except TypeError:
        raise TypeError(wanted(tuple[kinds])) from None  # type: ignore[valid-type]


def split(text: str) -> list[str]:
    """Return the elements of a list written as text, such as ``a,b`` or ``[a, b]``."""
    parts = (part.strip().strip("'\"") for part in text.strip().strip("()[]").split(","))
    return [part for part in parts if part]


def as_text(value: Any, raw: Any) -> str:
    """Return a value as text; if YAML read it as another type, the text that the user wrote."""
    if isinstance(value, str):
        return value
    if isinstance(raw, str):
        return raw
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise TypeError(wanted(str))


def _as_number(value: Any, kind: type) -> Any:
    """Return an int unchanged, or convert an int or text to a float; YAML reads 1e-4 as text."""
    if type(value) is kind:
        return value
    if kind is float and type(value) in (int, str):
        try:
            return float(value)
        except ValueError:
            raise TypeError(wanted(kind)) from None
    raise TypeError(wanted(kind))

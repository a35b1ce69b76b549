"""Errors of users, and formatting of errors and objects: one line, limited length, no control characters."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from san.io.redaction import redact


class MissingExtraError(ImportError):
    """A package of an optional extra cannot be imported; the message says how to install it."""


USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError, MissingExtraError)
"""Exceptions of wrong input, shown in one line. Any other exception is a bug and is shown with its stack trace."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""

MAX_LINE = 2000
"""Maximum number of characters of a message."""


def one_line(error: BaseException | str, *, limit: int = MAX_LINE) -> str:
    """Format an error's message for a terminal or a log.

    Messages contain file names, keys and values of untrusted files. Therefore control characters and characters that
    change the text direction are escaped, and a long text is cut in the middle. Credentials are masked before the cut
    (see `san.io.redaction`), because a part of one is not recognized.

    Args:
        error: the error (its type is shown if it has no message), or a text.
        limit: maximum number of characters to keep.
    """
    text = str(error)
    if len(text) > 4 * limit:  # most of it is dropped anyway
        text = f"{text[: 2 * limit]} {text[-2 * limit :]}"
    text = printable(" ".join(redact(text).split()))
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} [...] {text[-(limit // 3) :]}"
    return text or (type(error).__name__ if isinstance(error, BaseException) else "")


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Check that the modules of an optional extra of pyproject.toml can be imported.

    Args:
        extra: name of the extra.
        purpose: the feature that needs them; first words of the message.
        modules: names of the modules.

    Raises:
        MissingExtraError: a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f'{purpose} needs the extra "{extra}" ({error}); install it: pip install "san-segmentation[{extra}]"'
            ) from error


def printable(text: str) -> str:
    """Escape control and formatting characters and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def excerpt(value: object, *, limit: int = 80) -> str:
    """Return the `repr` of a value, cut in the middle if it is long; fast for huge values.

    Args:
        value: the value to show.
        limit: approximate number of characters to keep.
    """
    short = _RedactedRepr()
    short.maxstring = short.maxother = short.maxlong = limit
    try:
        text = printable(short.repr(value))
    except ValueError:  # an integer of thousands of digits, which Python refuses to format
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 2 * limit else f"{text[:limit]}..."


def listed(items: Iterable[object], most: int = 3, separator: str = ", ") -> str:
    """Join the first items to one text, with the number of further items."""
    texts = [str(item) for item in items]
    if len(texts) <= most:
        return separator.join(texts)
    end = " and" if separator == ", " else f"{separator}and"
    return f"{separator.join(texts[:most])}{end} {len(texts) - most:,} more"


def brief_repr(record: Any) -> str:
    """Return the `repr` of a dataclass or named tuple on one line, with only type and shape of arrays and tensors."""
    names = getattr(record, "_fields", ()) or [each.name for each in fields(record) if each.repr]
    shown = [f"{name}={_brief(getattr(record, name))}" for name in names]
    return f"{type(record).__name__}({', '.join(shown)})"


def _brief(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value) if is_dataclass(value) or hasattr(value, "_fields") else excerpt(value)


class _RedactedRepr(reprlib.Repr):
    """Masks credentials in texts before it shortens them."""

    def repr_str(self, x: str, level: int) -> str:
        if len(x) > 2 * MAX_LINE:  # most of it is dropped anyway
            x = f"{x[:MAX_LINE]}{x[-MAX_LINE:]}"
        return super().repr_str(redact(x), level)

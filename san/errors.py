"""What a user did wrong, and how errors and objects are shown: on one line, bounded, without control characters."""

from __future__ import annotations

import importlib
import reprlib
from dataclasses import fields, is_dataclass
from typing import Any

from san.redaction import redact


class MissingExtraError(ImportError):
    """A package of an optional extra does not import; the message says how to install it."""


USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError, MissingExtraError)
"""What wrong input raises: shown in one line. Anything else is a defect of ours and shows its stack trace."""

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C has ended: 128 + SIGINT, as shells have it."""

MAX_LINE = 2000
"""Characters of a message that are shown."""


def one_line(error: BaseException | str, *, limit: int = MAX_LINE) -> str:
    """An error's message as a terminal or a log can show it.

    File names, keys and values of a file are part of messages, and whoever made the file chose them: characters that
    a terminal would obey, or that turn the order of what follows, are escaped, and a long text is cut in the middle.
    Credentials are masked first (see `san.redaction`): the half of one could not be recognised.

    Args:
        error: the error, whose type is named where it says nothing; or a text.
        limit: characters to keep.
    """
    text = str(error)
    if len(text) > 4 * limit:  # most of it would be thrown away
        text = f"{text[: 2 * limit]} {text[-2 * limit :]}"
    text = printable(" ".join(redact(text).split()))
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} [...] {text[-(limit // 3) :]}"
    return text or (type(error).__name__ if isinstance(error, BaseException) else "")


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Checks that modules of an optional extra of pyproject.toml import.

    Args:
        extra: its name.
        purpose: what needs them; begins the message.
        modules: their names.

    Raises:
        MissingExtraError: one does not import.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f'{purpose} needs the extra "{extra}" ({error}); install it: pip install "san-segmentation[{extra}]"'
            ) from error


def printable(text: str) -> str:
    """A text with what no terminal should see escaped: control and formatting characters, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def excerpt(value: object, *, limit: int = 80) -> str:
    """The `repr` of a value for a message, cut in the middle where it is long; costs little for a huge value.

    Args:
        value: what was read or given.
        limit: characters to keep, about.
    """
    short = _RedactedRepr()
    short.maxstring = short.maxother = short.maxlong = limit
    try:
        text = printable(short.repr(value))
    except ValueError:  # a number of thousands of digits, which Python does not write out
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 2 * limit else f"{text[:limit]}..."


def brief_repr(record: Any) -> str:
    """A dataclass or named tuple on one line, as its `__repr__`: of arrays and tensors type and shape, the rest cut."""
    names = getattr(record, "_fields", ()) or [each.name for each in fields(record) if each.repr]
    shown = [f"{name}={_brief(getattr(record, name))}" for name in names]
    return f"{type(record).__name__}({', '.join(shown)})"


def _brief(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value) if is_dataclass(value) or hasattr(value, "_fields") else excerpt(value)


class _RedactedRepr(reprlib.Repr):
    """Masks credentials in texts before it cuts them."""

    def repr_str(self, x: str, level: int) -> str:
        if len(x) > 2 * MAX_LINE:  # most of it would be thrown away
            x = f"{x[:MAX_LINE]}{x[-MAX_LINE:]}"
        return super().repr_str(redact(x), level)

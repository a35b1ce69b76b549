"""Redacts credentials in the terminal, logs, error messages and Weights & Biases.

Two kinds are replaced by ``***``: the values of secret environment variables, in every form in which a message may
contain them, and the credentials in URLs. All patterns take linear time.
"""

from __future__ import annotations

import functools
import html
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote

MASK = "***"

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|BEARER|COOKIE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|_(KEY|PASS|PWD|PAT|AUTH)$",
    re.IGNORECASE,
)
_MIN_LENGTH = 8
"""Shorter values of such variables ("1", "true") are not secrets; masking them would make logs unreadable."""

_ADDRESS = re.compile(r"(?<=[A-Za-z0-9]:/)(/?)(\S+)")  # pathlib reduces "//" of a URL to "/"
_FILE_WITH_QUERY = re.compile(  # "x.pth?token=abc", in a progress bar or a cache; not "x.md#part"
    r"(\.(?!md#)\w{1,11})([?#]\S+)"
)
_VALUE_IN_QUERY = re.compile(r"(?<=[?&#])([\w.~%+\[\]-]+=)([^\s&#]+)")
_CLOSING = "\"'`)]}>,.;:"
"""Characters that may follow a URL in a sentence."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask the values of secret environment variables and the credentials in URLs.

    A variable is secret if its name contains token, secret, password, passphrase, credential, bearer, cookie, API key,
    access key or private key, or ends with _KEY, _PASS, _PWD, _PAT or _AUTH, and its value has 8 characters or more.
    In a URL, everything before the last ``@``, the values of the query, and the fragment are masked.

    Args:
        text: the text to show.
        secrets: further values to mask.
    """
    for words in _forms_of(frozenset(_environment_secrets()).union(secrets)):
        if words[0] in text:
            text = re.sub(r"\s+".join(map(re.escape, words)), MASK, text)
    if ":/" in text:
        text = _ADDRESS.sub(_redact_address, text)
    text = _FILE_WITH_QUERY.sub(_redact_address, text)
    if "=" in text:
        text = _VALUE_IN_QUERY.sub(_redact_value, text)
    return text


def redact_home(text: str) -> str:
    """Replace the user's home folder by ``~``."""
    home = os.path.expanduser("~")
    if home.startswith("~"):  # an unknown user without HOME has no home folder
        return text
    for each in {home, os.path.realpath(home)}:  # messages may contain either
        if len(PurePath(each).parts) > 1 and each in text:  # "/" is not a home folder
            text = re.sub(rf"{re.escape(each)}(?![\w.-])", "~", text)
    return text


def without_folders(content: Any) -> Any:
    """Prepare plain data for publication: absolute, ``~`` and ``..`` paths become file names, texts are redacted."""
    if isinstance(content, Mapping):
        return {key: without_folders(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(without_folders(value) for value in content)
    if not isinstance(content, str):
        return content
    head, _, path = content.rpartition(":")  # MODEL.CLIP.PRETRAINED may be "tag:/path/of/weights.pt"
    local = "://" not in content or content.startswith("file://")
    if local and (path.startswith(("/", "~", "\\", "..")) or re.match(r"[A-Za-z]:[\\/]", content)):
        name = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
        is_tag = len(head) > 1 and head != "file"  # one letter is a drive
        content = f"{head}:{name}" if is_tag else name
    return redact_home(redact(content))


class RedactingFormatter(logging.Formatter):
    """Redacts the lines of another formatter, including tracebacks, and replaces the home folder by ``~``.

    Args:
        inner: the other formatter; None for logging's default.
    """

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return redact_home(redact(self._inner.format(record)))


class RedactingStream:
    """A wrapper of a text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; returns the length of the unredacted text, which callers count."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_terminal() -> None:
    """Redact stdout and stderr of this process: messages, progress bars, warnings, tracebacks.

    Only commands call it; a library must not replace its caller's streams.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactingStream):
            setattr(sys, name, cast(TextIO, RedactingStream(stream)))


def _environment_secrets() -> list[str]:
    return [value for name, value in os.environ.items() if _is_secret(name) and len(value) >= _MIN_LENGTH]


@functools.lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


@functools.lru_cache(maxsize=8)
def _forms_of(secrets: frozenset[str]) -> list[list[str]]:
    """Return the words of every form of the secrets, longest first; a message may have any blanks between words."""
    forms: set[str] = set()
    for secret in secrets:
        lines = secret.splitlines()  # a private key has several lines, and each may be prefixed
        for part in lines if min(map(len, lines), default=0) >= _MIN_LENGTH else [secret]:
            forms |= _forms(part)
    return [form.split() for form in sorted(forms, key=len, reverse=True) if form.strip()]


def _forms(secret: str) -> set[str]:
    """Return the forms of a secret in messages: unchanged, quoted, escaped, or two of these in sequence."""
    forms = {secret, unquote(secret)}
    for _ in range(2):
        forms |= {encode(form) for form in forms for encode in _ENCODINGS}
    return forms


_ENCODINGS = (
    lambda text: quote(text, safe="", errors="surrogateescape"),
    lambda text: quote(text, safe="/", errors="surrogateescape"),
    lambda text: quote_plus(text, errors="surrogateescape"),
    lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, safe="", errors="surrogateescape")),
    lambda text: repr(text)[1:-1],
    lambda text: repr('"' + text)[2:-1],  # as part of a text with both kinds of quotes
    lambda text: repr(text)[1:-1].replace("\\\\", "\\"),  # see san.io.errors.printable
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    html.escape,
)


def _redact_address(match: re.Match[str]) -> str:
    """Mask user, password, value and fragment of ``user:password@host/path?name=value#fragment``."""
    before, address = match.groups()
    address, closing = _split_closing(address)
    user, at, address = address.rpartition("@")  # a password may contain / ? # and @
    address, number_sign, fragment = address.partition("#")
    address, question_mark, query = address.partition("?")
    return "".join(
        [
            before,
            MASK + at if user else at,
            address,
            question_mark,
            "&".join(map(_redact_part, query.split("&"))) if query else "",
            number_sign,
            MASK if fragment else "",
            closing,
        ]
    )


def _redact_part(part: str) -> str:
    """Mask ``name=value`` of a query; without ``=``, all of it may be a secret."""
    name, equals, value = part.partition("=")
    return f"{name}={MASK if value else ''}" if equals else MASK


def _redact_value(match: re.Match[str]) -> str:
    value, closing = _split_closing(match[2])
    return f"{match[1]}{MASK if value else ''}{closing}"


def _split_closing(text: str) -> tuple[str, str]:
    kept = text.rstrip(_CLOSING)
    return kept, text[len(kept) :]

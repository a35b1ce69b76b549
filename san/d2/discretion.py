"""What leaves the machine, or stays in a log that people pass on: no tokens, no home folder.

Credentials reach a process by its environment and inside addresses; both are masked wherever they turn up.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from san.files import home_folder

MASK = "***"

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|BEARER|COOKIE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|_(KEY|PASS|PWD|PAT|AUTH)$",
    re.IGNORECASE,
)
_SHORTEST = 8
"""Shorter values of such variables ("1", "true") are no secrets, and would mask half a log."""

_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+@")
_KEY_IN_ADDRESS = re.compile(
    r"(?<=[?&])([\w-]*(?:token|key|secret|password|signature)[\w-]*=)[^&\s'\"]+", re.IGNORECASE
)


def discreet(text: str) -> str:
    """A text without the values of secret environment variables, credentials in addresses, and the home folder (``~``).

    Secret are variables whose name says token, secret, password, passphrase, credential, bearer, cookie, API key,
    access key or private key, or ends with _KEY, _PASS, _PWD, _PAT or _AUTH.
    """
    for value in _secrets():
        text = text.replace(value, MASK).replace(quote(value, safe=""), MASK)
    text = _KEY_IN_ADDRESS.sub(rf"\1{MASK}", _USER_IN_ADDRESS.sub(f"{MASK}@", text))
    own = home_folder("~")
    for home in {str(own), os.path.realpath(own)} if own else ():  # messages hold one or the other
        if len(PurePath(home).parts) > 1:  # "/" is nobody's home
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return text


def _secrets() -> list[str]:
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)


def without_places(content: Any) -> Any:
    """Plain data whose paths from ``/``, ``~`` or ``..`` on are cut to their last part; then each text `discreet`."""
    if isinstance(content, Mapping):
        return {key: without_places(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(without_places(value) for value in content)
    if not isinstance(content, str):
        return content
    head, colon, path = content.rpartition(":")  # MODEL.CLIP.PRETRAINED may be "tag:/path/of/weights.pt"
    local = "://" not in content or content.startswith("file://")
    if local and (path.startswith(("/", "~", "\\", "..")) or re.match(r"[A-Za-z]:[\\/]", content)):
        kept = len(head) > 1 and head != "file"  # not a drive's letter
        content = head * kept + colon * kept + re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return discreet(content)


class DiscreetFormatter(logging.Formatter):
    """Makes another formatter's lines, tracebacks too, `discreet`.

    Args:
        inner: the other one; None for logging's own.
    """

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return discreet(self._inner.format(record))

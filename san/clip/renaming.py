"""Renames tensors of other code's files by pairs of prefixes."""

from __future__ import annotations

import re
from collections.abc import Iterable

Rows = tuple[tuple[str, str], ...]
"""Pairs of prefixes, old and new; "#" matches a number, at most one per prefix."""


def renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a name with its prefix replaced by the first matching row; unchanged if none matches."""
    for before, after in rows:
        found = re.match(re.escape(before).replace(r"\#", r"(\d+)"), name)
        if found:
            return after.replace("#", found[1] if found.groups() else "") + name[found.end() :]
    return name


def block_rows(before: str, after: str, inner: Iterable[tuple[str, str]]) -> Rows:
    """Return the rows of numbered blocks, from the prefixes of a block and of the names inside it."""
    return tuple((f"{before}.#.{inside}", f"{after}.#.{ours}") for inside, ours in inner)

"""Names of tensors in files of others, by rows of beginnings."""

from __future__ import annotations

import re
from collections.abc import Iterable

Rows = tuple[tuple[str, str], ...]
"""Beginnings of names, before and after; "#" stands for a number, at most one per beginning."""


def renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """A name with the beginning of the first row that fits replaced; unchanged if none fits."""
    for before, after in rows:
        found = re.match(re.escape(before).replace(r"\#", r"(\d+)"), name)
        if found:
            return after.replace("#", found[1] if found.groups() else "") + name[found.end() :]
    return name


def block_rows(before: str, after: str, inner: Iterable[tuple[str, str]]) -> Rows:
    """The rows of numbered blocks: beginnings of a block's name, and of the names inside it."""
    return tuple((f"{before}.#.{inside}", f"{after}.#.{ours}") for inside, ours in inner)

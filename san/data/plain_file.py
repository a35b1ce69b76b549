"""YAML and JSON files that people write: plain data only, no key twice, unknown keys refused with the nearest known."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from san.errors import one_line

MAX_DEPTH = 100
"""Levels of lists and mappings in each other."""

MAX_VALUES = 1_000_000
"""Values in a YAML file, each alias counted as what it stands for."""

_NO_DATA = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What the readers raise on text that is no data, or whose tags belie it, such as ``!!bool maybe``."""


_MERGE = "tag:yaml.org,2002:merge"
"""Of the key ``<<``, which takes over another mapping's keys."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would quietly keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, Hashable):
                continue  # the safe loader says what is wrong
            if key in seen:
                raise ValueError(f"the key {key!r} is there twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key is given twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def parse_yaml(text: str, *, unique_keys: bool = True, as_written: bool = False) -> Any:
    """Plain data from YAML; a tag that would run code, or make an object, is refused and named.

    Args:
        text: one document.
        unique_keys: refuse a key given twice.
        as_written: leave every scalar the text it is.

    Returns:
        Dictionaries, lists, text, numbers, booleans, dates, None.

    Raises:
        ValueError: it is no YAML, holds other tags than plain data's, more than `MAX_VALUES` values (a few lines of
            aliases can stand for billions) or more than `MAX_DEPTH` levels.
    """
    kind = yaml.BaseLoader if as_written else _Loader if unique_keys else yaml.SafeLoader
    try:
        loader = kind(text)
        node = loader.get_single_node()  # type: ignore[no-untyped-call]
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    except _NO_DATA as error:
        reason = one_line(error)
        if isinstance(error, RecursionError):
            reason = f"lists and mappings lie in each other over {MAX_DEPTH} levels deep"
        raise ValueError(reason) from None


def _check_size(root: yaml.Node) -> None:
    """Refuses what is small as a file and huge, or endless, as data."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:  # what holds itself is endlessly deep
            raise ValueError(f"lists and mappings lie in each other over {MAX_DEPTH} levels deep, or in themselves")
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in counts:
            parts = (
                node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
            )
            counts[id(node)] = 1 + sum(count(part, depth + 1) for part in parts)
            if counts[id(node)] > MAX_VALUES:
                raise ValueError(f"it stands for over {MAX_VALUES:,} values; write fewer aliases")
        return counts[id(node)]

    count(root, 0)


def read_plain_file(path: str | Path, title: str) -> Any:
    """What a ``.json``, ``.yaml`` or ``.yml`` file holds: plain data, no code runs.

    Args:
        path: UTF-8 file.
        title: what the file is, for messages, such as "data set file".

    Returns:
        Dictionaries, lists, text, numbers, booleans, None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, no plain YAML or JSON, or a key given twice.
    """
    path = Path(path)
    if not is_file(path):
        raise FileNotFoundError(f"{title} {path} does not exist; correct the path")
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("json", "yaml", "yml"):
        raise ValueError(f"{title} {path} ends in {path.suffix!r}; give a .yaml, .yml or .json file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique) if kind == "json" else parse_yaml(text)
    except (ValueError, RecursionError) as error:
        what = "JSON" if kind == "json" else "plain YAML"
        raise ValueError(f"{title} {path} is no {what}: {one_line(error)}") from None


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also for what can be no path, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def user_path(text: str, where: str) -> Path:
    """A path that somebody wrote, ``~`` standing for a home folder.

    Raises:
        ValueError: there is no such user, or it can be no path.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{where} is {text!r} ({error}); write the folder out") from None
    if "\0" in text:
        raise ValueError(f"{where} is {text!r}, which holds a zero byte; correct it")
    return path


def check_keys(content: Any, known: Collection[str], where: str) -> Mapping[str, Any]:
    """A mapping that holds only known keys.

    Args:
        content: what was read.
        known: the legal keys.
        where: the file, and the place in it, for messages.

    Returns:
        The content.

    Raises:
        ValueError: it is no mapping, or a key is unknown; names the nearest known one.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {content!r}; give a mapping with the keys {', '.join(known)}")
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.0)
            raise ValueError(
                f"unknown key {key!r} in {where}; did you mean {near[0]!r}? The keys are {', '.join(known)}"
            )
    return content

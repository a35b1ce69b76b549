"""Reads YAML and JSON files of users: plain data only, no duplicate keys, no unknown keys."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from san.io.errors import excerpt, one_line
from san.io.files import MAX_PATH as MAX_PATH
from san.io.files import user_path as user_path

MAX_BYTES = 64_000_000
"""Maximum size of a file."""

MAX_DEPTH = 100
"""Maximum depth of nested lists and mappings."""

MAX_VALUES = 1_000_000 if yaml.__with_libyaml__ else 200_000
"""Maximum number of values with aliases expanded: read within seconds, also without PyYAML's C library."""

MAX_NUMBER = 1000
"""Maximum characters of a YAML value that is not text: reading 1:1:1... takes time quadratic in its length."""

_NO_DATA = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""Exceptions of the readers for text that is not data, or does not match its tag, such as ``!!bool maybe``."""


_MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key ``<<``, which merges another mapping's keys."""

_TEXT = "tag:yaml.org,2002:str"


class _Bounded:
    """A loader mixin that stops reading before a huge file fills the memory."""

    def __init__(self, text: str, max_values: int) -> None:
        super().__init__(text)  # type: ignore[call-arg]
        self._max_values, self._num_values, self._depth = max_values, 0, 0

    def descend_resolver(self, parent: yaml.Node | None, index: Any) -> None:
        """Called by PyYAML before each node."""
        self._num_values += 1
        self._depth += 1
        _check_limits(self._num_values, self._depth, self._max_values)

    def ascend_resolver(self) -> None:
        """Called after each node."""
        self._depth -= 1


class _BaseLoader(_Bounded, yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader):  # type: ignore[misc]
    """Keeps every scalar as text."""


class _UniqueLoader(_Bounded, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Loads plain data and refuses duplicate keys; YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of a node."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the safe loader raises the error
            if key in seen:
                raise ValueError(f"the key {excerpt(key)} is there twice")
            seen.add(key)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError for a duplicate key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {excerpt(key)} is there twice")
        found[key] = value
    return found


def parse_yaml(text: str, *, as_written: bool = False, max_values: int | None = None) -> Any:
    """Read plain data from YAML; a tag that would run code or create an object is refused.

    Args:
        text: one document.
        as_written: keep every scalar as text.
        max_values: maximum number of values; None for `MAX_VALUES`.

    Returns:
        Dictionaries, lists, text, numbers, booleans, dates, None.

    Raises:
        ValueError: the text is not YAML, has tags other than those of plain data, a duplicate key, too many values (a
            few lines of aliases can expand to billions), more than `MAX_DEPTH` levels, or a number of over `MAX_NUMBER`
            characters.
    """
    most = MAX_VALUES if max_values is None else max_values
    try:
        loader = (_BaseLoader if as_written else _UniqueLoader)(text, most)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, most)
        return loader.construct_document(node)
    except _NO_DATA as error:
        reason = one_line(error)
        if isinstance(error, RecursionError):
            reason = f"lists and mappings lie in each other over {MAX_DEPTH} levels deep"
        raise ValueError(reason) from None


def _check_limits(num_values: int, depth: int, max_values: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"lists and mappings lie in each other over {MAX_DEPTH} levels deep, or in themselves")
    if num_values > max_values:
        raise ValueError(f"it holds over {max_values:,} values, the limit, each alias counted as what it stands for")


def _check_size(root: yaml.Node, max_values: int) -> None:
    """Refuse small files that expand to huge or infinite data."""
    sizes: dict[int, tuple[int, int]] = {}

    def size(node: yaml.Node, depth: int) -> tuple[int, int]:
        """Return the number of values and levels of a node."""
        if not isinstance(node, yaml.CollectionNode):
            if len(node.value) > MAX_NUMBER and node.tag != _TEXT:
                raise ValueError(f"{excerpt(node.value)} has over {MAX_NUMBER:,} characters; put text in quotes")
            return 1, 1
        if id(node) not in sizes:
            _check_limits(0, depth, max_values)  # a node that contains itself is infinitely deep
            parts = (
                node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
            )
            found = [size(part, depth + 1) for part in parts]
            sizes[id(node)] = 1 + sum(each for each, _ in found), 1 + max((each for _, each in found), default=0)
            _check_limits(*sizes[id(node)], max_values)
        return sizes[id(node)]

    size(root, 1)


def read_text(path: Path, title: str) -> str:
    """Read a text file, without its byte order mark.

    Args:
        path: UTF-8 file.
        title: kind of file for messages, such as "class file".

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is larger than `MAX_BYTES`, or not UTF-8.
    """
    if not is_file(path):
        raise FileNotFoundError(f"{title} {path} does not exist, or is no file; correct the path")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{title} {path} has over {MAX_BYTES:,} bytes, the limit; leave some of it out")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{title} {path} is not UTF-8 text ({error.reason}, byte {error.start}); save it as UTF-8"
        ) from None


def read_plain_file(path: str | Path, title: str) -> Any:
    """Read plain data from a ``.json``, ``.yaml`` or ``.yml`` file; no code is run.

    Args:
        path: UTF-8 file.
        title: kind of file for messages, such as "data set file".

    Returns:
        Dictionaries, lists, text, numbers, booleans, None.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another extension, is not plain YAML or JSON, has a duplicate key, or exceeds a limit
            of this module.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("json", "yaml", "yml"):
        raise ValueError(f"{title} {path} ends in {path.suffix!r}; give a .yaml, .yml or .json file")
    text = read_text(path, title)
    try:
        return parse_yaml(text) if kind != "json" else _parse_json(text)
    except (ValueError, RecursionError) as error:
        what = "JSON" if kind == "json" else "plain YAML"
        raise ValueError(f"{title} {path} is not {what}: {one_line(error)}") from None


def _parse_json(text: str) -> Any:
    """Read plain data from JSON; raise ValueError if it is invalid, has too many values or a duplicate key."""
    _check_limits(sum(map(text.count, ",[{")), 0, MAX_VALUES)  # an upper bound, before any value is created
    return json.loads(text, object_pairs_hook=_unique)


def is_file(path: Path) -> bool:
    """Whether a file exists; False also for an invalid path, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_keys(content: Any, known: Collection[str], where: str) -> Mapping[str, Any]:
    """Check that a mapping has only known keys.

    Args:
        content: content that was read.
        known: accepted keys.
        where: file and place in it, for messages.

    Returns:
        the content.

    Raises:
        ValueError: the content is not a mapping, or a key is unknown; the message names the nearest known key.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {excerpt(content)}; give a mapping with the keys {', '.join(known)}")
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:100], list(known), n=1, cutoff=0.0)
            raise ValueError(
                f"unknown key {excerpt(key)} in {where}; did you mean {near[0]!r}? The keys are {', '.join(known)}"
            )
    return content

"""Merges configuration files, data set files and ``KEY VALUE`` pairs into a configuration; errors name the key."""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from san.d2.api import CfgNode, get_cfg
from san.d2.config.coerce import coerce, parse
from san.d2.config.foreign_keys import INSTEAD, foreign_name
from san.d2.config.schema import KEYS
from san.data.custom import load_custom_dataset
from san.io.errors import excerpt, one_line, printable
from san.io.files import expand_home
from san.io.plain_file import is_file, parse_yaml, read_text, user_path
from san.record import AUTO

logger = logging.getLogger("san.d2.config")

TABLES = tuple(key.name for key in KEYS.values() if key.is_table)
"""Keys with a mapping of arbitrary keys as their value: options of parts."""


_SCHEDULE_KEYS = ("SOLVER.LR_SCHEDULER_NAME", "SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_ITERS")

MAX_TEXT = 4096
"""Maximum length of a text or list in a configuration. Names, paths and templates are shorter."""

MAX_VALUES = 20_000
"""Maximum number of values in a configuration file; one that a run wrote has some hundreds."""


def merge_file(cfg: CfgNode, path: str, option_texts: dict[str, Any] | None = None) -> list[Path]:
    """Merge a YAML file and its bases into a configuration.

    A file that Detectron2 dumped has all of its keys; those that SAN does not read are skipped.

    Args:
        cfg: changed in place; only its keys are accepted.
        path: plain YAML; ``_BASE_`` names a file, relative to it, to start from.
        option_texts: receives the text of the part options that the file sets, by key.

    Returns:
        The files read.

    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        ValueError: it is not a YAML mapping, a key is unknown, or a value is invalid.
    """
    files = []
    for source, content in _with_bases(user_path(path, "the configuration file")):
        files.append(source)
        # the same file with every scalar as text: YAML itself reads 2024_01 as the number 202401
        raw = parse_yaml(read_text(source, "configuration file"), as_written=True, max_values=MAX_VALUES)
        texts = dict(flatten(raw)) if isinstance(raw, dict) else {}
        if "GLOBAL" in content:  # only files that Detectron2 dumped have this section
            warn_without_effect(content)
            content = _without_foreign(content)
        for key, value in flatten(content):
            _set(cfg, key, value, texts.get(key, value), source=str(source), option_texts=option_texts)
    return files


def override_pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Parse keys and values of the command line.

    Args:
        overrides: alternating keys and values, or texts ``key=value``; a value may contain ``=``.

    Raises:
        ValueError: a value is missing.
    """
    pairs, texts = [], iter(overrides)
    for text in texts:
        key, alone, rest = text.partition("=")
        value = rest if alone else next(texts, None)
        if not key or value is None:
            raise ValueError(
                f"{excerpt(' '.join(overrides))} does not pair every KEY with a VALUE; write KEY VALUE KEY VALUE ... "
                "or KEY=VALUE ..."
            )
        pairs.append((key, value))
    return pairs


def merge_overrides(
    cfg: CfgNode, overrides: Sequence[tuple[str, str]], option_texts: dict[str, Any] | None = None
) -> None:
    """Merge keys and values of the command line into a configuration.

    Args:
        cfg: changed in place.
        overrides: pairs of key and value.
        option_texts: see `merge_file`.

    Raises:
        ValueError: a key is unknown, or a value is invalid.
    """
    for key, text in overrides:
        _set(cfg, key, parse(text), text, source="the command line", option_texts=option_texts)


def expand_paths(cfg: CfgNode) -> None:
    """Replace ``~`` by the home folder in keys that are paths; other paths are not changed.

    Args:
        cfg: changed in place.

    Raises:
        ValueError: the home folder does not exist, or a value cannot be a path.
    """
    for key in (each.name for each in KEYS.values() if each.is_path):
        *sections, leaf = key.split(".")
        node: Any = functools.reduce(lambda each, section: each[section], sections, cfg)
        value = node[leaf]
        if isinstance(value, str):
            node[leaf] = expand_home(value, key)
        else:
            node[leaf] = type(value)(expand_home(each, key) for each in value)


def use_datasets(cfg: CfgNode, paths: Sequence[str]) -> None:
    """Add files to DATASETS.CUSTOM; their splits ``train`` become DATASETS.TRAIN, and all others DATASETS.TEST.

    If no file has a split ``train``, DATASETS.TRAIN is not changed.

    Args:
        cfg: changed in place.
        paths: files that describe custom data sets.

    Raises:
        FileNotFoundError, ValueError: a file is missing or invalid.
    """
    if not paths:
        return
    splits = [split for path in dict.fromkeys(paths) for split in load_custom_dataset(path).splits]
    train = [split.name for split in splits if split.split == "train"]
    datasets = cfg.DATASETS
    datasets.CUSTOM = list(dict.fromkeys([*datasets.CUSTOM, *paths]))
    datasets.TRAIN = type(datasets.TRAIN)(train or datasets.TRAIN)
    datasets.TEST = type(datasets.TEST)(split.name for split in splits if split.split != "train")


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Return a file and its bases with their contents, bases first."""
    if not is_file(path):
        needed = f", the _BASE_ of {above[-1]}," if above else ""
        raise FileNotFoundError(f"configuration file {path}{needed} does not exist; see configs/ for those there are")
    if path.resolve() in (each.resolve() for each in above):
        raise ValueError(f"configuration file {path} is based on itself; correct its _BASE_")
    text = read_text(path, "configuration file")
    try:
        content = parse_yaml(text, max_values=MAX_VALUES) or {}
    except ValueError as error:
        raise ValueError(f"configuration file {path} is not plain YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"configuration file {path} holds no mapping of keys to values; see configs/ for examples")
    base = content.pop("_BASE_", None)
    if base is not None:
        if not isinstance(base, str):
            raise ValueError(
                f"_BASE_ of configuration file {path} is {excerpt(base)}; give one path, such as 'base.yaml'"
            )
        yield from _with_bases(path.parent / user_path(base, f"_BASE_ of {path}"), (*above, path))
    yield path, content


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return the dotted keys and values of nested mappings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_foreign(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys and values without Detectron2's keys that SAN does not read."""
    found = {key: value for key, value in flatten(content) if foreign_name(key) is None}
    name = found.get("SOLVER.LR_SCHEDULER_NAME")
    if name in KEYS["SOLVER.LR_SCHEDULER_NAME"].constraint.choices:
        return found
    # in files from versions that did not read these keys, they are Detectron2's defaults and had no effect
    return {key: value for key, value in found.items() if key not in _SCHEDULE_KEYS}


def warn_without_effect(content: Mapping[str, Any], *sections: str) -> None:
    """Warn once about Detectron2's keys that have no effect on SAN and are not at their defaults.

    With the stand-in, which does not have those defaults, nothing is logged; the run that dumped the file has warned.

    Args:
        content: a configuration.
        sections: only these are checked, such as MODEL.
    """
    defaults, changed = dict(flatten(get_cfg())), []
    for key, value in flatten({section: content[section] for section in sections or content if section in content}):
        name = foreign_name(key)
        if name is None or key not in defaults or plain_value(value) == plain_value(defaults[key]):
            continue
        instead = INSTEAD[name]
        if instead is not None:
            changed.append(f"{key} ({instead} has)" if instead else key)
    if changed:
        _warn_once(f"Keys of Detectron2 that have no effect on SAN are set: {', '.join(changed)}")


def plain_value(value: Any) -> Any:
    """Return a value as YAML would load it."""
    return [plain_value(each) for each in value] if isinstance(value, (list, tuple)) else value


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def leaf_keys(cfg: CfgNode) -> list[str]:
    """Return all dotted keys of a configuration that are values, not sections."""
    return [key for key, _ in flatten(cfg)]


def _set(
    cfg: CfgNode, key: str, value: Any, raw: Any, *, source: str, option_texts: dict[str, Any] | None = None
) -> None:
    """Set one dotted key to a value, converted to the key's type; scalars of `raw` are the text that the user wrote."""
    node, leaf = _node_of(cfg, key), key.rpartition(".")[2]
    if node is None:
        start, foreign = printable(key[:100]), foreign_name(key)
        if foreign is not None:
            remedy = f"set {INSTEAD[foreign]}" if INSTEAD[foreign] else "remove it"
            raise ValueError(f"unknown key {start} in {source}: it is Detectron2's and has no effect on SAN; {remedy}")
        keys = leaf_keys(cfg)
        near = difflib.get_close_matches(start, keys, n=1, cutoff=0.0)
        same_leaf = [other for other in keys if other.split(".")[-1] == leaf]
        raise ValueError(f"unknown key {start} in {source}; did you mean {(same_leaf or near)[0]}?")
    size = max(_size(value), _size(raw))
    if size > MAX_TEXT:
        raise ValueError(
            f"{key} in {source} is {excerpt(value)}, of {size:,} characters or elements; give {MAX_TEXT} at most"
        )
    if leaf not in node or (key not in KEYS and any(key.startswith(f"{table}.") for table in TABLES)):
        # a part's option; the part declares its type, and may not be imported yet
        node[leaf] = list(value) if isinstance(value, tuple) else value
        if option_texts is not None:
            option_texts[key] = raw
        return
    present, known = node[leaf], KEYS.get(key)
    try:
        if known is not None and known.constraint.auto and value in (AUTO, [AUTO]):
            found = [AUTO] if known.is_list else AUTO
        else:
            found = coerce(value, raw, type(present) if known is None else known.hint)
    except TypeError as error:
        example = "" if present in ([], (), "") else f", such as {present!r}"
        raise ValueError(
            f"{key} in {source} is {excerpt(value)}, of type {type(value).__name__}; give {error}{example}"
        ) from None
    node[leaf] = tuple(found) if isinstance(present, tuple) else found


def _node_of(cfg: CfgNode, key: str) -> CfgNode | None:
    """Return the node that contains a dotted key; None for an unknown key. Missing nodes of tables are created."""
    *sections, leaf = key.split(".")
    node, is_free = cfg, False
    for index, section in enumerate(sections):
        is_free = is_free or ".".join(sections[:index]) in TABLES
        if is_free and section not in node:
            node[section] = CfgNode(new_allowed=True)
        node = node.get(section)
        if not isinstance(node, dict):
            return None
    if is_free or ".".join(sections) in TABLES:
        return None if isinstance(node.get(leaf), dict) else node
    return None if leaf not in node or isinstance(node[leaf], dict) else node


def _size(value: Any) -> int:
    """Return the length of the longest text or list in a value."""
    if isinstance(value, (list, tuple)):
        return max([len(value), *map(_size, value)])
    return len(value) if isinstance(value, str) else 0

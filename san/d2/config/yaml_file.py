"""Reading configuration files, data set files and ``KEY VALUE`` pairs into a configuration; errors name the key."""

from __future__ import annotations

import ast
import difflib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from san.d2.api import CfgNode, get_cfg
from san.d2.config.foreign_keys import INSTEAD, foreign_name
from san.data.custom import load_custom_dataset
from san.data.plain_file import is_file, parse_yaml, read_text, user_path
from san.errors import excerpt, one_line, printable
from san.files import expand_home

logger = logging.getLogger("san.d2.config")


@dataclass(frozen=True)
class ListRule:
    """What a key that holds a list takes.

    Attributes:
        kind: of its elements: int, float (whole numbers are taken too) or str.
        length: number of elements; None = any.
    """

    kind: type
    length: int | None = None


LISTS = {
    "DATASETS.TRAIN": ListRule(str),
    "DATASETS.TEST": ListRule(str),
    "DATASETS.CUSTOM": ListRule(str),
    "MODEL.IMPORTS": ListRule(str),
    "INPUT.MIN_SIZE_TRAIN": ListRule(int),
    "INPUT.CROP.SIZE": ListRule(int, 2),
    "INPUT.AUGMENT.CONTRAST": ListRule(float, 2),
    "INPUT.AUGMENT.SATURATION": ListRule(float, 2),
    "MODEL.SIDE_ADAPTER.FUSION": ListRule(str),
    "MODEL.SIDE_ADAPTER.SUPERVISED_BLOCKS": ListRule(int),
}
"""All keys with a list but TEST.EXPECTED_RESULTS, which `check_config` looks at."""

TEXT_OR_LIST = ("MODEL.CLIP.TEMPLATES",)
"""Keys that hold a name or, instead, a list of texts."""

PATHS = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.CLIP.PRETRAINED",
    "MODEL.CLIP.TEXT_CACHE",
    "DATASETS.ROOT",
    "DATASETS.CUSTOM",
)
"""Keys that hold a path, or paths, some of them something else instead; ``~`` in them is a home folder."""

MAX_TEXT = 4096
"""Characters of a text, or elements of a list, that a key takes. Names, paths and templates are shorter."""

MAX_VALUES = 20_000
"""Values of a configuration file: one that a run wrote holds some hundreds."""

KINDS = {int: "whole numbers", float: "numbers", str: "names"}


def merge_file(cfg: CfgNode, path: str) -> list[Path]:
    """Reads a YAML file, and those it is based on, into a configuration.

    Of a record that Detectron2 dumped, which holds all of its keys, those that SAN does not read are passed over.

    Args:
        cfg: changed in place; its keys are the legal ones.
        path: plain YAML; ``_BASE_`` names a file, relative to it, to start from.

    Returns:
        The files read.

    Raises:
        FileNotFoundError: if the file, or one it is based on, does not exist.
        ValueError: if it is no YAML mapping, a key is unknown, or a value does not fit.
    """
    files = []
    for source, content in _with_bases(user_path(path, "the configuration file")):
        files.append(source)
        # the same file with every scalar as it is written: YAML itself reads 2024_01 as the number 202401
        raw = parse_yaml(read_text(source, "configuration file"), as_written=True, max_values=MAX_VALUES)
        texts = dict(flatten(raw)) if isinstance(raw, dict) else {}
        if "GLOBAL" in content:  # Detectron2's record: nobody else writes this section
            warn_without_effect(content)
            content = _without_foreign(content)
        for key, value in flatten(content):
            _set(cfg, key, value, texts.get(key, value), source=str(source))
    return files


def override_pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and values of the command line.

    Args:
        overrides: each a key and then its value, or one text ``key=value``; a value may hold ``=`` too.

    Raises:
        ValueError: if a value is missing.
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


def merge_overrides(cfg: CfgNode, overrides: Sequence[tuple[str, str]]) -> None:
    """Sets keys of the command line.

    Args:
        cfg: changed in place.
        overrides: pairs of key and value.

    Raises:
        ValueError: if a key is unknown, or a value does not fit.
    """
    for key, text in overrides:
        _set(cfg, key, _parse(text), text, source="the command line")


def expand_paths(cfg: CfgNode) -> None:
    """Puts home folders in the place of ``~`` in `PATHS`; other paths stay as they are written.

    Args:
        cfg: changed in place.

    Raises:
        ValueError: there is no such home folder, or a value can be no path.
    """
    for key in PATHS:
        *sections, leaf = key.split(".")
        node: Any = functools.reduce(lambda each, section: each[section], sections, cfg)
        value = node[leaf]
        if isinstance(value, str):
            node[leaf] = expand_home(value, key)
        else:
            node[leaf] = type(value)(expand_home(each, key) for each in value)


def use_datasets(cfg: CfgNode, paths: Sequence[str]) -> None:
    """Adds files to DATASETS.CUSTOM; their splits ``train`` become DATASETS.TRAIN and all others DATASETS.TEST.

    A file without a split ``train`` leaves DATASETS.TRAIN as it is.

    Args:
        cfg: changed in place.
        paths: files that describe own data sets.

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong.
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
    """Files and their contents, bases first."""
    if not is_file(path):
        needed = f", the _BASE_ of {above[-1]}," if above else ""
        raise FileNotFoundError(f"configuration file {path}{needed} does not exist; see configs/ for those there are")
    if path.resolve() in (each.resolve() for each in above):
        raise ValueError(f"configuration file {path} is based on itself; correct its _BASE_")
    text = read_text(path, "configuration file")
    try:
        content = parse_yaml(text, max_values=MAX_VALUES) or {}
    except ValueError as error:
        raise ValueError(f"configuration file {path} is no plain YAML: {one_line(error)}") from None
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
    """Dotted keys and values of nested mappings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_foreign(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values without those of Detectron2 that SAN does not read."""
    return {key: value for key, value in flatten(content) if foreign_name(key) is None}


def warn_without_effect(content: Mapping[str, Any], *sections: str) -> None:
    """Warns, once, about Detectron2's keys that have no effect on SAN and are not at their defaults.

    The stand-in does not know those defaults, so there nothing is said: a run that wrote a record has said it.

    Args:
        content: a configuration.
        sections: look at these alone, such as MODEL.
    """
    defaults, changed = dict(flatten(get_cfg())), []
    for key, value in flatten({section: content[section] for section in sections or content if section in content}):
        name = foreign_name(key)
        if name is None or key not in defaults or _plain(value) == _plain(defaults[key]):
            continue
        instead = INSTEAD[name]
        if instead is not None:
            changed.append(f"{key} ({instead} has)" if instead else key)
    if changed:
        _warn_once(f"Keys of Detectron2 that have no effect on SAN are set: {', '.join(changed)}")


def _plain(value: Any) -> Any:
    """A value as YAML gives it back."""
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def leaf_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration that hold a value."""
    return [key for key, _ in flatten(cfg, prefix)]


def _parse(text: str) -> Any:
    """A command-line value: a Python literal, true or false, else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two of many brackets
        return text


def _set(cfg: CfgNode, key: str, value: Any, raw: Any, *, source: str) -> None:
    """Sets one dotted key to a value of the type it has; raw is the value with every scalar as the user wrote it."""
    *sections, leaf = key.split(".")
    node: Any = cfg
    for section in sections:
        node = node.get(section, {}) if isinstance(node, dict) else {}
    if not isinstance(node, dict) or leaf not in node or isinstance(node[leaf], dict):
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
    try:
        if key in TEXT_OR_LIST and not isinstance(value, str):
            node[leaf] = _coerce_list(value, raw, ListRule(str))
        elif key in TEXT_OR_LIST:
            node[leaf] = value
        elif key in LISTS:
            node[leaf] = type(node[leaf])(_coerce_list(value, raw, LISTS[key]))
        else:
            node[leaf] = _coerce(value, raw, node[leaf])
    except TypeError:
        wanted = _wanted(LISTS[key]) if key in LISTS else f"a {type(node[leaf]).__name__}"
        example = "" if node[leaf] in ([], (), "") else f", such as {node[leaf]!r}"
        raise ValueError(
            f"{key} in {source} is {excerpt(value)}, of type {type(value).__name__}; give {wanted}{example}"
        ) from None


def _size(value: Any) -> int:
    """Characters of the longest text, or elements of the longest list, in a value."""
    if isinstance(value, (list, tuple)):
        return max([len(value), *map(_size, value)])
    return len(value) if isinstance(value, str) else 0


def _wanted(rule: ListRule) -> str:
    """A rule in words."""
    return f"a list of {KINDS[rule.kind]}" if rule.length is None else f"a list of {rule.length} {KINDS[rule.kind]}"


def _coerce(value: Any, raw: Any, present: Any) -> Any:
    """A value in the type of the present one; TypeError where it has none."""
    if isinstance(present, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return type(present)(value)
    if isinstance(present, str):
        return "" if value is None else _as_text(value, raw)
    if isinstance(present, float):
        return _as_number(value, float)
    if type(value) is not type(present):
        raise TypeError
    return value


def _coerce_list(value: Any, raw: Any, rule: ListRule) -> list[Any]:
    """The elements a rule asks for, else TypeError. Text is elements between commas; a number is one."""
    if isinstance(value, str) or (rule.kind is str and isinstance(value, (int, float))):
        parts: Sequence[Any] = _split(_as_text(value, raw))
        texts: Sequence[Any] = parts
    elif isinstance(value, (int, float)):
        parts = texts = [value]
    elif isinstance(value, (list, tuple)):
        parts = value
        texts = _split(raw) if isinstance(raw, str) else raw
        if not isinstance(texts, (list, tuple)) or len(texts) != len(parts):
            texts = parts
    else:
        raise TypeError
    if rule.length is not None and len(parts) != rule.length:
        raise TypeError
    if rule.kind is str:
        return [_as_text(part, text) for part, text in zip(parts, texts, strict=True)]
    return [_as_number(_parse(part) if isinstance(part, str) else part, rule.kind) for part in parts]


def _split(text: str) -> list[str]:
    """The elements of a list written as text, such as ``a,b`` or ``[a, b]``."""
    parts = (part.strip().strip("'\"") for part in text.strip().strip("()[]").split(","))
    return [part for part in parts if part]


def _as_text(value: Any, raw: Any) -> str:
    """Text: the value, or where it was read as something else, what the user wrote."""
    if isinstance(value, str):
        return value
    if isinstance(raw, str):
        return raw
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise TypeError


def _as_number(value: Any, kind: type) -> Any:
    """An int as it is, a float also from an int or from text, since YAML reads 1e-4 as text."""
    if type(value) is kind:
        return value
    if kind is float and type(value) in (int, str):
        try:
            return float(value)
        except ValueError:
            raise TypeError from None
    raise TypeError

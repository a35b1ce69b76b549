"""Reading configuration files and ``KEY VALUE`` pairs into a configuration, with errors that name the key."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from san.d2.api import CfgNode


def merge_file(cfg: CfgNode, path: str) -> None:
    """Reads a YAML file, and those it is based on, into a configuration.

    Args:
        cfg: changed in place; its keys are the legal ones.
        path: plain YAML; ``_BASE_`` names a file, relative to it, to start from.

    Raises:
        FileNotFoundError: if the file, or one it is based on, does not exist.
        ValueError: if it is no YAML mapping, a key is unknown, or a value does not fit.
    """
    for source, content in _with_bases(Path(path)):
        for key, value in _flatten(content):
            _set(cfg, key, value, source=str(source))


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Sets ``KEY VALUE`` pairs of the command line.

    Args:
        cfg: changed in place.
        overrides: key, value, key, value, ...

    Raises:
        ValueError: if a value is missing, a key is unknown, or a value does not fit.
    """
    if len(overrides) % 2:
        raise ValueError(f"{' '.join(overrides)!r} does not pair every KEY with a VALUE; write KEY VALUE KEY VALUE ...")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        _set(cfg, key, _parse(text), source="the command line")


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Files and their contents, bases first."""
    if not path.is_file():
        needed = f", the _BASE_ of {above[-1]}," if above else ""
        raise FileNotFoundError(f"configuration file {path}{needed} does not exist; see configs/ for those there are")
    if path.resolve() in (each.resolve() for each in above):
        raise ValueError(f"configuration file {path} is based on itself; correct its _BASE_")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"configuration file {path} is no plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"configuration file {path} holds no mapping of keys to values; see configs/ for examples")
    base = content.pop("_BASE_", None)
    if base is not None:
        yield from _with_bases(path.parent / Path(base).expanduser(), (*above, path))
    yield path, content


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def leaf_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration that hold a value."""
    return [key for key, _ in _flatten(cfg, prefix)]


def _parse(text: str) -> Any:
    """A command-line value: a Python literal, true or false, else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _set(cfg: CfgNode, key: str, value: Any, *, source: str) -> None:
    """Sets one dotted key to a value of the type it has."""
    *sections, leaf = key.split(".")
    node: Any = cfg
    for section in sections:
        node = node.get(section, {}) if isinstance(node, dict) else {}
    if not isinstance(node, dict) or leaf not in node or isinstance(node[leaf], dict):
        keys = leaf_keys(cfg)
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
        same_leaf = [other for other in keys if other.split(".")[-1] == leaf]
        raise ValueError(f"unknown key {key} in {source}; did you mean {(same_leaf or near)[0]}?")
    try:
        node[leaf] = _coerce(value, node[leaf])
    except TypeError:
        raise ValueError(
            f"{key} in {source} is {value!r}, of type {type(value).__name__}; "
            f"give a {type(node[leaf]).__name__}, such as {node[leaf]!r}"
        ) from None


def _coerce(value: Any, present: Any) -> Any:
    """A value in the type of the present one; TypeError where it has none."""
    if isinstance(present, (list, tuple)):
        if isinstance(value, str):
            value = [part.strip() for part in value.strip("()[] ").split(",") if part.strip()]
        elif isinstance(value, (int, float)):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return type(present)(value)
    if isinstance(present, float) and not isinstance(value, bool):
        if isinstance(value, str):  # YAML reads 1e-4 as text
            try:
                return float(value)
            except ValueError:
                raise TypeError from None
        value = float(value) if isinstance(value, int) else value
    if isinstance(present, str) and (
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    ):
        value = "" if value is None else str(value)
    if present is not None and type(value) is not type(present):
        raise TypeError
    return value

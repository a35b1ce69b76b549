"""Converts dataclasses to a configuration and back; has every key that SAN reads, with the published values.

`san_cfg` is the whole configuration of `tools/train_net.py`: only the keys of `san.d2.config.schema`, so that a key
without effect is an error. `add_san_config` adds them to a Detectron2 configuration. Packages outside `san/d2` do not
use a cfg: `san_config`, `loss_config`, `augmentation_config` and `solver_config` convert it to their dataclasses, which
check the values. Errors of these dataclasses name their fields; here they name the keys.
"""

from __future__ import annotations

import contextlib
import copy
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from san.clip.text_cache import resolve_folder
from san.d2.api import CfgNode, get_cfg
from san.d2.config.checks import check_values
from san.d2.config.coerce import coerce
from san.d2.config.imports import import_configured
from san.d2.config.schema import FORMS, KEYS, SECTIONS, Section, part_keys
from san.d2.config.yaml_file import (
    expand_paths,
    flatten,
    merge_file,
    merge_overrides,
    override_pairs,
    plain_value,
    use_datasets,
)
from san.d2.solver import SolverConfig
from san.data.transforms import AugmentationConfig
from san.io.errors import excerpt
from san.losses import TERMS, LossConfig
from san.model.config import SANConfig
from san.model.parts import REGISTRIES, check_parts
from san.panoptic_merge import PanopticOptions
from san.record import FieldError, FieldFileError, Options
from san.registry import PartConfig, Registry, options_class


def add_san_config(cfg: CfgNode) -> None:
    """Add SAN's keys to a configuration, and set the Detectron2 keys that SAN reads to the published values.

    Args:
        cfg: Detectron2's (or the stand-in's) default configuration; changed in place.
    """
    _add_keys(cfg, dict(flatten(get_cfg())))
    if "FORMAT" in cfg.INPUT:  # read by Detectron2's own mappers; its default is BGR
        cfg.INPUT.FORMAT = "RGB"


def san_cfg() -> CfgNode:
    """Return the configuration of `tools/train_net.py`: only the keys that SAN reads, with the published values."""
    cfg = CfgNode()
    _add_keys(cfg, {})
    return cfg


def _add_keys(cfg: CfgNode, engine: Mapping[str, Any]) -> None:
    """Set every key to its default, except those with Detectron2's default, which the user may have changed."""
    for key in KEYS.values():
        if key.name in engine and plain_value(engine[key.name]) == plain_value(key.default):
            continue
        *sections, leaf = key.name.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, CfgNode())
        node[leaf] = CfgNode(new_allowed=True) if key.is_table else copy.copy(key.default)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load_config(
    path: str,
    overrides: list[str] | None = None,
    *,
    data_root: str = "",
    datasets: Sequence[str] = (),
    imports: Sequence[str] = (),
) -> CfgNode:
    """Load a configuration from a file, data set options and overrides; later ones take precedence.

    Args:
        path: plain YAML file; ``_BASE_`` names a file to start from. "" uses the defaults.
        overrides: ``KEY VALUE`` and ``KEY=VALUE`` as on the command line, see `override_pairs`.
        data_root: ``--data-root``, DATASETS.ROOT; "" keeps it unchanged.
        datasets: ``--dataset``, files of own data sets, see `use_datasets`.
        imports: ``--import``, modules to import in addition to MODEL.IMPORTS, see `import_configured`.

    Returns:
        The configuration, not frozen, checked as a whole.

    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        ValueError: it is not YAML, a key is unknown, or a value is invalid.
    """
    cfg, option_texts = san_cfg(), dict[str, Any]()
    files = merge_file(cfg, path, option_texts) if path else []
    if data_root:
        cfg.DATASETS.ROOT = data_root
    use_datasets(cfg, datasets)
    pairs = override_pairs(overrides or [])
    merge_overrides(cfg, pairs, option_texts)
    expand_paths(cfg)
    import_configured(cfg, [] if "MODEL.IMPORTS" in dict(pairs) else files, imports)
    with naming_keys():
        _set_option_types(cfg, option_texts)
    check_config(cfg)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Check every value, and build every dataclass once, so that errors are raised before any work starts.

    Raises:
        ValueError: a value is invalid; names the key, the value and the accepted values.
    """
    checked_below = (SANConfig, *_section(SANConfig).nested.values(), LossConfig)
    with naming_keys():
        for section in SECTIONS:
            if section.kind not in checked_below:
                _record(section, cfg)
    check_values(cfg)
    san_config(cfg)
    loss_config(cfg)


@contextlib.contextmanager
def naming_keys() -> Iterator[None]:
    """Context manager that makes errors about dataclass fields name the configuration keys instead."""
    try:
        yield
    except (FieldError, FieldFileError) as error:
        message = str(error)
        for name in sorted(error.names, key=len, reverse=True):
            message = message.replace(name, _key_of(name))
        raise (ValueError if isinstance(error, ValueError) else FileNotFoundError)(message) from error


def _key_of(name: str) -> str:
    """Return the key of a field's or part option's dotted name: clip.shallow_depth, fusion.options.gate."""
    for key in KEYS.values():
        if name == key.field:
            return key.name
        if key.is_table and name.startswith(f"{key.field}."):
            return f"{key.name}.{name.removeprefix(key.field + '.').upper()}"
        if name.startswith(f"{key.field}["):
            return key.name + name.removeprefix(key.field)
    return name


def _value(cfg: CfgNode, name: str) -> Any:
    """Return the value of a dotted key."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def _record(section: Section, cfg: CfgNode, **given: Any) -> Any:
    """Build the dataclass of a section from its keys, with nested dataclasses; lists become tuples."""
    values = {name: _record(_section(kind), cfg) for name, kind in section.nested.items()} | given
    for field, name in section:
        if field.name in values:
            continue
        if isinstance(field.default, PartConfig):
            values[field.name] = _part(section.kind.PLACE + field.name, name, cfg)
            continue
        value = _value(cfg, name)
        value = FORMS[name].read(value) if name in FORMS else value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return section.kind(**values)


def _part(field: str, name: str, cfg: CfgNode) -> PartConfig:
    """Return the part that a dotted field of the model names, and its options."""
    registry = REGISTRIES[field]
    name_key, options_key = part_keys(registry, name)
    part = PartConfig(_value(cfg, name_key))
    return PartConfig(part.name, _options(registry, part, _value(cfg, options_key)))


def _set_option_types(cfg: CfgNode, option_texts: Mapping[str, Any]) -> None:
    """Convert options that were read from text to the types that their parts declare; a str option keeps "007"."""
    for section in SECTIONS:
        for field, name in section:
            if isinstance(field.default, PartConfig):
                registry = REGISTRIES[section.kind.PLACE + field.name]
                name_key, options_key = part_keys(registry, name)
                _set_types(cfg, options_key, registry, _value(cfg, name_key), option_texts)
    for term in cfg.MODEL.LOSS.OPTIONS:
        _set_types(cfg, f"MODEL.LOSS.OPTIONS.{term}", TERMS, str(term).lower(), option_texts)


def _set_types(cfg: CfgNode, table: str, registry: Registry[Any], part: str, option_texts: Mapping[str, Any]) -> None:
    texts = {key.removeprefix(f"{table}."): raw for key, raw in option_texts.items() if key.startswith(f"{table}.")}
    if texts:
        node = _value(cfg, table)
        typed = _options(registry, PartConfig(part), node, texts)
        for name in texts:
            if name in node:
                node[name] = typed[name.lower()]


def _options(
    registry: Registry[Any], part: PartConfig, node: Mapping[str, Any], texts: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the options of a part as its dataclass; `texts` has the text of those that the user set."""
    hints = typing.get_type_hints(options_class(registry.get(part.name)))
    if not isinstance(node, Mapping):
        place = registry.options_place.format(name=part.name).removesuffix(".")
        raise FieldError(f"{place} is {excerpt(node)}; give its options, such as {place}.NAME VALUE", place)
    found = {}
    for name, value in node.items():
        field, raw = str(name).lower(), texts.get(name, value)
        place = registry.options_place.format(name=part.name) + field
        if hints.get(field) is str and raw == "None":
            value = raw  # from the command line, which has None for all other types
        try:
            found[field] = coerce(value, raw, hints[field]) if field in hints else value
        except TypeError as error:
            kind = type(value).__name__
            raise FieldError(f"{place} is {excerpt(value)}, of type {kind}; give {error}", place) from None
    return found


def _section(kind: type[Options]) -> Section:
    return next(section for section in SECTIONS if section.kind is kind)


def san_config(cfg: CfgNode) -> SANConfig:
    """Return the model's dataclass; raises ValueError if keys contradict each other or a part is not registered."""
    with naming_keys():
        config: SANConfig = _record(_section(SANConfig), cfg)
        check_parts(config)
        return config


def text_cache_folder(cfg: CfgNode) -> Path | None:
    """Return the folder of MODEL.CLIP.TEXT_CACHE; "auto" uses the environment variable SAN_CACHE."""
    return resolve_folder(cfg.MODEL.CLIP.TEXT_CACHE, os.environ.get("SAN_CACHE"))


def loss_config(cfg: CfgNode) -> LossConfig:
    """Return the criterion's dataclass; raises ValueError if a value is out of range."""
    with naming_keys():
        options = {
            str(term).lower(): _options(TERMS, PartConfig(str(term).lower()), node)
            for term, node in cfg.MODEL.LOSS.OPTIONS.items()
        }
        config: LossConfig = _record(_section(LossConfig), cfg, options=options)
        for part in config.parts:
            TERMS.options(part)
        return config


def augmentation_config(cfg: CfgNode, ignore_label: int = 255) -> AugmentationConfig:
    """Return the training augmentation's dataclass; labels are padded with the data set's ignore label."""
    with naming_keys():
        config: AugmentationConfig = _record(_section(AugmentationConfig), cfg, ignore_label=ignore_label)
        return config


def panoptic_options(cfg: CfgNode) -> PanopticOptions:
    """Return how queries become segments, TEST.PANOPTIC; raises ValueError if a value is out of range."""
    with naming_keys():
        options: PanopticOptions = _record(_section(PanopticOptions), cfg)
        return options


def solver_config(cfg: CfgNode) -> SolverConfig:
    """Return the optimiser's dataclass; raises ValueError if a value is out of range."""
    with naming_keys():
        clipped = {} if cfg.SOLVER.CLIP_GRADIENTS.ENABLED else {"clip_norm": 0.0}
        config: SolverConfig = _record(_section(SolverConfig), cfg, **clipped)
        return config

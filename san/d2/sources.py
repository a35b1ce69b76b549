"""Loads models for evaluation and prediction from a path and a configuration, and ensembles of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from san.d2.api import CfgNode, build_model
from san.d2.checkpoints.checkpointer import SANCheckpointer, weights_file
from san.d2.config.keys import load_config, san_config, text_cache_folder
from san.d2.data.batches import BatchSample
from san.d2.evaluate.averaging import SegmenterModel, inner_san
from san.d2.meta_arch import classes_of_dataset
from san.d2.train.across_processes import check_same_weights, load_everywhere
from san.hub import load_pretrained
from san.hub.remote import CONFIG_FILE
from san.inference.ensemble import EnsembleMember, load_ensemble
from san.inference.predictor import Predictor
from san.model.config import SANConfig
from san.model.san import SANModel

RUN_CONFIG = "config.yaml"
"""File name of a training run's configuration."""


def load_model(cfg: CfgNode) -> nn.Module:
    """Load MODEL.META_ARCHITECTURE with the weights of MODEL.WEIGHTS; every process must call it.

    Raises:
        ValueError, FileNotFoundError: the configuration or the checkpoint is missing or invalid.
    """
    model: nn.Module = build_model(cfg)
    load_everywhere(SANCheckpointer(model, ""), cfg.MODEL.WEIGHTS)
    check_same_weights(model)
    return model


def resolve_source(
    model: str, config: str | None = None, imports: Sequence[str] = ()
) -> tuple[str, str | SANConfig | CfgNode | None]:
    """Return checkpoint and configuration for `load_source`.

    Args:
        model: as in `san.hub.load_pretrained`; a training run's folder gives its last checkpoint and its
            configuration.
        config: a variant's name or a YAML file.
        imports: modules to import.

    Returns:
        A checkpoint and its model; the configuration if that is a custom meta-architecture.

    Raises:
        ValueError, FileNotFoundError: a run's folder has no checkpoint, or a configuration is invalid.
    """
    folder = Path(model)
    if (folder / RUN_CONFIG).is_file() and not (folder / CONFIG_FILE).exists():
        return weights_file(model), model_config_of(config or str(folder / RUN_CONFIG), imports)
    return model, None if config is None else model_config_of(config, imports)


def model_config_of(config: str, imports: Sequence[str]) -> str | SANConfig | CfgNode:
    """Return a variant's name unchanged, or the model that a YAML file describes."""
    if Path(config).suffix not in (".yaml", ".yml"):
        return config
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"], imports=imports)  # this machine may not have the run's device
    return san_config(cfg) if cfg.MODEL.META_ARCHITECTURE == "SAN" else cfg


def load_source(source: str, config: str | SANConfig | CfgNode | None, **remote: Any) -> SANModel:
    """Load the model of a result of `resolve_source`; `remote` are options of `san.hub.load_pretrained`."""
    if config is None or isinstance(config, (str, SANConfig)):
        return load_pretrained(source, config, **remote)
    config.MODEL.WEIGHTS = source
    return inner_san(load_model(config)).model


def load_ensemble_model(cfg: CfgNode) -> SegmenterModel:
    """Load the ensemble that MODEL.WEIGHTS lists, for an evaluation; every process must call it and reads all files.

    Raises:
        ValueError, FileNotFoundError: the file, or one that it names, is missing or invalid.
    """
    if cfg.TEST.ORACLE:
        raise ValueError(
            f"TEST.ORACLE analyses the proposals of one model, but MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} lists an "
            "ensemble; set TEST.ORACLE False, or evaluate one of its models"
        )

    def load(member: EnsembleMember) -> Predictor:
        model = load_source(*resolve_source(member.model, member.config, cfg.MODEL.IMPORTS))
        return Predictor(
            model,
            short_sides=member.short_sides or (model.config.side_adapter.image_size,),
            flip=member.flip,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            device=cfg.MODEL.DEVICE,
            max_pixels=None,
            compiled=cfg.MODEL.COMPILE,
            text_cache=text_cache_folder(cfg),
        )

    model = SegmenterModel(load_ensemble(cfg.MODEL.WEIGHTS, load), _classes)
    check_same_weights(model)
    return model


def _classes(sample: BatchSample) -> tuple[Any, ...]:
    return classes_of_dataset(sample["dataset_name"])

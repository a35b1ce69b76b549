"""Models to evaluate or to predict with: what a path and a configuration mean, and the ensembles of them."""

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
"""What a training run calls its configuration."""


def load_model(cfg: CfgNode) -> nn.Module:
    """MODEL.META_ARCHITECTURE with the weights of MODEL.WEIGHTS; every process must call it.

    Raises:
        ValueError, FileNotFoundError: the configuration or the checkpoint cannot serve.
    """
    model: nn.Module = build_model(cfg)
    load_everywhere(SANCheckpointer(model, ""), cfg.MODEL.WEIGHTS)
    check_same_weights(model)
    return model


def resolve_source(
    model: str, config: str | None = None, imports: Sequence[str] = ()
) -> tuple[str, str | SANConfig | CfgNode | None]:
    """A path and a configuration as `load_source` takes them.

    Args:
        model: as `san.hub.load_pretrained` takes it; of a training run's folder its last checkpoint and its
            configuration are taken.
        config: a variant's name or a YAML file.
        imports: modules to import.

    Returns:
        A checkpoint and the model it belongs to; the configuration where that is a meta-architecture of the user's.

    Raises:
        ValueError, FileNotFoundError: a run's folder holds no checkpoint, or a configuration is wrong.
    """
    folder = Path(model)
    if (folder / RUN_CONFIG).is_file() and not (folder / CONFIG_FILE).exists():
        return weights_file(model), model_config_of(config or str(folder / RUN_CONFIG), imports)
    return model, None if config is None else model_config_of(config, imports)


def model_config_of(config: str, imports: Sequence[str]) -> str | SANConfig | CfgNode:
    """A variant's name as it is, a YAML file as the model that it describes."""
    if Path(config).suffix not in (".yaml", ".yml"):
        return config
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"], imports=imports)  # the run's own device may not be here
    return san_config(cfg) if cfg.MODEL.META_ARCHITECTURE == "SAN" else cfg


def load_source(source: str, config: str | SANConfig | CfgNode | None, **remote: Any) -> SANModel:
    """The model of what `resolve_source` gives; `remote` are options of `san.hub.load_pretrained`."""
    if config is None or isinstance(config, (str, SANConfig)):
        return load_pretrained(source, config, **remote)
    config.MODEL.WEIGHTS = source
    return inner_san(load_model(config)).model


def load_ensemble_model(cfg: CfgNode) -> SegmenterModel:
    """The ensemble that MODEL.WEIGHTS lists, for an evaluation; every process must call it and reads all files.

    Raises:
        ValueError, FileNotFoundError: the file, or one that it names, cannot serve.
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

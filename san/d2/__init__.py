"""The framework side of SAN: configuration, data sets, training and evaluation on Detectron2 or its stand-in.

Everything about the engine goes through `san.d2.api`. Importing this package registers the meta-architecture ``SAN``
and nothing else; data sets are registered by `register_datasets`, the configuration keys by `add_san_config`. A script
of Detectron2 takes its names from here (docs/detectron2.md).
"""

from __future__ import annotations

from san.d2.checkpoints.checkpointer import SANCheckpointer
from san.d2.config.keys import add_san_config, load_config, san_cfg
from san.d2.data.datasets import (
    class_texts,
    load_records,
    metadata_of,
    prepare_datasets,
    register_custom,
    register_datasets,
    register_folder,
)
from san.d2.meta_arch import SAN
from san.d2.recipe import SANRecipe

__all__ = [
    "SAN",
    "SANCheckpointer",
    "SANRecipe",
    "add_san_config",
    "class_texts",
    "load_config",
    "load_records",
    "metadata_of",
    "prepare_datasets",
    "register_custom",
    "register_datasets",
    "register_folder",
    "san_cfg",
]

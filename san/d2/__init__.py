"""The framework side of SAN: configuration, data sets, training and evaluation on Detectron2 or its stand-in.

All access to Detectron2 or its stand-in goes through `san.d2.api`. Importing this package registers only the
meta-architecture ``SAN``. `register_datasets` registers data sets, and `add_san_config` adds configuration keys.
Detectron2 scripts import SAN's names from this package (docs/detectron2.md).
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

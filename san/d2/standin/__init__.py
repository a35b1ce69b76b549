"""A pure-Python stand-in for the names of Detectron2 that `san.d2.api` serves, for machines without Detectron2.

Same names, same behaviour, same files on disk, built on what Detectron2 itself is built on: fvcore, iopath, yacs,
torch.distributed, TensorBoard. Each module names the module of Detectron2 that it replaces and contains only what SAN
uses. `tests/d2/test_parity.py` compares the two if Detectron2 is installed. Intended differences are documented in
the modules (YAML and checkpoints are only read as plain data).

Source: docs/architecture.md#detectron2.
"""

from __future__ import annotations

from san.d2.standin import comm, hooks
from san.d2.standin.catalog import DatasetCatalog, MetadataCatalog
from san.d2.standin.checkpoint import DetectionCheckpointer
from san.d2.standin.config import CfgNode, get_cfg
from san.d2.standin.defaults import default_argument_parser
from san.d2.standin.evaluation import DatasetEvaluator, verify_results
from san.d2.standin.events import EventStorage, EventWriter, TensorboardXWriter, get_event_storage
from san.d2.standin.launch import launch
from san.d2.standin.logger import setup_logger
from san.d2.standin.modeling import META_ARCH_REGISTRY, build_model
from san.d2.standin.train_loop import HookBase, TrainerBase

__all__ = [
    "META_ARCH_REGISTRY",
    "CfgNode",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DetectionCheckpointer",
    "EventStorage",
    "EventWriter",
    "HookBase",
    "MetadataCatalog",
    "TensorboardXWriter",
    "TrainerBase",
    "build_model",
    "comm",
    "default_argument_parser",
    "get_cfg",
    "get_event_storage",
    "hooks",
    "launch",
    "setup_logger",
    "verify_results",
]

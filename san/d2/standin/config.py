"""Stands in for `detectron2.config`: the configuration tree and the defaults of the keys SAN reads.

fvcore's `CfgNode` does the work: ``_BASE_`` files, ``merge_from_list``, type checks, freezing. Differences on purpose:
YAML is read as plain data only (Detectron2 also runs Python tags unless told otherwise), and a file of another
configuration version, or one that is not a table of keys, is a ValueError with a remedy.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode as _FvcoreCfgNode

CONFIG_VERSION = 2
"""The layout of Detectron2's configuration these defaults belong to."""

_DEFAULTS: dict[str, Any] = {
    "VERSION": CONFIG_VERSION,
    # Folder of the run: log, configuration, metrics, checkpoints.
    "OUTPUT_DIR": "./output",
    # Seed of all randomness; below 0 one is drawn, and runs differ.
    "SEED": -1,
    # Let cuDNN time its algorithms at the start; pays where sizes do not change.
    "CUDNN_BENCHMARK": False,
    # "", "highest", "high" or "medium": torch.set_float32_matmul_precision; "" leaves PyTorch's own.
    "FLOAT32_PRECISION": "",
    "MODEL": {
        # Name in META_ARCH_REGISTRY.
        "META_ARCHITECTURE": "GeneralizedRCNN",
        # "cuda" or "cpu".
        "DEVICE": "cuda",
        # Checkpoint to start from, a path or URL; "" for none.
        "WEIGHTS": "",
    },
    "INPUT": {
        # Short sides in pixels of which training draws one.
        "MIN_SIZE_TRAIN": (800,),
        # Longest long side in training, pixels.
        "MAX_SIZE_TRAIN": 1333,
        # Short side in evaluation, pixels; 0 keeps the image's own.
        "MIN_SIZE_TEST": 800,
        # Longest long side in evaluation, pixels.
        "MAX_SIZE_TEST": 1333,
        # Size of the training crop; its meaning is up to the augmentation.
        "CROP": {"SIZE": [0.9, 0.9]},
    },
    # Names in DatasetCatalog.
    "DATASETS": {"TRAIN": (), "TEST": ()},
    # Loading processes per worker.
    "DATALOADER": {"NUM_WORKERS": 4},
    "SOLVER": {
        # Images per iteration over all workers together.
        "IMS_PER_BATCH": 16,
        # Length of training in iterations.
        "MAX_ITER": 40000,
        # Learning rate before schedule.
        "BASE_LR": 0.001,
        # Weight decay, and that of the parameters of normalisation layers.
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        # A checkpoint every so many iterations.
        "CHECKPOINT_PERIOD": 5000,
        # Mixed precision.
        "AMP": {"ENABLED": False},
        # Clip the gradient at CLIP_VALUE.
        "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_VALUE": 1.0},
    },
    "TEST": {
        # Evaluate every so many iterations; 0 only at the end.
        "EVAL_PERIOD": 0,
        # [[task, metric, value, tolerance], ...] that the final evaluation must meet.
        "EXPECTED_RESULTS": [],
    },
}


class CfgNode(_FvcoreCfgNode):  # type: ignore[misc]
    """A configuration tree: attributes and keys, typed merging, freezing.

    As fvcore's `CfgNode`, with a check of the file and of its ``VERSION`` on `merge_from_file`.
    """

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merges a YAML file, its ``_BASE_`` files first, into this tree.

        Args:
            cfg_filename: path of the file.
            allow_unsafe: takes Detectron2's argument; Python tags are refused whatever it says.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not plain YAML data, not a table of keys, of another version, or has a value of
                another type than the key's.
            KeyError: if it has a key that the tree has not.
        """
        if not Path(cfg_filename).is_file():
            raise FileNotFoundError(f"config file '{cfg_filename}' does not exist; check --config-file")
        try:
            loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=False)
        except (yaml.YAMLError, TypeError, AttributeError) as error:
            raise ValueError(
                f"config file '{cfg_filename}' is not a plain YAML table of keys and values: {_cut(error)}; "
                "correct it, and leave out Python tags"
            ) from error
        if not isinstance(loaded, dict):
            raise ValueError(
                f"config file '{cfg_filename}' holds {_cut(repr(loaded))}; it must be a table of keys and values"
            )
        own = self.get("VERSION", CONFIG_VERSION)
        version = loaded.get("VERSION")
        if version is None:
            logging.getLogger(__name__).warning(
                "Config '%s' has no VERSION. Assuming it to be compatible with v%s.", cfg_filename, own
            )
        elif version != own:
            raise ValueError(
                f"config file '{cfg_filename}' has VERSION {_cut(repr(version))}; this configuration is VERSION {own}"
            )
        self.merge_from_other_cfg(type(self)(loaded))

    def merge_from_other_cfg(self, cfg_other: Any) -> None:
        """As fvcore's, with messages of bounded length: yacs writes whole values into them."""
        with _short_messages():
            super().merge_from_other_cfg(cfg_other)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """As fvcore's, with messages of bounded length."""
        with _short_messages():
            super().merge_from_list(cfg_list)


def _cut(message: object) -> str:
    """A message of bounded length, without its middle."""
    text = str(message)
    return text if len(text) <= 1000 else f"{text[:600]} [...] {text[-300:]}"


@contextlib.contextmanager
def _short_messages() -> Iterator[None]:
    """Cuts the messages of errors."""
    try:
        yield
    except (AssertionError, KeyError, ValueError) as error:
        raise type(error)(_cut(error.args[0] if error.args else "")) from None


def get_cfg() -> CfgNode:
    """Makes a fresh copy of the default configuration.

    Returns:
        Detectron2's defaults of the keys SAN reads, and no others.
    """
    cfg: CfgNode = CfgNode(_DEFAULTS).clone()
    return cfg

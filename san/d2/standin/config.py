"""Stands in for `detectron2.config`: the configuration tree and the defaults of the keys SAN reads.

fvcore's `CfgNode` does the work: ``_BASE_`` files, ``merge_from_list``, type checks, freezing. Differences on purpose:
YAML is read as plain data only (Detectron2 also executes Python tags by default), and a file of another
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
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "DEVICE": "cuda",
        "WEIGHTS": "",
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,),
        "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333,
        "CROP": {"SIZE": [0.9, 0.9]},
    },
    "DATASETS": {"TRAIN": (), "TEST": ()},
    "DATALOADER": {"NUM_WORKERS": 4},
    "SOLVER": {
        "IMS_PER_BATCH": 16,
        "REFERENCE_WORLD_SIZE": 0,
        "MAX_ITER": 40000,
        "BASE_LR": 0.001,
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "WARMUP_FACTOR": 0.001,
        "WARMUP_ITERS": 1000,
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        "CHECKPOINT_PERIOD": 5000,
        "AMP": {"ENABLED": False},
        "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_VALUE": 1.0},
    },
    "TEST": {
        "AUG": {
            "ENABLED": False,
            "FLIP": True,
            "MAX_SIZE": 4000,
            "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        },
        "EVAL_PERIOD": 0,
        "EXPECTED_RESULTS": [],
    },
}
"""Detectron2's defaults of the keys that SAN reads, which mean what docs/configuration.md says."""


class CfgNode(_FvcoreCfgNode):  # type: ignore[misc]
    """A configuration tree: attributes and keys, typed merging, freezing.

    As fvcore's `CfgNode`, with a check of the file and of its ``VERSION`` on `merge_from_file`.
    """

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merges a YAML file, its ``_BASE_`` files first, into this tree.

        Args:
            cfg_filename: path of the file.
            allow_unsafe: accepted for compatibility; Python tags are always refused.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: if the file is not plain YAML data, not a table of keys, of another version, or has a value of
                another type than the key's.
            KeyError: if it has a key that is not in the tree.
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
        """As fvcore's, with messages of limited length: yacs includes whole values."""
        with _short_messages():
            super().merge_from_other_cfg(cfg_other)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """As fvcore's, with messages of limited length."""
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

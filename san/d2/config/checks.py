"""What the values of a configuration may be, where no dataclass of a model's part says it: ranges, names, devices."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from san.clip.arch import IMAGE_SIZE
from san.clip.record import check_range
from san.d2.api import CfgNode
from san.d2.config.yaml_file import flatten
from san.d2.user_modules import check_model_name
from san.errors import excerpt

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Legal values of SOLVER.AMP.DTYPE."""

FLOAT32_PRECISIONS = ("", "highest", "high", "medium")
"""Legal values of FLOAT32_PRECISION."""

_COUNT, _ABOVE_0 = (0, 10**9), (1, 10**9)
_FACTOR, _SHARE = (0, 10**6), (0, 1)
RANGES: dict[str, tuple[float, float]] = {
    "DATALOADER.MAX_BAD_SHARE": _SHARE,
    "DATALOADER.NUM_WORKERS": (0, 1024),
    "DATALOADER.TIMEOUT": (0, 10**7),
    "DATASETS.TEST_SUBSET": _COUNT,
    "INPUT.AUGMENT.BRIGHTNESS": (0, 255),
    "INPUT.AUGMENT.COLOR_PROB": _SHARE,
    "INPUT.AUGMENT.CONTRAST": (0, 1000),
    "INPUT.AUGMENT.FLIP_PROB": _SHARE,
    "INPUT.AUGMENT.HUE_DEGREES": (0, 360),
    "INPUT.AUGMENT.SATURATION": (0, 1000),
    "INPUT.CROP.SIZE": IMAGE_SIZE,
    "INPUT.MAX_SIZE_TEST": (1, 10**6),
    "INPUT.MAX_SIZE_TRAIN": (1, 10**6),
    "INPUT.MIN_SIZE_TEST": IMAGE_SIZE,
    "INPUT.MIN_SIZE_TRAIN": IMAGE_SIZE,
    "MODEL.LOSS.CLASS_WEIGHT": _FACTOR,
    "MODEL.LOSS.COST_CLASS": _FACTOR,
    "MODEL.LOSS.COST_DICE": _FACTOR,
    "MODEL.LOSS.COST_MASK": _FACTOR,
    "MODEL.LOSS.DICE_WEIGHT": _FACTOR,
    "MODEL.LOSS.IMPORTANCE_RATIO": _SHARE,
    "MODEL.LOSS.MASK_WEIGHT": _FACTOR,
    "MODEL.LOSS.NO_OBJECT_WEIGHT": (0.0, 10**6),
    "MODEL.LOSS.NUM_POINTS": (1, 10**6),
    "MODEL.LOSS.OVERSAMPLE_RATIO": (1, 100),
    "SEED": (-1, 2**63 - 1),
    "SOLVER.ACCUMULATION_STEPS": (1, 65536),
    "SOLVER.CHECKPOINT_KEEP": _COUNT,
    "SOLVER.CHECKPOINT_PERIOD": _ABOVE_0,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (0, 10**9),
    "SOLVER.IMS_PER_BATCH": (1, 65536),
    "SOLVER.LOG_PERIOD": _ABOVE_0,
    "SOLVER.MAX_ITER": _ABOVE_0,
    "SOLVER.MAX_NONFINITE": (1, 10**6),
    "SOLVER.POLY_POWER": (0, 1000),
    "SOLVER.WEIGHT_DECAY": (0, 1000),
    "SOLVER.WEIGHT_DECAY_EMBED": (0, 1000),
    "SOLVER.WEIGHT_DECAY_NORM": (0, 1000),
    "TEST.EVAL_PERIOD": _COUNT,
    "TEST.NUM_PANELS": (0, 1000),
    "TEST.PARTIAL_PERIOD": (0, 10**7),
    "VERSION": (1, 2),
}
"""Smallest and largest number of every key that the dataclasses of `san.model.config` do not check, as there
(`check_ranges`): a smallest one that is a float is itself refused. Of a list every number is checked."""


def check_numbers(cfg: CfgNode) -> None:
    """Refuses numbers outside `RANGES`.

    Raises:
        ValueError: with the key, the value and the range.
    """
    values = dict(flatten(cfg))
    for key, limits in RANGES.items():
        value = values[key]
        for number in value if isinstance(value, (list, tuple)) else [value]:
            check_range(number, limits, key, key)


def check_values(cfg: CfgNode) -> None:
    """Refuses what no dataclass checks, so that all errors come before any work and any memory is taken.

    Raises:
        ValueError: with the key, the value seen and the values accepted.
    """
    if cfg.SOLVER.AMP.DTYPE not in AMP_DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}; set it to one of {', '.join(AMP_DTYPES)}")
    if cfg.WANDB.MODE not in ("offline", "online", "disabled"):
        raise ValueError(f"WANDB.MODE is {cfg.WANDB.MODE!r}; set it to offline, online or disabled")
    if cfg.FLOAT32_PRECISION not in FLOAT32_PRECISIONS:
        raise ValueError(
            f"FLOAT32_PRECISION is {cfg.FLOAT32_PRECISION!r}; set it to highest, high or medium, or leave it empty"
        )
    if not cfg.OUTPUT_DIR.strip():
        raise ValueError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, but a run needs a folder; set it, to output/run for instance"
        )
    if "://" in cfg.OUTPUT_DIR:
        raise ValueError(
            f"OUTPUT_DIR is {excerpt(cfg.OUTPUT_DIR)}, an address, but a run is written to a folder of this "
            "machine; set it to a folder, and upload that afterwards"
        )
    check_model_name(cfg.MODEL.META_ARCHITECTURE)
    _check_device(cfg.MODEL.DEVICE)
    _check_expected(cfg.TEST.EXPECTED_RESULTS)
    check_numbers(cfg)
    if cfg.DETERMINISTIC and cfg.SEED < 0:
        raise ValueError("DETERMINISTIC is set but SEED is -1, drawn anew in every run; set SEED to 0 or more")


def _check_device(device: str) -> None:
    """MODEL.DEVICE must be one that this machine has."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"MODEL.DEVICE is {device!r}; set it to cpu, cuda or cuda:N")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {device!r} but PyTorch sees no GPU; set it to cpu")
    index, count = torch.device(device).index, torch.cuda.device_count()
    if index is not None and index >= count:
        raise ValueError(
            f"MODEL.DEVICE is {device!r} but PyTorch sees {count} GPUs; set it to cuda:{count - 1} or less"
        )


def _check_expected(entries: Any) -> None:
    """TEST.EXPECTED_RESULTS must be of the right shape; `san.d2.run` looks up its names."""
    for entry in entries:
        fits = isinstance(entry, (list, tuple)) and len(entry) == 4
        fits = fits and all(isinstance(name, str) for name in entry[:2])
        fits = fits and all(type(number) in (int, float) and math.isfinite(number) for number in entry[2:])
        if not fits or entry[3] < 0:
            raise ValueError(
                f"TEST.EXPECTED_RESULTS holds {excerpt(entry)}; give lists of [data set, metric, value, tolerance], "
                "finite and the tolerance 0 or more, such as [['sem_seg', 'mIoU', 40.0, 1.0]]"
            )

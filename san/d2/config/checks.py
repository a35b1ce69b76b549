"""Checks of configuration values that no dataclass makes: names, devices, expected results."""

from __future__ import annotations

import math
from typing import Any

import torch

from san.d2.api import CfgNode
from san.d2.config.imports import check_model_name
from san.devices import checked_device
from san.io.errors import excerpt

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Legal values of SOLVER.AMP.DTYPE."""


def check_values(cfg: CfgNode) -> None:
    """Check values that no dataclass checks, before any work starts or memory is allocated.

    Raises:
        ValueError: a value is invalid; names the key, the value and the accepted values.
    """
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
    checked_device(cfg.MODEL.DEVICE, "MODEL.DEVICE", types=("cpu", "cuda"))
    _check_expected(cfg.TEST.EXPECTED_RESULTS)
    if cfg.DETERMINISTIC and cfg.SEED < 0:
        raise ValueError("DETERMINISTIC is set but SEED is -1, drawn in every run; set SEED to 0 or more")


def _check_expected(entries: Any) -> None:
    """Check the format of TEST.EXPECTED_RESULTS; `san.d2.run` checks its names."""
    for entry in entries:
        fits = isinstance(entry, (list, tuple)) and len(entry) == 4
        fits = fits and all(isinstance(name, str) for name in entry[:2])
        fits = fits and all(type(number) in (int, float) and math.isfinite(number) for number in entry[2:])
        if not fits or entry[3] < 0:
            raise ValueError(
                f"TEST.EXPECTED_RESULTS holds {excerpt(entry)}; give lists of [data set, metric, value, tolerance], "
                "finite and the tolerance 0 or more, such as [['sem_seg', 'mIoU', 40.0, 1.0]]"
            )

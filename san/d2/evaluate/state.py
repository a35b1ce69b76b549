"""Packs the counts of an evaluator as tensors and plain data, and validates them when they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from san.evaluation import ConfusionMatrix
from san.evaluation.oracle import OracleCounts
from san.evaluation.panoptic_evaluation import PanopticEvaluation
from san.io.errors import excerpt
from san.io.plain_file import is_file
from san.record import parse_json

Row = tuple[str, np.ndarray, np.ndarray]  # file, prediction and truth of a panel


def pack_state(
    matrix: ConfusionMatrix,
    entries: list[dict[str, Any]],
    rows: list[Row],
    oracle: OracleCounts | None,
    panoptic: PanopticEvaluation | None = None,
) -> dict[str, Any]:
    """Return the state of an evaluator, for `unpack_state`, `unpack_oracle` and `unpack_panoptic`.

    Args:
        matrix: its counts (C, C).
        entries: run-length entries of its predictions.
        rows: rows of its panel.
        oracle: its error analysis; None without one.
        panoptic: its counts of segments; None for label maps alone.
    """
    return {
        "counts": torch.from_numpy(matrix.counts),
        "rle": _as_tensor(entries),
        "rows": [(file, torch.from_numpy(prediction), torch.from_numpy(truth)) for file, prediction, truth in rows],
        "oracle": {name: torch.from_numpy(counts) for name, counts in oracle.counts.items()} if oracle else {},
        "panoptic": _packed_panoptic(panoptic.state) if panoptic else {},
    }


def unpack_state(
    state: dict[str, Any], num_classes: int, ignore_label: int
) -> tuple[np.ndarray, list[dict[str, Any]], list[Row]]:
    """Return the counts (C, C), run-length entries and panel rows of an evaluator's state.

    Raises:
        ValueError: it is not such a state.
    """
    try:
        counts, entries = state["counts"].numpy(), _from_tensor(state["rle"])
        rows = [(file, prediction.numpy(), truth.numpy()) for file, prediction, truth in state["rows"]]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a state of an evaluation ({type(error).__name__}: {error})") from error
    if counts.dtype != np.int64 or counts.shape != (num_classes, num_classes) or (counts < 0).any():
        raise ValueError(f"its counts are not numbers of pixels of {num_classes} classes")
    if not isinstance(entries, list) or not all(isinstance(each, dict) and "file_name" in each for each in entries):
        raise ValueError("its predictions are not run-length entries")
    for file, prediction, truth in rows:
        ConfusionMatrix(num_classes, ignore_label).update(prediction, truth, file_name=excerpt(file))
        if not isinstance(file, str) or not is_file(Path(file)):
            raise ValueError(f"there is no image {excerpt(file)}")
    return counts, entries, rows


def unpack_oracle(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the counts of the error analysis in an evaluator's state; `OracleCounts.merge` checks them.

    Raises:
        ValueError: there are none.
    """
    try:
        return {name: values.numpy() for name, values in state["oracle"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it holds no error analysis ({type(error).__name__}: {error})") from error


def unpack_panoptic(state: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of segments in an evaluator's state; `PanopticEvaluation.merge` checks them.

    Raises:
        ValueError: there are none.
    """
    try:
        packed = state["panoptic"]
        arrays = {
            part: {name: values.numpy() for name, values in packed[part].items()} for part in ("counts", "instances")
        }
        return {**arrays, **{part: _from_tensor(packed[part]) for part in ("images", "written")}}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it holds no counts of segments ({type(error).__name__}: {error})") from error


def _packed_panoptic(state: dict[str, Any]) -> dict[str, Any]:
    arrays = {
        part: {name: torch.from_numpy(values) for name, values in state[part].items()}
        for part in ("counts", "instances")
    }
    return {**arrays, **{part: _as_tensor(state[part]) for part in ("images", "written")}}


def _as_tensor(content: Any) -> torch.Tensor:
    """Return plain data as the bytes of its JSON."""
    return torch.frombuffer(bytearray(json.dumps(content), "utf-8"), dtype=torch.uint8)


def _from_tensor(packed: torch.Tensor) -> Any:
    return parse_json(packed.numpy().tobytes().decode("utf-8"))

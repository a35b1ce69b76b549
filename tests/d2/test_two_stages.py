"""configs/ablations/stages as they stand, on the tiny model: what each stage trains, and what it leaves to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from san.d2.config.keys import load_config
from san.d2.run import run
from tests.d2.conftest import as_arguments

STAGES = Path(__file__).resolve().parents[2] / "configs/ablations/shapes/stages"


def train(stage: str, options: dict[str, Any], **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The final weights, and the first logged losses."""
    folder = Path(options["OUTPUT_DIR"]) / stage
    own = options | {"OUTPUT_DIR": str(folder), "SOLVER.MAX_ITER": 3, "MODEL.CLIP.TRAIN_POS_EMBED": True} | changes
    run(load_config(str(STAGES / f"{stage}.yaml"), as_arguments(own)))
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return weights, json.loads((folder / "metrics.json").read_text().splitlines()[0])


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """First names of the parts whose tensors differ."""
    return {key.split(".")[1] for key in before if not torch.equal(before[key], after[key])}


def test_masks_first_then_names(options: dict[str, Any]) -> None:
    drawn, _ = train("masks", options | {"OUTPUT_DIR": options["OUTPUT_DIR"] + "0"}, **{"SOLVER.BASE_LR": 1e-30})
    masks, losses = train("masks", options)
    assert {"loss_mask", "loss_dice_0"} <= losses.keys() and "loss_ce" not in losses
    assert changed(drawn, masks) == {"side_adapter", "mask_head", "shallow_clip"}
    weights = str(Path(options["OUTPUT_DIR"]) / "masks/model_final.pth")
    names, losses = train("names", options, **{"MODEL.WEIGHTS": weights})
    assert {"loss_ce", "loss_ce_0"} <= losses.keys() and "loss_mask" not in losses
    assert changed(masks, names) == {"bias_head", "text_classifier"}

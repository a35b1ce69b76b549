"""SOLVER.REFERENCE_WORLD_SIZE: scaled as Detectron2 does it, once, and written down in the scaled form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from san.cli.main import main
from san.d2.config.keys import load_config
from san.d2.config.world_size import scale_to_processes
from tests.d2.conftest import as_arguments

SCALED = {
    "SOLVER.IMS_PER_BATCH": (16, 32),
    "SOLVER.BASE_LR": (0.1, 0.2),
    "SOLVER.REFERENCE_WORLD_SIZE": (8, 16),
    "SOLVER.MAX_ITER": (5000, 2500),
    "SOLVER.WARMUP_ITERS": (100, 50),
    "SOLVER.CHECKPOINT_PERIOD": (1000, 500),
    "TEST.EVAL_PERIOD": (1, 1),
}
"""Values for 8 and for 16 processes: those of Detectron2's documentation, and a period that cannot be halved."""


def values(cfg: Any) -> dict[str, Any]:
    return {name: cfg[name.split(".")[0]][name.split(".")[1]] for name in SCALED}


def test_everything_that_depends_on_the_batch_is_scaled() -> None:
    cfg = load_config("", as_arguments({name: before for name, (before, _) in SCALED.items()}))
    scaled = scale_to_processes(cfg, 16)
    assert values(scaled) == {name: after for name, (_, after) in SCALED.items()}
    assert values(cfg) == {name: before for name, (before, _) in SCALED.items()}
    assert scale_to_processes(scaled, 16) is scaled
    assert scaled.MODEL == cfg.MODEL
    decay = scaled.SOLVER.EMA.DECAY
    assert decay == pytest.approx(0.999**2)
    back = scale_to_processes(scaled, 8)
    assert values(back) == values(cfg) | {"TEST.EVAL_PERIOD": 2}


@pytest.mark.detectron2
@pytest.mark.parametrize("processes", [1, 3, 16])
def test_values_are_those_of_detectron2(processes: int) -> None:
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultTrainer

    theirs = get_cfg()
    pairs = as_arguments({name: before for name, (before, _) in SCALED.items() if "EVAL" not in name})
    theirs.merge_from_list(pairs)
    found = values(DefaultTrainer.auto_scale_workers(theirs, processes)) | {"TEST.EVAL_PERIOD": 0}
    assert values(scale_to_processes(load_config("", [*pairs, "TEST.EVAL_PERIOD", "0"]), processes)) == found


def test_0_scales_nothing_and_an_odd_batch_is_refused() -> None:
    cfg = load_config("")
    assert scale_to_processes(cfg, 3) is cfg
    cfg = load_config("", ["SOLVER.REFERENCE_WORLD_SIZE", "5"])
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 32 and cannot be divided by SOLVER.REFERENCE_WORLD_SIZE 5"):
        scale_to_processes(cfg, 3)
    cfg = load_config("", ["SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.IMS_PER_BATCH", "60000"])
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH is 120000; set it within"):
        scale_to_processes(cfg, 2)


def test_a_run_records_the_scaled_values_and_resumes_with_them(options: dict[str, Any], tmp_path: Path) -> None:
    """With the command, and with the recorded configuration."""
    changes = {"SOLVER.REFERENCE_WORLD_SIZE": 2, "SOLVER.CHECKPOINT_PERIOD": 2}
    arguments = as_arguments(options | changes)
    folder = Path(options["OUTPUT_DIR"])

    def rates() -> list[float]:
        rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        return [row["lr"] for row in rows if "lr" in row]

    assert main(["train", *arguments]) == 0
    cfg = load_config(str(folder / "config.yaml"))
    wanted = {"IMS_PER_BATCH": 2, "BASE_LR": 5e-4, "MAX_ITER": 12, "CHECKPOINT_PERIOD": 4, "REFERENCE_WORLD_SIZE": 1}
    assert {name: cfg.SOLVER[name] for name in wanted} == wanted
    scaled = "Scaled from 2 processes (SOLVER.REFERENCE_WORLD_SIZE) to 1: SOLVER.IMS_PER_BATCH 2,"
    assert scaled in (folder / "log.txt").read_text()
    whole = rates()
    assert len(whole) == 12
    for start in ([*arguments], ["--config-file", str(folder / "config.yaml")]):
        (folder / "model_final.pth").unlink()
        (folder / "last_checkpoint").write_text("model_0000007.pth")
        assert main(["train", "--resume", *start]) == 0
        assert rates() == whole


def test_an_evaluation_is_not_scaled(make_cfg: Callable[..., Any], reference: Path) -> None:
    from san.d2.run import run

    changes = {"MODEL__WEIGHTS": str(reference / "model_final.pth"), "DATASETS__TEST": ["voc_sem_seg_val"]}
    assert run(make_cfg(SOLVER__REFERENCE_WORLD_SIZE=3, **changes), eval_only=True)

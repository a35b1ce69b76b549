"""SOLVER.EARLY_STOP: when a run ends, what it leaves, and how it is resumed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from san.checkpoint import load_checkpoint_file
from san.cli.main import main
from san.d2.run import run
from san.d2.train.early_stop import EarlyStopHook
from tests.d2.conftest import as_arguments

STILL = {
    "SOLVER.BASE_LR": 1e-12,  # nothing is learnt, so the first evaluation stays the best
    "DATASETS.TEST": ["voc_sem_seg_val"],
    "TEST.EVAL_PERIOD": 1,
    "TEST.NUM_PANELS": 0,
    "SOLVER.EARLY_STOP.METRIC": "voc_sem_seg_val/mIoU",
    "SOLVER.EARLY_STOP.PATIENCE": 2,
    "TEST.EXPECTED_RESULTS": [["voc_sem_seg_val", "mIoU", 0.0, 100.0]],
}


def hook_of(values: list[float], patience: int) -> EarlyStopHook:
    hook = EarlyStopHook("a/mIoU", patience, dict)
    for iteration, value in enumerate(values):
        hook.count(value, iteration)
    return hook


@pytest.mark.parametrize(
    ("values", "due"),
    [
        ([], False),
        ([5, 4], False),
        ([5, 4, 4.9], True),
        ([5, 4, 6, 6], False),
        ([5, 4, 6, 6, 6], True),
        ([math.nan, math.nan], True),
        ([math.nan, 1, 2], False),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_a_better_value(values: list[float], due: bool) -> None:
    assert hook_of(values, 2).due == due


def test_an_evaluation_counts_once_and_the_state_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    hook = hook_of([5, 4, 3], 9)
    hook.count(1, 2)
    assert (hook.since, hook.best) == (2, 5)
    other = EarlyStopHook("a/mIoU", 9, dict)
    other.load_state_dict(hook.state_dict())
    assert (other.since, other.best, other.iteration) == (2, 5, 2)
    for odd in ({}, {"metric": "a/mIoU"}, hook.state_dict() | {"since": "x"}, hook.state_dict() | {"metric": "b/mIoU"}):
        other = EarlyStopHook("a/mIoU", 9, dict)
        other.load_state_dict(odd)
        assert (other.since, other.iteration) == (0, -1)
    assert caplog.text.count("counted from zero") == 4


def iterations(folder: Path) -> list[int]:
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [row["iteration"] for row in rows if "total_loss" in row]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_ends_cleanly_and_resumes(options: dict[str, Any], processes: int) -> None:
    """It ends again with the same patience, resumes with a larger one, and is whole each time."""
    folder, flags = Path(options["OUTPUT_DIR"]), ["--num-gpus", str(processes), "--dist-url", "auto"]
    given = as_arguments(options | STILL)
    assert main(["train", *flags, *given]) == 0
    assert iterations(folder) == [0, 1, 2]
    log = (folder / "log.txt").read_text()
    assert "Training ends early, after iteration 2 of 6: voc_sem_seg_val/mIoU has not risen above" in log
    assert log.count("iter 3/6") == 1 and "iter 4/6" not in log
    content = load_checkpoint_file(folder / "model_final.pth")
    assert content["iteration"] == 2 and (folder / "curves.png").is_file()
    assert content["trainer"]["hooks"]["EarlyStopHook"]["since"] == 2
    assert main(["train", "--resume", *flags, *given]) == 0
    assert iterations(folder) == [0, 1, 2]
    assert main(["train", "--resume", *flags, *given, "SOLVER.EARLY_STOP.PATIENCE", "3"]) == 0
    assert iterations(folder) == [0, 1, 2, 3]
    assert load_checkpoint_file(folder / "model_final.pth")["iteration"] == 3


@pytest.mark.parametrize("lost", [False, True], ids=["metrics kept", "metrics lost"])
def test_an_interrupted_run_ends_where_it_would_have(options: dict[str, Any], tmp_path: Path, lost: bool) -> None:
    """Its checkpoint is written before the evaluation of the same iteration, which it therefore does not count."""
    folder = Path(options["OUTPUT_DIR"])
    given = as_arguments(options | STILL | {"SOLVER.CHECKPOINT_PERIOD": 1})
    assert main(["train", *given]) == 0
    for last in (1, 2):
        target = tmp_path / f"killed{last}"
        shutil.copytree(folder, target)
        for path in target.glob("model_*"):
            if not path.name.startswith(f"model_000000{last}"):
                path.unlink()
        (target / "last_checkpoint").write_text(f"model_000000{last}.pth")
        if lost:
            (target / "metrics.json").unlink()
        assert main(["train", "--resume", *given, "OUTPUT_DIR", str(target)]) == 0
        assert load_checkpoint_file(target / "model_final.pth")["iteration"] == 2
        if not lost:
            rows = [json.loads(line) for line in (target / "metrics.json").read_text().splitlines()]
            assert [row["iteration"] for row in rows if "voc_sem_seg_val/mIoU" in row] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOLVER__EARLY_STOP__METRIC": ""}, "SOLVER.EARLY_STOP.METRIC is ''; give a data set of DATASETS.TEST .voc_s"),
        ({"SOLVER__EARLY_STOP__METRIC": "voc_sem_seg_val/IoU"}, "EARLY_STOP.METRIC is 'voc_sem_seg_val/IoU'; give"),
        ({"TEST__EVAL_PERIOD": 0}, "PATIENCE is 2, but TEST.EVAL_PERIOD is 0, .* set the latter"),
    ],
)
def test_a_setting_that_never_ends_a_run_is_refused(
    make_cfg: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    given = {key.replace(".", "__"): value for key, value in STILL.items()}
    with pytest.raises(ValueError, match=message):
        run(make_cfg(**(given | changes)))

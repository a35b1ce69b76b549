"""An evaluation that is killed or stopped by a signal resumes where it was, with the very same result."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.cli.main import main
from san.d2.checkpoints.checkpointer import write_checkpoint
from san.d2.config.keys import load_config
from san.d2.evaluate.evaluator import SemSegEvaluator
from san.d2.processes import stopping
from san.d2.run import run
from tests.d2.conftest import TINY, as_arguments
from tests.faults.conftest import HANG, in_a_process, train_net

MakeCfg = Callable[..., Any]

SETS = ["voc_sem_seg_val", "voc_sem_seg_train"]  # 3 and 7 images
RESULTS = ("metrics.json", "per_class.csv", "sem_seg_predictions.json", "panel.png")


@pytest.fixture(scope="module")
def evaluation(reference: Path) -> dict[str, Any]:
    """Changes of the options that make it an evaluation of two sets, saved after every image."""
    return {
        "DATASETS__TEST": SETS,
        "MODEL__WEIGHTS": str(reference / "model_final.pth"),
        "TEST__SAVE_RLE": True,
        "TEST__NUM_PANELS": 2,
        "TEST__PARTIAL_PERIOD": 0,
    }


def results(folder: Path) -> dict[str, bytes]:
    """The files of an evaluation, without the log."""
    paths = [folder / "inference" / name / result for name in SETS for result in RESULTS]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def loaded_files(folder: Path) -> list[str]:
    """The checkpoints that a run's log says were loaded."""
    log = (folder / "log.txt").read_text(encoding="utf-8")
    return [Path(path).name for path in re.findall(r"Loading from (\S+)", log)]


def partials(folder: Path) -> list[Path]:
    return [*folder.glob("inference/*/partial*")]


def watch(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None] = lambda number: None) -> list[str]:
    """The images that are counted from now on, in order; `then` is called after each, with its number."""
    seen: list[str] = []
    real = SemSegEvaluator.process

    def process(self: SemSegEvaluator, inputs: Any, outputs: Any) -> None:
        real(self, inputs, outputs)
        seen.append(Path(inputs[0]["file_name"]).stem)
        then(len(seen))

    monkeypatch.setattr(SemSegEvaluator, "process", process)
    return seen


@pytest.fixture(scope="module")
def undisturbed(
    shared_voc: Path, evaluation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of an undisturbed evaluation."""
    folder = tmp_path_factory.mktemp("undisturbed")
    changes = {key.replace("__", "."): value for key, value in evaluation.items()}
    options = TINY | {"DATASETS.ROOT": str(shared_voc), "OUTPUT_DIR": str(folder)} | changes
    run(load_config("", as_arguments(options)), eval_only=True)
    assert not partials(folder)
    return results(folder)


@pytest.mark.parametrize("images", [2, 3, 4, 10])
def test_killed_after_some_images(
    images: int, make_cfg: MakeCfg, evaluation: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """SIGKILL in the first set, at its end, in the second and at the very end: only the last image is done again."""
    cfg = make_cfg(**evaluation)

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            watch(patch, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == images else None)
            run(cfg, eval_only=True)

    assert in_a_process(killed) == -signal.SIGKILL
    folder = tmp_path / "run"
    assert partials(folder)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        run(cfg, eval_only=True, resume=True)
    assert len(seen) == 10 - (images - 1)
    assert results(folder) == undisturbed
    assert not partials(folder)


def test_asked_to_stop_between_two_images(
    make_cfg: MakeCfg, evaluation: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    cfg = make_cfg(**evaluation | {"TEST__PARTIAL_PERIOD": 1000})
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch, lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 5 else None)
        with pytest.raises(SystemExit) as caught:
            run(cfg, eval_only=True)
        assert len(seen) == 5
    assert caught.value.code == stopping.EXIT_CODE
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        run(cfg, eval_only=True, resume=True)
    assert len(seen) == 5
    assert results(tmp_path / "run") == undisturbed


def test_the_command_goes_on_with_the_named_weights(
    options: dict[str, Any], evaluation: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """`san eval --resume`, in a folder whose last checkpoint is another one."""
    folder, weights = tmp_path / "run", evaluation["MODEL__WEIGHTS"]
    content = torch.load(weights, weights_only=True)
    content["model"]["model.bias_head.scale"] += 1
    folder.mkdir()
    write_checkpoint(content, folder / "model_0000009.pth")
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    changes = {key.replace("__", "."): value for key, value in evaluation.items() if key != "MODEL__WEIGHTS"}
    command = ["eval", "--weights", weights, "--resume", *as_arguments(options | changes)]
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 5 else None)
        assert main(command) == stopping.EXIT_CODE
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        assert main(command) == 0
        assert len(seen) == 5
        assert results(folder) == undisturbed
        loaded = loaded_files(folder)
        seen.clear()
        assert main(["eval", "--resume", *command[4:]]) == 0
    assert len(seen) == 10, "no weights are named: the folder's last checkpoint"
    assert set(loaded) == {Path(weights).name}
    assert set(loaded_files(folder)[len(loaded) :]) == {"model_0000009.pth"}


@pytest.mark.parametrize("change", ["weights", "size", "damage", "no --resume"])
def test_what_was_kept_serves_the_same_evaluation_only(
    change: str, make_cfg: MakeCfg, evaluation: dict[str, Any], tmp_path: Path
) -> None:
    cfg = make_cfg(**evaluation)
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 2 else None)
        with pytest.raises(SystemExit):
            run(cfg, eval_only=True)
    if change == "weights":
        content = torch.load(evaluation["MODEL__WEIGHTS"], weights_only=True)
        content["model"]["model.bias_head.scale"] += 1e-3
        torch.save({"model": content["model"]}, tmp_path / "other.pth")
        cfg = make_cfg(**evaluation | {"MODEL__WEIGHTS": str(tmp_path / "other.pth")})
    if change == "size":
        cfg = make_cfg(**evaluation, INPUT__MIN_SIZE_TEST=32)
    if change == "damage":
        (path,) = (tmp_path / "run").glob("inference/*/partial/process_0.pth")
        spoilt = bytearray(path.read_bytes())
        spoilt[len(spoilt) // 2] ^= 1
        path.write_bytes(bytes(spoilt))
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        run(cfg, eval_only=True, resume=change != "no --resume")
    assert len(seen) == 10


def evaluations(folder: Path) -> dict[int, dict[str, float]]:
    """The evaluations in metrics.json by iteration."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {x["iteration"]: {k: v for k, v in x.items() if "voc" in k} for x in lines if "voc_sem_seg_val/mIoU" in x}


def test_an_evaluation_of_a_training_run_is_made_up_for(make_cfg: MakeCfg, reference: Path, tmp_path: Path) -> None:
    """Killed in the evaluation after iteration 2, whose checkpoint is written: no point of the curve is missing."""
    cfg = make_cfg(
        SOLVER__CHECKPOINT_PERIOD=3, TEST__EVAL_PERIOD=3, TEST__PARTIAL_PERIOD=0, DATASETS__TEST=SETS[:1],
        SOLVER__CHECKPOINT_BEST="voc_sem_seg_val/mIoU",
    )  # fmt: skip

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            watch(patch, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == 2 else None)
            run(cfg)

    assert in_a_process(killed) == -signal.SIGKILL
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        run(cfg, resume=True)
    assert len(seen) == 2 + 3
    assert evaluations(folder) == evaluations(reference)
    assert (folder / "model_best.pth").is_file() and not partials(folder)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        (folder / "last_checkpoint").write_text("model_0000002.pth")
        run(cfg, resume=True)
    assert len(seen) == 3  # that of the end; the one after iteration 2 is not done again


@pytest.mark.slow
def test_two_processes_killed_and_shares_that_differ(
    options: dict[str, Any], evaluation: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Kills of the whole group at several moments; 3 and 7 images, so that the processes' shares differ."""
    changed = options | {key.replace("__", "."): value for key, value in evaluation.items()}
    arguments = ("--num-gpus", "2", "--dist-url", "auto", "--eval-only", "--resume")
    for images in (1, 2):
        process = train_net(changed, *arguments)
        while process.poll() is None and len(partials(tmp_path / "run")) < images:
            pass
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = train_net(changed, *arguments)
    output = last.communicate(timeout=HANG)[0]
    assert last.returncode == 0, output
    ours = results(tmp_path / "run")
    exact = [name for name in undisturbed if name.endswith(("metrics.json", "per_class.csv"))]
    assert len(exact) == 4 and {name: ours[name] for name in exact} == {name: undisturbed[name] for name in exact}

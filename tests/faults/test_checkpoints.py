"""Faults around checkpoints and signals: what is lost is at most what was not yet saved, and the run says so."""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.cli.main import main
from san.d2.checkpoints import checkpointer
from san.d2.checkpoints.checkpointer import damage_of, latest_checkpoint
from san.d2.processes import stopping
from san.d2.run import run
from san.d2.train.checkpoint_hooks import CheckpointHook
from san.d2.train.iteration import Stepper
from san.d2.train.metrics_file import take_out
from san.io.files import sha256_of
from tests.d2.conftest import as_arguments
from tests.faults.conftest import HANG, in_a_process, killed_after, rows, train_net, wait_for

MakeCfg = Callable[..., Any]


def losses(folder: str | Path) -> dict[int, dict[str, float]]:
    """The losses of every iteration; none is repeated."""
    found = [row for row in rows(Path(folder)) if "total_loss" in row]
    assert len({row["iteration"] for row in found}) == len(found)
    return {row["iteration"]: {k: v for k, v in row.items() if "loss" in k} for row in found}


def spoil(path: Path, how: str) -> None:
    """Damages a file: cut short, one bit turned in its middle, emptied, or gone."""
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
        return
    if how == "bit":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:5000], "empty": b"", "bit": bytes(content)}[how])


SLOWLY = [pytest.param(how, marks=pytest.mark.slow) for how in ("empty", "gone")]


def test_a_sum_of_any_length_is_not_read_whole(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    path.write_bytes((reference / path.name).read_bytes())
    with open(f"{path}.sha256", "wb") as sparse:
        sparse.truncate(200 << 30)
    assert "its SHA-256 is not that of model_final.pth.sha256" in str(damage_of(path))


@pytest.mark.parametrize("how", ["cut", "bit", *SLOWLY])
def test_a_damaged_latest_checkpoint_is_skipped(make_cfg: MakeCfg, reference: Path, how: str) -> None:
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=2)
    folder = Path(cfg.OUTPUT_DIR)
    run(make_cfg(SOLVER__CHECKPOINT_PERIOD=2, SOLVER__MAX_ITER=6))
    (folder / "model_final.pth").unlink()
    (folder / "model_0000005.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    spoil(folder / "model_0000003.pth", how)
    run(cfg, resume=True)
    log = (folder / "log.txt").read_text()
    assert log.count("resuming from the newest undamaged checkpoint") == 1
    assert re.search(
        r"checkpoint \S+model_0000003.pth .*; resuming from the newest undamaged checkpoint, \S+model_0000001.pth", log
    )
    assert losses(folder) == losses(reference)
    ours, theirs = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (folder, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_checkpoint_has_its_sum(reference: Path) -> None:
    found = sorted(reference.glob("*.pth"))
    assert found
    for path in found:
        digest, name = (path.parent / f"{path.name}.sha256").read_text().split()
        assert (digest, name) == (sha256_of(path), path.name)
        assert damage_of(path) is None


def test_a_full_disk_costs_one_checkpoint(make_cfg: MakeCfg, monkeypatch: Any) -> None:
    """The second save fails in its middle, and so does the one on stopping: the first stays, though one is kept.

    Of the resumed run, the last save fails at first and is done again after the evaluation.
    """
    real, calls = torch.save, []

    def save(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) in (2, 3, 6):
            file.write(b"x" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, file)

    monkeypatch.setattr(checkpointer.torch, "save", save)
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=2, SOLVER__CHECKPOINT_KEEP=1)
    folder = Path(cfg.OUTPUT_DIR)
    monkeypatch.setattr(stopping, "requested", lambda: len(calls) == 2)
    with pytest.raises(SystemExit):
        run(cfg)
    log = (folder / "log.txt").read_text()
    assert log.count("No space left on device") == 2 and "earlier ones are unchanged" in log
    assert "ends WITHOUT a checkpoint of iteration 3" in log
    assert {path.name for path in folder.glob("model_*")} >= {"model_0000001.pth", "model_0000001.pth.sha256"}
    assert damage_of(folder / "model_0000001.pth") is None
    assert not list(folder.glob(".*partial*"))
    monkeypatch.setattr(stopping, "requested", lambda: False)
    run(cfg, resume=True)
    assert sorted(losses(folder)) == [0, 1, 2, 3, 4, 5]
    assert len(calls) == 7 and (folder / "log.txt").read_text().count("No space left on device") == 3
    assert {path.name for path in folder.glob("*.pth")} == {"model_0000005.pth", "model_final.pth"}


@pytest.mark.parametrize("earlier", [True, False])
def test_a_run_without_its_last_checkpoint_ends_with_an_error(
    make_cfg: MakeCfg, reference: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """The error names the last checkpoint; with space, --resume ends with the bytes of an undisturbed run."""
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=4 if earlier else 100)
    folder = Path(cfg.OUTPUT_DIR)
    real = checkpointer.write_checkpoint

    def write(content: Any, path: Path) -> None:
        if path.stem == "model_final":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer, "write_checkpoint", write)
        with pytest.raises(OSError, match=r"model_final.pth is not written \(No space left on device\); ") as caught:
            run(cfg)
    goes_on = (
        "model_0000003.pth is complete. Make room" if earlier else "there is no earlier checkpoint, so it starts again"
    )
    assert goes_on in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value) in (folder / "log.txt").read_text()
    run(cfg, resume=True)
    assert (folder / "model_final.pth").read_bytes() == (reference / "model_final.pth").read_bytes()
    assert losses(folder) == losses(reference)


def test_killed_before_the_last_checkpoint(make_cfg: MakeCfg, reference: Path) -> None:
    """Between the numbered checkpoint of the last iteration and the final one, which --resume then writes."""
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=3)
    folder = Path(cfg.OUTPUT_DIR)

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            real = CheckpointHook.save
            patch.setattr(
                CheckpointHook, "save", lambda self, name: die() if name == "model_final" else real(self, name)
            )
            run(cfg)

    assert in_a_process(killed) == -signal.SIGKILL
    assert latest_checkpoint(folder) == folder / "model_0000005.pth"
    assert losses(folder) == losses(reference)
    run(cfg, resume=True)
    assert (folder / "model_final.pth").read_bytes() == (reference / "model_final.pth").read_bytes()
    assert losses(folder) == losses(reference)


def die() -> bool:
    """SIGKILL of this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return False


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_a_save(make_cfg: MakeCfg, reference: Path, moment: str) -> None:
    """The line of the iteration is in metrics.json by then, and stands there once in the end."""
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=3)
    folder = Path(cfg.OUTPUT_DIR)

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            real = CheckpointHook.save
            patch.setattr(CheckpointHook, "save", lambda *args: die() if moment == "before" else real(*args) and die())
            run(cfg)

    assert in_a_process(killed) == -signal.SIGKILL
    assert [row["iteration"] for row in rows(folder)] == [0, 1, 2]
    with open(folder / "metrics.json", "a") as file:
        file.write('{"iteration": 3, "total_')  # as of a machine that lost its power
    (folder / ".model_0000002.1-00.partial.pth").write_bytes(b"half")  # as of a process killed in a save
    run(cfg, resume=True)
    assert losses(folder) == losses(reference)
    assert (folder / "metrics.json").read_text().count('"total_') == 6
    assert latest_checkpoint(folder) == folder / "model_final.pth"
    assert not list(folder.glob(".*partial*"))


@pytest.mark.parametrize(
    ("start", "max_iter", "kept"),
    [
        (0, 6, []),
        (2, 6, [0, 1]),
        (3, 6, [0, 1, 2, 2]),
        (4, 6, [0, 1, 2, 2, 3, 3]),
        (6, 6, [0, 1, 2, 2, 3, 3, 4, 5]),
        (6, 9, [0, 1, 2, 2, 3, 3, 4, 5, 6]),
    ],
)
def test_lines_that_will_be_written_again_are_taken_out(
    tmp_path: Path, start: int, max_iter: int, kept: list[int]
) -> None:
    """Lines of iterations and evaluations; those of a shorter run stay."""
    path = tmp_path / "metrics.json"
    take_out(path, start, max_iter)
    assert not path.exists()
    lines = [{"iteration": number, "lr": 0.1} for number in range(6)]
    lines[3:3] = [{"iteration": 2, "voc/mIoU": 1.0}]
    lines[5:5] = [{"iteration": 3, "skipped_updates": 1, "voc/mIoU": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"iteration": 6, "voc/mIoU": 2.0}]))
    take_out(path, start, max_iter)
    assert [row["iteration"] for row in rows(tmp_path)] == kept


def test_the_best_checkpoint(make_cfg: MakeCfg, monkeypatch: Any) -> None:
    """Of three evaluations the second is the best."""
    values = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr("san.d2.train.trainer.evaluate", lambda *_, **__: {"voc_sem_seg_val": {"mIoU": next(values)}})
    monkeypatch.setattr("san.d2.train.trainer.summary", lambda results: results)
    options = {"TEST__EVAL_PERIOD": 2, "DATASETS__TEST": ["voc_sem_seg_val"], "SOLVER__MAX_ITER": 6}
    cfg = make_cfg(**options, SOLVER__CHECKPOINT_BEST="voc_sem_seg_val/mIoU")
    run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    assert torch.load(folder / "model_best.pth", weights_only=True)["iteration"] == 3
    assert latest_checkpoint(folder) == folder / "model_final.pth"
    hooks = torch.load(folder / "model_final.pth", weights_only=True)["trainer"]["hooks"]
    assert hooks["BestCheckpointHook"] == {"metric": "voc_sem_seg_val/mIoU", "best": 30.0}
    with pytest.raises(ValueError, match=r"CHECKPOINT_BEST is 'voc/mIoU'; give a data set of DATASETS.TEST \(voc_sem_"):
        run(make_cfg(**options, SOLVER__CHECKPOINT_BEST="voc/mIoU"), resume=True)


def test_the_best_checkpoint_stays_after_resuming(make_cfg: MakeCfg, monkeypatch: Any) -> None:
    """The checkpoint gone on from was written before the evaluation that found the best."""
    values = iter([30.0, 10.0, 20.0, 10.0, 20.0])
    monkeypatch.setattr("san.d2.train.trainer.evaluate", lambda *_, **__: {"voc_sem_seg_val": {"mIoU": next(values)}})
    monkeypatch.setattr("san.d2.train.trainer.summary", lambda results: results)
    cfg = make_cfg(
        TEST__EVAL_PERIOD=2, DATASETS__TEST=["voc_sem_seg_val"], SOLVER__CHECKPOINT_PERIOD=2,
        SOLVER__CHECKPOINT_BEST="voc_sem_seg_val/mIoU",
    )  # fmt: skip
    run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    run(cfg, resume=True)
    assert list(values) == []
    assert torch.load(folder / "model_best.pth", weights_only=True)["iteration"] == 1


def test_the_best_checkpoint_is_the_best_that_is_there(make_cfg: MakeCfg, monkeypatch: Any) -> None:
    """The disk is full for the best, so the second best is written after it; another metric starts again."""
    values = iter([10.0, 30.0, 20.0, 1.0])
    monkeypatch.setattr("san.d2.train.trainer.evaluate", lambda *_, **__: {"voc_sem_seg_val": scores(next(values))})
    monkeypatch.setattr("san.d2.train.trainer.summary", lambda results: results)
    real = checkpointer.write_checkpoint

    def scores(value: float) -> dict[str, float]:
        return {"mIoU": value, "pACC": value}

    def write(content: Any, path: Path) -> None:
        if path.stem == "model_best" and content["iteration"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, path)

    monkeypatch.setattr(checkpointer, "write_checkpoint", write)
    changes = {"TEST__EVAL_PERIOD": 2, "DATASETS__TEST": ["voc_sem_seg_val"], "SOLVER__CHECKPOINT_PERIOD": 2}
    cfg = make_cfg(**changes, SOLVER__CHECKPOINT_BEST="voc_sem_seg_val/mIoU")
    run(cfg)
    best = Path(cfg.OUTPUT_DIR) / "model_best.pth"
    content = torch.load(best, weights_only=True)
    assert content["iteration"] == content["trainer"]["iteration"] == 5
    assert content["trainer"]["hooks"]["BestCheckpointHook"]["best"] == 20.0
    run(make_cfg(**changes, SOLVER__CHECKPOINT_BEST="voc_sem_seg_val/pACC"), resume=True)
    state = torch.load(best, weights_only=True)["trainer"]["hooks"]["BestCheckpointHook"]
    assert state == {"metric": "voc_sem_seg_val/pACC", "best": 1.0}


LONG: dict[str, Any] = {
    "SOLVER.MAX_ITER": 60,
    "SOLVER.CHECKPOINT_PERIOD": 4,
    "TEST.EVAL_PERIOD": 10,
    "DATASETS.TEST": ["voc_sem_seg_val"],
}


SECONDS = "seconds"
"""File that says how long an undisturbed run has computed."""

SHORT = LONG | {"SOLVER.MAX_ITER": 16, "TEST.EVAL_PERIOD": 8}


@pytest.fixture(scope="module")
def uninterrupted(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """A function from LONG or SHORT to the folder of such a run, which nothing disturbed."""
    from tests.d2.conftest import TINY

    @functools.cache
    def folder_of(iterations: int) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        length = LONG if iterations == LONG["SOLVER.MAX_ITER"] else SHORT
        options = TINY | length | {"DATASETS.ROOT": str(shared_voc), "OUTPUT_DIR": str(folder)}

        def timed() -> None:
            _run(options)
            (folder / SECONDS).write_text(str(time.process_time()))

        assert in_a_process(timed) == 0
        return folder

    return lambda length: folder_of(length["SOLVER.MAX_ITER"])


def check_equal(folder: Path, uninterrupted: Path) -> None:
    """Losses, step for step, and evaluations, each once and in order, and the bytes of the last checkpoint."""
    assert rows(folder) == rows(uninterrupted)
    assert not list(folder.glob(".*partial*"))
    assert (folder / "model_final.pth").read_bytes() == (uninterrupted / "model_final.pth").read_bytes()


def test_a_run_that_is_asked_to_stop(options: dict[str, Any], uninterrupted: Callable[..., Path]) -> None:
    """SIGTERM to all processes at once, the loading ones too, as a scheduler sends it: it saves and ends with 75.

    It arrives during an iteration that the run chooses, independently of the load.
    """
    folder = Path(options["OUTPUT_DIR"])
    arguments = ["train", "--resume", *as_arguments(options | SHORT | {"DATALOADER.NUM_WORKERS": 2})]

    def asked() -> None:
        os.setsid()
        with pytest.MonkeyPatch.context() as patch:
            real = Stepper.run

            def step(self: Stepper, batches: Any, iteration: int, settle: Any) -> Any:
                if iteration == 5:
                    os.killpg(0, signal.SIGTERM)
                return real(self, batches, iteration, settle)

            patch.setattr(Stepper, "run", step)
            sys.exit(main(arguments))

    assert in_a_process(asked) == stopping.EXIT_CODE
    assert "Asked to stop: ends with a checkpoint of iteration 5" in (folder / "log.txt").read_text()
    assert torch.load(latest_checkpoint(folder), weights_only=True)["iteration"] == max(losses(folder)) == 5
    assert in_a_process(lambda: sys.exit(main(arguments))) == 0
    check_equal(folder, uninterrupted(SHORT))


@pytest.mark.slow
def test_a_command_that_is_asked_to_stop(options: dict[str, Any]) -> None:
    """SIGUSR1 to two processes and their parent."""
    folder = Path(options["OUTPUT_DIR"])
    process = train_net(options | {"SOLVER.MAX_ITER": 100000}, "--num-gpus", "2", "--dist-url", "auto", "--resume")
    metrics = folder / "metrics.json"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("total_loss") >= 3, process)
    os.killpg(process.pid, signal.SIGUSR1)
    output = process.communicate(timeout=HANG)[0]
    assert process.returncode == stopping.EXIT_CODE, output
    assert "Asked to stop: ends with a checkpoint of iteration" in output
    assert torch.load(latest_checkpoint(folder), weights_only=True)["iteration"] == max(losses(folder))


def _run(options: dict[str, Any]) -> None:
    """Trains until it is done or killed."""
    from san.d2.config.keys import load_config

    run(load_config("", as_arguments(options)), resume=True)


@pytest.mark.parametrize(("moments", "length"), [(3, SHORT), pytest.param(20, LONG, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    options: dict[str, Any], uninterrupted: Callable[..., Path], moments: int, length: dict[str, Any]
) -> None:
    """SIGKILL, in the midst of steps, saves and evaluations: afterwards everything is as if nothing had happened."""
    draw, whole = random.Random(0), uninterrupted(length)
    seconds, kills, runs = float((whole / SECONDS).read_text()), 0, 1
    while kills < moments:
        folder = Path(options["OUTPUT_DIR"]) / str(runs)
        train = functools.partial(_run, options | length | {"OUTPUT_DIR": str(folder)})
        if killed_after(train, draw.uniform(0.02, 0.5) * seconds):
            kills += 1
            if (folder / "last_checkpoint").is_file():
                assert latest_checkpoint(folder) is not None
        else:  # it was through before: the next kills are of another run
            check_equal(folder, whole)
            runs += 1
    assert in_a_process(train) == 0
    check_equal(folder, whole)

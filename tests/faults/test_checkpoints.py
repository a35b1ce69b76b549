"""Faults around checkpoints and signals: what is lost is at most what was not yet saved, and the run says so."""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.d2 import checkpointer, stopping
from san.d2.checkpointer import damage_of, latest_checkpoint
from san.d2.run import run
from san.files import sha256_of
from tests.d2.conftest import as_arguments

REPO = Path(__file__).resolve().parent.parent.parent

MakeCfg = Callable[..., Any]


def losses(folder: str | Path) -> dict[int, dict[str, float]]:
    """The losses of every iteration; of one that ran twice, the later."""
    lines = map(json.loads, (Path(folder) / "metrics.json").read_text().splitlines())
    rows = {line["iteration"]: line for line in lines if "total_loss" in line}
    return {number: {k: v for k, v in row.items() if "loss" in k} for number, row in rows.items()}


def evaluations(folder: Path) -> dict[int, dict[str, float]]:
    """The evaluations of a run by iteration."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {x["iteration"]: {k: v for k, v in x.items() if "voc" in k} for x in lines if "voc_sem_seg_val/mIoU" in x}


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


@pytest.mark.parametrize("how", ["cut", "bit", *SLOWLY])
def test_a_damaged_latest_checkpoint_is_passed_over(make_cfg: MakeCfg, reference: Path, how: str) -> None:
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=2)
    folder = Path(cfg.OUTPUT_DIR)
    run(make_cfg(SOLVER__CHECKPOINT_PERIOD=2, SOLVER__MAX_ITER=6))
    (folder / "model_final.pth").unlink()
    (folder / "model_0000005.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    spoil(folder / "model_0000003.pth", how)
    run(cfg, resume=True)
    log = (folder / "log.txt").read_text()
    assert log.count("going on from the one before") == 1
    assert re.search(r"checkpoint \S+model_0000003.pth .*; going on from the one before, \S+model_0000001.pth", log)
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
    """The second save fails in its middle, and so does the one on stopping: the first stays, though one is kept."""
    real, calls = torch.save, []

    def save(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) in (2, 3):
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
    assert log.count("No space left on device") == 2 and "earlier ones are untouched" in log
    assert "ends WITHOUT a checkpoint of iteration 3" in log
    assert {path.name for path in folder.glob("model_*")} >= {"model_0000001.pth", "model_0000001.pth.sha256"}
    assert damage_of(folder / "model_0000001.pth") is None
    assert not list(folder.glob(".*partial*"))
    monkeypatch.setattr(stopping, "requested", lambda: False)
    run(cfg, resume=True)
    assert sorted(losses(folder)) == [0, 1, 2, 3, 4, 5]
    assert {path.name for path in folder.glob("*.pth")} == {"model_0000005.pth", "model_final.pth"}


def test_the_best_checkpoint(make_cfg: MakeCfg, monkeypatch: Any) -> None:
    """Of three evaluations the second is the best."""
    values = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr("san.d2.trainer.evaluate", lambda *_, resume: {"voc_sem_seg_val": {"mIoU": next(values)}})
    monkeypatch.setattr("san.d2.trainer.summary", lambda results: results)
    options = {"TEST__EVAL_PERIOD": 2, "DATASETS__TEST": ["voc_sem_seg_val"], "SOLVER__MAX_ITER": 6}
    cfg = make_cfg(**options, SOLVER__CHECKPOINT_BEST="voc_sem_seg_val/mIoU")
    run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    assert torch.load(folder / "model_best.pth", weights_only=True)["iteration"] == 3
    assert latest_checkpoint(folder) == folder / "model_final.pth"
    hooks = torch.load(folder / "model_final.pth", weights_only=True)["trainer"]["hooks"]
    assert hooks["BestCheckpointHook"] == {"best": 30.0}
    with pytest.raises(ValueError, match=r"CHECKPOINT_BEST is 'voc/mIoU'; give a data set of DATASETS.TEST \(voc_sem_"):
        run(make_cfg(**options, SOLVER__CHECKPOINT_BEST="voc/mIoU"))


def test_the_best_checkpoint_stays_after_resuming(make_cfg: MakeCfg, monkeypatch: Any) -> None:
    """The checkpoint gone on from was written before the evaluation that found the best."""
    values = iter([30.0, 10.0, 20.0, 10.0, 20.0])
    monkeypatch.setattr("san.d2.trainer.evaluate", lambda *_, resume: {"voc_sem_seg_val": {"mIoU": next(values)}})
    monkeypatch.setattr("san.d2.trainer.summary", lambda results: results)
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


LONG: dict[str, Any] = {
    "SOLVER.MAX_ITER": 60,
    "SOLVER.CHECKPOINT_PERIOD": 4,
    "TEST.EVAL_PERIOD": 10,
    "DATASETS.TEST": ["voc_sem_seg_val"],
}


SHORT = LONG | {"SOLVER.MAX_ITER": 16, "TEST.EVAL_PERIOD": 8}


@pytest.fixture(scope="module")
def uninterrupted(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """A function from LONG or SHORT to the folder of such a run, which nothing disturbed."""
    from san.d2.config import load_config
    from tests.d2.conftest import TINY

    @functools.cache
    def folder_of(iterations: int) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        length = LONG if iterations == LONG["SOLVER.MAX_ITER"] else SHORT
        options = TINY | length | {"DATASETS.ROOT": str(shared_voc), "OUTPUT_DIR": str(folder)}
        run(load_config("", as_arguments(options)))
        return folder

    return lambda length: folder_of(length["SOLVER.MAX_ITER"])


def check_equal(folder: Path, uninterrupted: Path, *, killed: bool = False) -> None:
    """Losses, step for step, evaluations, and the bytes of the last checkpoint.

    Of a run that was killed between saving an iteration and writing its row, that row is missing.
    """
    ours, theirs = losses(folder), losses(uninterrupted)
    assert all(ours[number] == theirs[number] for number in ours)
    missing = theirs.keys() - ours.keys()
    assert not missing or (killed and all((number + 1) % LONG["SOLVER.CHECKPOINT_PERIOD"] == 0 for number in missing))
    assert evaluations(folder) == evaluations(uninterrupted)
    assert (folder / "model_final.pth").read_bytes() == (uninterrupted / "model_final.pth").read_bytes()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "processes", "loaders"),
    [(signal.SIGTERM, 1, 2), pytest.param(signal.SIGUSR1, 2, 0, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGUSR1"],
)
def test_a_run_that_is_asked_to_stop(
    options: dict[str, Any], uninterrupted: Callable[..., Path], number: int, processes: int, loaders: int
) -> None:
    """Asked as a scheduler does, all processes at once: it saves, ends with 75, and --resume gives the same run."""
    folder = Path(options["OUTPUT_DIR"])
    arguments = as_arguments(options | SHORT | {"DATALOADER.NUM_WORKERS": loaders})
    command = [sys.executable, "tools/train_net.py", "--num-gpus", str(processes), "--resume", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = folder / "metrics.json"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("total_loss") >= 3, process)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == stopping.EXIT_CODE, output
    assert "Asked to stop: ends with a checkpoint of iteration" in output
    saved = torch.load(latest_checkpoint(folder), weights_only=True)["iteration"]
    assert saved == max(losses(folder)) < 15
    if processes == 1:
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        check_equal(folder, uninterrupted(SHORT))


def _run_quietly(options: dict[str, Any]) -> None:
    """A process that trains until it is done or killed."""
    from san.d2.config import load_config

    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    run(load_config("", as_arguments(options)), resume=True)


@pytest.mark.parametrize(("moments", "length"), [(3, SHORT), pytest.param(20, LONG, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    options: dict[str, Any], uninterrupted: Callable[..., Path], moments: int, length: dict[str, Any]
) -> None:
    """SIGKILL, in the midst of steps, saves and evaluations: afterwards everything is as if nothing had happened."""
    torch.set_num_threads(1)
    folder, fork, draw = Path(options["OUTPUT_DIR"]), multiprocessing.get_context("fork"), random.Random(0)
    kills = 0
    for _ in range(moments):
        process = fork.Process(target=_run_quietly, args=(options | length,))
        process.start()
        process.join(draw.uniform(0.2, 2.0))
        kills += process.is_alive()
        process.kill()
        process.join()
        if (folder / "last_checkpoint").is_file():
            assert latest_checkpoint(folder) is not None
    run_to_end = fork.Process(target=_run_quietly, args=(options | length,))
    run_to_end.start()
    run_to_end.join(300)
    assert run_to_end.exitcode == 0
    assert kills >= moments // 4
    check_equal(folder, uninterrupted(length), killed=True)

"""A process that dies ends the job soon, and the logs say which one and why."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.d2.run import run
from tests.d2.conftest import as_arguments
from tests.faults.conftest import in_a_process, train_net, wait_for
from tests.forks import HANG, TRAIN_NET, Fork, script

MakeCfg = Callable[..., Any]

WAYS = ["forked", *(pytest.param(way, marks=pytest.mark.slow) for way in ("num-gpus", "torchrun"))]
"""--num-gpus 2, in processes that are forked or import everything themselves, and torchrun with 2 processes."""


def process_writing(path: Path) -> int | None:
    """The process that has a file open, or None."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path):
                return int(link.parts[2])
        except OSError:  # it has ended, or belongs to another user
            continue
    return None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to find the process in")
def test_a_killed_process_ends_the_job(options: dict[str, Any], tmp_path: Path, way: str) -> None:
    """SIGKILL of one of two processes in the midst of training."""
    torchrun = way == "torchrun"
    options = options | {"SOLVER.MAX_ITER": 100000}
    arguments = [] if torchrun else ["--num-gpus", "2", "--dist-url", "auto"]
    process: Any
    if way == "forked":
        process = Fork(script(TRAIN_NET, [*arguments, *as_arguments(options)]), tmp_path / "output")
    else:
        process = train_net(options, *arguments, torchrun=2 * torchrun)
    folder = tmp_path / "run"
    metrics = folder / "metrics.json"
    wait_for(lambda: metrics.is_file() and "total_loss" in metrics.read_text(), process)
    victim = process_writing(folder / "log.txt.rank1")
    assert victim is not None
    start = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    output = process.communicate(timeout=HANG)[0]
    assert time.monotonic() - start < 60
    assert process.returncode == 1, output
    log = (folder / "log.txt").read_text()
    assert "Process 0 of 2 ends: " in log or "Process 1 was killed by SIGKILL" in log
    if not torchrun:
        assert "Process 1 was killed by SIGKILL, and the others were ended" in log
        assert "Process 1 was killed by SIGKILL" in output
    else:
        assert "SIGKILL" in output
    assert (folder / "log.txt.rank1").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [0, 2], ids=["num-gpus", "torchrun"])
def test_an_error_of_one_process_ends_the_job(
    options: dict[str, Any], own_voc: Path, reference: Path, tmp_path: Path, torchrun: int
) -> None:
    """The second of two images cannot be read: an error by default in evaluation, of process 1."""
    (own_voc / "VOC2012/JPEGImages/val_001.jpg").write_bytes(b"")
    changed = options | {
        "DATASETS.ROOT": str(own_voc), "DATASETS.TEST": ["voc_sem_seg_val"],
        "MODEL.WEIGHTS": str(reference / "model_final.pth"),
    }  # fmt: skip
    arguments = ("--eval-only",) if torchrun else ("--eval-only", "--num-gpus", "2", "--dist-url", "auto")
    process = train_net(changed, *arguments, torchrun=torchrun)
    output = process.communicate(timeout=HANG)[0]
    assert process.returncode == 1
    assert "val_001.jpg" in output
    own = (tmp_path / "run/log.txt.rank1").read_text()
    assert "Process 1 of 2 ends: " in own and "val_001.jpg" in own
    if not torchrun:
        assert "Process 1 ended with status 1" in (tmp_path / "run/log.txt").read_text()


def test_a_killed_loading_process_ends_the_run(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """Like a kernel that is out of memory."""
    parent = os.getpid()

    def killed(*_: Any) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    def action() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("san.d2.data.mapper.TrainMapper.__call__", killed)
            run(make_cfg(DATALOADER__NUM_WORKERS=1))

    assert in_a_process(action) == 1
    log = (tmp_path / "run/log.txt").read_text()
    assert "Process 0 of 1 ends: DataLoader worker" in log and "killed" in log.lower()


def test_deterministic_runs_give_the_same_bytes(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """Two runs with DETERMINISTIC, in processes of their own."""
    changes = {"DETERMINISTIC": True, "TEST__EVAL_PERIOD": 3, "DATASETS__TEST": ["voc_sem_seg_val"]}
    files = []
    for name in ("first", "second"):
        folder = tmp_path / name

        def action(folder: Path = folder) -> None:
            run(make_cfg(**changes, OUTPUT_DIR=str(folder)))
            assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            (folder / "checked").touch()

        assert in_a_process(action) == 0
        assert (folder / "checked").is_file()
        files.append((folder / "model_final.pth").read_bytes())
    assert files[0] == files[1]


def test_the_option_sets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that is drawn in every run is refused."""
    from san.cli import train
    from san.cli.main import make_parser

    seen: list[Any] = []
    monkeypatch.setattr(
        "san.d2.processes.launcher.start_workers", lambda main, cfg, args: seen.append(cfg.DETERMINISTIC)
    )
    for options in ([], ["--deterministic"]):
        train.start(make_parser(train).parse_args([*options, "MODEL.DEVICE", "cpu"]))
    assert seen == [False, True]
    with pytest.raises(ValueError, match="DETERMINISTIC is set but SEED is -1"):
        train.start(make_parser(train).parse_args(["--deterministic", "MODEL.DEVICE", "cpu", "SEED", "-1"]))

"""A disk that is really full: a file system in memory of a few megabytes, where it may be mounted."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from san.d2.api import EventStorage, EventWriter
from san.d2.checkpoints.checkpointer import damage_of, latest_checkpoint
from san.d2.processes.launcher import setup_run
from san.d2.run import run
from san.d2.train import writers
from san.d2.train.metrics_file import MetricsFile
from san.d2.train.trainer import Trainer
from san.d2.train.writers import RetryingWriter
from tests.faults.conftest import rows

MakeCfg = Callable[..., Any]


def mount(*arguments: str) -> bool:
    """Calls mount; returns whether it worked."""
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path, reference: Path) -> Iterator[Path]:
    """A folder with room for two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = (reference / "model_final.pth").stat().st_size * 5 // 2 + 2**18
    if not mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder)):
        pytest.skip("a file system cannot be mounted here; test_checkpoints.py injects the error instead")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_checkpoints_on_a_full_disk(make_cfg: MakeCfg, small_disk: Path, reference: Path) -> None:
    """Two fit, the others do not: training continues, the two stay whole; with room --resume ends as if undisturbed."""
    folder = small_disk / "run"
    cfg = make_cfg(OUTPUT_DIR=str(folder), SOLVER__CHECKPOINT_PERIOD=1)
    with pytest.raises(
        OSError, match=r"model_final.pth is not written \(No space left on device\); .* is complete. Make"
    ):
        run(cfg)
    log = (folder / "log.txt").read_text()
    failures = log.count("could not be written (No space left on device)")
    whole = sorted(folder.glob("model_*.pth"))
    assert failures == 8 - len(whole) >= 5 and "iter 6/6" in log  # the last save is tried twice
    assert all(damage_of(path) is None for path in whole)
    assert latest_checkpoint(folder) == whole[-1] and not list(folder.glob(".*partial*"))
    assert mount("-o", "remount,size=1g", str(small_disk))
    run(cfg, resume=True)
    ours, theirs = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (folder, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_disk_without_a_byte_left(
    make_cfg: MakeCfg, small_disk: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second to the fourth iteration nothing can be written, also by evaluation and TensorBoard."""
    filler = small_disk / "filler"
    folder = small_disk / "run"
    real = Trainer.run_step

    def step(self: Trainer) -> None:
        if self.iter == 1:
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))
        if self.iter == 4:
            filler.unlink()
        real(self)

    monkeypatch.setattr(Trainer, "run_step", step)
    monkeypatch.setattr(writers, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)  # TensorBoard's own thread
    cfg = make_cfg(
        OUTPUT_DIR=str(folder), SOLVER__CHECKPOINT_PERIOD=3, TEST__EVAL_PERIOD=3, DATASETS__TEST=["voc_sem_seg_val"]
    )
    run(cfg)
    assert rows(folder) == rows(reference)
    log = (folder / "log.txt").read_text()
    assert "model_0000002.pth could not be written" in log and "a file of the evaluation could not be written" in log
    assert (folder / "model_final.pth").read_bytes() == (reference / "model_final.pth").read_bytes()
    assert not list(folder.glob(".*partial*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a disk without room")
def test_lines_that_find_no_room_are_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.json"
    path.symlink_to("/dev/full")
    file = MetricsFile(path, 1)
    with caplog.at_level("WARNING", "san.d2.metrics"), EventStorage(3) as storage:
        for iteration in (3, 4):
            storage.iter = iteration
            storage.put_scalar("lr", iteration)
            file.write()
        assert [record.getMessage() for record in caplog.records] == [
            f"{path} cannot be written (No space left on device); its lines are kept and written when there is room"
        ]
        path.unlink()
        storage.put_scalar("other", 1)
        for _ in range(2):
            file.write()
        storage.put_scalar("late", 2)
        file.write()
        file.close()
    assert [sorted(row.items()) for row in rows(tmp_path)] == [
        [("iteration", 3), ("lr", 3.0)],
        [("iteration", 4), ("lr", 4.0)],
        [("iteration", 4), ("other", 1.0)],
        [("iteration", 4), ("late", 2.0)],
    ]
    path.unlink()
    path.symlink_to("/dev/full")
    with caplog.at_level("WARNING", "san.d2.metrics"), EventStorage(5) as storage:
        storage.put_scalar("lr", 5)
        file.write()
        file.close()
    assert caplog.records[-1].getMessage() == f"{path} lacks its last 1 lines"


def test_a_writer_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Like TensorBoard's writer, whose thread has died of a full disk."""
    seen: list[str] = []

    class Writer(EventWriter):
        def __init__(self) -> None:
            seen.append("made")

        def write(self) -> None:
            seen.append("write")
            if seen.count("made") == 1:
                raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            seen.append("close")
            if seen.count("made") == 1:
                raise OSError(errno.ENOSPC, "No space left on device")

    writer = RetryingWriter("TensorBoard", Writer)
    with caplog.at_level("WARNING", "san.d2.writers"):
        writer.write()
        writer.write()
        assert seen == ["made", "write", "close"]
        monkeypatch.setattr(writer, "_not_before", 0.0)
        writer.write()
        writer.close()
        writer.write()
    assert seen == ["made", "write", "close", "made", "write", "close"]
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard cannot be written (No space left on device) and gets nothing for 10 minutes; metrics.json has all"
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a disk without room")
def test_a_log_without_room_leaves_the_terminal_readable(make_cfg: MakeCfg, capfd: pytest.CaptureFixture[str]) -> None:
    cfg = make_cfg()
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (folder / "log.txt").symlink_to("/dev/full")
    try:
        setup_run(cfg)
        logging.getLogger("san.d2.x").warning("logged here alone")
        shown = capfd.readouterr()
        assert "logged here alone" in shown.out + shown.err and "Logging error" not in shown.err
    finally:
        with open(os.devnull, "wb") as sink:
            for handler in logging.getLogger("san").handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream.name.endswith("log.txt"):
                    os.dup2(sink.fileno(), handler.stream.fileno())  # it is closed with Python, and complains
        for name in ("fvcore", "detectron2", "san"):
            logging.getLogger(name).handlers.clear()

"""The state of an interrupted evaluation: read with limits; after invalid content the evaluation is repeated."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.d2.api import DatasetCatalog, MetadataCatalog
from san.d2.checkpoints.checkpointer import write_checkpoint
from san.d2.evaluate.evaluator import OutputConfig, SemSegEvaluator
from san.d2.evaluate.resume import RESULT, SavedCounts

STATE = {"counts": torch.ones(2, 2, dtype=torch.int64)}


@pytest.fixture
def partial(tmp_path: Path) -> SavedCounts:
    return SavedCounts(tmp_path / "partial", "key", resume=True, period=0)


def test_there_and_back(partial: SavedCounts) -> None:
    assert partial.load(5) is None and partial.result() is None
    partial.save(3, STATE)
    done, state = partial.load(5) or (0, {})
    assert done == 3 and torch.equal(state["counts"], STATE["counts"])
    partial.save_result({"mIoU": 12.5, "pACC": float("nan")})
    assert (partial.result() or {})["mIoU"] == 12.5
    assert SavedCounts(partial.folder, "other", resume=True, period=0).load(5) is None
    assert SavedCounts(partial.folder, "other", resume=True, period=0).result() is None
    assert SavedCounts(partial.folder, "key", resume=False, period=0).load(5) is None


def bomb(path: Path) -> None:
    """Sixty bytes more of pickle double what is made."""
    content: Any = "x"
    for _ in range(40):
        content = [content, content]
    write_checkpoint({"key": "key", "done": 1, "state": content}, path)


ODD: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "no sum": lambda path: path.with_name(path.name + ".sha256").unlink(),
    "a list": lambda path: write_checkpoint([1], path),  # type: ignore[arg-type]
    "a bomb": bomb,
    "no state": lambda path: write_checkpoint({"key": "key", "done": 1}, path),
    "state of numbers": lambda path: write_checkpoint({"key": "key", "done": 1, "state": [1]}, path),
    "too many": lambda path: write_checkpoint({"key": "key", "done": 6, "state": STATE}, path),
    "too few": lambda path: write_checkpoint({"key": "key", "done": -1, "state": STATE}, path),
    "no number": lambda path: write_checkpoint({"key": "key", "done": "x" * 10000, "state": STATE}, path),
    "true": lambda path: write_checkpoint({"key": "key", "done": True, "state": STATE}, path),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_files_are_reported_once_and_not_used(
    odd: str, partial: SavedCounts, caplog: pytest.LogCaptureFixture
) -> None:
    partial.save(3, STATE)
    ODD[odd](partial.path)
    with caplog.at_level(logging.WARNING):
        assert partial.load(5) is None
    (record,) = caplog.records
    message = record.getMessage()
    assert "process_0.pth cannot be used (" in message and message.endswith("part is evaluated again")
    assert len(message) < 800


RESULTS: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_text('{"key": "key", "val'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[1]"),
    "no values": lambda path: path.write_text('{"key": "key"}'),
    "texts": lambda path: path.write_text('{"key": "key", "values": {"mIoU": "high"}}'),
    "no mIoU": lambda path: path.write_text('{"key": "key", "values": {}}'),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("odd", RESULTS)
def test_odd_results_are_reported_once_and_not_used(
    odd: str, partial: SavedCounts, caplog: pytest.LogCaptureFixture
) -> None:
    partial.save_result({"mIoU": 1.0})
    RESULTS[odd](partial.folder / RESULT)
    with caplog.at_level(logging.WARNING):
        assert partial.result() is None
    (record,) = caplog.records
    assert "finished.json cannot be used (" in record.getMessage()
    assert record.getMessage().endswith("the data set is evaluated again")


@pytest.fixture
def evaluator(tmp_path: Path) -> SemSegEvaluator:
    name = f"partial_{tmp_path.parent.name}_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [{"file_name": str(tmp_path / "1.png"), "sem_seg_file_name": "1.png"}])
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255)
    made = SemSegEvaluator(name, OutputConfig(tmp_path, num_panels=1, label_maps=False, rle=True))
    Image.new("RGB", (3, 2)).save(tmp_path / "1.png")
    sample = {"file_name": str(tmp_path / "1.png"), "sem_seg_file_name": "1.png", "sem_seg": np.ones((2, 3), np.uint8)}
    made.process([sample], [{"sem_seg_labels": torch.ones(2, 3, dtype=torch.int64)}])  # type: ignore[list-item]
    return made


def tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


ROW = (str(Path(__file__)), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.uint8))
ODD_STATES: dict[str, dict[str, Any]] = {
    "no counts": {"counts": None},
    "other classes": {"counts": torch.zeros(3, 3, dtype=torch.int64)},
    "fractions": {"counts": torch.zeros(2, 2)},
    "negative": {"counts": torch.full((2, 2), -1)},
    "text": {"rle": "[]"},
    "cut": {"rle": tensor('[{"a"')},
    "no UTF-8": {"rle": torch.full((5,), 255, dtype=torch.uint8)},
    "deep": {"rle": tensor("[" * 100_000)},
    "no entries": {"rle": tensor("[1, 2]")},
    "no rows": {"rows": 5},
    "short rows": {"rows": [("a",)]},
    "no class": {"rows": [(ROW[0], ROW[1] + 7, ROW[2])]},
    "other sizes": {"rows": [(ROW[0], ROW[1], ROW[2][:1])]},
    "no file": {"rows": [("/gone.png", *ROW[1:])]},
    "number as file": {"rows": [(7, *ROW[1:])]},
}


@pytest.mark.parametrize("odd", ODD_STATES)
def test_odd_states_are_refused_and_leave_nothing_counted(odd: str, evaluator: SemSegEvaluator) -> None:
    state = evaluator.state_dict()
    evaluator.load_state_dict(state)
    assert (
        evaluator.matrix.counts.tolist() == [[0, 0], [0, 6]] and len(evaluator.rle.entries) == len(evaluator.rows) == 1
    )
    assert json.loads(bytes(state["rle"].tolist()))[0]["category_id"] == 1
    with pytest.raises(ValueError, match=r"."):
        evaluator.load_state_dict(state | ODD_STATES[odd])
    assert not evaluator.matrix.counts.any() and not evaluator.rle.entries and not evaluator.rows


def test_files_that_do_not_fit_on_the_disk_are_two_lines(
    evaluator: SemSegEvaluator, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator.output = OutputConfig(evaluator.output.folder, 0, label_maps=False, rle=False, optional=True)
    evaluator.rows = []
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            with evaluator._optional_file():
                raise OSError(errno.ENOSPC, "No space left on device")
        evaluator.evaluate()
    first, last = (record.getMessage() for record in caplog.records)
    assert "a file of the evaluation could not be written ([Errno" in first
    assert last.endswith("20 files of the evaluation could not be written")


@pytest.mark.detectron2
def test_importing_the_engine_shows_no_warning_of_torch() -> None:
    command = [sys.executable, "-W", "always", "-c", "import san.d2.evaluate.evaluation"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr
    assert "torch.jit" not in shown

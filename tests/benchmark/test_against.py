"""Another implementation in the same rounds: a toy one, and adapters that are none."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from san.benchmark import measure as measuring
from san.benchmark import runner
from san.benchmark.cases import QUICK
from san.benchmark.measure import Settings, measure, measure_memory
from san.benchmark.report import FLOORS, NOTES, heading, table
from san.cli import benchmark
from san.cli.main import run_tool

TINY, TEXT = QUICK[0], QUICK[2]
FEW = Settings(runs=3, threads=1, product_size=64)

TOY = """
import torch
from toy_network import label_map

def make_run(case, inputs):
    if case["task"] == "text":
        names = inputs["names"]
        return lambda: [name.upper() for name in names]
    if case["task"] == "training":
        return None
    assert case["model"] == "tiny" and inputs["device"].type == "cpu"
    (image,) = inputs["images"]
    return lambda: label_map(image, case["classes"])
"""

NETWORK = """
calls = []

def label_map(image, classes):
    assert image.shape == (3, 96, 96)
    calls.append(classes)
    return image.sum(dim=0) % classes
"""


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters add their folders to the path of a process that does nothing else."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A checkout with its adapter, which imports a module of its folder."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "san_benchmark.py").write_text(TOY)
    (folder / "toy_network.py").write_text(NETWORK)
    return folder


def test_it_is_timed_in_the_same_rounds(toy: Path) -> None:
    record = measure(TINY, replace(FEW, against=str(toy), plain=True))
    assert record["against"]["parts"].keys() == {"all"} and record["against"]["seconds"] > 0
    for path in ("fast", "plain", "against"):
        assert len(record[path]["all_seconds"]) == 3 and record[path]["cpu_seconds"] > 0
    from toy_network import calls  # type: ignore[import-not-found]

    assert calls == [20] * (1 + 3), "a warm-up, and a run per round"
    assert measure_memory(TINY, replace(FEW, against=str(toy)), path="against") > 2**20
    text = table([record])
    assert "other (ms)" in text and "ratio to other" in text and "CPU (ms)" in text


def test_tasks_differ(toy: Path) -> None:
    """Text gets names; a task that the adapter leaves out is measured without it."""
    assert "against" in measure(replace(TEXT, classes=3), replace(FEW, against=str(toy)))
    record = measure(QUICK[3], replace(FEW, runs=1, against=str(toy / "san_benchmark.py")))
    assert not {"against", "against_error"} & record.keys() and "fast" in record


def test_its_memory_is_that_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def in_process(job: dict) -> dict:
        jobs.append(job.get("memory_of"))
        return {"peak_bytes": 5} if "memory_of" in job else {"fast": {}, "against": {"seconds": 1.0}}

    monkeypatch.setattr(runner, "_in_process", in_process)
    (record,) = runner.run_cases([TINY], replace(FEW, against="toy"))
    assert jobs == [None, "against"] and record["against"] == {"seconds": 1.0, "peak_bytes": 5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def make(): pass", "ValueError: the adapter .* has no function make_run"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def make_run(case, inputs): return lambda: 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_bad_adapter_is_told_and_the_case_measured(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(content)
    record = measure(TINY, replace(FEW, runs=1, against=str(tmp_path / "a.py")))
    assert re.match(message, record["against_error"])
    assert "against" not in record and record["fast"]["seconds"] > 0
    assert f"other implementation: {record['against_error']}" in table([record])


def test_the_command_refuses_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(benchmark, ["--quick", "--against", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no adapter at" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_floors_of_all_number_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the multiply-adds at the rate of its own product; int8 is left out where torch cannot multiply it."""
    record = measure(TINY, FEW)
    network = sum(value for name, value in record["multiply_adds"].items() if name != "output")
    seconds = {dtype: 2 * network / rate for dtype, rate in record["product"]["rates"].items()}
    assert seconds.keys() == record["floors"].keys() and all(floor > 0 for floor in record["floors"].values())
    assert seconds["float32"] == pytest.approx(record["fast"]["floor_seconds"])
    assert record["fast"]["cpu_times_floor"] > 0
    assert {"float32", "bfloat16"} <= record["floors"].keys() <= set(measuring.PRODUCTS)
    assert FLOORS in table([record]) and "floors:" in NOTES and "G/s in bfloat16" in heading([record], {"runs": 3})

    def fails(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(torch, "_int_mm", fails)
    assert measuring._products(FEW, torch.device("cpu")).keys() == {"float32", "bfloat16"}
    json.dumps(record)

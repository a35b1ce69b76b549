"""Counting, measuring and the command, on the model for tests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from san.benchmark.cases import QUICK, SQUARE, Case, sized
from san.benchmark.clocks import Recorder, counting
from san.benchmark.machine import peak_memory
from san.benchmark.measure import Settings, count, measure
from san.benchmark.runner import run_cases
from san.benchmark.workload import drawn_label_map
from san.cli import benchmark
from san.cli.main import run_tool

TINY, TEXT = QUICK[0], QUICK[2]
TRAINING, EVALUATION = QUICK[3], QUICK[4]
FEW = Settings(runs=2, threads=1, product_size=64, plain=True)


def test_multiply_adds_are_counted_exactly():
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    with counting() as recorder_of:
        recorder = recorder_of()
        a @ b
        recorder.mark("first")
        a @ b
        a @ b
        recorder.mark("second")
    assert recorder.parts() == {"first": 105, "second": 210}


def test_the_method_on_vit_b16_takes_what_was_published():
    """64.3 G with norms and resizes; the matrix products and convolutions alone are a little less."""
    parts = count(sized(Case("inference"), SQUARE), plain=True)
    network = sum(value for name, value in parts.items() if name != "output")
    assert network == pytest.approx(64.3e9, rel=0.02)
    assert network < 64.3e9
    own = count(sized(Case("inference"), SQUARE), plain=False)
    assert own["heads"] < parts["heads"]
    assert own["recognition"] < parts["recognition"]
    assert own["shallow CLIP"] == parts["shallow CLIP"]


def test_recorder_adds_up_parts_of_one_name():
    class Steps:
        now = 0

        def stamp(self):
            self.now += 1
            return self.now

        def between(self, earlier, later):
            return float(later - earlier)

    recorder = Recorder(Steps())
    for name in ("a", "b", "a"):
        recorder.mark(name)
    assert recorder.parts() == {"a": 2.0, "b": 1.0}


@pytest.mark.parametrize("case", [TINY, QUICK[1], TEXT, TRAINING, EVALUATION], ids=lambda case: case.name)
def test_every_task_on_both_paths(case):
    if case.task == "text":
        case = replace(case, classes=3)
    record = measure(case, FEW)
    json.dumps(record)
    for path in ("fast", "plain"):
        assert len(record[path]["all_seconds"]) == 2
        assert record[path]["seconds"] > 0
        assert sum(record[path]["parts"].values()) == pytest.approx(record[path]["seconds"], rel=1.0)
        assert record[path]["times_floor"] > 0
    network = sum(value for name, value in record["multiply_adds"].items() if name != "output")
    expected = network * record["product"]["seconds"] / 64**3
    assert record["fast"]["floor_seconds"] == pytest.approx(expected)
    names = set(record["fast"]["parts"])
    if case.task in ("inference", "training", "evaluation"):
        assert {"input", "shallow CLIP", "side network", "heads", "recognition"} < names
    if case.task == "training":
        assert {"losses", "backward, clipping", "update"} < names
        assert set(record["plain"]["parts"]) == names
    if case.task == "text":
        assert record["own_multiply_adds"]["text tower"] < record["multiply_adds"]["text tower"] / 2


def test_the_plain_path_is_the_plain_one(monkeypatch):
    """Both paths of a case really differ, run after run."""
    from san.benchmark import inference

    called = []
    monkeypatch.setattr(inference, "plain_labels", lambda *_, **__: called.append("plain"))
    monkeypatch.setattr(inference, "semantic_labels", lambda *_, **__: called.append("fast"))
    for plain in (False, True):
        workload = inference.make_workload(TINY, torch.device("cpu"), plain=plain)
        with counting() as recorder_of:
            for _ in range(2):
                recorder = recorder_of()
                workload.run(recorder)
                called.append(recorder.parts()["heads"])
    assert called[0] == called[2] == "fast"
    assert called[4] == called[6] == "plain"
    assert called[1] == called[3] < called[5] == called[7]


def test_label_maps_hold_few_classes_and_some_ignored():
    label_map = drawn_label_map(replace(TINY, classes=171), (64, 48), seed=1)
    assert label_map.shape == (64, 48)
    assert 2 <= len(label_map[label_map >= 0].unique()) <= 12
    assert label_map.max() < 171


def test_peak_memory_is_of_this_process_and_grows():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_memory(torch.device("cpu")) >= max(before, held.numel())


def test_settings_are_checked():
    with pytest.raises(ValueError, match="runs"):
        Settings(runs=0)
    with pytest.raises(ValueError, match="keep or system"):
        Settings(malloc="other")


def test_a_case_that_fails_is_told(monkeypatch):
    monkeypatch.setattr("san.benchmark.runner.sys.executable", "/bin/false")
    (record,) = run_cases([TINY], FEW)
    assert record["error"].startswith("exit code 1")


def test_the_command_writes_table_json_and_picture(tmp_path, capsys):
    arguments = ["--quick", "--cases", "inference/tiny/96x96*", "--runs", "2", "--threads", "1", "--product-size", "64"]
    assert run_tool(benchmark, [*arguments, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "benchmark.json").read_text())
    (record,) = content["records"]
    assert record["case"]["name"] == TINY.name
    assert record["large_buffers_kept"]
    assert record["machine"]["torch"] == torch.__version__
    assert 100 < record["fast"]["peak_bytes"] / 2**20 < 4000
    assert TINY.name in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert "× floor" in capsys.readouterr().out


def test_list_measures_nothing(capsys, tmp_path):
    assert run_tool(benchmark, ["--growth", "--list", "--cases", "loading/*", "--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.split() == [f"loading/{n}-workers" for n in ("no", 1, 2, 4)]
    assert not (tmp_path / "none").exists()


def test_a_wrong_glob_is_one_line(capsys):
    assert run_tool(benchmark, ["--quick", "--list", "--cases", "x"]) == 1
    assert "no case matches 'x'" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("case", [TINY, TRAINING], ids=lambda case: case.name)
def test_on_a_gpu(case):
    record = measure(case, replace(FEW, device="cuda"))
    assert record["fast"]["seconds"] > 0
    assert record["host_synchronisations"] >= 0
    assert record["fast"]["peak_bytes"] > 0

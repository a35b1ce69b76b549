"""Counting, measuring and the command, on the model for tests."""

from __future__ import annotations

import json
import warnings
from argparse import ArgumentParser
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from san.benchmark import text
from san.benchmark.cases import QUICK, SQUARE, Case, sized
from san.benchmark.clocks import Recorder, clock_of, counting
from san.benchmark.machine import peak_memory
from san.benchmark.measure import Settings, _once, count, host_synchronisations, measure
from san.benchmark.runner import _failure_message, run_cases
from san.benchmark.workload import Workload, random_label_map
from san.cli import benchmark
from san.cli.main import run_tool
from san.visualize.growth_plot import plot_growth as plot


def parse(arguments):
    parser = ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(arguments)


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
    """64.3 G, of which docs/analyze.md can explain the network's matrix products and convolutions, a little less."""
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
    label_map = random_label_map(replace(TINY, classes=171), (64, 48), seed=1)
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


def test_a_sample_is_extrapolated():
    workload = Workload(lambda recorder: recorder.mark("all"), items=60, sampled=20)
    monotonic = iter((0.0, 2.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("san.benchmark.clocks.time.perf_counter", lambda: next(monotonic))
        assert _once(workload, torch.device("cpu")) == {"all": 6.0}
    assert Workload(workload.run, items=60).scale == 1


def test_text_without_shortcuts_embeds_an_even_sample(monkeypatch):
    names = [f"{number}" for number in range(847)]
    chosen = text.sample(names)
    assert len(chosen) == text.PLAIN_SAMPLE
    assert chosen[0] == "23"
    assert {int(b) - int(a) for a, b in pairwise(chosen)} == {47, 48}
    assert text.sample(names[:30]) == names[:30], "hardly fewer"
    embedded = []
    monkeypatch.setattr(text, "plain_text_embed", lambda _, names: embedded.append(len(names)))
    workload = text.make_workload(replace(TEXT, classes=171), torch.device("cpu"), plain=True)
    workload.run(Recorder(clock_of(torch.device("cpu"))))
    assert embedded == [text.PLAIN_SAMPLE]
    assert workload.scale == pytest.approx(171 / text.PLAIN_SAMPLE)


def test_host_waits_are_those_of_the_run(monkeypatch):
    """Torch's first warning of a process is about the mode itself."""
    modes = []
    monkeypatch.setattr("torch.cuda.get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)

    def run(recorder):
        warnings.warn("Synchronization debug mode does not yet detect all synchronizing operations", stacklevel=1)
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    assert host_synchronisations(Workload(run, 1), torch.device("cpu")) == 2
    assert modes == ["warn", 0]


def test_where_the_plain_path_fails_the_case_is_measured_without(monkeypatch):
    jobs = []

    def in_process(job):
        jobs.append(job)
        if job["settings"]["plain"]:
            raise RuntimeError("ended by SIGKILL")
        return {"case": job["case"], "fast": {}}

    monkeypatch.setattr("san.benchmark.runner._in_process", in_process)
    (record,) = run_cases([TINY], FEW)
    assert record["plain_error"] == "ended by SIGKILL"
    assert "fast" in record
    assert len(jobs) == 2
    jobs.clear()
    (record,) = run_cases([TINY], replace(FEW, plain=False))
    assert "plain_error" not in record


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (-9, "", "ended by SIGKILL, as the system does when memory is used up"),
        (-11, "x", "ended by SIGSEGV"),
        (
            1,
            "Traceback\ntorch.OutOfMemoryError: CUDA out of memory.\nCompile with X.",
            "torch.OutOfMemoryError: CUDA out",
        ),
        (1, "\n", "exit code 1: it said nothing"),
    ],
)
def test_why_a_case_failed_is_one_line(code, stderr, said):
    assert said in _failure_message(code, stderr)
    assert "\n" not in _failure_message(code, stderr)


def test_without_a_gpu_a_gpu_is_refused_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run_tool(benchmark, ["--device", "cuda", "--out", str(tmp_path / "none")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--device is 'cuda' but PyTorch" in line and "sees no GPU; set it to cpu" in line
    assert not (tmp_path / "none").exists()


def test_an_interrupted_run_leaves_what_it_measured(tmp_path, monkeypatch):
    def records(cases, settings):
        yield {"case": cases[0].to_dict(), "error": "no memory"}
        raise KeyboardInterrupt

    monkeypatch.setattr("san.benchmark.runner.run_cases", records)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(parse(["--quick", "--out", str(tmp_path)]))
    (record,) = json.loads((tmp_path / "benchmark.json").read_text())["records"]
    assert record["error"] == "no memory"


def test_no_growth_no_picture(tmp_path):
    with pytest.raises(ValueError, match="no series has two measured values"):
        plot([], tmp_path / "growth.png")


def test_growth_is_drawn(tmp_path, monkeypatch):
    """One picture with a panel per series, a series from 0 among them; a failed case is left out."""

    def records(cases, settings):
        for case in cases:
            path = {"seconds": 0.1 * (case.classes + case.workers), "spread": 0.01, "parts": {"all": 1.0}}
            path |= {"peak_bytes": 2**30}
            machine = {"cpu": "a CPU", "cpu_flags": [], "cpus": 2, "threads": 2, "load": 0.1, "malloc": "keep"}
            machine |= {"device": "cpu", "torch": "2.9", "python": "3.12", "commit": None, "date": "2026-01-01"}
            record = {"case": case.to_dict(), "machine": machine, "items": 1, "item": "images", "fast": path}
            if case.task == "text":
                path |= {"floor_seconds": 0.05, "times_floor": 2.0}
            yield {"case": case.to_dict(), "error": "no memory"} if case.classes == 847 else record

    monkeypatch.setattr("san.benchmark.runner.run_cases", records)
    drawn = []
    monkeypatch.setattr("san.visualize.growth_plot.plot_growth", lambda *args, **_: drawn.append(args) or plot(*args))
    arguments = ["--growth", "--cases", "loading/*", "--cases", "text/*", "--out", str(tmp_path)]
    assert run_tool(benchmark, arguments) == 1, "a case failed"
    ((series, _),) = drawn
    assert {each.name: list(each.values) for each in series} == {
        "classes embedded": [20, 59, 171, 459],
        "loading workers": [0, 1, 2, 4],
    }
    assert [each.floors is None for each in series] == [False, True]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "## Growth" in (tmp_path / "benchmark.md").read_text()


def test_a_failed_case_is_reported(monkeypatch):
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
    assert TINY.title in (tmp_path / "benchmark.md").read_text()
    assert content["settings"]["command"].startswith("san benchmark --quick --cases 'inference/tiny/96x96*' --runs 2")
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

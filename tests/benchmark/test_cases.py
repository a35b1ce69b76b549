"""The tables of cases, and the figures to reach."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from san.benchmark.bars import BARS, bar_cases, bars_table, check_bars
from san.benchmark.cases import CUDA, FIXED, FULL, GROWTH, QUICK, STANDARD, VARIED, Case, growth_cases, select
from san.benchmark.report import growth_points, growth_table, heading, parts_table, ratio, table

MACHINE = {
    "cpu": "a CPU", "cpu_flags": ["avx2"], "cpus": 2, "threads": 2, "load": 0.1, "malloc": "keep", "torch": "2.9",
    "python": "3.12", "commit": "abc", "date": "2026-01-01", "device": "cpu",
}  # fmt: skip


def record_of(case: Case, seconds: float, *, plain: float | None = None, flags: tuple[str, ...] = ()) -> dict:
    """The record of a worker."""
    names = ("shallow CLIP", "output", "confusion matrix") if case.task == "evaluation" else ("shallow CLIP", "output")
    shares = {"shallow CLIP": 0.8, "output": 0.1, "confusion matrix": 0.1}
    path = {"seconds": seconds, "spread": 0.0, "all_seconds": [seconds], "peak_bytes": 2**30}
    path |= {
        "parts": {name: shares[name] * seconds for name in names},
        "times_floor": 1.5,
        "floor_seconds": seconds / 1.5,
    }
    record = {"case": case.to_dict(), "machine": MACHINE | {"cpu_flags": list(flags)}, "items": 1, "item": "images"}
    record |= {"fast": path, "multiply_adds": {"shallow CLIP": 1e9}}
    record["product"] = {"operations_per_second": 3e11, "rates": {"float32": 3e11, "int8": 2e12}}
    return record | ({"plain": path | {"seconds": plain, "all_seconds": [plain]}} if plain else {})


@pytest.mark.parametrize("cases", [STANDARD, FULL, CUDA, QUICK, growth_cases(), bar_cases()])
def test_names_are_unique_and_cases_survive_json(cases):
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert Case.from_dict(case.to_dict()) == case


def test_the_full_table_has_every_combination():
    inference = {
        (c.model, c.height, c.width, c.classes, c.batch, c.dtype, c.compiled) for c in FULL if c.task == "inference"
    }
    assert len(inference) == 2 * 2 * 3 * 2 * 2 * 2
    assert {(c.model, c.batch) for c in FULL if c.task == "training"} == {
        (m, b) for m in ("vit_b16", "vit_l14_336") for b in (2, 4)
    }
    assert {c.classes for c in FULL if c.task == "evaluation"} == {150, 847}


def test_a_growth_series_varies_one_number_upwards():
    assert GROWTH.keys() == VARIED.keys()
    for name, series in GROWTH.items():
        values = [getattr(case, VARIED[name]) for case in series]
        assert all(a < b for a, b in pairwise(values)), name


def test_select():
    assert [case.name for case in select(QUICK, ["text/*"])] == ["text/tiny/20"]
    assert select(QUICK, []) == list(QUICK)
    with pytest.raises(ValueError, match="no case matches 'nothing'"):
        select(QUICK, ["text/*", "nothing"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "x"}, "unknown task"),
        ({"dtype": "int4"}, "number type 'int4'; choose one of float32, bfloat16, int8"),
        ({"task": "training", "dtype": "int8"}, "int8 is for prediction"),
        ({"batch": 0}, "batch"),
    ],
)
def test_cases_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK[0], **change)


def test_bars_are_checked_where_measured():
    records = [record_of(case, 1.0, plain=4.0) for case in bar_cases()]
    found = {bar["what"]: bar for bar in check_bars(records)}
    assert len(found) == len(BARS) - 1, "the bar for AMX is none on a processor without"
    assert found["B/16, 640x640, 171 classes, fp32: × floor"]["met"]
    assert found["847 classes embedded, over 77 tokens"]["value"] == pytest.approx(0.25)
    assert not found["847 classes embedded, over 77 tokens"]["met"]
    assert found["evaluation, 847 classes, beyond the model"]["value"] == pytest.approx(0.25)
    assert not found["training samples per second and worker"]["met"], "1 per second"
    with_amx = [record_of(case, 1.0, plain=4.0, flags=("amx_bf16",)) for case in bar_cases()]
    assert len(check_bars(with_amx)) == len(BARS)
    assert check_bars([{"case": bar_cases()[0].to_dict(), "error": "x"}]) == []


def cells(text: str, first: str) -> list[str]:
    """The cells of the line of a Markdown table that begins with `first`, by their order."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables():
    measured = record_of(QUICK[0], 0.0123, plain=0.0246)
    alone = record_of(replace(QUICK[0], classes=7), 0.5) | {"plain_error": "ended by SIGKILL"}
    records = [measured, {"case": QUICK[1].to_dict(), "error": "out of memory"}, alone]
    text = table(records)
    assert cells(text, "case")[2:5] == ["images/s", "floor (ms)", "× floor"]
    assert "share of peak" not in text, "a column for GPUs"
    found = cells(text, QUICK[0].title)
    assert found[1:5] == ["12.3 ± 0.00", "81.30", "8.20", "1.50"]
    assert found[6:] == ["24.6", "0.5", "1,024"]
    assert cells(text, alone["case"]["model"] + ", 96×96, 7 classes, fp32")[6:] == ["", "", ""]
    assert f"- {QUICK[1].name}: out of memory" in text
    assert f"- {alone['case']['name']}, plain path: ended by SIGKILL" in text
    assert "shallow CLIP" in parts_table(records)
    assert ratio(measured) == pytest.approx(0.5)


def test_every_task_has_its_own_table_and_titles_are_unique_there():
    assert table([record_of(case, 1.0) for case in QUICK]).count("\n## ") == len({case.task for case in QUICK}) - 1
    for cases in (STANDARD, FULL, CUDA, QUICK, growth_cases()):
        assert len({(case.task, case.title) for case in cases}) == len(cases)


def test_a_heading_says_what_was_measured_on_what():
    record = record_of(QUICK[0], 1.0, flags=("avx2",))
    text = heading([record], {"runs": 3, "command": "san benchmark --quick", "load_at_start": 0.7})
    for each in (
        "`san benchmark --quick`",
        "abc",
        "median of 3 rounds",
        "a CPU (avx2), 2 threads of 2 CPUs",
        "load 0.7",
    ):
        assert each in text
    assert "300 G/s in float32, 2,000 G/s in int8" in text
    assert "allocator keeps large buffers" in text
    assert heading([], {"runs": 3}) == "Nothing was measured."


def test_an_extrapolated_time_says_so():
    record = record_of(Case("text", classes=847), 1.0, plain=20.0)
    record["plain"]["sampled_items"] = 18
    record["item"] = "classes"
    text = table([record])
    assert "≈ 20,000" in cells(text, "B/16, 847 classes")
    assert "extrapolated from an even sample of 18 classes" in text
    del record["plain"]["sampled_items"]
    assert "≈" not in table([record])


def test_bars_table():
    (first, *_) = bar_cases()
    text = bars_table([record_of(first, 1.0)])
    assert cells(text, BARS[0].what)[1:] == ["1.5", "≤ 1.8", "reached"]
    assert bars_table([]) == ""


def test_growth():
    series = GROWTH["batch"]
    records = [record_of(case, 0.1 * case.batch**2) for case in series]
    text = growth_table(records)
    assert text.count("2.00") >= len(series) - 1, "the power of a square"
    assert "batch of a training step" not in text, "which was not measured"
    assert [value for value, _ in growth_points(records)["batch"]] == [1, 2, 4, 8]
    assert growth_table(records[:1]) == "", "one value does not grow"
    assert GROWTH.keys() == FIXED.keys()

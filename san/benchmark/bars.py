"""Targets of the project, compared with measured figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from san.benchmark.cases import SQUARE, WIDE, Case, sized
from san.benchmark.report import CaseRecord, aligned, ratio

_GIB = 2**30


@dataclass(frozen=True)
class Bar:
    """One target.

    Attributes:
        what: description of the target.
        cases: the cases to measure.
        value: computes the figure from their records.
        limit: maximum of the figure; minimum if `at_least` is set.
        unit: unit of the figure.
        at_least: more is better.
        needs_plain: the plain path must be timed too.
        amx: only for processors with AMX.
    """

    what: str
    cases: tuple[Case, ...]
    value: Callable[[Sequence[CaseRecord]], float]
    limit: float
    unit: str = ""
    at_least: bool = False
    needs_plain: bool = False
    amx: bool = False


def _seconds(record: CaseRecord) -> float:
    return float(record["fast"]["seconds"])


def _peak_gib(records: Sequence[CaseRecord]) -> float:
    return float(records[0]["fast"]["peak_bytes"]) / _GIB


def _over_second(records: Sequence[CaseRecord]) -> float:
    return _seconds(records[0]) / _seconds(records[1])


def _per_second(records: Sequence[CaseRecord]) -> float:
    return int(records[0]["items"]) / _seconds(records[0])


def _second_vocabulary(records: Sequence[CaseRecord]) -> float:
    return float(records[0]["fast"]["parts"]["output"]) / _seconds(records[0])


def _beyond_model(records: Sequence[CaseRecord]) -> float:
    parts = records[0]["fast"]["parts"]
    beyond = parts["output"] + parts["confusion matrix"]
    return float(beyond / (sum(parts.values()) - beyond))


_B16 = sized(Case("inference"), SQUARE)
_WIDE_20, _WIDE_847 = (sized(replace(_B16, classes=classes), WIDE) for classes in (20, 847))
_TEXT, _STEP = Case("text", classes=847), Case("training", batch=2)
_EVALUATION = sized(Case("evaluation", classes=847), WIDE)

BARS: tuple[Bar, ...] = (
    Bar("B/16, 640x640, 171 classes, fp32: × floor", (_B16,), lambda r: float(r[0]["fast"]["times_floor"]), 1.8),
    Bar("the same in bf16, over fp32", (replace(_B16, dtype="bfloat16"), _B16), _over_second, 0.4, amx=True),
    Bar("640x853, 847 classes, over 20 classes", (_WIDE_847, _WIDE_20), _over_second, 1.3),
    Bar("640x853, 847 classes: peak memory", (_WIDE_847,), _peak_gib, 1.3, " GiB"),
    Bar("847 classes embedded, over 77 tokens", (_TEXT,), lambda r: ratio(r[0]), 1 / 6, needs_plain=True),
    Bar("second vocabulary (847), share of the first", (_WIDE_847,), _second_vocabulary, 0.1),
    Bar("training step, batch 2, over plain", (_STEP,), lambda r: ratio(r[0]), 0.6, needs_plain=True),
    Bar("training step, batch 2: peak memory", (_STEP,), _peak_gib, 3.2, " GiB"),
    Bar("evaluation, 847 classes, beyond the model", (_EVALUATION,), _beyond_model, 0.15),
    Bar("training samples per second and worker", (Case("loading"),), _per_second, 40, at_least=True),
)
"""Targets for a CPU. "Second vocabulary" is the part "output": class logits and label map with cached embeddings."""


def bar_cases() -> tuple[Case, ...]:
    """Return the cases of all targets, each once."""
    return tuple(dict.fromkeys(case for bar in BARS for case in bar.cases))


def check_bars(records: Sequence[CaseRecord]) -> list[dict[str, Any]]:
    """Return the targets with cases measured on a CPU: `what`, `value`, `limit`, `unit`, `met`."""
    by_case = {
        Case.from_dict(record["case"]): record
        for record in records
        if "fast" in record and record["machine"]["device"] == "cpu"
    }
    found = []
    for bar in BARS:
        own = [by_case[case] for case in bar.cases if case in by_case]
        if len(own) < len(bar.cases) or (bar.needs_plain and "plain" not in own[0]):
            continue
        if bar.amx and "amx_bf16" not in own[0]["machine"]["cpu_flags"]:
            continue
        value = bar.value(own)
        met = value >= bar.limit if bar.at_least else value <= bar.limit
        bar_itself = {"what": bar.what, "limit": bar.limit, "unit": bar.unit, "at_least": bar.at_least}
        found.append(bar_itself | {"value": value, "met": met})
    return found


def bars_table(records: Sequence[CaseRecord]) -> str:
    """Return a line per target that can be checked; empty without any."""
    rows = [["figure", "measured", "bar", ""]]
    for bar in check_bars(records):
        sign, verdict = "≥" if bar["at_least"] else "≤", "reached" if bar["met"] else "MISSED"
        limit = f"{sign} {bar['limit']:.3g}{bar['unit']}"
        rows.append([bar["what"], f"{bar['value']:.3g}{bar['unit']}", limit, verdict])
    return "## Figures to reach\n\n" + aligned(rows) if len(rows) > 1 else ""

"""Formats measured records as Markdown: a table per task, parts, growth, and the machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from san.benchmark.cases import FIXED, GROWTH, TASKS, VARIED, Case

Rows = list[list[str]]
CaseRecord = Mapping[str, Any]

IMAGE_DEPENDENT = ("output", "confusion matrix")
"""Parts without a floor: the multiply-adds of a label map depend on the image."""

NOTES = """\
- time: median of the rounds, ± half the distance between the quartiles; of a whole run (all images of the batch).
- floor: what one large matrix product of the same number type, timed in the same rounds, takes for the multiply-adds
  that the method without shortcuts spends in the network (without the label map). × floor is the time over it; below
  1 the case needs fewer multiply-adds than that method.
- CPU: CPU time of all threads of the process in a run, the median of the rounds. On a shared machine it varies less
  than the time. CPU × floor is it over the product's.
- floors: the floor in each number type that this machine multiplies; on a CPU in CPU time.
- peak: peak memory of a process with this case only; on a GPU that of torch's allocator.
- plain: the method without shortcuts in the same rounds; ratio is the time over plain's, the median of the rounds'.
- other: the implementation of --against, in the same rounds; ratio to other as the one to plain."""

FLOORS = "floors fp32 / bf16 / int8 (ms)"
"""Header of the column of floors by number type; without int8 if that is not measured."""


def heading(records: Sequence[CaseRecord], settings: Mapping[str, Any]) -> str:
    """Describe the machine and the settings, in a few lines.

    Args:
        records: records of all cases.
        settings: `runs`, and, if known, `command` and `load_at_start`.
    """
    machine = next((record["machine"] for record in records if "machine" in record), None)
    if machine is None:
        return "Nothing was measured."
    flags = f" ({' '.join(machine['cpu_flags'])})" if machine["cpu_flags"] else ""
    load = settings.get("load_at_start", machine["load"])
    load = "unknown" if load is None else load
    where = f"{machine['cpu']}{flags}, {machine['threads']} threads of {machine['cpus']} CPUs"
    if "gpu" in machine:
        where = f"{machine['gpu']}, CUDA {machine['cuda']}; {where}"
    large = "keeps large buffers" if machine["malloc"] == "keep" else "as the system has it"
    lines = [
        f"`{settings['command']}`, " if "command" in settings else "",
        f"{machine['date']}, commit {machine['commit']}, median of {settings['runs']} rounds, drawn weights.  \n",
        f"{where}; load {load} at the start; allocator {large}; ",
        f"torch {machine['torch']}, Python {machine['python']}.  \n",
        f"Operations of one large matrix product: {_rates(records) or 'not measured'}.",
    ]
    return "".join(lines)


def _rates(records: Iterable[CaseRecord]) -> str:
    """Return the speed of the floor's product per number type, the median over cases."""
    rates: dict[str, list[float]] = {}
    for record in records:
        if "product" in record:
            for dtype, rate in record["product"]["rates"].items():
                rates.setdefault(dtype, []).append(rate)
    return ", ".join(f"{statistics.median(each) / 1e9:,.0f} G/s in {dtype}" for dtype, each in rates.items())


def table(records: Sequence[CaseRecord]) -> str:
    """Return a table per task, with a line per case; failed cases are listed below."""
    sections = []
    for task, meaning in TASKS.items():
        measured = [record for record in records if "fast" in record and record["case"]["task"] == task]
        if measured:
            sections.append(f"## {task.capitalize()}: {meaning}\n\n{_task_table(measured)}")
    failed = [f"- {record['case']['name']}: {record['error']}" for record in records if "error" in record]
    failed += [
        f"- {record['case']['name']}, plain path: {record['plain_error']}"
        for record in records
        if "plain_error" in record
    ]
    failed += [
        f"- {record['case']['name']}, other implementation: {record['against_error']}"
        for record in records
        if "against_error" in record
    ]
    if failed:
        sections.append("## Failed\n\n" + "\n".join(failed))
    return "\n\n".join(sections)


def _task_table(records: Sequence[CaseRecord]) -> str:
    """Return the table of one task, without empty columns."""
    item = records[0]["item"]
    header = ["case", "time (ms)", f"{item}/s", "floor (ms)", "× floor", "CPU (ms)", "CPU × floor", FLOORS]
    header += ["peak (MiB)"]
    header += ["plain (ms)", "ratio", "plain peak (MiB)"]
    header += ["other (ms)", "other CPU (ms)", "ratio to other", "other peak (MiB)", "share of peak", "host waits"]
    rows = without_empty([header, *(_row(record) for record in records)])
    sampled = {record["plain"]["sampled_items"] for record in records if record.get("plain", {}).get("sampled_items")}
    notes = [f"≈: extrapolated from an even sample of {n} {item}, as all cost the same on that path." for n in sampled]
    return "\n\n".join([aligned(rows), *notes])


def _row(record: CaseRecord) -> list[str]:
    fast = record["fast"]
    on_gpu = record["machine"]["device"] == "cuda"
    return [
        Case.from_dict(record["case"]).title,
        f"{_ms(fast['seconds'])} ± {_ms(fast['spread'])}",
        f"{record['items'] / fast['seconds']:,.2f}",
        _ms(fast["floor_seconds"]) if "floor_seconds" in fast else "",
        f"{fast['times_floor']:.2f}" if "times_floor" in fast else "",
        _ms(fast["cpu_seconds"]) if "cpu_seconds" in fast else "",
        f"{fast['cpu_times_floor']:.2f}" if "cpu_times_floor" in fast else "",
        " / ".join(_ms(floor) for floor in record.get("floors", {}).values()),
        _mib(fast["peak_bytes"]),
        *(_plain_columns(record) if "plain" in record else ["", "", ""]),
        *(_other_columns(record) if "against" in record else ["", "", "", ""]),
        _share_of_peak(record) if on_gpu else "",
        f"{record.get('host_synchronisations', '')}",
    ]


def _plain_columns(record: CaseRecord) -> list[str]:
    plain = record["plain"]
    sign = "≈ " if plain.get("sampled_items") else ""
    peak = plain.get("peak_bytes")
    return [sign + _ms(plain["seconds"]), f"{ratio(record):.3g}", _mib(peak) if peak else ""]


def _other_columns(record: CaseRecord) -> list[str]:
    other = record["against"]
    peak = other.get("peak_bytes")
    times = [_ms(other["seconds"]), _ms(other["cpu_seconds"]), f"{ratio(record, 'against'):.3g}"]
    return [*times, _mib(peak) if peak else ""]


def parts_table(records: Sequence[CaseRecord]) -> str:
    """Return time, floor and plain time of the parts of every case that has several."""
    rows = [["case", "part", "time (ms)", "share", "floor (ms)", "× floor", "plain (ms)"]]
    for record in records:
        fast = record.get("fast")
        if fast is None or len(fast["parts"]) < 2:
            continue
        for index, (name, seconds) in enumerate(fast["parts"].items()):
            floor = fast.get("part_floors", {}).get(name, 0.0)
            plain = record.get("plain", {}).get("parts", {}).get(name)
            case = Case.from_dict(record["case"])
            rows.append(
                [
                    f"{case.task}: {case.title}" if index == 0 else "",
                    name,
                    _ms(seconds),
                    f"{seconds / fast['seconds']:.0%}",
                    _ms(floor) if floor else "",
                    f"{seconds / floor:.2f}" if floor else "",
                    _ms(plain) if plain is not None else "",
                ]
            )
    return "## Parts\n\n" + aligned(without_empty(rows)) if len(rows) > 1 else ""


def growth_points(records: Sequence[CaseRecord]) -> dict[str, list[tuple[int, CaseRecord]]]:
    """Return, per series of GROWTH with at least two measured cases, the varied number and the record."""
    by_case = {Case.from_dict(record["case"]): record for record in records if "fast" in record}
    series = {
        name: [(getattr(case, VARIED[name]), by_case[case]) for case in cases if case in by_case]
        for name, cases in GROWTH.items()
    }
    return {name: points for name, points in series.items() if len(points) > 1}


def growth_table(records: Sequence[CaseRecord]) -> str:
    """Return the table of all series, with the power of time between two values."""
    rows = [["series", "value", "time (ms)", "per item (ms)", "× first", "power", "× floor", "peak (MiB)"]]
    series = growth_points(records)
    for name, points in series.items():
        for index, (value, record) in enumerate(points):
            seconds, before = record["fast"]["seconds"], points[index - 1]
            rows.append(
                [
                    name if index == 0 else "",
                    f"{value:,}",
                    _ms(seconds),
                    _ms(seconds / record["items"]),
                    f"{seconds / points[0][1]['fast']['seconds']:.2f}",
                    _power(before[0], value, before[1]["fast"]["seconds"], seconds) if index else "",
                    f"{record['fast']['times_floor']:.2f}" if "times_floor" in record["fast"] else "",
                    _mib(record["fast"]["peak_bytes"]),
                ]
            )
    if not series:
        return ""
    fixed = "\n".join(f"- {name}: {FIXED[name]}" for name in series)
    meaning = "Power p: from the value before to this one, time grows as the value to the power p."
    return f"## Growth\n\n{aligned(rows)}\n\n{fixed}\n- {meaning}"


def ratio(record: CaseRecord, path: str = "plain") -> float:
    """Return the ratio to the time of the plain path or of "against", the median over rounds."""
    pairs = zip(record["fast"]["all_seconds"], record[path]["all_seconds"], strict=True)
    return float(statistics.median(fast / other for fast, other in pairs))


def _share_of_peak(record: CaseRecord) -> str:
    """Return the share of the measured product's speed, and of the data sheet's."""
    if "times_floor" not in record["fast"]:
        return ""
    measured = 1 / record["fast"]["times_floor"]
    declared = record["product"].get("share_of_declared")
    return f"{measured:.0%}" + (f" ({measured * declared:.0%} of stated)" if declared else "")


def network_total(multiply_adds: Mapping[str, float]) -> float:
    """Return the multiply-adds of all parts that do not depend on the image."""
    return sum(value for name, value in multiply_adds.items() if name not in IMAGE_DEPENDENT)


def _power(x0: float, x1: float, y0: float, y1: float) -> str:
    """Return the exponent of the power law through two points."""
    return f"{math.log(y1 / y0) / math.log(x1 / x0):.2f}" if min(x0, x1, y0, y1) > 0 and x0 != x1 else ""


def _ms(seconds: float) -> str:
    """Format milliseconds with at least three digits."""
    value = seconds * 1000
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def without_empty(rows: Rows) -> Rows:
    """Remove columns that are empty except for the header."""
    kept = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    return [[row[column] for column in kept] for row in rows]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column is left-aligned, the others are right-aligned."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    text = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (text[0], rule, *text[1:]))

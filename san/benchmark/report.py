"""Measured records as tables: one line per case, its parts, how cost grows, and the figures to reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from san.benchmark.cases import GROWTH, VARIED, Case

Record = Mapping[str, Any]

IMAGE_DEPENDENT = ("output", "confusion matrix")
"""Parts left out of a whole's floor: how many multiply-adds a label map takes depends on what is in the image."""

NOTES = """\
time: median of the rounds, ± half the distance between the quartiles; of a whole run (all images of the batch).
floor: what one large matrix product of the same type, timed in the same rounds, takes for the multiply-adds that the
  method as written down spends in the network (the label map's are left out). × floor is the time over it; below 1 the
  case needs fewer multiply-adds than the method as written down.
peak: the most memory that a fresh process with nothing but this case held; on a GPU what torch's allocator gave out.
plain: the method without shortcuts (san.plain) in the same rounds; ratio is time over plain's time."""


def heading(records: Sequence[Record], settings: Mapping[str, Any]) -> str:
    """What the figures were measured on, in a few lines."""
    machine = next((record["machine"] for record in records if "machine" in record), None)
    if machine is None:
        return "nothing was measured"
    where = machine.get("gpu") or f"{machine['cpu']} ({' '.join(machine['cpu_flags'])})"
    products = {
        record["case"]["dtype"]: record["product"]["operations_per_second"] for record in records if "product" in record
    }
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in products.items())
    return "\n".join(
        [
            f"{where}; {machine['threads']} threads of {machine['cpus']} CPUs, load {machine['load']}; "
            f"allocator: {machine['malloc']}",
            f"torch {machine['torch']}, Python {machine['python']}, commit {machine['commit']}, {machine['date']}; "
            f"{settings['runs']} rounds",
            f"one large matrix product: {rates or 'not measured'}",
        ]
    )


def table(records: Sequence[Record]) -> str:
    """One line per case, in Markdown, columns aligned; a failed case says why."""
    measured = [record for record in records if "fast" in record]
    with_plain = any("plain" in record for record in measured)
    on_gpu = any(record["machine"]["device"] == "cuda" for record in measured)
    header = ["case", "time (ms)", "per second", "floor (ms)", "× floor", "G mult-adds", "peak (MiB)"]
    header += ["plain (ms)", "ratio", "plain peak (MiB)"] if with_plain else []
    header += ["share of peak", "host waits"] if on_gpu else []
    rows = [header]
    for record in measured:
        rows.append(_row(record, with_plain=with_plain, on_gpu=on_gpu))
    lines = [_aligned(rows)] if measured else []
    lines += [f"failed: {record['case']['name']}: {record['error']}" for record in records if "error" in record]
    return "\n".join(lines)


def parts_table(records: Sequence[Record]) -> str:
    """The parts of every case that has several: time, floor, and the plain path's time."""
    rows = [["case", "part", "time (ms)", "share", "floor (ms)", "× floor", "plain (ms)"]]
    for record in records:
        fast = record.get("fast")
        if fast is None or len(fast["parts"]) < 2:
            continue
        for name, seconds in fast["parts"].items():
            floor = fast.get("part_floors", {}).get(name, 0.0)
            plain = record.get("plain", {}).get("parts", {}).get(name)
            rows.append(
                [
                    record["case"]["name"],
                    name,
                    _ms(seconds),
                    f"{seconds / fast['seconds']:.0%}",
                    _ms(floor) if floor else "",
                    f"{seconds / floor:.2f}" if floor else "",
                    _ms(plain) if plain is not None else "",
                ]
            )
    return _aligned(rows) if len(rows) > 1 else ""


def growth_table(records: Sequence[Record]) -> str:
    """Per series of GROWTH what was measured, and the power of the varied number that time grows with at its end."""
    by_case = {Case.from_dict(record["case"]): record for record in records if "fast" in record}
    rows = [["series", "value", "time (ms)", "per item (ms)", "× first", "power", "peak (MiB)"]]
    for series, cases in GROWTH.items():
        points = [(getattr(case, VARIED[series]), by_case[case]) for case in cases if case in by_case]
        if len(points) < 2:
            continue
        for index, (value, record) in enumerate(points):
            seconds, before = record["fast"]["seconds"], points[index - 1]
            rows.append(
                [
                    series if index == 0 else "",
                    f"{value}",
                    _ms(seconds),
                    _ms(seconds / record["items"]),
                    f"{seconds / points[0][1]['fast']['seconds']:.2f}",
                    _power(before[0], value, before[1]["fast"]["seconds"], seconds) if index else "",
                    f"{record['fast']['peak_bytes'] / 2**20:,.0f}",
                ]
            )
    return _aligned(rows) if len(rows) > 1 else ""


def _row(record: Record, *, with_plain: bool, on_gpu: bool) -> list[str]:
    fast, plain = record["fast"], record.get("plain")
    seconds = fast["seconds"]
    row = [
        record["case"]["name"],
        f"{_ms(seconds)} ± {_ms(fast['spread'])}",
        f"{record['items'] / seconds:,.2f} {record['item']}",
        _ms(fast["floor_seconds"]) if "floor_seconds" in fast else "",
        f"{fast['times_floor']:.2f}" if "times_floor" in fast else "",
        f"{network_total(record['multiply_adds']) / 1e9:,.1f}" if "multiply_adds" in record else "",
        f"{fast['peak_bytes'] / 2**20:,.0f}",
    ]
    if with_plain:
        row += ["", "", ""] if plain is None else _plain_columns(record)
    if on_gpu:
        row += [_share_of_peak(record), f"{record.get('host_synchronisations', '')}"]
    return row


def _plain_columns(record: Record) -> list[str]:
    plain = record["plain"]
    peak = plain.get("peak_bytes")
    return [_ms(plain["seconds"]), f"{ratio(record):.2f}", f"{peak / 2**20:,.0f}" if peak else ""]


def ratio(record: Record) -> float:
    """Time over the plain path's: the median of the rounds' ratios."""
    pairs = zip(record["fast"]["all_seconds"], record["plain"]["all_seconds"], strict=True)
    ratios = sorted(fast / plain for fast, plain in pairs)
    middle = len(ratios) // 2
    return float(ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2)


def _share_of_peak(record: Record) -> str:
    """Of the measured product's speed, and of the one that the maker states."""
    if "times_floor" not in record["fast"]:
        return ""
    measured = 1 / record["fast"]["times_floor"]
    declared = record["product"].get("share_of_declared")
    return f"{measured:.0%}" + (f" ({measured * declared:.0%} of stated)" if declared else "")


def network_total(multiply_adds: Mapping[str, float]) -> float:
    """Multiply-adds of all parts but those that depend on what is in the image."""
    return sum(value for name, value in multiply_adds.items() if name not in IMAGE_DEPENDENT)


def _power(x0: float, x1: float, y0: float, y1: float) -> str:
    """The exponent of a power law through two points."""
    return f"{math.log(y1 / y0) / math.log(x1 / x0):.2f}" if min(x0, x1, y0, y1) > 0 and x0 != x1 else ""


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or more."""
    value = seconds * 1000
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (text[0], rule, *text[1:]))

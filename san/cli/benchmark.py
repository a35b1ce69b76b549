"""Measures speed and memory, each case in a fresh process, beside the floor that this machine sets.

Examples:
  san benchmark --quick                              # a small model: does it work here?
  san benchmark --list                               # the cases and their names
  san benchmark --bars --plain                       # the figures that the project has set itself
  san benchmark --cases 'inference/vit_b16/*' --runs 9
  san benchmark --growth                             # how cost grows with size, classes, queries, batch, workers

Weights are drawn, nothing is downloaded. Writes benchmark.json, benchmark.md and benchmark.png. See docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from san.benchmark.cases import Case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--quick", action="store_true", help="a small model only, to see that everything works")
    tables.add_argument("--bars", action="store_true", help="what the figures to reach need (docs/speed.md)")
    tables.add_argument("--full", action="store_true", help="every combination of the standard table's settings")
    tables.add_argument("--growth", action="store_true", help="series in which one number grows")
    parser.add_argument(
        "--cases", metavar="GLOB", action="append", default=[], help="only cases whose name matches; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="print the cases' names and measure nothing")
    parser.add_argument("--plain", action="store_true", help="time the method without shortcuts beside each case")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds per case (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: one per CPU of this process)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument(
        "--malloc",
        default="keep",
        choices=("keep", "system"),
        help="C library's allocator: keep large buffers, as the programs do, or the system's default "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--product-size", type=int, metavar="N", help="N x N matrices for the floor (default: 3072, on a GPU 8192)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("output/benchmark"), help="folder of the results (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measures; returns 1 if a case failed."""
    from san.benchmark.cases import select

    cases = select(_table(args), args.cases)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    from san.benchmark.measure import Settings
    from san.benchmark.runner import run_cases

    settings = Settings(
        runs=args.runs,
        threads=args.threads or _cpus(),
        device=args.device,
        malloc=args.malloc,
        plain=args.plain,
        product_size=args.product_size,
    )
    records: list[dict[str, Any]] = []
    for number, record in enumerate(run_cases(cases, settings), 1):
        records.append(record)
        print(f"[{number}/{len(cases)}] {_line(record)}", file=sys.stderr, flush=True)
    text = _report(records, settings.to_dict())
    print(text)
    _write(records, settings.to_dict(), text, args.out)
    print(f"\nwritten: {', '.join(str(args.out / f'benchmark.{kind}') for kind in ('json', 'md', 'png'))}")
    return int(any("error" in record for record in records))


def _table(args: argparse.Namespace) -> Sequence[Case]:
    """The cases to choose from."""
    from san.benchmark import bars, cases

    if args.quick:
        return cases.QUICK
    if args.bars:
        return bars.bar_cases()
    if args.full:
        return cases.FULL
    if args.growth:
        return cases.growth_cases()
    return cases.CUDA if args.device == "cuda" else cases.STANDARD


def _cpus() -> int:
    """How many this process may use."""
    import torch

    return torch.get_num_threads()


def _line(record: Mapping[str, Any]) -> str:
    """A case that is done."""
    name = record["case"]["name"]
    if "error" in record:
        return f"{name}: failed: {record['error']}"
    return f"{name}: {record['fast']['seconds'] * 1000:,.1f} ms"


def _report(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """All tables."""
    from san.benchmark import bars, report

    sections = [
        report.heading(records, settings),
        report.table(records),
        report.parts_table(records),
        report.growth_table(records),
        bars.bars_table(records),
        report.NOTES,
    ]
    return "\n\n".join(section for section in sections if section)


def _write(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], text: str, folder: Path) -> None:
    """The three files."""
    from san.benchmark import bars
    from san.visualize.benchmark_plot import TimeBar, plot_benchmark

    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "records": records, "bars": bars.check_bars(records)}
    (folder / "benchmark.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "benchmark.md").write_text(text + "\n", encoding="utf-8")
    measured = [record for record in records if "fast" in record]
    times = [
        TimeBar(
            record["case"]["name"],
            record["fast"]["seconds"],
            record["fast"]["spread"],
            record["fast"].get("floor_seconds"),
            record.get("plain", {}).get("seconds"),
        )
        for record in measured
    ]
    machine = measured[0]["machine"] if measured else {}
    where = machine.get("gpu") or machine.get("cpu")
    title = f"Time of a run: {where}, {machine.get('threads')} threads, torch {machine.get('torch')}"
    plot_benchmark(times, folder / "benchmark.png", title=title)

"""Measure speed and memory, each case in a new process, and compare with the floor of this machine.

Examples:
  san benchmark --quick                              # a small model, to see that it works
  san benchmark --list                               # the cases and their names
  san benchmark --bars --plain                       # the targets of the project
  san benchmark --cases 'inference/vit_b16/*' --runs 9
  san benchmark --cases 'inference/vit_b16/*' --against ~/published/san_benchmark.py
  san benchmark --growth                             # how cost grows with size, classes, queries, batch, workers

Weights are random, nothing is downloaded. Writes benchmark.json (all figures), benchmark.md (the tables), benchmark.png
(times and floors) and, with --growth, growth.png. A case that fails is reported in one line, the others continue, and
the exit code is 1. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.options import path_option
from san.io.errors import require_extra

if TYPE_CHECKING:
    from san.benchmark.cases import Case
    from san.visualize.growth_plot import Growth


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--quick", action="store_true", help="a small model only, to see that everything works")
    tables.add_argument("--bars", action="store_true", help="the cases of the project's targets (docs/benchmarks.md)")
    tables.add_argument("--full", action="store_true", help="every combination of the standard table's settings")
    tables.add_argument("--growth", action="store_true", help="series in which one number grows")
    parser.add_argument(
        "--cases", metavar="GLOB", action="append", default=[], help="only cases whose name matches; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="print the cases' names and measure nothing")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="also time the method without shortcuts; "
        "text at 77 tokens is extrapolated from an even sample of the classes",
    )
    parser.add_argument(
        "--against",
        type=path_option,
        metavar="PATH",
        help="time another implementation in the same rounds: a Python file with a function make_run, or a folder with "
        "such a file called san_benchmark.py; it is imported and run (docs/benchmarks.md)",
    )
    parser.add_argument("--runs", type=int, default=5, help="timed rounds per case (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: one per CPU of this process)")
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="where to measure; on cuda with a table of its own (default: %(default)s)",
    )
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
        "--out", type=path_option, default=Path("output/benchmark"), help="folder of the results (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure; return 1 if a case failed."""
    from san.benchmark.cases import select

    cases = select(_table(args), args.cases)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    require_extra("train", "measuring", "fvcore", "scipy", "matplotlib")
    from san.benchmark.against import adapter_file
    from san.benchmark.machine import load_average
    from san.benchmark.measure import Settings
    from san.benchmark.runner import run_cases
    from san.devices import checked_device

    checked_device(args.device, "--device")  # otherwise every case would fail
    against = "" if args.against is None else str(adapter_file(args.against).resolve())
    settings = Settings(
        runs=args.runs,
        threads=args.threads or _cpus(),
        device=args.device,
        malloc=args.malloc,
        plain=args.plain,
        product_size=args.product_size,
        against=against,
    )
    context = settings.to_dict() | {"command": command_of(args), "load_at_start": load_average()}
    records: list[dict[str, Any]] = []
    for number, record in enumerate(run_cases(cases, settings), 1):
        records.append(record)
        _save(records, context, args.out)  # after each case, in case of an interruption
        print(f"[{number}/{len(cases)}] {_line(record)}", file=sys.stderr, flush=True)
    text = _report(records, context)
    print(text)
    files = _write(records, context, text, args.out)
    print(f"\nwritten: {', '.join(map(str, files))}")
    return int(any({"error", "plain_error", "against_error"} & record.keys() for record in records))


def command_of(args: argparse.Namespace) -> str:
    """Return the command line of this run."""
    flags = [f"--{name}" for name in ("quick", "bars", "full", "growth", "plain") if getattr(args, name)]
    options = [part for pattern in args.cases for part in ("--cases", pattern)] + ["--runs", str(args.runs)]
    options += ["--threads", str(args.threads)] if args.threads else []
    options += ["--device", args.device] if args.device != "cpu" else []
    options += ["--malloc", args.malloc] if args.malloc != "keep" else []
    options += ["--against", str(args.against)] if args.against else []
    options += ["--product-size", str(args.product_size)] if args.product_size else []
    return shlex.join(["san", "benchmark", *flags, *options])


def _table(args: argparse.Namespace) -> Sequence[Case]:
    """Return the cases to choose from."""
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
    """Return the number of CPUs that this process may use."""
    import torch

    return torch.get_num_threads()


def _line(record: Mapping[str, Any]) -> str:
    """Return the line of a finished case."""
    name = record["case"]["name"]
    if "error" in record:
        return f"{name}: failed: {record['error']}"
    plain = f"; plain path failed: {record['plain_error']}" if "plain_error" in record else ""
    if "plain" in record:
        plain = f"; plain {record['plain']['seconds'] * 1000:,.1f} ms"
    other = f"; other implementation failed: {record['against_error']}" if "against_error" in record else ""
    if "against" in record:
        other = f"; other {record['against']['seconds'] * 1000:,.1f} ms"
    return f"{name}: {record['fast']['seconds'] * 1000:,.1f} ms{plain}{other}"


def _report(records: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> str:
    """Return all tables."""
    from san.benchmark import bars, report

    sections = [
        report.heading(records, context),
        bars.bars_table(records),
        report.table(records),
        report.parts_table(records),
        report.growth_table(records),
        f"## How to read it\n\n{report.NOTES}",
    ]
    return "\n\n".join(section for section in sections if section)


def _write(records: Sequence[Mapping[str, Any]], context: Mapping[str, Any], text: str, folder: Path) -> list[Path]:
    """Write the files that have content, and return them."""
    from san.visualize.benchmark_plot import TimeBar, plot_benchmark

    files = [_save(records, context, folder), folder / "benchmark.md"]
    files[1].write_text(text + "\n", encoding="utf-8")
    times = [
        TimeBar(
            record["case"]["name"],
            record["fast"]["seconds"],
            record["fast"]["spread"],
            record["fast"].get("floor_seconds"),
            record["fast"].get("times_floor"),
            record.get("plain", {}).get("seconds"),
        )
        for record in records
        if "fast" in record
    ]
    where = _where(records)
    if times:
        files.append(folder / "benchmark.png")
        plot_benchmark(times, files[-1], title=f"Time of a run: {where}")
    growth = _growth(records)
    if growth:
        from san.visualize.growth_plot import plot_growth

        files.append(folder / "growth.png")
        plot_growth(growth, files[-1], title=f"How the time of a run grows: {where}")
    return files


def _save(records: Sequence[Mapping[str, Any]], context: Mapping[str, Any], folder: Path) -> Path:
    """Write all figures so far as JSON."""
    from san.benchmark import bars

    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": context, "records": records, "bars": bars.check_bars(records)}
    path = folder / "benchmark.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def _growth(records: Sequence[Mapping[str, Any]]) -> list[Growth]:
    """Return the measured growth series for the picture."""
    from san.benchmark.cases import FIXED
    from san.benchmark.report import growth_points
    from san.visualize.growth_plot import Growth

    series = []
    for name, points in growth_points(records).items():
        values, paths = [value for value, _ in points], [record["fast"] for _, record in points]
        floors = [path["floor_seconds"] for path in paths] if all("floor_seconds" in path for path in paths) else None
        seconds, spreads = [path["seconds"] for path in paths], [path["spread"] for path in paths]
        series.append(Growth(name, FIXED[name], values, seconds, spreads, floors))
    return series


def _where(records: Sequence[Mapping[str, Any]]) -> str:
    """Describe the machine briefly."""
    machine: Mapping[str, Any] = next((record["machine"] for record in records if "machine" in record), {})
    where = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    return f"{where}, torch {machine.get('torch')}"

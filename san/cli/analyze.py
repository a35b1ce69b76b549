r"""Measure the parameters, multiply-adds, time and memory of each part of a model.

Examples:
  san analyze                                             # the shapes model
  san analyze --variant vit_b16 --size 640x640 --classes 171
  san analyze --variant vit_l14_336 --no-timing --json l14.json --plot l14.png
  san analyze --variant configs/shapes/san_shapes_quick.yaml --import my_parts --no-timing
  san analyze --model output/my_run --device cuda --dtype bfloat16

G is 10^9 multiply-adds; a product and its addition count as one. Matrix products, convolutions and attention are
counted; norms, activations, resizes and pooling are 0. "As written" is the method without SAN's shortcuts, which
compute the same with fewer products. The label map is counted with every class at every pixel. Counting needs no
weights and no memory; timing runs the model on one image of random pixels. See docs/analyze.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.options import (
    add_model_options,
    load_predictor,
    path_option,
    png_option,
    positive_option,
    untrained_config,
)
from san.io.errors import require_extra

if TYPE_CHECKING:
    from san.inference.predictor import Predictor
    from san.model.san import SANModel

_MOST_PIXELS = 16_384
_Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_options(parser, untrained=True)
    work = parser.add_argument_group("work")
    work.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="height and width of the image in the network, in pixels (default: the model's own)",
    )
    work.add_argument(
        "--classes",
        type=positive_option,
        metavar="N",
        help="size of the vocabulary (default: 171; 36 for a shapes CLIP)",
    )
    work.add_argument("--no-timing", action="store_true", help="count only")
    work.add_argument(
        "--runs",
        type=positive_option,
        default=5,
        metavar="N",
        help="timed runs, after two others (default: %(default)s)",
    )
    output = parser.add_argument_group("further results")
    output.add_argument("--json", type=path_option, metavar="FILE", help="all figures")
    output.add_argument("--plot", type=png_option, metavar="FILE.png", help="bars per part")


def run(args: argparse.Namespace) -> int:
    """Count, measure, print and write; return the exit code.

    Raises:
        ValueError, FileNotFoundError: the model does not exist, or the image is too small for it.
    """
    if args.dtype == "int8":
        raise ValueError("--dtype is int8, but multiply-adds and weights are counted in floating point; give another")
    if args.plot is not None:
        require_extra("train", "the bar chart", "matplotlib")
    for file in (args.json, args.plot):
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder; give the name of a file")
    predictor: Predictor | None = None
    if args.variant is not None and args.no_timing:
        model = _without_weights(args)
    else:
        predictor = load_predictor(args)
        model = predictor.model
    record = _analyze(args, model, predictor)
    print(_table(record))
    print(f"\n{_notes(record)}")
    if args.json is not None:
        _write_json(record, args.json)
    if args.plot is not None:
        _plot(record, args.plot)
    return 0


def _without_weights(args: argparse.Namespace) -> SANModel:
    """Build the model of --variant with shapes only."""
    from san.clip.loader import load_clip
    from san.model.build import build_outline, freeze

    config = untrained_config(args)
    model = build_outline(config, load_clip(config.clip.name, None))
    freeze(model)
    return model


def _analyze(args: argparse.Namespace, model: SANModel, predictor: Predictor | None) -> _Record:
    """Return all figures as plain data."""
    from san.benchmark import analysis

    side = model.config.side_adapter.image_size
    height, width = args.size or (side, side)
    classes = args.classes or (36 if model.config.clip.name == "shapes" else 171)
    piece, names = analysis.AnalysisInput(height, width, classes), analysis.names_for(model, classes)
    record: _Record = {
        "model": args.variant if args.variant is not None else args.model,
        "random_weights": args.variant is not None,
        "size": [height, width],
        "padded_size": [-(-each // model.config.size_divisibility) * model.config.size_divisibility
                        for each in (height, width)],
        "classes": classes,
        "queries": model.config.side_adapter.num_queries,
    }  # fmt: skip
    parameters = analysis.count_parameters(model)
    record["parameters"] = {
        "all": sum(total for total, _ in parameters.values()),
        "trained": sum(trained for _, trained in parameters.values()),
        "parts": {part: {"all": total, "trained": trained} for part, (total, trained) in parameters.items()},
    }
    if predictor is not None and not args.no_timing:  # first, as counting takes memory
        record["timing"] = _timing(args, predictor, piece)
    own = analysis.count_multiply_adds(model, piece)
    written = analysis.count_multiply_adds(model, piece, as_written=True)
    assert own is not None
    if names is not None:
        own[analysis.TEXT_TOWER] = analysis.count_text(model, names)
        if written is not None:
            written[analysis.TEXT_TOWER] = analysis.count_text(model, names, as_written=True)
    record["multiply_adds"] = {"parts": own, "network": _network(own)}
    record["multiply_adds_as_written"] = written and {"parts": written, "network": _network(written)}
    return record


def _timing(args: argparse.Namespace, predictor: Predictor, piece: Any) -> _Record:
    from dataclasses import asdict

    import torch

    from san.benchmark.analysis import measure_time
    from san.benchmark.machine import describe_machine

    timing = measure_time(predictor.model, piece, dtype=predictor.dtype, runs=args.runs, compiled=predictor.compiled)
    machine = describe_machine(predictor.device, threads=torch.get_num_threads(), malloc="system")
    found = asdict(timing) | {"images_per_second": 1 / timing.seconds, "runs": args.runs}
    return found | {"dtype": args.dtype, "compiled": predictor.compiled, "machine": machine}


def _network(parts: dict[str, int]) -> int:
    """Return the multiply-adds of the network, without label map and text tower."""
    from san.benchmark.analysis import NETWORK

    return sum(count for part, count in parts.items() if part in NETWORK)


def _table(record: _Record) -> str:
    """Return all figures as a table for the terminal."""
    from san.benchmark.analysis import COMPILED, LABEL_MAP, NETWORK, PARTS
    from san.benchmark.report import aligned, without_empty

    own, written = record["multiply_adds"], record["multiply_adds_as_written"] or {"parts": {}}
    parameters, timing = record["parameters"], record.get("timing") or {"parts": {}}
    per_image = sum(timing["parts"].values())
    rows = [["part", "parameters", "trained", "G", "share", "G as written", "ms", "share of time"]]
    for part in PARTS:
        held = parameters["parts"].get(part, {})
        count, plain, seconds = own["parts"].get(part), written["parts"].get(part), timing["parts"].get(part)
        share = f"{count / own['network']:.1%}" if count is not None and part in NETWORK else ""
        time_share = f"{seconds / per_image:.1%}" if seconds is not None else ""
        if part == "text tower":
            seconds = timing.get("text_seconds")
        if held or count is not None or seconds is not None:
            numbers = [f"{held[kind]:,}" if held else "" for kind in ("all", "trained")]
            rows.append([part, *numbers, _giga(count), share, _giga(plain), _ms(seconds), time_share])
    last = 1 + max(index for index, row in enumerate(rows) if row[0] in (COMPILED, *NETWORK))
    network = sum(seconds for part, seconds in timing["parts"].items() if part != LABEL_MAP)
    total = [_giga(own["network"]), "100.0%", _giga(written.get("network"))]
    times = [_ms(network), f"{network / per_image:.1%}"] if per_image else ["", ""]
    rows.insert(last, ["network: all of the above", "", "", *total, *times])
    rows.append(["model", f"{parameters['all']:,}", f"{parameters['trained']:,}", "", "", "", "", ""])
    return aligned(without_empty(rows))


def _notes(record: _Record) -> str:
    """Return notes below the table."""
    height, width = record["size"]
    padded = "x".join(map(str, record["padded_size"]))
    of = f" (padded to {padded})" if record["padded_size"] != record["size"] else ""
    lines = [
        f"{record['model']}: one image of {height}x{width}{of}, {record['classes']} classes, {record['queries']} "
        "queries. G: 10^9 multiply-adds.",
    ]
    if "text tower" in record["multiply_adds"]["parts"]:
        lines.append("The text tower runs once per vocabulary, not per image.")
    else:
        lines.append(f"The text tower is not counted: no label set has {record['classes']} names.")
    if record["multiply_adds_as_written"] is None:
        lines.append(
            "The method as written is not counted: the bias head is not SAN's own, or the CLIP's family not vit."
        )
    timing = record.get("timing")
    if timing:
        machine = timing["machine"]
        where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
        peak = "" if timing["peak_is_of_runs"] else ", loading the model included"
        lines += [
            f"{timing['images_per_second']:.3g} images per second ({_ms(timing['seconds'])} ms ± "
            f"{_ms(timing['spread'])}, {timing['runs']} runs, {timing['dtype']}); peak memory "
            f"{timing['peak_bytes'] / 2**20:,.0f} MiB{peak}.",
            f"{where}, torch {machine['torch']}, load {machine['load']}.",
        ]
    return "\n".join(lines)


def _write_json(record: _Record, file: Path) -> None:
    from san.io.files import write_whole

    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {file}", file=sys.stderr)


def _plot(record: _Record, file: Path) -> None:
    from san.benchmark.analysis import PARTS
    from san.visualize.part_bars import PartBars, plot_parts

    held = record["parameters"]["parts"]
    counts = {part: count for part, count in record["multiply_adds"]["parts"].items() if part != "text tower"}
    groups = [
        PartBars(
            "parameters (M)",
            {part: each["all"] / 1e6 for part, each in held.items()},
            {part: each["trained"] / 1e6 for part, each in held.items()},
            ("all", "trained"),
        ),
        PartBars("multiply-adds per image (G)", {part: count / 1e9 for part, count in counts.items()}),
    ]
    if record.get("timing"):
        parts = record["timing"]["parts"]
        groups.append(PartBars("time per image (ms)", {part: 1000 * seconds for part, seconds in parts.items()}))
    size = "×".join(map(str, record["size"]))
    plot_parts(groups, file, order=PARTS, title=f"{record['model']}, {size}, {record['classes']} classes")
    print(f"written: {file}", file=sys.stderr)


def _giga(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e9:,.3f}" if count == 0 or count >= 1e8 else f"{count / 1e9:.3g}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:,.1f}"


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})[x×]([0-9]{1,6})", text.strip().lower())
    if not found or not all(1 <= int(each) <= _MOST_PIXELS for each in found.groups()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; give height and width from 1 to {_MOST_PIXELS}, such as 640x853"
        )
    return int(found[1]), int(found[2])

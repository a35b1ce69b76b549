r"""Compare the class names of data sets by the similarity of their text embeddings.

Examples:
  san similarity --model san_vit_b_16                     # the six benchmarks against COCO-Stuff
  san similarity voc_20 my_names.txt --to ade20k_150 --csv names.csv --json sets.json
  san similarity --per-class output/eval/ade20k_sem_seg_val/per_class.csv --plot iou.png --model san_vit_b_16

SET is a label set (coco_stuff_171, ...), a file of names (.txt, .json, .yaml), or names separated by commas. For every
name, the nearest name of the other set is found by cosine similarity. For whole sets, the mean and the minimum of these
are shown in both directions, and two symmetric figures: "Hausdorff", the smaller minimum (1 minus the Hausdorff
distance under 1 - cosine), and "mean Hausdorff", the smaller mean. With random weights, and for names that a small CLIP
does not know, the figures mean nothing, and a warning is printed. See docs/analyze.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.options import add_model_options, load_predictor, path_option, path_or_name_option, png_option
from san.io.errors import excerpt, printable, require_extra

if TYPE_CHECKING:
    from san.evaluation.similarity import SetSimilarity
    from san.model.san import SANModel
    from san.vocabulary.vocabulary import Vocabulary

_Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "sets",
        nargs="*",
        type=path_or_name_option,
        metavar="SET",
        help="label sets to compare (default: the six benchmarks; with --per-class, the classes of that file)",
    )
    parser.add_argument(
        "--to",
        type=path_or_name_option,
        default="coco_stuff_171",
        metavar="SET",
        help="the other set (default: %(default)s)",
    )
    parser.add_argument(
        "--per-class",
        type=path_option,
        metavar="FILE",
        help="per_class.csv of an evaluation, to correlate IoU and similarity; at most one SET with it",
    )
    add_model_options(parser, untrained=True)
    output = parser.add_argument_group("further results")
    output.add_argument("--csv", type=path_option, metavar="FILE", help="a row per class: its nearest name")
    output.add_argument("--json", type=path_option, metavar="FILE", help="all figures")
    output.add_argument(
        "--plot", type=png_option, metavar="FILE.png", help="with --per-class: a point per class, IoU over similarity"
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print and write; return the exit code.

    Raises:
        ValueError, FileNotFoundError: a set, a file or the model is not valid.
    """
    from san.evaluation.similarity import compare_sets, read_per_class

    if args.plot is not None:
        require_extra("train", "the plot", "matplotlib")
        if args.per_class is None:
            raise ValueError("--plot draws IoU over similarity; give an evaluation's per_class.csv with --per-class")
    iou = None if args.per_class is None else read_per_class(args.per_class)
    sets, other = _sets(args, iou), _read_set(args.to)
    model = load_predictor(args).model
    theirs = model.text_classifier.embed(other.classes)
    records = []
    for name, vocabulary in sets.items():
        found = compare_sets(model.text_classifier.embed(vocabulary.classes), theirs)
        records.append(_set_record(name, vocabulary, other, found, iou))
    warning = _warning(model, [*sets.values(), other])
    record: _Record = {
        "model": args.variant if args.variant is not None else args.model,
        "text_encoder": model.config.clip.name,
        "templates": model.config.clip.templates,
        "warning": warning,
        "to": {"name": _shown(args.to), "classes": len(other)},
        "sets": records,
    }
    print(_table(record))
    for line in filter(None, (_correlation_line(records[0]), warning)):
        print(f"\n{line}")
    _write(record, args)
    return 0


def _sets(args: argparse.Namespace, iou: dict[str, float] | None) -> dict[str, Vocabulary]:
    """Return the sets to compare, by name."""
    from san.vocabulary.label_sets import LABEL_SETS
    from san.vocabulary.vocabulary import Vocabulary

    if iou is None:
        names = args.sets or [name for name in LABEL_SETS if name != args.to]
        shown = [_shown(name) for name in names]
        return {
            short if shown.count(short) == 1 else name: _read_set(name)
            for name, short in zip(names, shown, strict=True)
        }
    if len(args.sets) > 1:
        raise ValueError(f"{len(args.sets)} sets are given, but --per-class has the classes of one; give at most one")
    if not args.sets:
        return {
            "/".join(args.per_class.resolve().parts[-2:]): Vocabulary.parse(
                [{"name": name, "synonyms": [name]} for name in iou]
            )
        }
    vocabulary = _read_set(args.sets[0])
    odd = sorted(set(vocabulary.names) ^ set(iou))
    if odd:
        raise ValueError(
            f"{args.sets[0]} and {args.per_class} have different classes, such as {excerpt(odd[0])}; give the set "
            "that was evaluated, or none"
        )
    return {_shown(args.sets[0]): vocabulary}


def _read_set(text: str) -> Vocabulary:
    """Return the set of a text on the command line."""
    from san.vocabulary.class_file import ENDINGS
    from san.vocabulary.vocabulary import Vocabulary

    return Vocabulary.from_file(text) if Path(text).suffix.lower() in ENDINGS else Vocabulary.parse(text)


def _shown(text: str) -> str:
    """Return the name of a set: a file without its folder."""
    from san.vocabulary.class_file import ENDINGS

    return Path(text).name if Path(text).suffix.lower() in ENDINGS else text


def _set_record(
    name: str, ours: Vocabulary, other: Vocabulary, found: SetSimilarity, iou: dict[str, float] | None
) -> _Record:
    """Return one set's figures as plain data."""
    from dataclasses import asdict

    from san.evaluation.similarity import correlate
    from san.vocabulary.classes import text_key

    known = {text_key(each) for each in other.names}
    rows: list[_Record] = []
    for each, index, similarity in zip(ours.names, found.nearest, found.similarity, strict=True):
        row = {"class": each, "nearest": other.names[index], "similarity": similarity, "same": text_key(each) in known}
        rows.append(row if iou is None else row | {"IoU": None if math.isnan(iou[each]) else iou[each]})
    record: _Record = {
        "name": name,
        "classes": len(ours),
        "same_names": sum(row["same"] for row in rows),
        **{key: getattr(found, key) for key in ("mean_there", "least_there", "mean_back", "least_back")},
        "hausdorff": found.hausdorff,
        "mean_hausdorff": found.mean_hausdorff,
        "per_class": rows,
    }
    if iou is not None:
        numbers = [(row["similarity"], math.nan if row["IoU"] is None else row["IoU"], row["same"]) for row in rows]
        kept = {"correlation": numbers, "correlation_of_other_names": [point for point in numbers if not point[2]]}
        for key, points in kept.items():
            record[key] = asdict(correlate([point[0] for point in points], [point[1] for point in points]))
    return record


def _warning(model: SANModel, vocabularies: Sequence[Vocabulary]) -> str:
    """Return a warning if the figures mean nothing, else ""."""
    import torch

    from san.clip.tokenizer import CompactTokenizer

    if not (model.has_clip_weights and model.config.clip.pretrained):
        return "WARNING: the text encoder has random weights; its figures mean nothing. Give another --model."
    tokenizer = model.text_classifier.embedder.tokenizer
    if isinstance(tokenizer, CompactTokenizer):
        names = [name for each in vocabularies for name in each.names]
        tokens = tokenizer(names)
        before_end = torch.arange(tokens.shape[1]) < tokens.argmax(dim=1, keepdim=True)
        unknown = int(((tokens == 0) & before_end).any(dim=1).sum())
        if unknown:
            return (
                f"WARNING: the small CLIP of the shapes world does not know {unknown} of these {len(names)} names; "
                "their figures mean nothing. Give another --model."
            )
    return ""


def _table(record: _Record) -> str:
    """Return a table with a row per set."""
    from san.benchmark.report import aligned

    other = record["to"]
    header = ["set", "classes", "same name", "mean nearest", "least", "mean back", "least back"]
    rows = [[*header, "Hausdorff", "mean Hausdorff"]]
    for each in record["sets"]:
        keys = ("mean_there", "least_there", "mean_back", "least_back", "hausdorff", "mean_hausdorff")
        counts = [f"{each['classes']}", f"{each['same_names']}"]
        rows.append([printable(each["name"]), *counts, *(f"{each[key]:.3f}" for key in keys)])
    title = f"Cosine similarity to {printable(other['name'])} ({other['classes']} classes), text encoder "
    return f"{title}{printable(str(record['text_encoder']))}, model {printable(record['model'])}\n\n{aligned(rows)}"


def _correlation_line(record: _Record) -> str:
    """Return the correlation as text; "" without IoUs."""
    lines = []
    kinds = {
        "correlation": "IoU and similarity of the nearest name",
        "correlation_of_other_names": "the same without names that both sets have",
    }
    for key, what in kinds.items():
        if key in record:
            lines.append(f"{what}: {_coefficients(record[key])}")
    return "\n".join(lines)


def _coefficients(found: _Record) -> str:
    numbers = [
        f"{kind} {'not defined' if found[key] is None else format(found[key], '.2f')}"
        for kind, key in (("Pearson r", "pearson"), ("Spearman rho", "spearman"))
    ]
    return f"{', '.join(numbers)} ({found['count']} classes)"


def _write(record: _Record, args: argparse.Namespace) -> None:
    """Write the requested files, all of them or none."""
    from san.io.files import write_text, write_together

    writers: dict[Path, Callable[[Path], object]] = {}
    if args.csv is not None:
        writers[args.csv] = lambda path: write_text(path, _csv(record))
    if args.json is not None:
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        writers[args.json] = lambda path: write_text(path, text)
    if args.plot is not None:
        writers[args.plot] = lambda path: _plot(record, path)
    write_together(writers)
    for file in writers:
        print(f"written: {file}", file=sys.stderr)


def _csv(record: _Record) -> str:
    """Return a CSV with a row per class of every set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    with_iou = "correlation" in record["sets"][0]
    writer.writerow(["set", "class", "nearest", "similarity", *(["IoU"] if with_iou else [])])
    for each in record["sets"]:
        for row in each["per_class"]:
            iou = ["" if row["IoU"] is None else f"{row['IoU']:.4f}"] if with_iou else []
            writer.writerow([each["name"], row["class"], row["nearest"], f"{row['similarity']:.6f}", *iou])
    return text.getvalue()


def _plot(record: _Record, path: Path) -> None:
    from san.visualize.similarity_plot import ClassPoint, plot_similarity

    (own,) = record["sets"]
    points = [
        ClassPoint(row["class"], row["similarity"], row["IoU"], row["same"])
        for row in own["per_class"]
        if row["IoU"] is not None
    ]
    notes = [f"all: {_coefficients(own['correlation'])}"]
    if 0 < own["same_names"] < own["classes"]:
        notes.append(f"other names: {_coefficients(own['correlation_of_other_names'])}")
    if record["warning"]:
        notes.append(record["warning"].partition(";")[0])
    title = f"{own['name']}, text encoder {record['text_encoder']}"
    plot_similarity(points, path, title=title, notes=notes, other=record["to"]["name"])

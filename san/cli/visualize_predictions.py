"""Draw panels of an evaluation's predictions, and an HTML page sorted by the mIoU of each image, worst first.

The evaluation must have saved its predictions (TEST.SAVE_RLE True, or TEST.SAVE_LABEL_MAPS True). Writes
OUT/index.html, and panels, thumbs and scores in the same folder. A stopped run continues when the command is repeated;
results whose files have changed are recomputed.

Examples:
  san visualize predictions --predictions output/shapes_quick/inference/shapes_sem_seg_val_mixed --out pictures
  san visualize predictions --predictions sem_seg_predictions.json --dataset voc_sem_seg_val --limit 100 --out pictures

Exit codes: 0 all done, 1 error or some images left out, 2 wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from san.cli.options import add_data_root_option, path_option, path_or_name_option
from san.cli.visualize_images import FORMAT, ImageWorker, Outcome, Task, rounded
from san.data.pairing import label_file
from san.evaluation.per_image import ORACLE_PAGE, ClassScore, Predictions, common_folder, distinct_stems
from san.io.errors import printable
from san.io.files import write_whole
from san.io.pool import run_in_processes
from san.visualize.page import GENERATOR, ClassLine, Page, Row, Strip, render_page
from san.visualize.palette import palette

SORTS = ("worst", "best", "name")
COLUMNS = ("image", "truth", "prediction", "errors")
SCORES_FILE = "scores.json"
"""File of all scores of a folder, for `san visualize compare`."""

NUM_WORST = 4
"""Maximum number of classes listed with an image."""

_MAX_TOLD = 20  # skipped images that are named on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--predictions",
        type=path_option,
        required=True,
        metavar="PATH",
        help="OUTPUT_DIR/inference/<data set> of an evaluation, its sem_seg_predictions.json, or its label_maps",
    )
    parser.add_argument(
        "--dataset",
        type=path_or_name_option,
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="registered data set, or the file that describes your own (of several splits, name one too); "
        "default: the name of the predictions' folder",
    )
    add_data_root_option(parser)
    parser.add_argument(
        "--out", type=path_option, default=Path("output/visualize"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--sort", choices=SORTS, default="worst", help="order of the page at first (default: %(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="draw only the first N of that order; all images are scored (default: draw all)",
    )
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="drawing processes (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from san.d2.data.datasets import metadata_of, prepare_shapes

    for option, least in (("limit", 0), ("workers", 1)):
        if getattr(args, option) < least:
            raise ValueError(f"--{option} is {getattr(args, option)}; give {least} or more")
    predictions = Predictions(args.predictions)
    name = choose_dataset(args.dataset, args.data_root, predictions.path)
    check_page(args.out / "index.html")
    args.out.mkdir(parents=True, exist_ok=True)
    prepare_shapes([name], args.data_root or None)
    tasks = _tasks(name, predictions)
    metadata = metadata_of(name)
    worker = ImageWorker(
        args.out,
        tuple(metadata.stuff_classes),
        metadata.ignore_label,
        metadata.get("label_mapping"),
        metadata.get("stuff_dataset_id_to_contiguous_id"),
        pictures=not args.limit,
    )
    outcomes = _ordered(_work(worker, tasks, args.workers, "scoring" if args.limit else "drawing"), args.sort)
    drawn = outcomes
    if args.limit:
        chosen = [outcome.task for outcome in outcomes if outcome.score][: args.limit]
        drawn = _work(replace(worker, pictures=True), chosen, args.workers, "drawing")
        outcomes = [outcome for outcome in outcomes if outcome.score is None or outcome.task not in chosen] + drawn
    page = replace(
        _page(name, worker.names, outcomes, _ordered(drawn, args.sort), args.sort),
        links=_links(predictions.path.parent, args.out),
    )
    _write_scores(args.out / SCORES_FILE, name, worker.names, outcomes)
    write_whole(args.out / "index.html", render_page(page))
    for file, problem in page.problems[:_MAX_TOLD]:
        print(printable(f"left out: {file}: {problem}"), file=sys.stderr)
    if len(page.problems) > _MAX_TOLD:
        print(f"left out: {len(page.problems) - _MAX_TOLD} more, see the page", file=sys.stderr)
    facts = ", ".join(f"{key} {value}" for key, value in page.facts)
    print(f"{name}: {facts} -> {args.out / 'index.html'}")
    return 1 if page.problems else 0


def choose_dataset(given: Sequence[str], data_root: str, predictions: Path) -> str:
    """Register and return the data set of the predictions.

    Args:
        given: names and files from the command line.
        data_root: folder of the data sets, "" for the default.
        predictions: file or folder of the predictions; its folder usually has the data set's name.

    Raises:
        FileNotFoundError, ValueError: the data set does not exist, or is ambiguous.
    """
    from san.d2.api import DatasetCatalog
    from san.d2.data.datasets import check_names, register_custom_files, register_datasets

    register_datasets(data_root or None)
    files = [each for each in given if each.endswith((".yaml", ".yml", ".json")) or Path(each).is_file()]
    registered = register_custom_files(files)
    names = [each for each in given if each not in files]
    if not names and registered:
        names = [each for each in registered if each == predictions.parent.name] or registered
    if not names:
        names = [each for each in (predictions.parent.name, predictions.name) if each in DatasetCatalog.list()][:1]
        if not names:
            raise ValueError(f"the data set of {predictions} is not known; give --dataset")
    if len(names) > 1:
        raise ValueError(f"which data set are the predictions of? Give --dataset with one of: {', '.join(names)}")
    check_names(names, "--dataset")
    return names[0]


def check_page(path: Path) -> None:
    """Refuse to overwrite a page of another program.

    Raises:
        ValueError: there is such a page.
    """
    if path.is_file() and f'content="{GENERATOR}"' not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise ValueError(f"{path} is a page of something else and would be lost; choose another --out")


def _tasks(name: str, predictions: Predictions) -> list[Task]:
    """Return one task per image of the data set."""
    from san.d2.data.datasets import load_records, metadata_of

    metadata = metadata_of(name)
    records = load_records(name)
    images, labels = [record["file_name"] for record in records], [label_file(record) for record in records]
    segments = [record.get("segments_info") for record in records]
    image_root = metadata.get("image_root") or common_folder(images)
    label_root = metadata.get("sem_seg_root") or common_folder(labels)
    stems, label_stems = distinct_stems(images, image_root), distinct_stems(labels, label_root)
    tasks = []
    for image, label, stem, label_stem, own in zip(images, labels, stems, label_stems, segments, strict=True):
        prediction: Any
        try:
            prediction = predictions.of(image, image_root, label_stem)
        except (ValueError, OSError) as error:
            prediction = str(error)
        shown = stem + Path(image).suffix
        tasks.append(Task(shown, stem, image, label, prediction, own))
    if all(isinstance(task.prediction, str) for task in tasks):
        raise ValueError(f"none of the {len(tasks)} images of {name} has a prediction: {tasks[0].prediction}")
    return tasks


def _links(evaluation: Path, out: Path) -> list[tuple[str, str]]:
    """Return the link to the error analysis of the same evaluation, if there is one."""
    page = evaluation / ORACLE_PAGE
    if not page.is_file():
        return []
    try:
        return [("Masks or names: what is wrong", Path(os.path.relpath(page, out)).as_posix())]
    except ValueError:  # on another drive
        return []


def _work(worker: ImageWorker, tasks: Sequence[Task], workers: int, title: str) -> list[Outcome]:
    """Return the outcomes of all tasks, in order."""
    results = run_in_processes(worker, tasks, workers=workers, lost=_lost)
    bar = tqdm(results, title, len(tasks), unit="img", disable=None, dynamic_ncols=True, leave=False)
    outcomes = {outcome.task.stem: outcome for outcome in bar}
    return [outcomes[task.stem] for task in tasks]


def _lost(task: Task) -> Outcome:
    return Outcome(task, error="its worker process died (out of memory?); run again with --workers 1")


def _ordered(outcomes: Sequence[Outcome], sort: str) -> list[Outcome]:
    """Sort by the mIoU of the image, then by name; those without mIoU are last."""

    def key(outcome: Outcome) -> tuple[bool, float, str]:
        miou = outcome.score.miou if outcome.score else None
        if sort == "name" or miou is None:
            return sort != "name", 0.0, outcome.task.name
        return False, -miou if sort == "best" else miou, outcome.task.name

    return sorted(outcomes, key=key)


def _page(name: str, names: Sequence[str], outcomes: Sequence[Outcome], drawn: Sequence[Outcome], sort: str) -> Page:
    """Return the page: scores of all outcomes, pictures of those drawn."""
    scores = [outcome.score for outcome in outcomes if outcome.score]
    totals = add_up([each for score in scores for each in score.classes])
    present = [each.iou for each in totals if each.iou is not None]
    judged = sum(score.judged for score in scores)
    right = sum(each.correct for each in totals)
    rows = [row_of(outcome, names) for outcome in drawn if outcome.score]
    shown = f"{len(scores)}" if len(rows) == len(scores) else f"{len(scores)}, of which {len(rows)} are shown"
    facts = [
        ("mIoU", f"{100 * sum(present) / len(present):.2f} %" if present else "–"),
        ("pixel accuracy", f"{100 * right / judged:.2f} %" if judged else "–"),
        ("classes present", f"{len(present)} of {len(names)}"),
        ("images", shown),
    ]
    lines = [_line(each, names) for each in totals if each.iou is not None]
    problems = [(outcome.task.name, outcome.error) for outcome in [*outcomes, *drawn] if outcome.error]
    return Page(name, facts, COLUMNS, rows, sort, lines, list(dict.fromkeys(problems)))


def add_up(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """Return the scores of classes over all images, worst first, classes without ground truth last."""
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for score in scores:
        for place, number in enumerate((score.correct, score.labelled, score.predicted)):
            sums[score.index][place] += number
    totals = [ClassScore(index, *numbers) for index, numbers in sums.items()]
    return sorted(totals, key=lambda each: (each.iou is None, each.iou or 0, each.index))


def row_of(outcome: Outcome, names: Sequence[str]) -> Row:
    """Return a row of the page."""
    score, task = outcome.score, outcome.task
    assert score is not None
    strips: tuple[Strip, ...] = ()
    if outcome.thumb_size is not None:
        strips = (Strip(f"thumbs/{task.stem}.jpg", f"panels/{task.stem}.jpg", outcome.thumb_size),)
    classes = tuple(names[each.index] for each in score.classes)
    worst = tuple(_class_line(each, names) for each in score.classes[:NUM_WORST])
    return Row(task.name, rounded(score.miou), rounded(score.accuracy), strips, worst, classes)


def _class_line(score: ClassScore, names: Sequence[str]) -> ClassLine:
    """Return a class of one image, and its error."""
    if score.iou is None:
        return _line(score, names, "not there")
    if score.taken_for is None:
        return _line(score, names)
    taken_for = names[score.taken_for] if score.taken_for >= 0 else "no class"
    return _line(score, names, f"→ {taken_for}")


def _line(score: ClassScore, names: Sequence[str], note: str = "") -> ClassLine:
    red, green, blue = palette(names)[score.index].tolist()
    return ClassLine(names[score.index], rounded(score.iou), note, (red, green, blue))


def _write_scores(path: Path, name: str, names: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Write all scores to one file, for `san visualize compare`."""
    images = [
        {
            "name": outcome.task.name,
            "stem": outcome.task.stem,
            "miou": rounded(outcome.score.miou),
            "accuracy": rounded(outcome.score.accuracy),
            "thumb_size": outcome.thumb_size,
            "classes": [each.index for each in outcome.score.classes],
        }
        for outcome in sorted(outcomes, key=lambda each: each.task.name)
        if outcome.score
    ]
    write_whole(path, json.dumps({"format": FORMAT, "dataset": name, "classes": [*names], "images": images}))

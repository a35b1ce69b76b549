"""Measures classes from examples on shapes: the tables of docs/examples.md.

  python tools/maintainers/measure_examples.py --images 100 --seeds 0,1,2

The committed checkpoint segments the first images of each validation split with all 36 names. Examples are drawn from
400 pictures with seen and novel things that are in no split: those of ``val_mixed`` for seed 1.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import numpy as np

from san.evaluation import ConfusionMatrix, metrics
from san.inference.examples import BankOptions, ClassExample, learn_classes
from san.inference.predictor import Predictor
from san.inference.segmentation import EncodedImage
from san.shapes.dataset import SHAPES_SPLITS, ShapesSplit, split_images
from san.shapes.world import GROUNDS, NAMES, NOVEL, SEEN
from san.vocabulary.classes import ClassText
from san.vocabulary.vocabulary import Vocabulary

CLASSES = tuple(map(ClassText, NAMES))
GROUPS = {"seen": SEEN, "novel": NOVEL, "grounds": GROUNDS}
COLUMNS = ("val_seen", "val_novel", "val_mixed", "mIoU-seen", "mIoU-novel", "mIoU-grounds")


class Measurement:
    """Evaluates vocabularies on encoded images.

    Args:
        num_images: of each validation split.
        num_pool: pictures that examples are drawn from.
    """

    def __init__(self, num_images: int, num_pool: int = 400) -> None:
        self.predictor = Predictor.from_pretrained("shapes", text_cache=None)
        self.splits = [self._encoded(split, 0, num_images) for split in SHAPES_SPLITS[1:]]
        self.pool = self._encoded(SHAPES_SPLITS[3], 1, num_pool)
        known = {id(encoded.pixels): encoded for encoded, _ in self.pool}
        self.predictor.encode = lambda image, **_: known[id(image)]  # type: ignore[method-assign]

    def _encoded(self, split: ShapesSplit, seed: int, count: int) -> list[tuple[EncodedImage, np.ndarray]]:
        images, labels = split_images(split, seed, range(count))
        return list(zip(self.predictor.encode_batch(list(images), batch_size=8), labels, strict=True))

    def examples(self, names: tuple[str, ...], count: int, seed: int, kind: str) -> Iterator[ClassExample]:
        """Yield `count` examples of each class, with a mask, a box or neither, as `san vocab --dataset` finds them."""
        wanted, order = dict.fromkeys(names, count), list(range(len(self.pool)))
        random.Random(seed).shuffle(order)
        for encoded, labels in (self.pool[index] for index in order):
            for number in np.unique(labels):
                mask, name = labels == number, NAMES[number]
                if wanted.get(name, 0) and mask.mean() >= 0.002:
                    wanted[name] -= 1
                    if kind == "mask":
                        yield ClassExample(name, encoded.pixels, mask)
                    else:
                        yield ClassExample(name, encoded.pixels, box=box_of(mask))

    def evaluate(self, classes: tuple[ClassText, ...]) -> list[float]:
        """Return the figures of `COLUMNS`."""
        found: list[float] = []
        for split in self.splits:
            matrix = ConfusionMatrix(len(NAMES), 255)
            for encoded, truth in split:
                matrix.update(self.predictor.segment(Vocabulary(classes), encoded=encoded).labels, truth)
            values = metrics(matrix, NAMES, GROUPS)
            found.append(values["mIoU"])
        return [*found, *(values[f"mIoU-{group}"] for group in GROUPS)]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a mask (H, W)."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


ROWS = [
    *(("the 8 novel", NOVEL, count, None, False, "mask") for count in (1, 4, 16)),
    ("the 8 novel, boxes", NOVEL, 4, None, False, "box"),
    *(("the 8 novel, examples alone", NOVEL, count, 0.0, False, "mask") for count in (1, 4, 16)),
    *(("all 36", NAMES, count, None, False, "mask") for count in (1, 4, 16)),
    ("all 36, examples alone", NAMES, 16, 0.0, False, "mask"),
    *(("all 36, words alone, calibrated", NAMES, count, 1.0, True, "mask") for count in (1, 4, 16)),
    *(("all 36, calibrated", NAMES, count, None, True, "mask") for count in (1, 4, 16)),
    *(("the 8 novel, bank", NOVEL, count, None, False, "mask") for count in (1, 4, 16)),
    *(("all 36, bank", NAMES, count, None, False, "mask") for count in (1, 4, 16)),
    *(("all 36, words alone, bank", NAMES, count, 1.0, False, "mask") for count in (1, 4, 16)),
    *(("all 36, words alone, calibrated, bank", NAMES, count, 1.0, True, "mask") for count in (1, 4, 16)),
    *((f"all 36{bank}", NAMES, 64, None, False, "mask") for bank in ("", ", bank")),
    ("all 36, words alone, bank", NAMES, 64, 1.0, False, "mask"),
    *((f"all 36, words alone, calibrated{bank}", NAMES, 64, 1.0, True, "mask") for bank in ("", ", bank")),
]
"""Label, classes with examples, examples of each at most, share of the words, whether calibrated, kind of example.

With a bank if the label ends in that."""


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="of each split")
    parser.add_argument("--seeds", default="0,1,2", help="of the choice of examples")
    parser.add_argument("--only", default="", help="rows whose label contains this")
    args = parser.parse_args()
    measurement, seeds = Measurement(args.images), [int(seed) for seed in args.seeds.split(",")]
    print(f"| examples of | each | {' | '.join(COLUMNS)} |\n|---|--:|{'--:|' * len(COLUMNS)}", flush=True)
    print(_row("none", 0, [measurement.evaluate(CLASSES)]), flush=True)
    for label, names, count, share, calibrated, kind in (row for row in ROWS if args.only in row[0]):
        figures = []
        for seed in seeds:
            examples = measurement.examples(names, count, seed, kind)
            bank = BankOptions() if label.endswith("bank") else None
            learnt = learn_classes(
                measurement.predictor, CLASSES, examples, word_share=share, calibrated=calibrated, bank=bank
            )
            figures.append(measurement.evaluate(learnt.classes))
        print(_row(label, count, figures), flush=True)


def _row(label: str, count: int, figures: list[list[float]]) -> str:
    """Return a row with the mean over seeds, and the standard deviation if there are several."""
    mean, spread = np.mean(figures, axis=0), np.std(figures, axis=0, ddof=min(1, len(figures) - 1))
    cells = [f"{a:.1f} ± {b:.1f}" if len(figures) > 1 else f"{a:.1f}" for a, b in zip(mean, spread, strict=True)]
    return f"| {label} | {count} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

"""Measures the panoptic quality of a checkpoint on the shapes world (docs/label.md#panoptic).

    python tools/maintainers/measure_shapes_panoptic.py --out /tmp/shapes_panoptic

Writes pictures of each validation split and their true segments, labels the pictures with `san label --things`, and
compares both with `san pq`. Prints one row of a Markdown table per split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from san.cli.main import main as san
from san.labelling.coco import PanopticWriter
from san.labelling.regions import RegionMap
from san.labelling.sets import LabelledImage, SetOptions, write_sets
from san.shapes.dataset import SHAPES_SPLITS, ShapesSplit
from san.shapes.render import instances, render
from san.shapes.world import NAMES, THINGS, Scene, class_index, scene_at
from san.vocabulary.classes import ClassText


def main() -> None:
    """Measure all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures and labels; must not exist")
    parser.add_argument("--images", type=int, default=200, help="of each split (default: %(default)s)")
    parser.add_argument(
        "--min-area", default="0", help="components that are smaller are dropped (default: %(default)s)"
    )
    parser.add_argument("--model", default="shapes", help="default: %(default)s")
    parser.add_argument("--options", default="", help="further ones of `san label`, such as '--segments connected'")
    args = parser.parse_args()
    rows = []
    for index, split in enumerate(SHAPES_SPLITS[1:], start=1):
        folder = args.out / split.folder
        scenes = [scene_at(index, number, split.things, required=split.required) for number in range(args.images)]
        truth = write_truth(folder, split, scenes)
        command = ["label", str(folder / "pictures"), "--label-set", "shapes_36", "--things", ",".join(THINGS)]
        command += ["--format", "coco-panoptic", "--min-area", args.min_area, "--model", args.model, "--quiet"]
        assert san([*command, *args.options.split(), "--out", str(folder / "labels")]) == 0
        found = folder / "labels/coco-panoptic/annotations/panoptic_train.json"
        assert san(["pq", str(truth), str(found), "--out", str(folder / "pq.json")]) == 0
        rows.append((split.folder, json.loads((folder / "pq.json").read_text(encoding="utf-8"))))
    kinds = [kind + group for group in ("", "-things", "-stuff") for kind in ("PQ", "SQ", "RQ")]
    print(f"| split | {' | '.join(kinds)} |")
    for name, figures in rows:
        shown = ["–" if figures[kind] is None else f"{figures[kind]:.1f}" for kind in kinds]
        print(f"| `{name}` | {' | '.join(shown)} |")


def write_truth(folder: Path, split: ShapesSplit, scenes: list[Scene]) -> Path:
    """Write pictures and true segments; returns the JSON file. Classes that the split ignores have no segment."""
    (folder / "pictures").mkdir(parents=True)
    loaders = []
    for number, scene in enumerate(scenes):
        path = folder / "pictures" / f"{number:05d}.png"
        Image.fromarray(render([scene])[0][0]).save(path)
        loaders.append(
            lambda path=path, scene=scene: LabelledImage(path, path.name, true_regions(scene, split.ignored))
        )
    things = tuple(class_index(name) for name in THINGS)
    options = SetOptions("truth", tuple(map(ClassText, NAMES)), instances=True, things=things)
    names = [f"{number:05d}.png" for number in range(len(scenes))]
    write_sets({folder / "truth": PanopticWriter}, loaders, names, options)
    return folder / "truth/annotations/panoptic_train.json"


def true_regions(scene: Scene, ignored: tuple[str, ...]) -> RegionMap:
    """The things of a scene that can be seen, and its ground."""
    ids = instances(scene).astype(np.int32)
    ground = len(scene.things) + 1
    names = [*(thing.name for thing in scene.things), scene.ground.name]
    ids[ids == 0] = 0 if scene.ground.name in ignored else ground
    visible = [number for number in range(1, ground + 1) if (ids == number).any()]
    table = np.zeros(ground + 1, np.int32)
    table[visible] = np.arange(1, len(visible) + 1)
    labels = np.array([class_index(names[number - 1]) for number in visible], np.int64)
    return RegionMap(table[ids], labels, np.full(len(visible), np.nan, np.float32), np.zeros(ids.shape, bool))


if __name__ == "__main__":
    main()

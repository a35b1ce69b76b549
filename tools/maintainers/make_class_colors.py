#!/usr/bin/env python3
"""Choose the colours of the known class names (of the six benchmarks and the shapes world) and write them to a file.

python tools/maintainers/make_class_colors.py --out san/data/class_colors.json

Each name gets one colour, independent of the vocabulary. Colours of names in one label set are as far apart in Oklab as
possible: set by set, smallest first, each name gets the colour farthest from those of the names it shares a set with; a
name with a colour word gets a matching colour. Names that are already in the file keep their colours.
Takes about ten seconds on one core.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from san.cli.main import guarded
from san.cli.options import path_option
from san.visualize.color_words import color_word
from san.visualize.oklab import color_grid, oklab
from san.visualize.palette import color_key, may_have
from san.vocabulary.label_sets import LABEL_SETS, load_label_set

STEP = 7  # of the colours to choose from, in red, green and blue


def vocabularies() -> list[list[str]]:
    """Return the label sets, as keys of the file: the shapes world's, then the others, smallest first."""
    sets = sorted(map(load_label_set, LABEL_SETS), key=lambda each: (each.name != "shapes_36", each.num_classes))
    return [[color_key(name) for name in dict.fromkeys(each.classes)] for each in sets]


def choose(sets: list[list[str]], fixed: dict[str, str]) -> dict[str, str]:
    """Return a colour, "#rrggbb", for every name of every set; those of `fixed` are kept."""
    colors = color_grid(STEP)
    points = oklab(colors)
    allowed = {word: may_have(word, points) for word in {color_word(name) for names in sets for name in names}}
    members = [set(names) for names in sets]
    # distance to the nearest taken colour, per set; large sets are crowded, so their distances count for more
    nearest = np.full((len(sets), len(colors)), 9.0)
    scale = np.cbrt([len(names) for names in sets])[:, None]
    table: dict[str, str] = {}

    def take(name: str, color: str) -> None:
        table[name] = color
        distance = np.linalg.norm(points - oklab(np.array([list(bytes.fromhex(color[1:]))])), axis=1)
        for row, names in zip(nearest, members, strict=True):
            if name in names:
                np.minimum(row, distance, out=row)

    for name, color in fixed.items():
        take(name, color)
    for names in sets:
        for name in names:
            if name not in table:
                of_name = [index for index, others in enumerate(members) if name in others]
                room = (nearest * scale)[of_name].min(axis=0)
                best = np.where(allowed[color_word(name)], room, -1).argmax()
                take(name, f"#{bytes(colors[best].tolist()).hex()}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_option, required=True, help="JSON file; names in it keep their colours")
    options = parser.parse_args(arguments)
    fixed = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    table = choose(vocabularies(), fixed)
    lines = ",\n".join(f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(color)}" for name, color in table.items())
    options.out.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    print(f"{options.out}: {len(table)} names, {len(table) - len(fixed)} of them new")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

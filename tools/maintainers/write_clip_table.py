"""Writes the table of CLIPs in docs/clips.md, and tests/clip/clips.json, which it is checked against.

The record holds the architecture and tags of every model of the installed open_clip that SAN accepts. Parameters and
multiply-adds are those of models without values, made from these architectures.

Example:
  python tools/maintainers/write_clip_table.py
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from san.benchmark.analysis import LABEL_MAP, AnalysisInput, count_multiply_adds, count_parameters
from san.clip.arch import ClipArch
from san.clip.loader import LoadedClip, load_clip
from san.clip.open_clip_adapter import models_and_tags
from san.clip.tokenizer import BpeTokenizer
from san.io.files import write_whole
from san.model.build import build_outline, freeze
from san.model.config import variant_for_clip

REPO = Path(__file__).resolve().parents[2]
PAGE, RECORD = REPO / "docs" / "clips.md", REPO / "tests" / "clip" / "clips.json"
START, END = "<!-- table: tools/maintainers/write_clip_table.py -->\n", "<!-- end of table -->\n"
HEAD = """| name | tags | K of blocks | patch | parameters (M) | trained (M) | multiply-adds (G) | tested |
|---|---|--:|--:|--:|--:|--:|---|
"""
FULL_SIZE = ("ViT-B-16", "ViT-B-32", "ViT-L-14-336")
"""Models that a slow test compares with open_clip at their full size."""


def main() -> None:
    """Measure every model, and write both files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    logging.disable(logging.WARNING)
    rows = {}
    for name, tags in models_and_tags().items():
        try:
            clip = load_clip(name, None)
        except ValueError:
            continue
        rows[name] = measure(clip.arch) | {"tags": tags}
    write_whole(RECORD, record(rows))
    write_whole(PAGE, page(rows))


def record(rows: dict[str, Any]) -> str:
    """Return the rows as JSON, a line each."""
    lines = [f"{json.dumps(name)}: {json.dumps(rows[name], sort_keys=True)}" for name in sorted(rows)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def measure(arch: ClipArch) -> dict[str, Any]:
    """Return architecture, parameters and multiply-adds of a SAN with a CLIP, at 640 x 640 pixels."""
    model = build_outline(variant_for_clip("tiny", None), LoadedClip(arch, None, BpeTokenizer(77), fingerprint=""))
    freeze(model)
    counts = count_parameters(model).values()
    work = count_multiply_adds(model, AnalysisInput(640, 640, 171)) or {}
    return {
        "arch": arch.to_dict(),
        "depth": model.config.clip.shallow_depth,
        "parameters": sum(total for total, _ in counts),
        "trained": sum(trained for _, trained in counts),
        "multiply_adds": sum(count for part, count in work.items() if part != LABEL_MAP),
    }


def page(rows: dict[str, Any]) -> str:
    """Return the text of docs/clips.md with the table of these rows."""
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    return before + START + table(rows) + END + rest.split(END)[1]


def table(rows: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    return HEAD + "".join(_row(name, rows[name]) for name in sorted(rows))


def _row(name: str, row: dict[str, Any]) -> str:
    vision = row["arch"]["vision"]
    tags = ", ".join(f"`{tag}`" for tag in row["tags"]) or "none"
    return (
        f"| `{name}` | {tags} | {row['depth']} of {vision['depth']} | {vision['patch_size']} "
        f"| {row['parameters'] / 1e6:,.1f} | {row['trained'] / 1e6:.2f} | {row['multiply_adds'] / 1e9:,.1f} "
        f"| {'full size' if name in FULL_SIZE else 'family'} |\n"
    )


if __name__ == "__main__":
    main()

"""Shapes: a small open-vocabulary world made by code, the benchmark that needs no download (docs/shapes.md)."""

from san.data.shapes.dataset import BENCHMARKS, SHAPES_SPLITS, ShapesSizes, ensure_written, write_shapes
from san.data.shapes.world import GROUNDS, NAMES, NOVEL, SEEN, THINGS

__all__ = [
    "BENCHMARKS",
    "GROUNDS",
    "NAMES",
    "NOVEL",
    "SEEN",
    "SHAPES_SPLITS",
    "THINGS",
    "ShapesSizes",
    "ensure_written",
    "write_shapes",
]

"""Shapes: a small open-vocabulary world made by code, the benchmark that needs no download (docs/shapes.md)."""

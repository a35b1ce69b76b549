"""Shapes: a small synthetic open-vocabulary benchmark that needs no download (docs/shapes.md)."""

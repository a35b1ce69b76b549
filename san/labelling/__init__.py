"""Annotations from label maps: regions, their outlines, and the files of labelling tools (docs/label.md)."""

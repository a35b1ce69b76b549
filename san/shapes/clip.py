"""The small CLIP of the shapes world, named "shapes"; `san.named_clips` imports this module (docs/shapes.md)."""

from __future__ import annotations

from pathlib import Path

from san.clip.named import CLIPS

CLIP_FILE = Path(__file__).parent / "assets" / "clip.safetensors"
"""The committed weights, written by tools/maintainers/train_shapes_clip.py."""

CLIPS.register("shapes")(CLIP_FILE)

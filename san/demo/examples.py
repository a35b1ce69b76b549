"""Example pictures: scenes of the shapes world, or a folder of the operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from san.demo.limits import Limits
from san.io.image_files import ImageLimits, image_endings, read_image
from san.io.listing import list_files
from san.shapes.render import render
from san.shapes.world import scene_at

_SCENES = ((8, 35), (8, 3), (7, 34), (8, 12), (7, 22))
"""(seed, index) of scenes, chosen because the committed model segments them well (docs/demo.md)."""
_SIZE = 384
_MAX_EXAMPLES = 12


@dataclass(frozen=True)
class Example:
    """An example picture.

    Attributes:
        title: what it shows, in words.
        pixels: (H, W, 3) uint8 RGB.
        words: its initial vocabulary.
    """

    title: str
    pixels: npt.NDArray[np.uint8]
    words: str


def shapes_examples() -> tuple[Example, ...]:
    """Draw a few scenes of the shapes world, larger and less noisy than the data set."""
    scenes = [replace(scene_at(seed, index), noise=0.006, blur=0.0) for seed, index in _SCENES]
    images, _ = render(scenes, _SIZE)
    return tuple(
        Example(f"{', '.join(scene.names[:-1])} on {scene.ground.name}", image, ", ".join(scene.names))
        for scene, image in zip(scenes, images, strict=True)
    )


def folder_examples(folder: str | Path, words: str, limits: Limits) -> tuple[Example, ...]:
    """Read the pictures of a folder, by name, at most a dozen.

    Args:
        folder: chosen by the operator, never by a visitor.
        words: the initial vocabulary of each.
        limits: `max_pixels` also applies to examples.

    Raises:
        FileNotFoundError: the folder does not exist or contains no picture.
        ValueError: one cannot be read, or is too large.
    """
    folder = Path(folder)
    endings = image_endings()
    files: tuple[Path, ...] = ()
    if folder.is_dir():
        files = list_files(folder, lambda name: Path(name).suffix.lower() in endings, recursive=False).files
    if not files:
        raise FileNotFoundError(f"no pictures in {folder} (.jpg, .png and the like); name a folder with some")
    bounds = ImageLimits(max_pixels=limits.max_pixels, size_remedy="shrink it, or raise --max-pixels")
    return tuple(
        Example(path.stem.replace("_", " "), read_image(path, bounds), words) for path in files[:_MAX_EXAMPLES]
    )

"""Writes scenes of the shapes world in COCO's panoptic format; each thing is a segment, and so is the ground."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from san.data.panoptic import describe_segments, encode_segment_ids, format_panoptic_file
from san.shapes.render import instances, render
from san.shapes.world import SCENE_SIZE, Scene

_CHUNK = 64


def segments_of(scene: Scene) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the segments of a scene.

    Returns:
        (S, S) ids, S = `SCENE_SIZE`: the number of the thing at each pixel, from 1 in painting order, and one more than
        the last for the ground; and the name of each id.
    """
    ids = instances(scene).astype(np.int64)
    ids[ids == 0] = len(scene.things) + 1
    return ids, dict(enumerate(scene.names, start=1))


def write_panoptic(
    folder: Path,
    scenes: Sequence[Callable[[], Scene]],
    classes: Sequence[str],
    things: Sequence[str],
    save_image: Callable[[NDArray[np.uint8], Path], None],
) -> None:
    """Write ``<folder>.json``, ``<folder>/00000.png`` and ``<parent>/images/<name>/00000.jpg`` of scenes.

    Args:
        folder: folder of the PNGs; it must not exist.
        scenes: a function per image that draws its scene.
        classes: C names; a category id is an index into them.
        things: those of them that are things.
        save_image: writes the picture (S, S, 3) to a file.
    """
    image_dir = folder.parent / "images" / folder.name
    image_dir.mkdir(parents=True)
    folder.mkdir(parents=True)
    indices = {name: index for index, name in enumerate(classes)}
    annotations = []
    for start in range(0, len(scenes), _CHUNK):
        drawn = [draw() for draw in scenes[start : start + _CHUNK]]
        pictures, _ = render(drawn)
        for number, (scene, picture) in enumerate(zip(drawn, pictures, strict=True), start=start):
            stem = f"{number:05d}"
            ids, names = segments_of(scene)
            save_image(picture, image_dir / f"{stem}.jpg")
            (folder / f"{stem}.png").write_bytes(encode_segment_ids(ids))
            segments = describe_segments(ids, {key: indices[name] for key, name in names.items()})
            annotations.append((stem, (SCENE_SIZE, SCENE_SIZE), segments))
    text = format_panoptic_file(annotations, classes, things)
    folder.with_suffix(".json").write_text(text, encoding="utf-8")

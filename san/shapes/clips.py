"""Videos of the shapes world: things that move, turn and occlude each other on a static ground.

A video is a list of `Scene` records, one per frame, which depends only on ``numpy.random.default_rng((seed, index,
1))``. Only positions and angles of the things and the pixel noise change between frames. No name occurs twice in a
scene, so a label map also identifies the pixels of each thing.

Legend: T frames, S rendered size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from san.shapes.render import render
from san.shapes.world import SCENE_SIZE, Scene, SceneStyle, Thing, class_index, draw_scene

_AIM = 0.6
"""Probability that a thing first moves towards another one, so that one occludes the other."""


@dataclass(frozen=True)
class MotionStyle:
    """The motion of things.

    Attributes:
        num_frames: T.
        speed: minimum and maximum speed, in scene pixels per frame.
        spin: maximum rotation in either direction, in radians per frame.
    """

    num_frames: int = 24
    speed: tuple[float, float] = (1.0, 4.0)
    spin: float = 0.08

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}; a video has at least one")


def clip_at(seed: int, index: int, motion: MotionStyle | None = None) -> list[Scene]:
    """Return video ``index`` of the infinite stream ``seed``; deterministic.

    Args:
        seed: seed of the stream.
        index: index of the video.
        motion: motion of the things after the first frame.

    Returns:
        T scenes. Things bounce at the distance `SceneStyle.margin` from the borders.
    """
    motion = motion or MotionStyle()
    rng = np.random.default_rng((seed, index, 1))
    first = draw_scene(rng)
    margin = SceneStyle().margin
    ways = [_way(rng, thing, first.things, margin, motion) for thing in first.things]  # (T, 3) each
    scenes = []
    for frame in range(motion.num_frames):
        moved = tuple(
            replace(thing, centre=(float(way[frame, 0]), float(way[frame, 1])), angle=float(way[frame, 2]))
            for thing, way in zip(first.things, ways, strict=True)
        )
        scenes.append(replace(first, things=moved, noise_seed=first.noise_seed + frame))
    return scenes


def render_clip(scenes: Sequence[Scene]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Render a video and track its pixels.

    Args:
        scenes: T scenes, see `clip_at`.

    Returns:
        Images (T, S, S, 3) uint8 RGB with S = `SCENE_SIZE`, label maps (T, S, S) uint8, and (T, S, S) int64: position
        of a pixel's surface in the previous frame, as row * S + column; -1 if it was outside or occluded, and in the
        first frame.
    """
    images, labels = render(scenes, SCENE_SIZE)
    sources = np.full(labels.shape, -1, np.int64)
    for frame in range(1, len(scenes)):
        sources[frame] = _sources(scenes[frame - 1], scenes[frame], labels[frame - 1], labels[frame])
    return images, labels, sources


def _way(
    rng: np.random.Generator, thing: Thing, things: Sequence[Thing], margin: float, motion: MotionStyle
) -> NDArray[np.float64]:
    """Return centre (y, x) and angle of a thing in every frame, (T, 3)."""
    direction = rng.uniform(0, 2 * np.pi)
    target = things[int(rng.integers(len(things)))]
    if rng.random() < _AIM and target is not thing:
        direction = np.arctan2(target.centre[0] - thing.centre[0], target.centre[1] - thing.centre[1])
    speed, spin = rng.uniform(*motion.speed), rng.uniform(-motion.spin, motion.spin)
    frames = np.arange(motion.num_frames)
    low = margin * 2 * max(thing.radius)
    room = max(SCENE_SIZE - 2 * low, 1.0)
    way = np.empty((motion.num_frames, 3))
    for axis, step in enumerate((np.sin(direction), np.cos(direction))):
        along = thing.centre[axis] - low + speed * step * frames
        way[:, axis] = low + room - np.abs(along % (2 * room) - room)  # forth and back
    way[:, 2] = thing.angle + spin * frames
    return way


def _sources(
    before: Scene, after: Scene, labels_before: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Return the pixel positions of one frame, the last result of `render_clip`, (S, S)."""
    size = len(labels)
    step = SCENE_SIZE / size
    rows, columns = np.indices(labels.shape)
    y, x = (rows + 0.5) * step, (columns + 0.5) * step
    for old, new in zip(before.things, after.things, strict=True):
        inside = labels == class_index(new.name)
        turn = old.angle - new.angle
        dy, dx = y[inside] - new.centre[0], x[inside] - new.centre[1]
        y[inside] = old.centre[0] + np.sin(turn) * dx + np.cos(turn) * dy
        x[inside] = old.centre[1] + np.cos(turn) * dx - np.sin(turn) * dy
    rows, columns = np.floor(y / step).astype(np.int64), np.floor(x / step).astype(np.int64)
    seen = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    sources = np.where(seen, rows * size + columns, -1)
    same = labels_before.ravel()[np.maximum(sources, 0)] == labels
    return np.where(seen & same, sources, -1)

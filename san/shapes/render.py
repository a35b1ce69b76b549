"""Renders a batch of `Scene` records to images and label maps, vectorised over images and pixels.

Legend: N scenes, S rendered size (S x S pixels show SCENE_SIZE x SCENE_SIZE scene pixels), T painting slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from san.shapes.world import SCENE_SIZE, SHAPES, Ground, Scene, Thing, class_index

Array = NDArray[np.float32]

RING_HOLE = 0.48
"""Radius of a ring's hole, as a share of its radius."""
SQUARE_HALF = 0.8
"""Half a square's side, as a share of its radius (its corners reach a little beyond the radius)."""
BAR_HALF_WIDTH = 0.30
"""Half a bar's width, as a share of its half length."""
STAR_INNER = 0.42
"""Radius of a star's five inner corners, as a share of its radius."""


def render(scenes: Sequence[Scene], size: int = SCENE_SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render scenes.

    Args:
        scenes: N scenes.
        size: S, the height and width to render at; a power-of-two part of SCENE_SIZE looks like the full-size image
            after averaging blocks of pixels (what CLIP sees at an input scale of 0.5 is ``size=SCENE_SIZE // 2``).

    Returns:
        images (N, S, S, 3) uint8 RGB, and label maps (N, S, S) uint8 of indices into ``world.NAMES``.
    """
    count, step = len(scenes), SCENE_SIZE / size
    grid = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(step)
    image = np.empty((count, size, size, 3), dtype=np.float32)
    labels = np.empty((count, size, size), dtype=np.uint8)
    for n, scene in enumerate(scenes):
        labels[n] = class_index(scene.ground.name)
        image[n] = _ground(scene.ground, grid, step)
        for thing in scene.things:
            _paint(image[n], labels[n], thing, grid, step)
        _light_and_noise(image[n], scene, size)
    if step <= 1:
        image = _blur(image, np.array([scene.blur for scene in scenes], dtype=np.float32))
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), labels


def instances(scene: Scene) -> NDArray[np.uint8]:
    """Return the number of the thing at each pixel (SCENE_SIZE, SCENE_SIZE), from 1 in painting order; 0 for ground."""
    grid = np.arange(SCENE_SIZE, dtype=np.float32) + np.float32(0.5)
    found = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    for number, thing in enumerate(scene.things, start=1):
        place, inside, _, _ = _cover(thing, grid, 1.0)
        found[place][inside > 0] = number
    return found


def _turned(grid_y: Array, grid_x: Array, angle: float) -> tuple[Array, Array]:
    """Return coordinates along two axes rotated by ``angle``; (rows, columns) each."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * grid_x[None] + sin * grid_y[:, None], cos * grid_y[:, None] - sin * grid_x[None]


def _ground(ground: Ground, grid: Array, step: float) -> Array:
    """Return the colours of a ground, (S, S, 3)."""
    first, second = (np.asarray(colour, dtype=np.float32) for colour in ground.colours)
    if ground.name == "plain ground":
        middle: Array = np.broadcast_to((first + second) / 2, (len(grid), len(grid), 3)).astype(np.float32)
        return middle
    along, across = _turned(grid, grid, ground.angle)
    a, b = along / np.float32(ground.period) + np.float32(ground.phase[0]), across / np.float32(ground.period)
    b = b + np.float32(ground.phase[1])
    sharp = np.float32(ground.period / step)  # rendered pixels per period: edges are one pixel wide
    # signed distance to a stripe's edge, in periods: positive inside
    wave_a = np.float32(0.25) - np.abs(a - np.floor(a) - np.float32(0.5))
    if ground.name == "striped ground":
        inside = wave_a * sharp
    else:
        wave_b = np.float32(0.25) - np.abs(b - np.floor(b) - np.float32(0.5))
        if ground.name == "checked ground":
            inside = np.where(wave_a * wave_b > 0, 1, -1) * np.minimum(np.abs(wave_a), np.abs(wave_b)) * sharp
        else:
            inside = (np.float32(0.30) - np.hypot(0.25 - wave_a, 0.25 - wave_b)) * sharp
    share = np.clip(inside + np.float32(0.5), 0, 1)[..., None]
    colours: Array = first + share * (second - first)
    return colours


def _inside(shape: str, u: Array, v: Array) -> Array:
    """Return the signed distance of points (u, v) to the edge of a shape of radius 1: positive inside."""
    inside: Array
    if shape == "square":
        inside = np.float32(SQUARE_HALF) - np.maximum(np.abs(u), np.abs(v))
    elif shape == "bar":
        inside = np.minimum(1 - np.abs(u), BAR_HALF_WIDTH - np.abs(v))
    elif shape == "ring":
        half = np.float32((1 - RING_HOLE) / 2)
        inside = half - np.abs(np.hypot(u, v) - (np.float32(1) - half))
    elif shape == "star":
        inside = _inside_star(u, v)
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")
    return inside


def _inside_star(u: Array, v: Array) -> Array:
    """Return `_inside` of a five-armed star: signed distance to the edge between a tip and an inner corner."""
    fifth = np.float32(2 * np.pi / 5)
    theta = np.arctan2(v, u) / fifth
    theta = np.abs(theta - np.rint(theta)) * fifth  # folded to one half of one arm, 0 at the tip
    corner = np.array([STAR_INNER * np.cos(np.pi / 5), STAR_INNER * np.sin(np.pi / 5)])
    edge = corner - np.array([1.0, 0.0])
    outwards = (np.array([edge[1], -edge[0]]) / np.hypot(*edge)).astype(np.float32)
    rho = np.hypot(u, v)
    inside: Array = (1 - rho * np.cos(theta)) * outwards[0] - rho * np.sin(theta) * outwards[1]
    return inside


def _cover(thing: Thing, grid: Array, step: float) -> tuple[tuple[slice, slice], Array, Array, Array]:
    """Return the place (rows, columns) of a thing's box; there, distances inside it in pixels, and its coordinates."""
    reach = max(thing.radius) * 1.2 + step
    (y0, y1), (x0, x1) = (
        (max(0, int((c - reach) / step)), min(len(grid), int((c + reach) / step) + 1)) for c in thing.centre
    )
    along, across = _turned(
        grid[y0:y1] - np.float32(thing.centre[0]), grid[x0:x1] - np.float32(thing.centre[1]), thing.angle
    )
    u, v = along / np.float32(thing.radius[0]), across / np.float32(thing.radius[1])
    inside = _inside(thing.shape, u, v) * np.float32(min(thing.radius) / step)
    return (slice(y0, y1), slice(x0, x1)), inside, u, v


def _paint(image: Array, labels: NDArray[np.uint8], thing: Thing, grid: Array, step: float) -> None:
    """Paint one thing on ``image`` (S, S, 3) and ``labels`` (S, S), in place, only within its bounding box."""
    place, inside, u, v = _cover(thing, grid, step)
    share = np.clip(inside + np.float32(0.5), 0, 1)[..., None]
    amplitude, cycles, phase = thing.texture
    tone = 1 + np.float32(thing.shading[0]) * u + np.float32(thing.shading[1]) * v
    tone = tone + np.float32(amplitude) * np.sin(np.float32(np.pi * cycles) * u + np.float32(phase))
    colour = np.asarray(thing.colour, dtype=np.float32) * tone[..., None]
    part = image[place]
    part += share * (colour - part)
    labels[place][inside > 0] = class_index(thing.name)


def _light_and_noise(image: Array, scene: Scene, size: int) -> None:
    """Add uneven light, then pixel noise, to (S, S, 3) in place."""
    gain, slope_y, slope_x = (np.float32(value) for value in scene.light)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    image *= (gain * (1 + slope_y * ramp[:, None] + slope_x * ramp[None]))[..., None]
    noise = np.random.default_rng(scene.noise_seed).standard_normal((size, size, 3), dtype=np.float32)
    image += np.float32(scene.noise * size / SCENE_SIZE) * noise  # averaging k x k pixels divides their noise by k


def _blur(image: Array, weight: Array) -> Array:
    """Blur (N, S, S, 3) with three taps along both axes, with one neighbour weight per image."""
    side = weight[:, None, None, None]
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (1, 1)
        padded = np.pad(image, pad, mode="edge")
        length = image.shape[axis]
        before = np.take(padded, range(length), axis=axis)
        after = np.take(padded, range(2, length + 2), axis=axis)
        image = (1 - 2 * side) * image + side * (before + after)
    return image

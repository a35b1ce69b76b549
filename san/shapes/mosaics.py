"""Mosaics: pictures composed of several others, from which the small CLIP learns to recognise a part of a picture.

In SAN, CLIP names one thing among several: an [SLS] token sees only the patches of a mask. Pictures with one caption
for the whole do not teach that. A mosaic shows parts of 2 to 5 pictures, each with its own name, and which patches show
which picture is known, since the mosaic was made of them: so CLIP can be trained to name a part. No outline of a thing
is used, but its place is and, for discs, roughly its size; also of novel things.

Legend: N mosaics, P pictures of a mosaic, R regions (`MAX_REGIONS`), S size in pixels, G patches
along each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from san.shapes.render import render
from san.shapes.world import GROUNDS, SCENE_SIZE, THINGS, Scene, SceneStyle, draw_scene

MAX_REGIONS = 5
_BARE = SceneStyle(num_things=(0, 0))
_BARE_SHARE = 0.2
"""Probability that a picture of a mosaic without inserts shows a ground alone."""
_SPARSE_SHARE, _KEPT = 0.3, (0.4, 0.9)
"""Probability that a region has only some of its patches, as a mask with gaps, and the share of these."""
_INSERTS_SHARE, _INSERT_RADIUS = 0.5, (1.0, 1.5)
"""Probability that the pictures are discs on a ground, and their radii as a share of their thing's."""
_THING_REACH, _GROUND_REACH = (14.0, 60.0), (20.0, 90.0)
"""Distances in scene pixels from a picture's centre within which its patches are of the region."""


@dataclass(frozen=True)
class Mosaic:
    """Pictures of one thing or none, each of which has a place in the mosaic.

    Attributes:
        pictures: P scenes, rendered at full size.
        centres: (P', 2) places of the first P' pictures, (y, x) in scene pixels.
        radii: (P',) if the first P' = P - 1 pictures are discs of these radii on the last one; None if P' = P pictures
            share the mosaic, each pixel showing the one with the closest centre.
    """

    pictures: tuple[Scene, ...]
    centres: NDArray[np.float64]
    radii: NDArray[np.float64] | None

    def owners(self, size: int) -> NDArray[np.int64]:
        """Return the number of the picture that each pixel shows, (S, S)."""
        distances = self.distances(size)
        if self.radii is None:
            closest: NDArray[np.int64] = distances.argmin(axis=0)
            return closest
        outside = distances > self.radii[:, None, None]
        closest = np.where(outside, np.inf, distances).argmin(axis=0)
        return np.where(outside.all(axis=0), len(self.centres), closest)

    def distances(self, size: int) -> NDArray[np.float64]:
        """Return the distances of the centres of S x S cells from the places, (P', S, S), in scene pixels."""
        along = (np.arange(size) + 0.5) * SCENE_SIZE / size
        found: NDArray[np.float64] = np.hypot(
            along[:, None] - self.centres[:, :1, None], along - self.centres[:, 1:, None]
        )
        return found


@dataclass(frozen=True)
class MosaicBank:
    """Mosaics that are rendered once and sampled many times.

    Attributes:
        images: (N, S, S, 3) uint8.
        names: of each mosaic, the names that its regions show, 1 to R.
        regions: (N, G, G, R) bool, the patches of each region; no patch after the last one.
    """

    images: NDArray[np.uint8]
    names: tuple[tuple[str, ...], ...]
    regions: NDArray[np.bool_]


def draw_mosaic(rng: np.random.Generator) -> Mosaic:
    """Draw a mosaic: in half of them pictures share the area, in half they are discs around things on a bare ground."""
    count = int(rng.integers(2, MAX_REGIONS))  # one less than MAX_REGIONS, for the ground of discs
    things = draw_scene(rng, THINGS, SceneStyle(num_things=(count, count))).things
    inserts = bool(rng.random() < _INSERTS_SHARE)
    pictures = []
    for thing in things:
        bare = draw_scene(rng, THINGS, _BARE)
        pictures.append(bare if not inserts and rng.random() < _BARE_SHARE else replace(bare, things=(thing,)))
    centres = np.array([thing.centre for thing in things])
    if not inserts:
        return Mosaic(tuple(pictures), centres, None)
    radii = np.array([max(thing.radius) for thing in things]) * rng.uniform(*_INSERT_RADIUS, size=count)
    return Mosaic((*pictures, draw_scene(rng, THINGS, _BARE)), centres, radii)


def mosaic_bank(seed: int, count: int, size: int, patch_size: int) -> MosaicBank:
    """Render ``count`` mosaics.

    Args:
        seed: seed of the stream of mosaics.
        count: N.
        size: S.
        patch_size: height and width of a patch of the mosaic, a divisor of S.
    """
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    grid = size // patch_size
    regions = np.zeros((count, grid, grid, MAX_REGIONS), dtype=bool)
    names = []
    for index in range(count):
        rng = np.random.default_rng((seed, index, 2))
        mosaic = draw_mosaic(rng)
        owners = mosaic.owners(size)
        pictures, _ = render(mosaic.pictures, size)
        images[index] = np.take_along_axis(pictures, owners[None, :, :, None], axis=0)[0]
        found = _regions(rng, mosaic, owners, grid)
        for number, (_, patches) in enumerate(found):
            regions[index, ..., number] = patches
        names.append(tuple(name for name, _ in found))
    return MosaicBank(images, tuple(names), regions)


def _regions(
    rng: np.random.Generator, mosaic: Mosaic, owners: NDArray[np.int64], grid: int
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the name and the patches (G, G) of each picture that is seen; of the patches, those near its centre.

    How near is drawn, whatever the size of the thing.
    """
    step = len(owners) // grid
    distances = mosaic.distances(grid)
    found = []
    for number, picture in enumerate(mosaic.pictures):
        patches = (owners == number).reshape(grid, step, grid, step).mean(axis=(1, 3)) >= 0.5
        if number < len(distances):
            patches &= distances[number] <= rng.uniform(*(_THING_REACH if picture.things else _GROUND_REACH))
        if rng.random() < _SPARSE_SHARE:
            fewer = patches & (rng.random(patches.shape) < rng.uniform(*_KEPT))
            patches = fewer if fewer.any() else patches
        if patches.any():
            found.append((picture.names[0], patches))
    return found


def whole_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a whole mosaic: its things, then the first by name of the grounds that are regions."""
    grounds = sorted({name for name in names if name in GROUNDS})
    return (*(name for name in names if name not in GROUNDS), *grounds[:1])

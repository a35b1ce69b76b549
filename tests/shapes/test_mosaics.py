"""Mosaics show what they say, and keep their regions when they are turned."""

from __future__ import annotations

import numpy as np

from san.shapes.mosaics import MAX_REGIONS, draw_mosaic, mosaic_bank, whole_names
from san.shapes.pretraining import turned
from san.shapes.render import render
from san.shapes.world import GROUNDS, NAMES

SIZE, PATCH, GRID = 64, 8, 8


def patches(owned):
    """Share of each patch, (G, G), that a map of pixels (S, S) owns."""
    return owned.reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3))


def test_a_mosaic_shows_each_picture_at_its_place():
    kinds = set()
    for index in range(12):
        mosaic = draw_mosaic(np.random.default_rng((4, index, 2)))
        owners = mosaic.owners(SIZE)
        kinds.add(mosaic.radii is None)
        for number, (y, x) in enumerate(mosaic.centres):
            assert len(mosaic.pictures[number].things) <= 1
            at = owners[int(y // 2), int(x // 2)]
            closest = np.hypot(*(mosaic.centres - (y, x)).T).argsort()[0]
            assert at == number == closest  # at its centre, each picture shows itself
        if mosaic.radii is not None:
            assert mosaic.pictures[-1].things == () and (owners == len(mosaic.centres)).any()
    assert kinds == {True, False}


def test_regions_are_patches_of_the_picture_with_their_name():
    bank = mosaic_bank(4, 40, SIZE, PATCH)
    assert bank.images.shape == (40, SIZE, SIZE, 3) and bank.regions.shape == (40, GRID, GRID, MAX_REGIONS)
    for index, names in enumerate(bank.names):
        mosaic = draw_mosaic(np.random.default_rng((4, index, 2)))
        owners = mosaic.owners(SIZE)
        pictures, _ = render(mosaic.pictures, SIZE)
        for number in range(len(mosaic.pictures)):
            np.testing.assert_array_equal(bank.images[index][owners == number], pictures[number][owners == number])
        shown = [picture.names[0] for picture in mosaic.pictures]
        assert 1 <= len(names) <= len(shown) and set(names) <= set(shown) <= set(NAMES)
        regions = bank.regions[index]
        assert regions[..., : len(names)].any(axis=(0, 1)).all() and not regions[..., len(names) :].any()
        for number, name in enumerate(names):
            of_name = np.isin(owners, [place for place, other in enumerate(shown) if other == name])
            assert (patches(of_name)[regions[..., number]] >= 0.5).all()


def test_a_bank_is_reproducible_and_its_seeds_differ():
    first, again, other = (mosaic_bank(seed, 3, SIZE, PATCH) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.regions, again.regions)
    assert first.names == again.names and not np.array_equal(first.images, other.images)


def test_regions_turn_with_their_pictures():
    owned = np.random.default_rng(0).random((2, GRID, GRID, 3)) > 0.5
    pixels = owned.repeat(PATCH, 1).repeat(PATCH, 2)
    seen = set()
    for seed in range(12):
        images, regions = turned(np.random.default_rng(seed), pixels.astype(np.uint8), owned)
        np.testing.assert_array_equal(images[:, ::PATCH, ::PATCH], regions)
        seen.add(regions.tobytes())
    assert len(seen) > 3


def test_a_mosaic_as_a_whole_has_its_things_and_one_ground():
    assert whole_names(["red star", GROUNDS[1], "blue bar", GROUNDS[0]]) == ("red star", "blue bar", min(GROUNDS[:2]))
    assert whole_names(["red star"]) == ("red star",)

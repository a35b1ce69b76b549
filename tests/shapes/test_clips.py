"""Videos of the shapes world: the same everywhere, moving, covering, and followed pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from san.shapes.clips import MotionStyle, clip_at, render_clip
from san.shapes.world import GROUNDS, SCENE_SIZE, SHAPES, class_index, scene_at


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    assert clip_at(1, 2) == clip_at(1, 2)
    assert clip_at(1, 2)[0] != clip_at(1, 3)[0]
    assert clip_at(1, 2)[0] != scene_at(1, 2)
    assert len(clip_at(0, 0, motion=MotionStyle(num_frames=5))) == 5
    with pytest.raises(ValueError, match="num_frames is 0"):
        MotionStyle(num_frames=0)


def test_things_move_at_their_speed_and_bounce() -> None:
    for index in range(20):
        scenes = clip_at(0, index, motion=MotionStyle(num_frames=120))
        for which, thing in enumerate(scenes[0].things):
            centres = np.array([scene.things[which].centre for scene in scenes])
            steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
            assert steps.max() <= 4 + 1e-6
            assert np.median(steps) >= 1 - 1e-6
            assert centres.min() >= 0 and centres.max() <= SCENE_SIZE, thing


def test_things_cover_each_other() -> None:
    """In most videos some thing loses a fifth of its pixels."""
    covered = 0
    for index in range(12):
        labels = render_clip(clip_at(0, index))[1]
        names = np.setdiff1d(np.unique(labels), [class_index(name) for name in GROUNDS])
        areas = np.stack([(labels == name).sum(axis=(1, 2)) for name in names])
        covered += bool((areas.min(axis=1) < 0.8 * areas.max(axis=1)).any())
    assert covered >= 6


def test_sources_of_a_shift_in_closed_form() -> None:
    """A square moves by 8 pixels: its pixels come from 8 to the left, what it uncovers from nowhere."""
    scene = replace(clip_at(0, 0)[0], things=())
    first = next(each for index in range(200) for each in clip_at(0, index)[0].things if each.shape == SHAPES[2])
    thing = replace(first, centre=(64.0, 50.0), radius=(20.0, 20.0), angle=0.0)
    scenes = [replace(scene, things=(replace(thing, centre=(64.0, x)),)) for x in (50.0, 58.0)]
    _, labels, sources = render_clip(scenes)
    rows, columns = np.indices(labels.shape[1:])
    here = rows * SCENE_SIZE + columns
    square = [frame == class_index(thing.name) for frame in labels]
    assert (sources[0] == -1).all()
    assert np.array_equal(sources[1][square[1]], here[square[1]] - 8)
    assert (sources[1][square[0] & ~square[1]] == -1).all()
    ground = ~square[0] & ~square[1]
    assert np.array_equal(sources[1][ground], here[ground])


def test_a_surface_keeps_its_colour() -> None:
    """Without noise, turning things included, a pixel looks as it did where it comes from."""
    scenes = [replace(scene, noise=0.0, blur=0.0, light=(1.0, 0.0, 0.0)) for scene in clip_at(4, 1)]
    images, labels, sources = render_clip(scenes)
    known = sources[1:] >= 0
    assert known.mean() > 0.9
    before = np.stack(
        [image.reshape(-1, 3)[source.clip(0)] for image, source in zip(images[:-1], sources[1:], strict=True)]
    )
    difference = np.abs(before.astype(int) - images[1:]).max(axis=-1)
    assert np.mean(difference[known] <= 12) > 0.97
    flat = labels.reshape(len(labels), -1)
    for frame in range(1, len(labels)):
        inside = sources[frame] >= 0
        assert np.array_equal(flat[frame - 1][sources[frame][inside]], labels[frame][inside])

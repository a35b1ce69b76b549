"""Names in pictures: legible on anything, and no object hidden by them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from san.shapes.world import NAMES
from san.visualize import annotate, overlay
from san.visualize.oklab import linear_light
from san.visualize.text import MAX_COVERED, place_tags


def luminance(colors: np.ndarray) -> np.ndarray:
    """Relative luminance of (..., 3) sRGB, as WCAG 2 defines it."""
    return linear_light(colors) @ np.array([0.2126, 0.7152, 0.0722])


def contrast(pixels: np.ndarray) -> float:
    """Between the darkest and the lightest of pixels (..., 3), 1..21."""
    light = luminance(pixels)
    return float((light.max() + 0.05) / (light.min() + 0.05))


@pytest.mark.parametrize("background", ["black", "white", "noise", "grey"])
@pytest.mark.parametrize("name", ["red star", "yellow bar", "white square", "black ring"])
def test_text_is_legible_on_any_background(background: str, name: str) -> None:
    fill = {"black": 0, "white": 255, "grey": 128, "noise": 0}[background]
    image = np.full((120, 240, 3), fill, np.uint8)
    if background == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    labels = np.full((120, 240), NAMES.index(name))
    (tag,) = place_tags(labels, NAMES)
    left, top, right, bottom = tag.box
    shown = np.asarray(annotate(Image.fromarray(overlay(image, labels, NAMES)), labels, NAMES))
    plate = shown[top + 1 : bottom - 1, left + 1 : right - 1]
    assert contrast(plate) > 15  # WCAG asks for 4.5
    assert (luminance(plate) > 0.9).mean() > 0.5  # dark letters on a light ground, on any picture
    assert (luminance(plate) < 0.1).mean() > 0.05


def scene(seed: int) -> np.ndarray:
    """Overlapping boxes of any size on a ground, in 384 x 384 pixels; a strip of no class."""
    rng = np.random.default_rng(seed)
    labels = np.full((384, 384), len(NAMES) - 1)
    for label in rng.permutation(len(NAMES) - 1)[:14]:
        height, width = rng.integers(3, 150, 2)
        top, left = rng.integers(0, 384 - height), rng.integers(0, 384 - width)
        labels[top : top + height, left : left + width] = label
    labels[:6] = 255
    return labels


@pytest.mark.parametrize("seed", range(6))
def test_no_name_hides_an_object(seed: int) -> None:
    """Compared pixel by pixel: what all the plates, lines and dots cover of each class."""
    labels = scene(seed)
    blank = Image.new("RGB", (384, 384), (1, 2, 3))
    covered = (np.asarray(annotate(blank, labels, NAMES)) != (1, 2, 3)).any(axis=-1)
    tags = place_tags(labels, NAMES)
    assert len(tags) >= 4
    for label in np.unique(labels[labels != 255]):
        own = labels == label
        if own.sum() >= 100:
            assert covered[own].mean() < MAX_COVERED + 0.2, f"{NAMES[label]}: {covered[own].mean():.0%} is hidden"
    for index, tag in enumerate(tags):
        left, top, right, bottom = tag.box
        assert left >= 0 and top >= 0 and right <= 384 and bottom <= 384
        for other in tags[:index]:
            apart = left >= other.box[2] or other.box[0] >= right or top >= other.box[3] or other.box[1] >= bottom
            assert apart, f"{tag.name} lies on {other.name}"


def test_a_small_object_is_named_next_to_it() -> None:
    labels = np.full((200, 300), 1)
    labels[90:104, 140:154] = 0
    named = {tag.name: tag for tag in place_tags(labels, ["small", "ground"])}
    left, top, right, bottom = named["small"].box
    assert not (labels[top:bottom, left:right] == 0).any()
    assert named["small"].anchor is not None
    x, y = named["small"].anchor
    assert labels[y, x] == 0
    assert named["ground"].anchor is None
    blank = np.asarray(annotate(Image.new("RGB", (300, 200), (1, 2, 3)), labels, ["small", "ground"]))
    between = blank[90:104, 140:154]
    assert ((between != (1, 2, 3)).any(axis=-1)).mean() < 0.5  # the line's end, no more


def test_specks_and_full_pictures_leave_names_to_the_legend() -> None:
    labels = np.full((200, 300), 1)
    labels[100:104, 100:104] = 0
    assert [tag.name for tag in place_tags(labels, ["speck", "ground"])] == ["ground"]
    assert place_tags(np.zeros((8, 8), int), ["wider than the picture"]) == []
    assert place_tags(np.full((50, 50), 65535, np.uint16), ["a"]) == []
    many = [str(number) for number in range(300)]  # more than its type can count
    assert [tag.name for tag in place_tags(np.full((50, 50), 7, np.uint8), many)] == ["7"]
    assert len(place_tags(np.arange(400).repeat(400).reshape(400, 400) // 10, [str(i) for i in range(40)])) <= 16

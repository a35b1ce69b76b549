"""Measures of videos in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from san.evaluation.video import VideoScores, boundary_similarity, region_similarity, stable_pixels


def square(left: int, size: int = 10, side: int = 40) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[10 : 10 + size, left : left + size] = True
    return mask


def test_region_similarity() -> None:
    assert region_similarity(square(5), square(5)) == 1
    assert region_similarity(square(5), square(10)) == pytest.approx(50 / 150)
    assert region_similarity(square(5), square(20)) == 0
    assert region_similarity(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 1
    assert region_similarity(np.zeros((40, 40), bool), square(5)) == 0


def test_boundary_similarity() -> None:
    """A frame of 40 x 40 has a tolerance of one pixel: 0.008 x 56.6, rounded up."""
    assert boundary_similarity(square(5), square(5)) == 1
    assert boundary_similarity(square(6), square(5)) == 1
    two = boundary_similarity(square(7), square(5))
    assert 0 < two < 1
    assert boundary_similarity(square(7), square(5), tolerance=2 / math.hypot(40, 40)) == 1
    assert boundary_similarity(square(5), square(25)) == 0
    empty = np.zeros((40, 40), bool)
    assert boundary_similarity(empty, empty) == 1
    assert boundary_similarity(empty, square(5)) == boundary_similarity(square(5), empty) == 0


def test_boundary_counts_in_closed_form() -> None:
    """A step that the truth does not have: 11 of 28 boundary pixels are right, 11 of 20 are found."""
    true, found = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    true[:, :4] = True
    found[:10, :4] = found[10:, :12] = True
    # the truth's boundary is column 3, the other's rows 0 to 8 of it, row 9 from column 3 to 11, and column 11 below;
    # the tolerance is one pixel
    precision, recall = 11 / 28, 11 / 20
    assert boundary_similarity(found, true) == pytest.approx(2 * precision * recall / (precision + recall))


def test_scores_of_videos_in_closed_form() -> None:
    """Class 1 is right in one frame of two; class 0 is predicted where the truth has no class; class 2 never occurs."""
    truth = np.full((2, 40, 40), 255)
    truth[:, square(5)] = 1
    prediction = np.zeros_like(truth)
    prediction[0, square(5)] = 1
    scores = VideoScores(3)
    scores.update(prediction, truth)
    values = scores.metrics()
    assert scores.frames.tolist() == [0, 2, 0]
    assert values == {"J": 50, "F": 50, "J&F": 50, "mIoU": 50}
    both = np.zeros((1, 40, 40), int)
    scores.update(both, both)
    assert scores.metrics()["J"] == 75
    with pytest.raises(ValueError, match="predict every frame"):
        scores.update(both, truth)
    assert all(math.isnan(value) for value in VideoScores(3).metrics().values())


def test_a_class_counts_in_all_frames_of_a_video_that_shows_it() -> None:
    """Also in frames without it: J is 1 if it is not predicted either, 0 otherwise."""
    truth = np.zeros((3, 40, 40), int)
    truth[0, square(5)] = 1
    prediction = truth.copy()
    prediction[2, square(5)] = 1
    scores = VideoScores(2)
    scores.update(prediction, truth)
    assert scores.region[1] / scores.frames[1] == pytest.approx(2 / 3)
    assert scores.intersection[1] / scores.union[1] == pytest.approx(1 / 2)


def test_stable_pixels_follow_the_motion() -> None:
    labels = np.array([[[1, 2, 3]], [[7, 1, 2]], [[7, 7, 9]]])
    sources = np.array([[[-1, -1, -1]], [[-1, 0, 1]], [[0, -1, 2]]])
    assert stable_pixels(labels, sources).tolist() == [[[False] * 3], [[False, True, True]], [[True, False, False]]]

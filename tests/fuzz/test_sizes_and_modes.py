"""Images of any size, mode and type through a small model, and label maps through all that reads and writes them."""

# ruff: noqa: PT017 (an example is either taken or refused with such a message)

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from san.data.images import image_pixels
from san.data.label_mapping import LabelMapping
from san.evaluation.confusion import ConfusionMatrix
from san.inference.predictor import Predictor
from san.io.image_files import read_label_map

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F"]
ANY_ARRAY = arrays.arrays(
    st.sampled_from(["uint8", "uint16", "bool", "int64", "float32", "float64"]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_pretrained("shapes")


@settings(max_examples=12)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(MODES), st.data())
def test_every_size_and_mode_is_segmented_or_refused(predictor, height, width, mode, data):
    try:
        image = Image.new(mode, (width, height), data.draw(st.integers(0, 200)) if mode in ("L", "I", "1") else 0)
        encoded = predictor.encode(image)
    except ValueError as error:
        assert mode == "F", error
        return
    result = predictor.segment(["red star", "striped ground"], encoded=encoded)
    assert result.labels.shape == (height, width)
    assert set(np.unique(result.labels)) <= {-1, 0, 1}


@settings(max_examples=6)
@given(st.integers(1, 3), st.integers(200, 2000), st.booleans())
def test_extreme_shapes(predictor, short, long, wide):
    shape = (short, long) if wide else (long, short)
    labels = predictor.predict(np.zeros((*shape, 3), np.uint8), ["red star", "blue ring"]).labels
    assert labels.shape == shape


@settings(max_examples=300)
@given(ANY_ARRAY, st.sampled_from([None, "HWC", "CHW", "WHC"]), st.booleans())
def test_any_array_or_tensor(array, layout, as_tensor):
    image = array
    if as_tensor:
        image = torch.from_numpy(array.astype("int32") if array.dtype == "uint16" else array)
    try:
        pixels = image_pixels(image, layout=layout)
    except ValueError as error:
        assert str(error)
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    assert pixels.shape[0] * pixels.shape[1] <= array.size


LABELS = arrays.arrays(
    st.sampled_from(["uint8", "uint16"]),
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.integers(0, 255),
)


@given(LABELS)
def test_label_maps_come_back_as_written(tmp_path, labels):
    for name in ("a.png", "a.tif"):
        Image.fromarray(labels).save(tmp_path / name)
        read = read_label_map(tmp_path / name)
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, labels)


@given(
    st.lists(st.tuples(st.integers(-5, 70000), st.integers(0, 3)), max_size=5),
    st.sampled_from(["refuse", "ignore", "else"]),
    LABELS,
)
def test_label_mappings(pairs, unmapped, labels):
    try:
        mapped = LabelMapping(tuple(pairs), 255, unmapped).apply(labels)
    except ValueError as error:
        assert str(error)
        return
    wanted = dict(pairs)
    assert mapped.tolist() == [[wanted.get(int(value), 255) for value in row] for row in labels]


@given(st.integers(1, 6), LABELS, st.randoms(use_true_random=False))
def test_confusion_matrices_count_every_labelled_pixel(num_classes, labels, rng):
    prediction = np.array([[rng.randrange(num_classes) for _ in row] for row in labels])
    matrix = ConfusionMatrix(num_classes, ignore_label=255)
    legal = (labels < num_classes) | (labels == 255)
    if not legal.all():
        with pytest.raises(ValueError, match=r"\d"):
            matrix.update(prediction, labels)
        return
    matrix.update(prediction, labels)
    assert int(matrix.counts.sum()) == int((labels < num_classes).sum())

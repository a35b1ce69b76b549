"""Raw values to class indices, and label files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from san.io.image_files import ORIENTATION_TAG
from san.preparation.ade20k_full import decode_numbers
from san.preparation.encoding import class_table, fit_to_image, write_labels
from san.vocabulary.label_sets import LABEL_SETS, load_label_set


@pytest.mark.parametrize(
    ("label_set", "pairs"),
    [
        ("coco_stuff_171", {0: 0, 10: 10, 11: 255, 12: 11, 89: 79, 90: 255, 91: 80, 181: 170, 255: 255}),
        ("voc_20", {0: 255, 1: 0, 20: 19, 255: 255}),
        ("pascal_context_59", {0: 255, 1: 255, 2: 0, 9: 1, 397: 49, 458: 58, 459: 255}),
        ("pascal_context_459", {0: 65535, 1: 0, 256: 255, 431: 430, 459: 458}),
        ("ade20k_150", {0: 255, 1: 0, 150: 149}),
        ("ade20k_847", {0: 65535, 2978: 0, 312: 1, 3148: 846, 3149: 65535}),
    ],
)
def test_published_examples(label_set, pairs):
    table = class_table(label_set)
    assert {raw: int(table[raw]) for raw in pairs} == pairs
    assert table.dtype == load_label_set(label_set).label_dtype


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_every_class_has_one_raw_value(label_set):
    labels, table = load_label_set(label_set), class_table(label_set)
    counts = np.bincount(table[table != labels.ignore_label].astype(int), minlength=labels.num_classes)
    assert counts.tolist() == [1] * labels.num_classes


def test_ade_numbers_do_not_overflow():
    colors = np.array([[[0, 0, 9], [10, 1, 200], [110, 162, 1], [120, 76, 0], [255, 255, 255]]], np.uint8)
    assert decode_numbers(colors).tolist() == [[0, 257, 2978, 3148, 6655]]


@pytest.mark.parametrize("tag", range(1, 9))
def test_labels_turn_with_their_image(tag, tmp_path):
    """The label of a picture with numbered pixels is rotated exactly as Pillow rotates the picture."""
    values = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    image = Image.fromarray(values)
    exif = image.getexif()
    exif[ORIENTATION_TAG] = tag
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(fit_to_image(values, tmp_path / "a.png", tmp_path / "label.png"), upright)


@pytest.mark.parametrize(("name", "dtype", "mode"), [("a.png", np.uint8, "L"), ("a.tif", np.uint16, "I;16")])
def test_files_keep_type_and_values(name, dtype, mode, tmp_path):
    values = np.arange(7 * 5).reshape(7, 5).astype(dtype)
    values[-1, -1] = np.iinfo(dtype).max
    write_labels(tmp_path / name, values)
    with Image.open(tmp_path / name) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), values)


def test_16_bits_never_go_into_8(tmp_path):
    with pytest.raises(ValueError, match=r"has type uint16; write uint8 as .png and uint16 as .tif"):
        write_labels(tmp_path / "a.png", np.zeros((2, 2), np.uint16))
    assert list(tmp_path.iterdir()) == []

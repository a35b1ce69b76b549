from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.data.transforms import AugmentationConfig, TrainAugmentation, resize_image, resize_short_side
from san.io.image_files import check_same_size, read_image, read_label_map

NO_COLOR = {"color_prob": 0.0}


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image and a blocky label map of few values."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([127 + 120 * np.sin(x / 17), 127 + 120 * np.cos(y / 13), (x + y) % 256], -1).astype(np.uint8)
    return image, (y // 16 * 3 + x // 16) % 7


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.array([[0, 255], [255, 0], [0, 0]], np.uint8))
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I") else "image.png")
    if mode.startswith("I"):
        values = np.asarray(grey).astype({"I": np.int32, "I;16": np.uint16}[mode]) * 257
        Image.fromarray(values).save(path)
    else:
        grey.convert("RGB").convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.tolist() == np.asarray(grey.convert("RGB")).tolist()


def test_sixteen_bit_grey_of_small_values_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.array([[200, 65535]], np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[0, :, 0].tolist() == [0, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 10, 3)


def test_palette_label_map_keeps_its_indices(tmp_path: Path) -> None:
    labels = Image.fromarray(np.array([[0, 1], [20, 255]], np.uint8)).convert("L")
    labels.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
    labels.save(tmp_path / "labels.png")
    assert Image.open(tmp_path / "labels.png").mode == "P"
    assert read_label_map(tmp_path / "labels.png").tolist() == [[0, 1], [20, 255]]


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.uint16)])
def test_label_maps_come_back_exactly(tmp_path: Path, name: str, dtype: type) -> None:
    values = np.array([[0, 1, 255], [3, 4, np.iinfo(dtype).max]], dtype)
    Image.fromarray(values).save(tmp_path / name)
    read = read_label_map(tmp_path / name)
    assert read.dtype == np.int32
    assert read.tolist() == values.tolist()


@pytest.mark.parametrize("read", [read_image, read_label_map])
def test_unreadable_files(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(FileNotFoundError, match=r"gone\.png does not exist"):
        read(tmp_path / "gone.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png is an empty file"):
        read(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png cannot be read .*prepare it again"):
        read(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        read(tmp_path / "cut.png")


def test_colour_coded_label_map_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match=r"colours\.png has mode RGB but must have one channel"):
        read_label_map(tmp_path / "colours.png")


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"image a\.jpg is 4x6 .* but label map a\.png is 6x4.* EXIF"):
        check_same_size(np.zeros((4, 6, 3)), np.zeros((6, 4)), "image a.jpg", "label map a.png")
    with pytest.raises(ValueError, match="prepare the labels again"):
        TrainAugmentation()(np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4), int), np.random.default_rng(0))


def test_resize_rounds_half_up() -> None:
    assert resize_short_side(2, 3, 5, 100) == (5, 8)  # 7.5
    assert resize_short_side(96, 4000, 640, 2560) == (61, 2560)  # 61.44
    assert resize_image(np.zeros((2, 3, 3), np.uint8), (5, 8)).shape == (5, 8, 3)


@pytest.mark.parametrize("size", [(480, 640), (100, 50), (1200, 900)])
def test_augmented_shapes_and_types(size: tuple[int, int]) -> None:
    image, labels = scene(*size)
    rng = np.random.default_rng(0)
    for _ in range(4):
        new_image, new_labels = TrainAugmentation()(image, labels, rng)
        assert new_image.shape == (640, 640, 3)
        assert new_labels.shape == (640, 640)
        assert new_image.dtype == np.uint8
        assert new_labels.dtype == labels.dtype
        assert set(np.unique(new_labels)) <= {*range(7), 255}


def test_all_randomness_comes_from_the_generator() -> None:
    image, labels = scene(120, 160)
    augment = TrainAugmentation(AugmentationConfig(short_sides=(96, 128), crop_size=(128, 128)))
    draw = [augment(image, labels, np.random.default_rng(seed)) for seed in (7, 7, 8)]
    assert np.array_equal(draw[0][0], draw[1][0])
    assert np.array_equal(draw[0][1], draw[1][1])
    assert not np.array_equal(draw[0][0], draw[2][0])


def test_nothing_to_draw_changes_nothing() -> None:
    image, labels = scene(64, 64)
    config = AugmentationConfig(short_sides=(64,), crop_size=(64, 64), flip_prob=0.0, **NO_COLOR)
    new_image, new_labels = TrainAugmentation(config)(image, labels, np.random.default_rng(0))
    assert np.array_equal(new_image, image)
    assert np.array_equal(new_labels, labels)


def test_flip_mirrors_both() -> None:
    image, labels = scene(64, 64)
    config = AugmentationConfig(short_sides=(64,), crop_size=(64, 64), flip_prob=1.0, **NO_COLOR)
    new_image, new_labels = TrainAugmentation(config)(image, labels, np.random.default_rng(0))
    assert np.array_equal(new_image, image[:, ::-1])
    assert np.array_equal(new_labels, labels[:, ::-1])


def test_padding_is_at_the_bottom_and_right() -> None:
    image, labels = scene(40, 50)
    config = AugmentationConfig(short_sides=(40,), crop_size=(64, 96), flip_prob=0.0, ignore_label=65535, **NO_COLOR)
    new_image, new_labels = TrainAugmentation(config)(image, labels, np.random.default_rng(0))
    assert np.array_equal(new_image[:40, :50], image)
    assert np.array_equal(new_labels[:40, :50], labels)
    assert (new_labels[40:] == 65535).all()
    assert (new_labels[:, 50:] == 65535).all()
    assert (new_image[40:] == 128).all()
    assert (new_image[:, 50:] == 128).all()


def test_crop_is_a_crop_of_the_resized_image() -> None:
    """Resizing only the crop gives what resizing first gives, up to one step of 255."""
    image, labels = scene(90, 130)
    size, crop = resize_short_side(90, 130, 150, 999), (64, 72)
    config = AugmentationConfig(short_sides=(150,), max_size=999, crop_size=crop, flip_prob=0.0, **NO_COLOR)
    whole_image = resize_image(image, size)
    whole_labels = np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST))
    corners = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        new_image, new_labels = TrainAugmentation(config)(image, labels, np.random.default_rng(seed))
        rng.choice(config.short_sides)
        top, left = (int(rng.integers(have - cut + 1)) for have, cut in zip(size, crop, strict=True))
        window = np.s_[top : top + crop[0], left : left + crop[1]]
        assert np.abs(new_image.astype(int) - whole_image[window]).max() <= 1
        assert np.array_equal(new_labels, whole_labels[window])
        corners.add((top, left))
    assert len(corners) == 8


def distort(image: np.ndarray, seed: int = 0, **options: object) -> np.ndarray:
    neutral = {
        "brightness": 0.0,
        "contrast": (1.0, 1.0),
        "saturation": (1.0, 1.0),
        "hue_degrees": 0.0,
        "color_prob": 1.0,
    }
    config = AugmentationConfig(**{**neutral, **options})  # type: ignore[arg-type]
    return np.asarray(TrainAugmentation(config).distort_colors(Image.fromarray(image), np.random.default_rng(seed)))


def test_color_steps_in_closed_form() -> None:
    grey = np.full((1, 2, 3), [[[100], [250]]], np.uint8)
    assert distort(grey, contrast=(1.2, 1.2))[0, :, 0].tolist() == [120, 255]
    assert distort(grey, contrast=(0.5, 0.5))[0, :, 0].tolist() == [50, 125]
    assert {tuple(distort(grey, seed, brightness=32.0)[0, :, 0] - [100, 250]) for seed in range(9)} != {(0, 0)}
    assert np.array_equal(distort(grey, saturation=(1.5, 1.5), hue_degrees=18.0), grey)  # grey has neither
    red = np.array([[[200, 100, 100]]], np.uint8)
    assert np.abs(distort(red, saturation=(0.5, 0.5))[0, 0].astype(int) - [200, 150, 150]).max() <= 2
    assert np.array_equal(distort(red, color_prob=0.0, brightness=32.0), red)


def test_hue_turns_by_at_most_18_degrees() -> None:
    color = np.array([[[220, 60, 40]]], np.uint8)
    before = 360 * colorsys.rgb_to_hsv(*color[0, 0] / 255)[0]
    turns = []
    for seed in range(200):
        hue = 360 * colorsys.rgb_to_hsv(*distort(color, seed, hue_degrees=18.0)[0, 0] / 255)[0]
        turns.append((hue - before + 180) % 360 - 180)
    assert -21 < min(turns) < -15  # 8-bit hue is good to about 2 degrees
    assert 15 < max(turns) < 21


def test_contrast_comes_before_or_after_saturation() -> None:
    """Clipped by contrast first, a colour has lost its saturation; the two orders differ, and both occur."""
    color = np.array([[[250, 200, 150]]], np.uint8)
    results = {
        tuple(distort(color, seed, contrast=(1.5, 1.5), saturation=(0.5, 0.5))[0, 0].tolist()) for seed in range(20)
    }
    assert len(results) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"short_sides": ()},
        {"crop_size": (0, 4)},
        {"flip_prob": 1.5},
        {"color_prob": -0.1},
        {"contrast": (1.5, 0.5)},
        {"saturation": (-1.0, 0.5)},
    ],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AugmentationConfig(**options)  # type: ignore[arg-type]

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.visualize import Sample, class_color, contact_sheet, error_map, legend, overlay, palette, panel
from san.visualize.overlay import RIGHT_COLOR, WRONG_COLOR
from san.visualize.panel import _shortened, _shown_size, save_picture, thumbnails
from san.vocabulary.label_sets import load_label_set

NAMES = ["red star", "blue ring", "striped ground"]


def colors_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {color for _, color in picture.getcolors(picture.width * picture.height)}


@pytest.mark.parametrize(("dtype", "none"), [(np.int64, -1), (np.uint8, 255), (np.uint16, 65535), (np.int32, 3)])
def test_no_class_is_the_image_faded_and_grey(dtype: type, none: int) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 200
    labels = np.zeros((4, 6), dtype)
    labels[:, 3:] = none
    shown = overlay(image, labels, NAMES)
    red, green, blue = shown[2, 4].tolist()
    assert red == green == blue > 180
    assert shown[2, 1].tolist() != shown[2, 4].tolist()


def test_overlay_in_bands_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (50, 40, 3), np.uint8), rng.integers(-1, 4, (50, 40))
    whole = overlay(image, labels, NAMES)
    module = importlib.import_module("san.visualize.overlay")  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "_BAND_PIXELS", 7 * 40)
    np.testing.assert_array_equal(overlay(image, labels, NAMES), whole)
    with pytest.raises(ValueError, match="from 0 to 1"):
        overlay(image, labels, NAMES, alpha=70)


def test_tags_are_written_when_asked_for() -> None:
    image, labels = np.zeros((100, 200, 3), np.uint8), np.zeros((100, 200), int)
    assert (overlay(image, labels, NAMES) != 255).all()
    assert (overlay(image, labels, NAMES, tags=True) == 255).all(axis=-1).any()


def test_error_map() -> None:
    image = np.full((1, 4, 3), 100, np.uint8)
    right, wrong, ignored, none = error_map(image, np.array([[0, 1, 0, -1]]), np.array([[0, 0, 255, 1]]), 2)[0].astype(
        int
    )
    assert np.abs(right - RIGHT_COLOR).max() < 40
    assert np.abs(wrong - WRONG_COLOR).max() < 40
    assert wrong.tolist() == none.tolist()  # no class, where there is one, is wrong
    assert ignored[0] == ignored[1] == ignored[2] > 190


def test_panel_shows_errors_only_with_truth() -> None:
    image, labels = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), int)
    with_truth, without = panel(image, labels, labels, NAMES), panel(image, None, labels, NAMES)
    assert with_truth.width == pytest.approx(2 * without.width, abs=20)
    assert WRONG_COLOR in colors_of(with_truth)  # in the key next to the heading
    assert WRONG_COLOR not in colors_of(without)


def test_contact_sheet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (40, 90), (1200, 700), (1, 1), (90, 40)]
    samples = [
        (
            f"a/very/long/path/that/goes/on/{index}/" * 4,
            rng.integers(0, 256, (*size, 3), np.uint8),
            np.full(size, index % 2),
        )
        for index, size in enumerate(sizes)
    ]
    picture = contact_sheet((sample for sample in samples), NAMES, tmp_path / "sub" / "sheet.png")
    with Image.open(tmp_path / "sub" / "sheet.png") as written:
        assert written.size == picture.size
    assert {class_color("red star"), class_color("blue ring")} <= colors_of(picture)
    assert class_color("striped ground") not in colors_of(picture)  # it does not occur
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([], NAMES)
    with pytest.raises(ValueError, match="resize one to the other"):
        contact_sheet([("a", samples[0][1], samples[1][2])], NAMES)


def test_contact_sheet_of_nothing_but_ignored() -> None:
    picture = contact_sheet([("a", np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 255, np.uint8))], NAMES)
    assert picture.width > 300


def test_long_titles_keep_both_ends() -> None:
    title = "train/" + "x" * 300 + "/0001.jpg"
    assert _shortened(title, 200).startswith("train/")
    assert _shortened(title, 200).endswith("0001.jpg")
    assert _shortened("two\nlines", 200) == "two lines"


def test_legend_is_cut_off() -> None:
    names = load_label_set("coco_stuff_171").classes
    whole, cut = legend(names, 900), legend(names, 900, max_entries=12)
    assert cut.height < whole.height / 5
    assert class_color(names[11]) in colors_of(cut)
    assert class_color(names[12]) not in colors_of(cut)
    plain = legend(names[:12], 900)
    assert np.asarray(cut).size >= np.asarray(plain).size  # room for "+159 more"
    assert legend([], 300, num_more=3).getextrema() != ((255, 255),) * 3


def test_thumbnails_have_one_width() -> None:
    for size in ((30, 90), (90, 30), (50, 50)):
        labels = np.zeros(size, int)
        for truth in (labels, None):
            row = thumbnails(Sample(np.zeros((*size, 3), np.uint8), labels, truth), NAMES, width=100)
            assert row.width == 4 * 100 + 12
            assert row.height <= 125


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    save_picture(Image.new("RGB", (8, 8)), path)
    before = path.read_bytes()

    def fail(self: Image.Image, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_picture(Image.new("RGB", (9, 9)), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(("size", "columns"), [((64, 64), 4), ((60, 120), 2), ((20, 200), 1), ((200, 20), 4)])
def test_wide_pictures_are_stacked(size: tuple[int, int], columns: int) -> None:
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, int)
    shown, alone = panel(image, labels, labels, NAMES), panel(image, None, labels, NAMES)
    cell = max(200, _shown_size(size, (768, 768))[0])
    assert shown.width == max(360, columns * (cell + 12) + 12)
    assert alone.width == max(360, (2 if columns == 4 else 1) * (cell + 12) + 12)


def test_pixels_without_a_class_have_a_hatched_entry() -> None:
    image, labels = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), int)
    labels[:, :32] = -1

    def hatched(picture: Image.Image) -> bool:
        return bool((np.asarray(picture)[-40:, :40] == 185).all(axis=-1).sum() > 30)  # letters have a few such pixels

    assert hatched(legend([], 300, no_class=True))
    assert not hatched(legend(["cat"], 300))
    assert not hatched(panel(image, None, np.zeros_like(labels), NAMES))
    none = np.full_like(labels, -1)
    assert hatched(panel(image, None, none, NAMES))
    assert hatched(panel(image, np.where(labels < 0, 255, 1), none, NAMES[:1]))
    assert hatched(contact_sheet([("a", image, none)], NAMES))
    part = panel(image, None, labels, NAMES)
    assert (np.asarray(part)[-40:] == 185).all(axis=-1).sum() > 30  # after the class


def test_all_parts_of_a_picture_take_their_colors_from_the_whole_vocabulary() -> None:
    """Colours depend on what else is in the vocabulary: a legend of the classes in the picture alone would differ."""
    names = [f"word {index}" for index in range(32)]
    index = next(i for i, name in enumerate(names) if palette(names)[i].tolist() != list(class_color(name)))
    color = tuple(palette(names)[index].tolist())
    image, labels = np.zeros((200, 200, 3), np.uint8), np.full((200, 200), index)
    shown = panel(image, None, labels, names)
    legend_part, plate = shown.crop((0, shown.height - 40, 60, shown.height)), shown.crop((424, 30, 824, 430))
    assert color in colors_of(legend_part)
    assert color in colors_of(plate)  # the frame of the plate
    assert overlay(image, labels, names, alpha=1.0)[100, 100].tolist() == list(color)


def test_a_legend_of_long_and_odd_names_stays_inside(tmp_path: Path) -> None:
    names = ["W" * 200, "two\nlines", "tab\there \x1b[2J", "$x$_{y}", "猫", *(f"n{i}" for i in range(300))]
    for width in (60, 200, 900):
        shown = np.asarray(legend(names, width, notes=["missed"] * len(names), max_entries=12, no_class=True))
        assert shown.shape[:2] == (shown.shape[0], width)
        assert shown.shape[0] <= 14 * 26
        if width > 60:
            assert (shown[:, -2:] == 255).all()  # nothing is cut at the edge

"""`san predict --things` and `san label --segments` on the committed model, as their users run them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.cli import label, predict
from san.cli.main import main
from san.evaluation.panoptic_files import read_panoptic
from san.inference.predictor import Predictor
from san.shapes.dataset import SHAPES_SPLITS, split_images
from san.shapes.world import THINGS

WORDS = ["--label-set", "shapes_36", "--things", ",".join(THINGS)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, array in enumerate(split_images(SHAPES_SPLITS[0], 0, range(2))[0]):
        Image.fromarray(array).save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def loaded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded once for all tests."""
    for command in (label, predict):
        monkeypatch.setattr(command, "load_segmenter", lambda args: predictor)


def test_the_overlay_shows_segments_and_the_json_lists_them(images: Path, tmp_path: Path, predictor: Predictor) -> None:
    plain = tmp_path / "plain"
    assert main(["predict", str(images), *WORDS[:2], "--out", str(plain), "--quiet"]) == 0
    for kind, min_area in (("components", 9), ("connected", 0)):
        out = tmp_path / kind
        more = ["--segments", kind, "--min-area", str(min_area)]
        assert main(["predict", str(images), *WORDS, *more, "--out", str(out), "--quiet"]) == 0
        for index in range(2):
            result = predictor.predict(images / f"{index}.png", "shapes_36")
            segments = result.segments(things=THINGS, source=kind, min_area=min_area)
            written = json.loads((out / f"{index}.json").read_text())
            assert written.pop("segments") == json.loads(json.dumps([each.to_dict() for each in segments]))
            assert any(each.isthing for each in segments) and not all(each.isthing for each in segments)
            assert written == json.loads((plain / f"{index}.json").read_text())
            shown = np.asarray(Image.open(out / f"{index}_overlay.png"))
            assert np.array_equal(shown, np.asarray(result.overlay(segments=segments)))
            assert (out / f"{index}_labels.png").read_bytes() == (plain / f"{index}_labels.png").read_bytes()


@pytest.mark.parametrize("kind", ["queries", "connected"])
def test_labels_are_segments_of_queries(kind: str, images: Path, tmp_path: Path, predictor: Predictor) -> None:
    thresholds = ["--object-threshold", "0.15", "--overlap-threshold", "0.5"]
    command = ["label", str(images), *WORDS, "--segments", kind, *thresholds, "--format", "coco-panoptic,png"]
    assert main([*command, "--min-area", "5", "--out", str(tmp_path)]) == 0
    found = read_panoptic(tmp_path / "coco-panoptic/annotations/panoptic_train.json")
    assert found.things == frozenset(THINGS)
    options = {"things": THINGS, "object_threshold": 0.15, "overlap_threshold": 0.5, "min_area": 5}
    for index in range(2):
        result = predictor.predict(images / f"{index}.png", "shapes_36")
        expected = result.segments(source=kind, **options)
        segments = found.segments(str(index), {name: place for place, name in enumerate(result.names)})
        assert segments.classes == {number: each.label for number, each in enumerate(expected, start=1)}
        labels = np.asarray(Image.open(tmp_path / f"png/labels/{index}.png"))
        for number, each in enumerate(expected, start=1):
            assert np.array_equal(segments.ids == number, each.mask())
            assert (labels[each.mask()] == each.label).all()
        assert (labels[segments.ids == 0] == 255).all()


def test_an_unfinished_run_of_other_segments_is_not_continued(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["label", str(images), *WORDS, "--format", "coco", "--out", str(tmp_path), "--shard", "0/2"]
    assert main([*command, "--segments", "connected"]) == 0
    assert main([*command, "--segments", "connected", "--overlap-threshold", "0.9"]) == 1
    assert "has another overlap_threshold, None instead of 0.9" in capsys.readouterr().err
    assert main(command) == 1
    command = ["predict", str(images), *WORDS, "--out", str(tmp_path / "p"), "--shard", "0/2"]
    assert main(command) == 0
    assert main([*command, "--min-area", "3", "--overwrite"]) == 1
    assert "has another min_area, 0 instead of 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "label"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--things", ","], "the things ',' have no name"),
        (["--things", "dog"], "the thing 'dog' is none of the classes 'red ring'"),
        (["--things", "voc_20"], "the label set voc_20 does not distinguish things; give their names"),
        (["--segments", "queries"], "--segments is of segments, and there are none; give --things"),
        (["--overlap-threshold", "0.5"], "--overlap-threshold is of segments, and there are none; give --things"),
        (["--things", "red star", "--object-threshold", "0.5"], "--object-threshold is of queries; give --segments"),
        (["--things", "red star", "--min-area", "-1"], "min_area is -1; give a number of pixels, 0 or more"),
        (["--things", "red star", "--segments", "queries", "--flip"], "needs the queries of one model and size"),
        (["--things", "red star", "--segments", "connected", "--scales", "96,128"], "give --segments components"),
        (["--things", "red star", "--segments", "queries", "--model", "e.yaml"], "give one size and one model"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    command: str,
    options: list[str],
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for each in (label, predict):
        monkeypatch.setattr(each, "load_segmenter", lambda args: pytest.fail("the model was loaded"))
    out = tmp_path / "out"
    assert main([command, str(images), "--label-set", "shapes_36", "--out", str(out), *options]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_prediction_without_things_has_no_segments_to_drop(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(images), *WORDS[:2], "--min-area", "9", "--out", "none"]) == 1
    assert "--min-area is of segments, and there are none; give --things" in capsys.readouterr().err


def test_a_share_is_a_number_from_0_to_1(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("1.5", "half", "nan"):
        assert main(["predict", str(images), *WORDS, "--segments", "queries", "--object-threshold", text]) == 2
        assert f"'{text}' is not a number from 0 to 1" in capsys.readouterr().err

"""`san label` on the committed model, as its users run it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from san.cli import label
from san.cli.label import UNFINISHED
from san.cli.main import main
from san.inference.predictor import Predictor
from san.io.files import LABEL_FORMATS
from san.shapes.dataset import SHAPES_SPLITS, split_images
from san.vocabulary.vocabulary import Vocabulary

REPO = Path(__file__).resolve().parents[2]
WORDS = "blue square, blue ring|azure ring; cyan square, striped ground"
CONTEXT = "plain ground, dotted ground, checked ground, red square, yellow bar"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, one of them in a sub-folder."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    arrays = split_images(SHAPES_SPLITS[0], 0, range(3))[0]
    for name, array in zip(("a.png", "b.jpg", "sub/a.png"), arrays, strict=True):
        Image.fromarray(array).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def loaded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded once for all tests."""
    monkeypatch.setattr(label, "load_segmenter", lambda args: predictor)


def command(images: Path, out: Path, *more: str) -> list[str]:
    words = ["--vocab", WORDS, "--context", CONTEXT, "--recursive", "--quiet"]
    return ["label", str(images), "--out", str(out), *words, *more]


def test_every_format(images: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "my labels"
    assert main(command(images, out, "--format", ",".join(LABEL_FORMATS))) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(LABEL_FORMATS)
    coco = COCO(str(out / "coco/annotations/instances_train.json"))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == [
        "blue square",
        "blue ring",
        "cyan square",
        "striped ground",
    ]
    assert [each["file_name"] for each in coco.dataset["images"]] == ["a.png", "b.jpg", "sub/a.png"]
    vocabulary = Vocabulary.parse(WORDS).with_context(Vocabulary.parse(CONTEXT))
    for image in coco.dataset["images"]:
        result = predictor.predict(images / image["file_name"], vocabulary)
        expected = np.where(result.labels < 4, result.labels, 255)
        png = np.asarray(Image.open((out / "png/labels" / image["file_name"]).with_suffix(".png")))
        assert np.array_equal(png, expected)
        for entry in coco.loadAnns(coco.getAnnIds(image["id"])):
            assert np.array_equal(coco.annToMask(entry), expected == entry["category_id"] - 1)


def test_options_of_regions(images: Path, tmp_path: Path) -> None:
    plain, small = tmp_path / "plain", tmp_path / "small"
    assert main(command(images / "a.png", plain, "--instances")) == 0
    more = ("--instances", "--min-area", "400", "--outlines", "polygons", "--tolerance", "1")
    assert main(command(images / "a.png", small, *more)) == 0
    found = [COCO(str(out / "coco/annotations/instances_train.json")).dataset for out in (plain, small)]
    areas = [[each["area"] for each in data["annotations"]] for data in found]
    assert areas[1] == [area for area in areas[0] if area >= 400]
    assert isinstance(found[1]["annotations"][0]["segmentation"], list)
    assert isinstance(found[0]["annotations"][0]["segmentation"], dict)
    assert main(command(images / "a.png", tmp_path / "things", "--things", "blue square", "--format", "coco")) == 0
    data = COCO(str(tmp_path / "things/coco/annotations/instances_train.json")).dataset
    kinds = [each["category_id"] for each in data["annotations"]]
    all_kinds = [each["category_id"] for each in found[0]["annotations"]]
    others = [kind for kind in kinds if kind != 1]
    assert kinds.count(1) == all_kinds.count(1) and len({*others}) == len(others)
    assert main(command(images / "a.png", tmp_path / "none", "--score-threshold", "99")) == 0
    data = COCO(str(tmp_path / "none/coco/annotations/instances_train.json")).dataset
    assert (len(data["images"]), data["annotations"]) == (1, [])


def test_an_interrupted_run_continues(
    images: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    seen = 0

    def predict_batch(pictures: list, *args: object, **options: object) -> list:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return [predictor.predict(each, *args) for each in pictures]

    monkeypatch.setattr(label, "load_segmenter", lambda args: SimpleNamespace(predict_batch=predict_batch, models=[]))
    assert main(command(images, tmp_path, "--format", "coco,png")) == 130
    assert [path.name for path in tmp_path.iterdir()] == [UNFINISHED]
    kept = len([*tmp_path.rglob("*.npz")])  # the second may not have been written yet
    assert 1 <= kept <= 2
    capsys.readouterr()
    assert main(command(images, tmp_path)) == 1
    assert "give --resume to continue it, or --overwrite" in capsys.readouterr().err
    assert main(command(images, tmp_path, "--resume", "--min-area", "9")) == 1
    assert "has another min_area, 0 instead of 9; give the same options" in capsys.readouterr().err
    assert main(command(images, tmp_path, "--format", "coco,png", "--resume")) == 0
    assert seen == 3 + 3 - kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "png"]
    assert len(COCO(str(tmp_path / "coco/annotations/instances_train.json")).dataset["images"]) == 3
    assert main(command(images, tmp_path)) == 1
    assert "coco' exists already; give --overwrite" in capsys.readouterr().err
    assert main(command(images, tmp_path, "--overwrite")) == 0


def test_a_damaged_picture_is_left_out(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"not a picture")
    assert main(command(folder, out)) == 1
    assert "no picture could be labelled; no set is written" in capsys.readouterr().err
    (folder / "good.png").write_bytes((images / "a.png").read_bytes())
    assert main(command(folder, out, "--resume")) == 3
    data = COCO(str(out / "coco/annotations/instances_train.json")).dataset
    assert [each["file_name"] for each in data["images"]] == ["good.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-area", "-1"], "min_area is -1; give a number of pixels, 0 or more"),
        (["--things", "dog"], "the thing 'dog' is none of the classes 'cat'"),
        (["--tolerance", "nan"], "--tolerance is nan; give a number of pixels, 0 or more"),
        (["--threshold", "-1"], "--threshold is -1.0; give a score, 0 or more"),
        (["--format", "voc", "--context", "shapes_36", "--vocab-file", "{many}"], "voc holds 254 at most; give fewer"),
        (["--format", "png,voc", "--vocab-file", "{odd}"], "voc cannot hold the class name 'a:b'"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(label, "load_segmenter", lambda args: pytest.fail("the model was loaded"))
    many = tmp_path / "many.txt"
    many.write_text("\n".join(f"name{index}" for index in range(255)))
    (tmp_path / "odd.txt").write_text("cat\na:b\n")
    given = [each.replace("{many}", str(many)).replace("{odd}", str(tmp_path / "odd.txt")) for each in options]
    words = [] if "--vocab-file" in given else ["--vocab", "cat"]
    assert main(["label", str(images), "--out", str(tmp_path / "out"), *words, *given]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_without_an_ending_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "scan").write_bytes((images / "a.png").read_bytes())
    assert main(command(tmp_path / "scan", tmp_path / "out")) == 1
    assert "scan' has a name without an ending; rename it" in capsys.readouterr().err


def test_the_snippet_of_the_page_runs(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPO / "docs/label.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.setattr(Predictor, "from_pretrained", lambda name: predictor)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    assert len(scope["coco"]["annotations"]) >= len(scope["polygons"]) > 2
    assert all(f"`{name}`" in page for name in LABEL_FORMATS)


def test_an_unknown_format_is_refused(images: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["label", str(images), "--vocab", "cat", "--format", "coco,mask"]) == 2
    assert "no format 'mask'; choose of coco, coco-panoptic, yolo-seg" in capsys.readouterr().err

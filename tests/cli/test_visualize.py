"""`san visualize`: pictures of evaluations and of attention, as they are made from the command line."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from san.cli import main as cli
from san.cli.visualize_images import FORMAT
from san.cli.visualize_predictions import choose_dataset
from san.d2.data.datasets import register_custom
from san.d2.evaluate.evaluator import OutputConfig, SemSegEvaluator
from san.evaluation import ConfusionMatrix, RLEWriter, metrics, write_label_map

CLASSES = ["cat", "<script>alert(1)</script>", "sky & sea"]
NAMES = ["a", "b", "sub/c", "<img src=x onerror=alert(2)>", "e#1?%41"]
IGNORED = 255


@pytest.fixture(autouse=True)
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enlarging a picture of 30 x 40 pixels takes most of the time of these tests."""
    monkeypatch.setattr(importlib.import_module("san.visualize.panel"), "_MIN_SIDE", 48)


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, np.ndarray]:
    """A data set below toy/, described by toy/dataset.yaml, and its predictions: b is right, the others partly."""
    rng = np.random.default_rng(0)
    predictions = {}
    for index, name in enumerate(NAMES):
        truth = np.zeros((30, 40), np.uint8)
        truth[10:, 20:], truth[:3] = 1 + index % 2, IGNORED
        prediction = truth.copy()
        prediction[truth == IGNORED] = 0
        prediction[12 : 12 + 4 * (index + 1 if name != "b" else 0), 15:35] = 2 - index % 2
        predictions[name] = prediction
        for kind, content in (("images", rng.integers(0, 256, (30, 40, 3), np.uint8)), ("labels", truth)):
            path = tmp_path / "toy" / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    description = {"name": "toy", "classes": CLASSES, "images": "images", "labels": "labels",
                   "image_ext": "png", "ignore_label": IGNORED}  # fmt: skip
    (tmp_path / "toy" / "dataset.yaml").write_text(yaml.safe_dump(description))
    return predictions


def write_rle(folder: Path, predictions: dict[str, np.ndarray], root: str = "/elsewhere/images") -> Path:
    """The predictions of an evaluation on another machine."""
    writer = RLEWriter()
    for name, prediction in predictions.items():
        writer.update(prediction, f"{root}/{name}.png")
    writer.write(folder / "sem_seg_predictions.json")
    return folder


def visualize(tmp_path: Path, *more: str, predictions: str = "inference/toy") -> int:
    arguments = ["visualize", "predictions", "--dataset", str(tmp_path / "toy" / "dataset.yaml"), "--workers", "1"]
    return cli.main([*arguments, "--predictions", str(tmp_path / predictions), "--out", str(tmp_path / "out"), *more])


def shown(page: Path) -> list[str]:
    """The images of a page, in their order."""
    return [Path(src).stem for src in re.findall(r'<img[^>]* src="\./([^"]*)"', page.read_text(encoding="utf-8"))]


def test_a_whole_data_set(tmp_path: Path, toy: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    write_rle(tmp_path / "inference" / "toy", toy)
    assert visualize(tmp_path) == 0
    out = tmp_path / "out"
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img src=x" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    for name in NAMES:
        for kind in ("panels", "thumbs"):
            with Image.open(out / kind / f"{name}.jpg") as picture:
                picture.load()
    scores = [float(value) for value in re.findall(r'data-miou="([0-9.]+)"', text)]
    assert len(scores) == len(NAMES)
    assert scores == sorted(scores)
    assert shown(out / "index.html")[-1] == "b"  # all right
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    matrix = ConfusionMatrix(3, IGNORED)
    for name, prediction in toy.items():
        matrix.update(prediction, np.asarray(Image.open(tmp_path / "toy" / "labels" / f"{name}.png")))
    assert (
        f"mIoU {metrics(matrix)['mIoU']:.2f} %, pixel accuracy {metrics(matrix)['pACC']:.2f} %"
        in capsys.readouterr().out
    )


def test_label_maps_give_the_same_page(tmp_path: Path, toy: dict[str, np.ndarray]) -> None:
    write_rle(tmp_path / "inference" / "toy", toy)
    for name, prediction in toy.items():
        write_label_map(tmp_path / "maps" / f"{name}.png", prediction)
    assert visualize(tmp_path) == 0
    first = (tmp_path / "out" / "index.html").read_bytes()
    assert visualize(tmp_path, predictions="maps") == 0
    assert (tmp_path / "out" / "index.html").read_bytes() == first


@pytest.mark.parametrize("kind", ["label_maps", "rle"])
@pytest.mark.skipif(os.name != "posix", reason="other systems hold no two names that differ in case only")
def test_a_list_of_equal_names_scores_as_its_evaluation(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """a/0, b/0, A/0, and a/0 of another ending were one file; the last one's prediction was judged for all."""
    labels = ["a/0.png", "b/0.png", "A/0.png", "a/0.tif", "caf\u00e9/0.png"]
    rng = np.random.default_rng(0)
    lines, samples = [], []
    for index, label in enumerate(labels):
        truth = rng.integers(0, 3, (30, 40)).astype(np.uint8)
        image = f"pictures/{label[:-4]}{'b' if label.endswith('tif') else ''}.png"
        for name, pixels in ((image, np.zeros((30, 40, 3), np.uint8)), (f"truth/{label}", truth)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name)
        prediction = np.where(rng.random((30, 40)) < index / 5, truth, 0)
        names = {"file_name": str(tmp_path / image), "sem_seg_file_name": str(tmp_path / f"truth/{label}")}
        samples.append((names | {"sem_seg": torch.from_numpy(truth)}, torch.from_numpy(prediction)))
        lines.append(f"{image}\ttruth/{label}\n")
    (tmp_path / "list.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"name": "listed", "classes": CLASSES, "list": "list.txt"}))
    register_custom(tmp_path / "set.yaml")
    folder = tmp_path / "inference" / "listed"
    evaluator = SemSegEvaluator("listed", OutputConfig(folder, label_maps=kind == "label_maps", rle=kind == "rle"))
    for sample, prediction in samples:
        evaluator.process([sample], [{"sem_seg_labels": prediction}])
    values = evaluator.evaluate()
    assert values is not None
    arguments = ["--dataset", str(tmp_path / "set.yaml"), "--workers", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["visualize", "predictions", "--predictions", str(folder), *arguments]) == 0
    assert f"mIoU {values['sem_seg']['mIoU']:.2f} %" in capsys.readouterr().out
    if kind == "rle":
        entries = json.loads((folder / "sem_seg_predictions.json").read_text())
        assert len({entry["image_id"] for entry in entries}) == len({entry["file_name"] for entry in entries}) == 5


def test_order_and_limit(tmp_path: Path, toy: dict[str, np.ndarray]) -> None:
    write_rle(tmp_path / "inference" / "toy", toy)
    page = tmp_path / "out" / "index.html"
    assert visualize(tmp_path, "--sort", "best", "--limit", "2") == 0
    assert shown(page)[0] == "b"
    assert len(shown(page)) == len(list((tmp_path / "out" / "panels").rglob("*.jpg"))) == 2
    assert "5, of which 2 are shown" in page.read_text(encoding="utf-8")  # all are scored
    assert visualize(tmp_path, "--sort", "name") == 0
    assert len(shown(page)) == 5
    assert shown(page)[1:3] == ["a", "b"]


def test_it_goes_on_where_it_was(tmp_path: Path, toy: dict[str, np.ndarray]) -> None:
    folder = write_rle(tmp_path / "inference" / "toy", toy)
    assert visualize(tmp_path) == 0
    panels = {name: tmp_path / "out" / "panels" / f"{name}.jpg" for name in ("a", "b", "sub/c")}
    for path in panels.values():
        os.utime(path, (1, 1))
    panels["b"].unlink()  # stopped before it was drawn
    write_rle(folder, toy | {"sub/c": toy["a"]})  # another prediction
    assert visualize(tmp_path) == 0
    drawn_again = {name: path.stat().st_mtime > 1 for name, path in panels.items()}
    assert drawn_again == {"a": False, "b": True, "sub/c": True}


@pytest.mark.parametrize("damage", ["image", "label", "size", "missing", "code"])
def test_one_bad_file_is_reported_and_skipped(
    tmp_path: Path, toy: dict[str, np.ndarray], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "inference" / "toy"
    if damage in ("image", "label"):
        (tmp_path / "toy" / f"{damage}s" / "a.png").write_bytes(b"\x89PNG half")
    elif damage == "size":
        toy["a"] = toy["a"][:-1]
    elif damage == "missing":
        del toy["a"]
    write_rle(folder, toy)
    if damage == "code":
        text = (folder / "sem_seg_predictions.json").read_text()
        entries = json.loads(text)
        entries[0]["segmentation"]["counts"] = "~"
        (folder / "sem_seg_predictions.json").write_text(json.dumps(entries))
    assert visualize(tmp_path) == 1
    assert "left out: a.png: " in capsys.readouterr().err
    assert sorted(shown(tmp_path / "out" / "index.html")) == sorted(
        ["b", "c", "%3Cimg%20src%3Dx%20onerror%3Dalert%282%29%3E", "e%231%3F%2541"]
    )
    assert "1 left out" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_wrong_command_lines(tmp_path: Path, toy: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    write_rle(tmp_path / "inference" / "toy", toy)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("<h1>my own page</h1>")
    assert visualize(tmp_path) == 1
    assert "would be lost" in capsys.readouterr().err
    assert (tmp_path / "out" / "index.html").read_text() == "<h1>my own page</h1>"
    (tmp_path / "out" / "index.html").unlink()
    assert visualize(tmp_path, "--limit", "-1") == 1
    assert visualize(tmp_path, "--workers", "0") == 1
    assert visualize(tmp_path, predictions="nowhere") == 1
    write_rle(tmp_path / "inference" / "other", {"z": toy["a"]})
    assert visualize(tmp_path, predictions="inference/other") == 1
    assert "none of the 5 images of toy has a prediction" in capsys.readouterr().err
    assert cli.main(["visualize"]) == 2


def test_which_data_set(tmp_path: Path, toy: dict[str, np.ndarray]) -> None:
    file = str(tmp_path / "toy" / "dataset.yaml")
    assert choose_dataset([file], "", tmp_path / "x.json") == "toy"
    assert choose_dataset([], "", tmp_path / "voc_sem_seg_val" / "sem_seg_predictions.json") == "voc_sem_seg_val"
    assert choose_dataset(["voc_sem_seg_val"], "", tmp_path / "x.json") == "voc_sem_seg_val"
    with pytest.raises(ValueError, match="give --dataset"):
        choose_dataset([], "", tmp_path / "x.json")
    with pytest.raises(ValueError, match="did you mean 'voc_sem_seg_val'"):
        choose_dataset(["voc_sem_seg_vall"], "", tmp_path / "x.json")
    description = yaml.safe_load(Path(file).read_text())
    folders = {"images": str(tmp_path / "toy" / "images"), "labels": str(tmp_path / "toy" / "labels")}
    del description["images"], description["labels"]
    two = tmp_path / "two.yaml"
    two.write_text(yaml.safe_dump(description | {"name": "two", "splits": {"test": folders, "val": folders}}))
    assert choose_dataset([str(two)], "", tmp_path / "two_test" / "sem_seg_predictions.json") == "two_test"
    assert choose_dataset([str(two), "two_val"], "", tmp_path / "x.json") == "two_val"
    with pytest.raises(ValueError, match="one of: two_test, two_val"):
        choose_dataset([str(two)], "", tmp_path / "x.json")


def test_two_runs_compared(tmp_path: Path, toy: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    write_rle(tmp_path / "inference" / "toy", toy)
    write_rle(tmp_path / "second" / "toy", toy | {"b": np.zeros((30, 40), np.uint8)})
    assert visualize(tmp_path, "--out", str(tmp_path / "A")) == 0
    assert visualize(tmp_path, "--out", str(tmp_path / "B"), predictions="second/toy") == 0
    page = tmp_path / "pages" / "compare.html"
    assert cli.main(["visualize", "compare", str(tmp_path / "A"), str(tmp_path / "B"), "--out", str(page)]) == 0
    assert "images in both 5" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    deltas = [float(value) for value in re.findall(r'data-delta="([-0-9.]+)"', text)]
    assert deltas[0] < -30
    assert deltas[1:] == [0, 0, 0, 0]
    assert "<script>alert" not in text
    sources = re.findall(r'src="(\.\./[AB]/[^"]*)"', text)
    assert len(sources) == 10
    assert all((page.parent / source).resolve().is_file() for source in sources if "%" not in source)
    assert cli.main(["visualize", "compare", str(tmp_path / "A"), str(tmp_path / "toy")]) == 1
    assert "san visualize predictions" in capsys.readouterr().err


ODD_SCORES = [
    "[" * 100_000, '{"format": 1}', '{"format": 1, "dataset": "toy", "classes": [1], "images": []}',
    '{"format": 1, "dataset": "toy", "classes": ["a"], "images": [{"name": "a"}]}',
]  # fmt: skip


@pytest.mark.parametrize("content", ODD_SCORES, ids=range(len(ODD_SCORES)))
def test_odd_scores_are_an_error_of_one_line(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores.json").write_text(content.replace('"format": 1', f'"format": {FORMAT}'))
    assert cli.main(["visualize", "compare", str(tmp_path), str(tmp_path)]) == 1
    assert re.fullmatch(r"error: .*scores\.json is damaged.*", capsys.readouterr().err.strip())


def test_odd_scores_of_an_image_are_made_again(tmp_path: Path, toy: dict[str, np.ndarray]) -> None:
    write_rle(tmp_path / "inference" / "toy", toy)
    assert visualize(tmp_path) == 0
    scores = [tmp_path / "out" / "scores" / f"{name}.json" for name in NAMES]
    right = [path.read_text() for path in scores]
    changed = json.loads(right[2]) | {"thumb_size": "ab"}
    for path, content in zip(scores, ["[" * 100_000, "[]", json.dumps(changed), "", '{"score": 1}'], strict=True):
        path.write_text(content)
    scores[3].unlink()
    os.mkfifo(scores[3])  # would be waited for
    assert visualize(tmp_path) == 0
    assert [path.read_text() for path in scores] == right


def test_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The committed model; a picture that is not square, so that some patches are padding."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 110, (100, 150, 3)).astype(np.uint8)
    image[30:70, 60:110] = (220, 20, 20)
    Image.fromarray(image).save(tmp_path / "scene.png")
    arguments = ["visualize", "attention", str(tmp_path / "scene.png"), "--vocab", "red square, striped ground"]
    assert cli.main([*arguments, "--out", str(tmp_path / "a.png")]) == 0
    first = capsys.readouterr().out
    assert "red square" in first
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 500
    (tmp_path / "names.txt").write_text("red square\nstriped ground\n")
    from_file = [*arguments[:3], "--vocab-file", str(tmp_path / "names.txt"), "--out", str(tmp_path / "a.png")]
    assert cli.main(from_file) == 0
    assert capsys.readouterr().out == first
    assert cli.main([*arguments, "--queries", "3,0", "--out", str(tmp_path / "b.png")]) == 0
    assert re.search(r"queries 3 \(.*\), 0 \(", capsys.readouterr().out)
    assert cli.main([*arguments, "--queries", "99999", "--out", str(tmp_path / "c.png")]) == 1
    assert "there is no query 99999; the model has 0.." in capsys.readouterr().err
    assert cli.main([*arguments, "--queries", "x"]) == 1
    assert not (tmp_path / "c.png").exists()

"""Panoptic quality: by hand, against torchmetrics, and from files of COCO's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli.main import main
from san.evaluation.panoptic import PanopticCounts, Segments, panoptic_metrics
from san.labelling.coco import PanopticWriter
from san.labelling.regions import RegionOptions, find_regions
from san.labelling.sets import LabelledImage, SetOptions, write_sets
from san.shapes.render import SCENE_SIZE, instances, render
from san.shapes.world import class_index, scene_at
from san.vocabulary.classes import ClassText


def row(text: str) -> np.ndarray:
    """Ids as digits, one row."""
    return np.array([[int(each) for each in text]])


def counts_of(prediction: str, truth: str, classes: tuple[dict, dict], crowd: frozenset[int] = frozenset()):
    counts = PanopticCounts(2)
    counts.update(Segments(row(prediction), classes[0]), Segments(row(truth), classes[1], crowd))
    return counts


def test_by_hand() -> None:
    """A pair needs an IoU above one half; 3 of 4 pixels is enough, 2 of 4 is not."""
    counts = counts_of("1111", "1110", ({1: 0}, {1: 0}))  # a pixel of no true segment is not counted
    assert counts.found.tolist() == [1, 0] and counts.iou.tolist() == [1.0, 0.0]
    # segment 2 has 2 of its 3 pixels and all of 4: IoU 2/3
    counts = counts_of("0000222300", "0000445566", ({2: 1, 3: 1}, {4: 1, 5: 1, 6: 1}))
    assert (counts.found.tolist(), counts.missed.tolist(), counts.wrong.tolist()) == ([0, 1], [0, 2], [0, 1])
    assert counts.iou[1] == pytest.approx(2 / 3)
    figures = panoptic_metrics(counts, ["a", "b"], {"things": ["b", "zebra"], "stuff": ["a"]})
    assert figures["RQ"] == pytest.approx(100 / (1 + 3 / 2))
    assert figures["SQ"] == pytest.approx(200 / 3)
    assert (
        figures["PQ"] == figures["PQ-things"] == figures["PQ-b"] == pytest.approx(figures["SQ"] * figures["RQ"] / 100)
    )
    assert np.isnan(figures["PQ-a"]) and np.isnan(figures["PQ-stuff"])


def test_half_is_not_enough_and_another_class_is_no_partner() -> None:
    half = counts_of("1122", "3300", ({1: 0, 2: 0}, {3: 0}))
    assert half.found.sum() == 1
    assert counts_of("1111", "3344", ({1: 0}, {3: 0, 4: 1})).found.sum() == 0, "IoU 1/2"
    assert counts_of("1111", "3333", ({1: 1}, {3: 0})).found.sum() == 0


def test_outside_and_crowds_are_not_wrong() -> None:
    """More than half in pixels of no segment, or in a crowd of the class."""
    assert counts_of("1111", "0003", ({1: 0}, {3: 1})).wrong.tolist() == [0, 0]
    assert counts_of("1111", "0033", ({1: 0}, {3: 1})).wrong.tolist() == [1, 0], "exactly half"
    crowd = counts_of("1111", "3333", ({1: 0}, {3: 0}), frozenset({3}))
    assert (crowd.found.sum(), crowd.wrong.sum(), crowd.missed.sum()) == (0, 0, 0)
    assert counts_of("1111", "3333", ({1: 1}, {3: 0}), frozenset({3})).wrong.tolist() == [0, 1]


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2\), but the ground truth has \(1, 3\)"):
        counts_of("11", "111", ({1: 0}, {1: 0}))
    with pytest.raises(ValueError, match="the prediction of the image has the segment id 2 without a class"):
        counts_of("12", "11", ({1: 0}, {1: 0}))


@pytest.mark.parametrize("seed", range(4))
def test_equals_torchmetrics(seed: int) -> None:
    """Random blocks of 5 classes, of which 2 are stuff; every pixel has a segment."""
    detection = pytest.importorskip("torchmetrics.detection")
    rng = np.random.default_rng(seed)
    counts, pairs = PanopticCounts(5), []
    known = detection.PanopticQuality(things={0, 1, 2}, stuffs={3, 4}, return_per_class=True, return_sq_and_rq=True)
    for _ in range(3):
        truth = rng.integers(0, 5, (4, 4)).repeat(6, 0).repeat(6, 1) * 10 + rng.integers(0, 2, (6, 6)).repeat(
            4, 0
        ).repeat(4, 1)
        moved = np.roll(truth, int(rng.integers(0, 3)), axis=int(rng.integers(0, 2)))
        prediction = np.where(rng.random((4, 4)).repeat(6, 0).repeat(6, 1) < 0.2, 11, moved)
        for values in (prediction, truth):
            values[values >= 30] -= values[values >= 30] % 10  # stuff is one segment
        pairs.append((prediction, truth))
    for prediction, truth in pairs:
        mine, theirs = (
            Segments(each + 1, {key + 1: key // 10 for key in np.unique(each).tolist()}) for each in (prediction, truth)
        )
        counts.update(mine, theirs)
    as_pairs = [
        torch.from_numpy(np.stack([np.stack([each // 10, each % 10], -1) for each in own]))
        for own in zip(*pairs, strict=True)
    ]
    per_class = known(*as_pairs)  # (C, 3), of a batch
    figures = panoptic_metrics(counts, [*"abcde"])
    for index, name in enumerate("abcde"):
        assert figures[f"PQ-{name}"] == pytest.approx(100 * float(per_class[index, 0]), abs=1e-4)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The ground truth of two scenes by things, and one of their label maps by components."""
    folder = tmp_path_factory.mktemp("panoptic")
    drawn = [scene_at(1, number) for number in range(2)]
    names = [f"{number}.png" for number in range(2)]
    loaders: dict[str, list] = {"truth": [], "found": []}
    for name, scene, labels in zip(names, drawn, render(drawn)[1], strict=True):
        Image.new("RGB", (SCENE_SIZE, SCENE_SIZE)).save(folder / name)
        by_class = find_regions(labels.astype(int), None, 36, RegionOptions(instances=True, things=tuple(range(32))))
        loaders["found"].append(lambda name=name, found=by_class: LabelledImage(folder / name, name, found))
        loaders["truth"].append(loaders["found"][-1])
        ids = instances(scene)
        for number, thing in enumerate(scene.things, start=1):
            assert set(labels[ids == number].tolist()) <= {class_index(thing.name)}
        assert {*labels[ids == 0].tolist()} == {class_index(scene.ground.name)}
    options = SetOptions(
        "set", tuple(ClassText(f"class {index}") for index in range(36)), instances=True, things=(0, 1)
    )
    files = []
    for kind in ("truth", "found"):
        write_sets({folder / kind: PanopticWriter}, loaders[kind], names, options)
        files.append(folder / kind / "annotations/panoptic_train.json")
    return files[0], files[1]


def test_command(scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new/pq.json"
    assert main(["pq", str(scenes[0]), str(scenes[1]), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 images" in shown and "all       100.0  100.0  100.0" in shown
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["PQ"] == 100 and None in figures.values(), "a class that occurs nowhere has no figure"


def test_a_part_is_measured_with_coco_s_layout(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The PNGs are in a folder of the file's name, and the prediction has one image; half of it is lost."""
    content = json.loads(scenes[1].read_text(encoding="utf-8"))
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0]["segments_info"], lost = content["annotations"][0]["segments_info"][:1], 0
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    shutil.copytree(scenes[1].parent.parent / "panoptic", tmp_path / "mine")
    png = tmp_path / "mine/0.png"
    pixels = np.asarray(Image.open(png)).copy()
    pixels[pixels.sum(-1) > 1] = lost
    Image.fromarray(pixels).save(png)
    assert main(["pq", str(scenes[0]), str(file)]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 images" in shown and "100.0  100.0  100.0" not in shown


def test_coco_s_own_names_are_those_of_the_label_set(scenes: tuple[Path, Path], tmp_path: Path) -> None:
    """The truth of the download and a prediction with our names, or with COCO's, are compared."""
    folder = str(scenes[0].parent.parent / "panoptic")
    for name in ("sky-other-merged", "sky"):
        content = json.loads(scenes[0].read_text(encoding="utf-8"))
        content["categories"][0]["name"] = name
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    truth, prediction = str(tmp_path / "sky-other-merged.json"), str(tmp_path / "sky.json")
    for pair in ((truth, prediction), (prediction, truth)):
        assert main(["pq", *pair, "--truth-folder", folder, "--prediction-folder", folder]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["annotations"][0]["segments_info"][0].update(id=float("inf")), "which needs an id"),
        (lambda content: content.pop("categories"), "is not of COCO's panoptic format (KeyError: 'categories')"),
        (lambda content: content["categories"][0].update(name="other"), "has the category 'other', which is none of"),
        (lambda content: content["annotations"][0].update(file_name="9.png"), "has the image '9', which"),
        (lambda content: content["annotations"].clear(), "has no image"),
        (lambda content: content["annotations"][0].update(segments_info=[{"id": 1}]), "needs an id and a category_id"),
        (lambda content: content["annotations"][0].update(segments_info=[]), "the segment id 1 without a class"),
        (lambda content: content["categories"][1].update(name="class 0"), "has two categories of one name"),
    ],
)
def test_wrong_files_are_refused(scenes, tmp_path: Path, capsys: pytest.CaptureFixture, change, message: str) -> None:
    content = json.loads(scenes[1].read_text(encoding="utf-8"))
    change(content)
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(content))
    folder = str(scenes[1].parent.parent / "panoptic")
    assert main(["pq", str(scenes[0]), str(file), "--prediction-folder", folder]) == 1
    assert message in capsys.readouterr().err


def test_missing_folders_are_named(scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "a/mine.json"
    file.parent.mkdir()
    shutil.copy(scenes[1], file)
    assert main(["pq", str(scenes[0]), str(file)]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["pq", str(tmp_path / "none.json"), str(file)]) == 1
    assert "none.json does not exist" in capsys.readouterr().err
    Image.new("L", (4, 4)).save(tmp_path / "a/0.png")
    assert main(["pq", str(scenes[0]), str(file), "--prediction-folder", str(tmp_path / "a")]) == 1
    assert "cannot be read as segment ids (it has the mode L" in capsys.readouterr().err

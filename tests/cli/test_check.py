"""`san check`: exit codes, files, and every fault of a spoilt data set in one run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.cli import check
from san.cli.main import main as san_main
from san.d2.api import DatasetCatalog, MetadataCatalog
from san.data.panoptic import describe_segments, encode_segment_ids, format_panoptic_file
from san.vocabulary.label_sets import load_label_set

REPO = Path(__file__).resolve().parents[2]
NAME = "voc_sem_seg_val"
IMAGES, LABELS = "VOC2012/JPEGImages", "VOC2012/annotations_detectron2/val"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three sound pairs in VOC's layout, and an image that another split uses."""
    for folder in (IMAGES, LABELS):
        (tmp_path / folder).mkdir(parents=True)
    for stem in ("a", "b", "c", "other"):
        Image.new("RGB", (30, 20), (10, 200, 30)).save(tmp_path / IMAGES / f"{stem}.jpg")
    for index, stem in enumerate("abc"):
        labels = np.full((20, 30), index, np.uint8)
        labels[:5] = 255
        Image.fromarray(labels).save(tmp_path / LABELS / f"{stem}.png")
    return tmp_path


def run(root: Path, *options: str) -> int:
    return san_main(["check", "--data-root", str(root), "--out", str(root / "out"), "--workers", "1", *options])


def report_of(root: Path, name: str = NAME) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "out" / name / "report.json").read_text(encoding="utf-8"))
    return report


def kinds(report: dict[str, Any]) -> dict[str, bool]:
    return {finding["kind"]: finding["wrong"] for finding in report["findings"]}


def test_a_sound_part_of_a_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--partial", NAME) == 0
    text = capsys.readouterr().out
    assert "pairs    3 (published: 1,449), 3 read in" in text
    assert "classes  3 of 20 occur" in text
    assert "\nok, see" in text
    assert kinds(report_of(root)) == {"wrong_count": False, "absent_class": False, "image_without_label": False}
    with (root / "out" / NAME / "classes.csv").open(encoding="utf-8") as file:
        assert [int(row["pixels"]) for row in csv.DictReader(file)] == [450, 450, 450, *[0] * 17]
    for picture in ("classes.png", "samples.png"):
        with Image.open(root / "out" / NAME / picture) as image:
            assert min(image.size) > 100


def test_a_whole_set_was_promised(root: Path) -> None:
    assert run(root, NAME) == 1
    assert kinds(report_of(root)) == {"wrong_count": True, "absent_class": True, "image_without_label": False}


def test_every_fault_is_found_in_one_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("d", "e", "f", "g"):
        Image.new("RGB", (30, 20)).save(root / IMAGES / f"{stem}.jpg")
        Image.new("L", (30, 20), 1).save(root / LABELS / f"{stem}.png")
    (root / IMAGES / "d.jpg").write_bytes(b"")
    (root / LABELS / "e.png").write_bytes((root / LABELS / "e.png").read_bytes()[:50])
    Image.new("L", (31, 20), 1).save(root / LABELS / "f.png")
    Image.new("L", (30, 20), 20).save(root / LABELS / "g.png")
    Image.new("L", (30, 20), 1).save(root / LABELS / "orphan.png")
    Image.new("RGB", (30, 20)).save(root / IMAGES / "A.jpeg")
    assert run(root, "--partial", NAME) == 1
    report = report_of(root)
    wrong = {kind for kind, is_wrong in kinds(report).items() if is_wrong}
    assert wrong == {
        "unreadable_image", "unreadable_label", "size_mismatch", "illegal_values", "label_without_image",
        "duplicate_stem",
    }  # fmt: skip
    assert report["checked"] == 7
    text = capsys.readouterr().out
    assert "WRONG  label maps with values outside the label set: 1" in text
    assert "NOT OK, see" in text
    assert (root / "out" / NAME / "samples.png").is_file()


def test_one_bad_set_does_not_stop_the_others(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--partial", "ade20k_sem_seg_val", NAME) == 1
    text = capsys.readouterr().out
    assert "ADEChallengeData2016/images/validation does not exist" in " ".join(text.split())
    lines = text.splitlines()[-2:]
    assert lines[0].split() == ["ade20k_sem_seg_val", "0", "pairs", "NOT", "OK,", "1", "thing", "wrong"]
    assert lines[1].split() == [NAME, "3", "pairs", "ok"]
    assert kinds(report_of(root, "ade20k_sem_seg_val")) == {"no_data": True}


def test_names_are_looked_at_even_where_nothing_pairs_up(root: Path) -> None:
    for path in (root / IMAGES).iterdir():
        path.rename(path.with_suffix(".JPG"))
    assert run(root, "--partial", NAME) == 1
    findings = report_of(root)["findings"]
    assert {finding["kind"] for finding in findings} == {"no_data", "label_without_image"}
    assert "is it" in findings[-1]["message"]


def test_limit_reads_some_pairs_spread_evenly(root: Path) -> None:
    (root / IMAGES / "b.jpg").write_bytes(b"")
    assert run(root, "--partial", "--limit", "2", NAME) == 0, "the one in the middle is not read"
    (root / IMAGES / "c.jpg").write_bytes(b"")
    assert run(root, "--partial", "--limit", "2", NAME) == 1
    report = report_of(root)
    assert (report["pairs"], report["checked"]) == (3, 2)
    assert [row["images"] for row in report["classes"][:3]] == [1, 0, 1]


def test_rotated_images_are_among_the_samples(root: Path) -> None:
    shown = check._ShownPairs()
    shown.upright, shown.rotated = list(range(90)), [93, 91]
    assert shown.choose(4) == [22, 67, 91, 93]
    assert shown.choose(1) == [45]
    assert shown.choose(0) == []
    shown.upright = []
    assert shown.choose(4) == [91, 93]


CUSTOM = """
name: roofs
classes: [roof, wall, sky]
images: images
labels: labels
label_mapping: {10: roof, 20: wall, 30: sky}
"""


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(2):
        Image.new("RGB", (30, 20)).save(tmp_path / f"images/{index}.jpg")
        Image.new("L", (30, 20), 10 * (index + 1)).save(tmp_path / f"labels/{index}.png")
    (tmp_path / "roofs.yaml").write_text(CUSTOM)
    return tmp_path


def test_own_data_set_with_mapped_values(custom: Path) -> None:
    file = str(custom / "roofs.yaml")
    assert run(custom, "--dataset", file) == 0
    report = report_of(custom, "roofs")
    assert [row["pixels"] for row in report["classes"]] == [600, 600, 0]
    assert kinds(report) == {"absent_class": False}
    Image.new("L", (30, 20), 3).save(custom / "labels/1.png")
    assert run(custom, "--dataset", file, "roofs") == 1
    assert kinds(report_of(custom, "roofs"))["illegal_values"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no data set is named"),
        (["voc_sem_seg_vall"], "did you mean 'voc_sem_seg_val'?"),
        ([NAME, "--limit", "-1"], "--limit is -1; give 0 or more"),
        ([NAME, "--workers", "0"], "--workers is 0; give 1 or more"),
        (["--dataset", "nowhere.yaml"], "nowhere.yaml"),
        ([NAME, "--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(
    root: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(root, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(root.glob("out/*"))


def test_an_output_folder_that_cannot_be_made(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "out").write_text("a file")
    assert run(root, NAME) == 2
    assert "out" in capsys.readouterr().err


def test_a_set_without_class_names_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DatasetCatalog.register("nameless", list)
    try:
        assert run(root, "nameless") == 2
    finally:
        DatasetCatalog.remove("nameless")
        MetadataCatalog.remove("nameless")
    assert "has no stuff_classes" in capsys.readouterr().err


def test_a_set_registered_by_someone_else(root: Path) -> None:
    records = [{"file_name": str(root / IMAGES / "a.jpg"), "sem_seg_file_name": str(root / LABELS / "a.png")}]
    DatasetCatalog.register("foreign", lambda: records)
    MetadataCatalog.get("foreign").set(stuff_classes=["x", "y"], ignore_label=255)
    try:
        assert run(root, "foreign") == 0
    finally:
        DatasetCatalog.remove("foreign")
        MetadataCatalog.remove("foreign")
    assert report_of(root, "foreign")["classes"][0]["pixels"] == 450


def test_two_processes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(12):
        Image.new("RGB", (30, 20)).save(root / IMAGES / f"{index}.jpg")
        Image.new("L", (30, 20), index).save(root / LABELS / f"{index}.png")
    (root / IMAGES / "7.jpg").write_bytes(b"no picture")
    assert run(root, NAME, "--partial", "--workers", "2") == 1
    assert "images that cannot be read: 1" in capsys.readouterr().out
    assert report_of(root)["checked"] == 15


@pytest.fixture
def panoptic_root(tmp_path: Path) -> Path:
    """Three images of ADE's panoptic layout: two beds, a wall and a strip without a segment in each."""
    folder = tmp_path / "ADEChallengeData2016"
    annotations = []
    for stem in ("a", "b", "c"):
        ids = np.full((20, 30), 1)
        ids[:5], ids[10:, :10], ids[10:, 20:] = 0, 300, 70_000
        for path in (folder / f"images/validation/{stem}.jpg", folder / f"ade20k_panoptic_val/{stem}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(folder / f"images/validation/{stem}.jpg")
        (folder / f"ade20k_panoptic_val/{stem}.png").write_bytes(encode_segment_ids(ids))
        annotations.append((stem, (20, 30), describe_segments(ids, {1: 0, 300: 7, 70_000: 7})))
    labels = load_label_set("ade20k_150")
    text = format_panoptic_file(annotations, labels.classes, labels.things)
    (folder / "ade20k_panoptic_val.json").write_text(text)
    return tmp_path


PANOPTIC = "ade20k_panoptic_val"


def test_a_panoptic_set(panoptic_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(panoptic_root, "--partial", PANOPTIC) == 0
    assert "pairs    3 (published: 2,000), 3 read in" in capsys.readouterr().out
    report = report_of(panoptic_root, PANOPTIC)
    assert kinds(report) == {"wrong_count": False, "absent_class": False}
    assert [(row["pixels"], row["images"]) for row in (report["classes"][0], report["classes"][7])] == [
        (3 * 250, 3), (3 * 200, 3),
    ]  # fmt: skip
    assert report["ignored_pixels"] == 3 * 150
    with Image.open(panoptic_root / "out" / PANOPTIC / "samples.png") as image:
        assert min(image.size) > 100


def test_every_fault_of_a_panoptic_set_is_found_in_one_run(panoptic_root: Path) -> None:
    folder = panoptic_root / "ADEChallengeData2016"
    for stem in ("d", "e", "f"):
        for path in (f"images/validation/{stem}.jpg", f"ade20k_panoptic_val/{stem}.png"):
            (folder / path).write_bytes((folder / path.replace(f"/{stem}.", "/a.")).read_bytes())
    file = folder / "ade20k_panoptic_val.json"
    content = json.loads(file.read_text())
    for stem in ("d", "e", "lost"):
        content["annotations"].append({**content["annotations"][0], "file_name": f"{stem}.png"})
    content["annotations"][0] = {**content["annotations"][0], "segments_info": [
        {"id": 1, "category_id": 0}, {"id": 5, "category_id": 3},
    ]}  # fmt: skip
    file.write_text(json.dumps(content))
    Image.new("RGB", (31, 20)).save(folder / "images/validation/d.jpg")
    Image.new("L", (30, 20)).save(folder / "ade20k_panoptic_val/e.png")
    assert run(panoptic_root, "--partial", PANOPTIC) == 1
    report = report_of(panoptic_root, PANOPTIC)
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert {kind for kind, finding in found.items() if finding["wrong"]} == {
        "segment_ids", "size_mismatch", "unreadable_label", "image_without_label", "label_without_image",
    }  # fmt: skip
    assert "1 images whose PNG the JSON file does not list" in found["image_without_label"]["message"]
    assert "1 PNGs that the JSON file lists do not exist" in found["label_without_image"]["message"]
    messages = [each["message"] for each in report["findings"] if each["kind"] == "segment_ids"]
    assert messages == [
        "ids that the annotation lacks: 300 (100 px), 70000 (100 px)",
        "ids of the annotation that have no pixel: 5",
    ]
    assert report["pairs"] == report["checked"] == 5  # f is not in the file
    assert (panoptic_root / "out" / PANOPTIC / "samples.png").is_file()

"""Every kind of fault is found, in every number of processes, and counted right; sound data has no finding."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.data.checking import (
    CheckReport,
    CheckTarget,
    Finding,
    Folder,
    check_folders,
    check_pair,
    check_pairs,
    failed_report,
    format_classes,
    format_report,
    processes,
    summarise,
    write_check_report,
    write_classes,
)
from san.data.checking.report import HEADLINES
from san.data.label_mapping import LabelMapping
from san.data.pairing import pair_files
from san.io import pool

CLASSES = ("cat", "dog", "road, route")
TARGET = CheckTarget("pets", CLASSES, num_pairs=3, absent=frozenset())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sound pairs: 4x6 label maps with 255 in the last row, a class each in one corner."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(3):
        labels = np.full((4, 6), 2, np.uint8)
        labels[0, : index + 1] = 0
        labels[1, 0] = 1
        labels[3] = 255
        save(tmp_path, f"{index}", labels)
    return tmp_path


def save(folder: Path, stem: str, labels: np.ndarray, **options: Any) -> None:
    Image.new("RGB", labels.shape[::-1], (200, 30, 30)).save(folder / f"images/{stem}.jpg", **options)
    Image.fromarray(labels).save(folder / f"labels/{stem}.png")


def records_of(folder: Path) -> list[dict[str, str]]:
    return pair_files(folder / "images", folder / "labels").usable("the folders")


def check(folder: Path, target: CheckTarget = TARGET, *, workers: int = 1) -> CheckReport:
    folders = Folder(folder / "images", ("jpg",)), Folder(folder / "labels", ("png",))
    records = records_of(folder)
    return summarise(target, records, check_pairs(records, target, workers=workers), check_folders(*folders))


def found(report: CheckReport, kind: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.kind == kind)
    return finding


def test_sound_data_has_no_finding_and_exact_counts(folder: Path) -> None:
    report = check(folder)
    assert report.findings == ()
    assert report.ok
    assert (report.num_listed, report.num_checked) == (3, 3)
    # 18 labelled pixels each: 1, 2, 3 of class 0, one of class 1, the rest class 2.
    assert report.class_pixels.tolist() == [6, 3, 45]
    assert report.class_images.tolist() == [3, 3, 3]
    assert (report.ignored_pixels, report.outside_pixels) == (18, 0)
    assert (report.smallest, report.largest) == ((4, 6), (4, 6))


def test_values_outside_the_label_set(folder: Path) -> None:
    labels = np.array(Image.open(folder / "labels/1.png"))
    labels[2, :4] = 3, 3, 7, 254
    Image.fromarray(labels).save(folder / "labels/1.png")
    report = check(folder)
    finding = found(report, "illegal_values")
    assert finding.file is not None
    assert finding.file.endswith("1.png")
    assert finding.message == "3 (2 px), 7 (1 px), 254 (1 px); allowed are 0..2 and the ignore label 255"
    assert report.outside_pixels == 4
    assert report.class_pixels.sum() + report.ignored_pixels + report.outside_pixels == 3 * 24


def test_many_illegal_values_are_shortened(folder: Path) -> None:
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(folder / "labels/1.png")
    assert "7 (1 px) and 16 more; allowed" in found(check(folder), "illegal_values").message


@pytest.mark.parametrize(("file", "kind"), [("images/1.jpg", "unreadable_image"), ("labels/1.png", "unreadable_label")])
@pytest.mark.parametrize("content", [b"", b"no picture", "cut"], ids=["empty", "text", "truncated"])
def test_unreadable_files(folder: Path, file: str, kind: str, content: bytes | str) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:-40] if isinstance(content, str) else content)
    report = check(folder)
    finding = found(report, kind)
    assert finding.wrong
    assert finding.file == str(path)
    assert "\n" not in finding.message
    assert str(path) not in finding.message.split("(")[0]
    assert report.num_checked == 3


def test_label_map_of_three_channels(folder: Path) -> None:
    Image.new("RGB", (6, 4)).save(folder / "labels/1.png")
    assert "mode RGB" in found(check(folder), "unreadable_label").message


def test_a_decoder_that_raises_anything_is_a_finding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise MemoryError if path.endswith("1.jpg") else RuntimeError("two\nlines")

    monkeypatch.setattr("san.data.checking.pair.read_image", broken)
    messages = [each.message for each in check(folder).findings if each.kind == "unreadable_image"]
    assert messages == ["two lines", "MemoryError", "two lines"]


def test_size_mismatch(folder: Path) -> None:
    Image.new("RGB", (6, 5)).save(folder / "images/1.jpg")
    message = found(check(folder), "size_mismatch").message
    assert "label map is 4x6" in message
    assert "is 5x6 (height x width)" in message
    assert "EXIF" not in message


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", [6, 8])
def test_label_that_fits_the_image_before_its_rotation(folder: Path, orientation: int) -> None:
    save(folder, "1", np.full((4, 6), 0, np.uint8), exif=exif(orientation))
    report = check(folder)
    message = found(report, "size_mismatch").message
    assert "is 6x4 (height x width)" in message
    assert f"fits the image before the EXIF rotation (orientation {orientation}): turn the label map too" in message
    assert "upright it is 6x4" in found(report, "rotated_image").message


@pytest.mark.parametrize(("orientation", "size"), [(3, (4, 6)), (6, (6, 4))])
def test_upright_label_of_a_rotated_image_is_only_noted(folder: Path, orientation: int, size: tuple[int, int]) -> None:
    Image.new("RGB", (6, 4)).save(folder / "images/1.jpg", exif=exif(orientation))
    labels = np.zeros(size, np.uint8)
    labels[0] = 1
    Image.fromarray(labels).save(folder / "labels/1.png")
    report = check(folder)
    assert [finding.kind for finding in report.findings] == ["rotated_image"]
    assert report.ok


def test_wrong_count(folder: Path) -> None:
    target = CheckTarget("pets", CLASSES, num_pairs=5)
    finding = found(check(folder, target), "wrong_count")
    assert (finding.message, finding.wrong) == ("3 pairs, but the published set has 5", True)
    partial = CheckTarget("pets", CLASSES, num_pairs=5, partial=True)
    assert not found(check(folder, partial), "wrong_count").wrong
    too_many = CheckTarget("pets", CLASSES, num_pairs=2, partial=True)
    assert found(check(folder, too_many), "wrong_count").wrong


def test_classes_that_never_occur(folder: Path) -> None:
    four = (*CLASSES, "zebra")
    finding = found(check(folder, CheckTarget("pets", four, absent=frozenset())), "absent_class")
    assert (finding.message, finding.wrong) == ("3 zebra", True)
    for harmless in (
        CheckTarget("pets", four),  # nothing is known of the published set
        CheckTarget("pets", four, absent=frozenset(), partial=True),
    ):
        assert not found(check(folder, harmless), "absent_class").wrong
    report = check(folder, CheckTarget("pets", four, absent=frozenset({3})))
    assert report.ok
    assert found(report, "absent_as_published").message == "3 zebra"


def test_a_class_absent_from_the_part_that_was_read_is_not_wrong(folder: Path) -> None:
    target = CheckTarget("pets", (*CLASSES, "zebra"), absent=frozenset())
    report = processes_report(folder, target, positions=[0, 2])
    assert (report.num_listed, report.num_checked) == (3, 2)
    assert not found(report, "absent_class").wrong


def processes_report(folder: Path, target: CheckTarget, positions: list[int]) -> CheckReport:
    records = records_of(folder)
    return summarise(target, records, check_pairs(records, target, positions=positions))


def test_a_class_that_should_not_occur(folder: Path) -> None:
    report = check(folder, CheckTarget("pets", CLASSES, absent=frozenset({1})))
    assert not report.ok
    assert found(report, "unexpected_class").message == "1 dog (3 px): is the order of the classes right?"


def test_label_types(folder: Path) -> None:
    target = CheckTarget("pets", (*CLASSES, *map(str, range(297))))
    report = check(folder, target)
    wrong = [finding for finding in report.findings if finding.wrong]
    assert [finding.kind for finding in wrong] == ["label_type"] * 3
    assert "8 bits (mode L), too few for 300 classes" in wrong[0].message
    for path in (folder / "labels").iterdir():
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16)).save(path)
    assert check(folder, target).ok
    Image.new("L", (6, 4)).save(folder / "labels/1.png", format="JPEG")
    assert "JPEG, which changes values" in found(check(folder), "label_type").message


def test_palette_label_maps_are_read_as_indices(folder: Path) -> None:
    before = check(folder).class_pixels.tolist()
    for path in (folder / "labels").iterdir():
        image = Image.open(path)
        image.putpalette([(37 * i) % 256 for i in range(768)])
        image.save(path)
    assert Image.open(folder / "labels/1.png").mode == "P"
    assert check(folder).class_pixels.tolist() == before


def test_label_map_without_a_class(folder: Path) -> None:
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(folder / "labels/1.png")
    report = check(folder)
    assert not found(report, "nothing_labelled").wrong
    assert report.ok


def test_label_mapping(folder: Path) -> None:
    mapping = LabelMapping(((0, 1), (1, 1), (2, 0)), 255)
    target = CheckTarget("pets", CLASSES, label_mapping=mapping)
    report = check(folder, target)
    assert report.class_pixels.tolist() == [45, 9, 0]
    labels = np.array(Image.open(folder / "labels/1.png"))
    labels[2, 0] = 9
    Image.fromarray(labels).save(folder / "labels/1.png")
    finding = found(check(folder, target), "illegal_values")
    assert finding.wrong
    assert "holds the value 9, which label_mapping does not map" in finding.message
    lenient = CheckTarget("pets", CLASSES, label_mapping=LabelMapping(mapping.indices, 255, unmapped="ignore"))
    report = check(folder, lenient)
    assert (found(report, "unmapped_values").message, report.ok) == ("9", True)
    assert report.ignored_pixels == 19


def test_unpaired_files_on_either_side(folder: Path) -> None:
    (folder / "images/2.jpg").unlink()
    Image.new("RGB", (6, 4)).save(folder / "images/extra.jpg")
    report = check(folder)
    orphan = found(report, "label_without_image")
    assert orphan.wrong
    assert orphan.file == str(folder / "labels/2.png")
    unlabelled = found(report, "image_without_label")
    assert (unlabelled.message, unlabelled.wrong) == ("1 of 3 images: extra", False)


@pytest.mark.parametrize("name", ["2.JPG", "2.jpeg", "2.png"])
def test_an_image_of_another_ending_is_hinted_at(folder: Path, name: str) -> None:
    (folder / "images/2.jpg").rename(folder / "images" / name)
    message = found(check(folder), "label_without_image").message
    assert f"is it {folder}/images/{name}? Then rename that to 2.jpg" in message


@pytest.mark.parametrize("name", ["2.PNG", "2.tif"])
def test_a_label_map_of_another_ending_is_found(folder: Path, name: str) -> None:
    (folder / "labels/2.png").rename(folder / "labels" / name)
    finding = found(check(folder), "label_without_image")
    assert finding.file == str(folder / "labels" / name)
    assert "its extension is not exactly .png" in finding.message


@pytest.mark.parametrize(
    ("side", "name"), [("images", "1.jpeg"), ("images", "1.png"), ("labels", "1.PNG"), ("labels", "1.tif")]
)
def test_duplicate_stems(folder: Path, side: str, name: str) -> None:
    (path,) = (folder / side).glob("1.*")
    Image.open(path).save(folder / side / name)
    report = check(folder)
    finding = found(report, "duplicate_stem")
    assert finding.wrong
    assert f"differs from {max(path.name, name)} in its ending only" in finding.message
    assert {each.kind for each in report.findings} == {"duplicate_stem"}


def test_duplicate_stems_by_case(folder: Path) -> None:
    save(folder, "cat", np.zeros((4, 6), np.uint8))
    save(folder, "Cat", np.zeros((4, 6), np.uint8))
    report = check(folder, CheckTarget("pets", CLASSES))
    assert [each.message for each in report.findings if each.kind == "duplicate_stem"] == [
        f"differs from cat.{ext} in its case only; remove or rename what does not belong" for ext in ("jpg", "png")
    ]


def test_equal_names_in_different_sub_folders_are_no_duplicates(folder: Path) -> None:
    for side in ("images", "labels"):
        (folder / side / "sub").mkdir()
    save(folder, "sub/1", np.full((4, 6), 2, np.uint8))
    assert check(folder, CheckTarget("pets", CLASSES)).findings == ()


@pytest.mark.parametrize("layout", ["one folder", "labels inside"])
def test_overlapping_folders(tmp_path: Path, layout: str) -> None:
    labels = tmp_path if layout == "one folder" else tmp_path / "labels"
    labels.mkdir(exist_ok=True)
    for stem in "ab":
        Image.new("RGB", (6, 4)).save(tmp_path / f"{stem}.jpg")
        Image.new("L", (6, 4)).save(labels / f"{stem}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert check_folders(Folder(tmp_path, ("jpg",)), Folder(labels, ("png",))) == []
    (tmp_path / "b.jpg").unlink()
    (finding,) = check_folders(Folder(tmp_path, ("jpg",)), Folder(labels, ("png",)))
    assert finding.file == str(labels / "b.png")


def test_files_listed_twice(folder: Path) -> None:
    records = records_of(folder)
    records[2] = {**records[2], "file_name": records[0]["file_name"]}
    report = summarise(TARGET, records, check_pairs(records, TARGET))
    finding = found(report, "repeated_file")
    assert (finding.file, finding.message) == (records[0]["file_name"], "image of 2 pairs")


def spoil(folder: Path) -> None:
    for index in range(3, 40):
        save(folder, f"{index}", np.full((4, 6), index % 7, np.uint8))
    for index in (5, 17, 30):
        (folder / f"images/{index}.jpg").write_bytes(b"no picture")


def test_workers_change_nothing(folder: Path) -> None:
    spoil(folder)
    one, two = check(folder), check(folder, workers=2)
    assert one.to_dict() == two.to_dict()
    assert not one.ok
    assert one.num_checked == 40


def _die_on_17(index: int, record: dict[str, str], target: CheckTarget) -> Any:
    """`check_pair`, killed by one file as a lack of memory would."""
    if record["file_name"].endswith("17.jpg"):
        os.kill(os.getpid(), signal.SIGKILL)
    return check_pair(index, record, target)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test hands its function to the processes by fork")
def test_a_file_that_kills_its_process_costs_only_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: fork)
    monkeypatch.setattr(processes, "check_pair", _die_on_17)
    for index in range(3, 40):
        save(folder, f"{index}", np.full((4, 6), 2, np.uint8))
    report = check(folder, CheckTarget("pets", CLASSES), workers=2)
    assert report.num_checked == 40
    (finding,) = report.findings
    assert finding.file is not None
    assert finding.file.endswith("17.jpg")
    assert "died" in finding.message


def _start_and_die() -> None:
    os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test hands its function to the processes by fork")
def test_processes_that_cannot_start_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: fork)
    monkeypatch.setattr(pool, "start_worker", _start_and_die)
    with pytest.raises(RuntimeError, match="workers=1"):
        check(folder, workers=2)


def test_nothing_asked_for_reads_nothing(folder: Path) -> None:
    assert list(check_pairs(records_of(folder), TARGET, positions=[])) == []


def test_text(folder: Path) -> None:
    spoil(folder)
    text = format_report(check(folder), seconds=2.0)
    assert "pairs    40 (published: 3), 40 read in 2.0 s, 20 per second" in text
    assert "images   4x6 to 4x6 (height x width)" in text
    assert "classes  3 of 3 occur" in text
    assert "WRONG  images that cannot be read: 3" in text
    assert "and 17 more, all of them in report.json" in text
    assert text.endswith("NOT OK")
    assert format_report(summarise(CheckTarget("pets", CLASSES), [], [])).endswith("\nok")


def test_table_of_few_and_of_many_classes(folder: Path) -> None:
    rows = format_classes(check(folder)).splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["2", "0", "1"]
    assert rows[1].split()[-4:-1] == ["45", "83.333%", "3"]
    save(folder, "many", np.arange(100, dtype=np.uint8).reshape(10, 10))
    many = CheckTarget("pets", tuple(f"class {i}" for i in range(101)))
    rows = format_classes(check(folder, many)).splitlines()
    assert len(rows) == 1 + 40 + 1 + 10
    assert "50 more classes" in rows[41]
    assert not any("class 100" in row for row in rows)  # it never occurs


def test_csv_and_json(folder: Path, tmp_path: Path) -> None:
    report = check(folder)
    write_classes(report, tmp_path / "out/classes.csv")
    write_check_report(report, tmp_path / "out/report.json")
    with (tmp_path / "out/classes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["pixels"], row["images"]) for row in rows] == [
        ("cat", "6", "3"), ("dog", "3", "3"), ("road, route", "45", "3"),
    ]  # fmt: skip
    assert float(rows[0]["share"]) == pytest.approx(6 / 54, abs=1e-8)
    record = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (record["ok"], record["pairs"], record["ignored_pixels"], record["findings"]) == (True, 3, 18, [])


def test_what_is_wrong_comes_first_and_every_kind_has_a_headline(folder: Path) -> None:
    spoil(folder)
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(folder / "labels/1.png")
    kinds = check(folder).kinds()
    assert [wrong for _, wrong, _ in kinds] == sorted((wrong for _, wrong, _ in kinds), reverse=True)
    assert {kind for kind, _, _ in kinds} <= set(HEADLINES)


def test_a_data_set_that_cannot_be_listed() -> None:
    report = failed_report(TARGET, FileNotFoundError("image folder x does not exist"))
    assert not report.ok
    assert "image folder x does not exist" in format_report(report)
    assert json.dumps(report.to_dict())

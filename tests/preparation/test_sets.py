"""Every semantic set, from the raw download to the registered layout: exact labels, exact files, nothing done twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from san.data.benchmarks import BENCHMARKS, PUBLISHED_BENCHMARKS
from san.data.pairing import pair_files
from san.preparation import PREPARATIONS, PreparationOptions, check, prepare
from tests.data.raw_trees import MAKERS, PANOPTIC_MAKERS, RawTree, Sizes, make_raw_tree


def options(tree: RawTree, root: Path, **changes) -> PreparationOptions:
    return PreparationOptions(**{"root": root, "raw": (tree.raw,), "partial": True} | changes)


def label_file(root: Path, registered: str, stem: str) -> Path:
    row = BENCHMARKS[registered]
    return row.folders(root)[1] / f"{stem}.{row.label_ext}"


def assert_exact(tree: RawTree, root: Path) -> None:
    for registered, expected in tree.expected.items():
        row = BENCHMARKS[registered]
        for stem, values in expected.items():
            with Image.open(label_file(root, registered, stem)) as label:
                assert label.mode == {"uint8": "L", "uint16": "I;16"}[row.labels.label_dtype]
                np.testing.assert_array_equal(np.asarray(label), values, err_msg=f"{registered} {stem}")
            with Image.open(row.folders(root)[0] / f"{stem}.jpg") as image:
                assert ImageOps.exif_transpose(image).size == values.shape[::-1]


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_registered_split_has_a_preparation():
    splits = [name for preparation in PREPARATIONS.values() for name in preparation.registered.values()]
    assert sorted(splits) == sorted(PUBLISHED_BENCHMARKS)
    assert PREPARATIONS.keys() == MAKERS.keys() | PANOPTIC_MAKERS.keys()


@pytest.mark.parametrize("archives", [False, True], ids=["unpacked", "archives"])
@pytest.mark.parametrize("name", MAKERS)
def test_download_becomes_the_registered_layout(name, archives, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw", archives=archives)
    root, before = tmp_path / "root", snapshot(tree.raw)
    summary = prepare(name, options(tree, root))

    assert summary.good, summary
    assert_exact(tree, root)
    assert snapshot(tree.raw) == before, "the download is left as it came"
    for split in summary.splits:
        assert split.labels == len(tree.expected[split.registered])
        row = BENCHMARKS[split.registered]
        pairs = pair_files(*row.folders(root), row.image_ext, row.label_ext).usable("the folders")
        assert {Path(pair["sem_seg_file_name"]).stem for pair in pairs} == tree.expected[split.registered].keys()
    assert all(report.ok for report in check(name, options(tree, root)))

    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != "lock"}
    again = prepare(name, options(tree, root))
    assert again.good and [split.written for split in again.splits] == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in after} == after, "a second run writes nothing"


@pytest.mark.parametrize("name", ["coco_stuff", "ade20k"])
def test_download_may_lie_in_its_place_under_the_root(name, tmp_path):
    tree = make_raw_tree(name, tmp_path)
    images = {path: path.stat().st_ino for path in tmp_path.rglob("*.jpg")}
    assert prepare(name, PreparationOptions(root=tmp_path, partial=True)).good
    assert_exact(tree, tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.jpg")} == images, "no image is copied or moved"


def test_archives_may_lie_under_the_root_or_be_named_one_by_one(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "root", archives=True)
    assert prepare("voc", PreparationOptions(root=tree.raw, partial=True)).good
    assert_exact(tree, tree.raw)

    files = tuple(sorted(path for path in tree.raw.iterdir() if path.is_file()))
    assert prepare("voc", PreparationOptions(root=tmp_path / "other", raw=files, partial=True)).good
    assert_exact(tree, tmp_path / "other")


@pytest.mark.parametrize("name", MAKERS)
def test_labels_that_exist_stay_and_missing_or_empty_ones_are_made(name, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    root = tmp_path / "root"
    prepare(name, options(tree, root))
    whole = snapshot(root)
    (registered, expected), *_ = tree.expected.items()
    gone, emptied, *_ = (label_file(root, registered, stem) for stem in expected)
    gone.unlink()
    emptied.write_bytes(b"")
    summary = prepare(name, options(tree, root))
    assert [split.written for split in summary.splits] == [2, 0]
    assert snapshot(root) == whole


@pytest.mark.parametrize("name", MAKERS)
def test_validation_alone_needs_no_training_data(name, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    for path in list(tree.raw.rglob("*")):
        if path.is_file() and (path.parent.name in ("train2017", "training") or path.name == "trainaug.txt"):
            path.unlink()
    summary = prepare(name, options(tree, tmp_path / "root", splits=("val",)))
    assert summary.good
    (split,) = summary.splits
    assert split.labels == len(tree.expected[split.registered])


def test_two_workers_write_the_same_bytes(tmp_path):
    tree = make_raw_tree("pcontext_full", tmp_path / "raw", sizes=Sizes(train=12, val=10))
    prepare("pcontext_full", options(tree, tmp_path / "one"))
    prepare("pcontext_full", options(tree, tmp_path / "two", workers=2))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_links_in_place_of_copies(tmp_path):
    tree = make_raw_tree("pcontext", tmp_path / "raw")
    root = tmp_path / "root"
    assert prepare("pcontext", options(tree, root, link=True)).good
    assert_exact(tree, root)
    images = list(root.rglob("*.jpg"))
    assert images and all(path.is_symlink() for path in images)
    assert not any(path.is_symlink() for path in root.rglob("*.png"))


def test_images_are_copied_byte_by_byte(tmp_path):
    tree = make_raw_tree("pcontext", tmp_path / "raw")
    prepare("pcontext", options(tree, tmp_path / "root"))
    raw = {path.name: path.read_bytes() for path in tree.raw.rglob("*.jpg")}
    copies = {path.name: path.read_bytes() for path in (tmp_path / "root").rglob("*.jpg")}
    assert copies and copies.items() <= raw.items()


def test_ade_images_are_written_upright_at_512_without_exif(tmp_path):
    tree = make_raw_tree("ade20k_full", tmp_path / "raw")
    prepare("ade20k_full", options(tree, tmp_path / "root"))
    folder = BENCHMARKS["ade20k_full_sem_seg_val"].folders(tmp_path / "root")[0]
    images = {path.stem: Image.open(path) for path in sorted(folder.iterdir())}
    assert images["ADE_val_00000005"].size == (676, 512)  # 700 x 530 in the download
    assert [images[f"ADE_val_{i:08d}"].mode for i in (1, 2, 3, 4)] == ["RGB", "L", "RGB", "RGB"]
    assert not any(dict(image.getexif()) for image in images.values())
    frames = list(BENCHMARKS["ade20k_full_sem_seg_train"].folders(tmp_path / "root")[0].glob("ADE_frame_*"))
    assert len(frames) == 1, "whatever is not val trains"


def test_only_what_is_needed_is_unpacked(tmp_path):
    tree = make_raw_tree("ade20k_full", tmp_path / "raw", archives=True)
    prepare("ade20k_full", options(tree, tmp_path / "root", splits=("val",)))
    unpacked = {path.name for path in (tmp_path / "root/ADE20K_2021_17_01").rglob("*") if path.is_file()}
    assert "index_ade20k.pkl" in unpacked
    assert not any("parts" in name or "instance" in name or "train" in name for name in unpacked)


def test_count_below_the_published_one_is_a_problem_unless_a_part_is_meant(tmp_path):
    tree = make_raw_tree("ade20k", tmp_path / "raw")
    summary = prepare("ade20k", options(tree, tmp_path / "root", partial=False))
    assert [split.problems for split in summary.splits] == [
        ["5 labels, but the published set has 20,210"],
        ["4 labels, but the published set has 2,000"],
    ]
    whole = check("ade20k", PreparationOptions(root=tmp_path / "root"))
    assert [kind for report in whole for kind, wrong, _ in report.kinds() if wrong] == [
        "wrong_count",
        "absent_class",
    ] * 2
    assert all(report.ok for report in check("ade20k", PreparationOptions(root=tmp_path / "root", partial=True)))


def test_files_of_no_image_are_reported(tmp_path):
    tree = make_raw_tree("ade20k", tmp_path / "raw")
    prepare("ade20k", options(tree, tmp_path / "root"))
    first = label_file(tmp_path / "root", "ade20k_sem_seg_val", "ADE_val_00000001")
    first.with_name("ADE_val_00009999.png").write_bytes(first.read_bytes())
    (_, val) = prepare("ade20k", options(tree, tmp_path / "root")).splits
    assert len(val.problems) == 1 and "1 files" in val.problems[0] and "ADE_val_00009999.png" in val.problems[0]
    (_, checked) = check("ade20k", options(tree, tmp_path / "root"))
    (finding,) = (finding for finding in checked.findings if finding.wrong)
    assert finding.kind == "label_without_image" and finding.file and "ADE_val_00009999" in finding.file


def test_an_image_without_a_label_is_wrong_but_in_vocs_shared_folder(tmp_path):
    for name, wrong in (("ade20k", True), ("voc", False)):
        tree = make_raw_tree(name, tmp_path / f"raw_{name}")
        prepare(name, options(tree, tmp_path / name))
        folder, _ = BENCHMARKS[PREPARATIONS[name].registered["val"]].folders(tmp_path / name)
        first = min(folder.iterdir())
        first.with_name(f"another{first.suffix}").write_bytes(first.read_bytes())
        (_, val) = check(name, options(tree, tmp_path / name))
        assert ("image_without_label", wrong) in {(finding.kind, finding.wrong) for finding in val.findings}

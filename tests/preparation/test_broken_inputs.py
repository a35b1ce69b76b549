"""Broken, missing and foreign files are refused with their name and the remedy; the rest is converted."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from san.data.benchmarks import BENCHMARKS
from san.preparation import PreparationOptions, Summary, check, prepare
from san.preparation.plan import place_image, plan_pairs
from san.vocabulary.label_sets import load_label_set
from tests.data.raw_trees import RawTree, make_raw_tree, write_ade_index, write_png


def run(tree: RawTree, tmp_path: Path, **changes) -> Summary:
    return prepare(
        tree.name, PreparationOptions(**{"root": tmp_path / "root", "raw": (tree.raw,), "partial": True} | changes)
    )


def only_problem(summary: Summary) -> str:
    (problem,) = [problem for split in summary.splits for problem in split.problems]
    return problem


def some(tree: RawTree, pattern: str) -> Path:
    return sorted(tree.raw.rglob(pattern))[0]


def truncate(path: Path, keep: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def change_json(tree: RawTree, change) -> None:
    path = tree.raw / "trainval_merged.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


LABELS = {
    "coco_stuff": "stuffthingmaps/*/*.png", "voc": "SegmentationClassAug/*.png", "ade20k": "annotations/*/*.png",
    "ade20k_full": "*_seg.png", "pcontext_full": "2007_000003.mat",
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_truncated_label_is_named_and_the_others_are_made(name, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    broken = some(tree, LABELS[name])
    truncate(broken)
    summary = run(tree, tmp_path)
    problem = only_problem(summary)
    assert str(broken) in problem and "cannot be read" in problem and "again" in problem
    total = sum(map(len, tree.expected.values()))
    assert sum(split.labels for split in summary.splits) == total - 1
    assert not [path for path in (tmp_path / "root").rglob("*") if path.stat().st_size == 0 and path.name != "lock"]


@pytest.mark.parametrize("name", [*LABELS, "pcontext"])
def test_label_of_another_size_than_its_image(name, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    image = some(tree, "*.jpg")
    Image.new("RGB", (9, 7)).save(image)
    problem = only_problem(run(tree, tmp_path))
    assert str(image) in problem and "is 7x9: they are from different releases" in problem


@pytest.mark.parametrize("name", ["coco_stuff", "voc", "ade20k"])
@pytest.mark.parametrize("mode", ["RGB", "I;16", "LA"])
def test_labels_of_another_type(name, mode, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    broken = some(tree, LABELS[name])
    image = Image.open(broken).convert("L")
    (Image.fromarray(np.asarray(image, np.uint16)) if mode == "I;16" else image.convert(mode)).save(broken)
    problem = only_problem(run(tree, tmp_path))
    assert f"label file {broken} has mode {mode} but must be an 8-bit PNG of indices" in problem


@pytest.mark.parametrize("name", ["coco_stuff", "ade20k_full"])
def test_a_jpeg_called_png_is_no_label(name, tmp_path):
    """Its values are near the right ones, and in COCO nearly every value is legal."""
    tree = make_raw_tree(name, tmp_path / "raw")
    broken = some(tree, LABELS[name])
    Image.open(broken).save(broken, format="JPEG", quality=100)
    assert f"label file {broken} is a JPEG but must be a PNG" in only_problem(run(tree, tmp_path))


@pytest.mark.parametrize(("name", "image"), [("ade20k", "ADE_train_00000001.jpg"), ("pcontext", "2007_000003.jpg")])
def test_a_link_that_leads_nowhere_is_a_missing_image(name, image, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    broken = some(tree, image)
    broken.unlink()
    broken.symlink_to(tmp_path / "nowhere.jpg")
    summary = run(tree, tmp_path, partial=False)
    assert any(broken.stem in problem and "unpack" in problem for problem in summary.splits[0].problems)
    assert sum(split.labels for split in summary.splits) == sum(map(len, tree.expected.values())) - 1


def test_an_image_that_vanishes_is_named_and_the_others_are_made(tmp_path):
    """Between the listing of the folder and the copy."""
    gone = tmp_path / "gone.jpg"
    with pytest.raises(FileNotFoundError, match=r"image .*gone.jpg does not exist; unpack the download again"):
        place_image(gone, tmp_path / "copy.jpg", link=False)
    plan = plan_pairs(
        BENCHMARKS["pcontext_sem_seg_val"],
        PreparationOptions(root=tmp_path),
        {"gone": (gone, Path.touch)},
        label_bytes=len,
    )
    assert [job.num_bytes for job in plan.images] == [0]


def test_voc_labels_turned_grey(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "raw")
    broken = some(tree, "SegmentationClassAug/2009_000002.png")
    with Image.open(broken) as image:
        assert image.mode == "P"
        image.convert("L").save(broken)  # luminance of the colours, which is garbage
    assert re.search(rf"{broken} holds the value .*converted to grey levels", only_problem(run(tree, tmp_path)))


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("coco_stuff", 183, "not the COCO site's stuff annotations"),
        ("coco_stuff", 182, "use stuffthingmaps_trainval2017.zip"),
        ("ade20k", 255, "not an already converted folder"),
        ("ade20k", 151, "use annotations/ of ADEChallengeData2016.zip"),
    ],
)
def test_labels_of_another_release(name, value, remedy, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    broken = some(tree, LABELS[name])
    values = np.array(Image.open(broken))
    values[3, 3] = value
    write_png(broken, values)
    assert re.search(rf"{broken} holds the value {value}, .*{remedy}", only_problem(run(tree, tmp_path)))


def test_ade_full_labels_turned_to_one_channel(tmp_path):
    tree = make_raw_tree("ade20k_full", tmp_path / "raw")
    broken = some(tree, "*_seg.png")
    Image.open(broken).convert("P").save(broken)
    assert f"{broken} has mode P but must have mode RGB" in only_problem(run(tree, tmp_path))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"LabelMap": np.ones((5, 5), np.uint8)}, "a LabelMap of uint8"),
        ({"LabelMap": np.ones((5, 5))}, "a LabelMap of float64"),
        ({"labels": np.ones((5, 5), np.uint16)}, "no LabelMap"),
    ],
    ids=["uint8", "double", "other name"],
)
def test_mat_files_of_another_kind(content, found, tmp_path):
    tree = make_raw_tree("pcontext_full", tmp_path / "raw")
    broken = some(tree, "*.mat")
    scipy.io.savemat(broken, content)
    assert f"{broken} contains {found} " in only_problem(run(tree, tmp_path))


def test_mat_file_with_an_id_outside_the_table(tmp_path):
    tree = make_raw_tree("pcontext_full", tmp_path / "raw")
    broken = some(tree, "*.mat")
    values = scipy.io.loadmat(broken)["LabelMap"]
    values[0, 0] = 460
    scipy.io.savemat(broken, {"LabelMap": values})
    assert f"{broken} holds the value 460" in only_problem(run(tree, tmp_path))


@pytest.mark.parametrize("name", ["pcontext", "pcontext_full"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "lacks .*images"),
        (lambda c: c["images"][0].pop("phase"), "has an image without 'phase'"),
        (lambda c: c["images"][0].update(image_id=7), r"'2007_000003.jpg' with id 7, but VOC 2010's images"),
        (lambda c: c["images"][0].update(file_name="../../2007_000003.jpg"), "VOC 2010's images have names such as"),
    ],
    ids=["no images", "no phase", "id", "path"],
)
def test_detail_file_of_another_kind(name, change, message, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    change_json(tree, change)
    with pytest.raises(ValueError, match=f"trainval_merged.json .*{message}.*PASCAL in Detail"):
        run(tree, tmp_path)


def _renumber(content) -> None:
    """The data set's own 59-class order, which would give nonsense without an error."""
    labels = load_label_set("pascal_context_59")
    content["categories"] = [
        {"category_id": number, "name": labels.classes[official - 1]}
        for number, official in zip(labels.raw_values, labels.official_numbers or (), strict=True)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renumber, "its ids are not those of the 459-class list"),
        (lambda c: c.update(annos_segmentation=[]), "contains no mask"),
        (lambda c: c["annos_segmentation"][0].update(category_id=460), "category 460 that is not an RLE of a category"),
        (lambda c: c["annos_segmentation"][0].update(segmentation=[[1, 2, 3, 4]]), "that is not an RLE"),
        (lambda c: c["annos_segmentation"][0].update(image_id=5), "a mask without image"),
    ],
    ids=["other order", "no masks", "other id", "polygon", "no image"],
)
def test_masks_of_another_kind(change, message, tmp_path):
    tree = make_raw_tree("pcontext", tmp_path / "raw")
    change_json(tree, change)
    with pytest.raises(ValueError, match=f"trainval_merged.json .*{message}"):
        run(tree, tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 4], "counts": [16]}, "its size is"),
        ({"counts": [5]}, "its runs cover 5 pixels but must cover"),
    ],
    ids=["size", "runs"],
)
def test_a_damaged_mask_is_named(segmentation, message, tmp_path):
    tree = make_raw_tree("pcontext", tmp_path / "raw")
    change_json(tree, lambda c: c["annos_segmentation"][1]["segmentation"].update(segmentation))
    problem = only_problem(run(tree, tmp_path))
    assert "trainval_merged.json/2007_000003 is damaged" in problem and message in problem


def test_truncated_detail_file(tmp_path):
    tree = make_raw_tree("pcontext", tmp_path / "raw")
    truncate(tree.raw / "trainval_merged.json")
    with pytest.raises(ValueError, match=r"trainval_merged.json cannot be read as JSON .*download it again"):
        run(tree, tmp_path)


MISSING = {
    "coco_stuff": ("coco/stuffthingmaps/*/*", "stuffthingmaps_trainval2017.zip"),
    "voc": ("trainaug.txt", "augmented training list not found"),
    "pcontext": ("trainval_merged.json", "trainval_merged.json not found"),
    "pcontext_full": ("trainval_merged.json", "trainval_merged.json not found"),
    "ade20k": ("ADEChallengeData2016/annotations/*/*", "ADEChallengeData2016.zip"),
    "ade20k_full": ("ADE20K_2021_17_01/index_ade20k.pkl", "earlier releases number objects differently"),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_part_is_named_with_its_source(name, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw")
    pattern, message = MISSING[name]
    for path in sorted(tree.raw.glob(pattern)):
        path.unlink()
        if not list(path.parent.iterdir()) and path.parent != tree.raw:
            path.parent.rmdir()
    with pytest.raises(FileNotFoundError, match=f"{message}.* with --raw|{message}.*unpack"):
        run(tree, tmp_path)


def test_missing_files_are_counted(tmp_path):
    tree = make_raw_tree("ade20k", tmp_path / "raw")
    (tree.raw / "ADEChallengeData2016/images/training/ADE_train_00000001.jpg").unlink()
    (tree.raw / "ADEChallengeData2016/annotations/training/ADE_train_00000002.png").unlink()
    problems = run(tree, tmp_path, partial=False).splits[0].problems
    assert any(p.startswith("1 label files without an image: ") and "00000001.png" in p for p in problems)
    assert any(p.startswith("1 images without a label file: ") and "00000002.jpg" in p for p in problems)


def test_voc_without_the_validation_list(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "raw")
    some(tree, "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"VOC's list val.txt not found.* with --raw"):
        run(tree, tmp_path)


def test_voc_official_list_is_not_the_augmented_one(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "raw")
    (tree.raw / "trainaug.txt").write_text("".join(f"2007_{i:06d}\n" for i in range(1464)))
    with pytest.raises(ValueError, match=r"trainaug.txt contains the 1464 ids of the official training list"):
        run(tree, tmp_path)


def test_voc_list_as_windows_saves_it(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "raw")
    path = tree.raw / "trainaug.txt"
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert run(tree, tmp_path).good
    path.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"list .*trainaug.txt is not UTF-8 text .*; save it as UTF-8"):
        run(tree, tmp_path)


def test_voc_train_list_of_the_download_is_trainaug(tmp_path):
    """The content of train.txt next to it does not matter."""
    tree = make_raw_tree("voc", tmp_path / "raw")
    (tree.raw / "train.txt").write_text("something\nelse\n")
    assert run(tree, tmp_path).good


def test_voc_lists_that_overlap(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "raw")
    with (tree.raw / "trainaug.txt").open("a") as file:
        file.write("2009_000001\n")
    with pytest.raises(ValueError, match=r"1 ids are in both .* such as 2009_000001"):
        run(tree, tmp_path)


def test_voc_labels_made_from_sbd_lack_official_ids(tmp_path):
    """Official PNGs stand in for validation labels only: they are the same there."""
    tree = make_raw_tree("voc", tmp_path / "raw")
    for stem in ("2008_000002", "2009_000001"):
        (tree.raw / f"SegmentationClassAug/{stem}.png").unlink()
    train, val = run(tree, tmp_path, partial=False).splits
    assert any("1 files of the list are missing" in p and "not a folder made from SBD" in p for p in train.problems)
    assert any("1 labels from the official SegmentationClass" in note for note in val.notes)
    label = tmp_path / "root/VOC2012/annotations_detectron2/val/2009_000001.png"
    np.testing.assert_array_equal(np.array(Image.open(label)), tree.expected["voc_sem_seg_val"]["2009_000001"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectnames": [f"object {i}" for i in range(3000)]}, "has 3000 objects and number 2978 is 'object 2977'"),
        ({"folder": ["ADE20K_2016_07_26/images/training"] * 2}, "does not start with ADE20K_2021_17_01"),
        ({"folder": ["ADE20K_2021_17_01/../../etc"] * 2}, "not an image of ADE20K"),
        ({"filename": ["ADE_val_1.jpg", "../../x.jpg"]}, "not an image of ADE20K"),
        ({"filename": ["ADE_val_1.jpg"] * 2}, "2 file names, 1 of them distinct"),
    ],
    ids=["other objects", "release 2016", "folder leads out", "name leads out", "twice"],
)
def test_ade_index_of_another_release(changes, message, tmp_path):
    tree = make_raw_tree("ade20k_full", tmp_path / "raw")
    index = tree.raw / "ADE20K_2021_17_01/index_ade20k.pkl"
    write_ade_index(index, ["ADE_val_1.jpg", "ADE_val_2.jpg"], ["ADE20K_2021_17_01/images/ADE/x"] * 2, **changes)
    with pytest.raises(ValueError, match=f"index_ade20k.pkl .*{message}"):
        run(tree, tmp_path)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_ade_index_is_refused_and_does_nothing(tmp_path):
    tree = make_raw_tree("ade20k_full", tmp_path / "raw")
    index = tree.raw / "ADE20K_2021_17_01/index_ade20k.pkl"
    index.write_bytes(pickle.dumps({"filename": [], "folder": [], "objectnames": _Evil(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=r"index_ade20k.pkl is refused: it refers to posix.mkdir"):
        run(tree, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_check_finds_what_is_wrong_and_changes_nothing(tmp_path):
    tree = make_raw_tree("pcontext_full", tmp_path / "raw")
    run(tree, tmp_path)
    labels, images = (tmp_path / "root/pcontext_full/train" / kind for kind in ("label", "image"))
    cut, narrow, odd, small, _ = sorted(labels.iterdir())
    truncate(cut)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(narrow)
    with Image.open(odd) as image:
        values = np.array(image)
    values[0, 0] = 459
    Image.fromarray(values).save(odd)
    Image.fromarray(np.zeros((3, 2), np.uint16)).save(small)
    picture = sorted(images.iterdir())[4]
    truncate(picture)
    before = {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()}
    train, val = check("pcontext_full", PreparationOptions(root=tmp_path / "root", partial=True))
    expected = {
        cut: "cannot be read", narrow: "has 8 bits (mode L)", odd: "459 (1 px); allowed are 0..458",
        small: "label map is 3x2", picture: "cannot be read",
    }  # fmt: skip
    wrong = [(finding.file, finding.message) for finding in train.findings if finding.wrong]
    assert {file for file, _ in wrong} == set(map(str, expected)) and val.ok
    for path, message in expected.items():
        assert any(file == str(path) and message in found for file, found in wrong), (path, wrong)
    assert {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()} == before


def test_a_file_where_a_folder_must_be(tmp_path):
    tree = make_raw_tree("ade20k", tmp_path / "raw")
    blocked = tmp_path / "root/ADEChallengeData2016/annotations_detectron2"
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    with pytest.raises(ValueError, match=r"annotations_detectron2 is a file but must be a folder; remove"):
        run(tree, tmp_path)


def test_check_of_nothing(tmp_path):
    train, val = check("voc", PreparationOptions(root=tmp_path / "nowhere", partial=True))
    assert "does not exist; prepare the set" in train.findings[0].message and not val.ok
    assert not (tmp_path / "nowhere").exists()


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="workers is 0 but must be at least 1"):
        PreparationOptions(root=tmp_path, workers=0)
    with pytest.raises(ValueError, match="splits is"):
        PreparationOptions(root=tmp_path, splits=("test",))
    with pytest.raises(FileNotFoundError, match=r"raw download .*absent does not exist; correct --raw"):
        PreparationOptions(root=tmp_path, raw=(tmp_path / "absent",))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"root .*file is not a folder; correct --root"):
        PreparationOptions(root=tmp_path / "file")
    with pytest.raises(ValueError, match="unknown set 'coco'; the sets are coco_stuff"):
        prepare("coco", PreparationOptions(root=tmp_path))

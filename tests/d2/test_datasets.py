"""Registration of the twelve names, with other registered data sets, and of custom data sets from files."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from san.d2.api import DatasetCatalog, MetadataCatalog
from san.d2.data.datasets import (
    class_texts,
    load_records,
    metadata_of,
    pairing_of,
    register_custom,
    register_custom_files,
    register_datasets,
    register_folder,
    shapes_benchmarks,
)
from san.data.benchmarks import BENCHMARKS, PANOPTIC_BENCHMARKS, PUBLISHED_BENCHMARKS
from san.vocabulary.classes import ClassText
from tests.d2.conftest import write_voc

REPO = Path(__file__).resolve().parents[2]


def test_twelve_names_with_their_folders_again_and_again(tmp_path: Path) -> None:
    for root in (tmp_path / "a", tmp_path / "b", tmp_path / "b"):
        register_datasets(root)
        assert set(BENCHMARKS) <= set(DatasetCatalog.list())
        assert len(BENCHMARKS) == 12
        for name, benchmark in BENCHMARKS.items():
            metadata = metadata_of(name)
            assert (Path(metadata.image_root), Path(metadata.sem_seg_root)) == benchmark.folders(root)
            assert tuple(metadata.stuff_classes) == benchmark.labels.classes
            assert metadata.ignore_label == benchmark.labels.ignore_label
            assert metadata.evaluator_type == "sem_seg"
            assert class_texts(name) == tuple(ClassText(each) for each in benchmark.labels.classes)
    for name, benchmark in PANOPTIC_BENCHMARKS.items():
        metadata = metadata_of(name)
        assert (Path(metadata.image_root), Path(metadata.sem_seg_root)) == benchmark.folders(root)
        assert (tuple(metadata.stuff_classes), metadata.things) == (benchmark.labels.classes, benchmark.labels.things)
        assert (metadata.evaluator_type, metadata.ignore_label) == ("panoptic_seg", 255)
    ids = metadata_of("coco_2017_test_stuff_sem_seg").stuff_dataset_id_to_contiguous_id
    assert (ids[1], ids[13], ids[182], len(ids)) == (0, 11, 170, 171)


def test_the_environment_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_datasets()
    assert metadata_of("voc_sem_seg_val").image_root == str(tmp_path / "VOC2012/JPEGImages")
    register_datasets(tmp_path / "other")
    assert metadata_of("voc_sem_seg_val").image_root == str(tmp_path / "other/VOC2012/JPEGImages")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    register_datasets()
    assert metadata_of("voc_sem_seg_val").image_root == "datasets/VOC2012/JPEGImages"


SCRIPT = """
import sys
import san.d2
from san.d2.api import BACKEND, DatasetCatalog, MetadataCatalog
from san.data.benchmarks import PUBLISHED_BENCHMARKS
before = set(DatasetCatalog.list())
assert BACKEND == sys.argv[1]
theirs = {"ade20k_sem_seg_train", "ade20k_sem_seg_val", "coco_2017_train_panoptic", "coco_2017_val_panoptic"}
assert (set(PUBLISHED_BENCHMARKS) & before) == (theirs if BACKEND == "detectron2" else set()), "registered on import"
for _ in range(2):
    san.d2.register_datasets("root")
for name, benchmark in PUBLISHED_BENCHMARKS.items():
    assert tuple(MetadataCatalog.get(name).stuff_classes) == benchmark.labels.classes, name
    assert str(MetadataCatalog.get(name).sem_seg_root).startswith("root/"), name
assert before <= set(DatasetCatalog.list())
print("fine")
"""


@pytest.mark.parametrize("backend", ["standin", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_registration_is_explicit_and_keeps_others(backend: str) -> None:
    """Detectron2 registers ade20k_sem_seg_* and coco_2017_*_panoptic itself, on import."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend],
        capture_output=True, text=True, check=False, cwd=REPO, env=os.environ | {"SAN_BACKEND": backend},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("fine")


def test_a_foreign_registration_of_a_name_is_replaced(tmp_path: Path) -> None:
    if "ade20k_sem_seg_val" in DatasetCatalog.list():
        DatasetCatalog.remove("ade20k_sem_seg_val")
        MetadataCatalog.remove("ade20k_sem_seg_val")
    DatasetCatalog.register("ade20k_sem_seg_val", list)
    MetadataCatalog.get("ade20k_sem_seg_val").set(stuff_classes=["window "], ignore_label=7)
    register_datasets(tmp_path)
    assert metadata_of("ade20k_sem_seg_val").stuff_classes[8] == "window"
    assert metadata_of("ade20k_sem_seg_val").ignore_label == 255


def test_unpaired_files_and_missing_images_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_voc(tmp_path, train=2, val=2)
    (tmp_path / "VOC2012/JPEGImages/train_001.jpg").unlink()
    register_datasets(tmp_path)
    with caplog.at_level(logging.WARNING):
        records = load_records("voc_sem_seg_train")
    assert [Path(record["file_name"]).name for record in records] == ["train_000.jpg"]
    assert "train_001.png" in caplog.text
    assert "voc_sem_seg_train has 1 images, not 10582" in caplog.text
    assert "val_000" not in caplog.text  # the image folder is shared by both splits
    assert [Path(each).name for each in pairing_of("voc_sem_seg_train").labels_without_image] == ["train_001.png"]


def write_custom(folder: Path, **changes: Any) -> Path:
    """A data set file with a folder split and a list split, and its files."""
    for name in ("images/a.jpg", "images/b.jpg", "labels/a.png", "labels/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9), 10, np.uint8)).save(folder / name)
    (folder / "val.txt").write_text("images/b.jpg\tlabels/b.png\n")
    content = {
        "name": "roofs",
        "classes": ["road", {"name": "sofa", "synonyms": "sofa, couch"}],
        "label_mapping": {10: "sofa", 20: "road"},
        "splits": {"train": {"images": "images", "labels": "labels"}, "val": {"list": "val.txt"}},
    }
    path = folder / "roofs.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_custom_data_set(tmp_path: Path) -> None:
    path = write_custom(tmp_path)
    for _ in range(2):
        assert register_custom(path) == ["roofs_train", "roofs_val"]
    metadata = metadata_of("roofs_train")
    assert (metadata.stuff_classes, metadata.ignore_label) == (["road", "sofa"], 255)
    assert class_texts("roofs_val") == (ClassText("road"), ClassText("sofa", ("sofa", "couch")))
    assert dict(metadata.label_mapping.indices) == {10: 1, 20: 0}
    assert [Path(each["file_name"]).name for each in load_records("roofs_train")] == ["a.jpg", "b.jpg"]
    (record,) = load_records("roofs_val")
    assert record == {
        "file_name": str(tmp_path / "images/b.jpg"), "sem_seg_file_name": str(tmp_path / "labels/b.png"),
        "dataset_name": "roofs_val",
    }  # fmt: skip
    assert len(pairing_of("roofs_val").pairs) == 1


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    register_custom(write_custom(tmp_path))
    register_custom(write_custom(tmp_path, classes=["roof", "sofa"], label_mapping={10: 0, 20: 1}))
    assert metadata_of("roofs_train").stuff_classes == ["roof", "sofa"]


def test_names_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has the name 'voc_sem_seg_train', which another data set has"):
        register_custom(write_custom(tmp_path, name="voc_sem_seg"))
    with pytest.raises(ValueError, match="'shapes_sem_seg_train'"):
        register_custom(write_custom(tmp_path, name="shapes_sem_seg"))
    register_folder("taken_val", tmp_path, tmp_path, ["a"])
    with pytest.raises(ValueError, match="has the name 'taken_val'"):
        register_custom(write_custom(tmp_path, name="taken"))
    (tmp_path / "two").mkdir()
    files = [write_custom(tmp_path), write_custom(tmp_path / "two")]
    with pytest.raises(ValueError, match="both describe a data set 'roofs_train'; rename one"):
        register_custom_files(files)
    assert register_custom_files([files[0], files[0]]) == ["roofs_train", "roofs_val"]


def test_expanded_names_replace_texts_and_nothing_else(tmp_path: Path) -> None:
    register_datasets(tmp_path)
    names = (*PUBLISHED_BENCHMARKS, *shapes_benchmarks())
    before = {name: list(MetadataCatalog.get(name).stuff_classes) for name in names}
    register_datasets(tmp_path, "expanded")
    for name, classes in before.items():
        assert MetadataCatalog.get(name).stuff_classes == classes
        assert [each.name for each in class_texts(name)] == classes
    (cow,) = [each for each in class_texts("voc_sem_seg_val") if each.name == "cow"]
    assert cow.synonyms == ("cow", "cattle", "bull")
    assert class_texts("shapes_sem_seg_train")[0].synonyms[:2] == ("red ring", "small red ring")
    register_datasets(tmp_path)
    assert class_texts("voc_sem_seg_val")[0] == ClassText("aeroplane")

"""Own data sets and subsets in training and evaluation: DATASETS.CUSTOM, --dataset, --data-root, TEST_SUBSET."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from san.d2.api import build_model
from san.d2.config.keys import load_config
from san.d2.data.datasets import metadata_of, register_custom, register_datasets
from san.d2.data.mapper import EvalMapper, dataset_info, read_labels
from san.d2.evaluate.evaluator import OutputConfig, SemSegEvaluator
from san.d2.run import run
from san.vocabulary.classes import ClassText
from tests.d2.conftest import TINY, as_arguments

MakeCfg = Callable[..., Any]

CLASSES = ["road", {"name": "seat", "synonyms": ["sofa", "couch"]}, "roof"]


@pytest.fixture
def seats(tmp_path: Path) -> Path:
    """A data set of 6 images whose labels hold 10, 20, 30, 0 (no class), 255 and 99 (not mapped)."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "seats"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for index in range(6):
            labels = np.zeros((70, 66 + index), np.uint8)
            labels[:30, :20], labels[:30, 20:], labels[30:60, :40] = 10, 20, 30
            labels[60:, :10], labels[60:, 10:20] = 255, 99
            Image.fromarray(labels).save(folder / split / f"labels/{index}.png")
            image = rng.integers(0, 90, (*labels.shape, 3), np.uint8) + labels[..., None] // 2
            Image.fromarray(image.astype(np.uint8)).save(folder / split / f"images/{index}.png")
    content = {
        "name": "seats",
        "classes": CLASSES,
        "image_ext": "png",
        "label_mapping": {10: "road", 20: "seat", 30: "roof", 0: "ignore"},
        "unmapped": "ignore",
        "splits": {each: {"images": f"{each}/images", "labels": f"{each}/labels"} for each in ("train", "val")},
    }
    (folder / "seats.yaml").write_text(yaml.safe_dump(content))
    return folder / "seats.yaml"


def test_labels_are_mapped_when_they_are_read(seats: Path) -> None:
    register_custom(seats)
    info = dataset_info("seats_val", metadata_of("seats_val"))
    file = str(seats.parent / "val/labels/0.png")
    labels = read_labels({"sem_seg_file_name": file}, info)
    assert (labels[0, 0], labels[0, 30], labels[40, 0], labels[40, 60]) == (0, 1, 2, 255)
    assert labels[60:, :20].tolist() == [[255] * 20] * 10
    assert sorted(np.unique(np.asarray(Image.open(file)))) == [0, 10, 20, 30, 99, 255]  # the file is as it was
    seats.write_text(seats.read_text().replace("unmapped: ignore", "unmapped: refuse"))
    register_custom(seats)
    with pytest.raises(ValueError, match=r"0\.png holds the value 99, which label_mapping does not map"):
        read_labels({"sem_seg_file_name": file}, dataset_info("seats_val", metadata_of("seats_val")))


def test_a_known_prediction_gives_the_exact_figures(seats: Path, tmp_path: Path) -> None:
    register_custom(seats)
    mapper = EvalMapper(dataset_info("seats_val", metadata_of("seats_val")), 64, 128)
    evaluator = SemSegEvaluator("seats_val", OutputConfig(tmp_path / "report", num_panels=1))
    folder = seats.parent / "val"
    sample = mapper({"file_name": str(folder / "images/0.png"), "sem_seg_file_name": str(folder / "labels/0.png")})
    prediction = torch.zeros(70, 66, dtype=torch.int64)  # everything is road
    prediction[30:] = 2
    evaluator.process([sample], [{"sem_seg_labels": prediction}])
    result = evaluator.evaluate()
    assert result is not None
    values = result["sem_seg"]
    road, seat, roof = 30 * 20, 30 * 46, 30 * 40
    assert values["IoU-road"] == pytest.approx(100 * road / (road + seat))
    assert (values["IoU-seat"], values["IoU-roof"]) == (0.0, 100.0)
    assert values["mIoU"] == pytest.approx((100 * road / (road + seat) + 100) / 3)
    assert values["pACC"] == pytest.approx(100 * (road + roof) / (road + seat + roof))


def test_train_and_evaluate_with_the_file(seats: Path, tmp_path: Path) -> None:
    """--dataset registers the file, trains on its split train and evaluates on the others."""
    options = {key: value for key, value in TINY.items() if not key.startswith("DATASETS.")}
    options |= {"SOLVER.MAX_ITER": 2, "OUTPUT_DIR": str(tmp_path / "run")}
    cfg = load_config("", as_arguments(options), datasets=[str(seats)], data_root=str(tmp_path))
    assert (tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)) == (("seats_train",), ("seats_val",))
    assert ([str(seats)], str(tmp_path)) == (cfg.DATASETS.CUSTOM, cfg.DATASETS.ROOT)
    results = run(cfg)
    assert set(results) == {"seats_val"}
    assert {f"IoU-{name}" for name in ("road", "seat", "roof")} <= set(results["seats_val"])
    # the recorded configuration names the file, so that the run can be evaluated again
    again = load_config(str(tmp_path / "run/config.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")])
    assert run(again, eval_only=True) == results


def test_synonyms_reach_the_text_encoder(make_cfg: MakeCfg, seats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_custom(seats)
    model = build_model(make_cfg(DATASETS__CUSTOM=[str(seats)]))
    model.eval()
    asked: list[Any] = []
    classifier = model.model.text_classifier
    embed, with_bank = classifier.embed, classifier.embed_with_bank
    monkeypatch.setattr(classifier, "embed_with_bank", lambda classes: asked.append(classes) or with_bank(classes))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        model([{"image": image, "dataset_name": "seats_val"}])
    texts = (ClassText("road"), ClassText("seat", ("sofa", "couch")), ClassText("roof"))
    assert asked == [texts]
    assert not torch.equal(embed(texts)[1], embed(["seat"])[0])
    model.set_vocabulary([ClassText("seat", ("sofa",)), "road"])
    with torch.no_grad():
        (output,) = model([{"image": image}])
    assert output["sem_seg_labels"].max() <= 1
    torch.testing.assert_close(embed([ClassText("seat", ("sofa",))]), embed(["sofa"]), atol=0, rtol=0)


def test_key_value_pairs_win_and_files_add_up(seats: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"name": "one", "classes": ["a"], "list": "gone.txt"}))
    (tmp_path / "top.yaml").write_text(f"DATASETS: {{CUSTOM: [{other}], ROOT: here}}")
    cfg = load_config(str(tmp_path / "top.yaml"), ["DATASETS.TEST", "x"], datasets=[str(seats), str(seats)])
    assert [str(other), str(seats)] == cfg.DATASETS.CUSTOM
    assert (tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST), cfg.DATASETS.ROOT) == (
        ("seats_train",),
        ("x",),
        "here",
    )
    cfg = load_config("", ["DATASETS.TRAIN", "y"], datasets=[str(other)])  # no split "train": TRAIN is left alone
    assert (tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)) == (("y",), ("one",))
    with pytest.raises(FileNotFoundError, match=r"gone.yaml does not exist"):
        load_config("", datasets=["gone.yaml"])


def test_a_subset_is_reported(make_cfg: MakeCfg, reference: Path, tmp_path: Path) -> None:
    weights = str(reference / "model_final.pth")
    cfg = make_cfg(DATASETS__TEST=["voc_sem_seg_val"], DATASETS__TEST_SUBSET=2, MODEL__WEIGHTS=weights)
    run(cfg, eval_only=True)
    report = json.loads((tmp_path / "run/inference/voc_sem_seg_val/metrics.json").read_text())
    assert report["subset"] == "2 of 3 images"
    log = (tmp_path / "run/log.txt").read_text()
    assert "voc_sem_seg_val: evaluating only 2 of 3 images (DATASETS.TEST_SUBSET)" in log
    assert "voc_sem_seg_val: 2 of 3 images in" in log
    assert "subset" not in json.loads((reference / "inference/voc_sem_seg_val/metrics.json").read_text())


def test_a_negative_subset_is_refused() -> None:
    with pytest.raises(ValueError, match="DATASETS.TEST_SUBSET is -1; set it within 0.."):
        load_config("", ["DATASETS.TEST_SUBSET", "-1"])


def test_register_datasets_leaves_own_sets(seats: Path, tmp_path: Path) -> None:
    register_custom(seats)
    register_datasets(tmp_path)
    assert metadata_of("seats_train").stuff_classes == ["road", "seat", "roof"]

"""Training on several data sets of different vocabularies: names, losses, shares, resuming, accumulation, processes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from san.d2.api import MetadataCatalog, build_model
from san.d2.config.keys import load_config
from san.d2.data.batches import BadSample
from san.d2.data.datasets import prepare_datasets, register_folder
from san.d2.data.loaders import Mixture, PositionDataset, build_train_loader
from san.d2.data.train_data import stream_config, train_batches, training_data
from san.d2.run import run
from san.losses.terms import average_counts, count_batch
from tests.d2.conftest import TINY, as_arguments
from tests.d2.test_loaders import draw, samples, stream
from tests.d2.test_training import close, losses

CLASSES = ["road", {"name": "seat", "synonyms": ["sofa", "couch"]}, "roof"]


def write_seats(folder: Path) -> Path:
    """5 images with labels of 10, 20, 30, and 7, the ignore label; returns the file that describes them."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index in range(5):
        labels = np.full((70, 66 + index), 7, np.uint8)
        labels[:30, :20], labels[:30, 20:], labels[30:60, :40] = 10, 20, 30
        Image.fromarray(labels).save(folder / f"labels/{index}.png")
        image = rng.integers(0, 90, (*labels.shape, 3), np.uint8) + labels[..., None] // 2
        Image.fromarray(image.astype(np.uint8)).save(folder / f"images/{index}.png")
    content: dict[str, Any] = {
        "name": "seats",
        "classes": CLASSES,
        "image_ext": "png",
        "label_mapping": {10: "road", 20: "seat", 30: "roof"},
        "ignore_label": 7,
        "splits": {each: {"images": "images", "labels": "labels"} for each in ("train", "val")},
    }
    (folder / "seats.yaml").write_text(yaml.safe_dump(content))
    return folder / "seats.yaml"


@pytest.fixture(scope="module")
def mixed(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a run on VOC's 20 classes and three others."""
    seats = write_seats(tmp_path_factory.mktemp("seats") / "seats")
    return TINY | {
        "DATASETS.ROOT": str(shared_voc),
        "DATASETS.CUSTOM": [str(seats)],
        "DATASETS.TRAIN": ["voc_sem_seg_train", "seats_train"],
        "DATASETS.TEST": ["voc_sem_seg_val", "seats_val"],
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
    }


def configuration(options: dict[str, Any], **changes: Any) -> Any:
    cfg = load_config("", as_arguments(options | {key.replace("__", "."): value for key, value in changes.items()}))
    cfg.freeze()
    return cfg


@pytest.fixture(scope="module")
def trained(mixed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with weights 3 to 1."""
    folder = tmp_path_factory.mktemp("mixed")
    run(configuration(mixed, OUTPUT_DIR=str(folder), DATASETS__TRAIN_WEIGHTS=[3, 1]))
    return folder


# -- the losses


@pytest.fixture
def batch(mixed: dict[str, Any], tmp_path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """A model in training, and a batch of both data sets, mixed up."""
    cfg = configuration(mixed, OUTPUT_DIR=str(tmp_path), SOLVER__IMS_PER_BATCH=6)
    prepare_datasets(cfg)
    found = next(iter(train_batches(cfg, training_data(cfg), stream_config(cfg))))
    kinds = [sample["dataset_name"] for sample in found]
    assert Counter(kinds).keys() == {"voc_sem_seg_train", "seats_train"} and kinds not in (sorted(kinds), kinds[::-1])
    assert {sample["ignore_label"] for sample in found} == {255, 7}
    torch.manual_seed(0)
    return build_model(cfg).train(), found


def of(batch: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [sample for sample in batch if sample["dataset_name"] == name]


def test_losses_of_a_mixed_batch_are_those_of_its_parts(batch: tuple[Any, list[dict[str, Any]]]) -> None:
    """Divided by the counts of the whole batch, as over accumulation steps; the gradient, too."""
    model, together = batch
    counts = count_batch([sample["num_masks"] for sample in together], 6, model.criterion.config.no_object_weight)
    whole = average_counts(*counts, num_processes=1)
    parts = [model(of(together, name), norm=whole) for name in ("voc_sem_seg_train", "seats_train")]
    for norm in (whole, None):
        found = model(together, norm=norm)
        assert found.keys() == parts[0].keys() == parts[1].keys()
        for name, value in found.items():
            torch.testing.assert_close(value, parts[0][name] + parts[1][name], rtol=1e-5, atol=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(sum(found.values()), trained)
    theirs = torch.autograd.grad(sum(value for part in parts for value in part.values()), trained)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_names_of_one_data_set_are_no_negatives_of_another(batch: tuple[Any, list[dict[str, Any]]]) -> None:
    """Other names for the seats, also those of VOC, change the losses of the seats alone."""
    model, together = batch
    norm = average_counts(*count_batch([sample["num_masks"] for sample in together], 6, 0.1), num_processes=1)

    def loss(samples: list[dict[str, Any]]) -> float:
        return model(samples, norm=norm)["loss_ce"].item()

    voc, seats = of(together, "voc_sem_seg_train"), of(together, "seats_train")
    before, seats_before = loss(voc), loss(seats)
    assert loss(together) == pytest.approx(before + seats_before, rel=1e-5)
    register_folder("other_seats", "a", "b", ["aeroplane", "bicycle", "bird"], ignore_label=7)
    for sample in seats:
        sample["dataset_name"] = "other_seats"
    assert loss(seats) != pytest.approx(seats_before, rel=1e-3)
    assert loss(together) == pytest.approx(before + loss(seats), rel=1e-5) and loss(voc) == before


def test_a_sample_that_names_no_data_set_is_refused(batch: tuple[Any, list[dict[str, Any]]]) -> None:
    model, together = batch
    del together[0]["dataset_name"]
    with pytest.raises(ValueError, match="no dataset_name, and voc_sem_seg_train, seats_train have different class"):
        model(together)


# -- runs


def test_a_run_evaluates_each_data_set_with_its_own_names(trained: Path) -> None:
    for name, count in (("voc_sem_seg_val", 20), ("seats_val", 3)):
        values = json.loads((trained / f"inference/{name}/metrics.json").read_text())
        assert sum(key.startswith("IoU-") for key in values) == count
    log = (trained / "log.txt").read_text()
    assert "12 images of voc_sem_seg_train, seats_train" in log


def test_accumulation_changes_nothing(mixed: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    common = {"OUTPUT_DIR": str(tmp_path), "DATASETS__TRAIN_WEIGHTS": [3, 1], "DATASETS__TEST": []}
    run(configuration(mixed, **common, SOLVER__ACCUMULATION_STEPS=4))
    assert close(losses(tmp_path), losses(trained), rel=1e-5)


def test_two_processes_give_the_losses_of_one(mixed: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    """Where one process has samples of one data set only, too."""
    changes = {"OUTPUT_DIR": str(tmp_path), "DATASETS.TRAIN_WEIGHTS": [3, 1], "DATASETS.TEST": []}
    command = [sys.executable, "-m", "san", "train", "--num-gpus", "2", "--dist-url", "auto"]
    subprocess.run([*command, *as_arguments(mixed | changes)], check=True, capture_output=True, timeout=300)
    assert close(losses(tmp_path), losses(trained), rel=1e-5)


def test_a_resumed_run_ends_with_the_same_weights(mixed: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    (tmp_path / "model_0000001.pth").write_bytes((trained / "model_0000001.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    cfg = configuration(mixed, OUTPUT_DIR=str(tmp_path), DATASETS__TRAIN_WEIGHTS=[3, 1], DATASETS__TEST=[])
    run(cfg, resume=True)
    assert losses(tmp_path) == losses(trained)[2:]
    ours, theirs = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (tmp_path, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_sets_of_equal_classes_are_trained_as_one(mixed: dict[str, Any], tmp_path: Path) -> None:
    """Two halves of a data set, without weights, give the samples and the losses of the whole, bit by bit."""
    whole = configuration(mixed, OUTPUT_DIR=str(tmp_path), DATASETS__TRAIN=["voc_sem_seg_train"])
    prepare_datasets(whole)
    metadata, files = MetadataCatalog.get("voc_sem_seg_train"), []
    for name, part in (("one", slice(0, 3)), ("two", slice(3, None))):
        (tmp_path / name).mkdir()
        for path in sorted(Path(metadata.sem_seg_root).iterdir())[part]:
            (tmp_path / name / path.name).symlink_to(path)
        register_folder(name, metadata.image_root, tmp_path / name, metadata.stuff_classes, shared_images=True)
    halves = configuration(mixed, OUTPUT_DIR=str(tmp_path), DATASETS__TRAIN=["one", "two"])
    torch.manual_seed(0)
    model, found = build_model(whole).train(), []
    for cfg in (whole, halves):
        samples = next(iter(train_batches(cfg, training_data(cfg), stream_config(cfg))))
        files.append([sample["file_name"] for sample in samples])
        found.append({name: value.detach() for name, value in model(samples).items()})
    assert {sample["dataset_name"] for sample in samples} == {"one", "two"}
    assert files[0] == files[1] and found[0] == found[1]


# -- shares


def test_a_mixture_keeps_shares_and_shuffles() -> None:
    """Exact shares of every block; each data set is shown whole before it is shown again."""
    mixture = Mixture((3, 40, 7), (500, 299, 201))
    found = [mixture.sample_at(5, position) for position in range(2000)]
    sets = np.array([among.start for _, among in found])
    assert {(among.start, among.stop) for _, among in found} == {(0, 3), (3, 43), (43, 50)}
    for first, quota in ((0, 500), (3, 299), (43, 201)):
        assert [(sets[start : start + 1000] == first).sum() for start in (0, 1000)] == [quota, quota]
        assert 0.5 * quota < 5 * (sets[:200] == first).sum() < 1.5 * quota  # nowhere all of a kind
    for first, size in ((0, 3), (3, 40), (43, 7)):
        own = [index for index, among in found if among.start == first]
        epochs = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert all(sorted(epoch) == [*range(first, first + size)] for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert found != [mixture.sample_at(6, position) for position in range(2000)]


def test_a_mixture_is_the_same_however_it_is_read() -> None:
    records, mixture = [{"file_name": str(index)} for index in range(5)], Mixture((2, 3), (600, 400))

    def read(**changes: int) -> list[tuple[Any, ...]]:
        config = stream(**changes)
        batches = build_train_loader(records, draw, config, num_workers=0, mixture=mixture)
        return [(s["position"], s["file_name"], s["drawn"], s["seed"]) for batch in batches for s in batch]

    whole = read()
    assert read(start_iter=4) == whole[16:]
    assert sorted([*read(rank=0, world=2), *read(rank=1, world=2)]) == whole
    plain = [sample for batch in samples(stream()) for sample in batch]
    assert [each[2:] for each in plain] == [each[2:] for each in whole]  # augmentation and points are of the position
    assert [each[1] for each in plain] != [each[1] for each in whole]


def test_a_bad_sample_is_replaced_from_its_own_data_set() -> None:
    def fail(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if record["file_name"] in "01":
            raise ValueError("unreadable")
        return dict(record)

    dataset = PositionDataset([{"file_name": str(index)} for index in range(8)], fail, 0, Mixture((3, 5), (500, 500)))
    logging.disable()
    found = [dataset[position] for position in range(20)]
    logging.disable(logging.NOTSET)
    replaced = [sample["file_name"] for sample in found if not isinstance(sample, BadSample) and "bad" in sample]
    assert replaced and set(replaced) == {"2"}


@pytest.mark.parametrize(
    ("weights", "quotas"), [([3, 1], (750, 250)), ([1, 1, 1], (334, 333, 333)), ([0.001, 0.999], (1, 999)), ([5], ())]
)
def test_weights_are_shares(mixed: dict[str, Any], weights: list[float], quotas: tuple[int, ...]) -> None:
    names = ["voc_sem_seg_train", "seats_train", "seats_val"][: len(weights)]
    cfg = configuration(mixed, DATASETS__TRAIN=names, DATASETS__TRAIN_WEIGHTS=weights)
    prepare_datasets(cfg)
    data = training_data(cfg)
    assert (data.mixture.quotas if data.mixture else ()) == quotas
    assert data.mixture is None or sum(data.mixture.sizes) == len(data.records)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], r"TRAIN_WEIGHTS has 1 numbers, but DATASETS.TRAIN has 2 data sets \(voc_sem_seg_train, seats_train\)"),
        ([9999, 1], "gives seats_train 1 of 10000, which is less than one sample in 1000"),
        ([1, 0], "DATASETS.TRAIN_WEIGHTS is .* set it above 0"),
        (["a", 1], "DATASETS.TRAIN_WEIGHTS"),
    ],
)
def test_wrong_weights(mixed: dict[str, Any], weights: list[Any], message: str) -> None:
    def make() -> Callable[..., Any]:
        cfg = configuration(mixed, DATASETS__TRAIN_WEIGHTS=weights)
        prepare_datasets(cfg)
        return training_data(cfg)

    with pytest.raises(ValueError, match=message):
        make()

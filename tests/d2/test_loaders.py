"""The sample stream: positions, order, seeds, shares of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from san.d2.data.loaders import (
    PositionDataset,
    PositionSampler,
    StreamConfig,
    build_eval_loader,
    build_train_loader,
    epoch_order,
    point_seed,
)

RECORDS = [{"file_name": str(index)} for index in range(5)]


def draw(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"file_name": record["file_name"], "drawn": rng.random()}


def stream(**changes: int) -> StreamConfig:
    return StreamConfig(**({"seed": 3, "batch_size": 4, "start_iter": 0, "max_iter": 6} | changes))


def samples(config: StreamConfig, num_workers: int = 0) -> list[list[tuple[Any, ...]]]:
    batches = build_train_loader(RECORDS, draw, config, num_workers=num_workers)
    assert len(batches) == config.accumulation * (config.max_iter - config.start_iter)
    return [[(s["position"], s["file_name"], s["drawn"], s["seed"]) for s in batch] for batch in batches]


def test_every_pass_shows_every_image_once_in_a_new_order() -> None:
    names = [s[1] for batch in samples(stream(batch_size=5)) for s in batch]
    passes = [names[i : i + 5] for i in range(0, 30, 5)]
    assert all(sorted(one) == list("01234") for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert not np.array_equal(epoch_order(3, 0, 50), epoch_order(4, 0, 50))


def test_a_shorter_run_or_more_workers_or_a_resumed_run_sees_the_same() -> None:
    whole = samples(stream())
    assert samples(stream(), num_workers=2) == whole
    assert samples(stream(start_iter=4)) == whole[4:]
    assert samples(stream(seed=4)) != whole


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_accumulation_share_each_iteration(world: int, accumulation: int) -> None:
    whole = [sorted(batch) for batch in samples(stream())]
    parts = [samples(stream(rank=r, world=world, accumulation=accumulation)) for r in range(world)]
    for iteration, batch in enumerate(whole):
        steps = range(iteration * accumulation, (iteration + 1) * accumulation)
        assert sorted(s for part in parts for step in steps for s in part[step]) == batch


def test_seeds_differ_between_positions_and_runs() -> None:
    seeds = {point_seed(seed, position) for seed in (0, 1) for position in range(500)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**31 for seed in seeds)


def test_sampler_counts_what_is_left() -> None:
    sampler = PositionSampler(8, 20, rank=1, world=2)
    assert list(sampler) == [9, 11, 13, 15, 17, 19] and len(sampler) == 6


@pytest.mark.parametrize("wrong", [{"world": 3}, {"batch_size": 0}, {"accumulation": 8}, {"accumulation": 0}])
def test_batches_that_cannot_be_divided_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"SOLVER.IMS_PER_BATCH .* choose a multiple"):
        stream(**wrong)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_files_error_keeps_its_type_and_its_one_line(num_workers: int) -> None:
    batches = build_train_loader(RECORDS, _fail, stream(), num_workers=num_workers)
    with pytest.raises(FileNotFoundError) as caught:
        list(batches)
    assert str(caught.value) == "no such image"


def _fail(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    raise FileNotFoundError("no such image")


def test_evaluation_shows_every_image_once() -> None:
    parts = [[b[0]["file_name"] for b in build_eval_loader(RECORDS, dict, rank=r, world=2)] for r in range(2)]
    assert parts == [["0", "2", "4"], ["1", "3"]]


def test_mapper_gives_what_the_model_takes(shared_voc: Path) -> None:
    from san.d2.data.datasets import load_records, metadata_of, register_datasets
    from san.d2.data.mapper import EvalMapper, TrainMapper, dataset_info
    from san.data.transforms import AugmentationConfig, TrainAugmentation

    register_datasets(shared_voc)
    records = load_records("voc_sem_seg_train")
    info = dataset_info("voc_sem_seg_train", metadata_of("voc_sem_seg_train"))
    config = AugmentationConfig(short_sides=(64,), crop_size=(64, 48))
    dataset = PositionDataset(records, TrainMapper(info, TrainAugmentation(config)), seed=0)
    sample = dataset[3]
    assert sample["image"].shape == (3, 64, 48) and sample["image"].dtype == torch.uint8
    assert sample["sem_seg"].shape == (64, 48)
    present = set(sample["sem_seg"].unique().tolist()) - {255}
    assert sample["num_masks"] == len(present) and present <= set(range(20))
    assert torch.equal(dataset[3]["image"], sample["image"])
    evaluated = EvalMapper(info, 35, 2560)(records[1])
    assert evaluated["image"].shape == (3, 35, 44) and evaluated["sem_seg"].shape == (71, 90)
    assert (evaluated["height"], evaluated["width"]) == (71, 90)

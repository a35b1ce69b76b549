"""Training data of a run: records, augmentation, and the stream of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from san.d2.api import CfgNode, comm
from san.d2.config.keys import augmentation_config
from san.d2.data.batches import Batches
from san.d2.data.datasets import check_names, load_records, metadata_of
from san.d2.data.loaders import Mixture, Record, StreamConfig, TrainMapping, build_train_loader
from san.d2.data.mapper import DatasetInfo, MapperPerSet, TrainMapper, dataset_info
from san.data.transforms import TrainAugmentation


@dataclass(frozen=True)
class TrainingData:
    """The data sets that a run trains on.

    Attributes:
        records: records of all data sets, one set after the other; each has a ``dataset_name``.
        infos: properties of each data set, by name.
        mixture: their shares; None if all records are shuffled together.
    """

    records: list[Record]
    infos: Mapping[str, DatasetInfo]
    mixture: Mixture | None = None


def stream_config(cfg: CfgNode) -> StreamConfig:
    """Return the whole stream of training samples that this process reads; every process must call it."""
    return StreamConfig(
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        start_iter=0,
        max_iter=cfg.SOLVER.MAX_ITER,
        rank=comm.get_rank(),
        world=comm.get_world_size(),
        accumulation=cfg.SOLVER.ACCUMULATION_STEPS,
    )


def train_batches(cfg: CfgNode, data: TrainingData, stream: StreamConfig) -> Batches:
    """Return the batches of a part of the stream."""
    return build_train_loader(
        data.records,
        train_mapper(cfg, data),
        stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        mixture=data.mixture,
        timeout=cfg.DATALOADER.TIMEOUT,
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
    )


def train_mapper(cfg: CfgNode, data: TrainingData) -> TrainMapping:
    """Return the mapper from records of the training sets to augmented samples."""
    mappers = {
        name: TrainMapper(info, TrainAugmentation(augmentation_config(cfg, info.ignore_label)))
        for name, info in data.infos.items()
    }
    return next(iter(mappers.values())) if len(mappers) == 1 else MapperPerSet(mappers)


def training_data(cfg: CfgNode) -> TrainingData:
    """Return the records of all training sets, each with its own classes, ignore label and label mapping.

    Args:
        cfg: has DATASETS.TRAIN and DATASETS.TRAIN_WEIGHTS.

    Raises:
        ValueError: there is no training set, a name is unknown, or the weights do not fit.
        FileNotFoundError: folders are missing or empty.
    """
    names, weights = cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; set it to a data set such as shapes_sem_seg_train")
    check_names(names, "DATASETS.TRAIN")
    quotas = _quotas(names, weights) if weights else ()
    infos = {name: dataset_info(name, metadata_of(name)) for name in names}
    records = [load_records(name) for name in names]
    mixture = Mixture(tuple(map(len, records)), quotas) if len(quotas) > 1 else None
    named = [{**record, "dataset_name": name} for name, own in zip(names, records, strict=True) for record in own]
    return TrainingData(named, infos, mixture)


def _quotas(names: Sequence[str], weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many samples of each data set a block of a `Mixture` contains."""
    if len(weights) != len(names):
        raise ValueError(
            f"DATASETS.TRAIN_WEIGHTS has {len(weights)} numbers, but DATASETS.TRAIN has {len(names)} data sets "
            f"({', '.join(names)}); give one weight for each, or none"
        )
    exact = [Mixture.BLOCK * weight / sum(weights) for weight in weights]
    quotas = [int(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda which: quotas[which] - exact[which])
    for which in by_remainder[: Mixture.BLOCK - sum(quotas)]:
        quotas[which] += 1
    for name, weight, quota in zip(names, weights, quotas, strict=True):
        if not quota:
            raise ValueError(
                f"DATASETS.TRAIN_WEIGHTS gives {name} {weight:g} of {sum(weights):g}, which is less than one sample in "
                f"{Mixture.BLOCK}; give it a larger weight, or take it out of DATASETS.TRAIN"
            )
    return tuple(quotas)

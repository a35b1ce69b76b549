"""Training data of a run: records, augmentation, and the stream of batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from san.d2.api import CfgNode, comm
from san.d2.config.keys import augmentation_config
from san.d2.data.batches import Batches
from san.d2.data.datasets import check_names, class_texts, load_records, metadata_of
from san.d2.data.loaders import Record, StreamConfig, build_train_loader
from san.d2.data.mapper import DatasetInfo, TrainMapper, dataset_info
from san.data.transforms import TrainAugmentation


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


def train_batches(cfg: CfgNode, records: Sequence[Record], info: DatasetInfo, stream: StreamConfig) -> Batches:
    """Return the batches of a part of the stream."""
    return build_train_loader(
        records,
        train_mapper(cfg, info),
        stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT,
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
    )


def train_mapper(cfg: CfgNode, info: DatasetInfo) -> TrainMapper:
    """Return the mapper from records of a training set to augmented samples."""
    return TrainMapper(info, TrainAugmentation(augmentation_config(cfg, info.ignore_label)))


def training_records(names: Sequence[str]) -> tuple[list[Record], DatasetInfo]:
    """Return the records of all training sets.

    Args:
        names: DATASETS.TRAIN, with one vocabulary.

    Returns:
        the records, and their `DatasetInfo`.

    Raises:
        ValueError: `names` is empty, a name is unknown, or class names differ.
        FileNotFoundError: folders are missing or empty.
    """
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; set it to a data set such as shapes_sem_seg_train")
    check_names(names, "DATASETS.TRAIN")
    kinds = {(class_texts(name), dataset_info("", metadata_of(name))) for name in names}
    if len(kinds) > 1:
        raise ValueError(
            f"DATASETS.TRAIN has sets with different classes, ignore labels or label mappings: {', '.join(names)}; "
            "use sets with equal ones"
        )
    records = [record for name in names for record in load_records(name)]
    return records, dataset_info(names[0], metadata_of(names[0]))

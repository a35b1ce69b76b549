"""Workload of loading: synthetic pictures like COCO's, loaded by the training mapper."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.workload import Workload
from san.d2.data.loaders import PositionDataset, PositionSampler, Record
from san.d2.data.mapper import DatasetInfo, TrainMapper
from san.data.transforms import TrainAugmentation

NUM_IMAGES = 16
SAMPLES_PER_RUN = 32


def write_images(folder: Path) -> list[Record]:
    """Write 640x480 and 480x640 JPEGs of about 140 kB (smooth colours with noise), and label maps of rectangles."""
    rng = np.random.default_rng(0)
    records: list[Record] = []
    for index in range(NUM_IMAGES):
        height, width = (480, 640) if index % 3 else (640, 480)
        smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth) + rng.normal(0, 12, (height, width, 3))
        labels = np.kron(rng.integers(0, 171, (8, 8), np.uint8), np.ones((80, 80), np.uint8))[:height, :width]
        names = {"file_name": folder / f"{index}.jpg", "sem_seg_file_name": folder / f"{index}.png"}
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(names["file_name"], quality=90)
        Image.fromarray(labels).save(names["sem_seg_file_name"])
        records.append({key: str(path) for key, path in names.items()})
    return records


def make_dataset(folder: Path) -> PositionDataset:
    """Write the pictures to a folder, and return the endless stream of augmented samples."""
    mapper = TrainMapper(DatasetInfo("synthetic", 171, 255), TrainAugmentation())
    return PositionDataset(write_images(folder), mapper, seed=0)


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """Set up loading of the next samples; without workers in this process, on one thread, as in a worker.

    The plain path is the same, as there is no unoptimised loader.
    """
    folder = tempfile.TemporaryDirectory()  # removed with the stream
    samples = stream(make_dataset(Path(folder.name)), case.workers, folder)

    def run(recorder: Recorder) -> None:
        for _ in range(SAMPLES_PER_RUN):
            next(samples)
        recorder.mark("loading")

    return Workload(run, SAMPLES_PER_RUN, "samples")


def stream(dataset: PositionDataset, workers: int, folder: Any) -> Iterator[Any]:
    """Yield samples without end; `folder` exists as long as they are read."""
    if workers == 0:
        torch.set_num_threads(1)
        position = 0
        while True:
            yield dataset[position]
            position += 1
    yield from DataLoader(
        dataset, batch_size=None, sampler=PositionSampler(0, 10**9), num_workers=workers, prefetch_factor=4
    )
    folder.cleanup()

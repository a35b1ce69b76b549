#!/usr/bin/env python3
"""Measures how many training samples one loading worker gives per second, on pictures of COCO's size and kind.

    python tools/benchmark_loading.py
    python tools/benchmark_loading.py --samples 400

The pictures are made: 640x480 and 480x640 JPEGs of about 140 kB, with label maps of 171 classes. Reading, decoding, the
published augmentation and the 640x640 result are timed; one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from san.d2.loaders import PositionDataset, Record
from san.d2.mapper import DatasetInfo, TrainMapper
from san.data.transforms import TrainAugmentation

NUM_IMAGES = 16


def write_images(folder: Path) -> list[Record]:
    """Smooth colours with noise, and label maps of rectangles."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="samples to load (default: 200)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        mapper = TrainMapper(DatasetInfo("synthetic", 171, 255), TrainAugmentation())
        dataset = PositionDataset(write_images(Path(folder)), mapper, seed=0)
        for position in range(NUM_IMAGES):
            dataset[position]
        start, start_cpu = time.perf_counter(), time.process_time()
        for position in range(args.samples):
            dataset[position]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    print(f"{args.samples / seconds:.1f} images/s per worker ({args.samples / cpu_seconds:.1f} per second of CPU time)")


if __name__ == "__main__":
    main()

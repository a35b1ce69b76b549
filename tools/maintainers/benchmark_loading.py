#!/usr/bin/env python3
"""Measures how many training samples per second one loader worker produces, on synthetic images of COCO's size.

    python tools/maintainers/benchmark_loading.py
    python tools/maintainers/benchmark_loading.py --samples 400

The images are 640x480 and 480x640 JPEGs of about 140 kB, with label maps of 171 classes. Reading, decoding, the
published augmentation and the 640x640 result are timed, on one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from san.benchmark.loading import NUM_IMAGES, make_dataset
from san.cli.main import guarded


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="samples to load (default: 200)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder))
        for position in range(NUM_IMAGES):
            dataset[position]
        start, start_cpu = time.perf_counter(), time.process_time()
        for position in range(args.samples):
            dataset[position]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    print(f"{args.samples / seconds:.1f} images/s per worker ({args.samples / cpu_seconds:.1f} per second of CPU time)")


if __name__ == "__main__":
    sys.exit(guarded(main))

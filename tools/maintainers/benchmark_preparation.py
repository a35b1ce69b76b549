#!/usr/bin/env python3
"""Measures how many images per second each `datasets/prepare_<set>.py` converts, on synthetic downloads.

    python tools/maintainers/benchmark_preparation.py
    python tools/maintainers/benchmark_preparation.py --sets voc ade20k_full --images 100 --workers 1 2 4

Labels are regions of a few to some dozen classes with curved borders; images are smooth colours with noise, in the
typical size of each set: COCO 640x480, VOC and PASCAL Context 500x375, ADE20K-150 683x512, ADE20K-847 2048x1536. The
time is that of the whole run on unpacked files, including the start of worker processes but not unpacking.
"images/CPU-s" divides by the CPU time of all processes, and so hardly depends on the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_rle

from san.cli.main import guarded
from san.preparation import PreparationOptions, prepare
from san.vocabulary.label_sets import load_label_set

SIZES = {  # height, width, classes in an image
    "coco_stuff": (480, 640, 12),
    "voc": (375, 500, 3),
    "pcontext": (375, 500, 9),
    "pcontext_full": (375, 500, 15),
    "ade20k": (512, 683, 15),
    "ade20k_full": (1536, 2048, 25),
}
Record = dict[str, Any]
VARIANTS = 8  # distinct images; further ones are copies


def make_labels(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) raw ids: Voronoi cells of random points, distorted by waves."""
    height, width, num_classes = SIZES[name]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    rows, columns = rows + 9 * np.sin(columns / 17), columns + 9 * np.sin(rows / 13)
    values = rng.choice(load_label_set(LABEL_SETS[name]).raw_values, num_classes, replace=False)
    best, labels = np.full((height, width), np.inf, np.float32), np.zeros((height, width), np.int64)
    for index in range(3 * num_classes):
        distance = (rows - rng.uniform(0, height)) ** 2 + (columns - rng.uniform(0, width)) ** 2
        labels[distance < best] = values[index % num_classes]
        best = np.minimum(best, distance)
    return labels


LABEL_SETS = {
    "coco_stuff": "coco_stuff_171", "voc": "voc_20", "pcontext": "pascal_context_59",
    "pcontext_full": "pascal_context_459", "ade20k": "ade20k_150", "ade20k_full": "ade20k_847",
}  # fmt: skip


def make_image(path: Path, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Write smooth colours with noise as a JPEG of quality 90."""
    small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    smooth = np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 8, (*shape, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make_download(name: str, raw: Path, count: int) -> None:
    """Write the validation part of a set's unpacked download, `count` images."""
    rng = np.random.default_rng(0)
    stems = [f"2008_{i:06d}" for i in range(count)] if name != "ade20k_full" else _ade_stems(count)
    records: list[Record] = []
    annotations: list[Record] = []
    for index, stem in enumerate(stems):
        image = raw / IMAGES[name] / f"{stem}.jpg"
        if index >= VARIANTS:
            source = stems[index % VARIANTS]
            image.write_bytes((image.parent / f"{source}.jpg").read_bytes())
            for label, target in _label_files(name, raw, source, stem):
                target.write_bytes(label.read_bytes())
            masks = [dict(mask) for mask in annotations if mask["image_id"] == _number(source)]
        else:
            labels = make_labels(name, rng)
            make_image(image, (labels.shape[0], labels.shape[1]), rng)
            masks = _write_label(name, raw, stem, labels)
        annotations += [mask | {"image_id": _number(stem)} for mask in masks]
        records.append({"image_id": _number(stem), "file_name": f"{stem}.jpg", "phase": "val"})
    _write_lists(name, raw, stems, records, annotations)


IMAGES = {
    "coco_stuff": "coco/val2017", "voc": "VOC2012/JPEGImages", "pcontext": "VOC2010/JPEGImages",
    "pcontext_full": "VOC2010/JPEGImages", "ade20k": "ADEChallengeData2016/images/validation",
    "ade20k_full": "ADE20K_2021_17_01/images/ADE/validation/a/b",
}  # fmt: skip
LABELS = {
    "coco_stuff": "coco/stuffthingmaps/val2017/{}.png", "voc": "VOC2012/SegmentationClassAug/{}.png",
    "pcontext_full": "trainval/{}.mat", "ade20k": "ADEChallengeData2016/annotations/validation/{}.png",
    "ade20k_full": "ADE20K_2021_17_01/images/ADE/validation/a/b/{}_seg.png",
}  # fmt: skip


def _ade_stems(count: int) -> list[str]:
    return [f"ADE_val_{i:08d}" for i in range(count)]


def _number(stem: str) -> int:
    return int("".join(filter(str.isdigit, stem)))


def _label_files(name: str, raw: Path, source: str, stem: str) -> list[tuple[Path, Path]]:
    return [(raw / LABELS[name].format(source), raw / LABELS[name].format(stem))] if name in LABELS else []


def _write_label(name: str, raw: Path, stem: str, labels: np.ndarray) -> list[Record]:
    """Write one raw label file, or return the masks for PC-59."""
    if name == "pcontext":
        masks: list[Record] = []
        for value in np.unique(labels):
            rle = coco_rle.encode(np.asfortranarray(labels == value).astype(np.uint8))
            rle["counts"] = rle["counts"].decode()
            masks.append({"category_id": int(value), "segmentation": rle, "id": 0})
        return masks
    path = raw / LABELS[name].format(stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "pcontext_full":
        path.write_bytes(mat_file(labels))
    elif name == "ade20k_full":
        instance = np.add.outer(np.arange(labels.shape[0]) // 200 * 11, np.arange(labels.shape[1]) // 200) % 256
        Image.fromarray(np.stack([labels // 256 * 10, labels % 256, instance], -1).astype(np.uint8)).save(path)
    else:
        Image.fromarray(labels.astype(np.uint8)).save(path)
    return []


def mat_file(labels: np.ndarray) -> bytes:
    """Return a MATLAB 5 file with the compressed uint16 matrix `LabelMap`."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    matrix = element(6, struct.pack("<II", 11, 0))  # uint16
    matrix += element(5, struct.pack("<ii", *labels.shape)) + element(1, b"LabelMap")
    packed = zlib.compress(element(14, matrix + element(4, labels.astype("<u2").tobytes("F"))))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    return header + struct.pack("<II", 15, len(packed)) + packed


def _write_lists(name: str, raw: Path, stems: list[str], records: list[Record], annotations: list[Record]) -> None:
    if name == "voc":
        (raw / "VOC2012/val.txt").write_text("\n".join(stems))
    elif name.startswith("pcontext"):
        content = {"images": records, "annos_segmentation": annotations, "categories": []}
        (raw / "trainval_merged.json").write_text(json.dumps(content))
    elif name == "ade20k_full":
        labels = load_label_set("ade20k_847")
        objects = [""] * 3688
        for class_name, number in zip(labels.classes, labels.raw_values, strict=True):
            objects[number - 1] = class_name
        folder = "ADE20K_2021_17_01/images/ADE/validation/a/b"
        index = {"filename": [f"{s}.jpg" for s in stems], "folder": [folder] * len(stems), "objectnames": objects}
        (raw / "ADE20K_2021_17_01/index_ade20k.pkl").write_bytes(pickle.dumps(index))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed_run(name: str, raw: Path, workers: int) -> tuple[float, float, int, int]:
    """Time a run in an empty root; returns seconds, CPU seconds of all processes, labels, and their bytes."""
    with tempfile.TemporaryDirectory() as root:
        options = PreparationOptions(root=Path(root), raw=(raw,), workers=workers, splits=("val",), partial=True)
        start, start_cpu = time.perf_counter(), cpu_seconds()
        summary = prepare(name, options)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - start_cpu
        assert summary.good, summary
        labels = [p for p in Path(root).rglob("*") if p.suffix in (".png", ".tif")]
        return seconds, cpu, len(labels), sum(path.stat().st_size for path in labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=tuple(SIZES), default=list(SIZES), metavar="SET")
    parser.add_argument("--images", type=int, default=200, help="images of each set (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker counts (default: 1 2)")
    args = parser.parse_args(arguments)
    print(f"load of the machine before the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("set            workers  images/s  images/CPU-s  bytes/label")
    for name in args.sets:
        with tempfile.TemporaryDirectory() as folder:
            make_download(name, Path(folder), args.images)
            for workers in args.workers:
                seconds, cpu, count, num_bytes = timed_run(name, Path(folder), workers)
                rates = f"{count / seconds:9.1f} {count / cpu:13.1f}"
                print(f"{name:14} {workers:7} {rates} {num_bytes / count:12.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))

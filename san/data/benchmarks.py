"""The table of the six benchmarks: registered names, folders under the datasets root, file types, image counts.

The layout is the one published with SAN, so folders prepared for it can be used unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from san.vocabulary.label_sets import LabelSet, expanded_names, load_label_set


@dataclass(frozen=True)
class Benchmark:
    """One registered split of a benchmark.

    Attributes:
        name: registered name.
        label_set: key of `load_label_set`.
        image_dir, label_dir: folders, relative to the datasets root.
        num_images: number of image and label pairs of the complete split.
        image_ext, label_ext: file endings without the dot.
        shared_images: whether several splits share the image folder, so that images without a label are expected.
    """

    name: str
    label_set: str
    image_dir: str
    label_dir: str
    num_images: int
    image_ext: str = "jpg"
    label_ext: str = "png"
    shared_images: bool = False

    @property
    def labels(self) -> LabelSet:
        """Class names, ignore label and encodings."""
        return load_label_set(self.label_set)

    @property
    def expanded_names(self) -> Mapping[str, tuple[str, ...]]:
        """See `san.vocabulary.label_sets.expanded_names`."""
        return expanded_names(self.label_set)

    def folders(self, root: str | Path) -> tuple[Path, Path]:
        """Image and label folder under the datasets root."""
        return Path(root) / self.image_dir, Path(root) / self.label_dir


_COCO = "coco/stuffthingmaps_detectron2"
_VOC = "VOC2012"
_ADE_150 = "ADEChallengeData2016"
_ADE_847 = "ADE20K_2021_17_01"

# fmt: off
_TABLE = (
    # "test" in COCO's name means val2017.
    Benchmark("coco_2017_train_stuff_sem_seg", "coco_stuff_171", "coco/train2017", f"{_COCO}/train2017", 118_287),
    Benchmark("coco_2017_test_stuff_sem_seg", "coco_stuff_171", "coco/val2017", f"{_COCO}/val2017", 5_000),
    # Both VOC splits share one image folder of 17,125 images; the label folder decides.
    Benchmark("voc_sem_seg_train", "voc_20", f"{_VOC}/JPEGImages", f"{_VOC}/annotations_detectron2/train", 10_582,
              shared_images=True),
    Benchmark("voc_sem_seg_val", "voc_20", f"{_VOC}/JPEGImages", f"{_VOC}/annotations_detectron2/val", 1_449,
              shared_images=True),
    Benchmark("pcontext_sem_seg_train", "pascal_context_59", "pcontext/train/image", "pcontext/train/label", 4_996),
    Benchmark("pcontext_sem_seg_val", "pascal_context_59", "pcontext/val/image", "pcontext/val/label", 5_104),
    Benchmark("pcontext_full_sem_seg_train", "pascal_context_459",
              "pcontext_full/train/image", "pcontext_full/train/label", 4_996, label_ext="tif"),
    Benchmark("pcontext_full_sem_seg_val", "pascal_context_459",
              "pcontext_full/val/image", "pcontext_full/val/label", 5_104, label_ext="tif"),
    # Detectron2 registers these two names itself, with the same folders.
    Benchmark("ade20k_sem_seg_train", "ade20k_150",
              f"{_ADE_150}/images/training", f"{_ADE_150}/annotations_detectron2/training", 20_210),
    Benchmark("ade20k_sem_seg_val", "ade20k_150",
              f"{_ADE_150}/images/validation", f"{_ADE_150}/annotations_detectron2/validation", 2_000),
    Benchmark("ade20k_full_sem_seg_train", "ade20k_847",
              f"{_ADE_847}/images_detectron2/training", f"{_ADE_847}/annotations_detectron2/training", 25_574,
              label_ext="tif"),
    Benchmark("ade20k_full_sem_seg_val", "ade20k_847",
              f"{_ADE_847}/images_detectron2/validation", f"{_ADE_847}/annotations_detectron2/validation", 2_000,
              label_ext="tif"),
)
# fmt: on

YTVIS_SPLITS: dict[str, tuple[str, str]] = {
    f"ytvis_{year}_{split}": (f"ytvis_{year}/{split}.json", f"ytvis_{year}/{split}/JPEGImages")
    for year in (2019, 2021)
    for split in ("train", "valid", "test")
}
"""Video data sets by name: annotation file and image folder, relative to the datasets root."""

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _TABLE}
"""The twelve real splits by registered name; the embedded `shapes_*` splits are registered by `san.shapes`."""

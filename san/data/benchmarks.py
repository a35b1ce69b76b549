"""The tables of the six benchmarks and of the panoptic sets: names, folders under the datasets root, image counts.

The layout is the one published with SAN, and for panoptic sets that of Mask2Former, so folders prepared for them can be
used unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from san.data.pairing import REMEDY, Pairing, pair_files
from san.data.panoptic import pair_panoptic
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
        annotations: JSON file of a panoptic set, relative to the datasets root; None for a semantic set. The label
            files of a panoptic set are its PNGs of segment ids.
    """

    name: str
    label_set: str
    image_dir: str
    label_dir: str
    num_images: int
    image_ext: str = "jpg"
    label_ext: str = "png"
    shared_images: bool = False
    annotations: str | None = None

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

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category id of each class in the JSON file of a panoptic set: COCO's, else the class index."""
        labels = self.labels
        return labels.category_ids or tuple(range(labels.num_classes))

    def pairing(self, root: str | Path, *, remedy: str = REMEDY) -> Pairing:
        """Return the files of the split.

        Args:
            root: datasets root.
            remedy: remedy for what is missing, for the message.

        Raises:
            FileNotFoundError, ValueError: see `pair_files` and `pair_panoptic`.
        """
        folders, endings = self.folders(root), (self.image_ext, self.label_ext)
        if self.annotations is not None:
            file = Path(root) / self.annotations
            return pair_panoptic(*folders, file, self.category_ids, *endings, remedy=remedy)
        return pair_files(*folders, *endings, shared_images=self.shared_images, remedy=remedy)


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

# fmt: off
_PANOPTIC_TABLE = (
    # Detectron2 registers these two names itself, with the same files.
    Benchmark("coco_2017_train_panoptic", "coco_panoptic_133", "coco/train2017", "coco/panoptic_train2017", 118_287,
              annotations="coco/annotations/panoptic_train2017.json"),
    Benchmark("coco_2017_val_panoptic", "coco_panoptic_133", "coco/val2017", "coco/panoptic_val2017", 5_000,
              annotations="coco/annotations/panoptic_val2017.json"),
    Benchmark("ade20k_panoptic_train", "ade20k_150",
              f"{_ADE_150}/images/training", f"{_ADE_150}/ade20k_panoptic_train", 20_210,
              annotations=f"{_ADE_150}/ade20k_panoptic_train.json"),
    Benchmark("ade20k_panoptic_val", "ade20k_150",
              f"{_ADE_150}/images/validation", f"{_ADE_150}/ade20k_panoptic_val", 2_000,
              annotations=f"{_ADE_150}/ade20k_panoptic_val.json"),
)
# fmt: on

PANOPTIC_BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _PANOPTIC_TABLE}
"""The four real panoptic splits by registered name."""

PUBLISHED_BENCHMARKS: dict[str, Benchmark] = BENCHMARKS | PANOPTIC_BENCHMARKS
"""All real splits, whose numbers of images are known."""

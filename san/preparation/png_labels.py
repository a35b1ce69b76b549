"""Converts one-channel label PNGs with a table: COCO-Stuff, VOC, ADE20K-150."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from san.data.benchmarks import Benchmark
from san.data.pairing import pair_files
from san.preparation.encoding import check_raw_values, class_table, fit_to_image, read_indices, write_labels
from san.preparation.plan import MakeLabel, SplitPlan, file_size, plan_pairs, unpaired_problems
from san.preparation.sources import PreparationOptions
from san.vocabulary.label_sets import load_label_set

# Raw values of published files that are not a class. Other values show that the file is not the published one.
_LEGAL_WITHOUT_CLASS: dict[str, frozenset[int]] = {
    "coco_stuff_171": frozenset((*range(182), 255)),
    "voc_20": frozenset((0, 255)),
    "ade20k_150": frozenset((0,)),
}
_REMEDY = {
    "coco_stuff_171": "use stuffthingmaps_trainval2017.zip (values 0..181 and 255), not the COCO site's stuff "
    "annotations or an already converted folder",
    "voc_20": "use the published PNG files (indices 0..20 and 255); they were converted to grey levels",
    "ade20k_150": "use annotations/ of ADEChallengeData2016.zip (values 0..150), not an already converted folder",
}


def convert_png(source: Path, image: Path, label_set: str, path: Path) -> None:
    """Write the class indices of one label PNG.

    Args:
        source: the published label file.
        image: its image, for the size and EXIF rotation.
        label_set: key of `load_label_set`.
        path: label file to write.

    Raises:
        FileNotFoundError: source or image do not exist.
        ValueError: they are damaged, differ in size, or the labels are not the published ones.
    """
    values = read_indices(source)
    legal = _LEGAL_WITHOUT_CLASS[label_set] | frozenset(load_label_set(label_set).raw_values)
    check_raw_values(values, legal, source, _REMEDY[label_set])
    write_labels(path, fit_to_image(class_table(label_set)[values], image, source))


def plan_png_split(
    benchmark: Benchmark, options: PreparationOptions, image_folder: Path, label_folder: Path
) -> SplitPlan:
    """List the jobs of a split with equal names of images and label PNGs in two folders.

    Raises:
        FileNotFoundError: a folder is missing or empty.
    """
    pairing = pair_files(image_folder, label_folder, benchmark.image_ext, remedy="unpack the download again")
    pairs: dict[str, tuple[Path, MakeLabel]] = {}
    sizes: dict[str, int] = {}
    for pair in pairing.pairs:
        image, label = Path(pair["file_name"]), Path(pair["sem_seg_file_name"])
        pairs[image.stem] = image, partial(convert_png, label, image, benchmark.label_set)
        sizes[image.stem] = file_size(label)
    return plan_pairs(benchmark, options, pairs, label_bytes=sizes.__getitem__, problems=unpaired_problems(pairing))

"""Image and label files of a folder dataset, paired by their relative path without the extension."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def list_pairs(
    image_dir: str | Path, label_dir: str | Path, image_ext: str = "jpg", label_ext: str = "png"
) -> list[dict[str, str]]:
    """Pair every label file with the image of the same stem, sub-folders included.

    Images without a label are normal (VOC keeps all its images in one folder) and are left out; labels without an image
    are left out with a warning, since a conversion has gone wrong there.

    Args:
        image_dir: existing folder of images.
        label_dir: existing folder of label maps.
        image_ext: ending of image files without the dot, compared exactly.
        label_ext: ending of label files without the dot, compared exactly (`tif` does not find `.tiff`).

    Returns:
        Dicts with `file_name` and `sem_seg_file_name`, sorted by stem.

    Raises:
        FileNotFoundError: a folder is missing, holds no file of that extension, or no two files pair up.
    """
    images = _files_by_stem(Path(image_dir), image_ext, "image")
    labels = _files_by_stem(Path(label_dir), label_ext, "label")
    paired = sorted(images.keys() & labels.keys())
    if not paired:
        raise FileNotFoundError(
            f"no image in {image_dir} has a label of the same name in {label_dir}: image {min(images)!r}, label "
            f"{min(labels)!r}; the names must be equal up to the extension"
        )
    orphans = sorted(labels.keys() - images.keys())
    if orphans:
        logger.warning(
            "%d of %d label files in %s have no image in %s and are left out: %s%s",
            len(orphans), len(labels), label_dir, image_dir, ", ".join(orphans[:3]), ", …" if orphans[3:] else "",
        )  # fmt: skip
    logger.info("%d image and label pairs in %s (%d images without a label)",
                len(paired), image_dir, len(images) - len(paired))  # fmt: skip
    return [{"file_name": str(images[stem]), "sem_seg_file_name": str(labels[stem])} for stem in paired]


def _files_by_stem(folder: Path, ext: str, kind: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{kind} folder {folder} does not exist; prepare the dataset (see docs/benchmarks.md) "
            "or point DETECTRON2_DATASETS at the datasets root"
        )
    suffix = f".{ext}"
    found = {path.relative_to(folder).as_posix().removesuffix(suffix): path for path in folder.rglob(f"*{suffix}")}
    if not found:
        raise FileNotFoundError(
            f"{kind} folder {folder} holds no *{suffix} file; prepare the dataset or set the extension"
        )
    return found

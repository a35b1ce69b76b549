"""Checks the file names of a data set: files without a partner, and names that some systems do not distinguish."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from san.data.checking.pair import Finding
from san.data.pairing import Pairing
from san.io.errors import listed
from san.io.image_files import image_endings
from san.io.listing import Skipped, list_files

_NUM_SHOWN = 3


@dataclass(frozen=True)
class Folder:
    """One side of a data set.

    Attributes:
        path: the folder, which is searched recursively.
        exts: extensions of the files that are read, without the dot, compared exactly.
    """

    path: Path
    exts: tuple[str, ...]

    @property
    def endings(self) -> str:
        """The extensions for messages."""
        return " or ".join(f".{ext}" for ext in self.exts)


@dataclass(frozen=True)
class _File:
    """An image file: its path below the folder, its stem, and whether its extension is one that is read."""

    path: Path
    stem: str
    is_read: bool


def check_folders(images: Folder, labels: Folder, *, shared_images: bool = True) -> list[Finding]:
    """Find label maps and images without a partner, and names that differ only in case or extension.

    A label map without an image is an error. Files that are not images are ignored.

    Args:
        images: existing folder of images.
        labels: existing folder of label maps; may be equal to, below or above the folder of images.
        shared_images: the folder of images may also belong to other sets (VOC), so that images without a label map
            are not errors.
    """
    image_files, skipped_images = _pictures(images, labels)
    label_files, skipped_labels = _pictures(labels, images)
    findings = _duplicates(image_files) + _duplicates(label_files)
    for each in dict.fromkeys(skipped_images + skipped_labels):
        findings.append(Finding("skipped_file", each.reason, str(each.path), wrong=each.missed))
    image_stems = {file.stem for file in image_files if file.is_read}
    label_stems = {file.stem for file in label_files if file.is_read}
    any_image = {file.stem.casefold(): file for file in image_files}
    for file in label_files:
        partner = any_image.get(file.stem.casefold())
        if file.is_read and file.stem not in image_stems:
            hint = f"; is it {partner.path}? Then rename that to {file.stem}.{images.exts[0]}" if partner else ""
            message = f"there is no image {file.stem} with the extension {images.endings} in {images.path}{hint}"
            findings.append(Finding("label_without_image", message, str(file.path)))
        elif not file.is_read and partner and not {file.stem, partner.stem} & label_stems:
            message = (
                f"belongs to {partner.path} but is not read, its extension is not exactly {labels.endings}: rename it"
            )
            findings.append(Finding("label_without_image", message, str(file.path)))
    findings += _unlabelled(image_stems - label_stems, len(image_stems), images.path, wrong=not shared_images)
    return findings


def check_annotations(pairing: Pairing, label_dir: Path, label_ext: str) -> list[Finding]:
    """Compare the JSON file of a panoptic set with its folders, which `check_folders` compares with each other.

    Args:
        pairing: of the set, see `san.data.panoptic.pair_panoptic`.
        label_dir: folder of the PNGs.
        label_ext: their extension, without the dot.
    """
    pngs = {path.name for path in list_files(label_dir, lambda name: name.endswith(f".{label_ext}")).files}
    unlisted = [each for each in pairing.images_without_label if f"{Path(each).stem}.{label_ext}" in pngs]
    missing = [each for each in pairing.labels_without_image if Path(each).name not in pngs]
    reported = (
        ("image_without_label", "images whose PNG the JSON file does not list", unlisted),
        ("label_without_image", "PNGs that the JSON file lists do not exist", missing),
    )
    return [
        Finding(kind, f"{len(files):,} {what}: {listed(files, _NUM_SHOWN)}", str(label_dir))
        for kind, what, files in reported
        if files
    ]


def _pictures(folder: Folder, other: Folder) -> tuple[list[_File], tuple[Skipped, ...]]:
    """Return the image files of one side, without those of the other if the folders overlap, and skipped files."""
    suffixes = [f".{ext}" for ext in folder.exts]
    lower = tuple(suffix.lower() for suffix in suffixes)
    shared = folder.path.resolve() == other.path.resolve()
    inner = other.path if not shared and other.path.resolve().is_relative_to(folder.path.resolve()) else None
    files = []
    pictures = image_endings()

    def wanted(name: str) -> bool:
        return name.lower().endswith(lower) or (not shared and Path(name).suffix.lower() in pictures)

    listing = list_files(folder.path, wanted, apart=inner)
    for path in listing.files:
        suffix = next((each for each in suffixes if path.name.endswith(each)), None)
        name = path.relative_to(folder.path)
        stem = name.as_posix().removesuffix(suffix) if suffix else name.with_suffix("").as_posix()
        files.append(_File(path, stem, suffix is not None))
    return files, listing.skipped


def _duplicates(files: Iterable[_File]) -> list[Finding]:
    """Find names that differ only in case or extension, which some file systems and readers do not distinguish."""
    groups: dict[str, list[_File]] = {}
    for file in files:
        groups.setdefault(file.stem.casefold(), []).append(file)
    findings = []
    for group in groups.values():
        if len(group) > 1:
            others = ", ".join(file.path.name for file in group[1:])
            what = "case" if len({file.stem for file in group}) > 1 else "ending"
            message = f"differs from {others} in its {what} only; remove or rename what does not belong"
            findings.append(Finding("duplicate_stem", message, str(group[0].path)))
    return findings


def _unlabelled(stems: set[str], num_images: int, folder: Path, *, wrong: bool) -> list[Finding]:
    if not stems:
        return []
    message = f"{len(stems):,} of {num_images:,} images: {listed(sorted(stems), _NUM_SHOWN)}"
    return [Finding("image_without_label", message, str(folder), wrong=wrong)]

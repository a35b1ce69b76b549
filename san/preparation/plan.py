"""The plan of a preparation, which lists the jobs of each split, and helpers to build it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from san.data.benchmarks import PUBLISHED_BENCHMARKS, Benchmark
from san.data.pairing import Pairing
from san.io.errors import listed
from san.preparation.files import place_file
from san.preparation.jobs import FileJob
from san.preparation.sources import PreparationOptions

MakeLabel = Callable[[Path], None]


@dataclass
class SplitPlan:
    """One split's jobs.

    Attributes:
        benchmark: names, folders, and the published count.
        images, labels: one job per file.
        problems: errors of the download as a whole (files without a partner, wrong lists).
        notes: remarks that are not errors.
        index: file that lists the labels, written when it is missing or older than one of them.
    """

    benchmark: Benchmark
    images: list[FileJob] = field(default_factory=list)
    labels: list[FileJob] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    index: FileJob | None = None


@dataclass(frozen=True)
class Preparation:
    """How one set is prepared.

    Attributes:
        title: readable name.
        registered: split -> registered name.
        plan: finds and unpacks the download, and lists the jobs of the requested splits.
    """

    title: str
    registered: Mapping[str, str]
    plan: Callable[[PreparationOptions], list[SplitPlan]]

    def benchmarks(self, splits: Iterable[str]) -> list[Benchmark]:
        """Return the registered benchmarks of some splits."""
        return [PUBLISHED_BENCHMARKS[self.registered[split]] for split in splits]


def plan_pairs(
    benchmark: Benchmark,
    options: PreparationOptions,
    pairs: Mapping[str, tuple[Path, MakeLabel]],
    *,
    label_bytes: Callable[[str], int],
    problems: Iterable[str] = (),
) -> SplitPlan:
    """Return the jobs that copy or link each image to its registered folder and write its label.

    Args:
        benchmark: the split.
        options: root, and whether to link.
        pairs: stem -> image file of the download, and function that writes the label.
        label_bytes: stem -> estimated size of its label file.
        problems: errors of the download as a whole.

    Returns:
        a plan without notes.
    """
    image_dir, label_dir = benchmark.folders(options.root)
    plan = SplitPlan(benchmark, problems=[*problems])
    for stem, (image, make_label) in sorted(pairs.items()):
        target = image_dir / f"{stem}.{benchmark.image_ext}"
        if image.parent.resolve() != image_dir.resolve():
            size = 0 if options.link else file_size(image)
            plan.images.append(FileJob(target, partial(place_image, image, link=options.link), size))
        plan.labels.append(FileJob(label_dir / f"{stem}.{benchmark.label_ext}", make_label, label_bytes(stem)))
    return plan


def unpaired_problems(pairing: Pairing) -> list[str]:
    """Return a line about the label files without an image, and one about the images without a label file."""
    unpaired = {
        "label files without an image": pairing.labels_without_image,
        "images without a label file": pairing.images_without_label,
    }
    remedy = "unpack both downloads again"
    return [f"{len(files)} {what}: {listed(files)}; {remedy}" for what, files in unpaired.items() if files]


def file_size(path: Path) -> int:
    """Return the size of a file in bytes, or 0 if it no longer exists, which the job that reads it reports."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def place_image(source: Path, path: Path, *, link: bool) -> None:
    """Copy or link one image without reading it.

    Raises:
        FileNotFoundError: the image does not exist.
    """
    if not source.is_file():
        raise FileNotFoundError(f"image {source} does not exist; unpack the download again")
    place_file(source, path, link=link)

"""What `san predict` has to do: which images there are, and what each result is called. Refused before any work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder; a file that is named itself is tried whatever it is called."""


@dataclass(frozen=True)
class Job:
    """One image and where its results go.

    Attributes:
        image: the file to read.
        stem: what its results are called, with the folder, without what a format appends.
    """

    image: Path
    stem: Path

    def outputs(self, endings: Iterable[str]) -> list[Path]:
        """The files to be written, one per ending such as "_overlay.png"."""
        return [self.stem.with_name(self.stem.name + ending) for ending in endings]


def find_jobs(inputs: Sequence[Path], out: Path, *, recursive: bool = False) -> list[Job]:
    """All images of files and folders, sorted within each folder.

    Args:
        inputs: image files, and folders of them; what is named twice is taken once.
        out: folder of the results; what lies below it is no input.
        recursive: take sub-folders too; their structure is kept below `out`.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: a folder holds no image, or is `out` itself.
    """
    jobs = []
    for given in inputs:
        if given.is_dir():
            if given.resolve() == out.resolve():
                raise ValueError(f"{str(given)!r} is both an input and --out; give the results a folder of their own")
            found = _images_below(given, out, recursive)
            if not found:
                hint = "" if recursive else "; give --recursive to look into its sub-folders too"
                raise ValueError(f"folder {str(given)!r} holds no image ({', '.join(IMAGE_SUFFIXES)}){hint}")
            jobs += [Job(path, out / path.relative_to(given).with_suffix("")) for path in found]
        elif given.exists():
            jobs.append(Job(given, out / given.stem))
        else:
            raise FileNotFoundError(f"no image or folder at {str(given)!r}; check the path")
    return list({(job.image.resolve(), job.stem): job for job in jobs}.values())


def _images_below(folder: Path, out: Path, recursive: bool) -> list[Path]:
    """Image files in a folder, hidden ones and those below `out` left out."""
    found, apart = [], out.resolve()
    for root, folders, files in os.walk(folder):
        here = Path(root)
        kept = [name for name in folders if not name.startswith(".") and (here / name).resolve() != apart]
        folders[:] = sorted(kept) if recursive else []
        images = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES]
        found += [here / name for name in sorted(images)]
    return found


def refuse_collisions(jobs: Sequence[Job], endings: Sequence[str], *, overwrite: bool) -> None:
    """Sees to it that no result overwrites another, an input, or, unless asked for, what is there already.

    Raises:
        ValueError: with the files in question and the remedy.
    """
    owners: dict[Path, Path] = {}
    inputs = {job.image.resolve(): job.image for job in jobs}
    existing = []
    for job in jobs:
        for output in job.outputs(endings):
            other = owners.setdefault(output, job.image)
            if other is not job.image:
                raise ValueError(
                    f"{str(other)!r} and {str(job.image)!r} would both be written to {str(output)!r}: a result would "
                    "overwrite another; rename one, or give them in two runs with two --out"
                )
            if output.resolve() in inputs:
                raise ValueError(f"{str(output)!r} is an input and would be overwritten; choose another --out")
            if output.exists():
                existing.append(output)
    if existing and not overwrite:
        raise ValueError(
            f"{len(existing)} of the results exist already, such as {str(existing[0])!r}; give --overwrite, "
            "--skip-existing, or another --out"
        )


def unfinished(jobs: Sequence[Job], endings: Sequence[str]) -> list[Job]:
    """The jobs of which some result is not there yet."""
    return [job for job in jobs if not all(output.exists() for output in job.outputs(endings))]


def prepare_output(out: Path) -> None:
    """Makes the folder of the results, and for a moment a file in it, which proves that it can be written.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".unfinished-"):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to --out {str(out)!r} ({error.strerror or error}); choose a folder that you may write to"
        ) from error

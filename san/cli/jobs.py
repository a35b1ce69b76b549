"""The jobs of `san predict`: images and names of their results, checked before any work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from san.io.image_files import UNREAD_ENDINGS, image_endings
from san.io.listing import Skipped, describe_skipped, list_files

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Endings of files that Pillow might try to read, but that are not pictures."""


@dataclass(frozen=True)
class Job:
    """One image and where its results go.

    Attributes:
        image: the file to read.
        stem: folder and beginning of its results' names.
    """

    image: Path
    stem: Path

    def outputs(self, endings: Iterable[str]) -> list[Path]:
        """Return the files to write, one per ending such as "_overlay.png"."""
        return [self.stem.with_name(self.stem.name + ending) for ending in endings]


def find_jobs(inputs: Sequence[Path], out: Path, *, recursive: bool = False) -> tuple[list[Job], list[Skipped]]:
    """List the images of files and folders, sorted within each folder.

    In a folder, files with an ending that the installed Pillow opens are images. A file given by name is always tried.

    Args:
        inputs: image files, and folders of them; duplicates are used once.
        out: folder of the results; files below it are not inputs.
        recursive: include sub-folders, also through links; their structure is kept below `out`.

    Returns:
        the jobs, and skipped files and folders, see `san.io.listing`.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: a folder contains no image, or is `out` itself, or a file is a video.
    """
    jobs: list[Job] = []
    skipped: list[Skipped] = []
    for given in inputs:
        if os.path.isdir(given):
            if _real(given) == _real(out):
                raise ValueError(f"{str(given)!r} is both an input and --out; give the results a folder of their own")
            found, left_out = _images_of(given, out, recursive)
            if not found:
                hint = "" if recursive else "; give --recursive to look into its sub-folders too"
                seen = f"; left out: {'; '.join(describe_skipped(left_out))}" if left_out else ""
                raise ValueError(
                    f"folder {str(given)!r} holds no image (.jpg, .png or another format that Pillow opens){seen}{hint}"
                )
            jobs += [Job(path, out / path.relative_to(given).with_suffix("")) for path in found]
            skipped += left_out
        elif os.path.lexists(given):
            if _ending(given.name) in VIDEO_ENDINGS:
                raise ValueError(f"{str(given)!r} is a video; use `san video`, which takes the same words and models")
            jobs.append(Job(given, out / given.stem))
        else:
            raise FileNotFoundError(f"no image or folder at {str(given)!r}; check the path")
    return list({(_real(job.image), job.stem): job for job in jobs}.values()), list(dict.fromkeys(skipped))


def _images_of(folder: Path, out: Path, recursive: bool) -> tuple[list[Path], list[Skipped]]:
    """Return the image files in a folder, except those below `out`, and what is skipped."""
    images = image_endings()
    pictures = images.union(UNREAD_ENDINGS)
    listing = list_files(folder, lambda name: _ending(name) in pictures, recursive=recursive, apart=out)
    unread = [path for path in listing.files if _ending(path.name) not in images]
    found = [path for path in listing.files if _ending(path.name) in images]
    return found, [*listing.skipped, *(Skipped(path, "of a format that Pillow does not open", True) for path in unread)]


def _ending(name: str) -> str:
    """Return a file name's ending, with the dot, in lower case."""
    return os.path.splitext(name)[1].lower()


def _real(path: Path) -> str:
    """Resolve links of a path; a loop of links is left as it is."""
    return os.path.realpath(path)


def refuse_collisions(jobs: Sequence[Job], endings: Sequence[str]) -> None:
    """Check that no result overwrites another, or an input.

    Raises:
        ValueError: names the files and the remedy.
    """
    owners: dict[Path, Path] = {}
    inputs = {_real(job.image) for job in jobs}
    for job in jobs:
        for output in job.outputs(endings):
            other = owners.setdefault(output, job.image)
            if other is not job.image:
                raise ValueError(
                    f"{str(other)!r} and {str(job.image)!r} would both be written to {str(output)!r}: a result would "
                    "overwrite another; rename one, or give them in two runs with two --out"
                )
            if _real(output) in inputs:
                raise ValueError(f"{str(output)!r} is an input and would be overwritten; choose another --out")


def refuse_existing(jobs: Sequence[Job], endings: Sequence[str]) -> None:
    """Check that no result exists.

    Raises:
        ValueError: names the remedy.
    """
    existing = [output for job in jobs for output in job.outputs(endings) if os.path.exists(output)]
    if existing:
        raise ValueError(
            f"{len(existing)} of the results exist already, such as {str(existing[0])!r}; give --overwrite, "
            "--skip-existing, or another --out"
        )


def unfinished(jobs: Sequence[Job], endings: Sequence[str]) -> list[Job]:
    """Return the jobs of which a result is missing."""
    return [job for job in jobs if not all(os.path.exists(output) for output in job.outputs(endings))]


def prepare_output(out: Path) -> None:
    """Create the folder of the results, and test that it is writable.

    Raises:
        OSError: it cannot be created or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".unfinished-"):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to --out {str(out)!r} ({error.strerror or error}); choose a folder that you may write to"
        ) from error

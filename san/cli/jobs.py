"""What `san predict` has to do: which images there are, and what each result is called. Refused before any work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from san.io.image_files import UNREAD_ENDINGS, image_endings
from san.io.listing import Skipped, describe_skipped, list_files

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Of files that are no pictures, though some reader of Pillow's might be tried on them."""


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


def find_jobs(inputs: Sequence[Path], out: Path, *, recursive: bool = False) -> tuple[list[Job], list[Skipped]]:
    """All images of files and folders, sorted within each folder.

    In a folder what has an ending of a format that the installed Pillow opens is an image; a file that is named itself
    is tried whatever it is called.

    Args:
        inputs: image files, and folders of them; what is named twice is taken once.
        out: folder of the results; what lies below it is no input.
        recursive: take sub-folders too, and those that links lead to; their structure is kept below `out`.

    Returns:
        The jobs, and what of the folders is left out, see `san.io.listing`.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: a folder holds no image, or is `out` itself; or a file is a video.
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
    """Image files in a folder but those below `out`, and what is left out."""
    images = image_endings()
    pictures = images.union(UNREAD_ENDINGS)
    listing = list_files(folder, lambda name: _ending(name) in pictures, recursive=recursive, apart=out)
    unread = [path for path in listing.files if _ending(path.name) not in images]
    found = [path for path in listing.files if _ending(path.name) in images]
    return found, [*listing.skipped, *(Skipped(path, "of a format that Pillow does not open", True) for path in unread)]


def _ending(name: str) -> str:
    """A file name's ending, with the dot and in lower case."""
    return os.path.splitext(name)[1].lower()


def _real(path: Path) -> str:
    """A path without links; of a loop of links as far as it goes."""
    return os.path.realpath(path)


def refuse_collisions(jobs: Sequence[Job], endings: Sequence[str], *, overwrite: bool) -> None:
    """Sees to it that no result overwrites another, an input, or, unless asked for, what is there already.

    Raises:
        ValueError: with the files in question and the remedy.
    """
    owners: dict[Path, Path] = {}
    inputs = {_real(job.image) for job in jobs}
    existing = []
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
            if os.path.exists(output):
                existing.append(output)
    if existing and not overwrite:
        raise ValueError(
            f"{len(existing)} of the results exist already, such as {str(existing[0])!r}; give --overwrite, "
            "--skip-existing, or another --out"
        )


def unfinished(jobs: Sequence[Job], endings: Sequence[str]) -> list[Job]:
    """The jobs of which some result is not there yet."""
    return [job for job in jobs if not all(os.path.exists(output) for output in job.outputs(endings))]


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

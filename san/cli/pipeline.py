"""The assembly line of `san predict`: images are read and results written in background threads, the model in between.

All queues are bounded, so that neither a slow model nor a slow disk fills the memory.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from san.cli.jobs import Job

Loaded = TypeVar("Loaded")
Result = TypeVar("Result")

_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
"""Why a file system refuses one name and takes others."""


class Writable(Protocol):
    """What a model gives for one image (`san.inference.segmentation.Segmentation`)."""

    def write(self, files: Mapping[str, Path], *, file_name: str = ...) -> None:
        """Writes the file of each format, all or none, with the image's name in it."""


@dataclass(frozen=True)
class Line(Generic[Loaded, Result]):
    """What happens to an image.

    Attributes:
        read: a file to what the model takes; runs in threads.
        predict: a batch of them to as many results; runs where `run_line` is called, alone.
        write: a job and its result to files; runs in threads.
        failed: told of an image that was passed over, and why; runs where `run_line` is called.
        batch_size: images per call of `predict`.
        workers: threads that read, and as many that write.
    """

    read: Callable[[Path], Loaded]
    predict: Callable[[list[Loaded]], list[Result]]
    write: Callable[[Job, Result], None]
    failed: Callable[[Job, Exception], None]
    batch_size: int = 1
    workers: int = 2


def run_line(jobs: Sequence[Job], line: Line[Loaded, Result]) -> Generator[tuple[Job, Result], None, None]:
    """Does all jobs; yields each with its result, in order, once it is on the disk.

    When it ends, normally or by an exception, what was begun to be written has been written, and nothing more runs.

    Raises:
        OSError: a result could not be written, as none could. What could not be read, or written for a reason of its
            own, goes to `line.failed` instead.
    """
    ahead = line.workers + 2 * line.batch_size
    readers = ThreadPoolExecutor(line.workers, thread_name_prefix="san-read")
    writers = ThreadPoolExecutor(line.workers, thread_name_prefix="san-write")
    writing: deque[tuple[Job, Result, Future[None]]] = deque()
    try:
        loaded = _read_ahead(jobs, line, readers, ahead)
        while batch := list(islice(loaded, line.batch_size)):
            for job, result in _predict(batch, line):
                while len(writing) >= 2 * line.workers or (writing and writing[0][2].done()):
                    yield from _written(*writing.popleft(), line)
                writing.append((job, result, writers.submit(line.write, job, result)))
        while writing:
            yield from _written(*writing.popleft(), line)
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        writers.shutdown(wait=True, cancel_futures=True)


def _written(job: Job, result: Result, done: Future[None], line: Line[Any, Result]) -> Iterator[tuple[Job, Result]]:
    """Waits for a result to be written; yields it, unless that failed for a reason of its own."""
    try:
        done.result()
    except ValueError as error:
        line.failed(job, error)
        return
    yield job, result


def _read_ahead(
    jobs: Sequence[Job], line: Line[Loaded, Any], readers: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Job, Loaded]]:
    """The images in order, up to `ahead` of them read before they are asked for."""
    waiting: deque[tuple[Job, Future[Loaded]]] = deque()
    left = iter(jobs)
    while True:
        for job in islice(left, ahead - len(waiting)):
            waiting.append((job, readers.submit(line.read, job.image)))
        if not waiting:
            return
        job, future = waiting.popleft()
        try:
            image = future.result()
        except (ValueError, OSError) as error:  # of this image: it is reported and passed over
            line.failed(job, error)
            continue
        yield job, image


def _predict(batch: list[tuple[Job, Loaded]], line: Line[Loaded, Result]) -> Iterator[tuple[Job, Result]]:
    """The results of a batch; if the model refuses it, of its images one by one, so that one spoils no other."""
    try:
        results = line.predict([image for _, image in batch])
    except ValueError as error:
        if len(batch) == 1:
            line.failed(batch[0][0], error)
        else:
            for single in batch:
                yield from _predict([single], line)
        return
    yield from zip((job for job, _ in batch), results, strict=True)


def write_results(job: Job, result: Writable, endings: Mapping[str, str]) -> None:
    """Writes a result's files to where they belong; they appear whole and together, or not at all.

    Args:
        job: where they belong.
        result: what to write.
        endings: how a file's name ends, by format, as in `san.io.files.FORMATS`.

    Raises:
        ValueError: it cannot be written, for what its file is called.
        OSError: nothing can be written there.
    """
    files = dict(zip(endings, job.outputs(endings.values()), strict=True))
    try:
        result.write(files, file_name=str(job.image))
    except (OSError, ValueError) as error:
        reason = error.__cause__ or error
        shown = getattr(reason, "strerror", None) or reason  # without the unfinished file's name
        message = f"cannot write the results of {str(job.image)!r} to {str(job.stem.parent)!r}: {shown}"
        if getattr(reason, "errno", None) in _OF_THE_NAME:
            raise ValueError(f"{message}; rename it, or what is in its place") from error
        if isinstance(reason, ValueError):
            raise ValueError(message) from error
        raise OSError(message) from error

"""The assembly line of `san predict`: images are read and results written in background threads, the model in between.

All queues are bounded, so that neither a slow model nor a slow disk fills the memory.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
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
        predict: a batch of them to as many results; runs where `run_line` is called, or in threads, see `streams`.
        write: a job and its result to files; runs in threads.
        failed: told of an image that was passed over, and why; runs where `run_line` is called.
        batch_size: images per call of `predict`.
        workers: threads that read, and as many that write.
        streams: calls of `predict` at once, see `san.devices.in_streams`; 1 for one after the other.
        kind: images of different kinds are not put into one batch, but are done in another order instead.
    """

    read: Callable[[Path], Loaded]
    predict: Callable[[list[Loaded]], list[Result]]
    write: Callable[[Job, Result], None]
    failed: Callable[[Job, Exception], None]
    batch_size: int = 1
    workers: int = 2
    streams: int = 1
    kind: Callable[[Loaded], Hashable] = lambda image: None


def run_line(jobs: Sequence[Job], line: Line[Loaded, Result]) -> Generator[tuple[Job, Result], None, None]:
    """Does all jobs; yields each with its result, in order but for `Line.kind`, once it is on the disk.

    When it ends, normally or by an exception, what was begun to be written has been written, and nothing more runs.

    Raises:
        OSError: a result could not be written, as none could. What could not be read, or written for a reason of its
            own, goes to `line.failed` instead.
    """
    from san.devices import in_streams

    ahead = line.workers + 2 * line.batch_size
    readers = ThreadPoolExecutor(line.workers, thread_name_prefix="san-read")
    writers = ThreadPoolExecutor(line.workers, thread_name_prefix="san-write")
    writing: deque[tuple[Job, Result, Future[None]]] = deque()
    try:
        batches = _batches(_read_ahead(jobs, line, readers, ahead), line)
        with closing(in_streams(partial(_predict, line=line), batches, line.streams)) as predicted:
            for job, result in chain.from_iterable(predicted):
                if isinstance(result, ValueError):
                    line.failed(job, result)
                    continue
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


def _batches(loaded: Iterator[tuple[Job, Loaded]], line: Line[Loaded, Any]) -> Iterator[list[tuple[Job, Loaded]]]:
    """Images of one kind together, `line.batch_size` of them; fewer where twice as many are waiting, and at the end."""
    waiting: dict[Hashable, list[tuple[Job, Loaded]]] = {}
    for job, image in loaded:
        kind = line.kind(image)
        waiting.setdefault(kind, []).append((job, image))
        if len(waiting[kind]) == line.batch_size:
            yield waiting.pop(kind)
        elif sum(map(len, waiting.values())) == 2 * line.batch_size:
            yield waiting.pop(next(iter(waiting)))  # the one that waits longest
    yield from waiting.values()


def _predict(batch: list[tuple[Job, Loaded]], line: Line[Loaded, Result]) -> list[tuple[Job, Result | ValueError]]:
    """The results of a batch; if the model refuses it, of its images one by one, so that one spoils no other."""
    try:
        results = line.predict([image for _, image in batch])
    except ValueError as error:
        if len(batch) == 1:
            return [(batch[0][0], error)]
        return [each for single in batch for each in _predict([single], line)]
    return list(zip((job for job, _ in batch), results, strict=True))


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

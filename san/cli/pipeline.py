"""The pipeline of `san predict`: background threads read images and write results while the model runs.

All queues are bounded, so a slow model or disk does not fill the memory.
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
"""Error numbers for a file name that the file system does not accept."""


class Writable(Protocol):
    """Result of a model for one image (`san.inference.segmentation.Segmentation`)."""

    def write(self, files: Mapping[str, Path], *, file_name: str = ..., segments: Any = ...) -> None:
        """Write the file of each format, all or none; the files contain the image's name."""

    def segments(self, **options: Any) -> Any:
        """Return its panoptic segments."""


@dataclass(frozen=True)
class PipelineSteps(Generic[Loaded, Result]):
    """The steps of an image.

    Attributes:
        read: file -> input of the model; runs in threads.
        predict: batch of inputs -> results; runs in the calling thread, or in threads if `streams` is above 1.
        write: writes the files of a job and its result; runs in threads.
        failed: called with each skipped image and its error; runs in the calling thread.
        batch_size: images per call of `predict`.
        workers: number of threads that read, and of threads that write.
        streams: number of parallel calls of `predict`, see `san.devices.in_streams`.
        kind: images of different kinds are never in one batch; their order may change instead.
    """

    read: Callable[[Path], Loaded]
    predict: Callable[[list[Loaded]], list[Result]]
    write: Callable[[Job, Result], None]
    failed: Callable[[Job, Exception], None]
    batch_size: int = 1
    workers: int = 2
    streams: int = 1
    kind: Callable[[Loaded], Hashable] = lambda image: None


def run_pipeline(
    jobs: Sequence[Job], steps: PipelineSteps[Loaded, Result]
) -> Generator[tuple[Job, Result], None, None]:
    """Run all jobs; yield each with its result after it is written, in order except for `PipelineSteps.kind`.

    At the end, also after an exception, started writes are finished and all threads have ended.

    Raises:
        OSError: no result can be written. Errors of single images go to `steps.failed` instead.
    """
    from san.devices import in_streams

    ahead = steps.workers + 2 * steps.batch_size
    readers = ThreadPoolExecutor(steps.workers, thread_name_prefix="san-read")
    writers = ThreadPoolExecutor(steps.workers, thread_name_prefix="san-write")
    writing: deque[tuple[Job, Result, Future[None]]] = deque()
    try:
        batches = _batches(_read_ahead(jobs, steps, readers, ahead), steps)
        with closing(in_streams(partial(_predict, steps=steps), batches, steps.streams)) as predicted:
            for job, result in chain.from_iterable(predicted):
                if isinstance(result, ValueError):
                    steps.failed(job, result)
                    continue
                while len(writing) >= 2 * steps.workers or (writing and writing[0][2].done()):
                    yield from _written(*writing.popleft(), steps)
                writing.append((job, result, writers.submit(steps.write, job, result)))
        while writing:
            yield from _written(*writing.popleft(), steps)
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        writers.shutdown(wait=True, cancel_futures=True)


def _written(
    job: Job, result: Result, done: Future[None], steps: PipelineSteps[Any, Result]
) -> Iterator[tuple[Job, Result]]:
    """Wait until a result is written, and yield it unless its own files failed."""
    try:
        done.result()
    except ValueError as error:
        steps.failed(job, error)
        return
    yield job, result


def _read_ahead(
    jobs: Sequence[Job], steps: PipelineSteps[Loaded, Any], readers: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Job, Loaded]]:
    """Yield the images in order, with up to `ahead` read in advance."""
    waiting: deque[tuple[Job, Future[Loaded]]] = deque()
    left = iter(jobs)
    while True:
        for job in islice(left, ahead - len(waiting)):
            waiting.append((job, readers.submit(steps.read, job.image)))
        if not waiting:
            return
        job, future = waiting.popleft()
        try:
            image = future.result()
        except (ValueError, OSError) as error:  # an error of this image
            steps.failed(job, error)
            continue
        yield job, image


def _batches(
    loaded: Iterator[tuple[Job, Loaded]], steps: PipelineSteps[Loaded, Any]
) -> Iterator[list[tuple[Job, Loaded]]]:
    """Yield batches of one kind and `steps.batch_size`; smaller ones if twice as many images wait, and at the end."""
    waiting: dict[Hashable, list[tuple[Job, Loaded]]] = {}
    for job, image in loaded:
        kind = steps.kind(image)
        waiting.setdefault(kind, []).append((job, image))
        if len(waiting[kind]) == steps.batch_size:
            yield waiting.pop(kind)
        elif sum(map(len, waiting.values())) == 2 * steps.batch_size:
            yield waiting.pop(next(iter(waiting)))  # the oldest
    yield from waiting.values()


def _predict(
    batch: list[tuple[Job, Loaded]], steps: PipelineSteps[Loaded, Result]
) -> list[tuple[Job, Result | ValueError]]:
    """Return the results of a batch; if the model raises, those of each image alone."""
    try:
        results = steps.predict([image for _, image in batch])
    except ValueError as error:
        if len(batch) == 1:
            return [(batch[0][0], error)]
        return [each for single in batch for each in _predict([single], steps)]
    return list(zip((job for job, _ in batch), results, strict=True))


def write_results(
    job: Job, result: Writable, endings: Mapping[str, str], segments: Mapping[str, Any] | None = None
) -> None:
    """Write the files of a result; all of them complete, or none.

    Args:
        job: names the files.
        result: the result.
        endings: endings of the file names by format, as in `san.io.files.FORMATS`.
        segments: arguments of its method `segments`, to write those, too; None writes none.

    Raises:
        ValueError: a file cannot be written because of its name.
        OSError: nothing can be written in the folder.
    """
    files = dict(zip(endings, job.outputs(endings.values()), strict=True))
    more = {} if segments is None else {"segments": result.segments(**segments)}
    try:
        result.write(files, file_name=str(job.image), **more)
    except (OSError, ValueError) as error:
        reason = error.__cause__ or error
        shown = getattr(reason, "strerror", None) or reason  # without the temporary file's name
        message = f"cannot write the results of {str(job.image)!r} to {str(job.stem.parent)!r}: {shown}"
        if getattr(reason, "errno", None) in _OF_THE_NAME:
            raise ValueError(f"{message}; rename it, or the file that is there") from error
        if isinstance(reason, ValueError):
            raise ValueError(message) from error
        raise OSError(message) from error

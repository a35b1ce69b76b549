"""The thread that owns the model: encodes waiting pictures of one size together, and segments them.

(H, W) image.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from san.serve.limits import ServeLimits
from san.serve.metrics import ServeMetrics

if TYPE_CHECKING:
    from san.inference.predictor import EncodedImage, Predictor
    from san.inference.segmentation import Segmentation
    from san.vocabulary.vocabulary import Vocabulary
    from san.web.words import Words

_WARM_UP_SIDE = 64


@dataclass(frozen=True, eq=False)
class EngineTask:
    """What to compute.

    Attributes:
        image: (H, W, 3) uint8 RGB, or an encoded image, which needs no encoder.
        words: the request's words; None only encodes.
        vocabulary: their classes.
        threshold: see `san.inference.segmenter.Segmenter.segment`.
    """

    image: npt.NDArray[np.uint8] | EncodedImage
    words: Words | None = None
    vocabulary: Vocabulary | None = None
    threshold: float = 0.0

    @property
    def size(self) -> tuple[int, ...] | None:
        """Height and width of a picture that the encoder needs; None for an encoded one."""
        return self.image.shape[:2] if isinstance(self.image, np.ndarray) else None


@dataclass(frozen=True, eq=False)
class EngineOutcome:
    """What was computed.

    Attributes:
        encoded: the image.
        result: its segmentation; None if it was only encoded.
        notes: remarks on the words, for the sender.
    """

    encoded: EncodedImage
    result: Segmentation | None = None
    notes: tuple[str, ...] = ()


class Engine:
    """Runs tasks in one thread, in order; pictures of one size that wait at the same time are encoded together.

    Args:
        predictor: any model.
        limits: `max_batch`.
        metrics: counts what is computed.

    Attributes:
        seconds_per_task: recent mean.
    """

    def __init__(self, predictor: Predictor, limits: ServeLimits, metrics: ServeMetrics) -> None:
        self._predictor, self._max_batch, self._metrics = predictor, limits.max_batch, metrics
        self._waiting: deque[tuple[EngineTask, Future[EngineOutcome]]] = deque()
        self._changed, self._closed = threading.Condition(), False
        self.seconds_per_task = 0.0
        self._thread = threading.Thread(target=self._work, name="san-engine", daemon=True)
        self._thread.start()
        # the first picture takes longer than others; an engine is ready after it
        self.submit(EngineTask(np.zeros((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), np.uint8))).result()

    def submit(self, task: EngineTask) -> Future[EngineOutcome]:
        """Queue a task; if the future is cancelled before its turn, nothing is computed.

        Raises:
            RuntimeError: the engine is closed.
        """
        future: Future[EngineOutcome] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._waiting.append((task, future))
            self._changed.notify()
        # not a reference to the future itself: results would stay until the garbage collector finds the circle
        future.add_done_callback(lambda done: self._forget(task) if done.cancelled() else None)
        return future

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def close(self, timeout: float | None = None) -> bool:
        """Drop waiting tasks, and end the thread after the running ones.

        Returns:
            Whether it ended within the timeout, in seconds.
        """
        with self._changed:
            self._closed = True
            for _, future in list(self._waiting):
                future.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _forget(self, task: EngineTask) -> None:
        """Drop a cancelled task now, with the memory of its picture."""
        with self._changed:
            for entry in [each for each in self._waiting if each[0] is task]:
                self._waiting.remove(entry)

    def _work(self) -> None:
        while batch := self._next_batch():
            start = time.perf_counter()
            live = [(task, future) for task, future in batch if future.set_running_or_notify_cancel()]
            batch.clear()
            if live:
                self._run(live)
                spent = (time.perf_counter() - start) / len(live)
                live.clear()  # the memory of the results, while this thread waits
                self.seconds_per_task += (spent - self.seconds_per_task) / (8 if self.seconds_per_task else 1)

    def _next_batch(self) -> list[tuple[EngineTask, Future[EngineOutcome]]]:
        """Wait for the oldest task, and take later pictures of its size; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            batch = [self._waiting.popleft()]
            size = batch[0][0].size
            if size is not None:
                alike = [each for each in self._waiting if each[0].size == size][: self._max_batch - 1]
                for each in alike:
                    self._waiting.remove(each)
                batch += alike
            return batch

    def _run(self, batch: Sequence[tuple[EngineTask, Future[EngineOutcome]]]) -> None:
        try:
            encoded = self._encode([task for task, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for each in batch:  # one picture's error is not that of the others
                self._run([each])
            return
        for (task, future), image in zip(batch, encoded, strict=True):
            try:
                outcome = self._segment(task, image)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(outcome)

    def _encode(self, tasks: Sequence[EngineTask]) -> list[EncodedImage]:
        if not isinstance(tasks[0].image, np.ndarray):  # alone in its batch
            return [task.image for task in tasks if not isinstance(task.image, np.ndarray)]
        pictures = [task.image for task in tasks if isinstance(task.image, np.ndarray)]
        encoded = self._predictor.encode_batch(pictures, batch_size=self._max_batch)
        self._metrics.batch_images.observe(len(pictures))
        return encoded

    def _segment(self, task: EngineTask, encoded: EncodedImage) -> EngineOutcome:
        if task.words is None or task.vocabulary is None:
            return EngineOutcome(encoded)
        text, own = task.words.embed(self._predictor, task.vocabulary)
        result = self._predictor.segment(
            task.vocabulary,
            encoded=encoded,
            text=text,
            threshold=task.threshold,
            none_of_these=task.words.none_of_these,
        )
        self._metrics.segmentations.inc()
        unknown = [f"the small CLIP does not know {each!r}: its embedding means little" for each in own.unknown]
        return EngineOutcome(encoded, result, (*own.cut.values(), *unknown))


def apart(encoded: EncodedImage) -> EncodedImage:
    """Return an encoded image that shares no memory with others of its batch."""
    proposals = encoded.proposals
    own = type(proposals)(*map(_own_memory, proposals))
    return replace(encoded, proposals=own, others=tuple(map(apart, encoded.others)))


def bytes_of(encoded: EncodedImage) -> int:
    """Return the memory of an encoded image that is `apart`."""
    own = encoded.pixels.nbytes + sum(each.nbytes for each in encoded.proposals)
    return own + sum(map(bytes_of, encoded.others))


def _own_memory(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

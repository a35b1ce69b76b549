"""Runs the model for the demo: encodes a picture once, and segments it whenever the words change.

It does not depend on the browser: `page` calls it with the visitor's input, and keeps each visitor's `Session`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from san.demo.examples import Example
from san.demo.limits import Limits
from san.io.errors import one_line
from san.vocabulary.classes import ClassText, text_key
from san.vocabulary.vocabulary import Vocabulary
from san.web.words import Words

if TYPE_CHECKING:
    from san.clip.text_embedder import TextEmbeddings
    from san.inference.predictor import EncodedImage, Predictor
    from san.inference.segmentation import Segmentation

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Session:
    """One visitor's picture, encoded.

    Attributes:
        image_id: random; shows the page whether a result belongs to its picture.
        title: of the picture.
        encoded: the encoded image.
        seconds: time of encoding.
    """

    image_id: str
    title: str
    encoded: EncodedImage
    seconds: float


class Answer(NamedTuple):
    """The answer for a picture and words.

    Attributes:
        result: the segmentation.
        seconds: its time.
        notes: remarks on the words, for the visitor.
    """

    result: Segmentation
    seconds: float
    notes: tuple[str, ...]


class DemoService:
    """The model of the page, and its examples.

    Args:
        predictor: any model.
        examples: example pictures, at least one; every visitor starts with the first.
        limits: limits of visitors.
        known_words: all words that a small model knows, for remarks.
        learnt: classes of a vocabulary file; a visitor's word that is the name of one is recognised from its examples.

    Raises:
        ValueError: there is no example, or a learnt class is of another CLIP.
    """

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Example],
        limits: Limits,
        *,
        known_words: frozenset[str] = frozenset(),
        learnt: Sequence[ClassText] = (),
    ) -> None:
        if not examples:
            raise ValueError("the demo needs at least one example picture, got none")
        self.limits, self.examples = limits, tuple(examples)
        self._predictor, self._known_words, self._learnt = predictor, known_words, tuple(learnt)
        if learnt:
            predictor.model.text_classifier.embed_with_bank(learnt)  # raises if they do not fit
        # one thread, as the model itself uses all cores
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="san-demo")
        self._computing = threading.Lock()
        self._examples: dict[int, Session] = {}

    def open_picture(self, pixels: npt.NDArray[np.uint8], title: object) -> Session:
        """Encode a visitor's picture.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            title: the file's name on the visitor's machine, only displayed.

        Raises:
            ValueError: it took too long. The message is for the visitor.
        """
        name = title.strip()[:80] if isinstance(title, str) else ""
        return self._run(lambda: self._encode(pixels, name or "picture"))

    def open_example(self, index: object) -> Session:
        """Return an example; it is encoded once for all visitors, as sessions are immutable.

        Raises:
            ValueError: the example does not exist.
        """
        if not isinstance(index, int) or not 0 <= index < len(self.examples):
            raise ValueError(f"there is no example {index!r}; there are {len(self.examples)}")
        if index not in self._examples:
            example = self.examples[index]
            self._examples[index] = self._run(lambda: self._encode(example.pixels, example.title))
        return self._examples[index]

    def segment(self, session: Session, words: Words) -> Answer:
        """Segment a picture; a visitor's words are written neither to disk nor to the log.

        Raises:
            ValueError: the words are not valid, or it took too long. The message is for the visitor.
        """
        vocabulary = self._recognised(words.vocabulary(self.limits))

        def task() -> Answer:
            start = time.perf_counter()
            text, own = words.embed(self._predictor, vocabulary)
            result = self._predictor.segment(
                vocabulary, encoded=session.encoded, text=text, none_of_these=words.none_of_these
            )
            return Answer(result, time.perf_counter() - start, self._notes(own))

        return self._run(task)

    def _recognised(self, vocabulary: Vocabulary) -> Vocabulary:
        """Return a vocabulary with the vectors of the learnt classes of the same names; a visitor's words stay."""
        vectors = {text_key(each.name): each.vector for each in self._learnt}
        classes = (replace(each, vector=vectors.get(text_key(each.name))) for each in vocabulary.classes)
        return Vocabulary(tuple(classes), vocabulary.num_context)

    def _notes(self, text: TextEmbeddings) -> tuple[str, ...]:
        """Return remarks on a visitor's words."""
        notes = tuple(text.cut.values())
        if not text.unknown:
            return notes
        shown = ", ".join(text.unknown[:8]) + (" and others" if len(text.unknown) > 8 else "")
        known = f" It knows {', '.join(sorted(self._known_words))}; for" if self._known_words else " For"
        return (
            *notes,
            f"This small model does not know: {shown}.{known} all other words the demo needs a larger model.",
        )

    def close(self) -> bool:
        """Release the worker; waiting requests are dropped.

        Returns:
            Whether it is idle. A running computation cannot be stopped, and the process waits for it at its end.
        """
        self._worker.shutdown(wait=False, cancel_futures=True)
        return not self._computing.locked()

    def _encode(self, pixels: npt.NDArray[np.uint8], title: str) -> Session:
        start = time.perf_counter()
        encoded = self._predictor.encode(pixels)
        return Session(secrets.token_urlsafe(12), title, encoded, time.perf_counter() - start)

    def _run(self, task: Callable[[], Result]) -> Result:
        """Run a task in the worker. After the time limit the visitor gets an error, but the task continues."""

        def alone() -> Result:
            with self._computing:
                return task()

        future = self._worker.submit(alone)
        try:
            return future.result(self.limits.max_seconds)
        except (FutureTimeoutError, CancelledError):
            future.cancel()
            raise ValueError(
                f"this took longer than {self.limits.max_seconds:g} s and was stopped; "
                "try again later, or with a smaller picture or fewer words"
            ) from None


def explain(error: Exception) -> str:
    """Return the message for a visitor: that of a user error; internal errors are only logged."""
    if isinstance(error, (ValueError, FileNotFoundError)):
        return one_line(error)
    logger.error("the demo failed on a request", exc_info=error)
    return "Something went wrong on the server; its log has details. Try another picture or other words."


def text_of(value: Any) -> str:
    """Return a visitor's value if it is text, else ""."""
    return value if isinstance(value, str) else ""

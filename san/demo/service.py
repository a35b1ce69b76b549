"""What the demo does with a picture and words: encode once, segment as often as the words change.

Nothing here knows a browser: `page` calls it with what a visitor sent, and holds each visitor's `Session`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from san.demo.examples import Example
from san.demo.limits import Limits
from san.io.errors import one_line
from san.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from san.clip.text_embedder import TextEmbeddings
    from san.inference.predictor import EncodedImage, Predictor
    from san.inference.segmentation import Segmentation

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Words:
    """What a visitor asks for.

    Attributes:
        text: classes separated by commas, semicolons or line breaks, synonyms by |.
        label_set: a label set's name, "" for none.
        as_context: the label set's classes compete for pixels, but are marked as context; otherwise they are
            asked for, after the words of `text`.
        none_of_these: pixels that fit no word stay without one.
    """

    text: str
    label_set: str = ""
    as_context: bool = True
    none_of_these: bool = False

    def vocabulary(self, limits: Limits) -> Vocabulary:
        """The classes.

        Raises:
            ValueError: none, too many, repeated, or no such label set. The message is for the visitor.
        """
        if len(self.text) > limits.max_characters:
            raise ValueError(
                f"the words have {len(self.text)} characters, the limit here is {limits.max_characters}; shorten them"
            )
        blank = not self.text.strip(" \t\r\n,;")
        if blank and (not self.label_set or self.as_context):
            raise ValueError("there are no words; write at least one, such as: red star, plain ground")
        if not self.label_set:
            vocabulary = Vocabulary.parse(self.text)
        elif blank:
            vocabulary = Vocabulary.label_set(self.label_set)
        else:
            both = Vocabulary.parse(self.text).with_context(Vocabulary.label_set(self.label_set))
            vocabulary = both if self.as_context else Vocabulary(both.classes)
        if len(vocabulary.classes) > limits.max_classes:
            raise ValueError(
                f"the vocabulary has {len(vocabulary.classes)} classes, the limit here is {limits.max_classes}; "
                "leave some out"
            )
        return vocabulary


@dataclass(frozen=True)
class Session:
    """One visitor's picture, encoded.

    Attributes:
        image_id: unguessable; tells the page whether a result belongs to the picture it shows.
        title: of the picture.
        encoded: all of it that does not depend on words.
        seconds: time that the encoding took.
    """

    image_id: str
    title: str
    encoded: EncodedImage
    seconds: float


class Answer(NamedTuple):
    """What a visitor gets for a picture and words.

    Attributes:
        result: the segmentation.
        seconds: time that it took.
        notes: remarks on the words, which the visitor should read.
    """

    result: Segmentation
    seconds: float
    notes: tuple[str, ...]


class DemoService:
    """The model behind the page, and the pictures on offer.

    Args:
        predictor: any model.
        examples: pictures on offer, the first of which every visitor starts with; at least one.
        limits: what visitors may ask for.
        known_words: all words that a small model knows, for the remark on others.

    Raises:
        ValueError: there is no example.
    """

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Example],
        limits: Limits,
        *,
        known_words: frozenset[str] = frozenset(),
    ) -> None:
        if not examples:
            raise ValueError("the demo needs at least one example picture, got none")
        self.limits, self.examples = limits, tuple(examples)
        self._predictor, self._known_words = predictor, known_words
        # one thread: the model's own threads fill the machine, and calls do not mix
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="san-demo")
        self._computing = threading.Lock()
        self._examples: dict[int, Session] = {}

    def open_picture(self, pixels: npt.NDArray[np.uint8], title: object) -> Session:
        """A visitor's picture, encoded.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            title: the file's name on the visitor's machine, for show only.

        Raises:
            ValueError: it took too long. The message is for the visitor.
        """
        name = title.strip()[:80] if isinstance(title, str) else ""
        return self._run(lambda: self._encode(pixels, name or "picture"))

    def open_example(self, index: object) -> Session:
        """One of the examples; encoded once for all visitors, since a session is never changed.

        Raises:
            ValueError: there is no such example.
        """
        if not isinstance(index, int) or not 0 <= index < len(self.examples):
            raise ValueError(f"there is no example {index!r}; there are {len(self.examples)}")
        if index not in self._examples:
            example = self.examples[index]
            self._examples[index] = self._run(lambda: self._encode(example.pixels, example.title))
        return self._examples[index]

    def segment(self, session: Session, words: Words) -> Answer:
        """A picture under words; a visitor's words reach neither the disk nor the log.

        Raises:
            ValueError: the words make no sense, or it took too long. The message is for the visitor.
        """
        vocabulary = words.vocabulary(self.limits)

        def task() -> Answer:
            start = time.perf_counter()
            classifier = self._predictor.model.text_classifier
            if words.label_set:  # its embeddings may be kept on disk
                classifier.embedder.embed(classifier, Vocabulary.label_set(words.label_set).classes)
            text = classifier.embedder.embed(classifier, vocabulary.classes, store=False)
            own = classifier.embedder.embed(classifier, vocabulary.free, store=False)
            result = self._predictor.segment(
                vocabulary, encoded=session.encoded, text=text, none_of_these=words.none_of_these
            )
            return Answer(result, time.perf_counter() - start, self._notes(own))

        return self._run(task)

    def _notes(self, text: TextEmbeddings) -> tuple[str, ...]:
        """Remarks on a visitor's words."""
        notes = tuple(text.cut.values())
        if not text.unknown:
            return notes
        shown = ", ".join(text.unknown[:8]) + (" and others" if len(text.unknown) > 8 else "")
        known = f" It knows {', '.join(sorted(self._known_words))}; for" if self._known_words else " For"
        return (
            *notes,
            f"This small model has never met: {shown}.{known} all other words the demo needs a larger model.",
        )

    def close(self) -> bool:
        """Lets the worker go; what still waits is dropped.

        Returns:
            Whether it is idle. A computation that has begun cannot be stopped, and the end of the process waits for it.
        """
        self._worker.shutdown(wait=False, cancel_futures=True)
        return not self._computing.locked()

    def _encode(self, pixels: npt.NDArray[np.uint8], title: str) -> Session:
        start = time.perf_counter()
        encoded = self._predictor.encode(pixels)
        return Session(secrets.token_urlsafe(12), title, encoded, time.perf_counter() - start)

    def _run(self, task: Callable[[], Result]) -> Result:
        """In the worker; whoever waited too long gets an answer, though a task that has begun runs to its end."""

        def alone() -> Result:
            with self._computing:
                return task()

        future = self._worker.submit(alone)
        try:
            return future.result(self.limits.max_seconds)
        except (FutureTimeoutError, CancelledError):
            future.cancel()
            raise ValueError(
                f"this took longer than {self.limits.max_seconds:g} s and was given up; "
                "try again later, or with a smaller picture or fewer words"
            ) from None


def explain(error: Exception) -> str:
    """What a visitor is told of an error: the message of one that is theirs, nothing of the insides of others."""
    if isinstance(error, (ValueError, FileNotFoundError)):
        return one_line(error)
    logger.error("the demo failed on a request", exc_info=error)
    return "Something went wrong on the server; its log says what. Try another picture or other words."


def text_of(value: Any) -> str:
    """A value from a visitor as text; anything that is not text is nothing."""
    return value if isinstance(value, str) else ""

"""What the demo does with a picture and words: encode once, segment as often as the words change.

Nothing here knows a browser: `page` calls it with what a visitor sent, and holds each visitor's `Session`.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from san.demo.examples import Example
from san.demo.limits import Limits
from san.errors import one_line
from san.vocabulary import Vocabulary

if TYPE_CHECKING:
    from san.predictor import EncodedImage, Predictor
    from san.segmentation import Segmentation

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_SOURCES_OF_REMARKS = (logging.getLogger("san.clip.text"), logging.getLogger("san.clip.tokenizer"))
_MAX_CUTS = 1000


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


class DemoService:
    """The model behind the page, and the pictures on offer.

    Args:
        predictor: any model.
        examples: pictures on offer, the first of which every visitor starts with; at least one.
        limits: what visitors may ask for.
        known_words: all that the model's text side ever met, where that is few; words beyond get a remark.

    Raises:
        ValueError: there is no example.
    """

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Example],
        limits: Limits,
        *,
        known_words: frozenset[str] | None = None,
    ) -> None:
        if not examples:
            raise ValueError("the demo needs at least one example picture, got none")
        self.limits, self.examples = limits, tuple(examples)
        self._predictor, self._known_words = predictor, known_words
        # one thread: the model's own threads fill the machine, and calls do not mix
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="san-demo")
        self._computing = threading.Lock()
        self._examples: dict[int, Session] = {}
        self._cuts: dict[str, str] = {}  # text that CLIP does not read to its end -> the remark on it

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

    def segment(self, session: Session, words: Words) -> tuple[Segmentation, float]:
        """A picture under words.

        Returns:
            The result, and the seconds it took.

        Raises:
            ValueError: the words make no sense, or it took too long. The message is for the visitor.
        """
        vocabulary = words.vocabulary(self.limits)

        def task() -> tuple[Segmentation, float]:
            start = time.perf_counter()
            if words.label_set:
                self._predictor.model.text_classifier.embed(Vocabulary.label_set(words.label_set).classes)
            with self._discreet(vocabulary):
                result = self._predictor.segment(vocabulary, encoded=session.encoded, none_of_these=words.none_of_these)
            return result, time.perf_counter() - start

        return self._run(task)

    @contextlib.contextmanager
    def _discreet(self, vocabulary: Vocabulary) -> Iterator[None]:
        """A visitor's words reach neither the disk nor the log; what the log would have said becomes a remark."""
        cache, catcher = self._predictor.text_cache, _Catcher()
        for source in _SOURCES_OF_REMARKS:
            source.addFilter(catcher)
        self._predictor.text_cache = None
        try:
            yield
        finally:
            self._predictor.text_cache = cache
            for source in _SOURCES_OF_REMARKS:
                source.removeFilter(catcher)
        texts = _texts_of(vocabulary)
        for cut, message in catcher.cuts:
            self._cuts.update((text, message) for text in texts if text.startswith(cut))
        while len(self._cuts) > _MAX_CUTS:
            del self._cuts[next(iter(self._cuts))]

    def notes(self, result: Segmentation) -> list[str]:
        """Remarks on a result that its visitor should read."""
        texts = _texts_of(result.vocabulary)
        cuts = (self._cuts.get(text) for text in texts)  # which the worker may be adding to and dropping from
        notes = [cut for cut in cuts if cut is not None]
        if self._known_words is not None:
            strange = sorted({word.lower() for text in texts for word in text.split()} - self._known_words)
            shown = ", ".join(strange[:8]) + (" and others" if len(strange) > 8 else "")
            if strange:
                notes.append(
                    f"This small model has never met: {shown}. It knows {', '.join(sorted(self._known_words))}; for "
                    "all other words the demo needs a larger model."
                )
        return notes

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


class _Catcher(logging.Filter):
    """Takes the worker's messages out of the log, and keeps those on texts that were cut."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[tuple[str, str]] = []
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        self.cuts += [(name.rstrip("…"), remark) for name, remark in getattr(record, "cut", {}).items()]
        return False


def _texts_of(vocabulary: Vocabulary) -> list[str]:
    """The texts that a visitor wrote."""
    return [text for each in vocabulary.free for text in each.synonyms]


def explain(error: Exception) -> str:
    """What a visitor is told of an error: the message of one that is theirs, nothing of the insides of others."""
    if isinstance(error, (ValueError, FileNotFoundError)):
        return one_line(error)
    logger.error("the demo failed on a request", exc_info=error)
    return "Something went wrong on the server; its log says what. Try another picture or other words."


def text_of(value: Any) -> str:
    """A value from a visitor as text; anything that is not text is nothing."""
    return value if isinstance(value, str) else ""

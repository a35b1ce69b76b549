"""Connects requests with the engine: admission, decoding, time limits, kept images."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from san.serve.engine import Engine, EngineOutcome, EngineTask, apart, bytes_of
from san.serve.limits import ServeLimits
from san.serve.metrics import ServeMetrics
from san.web.decoding import Decoder
from san.web.store import TokenStore
from san.web.uploads import Receive, Refusal

if TYPE_CHECKING:
    from san.inference.predictor import EncodedImage, Predictor

Result = TypeVar("Result")
GONE = 499
"""Status of a request whose client has gone; nobody receives it."""
_MAX_RETRY_SECONDS = 60
_RENDERERS = 2


@dataclass(frozen=True, eq=False)
class KeptImage:
    """An encoded image, and the name of its file, which may be empty."""

    encoded: EncodedImage
    file_name: str


class ImageStore(Protocol):
    """What keeps images; a `san.web.store.TokenStore`, or one that several processes share."""

    def put(self, item: KeptImage) -> str:
        """Store an item, and return its name."""

    def get(self, token: object) -> KeptImage | None:
        """Return an item, or None."""

    def take(self, token: object) -> KeptImage | None:
        """Remove and return an item, or None."""

    def usage(self) -> tuple[int, int]:
        """Return the number of items and their bytes."""


class SegmentService:
    """The model, and what surrounds it.

    Args:
        predictor: any model.
        limits: limits of requests.
        keys: API keys, one of which every request must have; none: anyone may ask.
        store: keeps images; by default the memory of this process.

    Attributes:
        draining: whether the server ends.
        was_cut_off: whether a request was not finished at its end.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: ServeLimits | None = None,
        *,
        keys: Iterable[str] = (),
        store: ImageStore | None = None,
    ) -> None:
        self.limits, self.metrics = limits or ServeLimits(), ServeMetrics()
        self._keys = [_digest(key) for key in keys]
        self.store = memory_store(self.limits) if store is None else store
        self.metrics.observe_store(self.store.usage)
        self.decoder = Decoder(self.limits)
        self._renderers = ThreadPoolExecutor(_RENDERERS, thread_name_prefix="san-answers")
        self._admitted, self.draining, self.was_cut_off = 0, False, False
        self.engine = Engine(predictor, self.limits, self.metrics)

    def knows(self, key: str) -> bool:
        """Whether a request with this key is answered; takes the same time for every wrong key."""
        given = _digest(key)
        matches = [hmac.compare_digest(given, each) for each in self._keys]
        return not matches or any(matches)

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    @contextlib.contextmanager
    def admission(self) -> Iterator[None]:
        """Count a request for the body of the `with`.

        Raises:
            Refusal: 429, there are too many.
        """
        if self._admitted >= self.limits.max_waiting:
            raise Refusal(
                429,
                f"{self._admitted} requests wait already, the limit here is {self.limits.max_waiting}; send it again "
                "after the seconds of the header Retry-After",
                {"Retry-After": str(self._retry_seconds())},
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def decode(self, content: bytes) -> npt.NDArray[np.uint8]:
        """Return a picture's pixels, (H, W, 3) uint8 RGB.

        Raises:
            Refusal: 422, it cannot be used.
        """
        try:
            return await self.decoder.read(content)
        except ValueError as error:
            raise Refusal(422, str(error)) from None

    async def compute(self, task: EngineTask, receive: Receive) -> EngineOutcome:
        """Run a task in the engine.

        Args:
            task: what to compute.
            receive: of its request, whose body was read; reports that the client has gone.

        Raises:
            Refusal: 503, it took too long, or `GONE`. It is then not computed, unless it runs already.
            Exception: of the model; input that is not valid was refused before.
        """
        future = self.engine.submit(task)
        computed, gone = asyncio.wrap_future(future), asyncio.ensure_future(_disconnected(receive))
        try:
            awaited: set[asyncio.Future[Any]] = {computed, gone}
            await asyncio.wait(awaited, timeout=self.limits.max_seconds, return_when=asyncio.FIRST_COMPLETED)
            if computed.done():
                return computed.result()
            if gone.done():
                raise Refusal(GONE, "the client has gone")
            raise Refusal(
                503,
                f"this took longer than {self.limits.max_seconds:g} s; send it again later, or with a smaller picture "
                "or fewer words",
                {"Retry-After": str(self._retry_seconds())},
            )
        finally:
            computed.cancel()  # and with it the future
            gone.cancel()

    async def keep(self, encoded: EncodedImage, file_name: str) -> str:
        """Keep an image, and return its handle."""
        return await self._aside(lambda: self.store.put(KeptImage(apart(encoded), file_name)))

    async def kept(self, handle: str) -> KeptImage:
        """Return a kept image.

        Raises:
            Refusal: 404, there is none.
        """
        found = await self._aside(lambda: self.store.get(handle))
        if found is None:
            raise self.unknown_image()
        return found

    async def drop(self, handle: str) -> None:
        """Forget a kept image.

        Raises:
            Refusal: 404, there is none.
        """
        if await self._aside(lambda: self.store.take(handle)) is None:
            raise self.unknown_image()

    def unknown_image(self) -> Refusal:
        """Return the answer for an unknown handle, which it does not repeat."""
        return Refusal(
            404,
            "there is no image with this image_id: it was dropped, is of another server, or never existed; images are "
            f"kept for {self.limits.keep_minutes:g} minutes after their last use; send the picture again",
        )

    async def render(self, write: Callable[[], Result]) -> Result:
        """Run a function that writes an answer, in a thread."""
        return await self._aside(write)

    async def start(self) -> None:
        """Start the decoding process."""
        await self.decoder.start()

    async def stop(self) -> None:
        """End the decoding process."""
        await self.decoder.end()

    def close(self, timeout: float | None = None) -> bool:
        """End the threads; returns whether they ended within the timeout, in seconds."""
        self._renderers.shutdown(wait=False, cancel_futures=True)
        return self.engine.close(timeout)

    def _retry_seconds(self) -> int:
        expected = math.ceil(self._admitted * self.engine.seconds_per_task)
        return min(max(expected, 1), _MAX_RETRY_SECONDS)

    async def _aside(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._renderers, function)


def memory_store(limits: ServeLimits) -> TokenStore[KeptImage]:
    """Return a store in the memory of this process."""
    return TokenStore(limits.keep_bytes, lambda kept: bytes_of(kept.encoded), keep_seconds=60 * limits.keep_minutes)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

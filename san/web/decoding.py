"""Decodes pictures in a separate process that can be killed, so that one file cannot block other requests.

A picture within all limits of size can take a minute to decode (a progressive JPEG of many scans), and the decoders
cannot be interrupted. The process imports only NumPy and Pillow, reads pictures from its standard input, and is
replaced after it was killed. It returns only pixels and text, so an exploited decoder cannot do more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from san.io.errors import one_line
from san.io.image_files import read_image
from san.web.limits import ConcurrencyLimit, InputLimits

_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path[0] = sys.argv[1]; from san.web.decoding import serve; serve(sys.argv[2])"
_START_SECONDS = 60.0
_LENGTH_BYTES = 8


class Decoder:
    """Starts and calls the decoding process. Senders take turns.

    Args:
        limits: sizes, and the time that a picture may take.
    """

    def __init__(self, limits: InputLimits) -> None:
        self._limits, self._turns = limits, ConcurrencyLimit(1, 1)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process, so that the first picture does not wait for it."""
        self._process = await self._start()

    async def end(self) -> None:
        """Kill the process, also while it decodes; the next picture starts a new one."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            await _kill(process)

    async def read(self, content: bytes, visitor: str = "") -> npt.NDArray[np.uint8]:
        """Return the pixels of a picture, see `san.io.image_files.read_image`.

        Args:
            content: the uploaded file.
            visitor: the sender; at most one picture of each waits.

        Raises:
            ValueError: it is not a picture, damaged, too large, or takes too long. The message is for the visitor.
        """
        async with self._turns.take(visitor):
            answer: npt.NDArray[np.uint8] | str | None = None
            try:
                if self._process is None or self._process.returncode is not None:
                    self._process = await self._start()
                answer = await asyncio.wait_for(_exchange(self._process, content), self._limits.max_decode_seconds)
            except asyncio.TimeoutError:
                raise ValueError(
                    f"the picture takes longer than {self._limits.max_decode_seconds:g} s to decode; save it again as "
                    "PNG, or as JPEG that is not progressive"
                ) from None
            except (EOFError, ConnectionError):  # it ended, perhaps out of memory
                raise ValueError("the picture cannot be decoded; save it again as PNG or JPEG") from None
            finally:
                if answer is None:  # also if the server ends
                    await self.end()
        if isinstance(answer, str):
            raise ValueError(answer)
        return answer

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _START,
            str(_ROOT),
            json.dumps({each.name: getattr(self._limits, each.name) for each in fields(InputLimits)}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**20,
            start_new_session=True,  # Ctrl+C goes to the server, which ends this process
        )
        assert process.stdout is not None, "is a pipe"
        try:
            await asyncio.wait_for(process.stdout.readuntil(b"\n"), _START_SECONDS)
        except BaseException:
            await _kill(process)
            raise
        return process


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    assert process.stdout is not None, "is a pipe"
    with contextlib.suppress(RuntimeError):  # another coroutine reads it
        await process.stdout.read()  # of a pipe that is not read, asyncio never sees the end, and waits for it
    await process.wait()


async def _exchange(process: asyncio.subprocess.Process, content: bytes) -> npt.NDArray[np.uint8] | str:
    """Return the pixels, or the error."""
    assert process.stdin is not None, "is a pipe"
    assert process.stdout is not None, "is a pipe"
    process.stdin.write(len(content).to_bytes(_LENGTH_BYTES, "little"))
    process.stdin.write(content)
    await process.stdin.drain()
    answer = json.loads(await process.stdout.readuntil(b"\n"))
    if "error" in answer:
        return str(answer["error"])
    shape = (int(answer["height"]), int(answer["width"]), 3)
    return np.frombuffer(await process.stdout.readexactly(math.prod(shape)), np.uint8).reshape(shape)


def serve(limits: str) -> None:
    """Run the process: read a length and a file, write a line of JSON and the pixels, until the input ends.

    Args:
        limits: the fields of `InputLimits`, as JSON.
    """
    bounds, source = InputLimits(**json.loads(limits)).of_pictures, sys.stdin.buffer
    warnings.simplefilter("ignore")  # Pillow's warnings about odd files and its own limit
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not part of the answer

    def reply(head: dict[str, object], pixels: bytes = b"") -> None:
        sink.write(json.dumps(head).encode() + b"\n" + pixels)
        sink.flush()

    reply({"ready": True})
    while length := source.read(_LENGTH_BYTES):
        try:
            content = source.read(int.from_bytes(length, "little"))
            pixels = read_image(content, bounds, source="the picture")
        except ValueError as error:
            reply({"error": one_line(error)})
        else:
            reply({"height": pixels.shape[0], "width": pixels.shape[1]}, pixels.tobytes())

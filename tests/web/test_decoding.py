"""The process that decodes pictures: ended where one takes too long, replaced, and light."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from san.web import decoding
from san.web.decoding import Decoder
from san.web.limits import InputLimits

LIMITS = InputLimits(max_bytes=1_000_000, max_pixels=8_000_000, max_decode_seconds=2.0)


def png(width=40, height=30):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def slow_jpeg():
    """Small, within all limits of size and scans, and two seconds' work: each of its scans refines every pixel."""
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 6000), (120, 90, 60)).save(buffer, "JPEG", progressive=True)
    plain = buffer.getvalue()
    last_scan = plain[plain.rindex(b"\xff\xda") : -2]
    return plain[:-2] + 85 * last_scan + plain[-2:]


def decoded(*steps, limits=LIMITS):
    """The results of a decoder for each step: a file's content, or an action on its process."""

    async def run():
        decoder, results = Decoder(limits), []
        try:
            for step in steps:
                try:
                    results.append(await (step(decoder._process) if callable(step) else decoder.read(step)))
                except ValueError as error:
                    results.append(str(error))
        finally:
            await decoder.end()
        return results

    return asyncio.run(run())


def test_pixels_and_messages_come_back():
    async def process_id(process):
        return process.pid

    pixels, message, first, again, second = decoded(png(), b"hello", process_id, png(50, 20), process_id)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(png()))))
    assert "cannot be read (it is not PNG, JPEG" in message
    assert again.shape == (20, 50, 3)
    assert first == second, "one process for all"


def test_a_picture_that_takes_too_long_is_given_up():
    content, start = slow_jpeg(), time.monotonic()
    assert len(content) < LIMITS.max_bytes
    limits = dataclasses.replace(LIMITS, max_pixels=36_000_000, max_decode_seconds=0.5)
    message, pixels = decoded(content, png(), limits=limits)
    assert "takes longer than 0.5 s to decode; save it again as PNG" in message
    assert pixels.shape == (30, 40, 3), "the next picture has a process of its own"
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("waits", [True, False], ids=["between pictures", "as a picture comes"])
def test_a_process_that_was_killed_is_replaced(waits):
    async def kill(process):
        process.kill()
        if waits:
            await process.wait()

    first, _, next_one, last = decoded(png(), kill, png(), png())
    assert first.shape == last.shape == (30, 40, 3)
    assert next_one.shape == (30, 40, 3) if waits else "cannot be decoded" in next_one


@pytest.mark.parametrize("heavy", ["torch", "gradio", "scipy"])
def test_the_process_is_light(heavy):
    code = f"import sys; import san.web.decoding; assert {heavy!r} not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reader_that_leaves_amid_an_answer_holds_nobody(monkeypatch):
    """The rest of the pixels is in the pipe, more than its buffers hold; the next picture is decoded all the same."""

    async def leave() -> tuple[int, ...]:
        decoder, reading = Decoder(LIMITS), asyncio.Event()

        async def half(process, content):
            process.stdin.write(len(content).to_bytes(8, "little") + content)
            await process.stdout.readuntil(b"\n")
            reading.set()
            await asyncio.sleep(60)

        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_exchange", half)
            leaving = asyncio.ensure_future(decoder.read(png(2000, 1500)))
            await asyncio.wait_for(reading.wait(), 60)
            await asyncio.sleep(0.5)
            leaving.cancel()
        pixels = await asyncio.wait_for(decoder.read(png()), 20)
        await asyncio.wait_for(decoder.end(), 60)
        return pixels.shape

    assert asyncio.run(leave()) == (30, 40, 3)

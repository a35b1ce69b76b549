"""Small videos, made by PyAV."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATE = 12


def moving_square(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """A blue bar that moves over red by a pixel per frame."""
    frames = []
    for index in range(count):
        frame = np.full((*size, 3), (200, 30, 30), np.uint8)
        frame[:, index % size[1] : index % size[1] + 8] = (20, 20, 220)
        frames.append(frame)
    return frames


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    times: list[int] | None = None,
    sound: str = "",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
) -> Path:
    """A video of frames at times in units of 1 / RATE seconds; `sound` is a codec of a tone of a second."""
    av = pytest.importorskip("av")
    frames = list(frames)
    front = {"movflags": "faststart"} if path.suffix == ".mp4" else {}  # the table in front of the pictures
    with av.open(str(path), "w", options=front) as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        tone = None
        if sound:
            tone = container.add_stream(sound, rate=16000)
            tone.layout = "mono"
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            wave = (np.sin(np.arange(16000) / 8) * 8000).astype(np.int16)[None]
            for start in range(0, wave.shape[1], 1024):
                part = np.ascontiguousarray(wave[:, start : start + 1024])
                heard = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = 16000, start, Fraction(1, 16000)
                container.mux(tone.encode(heard))
            container.mux(tone.encode(None))
    return path


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """Times and content of a file's packets of sound or pictures."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        streams = getattr(container.streams, kind)
        found: list[Any] = [each for each in container.demux(*streams) if each.dts is not None] if streams else []
        return [(float(each.pts * each.time_base), bytes(each)) for each in found]


def damaged(path: Path) -> Path:
    """The video with noise in a third of its pictures' bytes, in the middle."""
    content = bytearray(path.read_bytes())
    start, stop = content.index(b"mdat"), len(content)
    middle = start + (stop - start) // 3
    noise = np.random.default_rng(0).integers(0, 256, (stop - start) // 3, np.uint8)
    content[middle : middle + len(noise)] = noise.tobytes()
    target = path.with_stem(path.stem + "_damaged")
    target.write_bytes(content)
    return target

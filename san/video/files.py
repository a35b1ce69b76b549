"""Reads and writes video files: frames are decoded in the background, and sound is copied.

Only this file imports PyAV, the binding of FFmpeg. (H, W) upright frame.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from san.io.errors import require_extra
from san.io.files import replacing
from san.io.image_files import MAX_PIXELS

Item = TypeVar("Item")

ENCODERS = ("libx264", "libopenh264")
MP4_SOUND = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")
"""Codecs of sound that MP4 supports; other sound is copied into a Matroska file."""

_AHEAD = 16  # frames decoded in advance
_BT709 = 1  # FFmpeg's number of the colour space, primaries and transfer of HD video
_LIMITED = 1  # FFmpeg's number of the range 16..235
_NO_OTHER_FILES = {"protocol_whitelist": "none"}  # a disguised playlist cannot open files or URLs


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        size: (H, W) in pixels, upright.
        rate: frames per second on average.
        time_base: the unit of `VideoFrame.time`, in seconds.
        num_frames: approximate number of frames; None if unknown.
        sound: codecs of the audio streams.
        pixel_aspect: width over height of a pixel.
    """

    size: tuple[int, int]
    rate: Fraction
    time_base: Fraction
    num_frames: int | None
    sound: tuple[str, ...]
    pixel_aspect: Fraction = Fraction(1)

    @property
    def ending(self) -> str:
        """Ending of a file that supports this video's sound."""
        return ".mp4" if set(self.sound) <= set(MP4_SOUND) else ".mkv"


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame: pixels (H, W, 3) uint8 RGB, and its time in units of `VideoInfo.time_base`."""

    pixels: npt.NDArray[np.uint8]
    time: int


class VideoReader:
    """Reads the main video stream of a file, frame by frame.

    Packets that cannot be decoded are skipped. Reading ends at a read error, or when the size of the frames changes.

    Args:
        path: the file, of any format that FFmpeg reads.
        max_pixels: larger frames are refused; None takes any.

    Attributes:
        info: properties of the file.
        problems: what could not be read, in words; complete once all frames are read.

    Raises:
        MissingExtraError: PyAV is not installed.
        ValueError: it is not a video, has no frame, or its frames are too large.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, max_pixels: int | None = MAX_PIXELS) -> None:
        self.path = Path(path)
        self.problems: list[str] = []
        self._av = _import_av()
        self._file = open(path, "rb")  # noqa: SIM115, closed by close
        try:
            self._container = _open_container(self._av, self._file, self.path)
            self._stream = self._video_stream(max_pixels)
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            if self._first is None:
                reason = f" ({self.problems[0]})" if self.problems else ""
                raise ValueError(f"{str(path)!r} holds no video frame that can be read{reason}; give another video")
            self.info = self._describe(self._first)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if hasattr(self, "_container"):
            self._container.close()
        self._file.close()

    def frames(self) -> Generator[VideoFrame, None, None]:
        """Yield the frames in order, decoded ahead in a thread; may be called once."""
        return in_background(self._upright(), _AHEAD)

    def _upright(self) -> Iterator[VideoFrame]:
        last, number = None, 0
        frame, self._first = self._first, None
        step = max(1, round(1 / (self.info.rate * self.info.time_base)))
        while frame is not None:
            if self._has_changed(frame, number):
                return
            time = frame.pts if frame.pts is not None else (0 if last is None else last + step)
            time = time if last is None else max(time, last + 1)
            pixels = frame.to_ndarray(format="rgb24")
            yield VideoFrame(np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame))), time)
            last, number = time, number + 1
            frame = next(self._decoded, None)
        if self._num_packets < self._stream.frames:
            self.problems.append(
                f"the file ends after {self._num_packets} of the {self._stream.frames} frames that it says it has"
            )
        elif not self._stream.frames and (rest := self._declared_end() - (last or 0) * float(self.info.time_base)) > 1:
            self.problems.append(f"the file ends {rest:.2f} s before the end that it says it has")

    def _declared_end(self) -> float:
        """Return the end of the video in seconds, from a file that does not count frames; 0 if unknown."""
        found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", self._stream.metadata.get("DURATION", ""))  # Matroska
        if found:
            return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
        alone = len(self._container.streams) == 1 and self._container.duration
        return self._container.duration / self._av.time_base if alone else 0.0

    def _has_changed(self, frame: Any, number: int) -> bool:
        """Whether a frame has another size than the first; records it as a problem."""
        height, width = _upright_size(frame)
        if (height, width) == self.info.size:
            return False
        at = "" if frame.time is None else f" ({frame.time:.2f} s)"
        self.problems.append(
            f"frame {number}{at} has {width} x {height} pixels, those before it {self.info.size[1]} x "
            f"{self.info.size[0]}; the rest is left out: cut the video into parts of one size"
        )
        return True

    def _decode(self) -> Iterator[Any]:
        """Yield PyAV's frames; records what cannot be decoded."""
        self._num_packets = 0
        missing = _ProblemCount("packets that cannot be decoded and are left out")
        damaged = _ProblemCount("damaged frames")
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.FFmpegError, OSError) as error:
                self.problems.append(f"nothing can be read after {self._num_packets} packets: {_reason(error)}")
                break
            if packet is None:
                break
            self._num_packets += packet.size > 0
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                missing.add(None if packet.pts is None else float(packet.pts * packet.time_base))
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damaged.add(frame.time)
                yield frame
        self.problems += [each.text() for each in (missing, damaged) if each.count]

    def _video_stream(self, max_pixels: int | None) -> Any:
        stream = self._container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError(f"{str(self.path)!r} holds no video; give a file with a video stream")
        stream.thread_type = "AUTO"
        height, width = stream.codec_context.height, stream.codec_context.width
        if max_pixels is not None and height * width > max_pixels:
            raise ValueError(
                f"the frames of {str(self.path)!r} have {width} x {height} pixels, at most {max_pixels:,} are read; "
                "make it smaller"
            )
        return stream

    def _describe(self, first: Any) -> VideoInfo:
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        time_base = stream.time_base or 1 / rate
        num_frames = stream.frames or None
        if num_frames is None and stream.duration:
            num_frames = round(stream.duration * time_base * rate)
        elif num_frames is None and self._container.duration:
            num_frames = round(Fraction(self._container.duration, self._av.time_base) * rate)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return VideoInfo(
            size=_upright_size(first),
            rate=rate,
            time_base=time_base,
            num_frames=num_frames,
            sound=tuple(each.codec_context.codec.canonical_name for each in _sound_streams(self._container)),
            pixel_aspect=1 / aspect if _quarter_turns(first) % 2 else aspect,
        )


class VideoWriter:
    """Writes an H.264 file with a copy of the sound of another file.

    Leaving the context finishes the file, also after an error, so what was written can be played. A file without a
    frame is not created. Odd heights and widths are padded to even ones, as H.264 requires.

    Args:
        path: the file, ending in `VideoInfo.ending`; an existing one is replaced.
        info: properties of the source.
        sound_of: the file with the sound, which is copied up to the end of the last frame.

    Attributes:
        problems: sound that could not be copied, in words; complete after the context.
    """

    def __init__(self, path: Path, info: VideoInfo, sound_of: Path) -> None:
        self.problems: list[str] = []
        self._av = _import_av()
        self._path, self._info, self._sound_of = path, info, sound_of
        self._num_frames, self._end = 0, Fraction(0)
        self._is_whole = False

    def __enter__(self) -> VideoWriter:
        self._stack = contextlib.ExitStack()
        try:
            partial = self._stack.enter_context(replacing(self._path))
            self._container = self._stack.enter_context(self._av.open(str(partial), "w"))
            self._stream = self._video_stream()
            self._sound = self._copied_sound()
            self._stack.callback(self._sound.close)
            self._next_sound = self._step_sound()  # creates the streams before the first frame
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._num_frames:
            missing = error or ValueError("no frame")
            with contextlib.suppress(Exception):
                self._stack.__exit__(type(missing), missing, None)
            return
        with self._stack:
            self._container.mux(self._stream.encode(None))
            self._copy_sound(None if self._is_whole else self._end)

    def write(self, frame: VideoFrame) -> None:
        """Write the next frame; times must increase."""
        info = self._info
        height, width = frame.pixels.shape[:2]
        even = np.pad(frame.pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
        picture.pts, picture.time_base = frame.time, info.time_base
        self._container.mux(self._stream.encode(picture))
        self._num_frames += 1
        self._end = frame.time * info.time_base + 1 / info.rate
        self._copy_sound(self._end)

    def copy_all_sound(self) -> None:
        """Copy the sound to its end when the context is left, because all frames were written."""
        self._is_whole = True

    def _video_stream(self) -> Any:
        for name in ENCODERS:
            with contextlib.suppress(self._av.FFmpegError, ValueError):
                stream = self._container.add_stream(name, rate=self._info.rate)
                break
        else:
            raise ValueError(f"this PyAV has no H.264 encoder ({', '.join(ENCODERS)}); install it with pip install av")
        height, width = self._info.size
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._info.time_base
        context.sample_aspect_ratio = self._info.pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if name == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        return stream

    def _copied_sound(self) -> Generator[Fraction, None, None]:
        """Copy packet by packet; yields the time of each packet before it is copied, and 0 at first."""
        if not self._info.sound:
            return
        with open(self._sound_of, "rb") as file, _open_container(self._av, file, self._sound_of) as source:
            streams = {each.index: self._container.add_stream_from_template(each) for each in _sound_streams(source)}
            yield Fraction(0)
            for packet in source.demux(*_sound_streams(source)):
                if packet.dts is None:
                    continue  # ends a stream
                yield packet.dts * packet.time_base
                packet.stream = streams[packet.stream.index]
                self._container.mux(packet)

    def _copy_sound(self, until: Fraction | None) -> None:
        """Copy the sound before a time, or all."""
        while self._next_sound is not None and (until is None or self._next_sound < until):
            self._next_sound = self._step_sound()

    def _step_sound(self) -> Fraction | None:
        """Copy the next packet, and return the time of the one after it."""
        try:
            return next(self._sound, None)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            self.problems.append(f"the sound cannot be copied further: {_reason(error)}")
            return None


class _ProblemCount:
    """Counts problems, and records the times of the first and the last."""

    def __init__(self, what: str) -> None:
        self.what, self.count, self.times = what, 0, list[float]()

    def add(self, time: float | None) -> None:
        self.count += 1
        if time is not None:
            self.times = [min([time, *self.times]), max([time, *self.times])]

    def text(self) -> str:
        where = f", from {self.times[0]:.2f} s to {self.times[1]:.2f} s" if self.times else ""
        return f"{self.what}: {self.count}{where}"


def in_background(items: Iterator[Item], ahead: int) -> Generator[Item, None, None]:
    """Run an iterator in a thread, at most `ahead` items in advance."""
    end: Any = object()
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(1, thread_name_prefix="san-decode")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting = deque(pool.submit(next, items, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item


def _import_av() -> Any:
    require_extra("video", "reading and writing videos", "av")
    return importlib.import_module("av")


def _open_container(av: Any, file: Any, path: Path) -> Any:
    try:
        return av.open(file, options=_NO_OTHER_FILES)
    except (av.FFmpegError, ValueError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a video ({_reason(error)}); give a file that FFmpeg reads"
        ) from error


def _sound_streams(container: Any) -> list[Any]:
    """Return the audio streams whose codec FFmpeg supports."""
    return [each for each in container.streams.audio if each.codec_context is not None]


def _quarter_turns(frame: Any) -> int:
    """Return the number of counter-clockwise quarter turns that make a frame upright."""
    return int(round(frame.rotation / 90) % 4)


def _upright_size(frame: Any) -> tuple[int, int]:
    """Return (H, W) of the upright frame."""
    size = (frame.height, frame.width)
    return size[::-1] if _quarter_turns(frame) % 2 else size


def _reason(error: BaseException) -> str:
    """Return an error's text, without FFmpeg's error number."""
    return getattr(error, "strerror", None) or str(error)

"""Writes the results of a video in the background: an overlay video, label maps, and a record.

(H, W) frame.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from san.inference.segmentation import Segmentation
from san.io.files import replacing, write_whole
from san.video.files import VideoFrame, VideoInfo, VideoWriter
from san.visualize import overlay
from san.visualize.palette import palette
from san.vocabulary.vocabulary import Vocabulary


class VideoResults:
    """Writes results frame by frame; threads draw the pictures, and one more encodes them.

    Leaving the context finishes the files, also after an error, with the results so far.

    Args:
        stem: folder and beginning of the file names.
        formats: some of `san.io.files.VIDEO_FORMATS`.
        source: the video file.
        info: its properties.
        vocabulary: the classes.
        workers: number of threads that draw.
        tags: write names of classes into the overlay.
        settings: plain data about how the results were made, for the record.

    Attributes:
        num_frames: number of frames added so far.
        problems: what could not be read or written, in words; the record names them.
    """

    def __init__(
        self,
        stem: Path,
        formats: tuple[str, ...],
        source: Path,
        info: VideoInfo,
        vocabulary: Vocabulary,
        *,
        workers: int = 2,
        tags: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_frames = 0
        self.problems: list[str] = []
        self._settings = dict(settings or {})
        self._stem, self._formats, self._source, self._info = stem, formats, source, info
        self._vocabulary, self._workers, self._tags = vocabulary, workers, tags
        self._counts = np.zeros(len(vocabulary) + 1, np.int64)  # pixels per class, and without a class
        self._waiting: deque[Future[None]] = deque()
        self._writer: VideoWriter | None = None

    def __enter__(self) -> VideoResults:
        self._stack = ExitStack()
        with ExitStack() as stack:
            if "labels" in self._formats:
                self._label_file(0).parent.mkdir(parents=True, exist_ok=True)
                for old in self._label_file(0).parent.iterdir():
                    if re.fullmatch(r"\d{6,}\.png", old.name):  # perhaps from an earlier, longer video
                        old.unlink()
            if "overlay" in self._formats:
                target = self._stem.with_name(f"{self._stem.name}_overlay{self._info.ending}")
                self._writer = stack.enter_context(VideoWriter(target, self._info, self._source))
            self._encoder = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="san-encode"))
            self._painters = stack.enter_context(ThreadPoolExecutor(self._workers, thread_name_prefix="san-paint"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().result()
            if self._writer is not None and error is None and not self.problems:
                self._writer.copy_all_sound()
        except BaseException as late:
            self._stack.__exit__(type(late), late, late.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)
        if self._writer is not None:
            self.problems += self._writer.problems
        if "json" in self._formats and self.num_frames:
            self._write_record([*self.problems, *([str(error) or type(error).__name__] if error else [])])

    def report(self, problems: Iterable[str]) -> None:
        """Add problems, which the record lists."""
        self.problems += problems

    def add(self, result: Segmentation, time: int) -> None:
        """Add the result and the time of the next frame.

        Raises:
            OSError: an earlier one could not be written.
        """
        while len(self._waiting) >= 4 * self._workers or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._counts += np.bincount(result.labels.ravel() % len(self._counts), minlength=len(self._counts))
        painted = self._painters.submit(self._paint, result, self.num_frames)
        self._waiting.append(self._encoder.submit(self._encode, painted, time))
        self.num_frames += 1

    def _paint(self, result: Segmentation, number: int) -> npt.NDArray[np.uint8] | None:
        if "labels" in self._formats:
            with replacing(self._label_file(number)) as file:
                result.label_image().save(file, "PNG")
        if self._writer is None:
            return None
        return overlay(result.image, result.labels, result.names, tags=self._tags)

    def _encode(self, painted: Future[npt.NDArray[np.uint8] | None], time: int) -> None:
        picture = painted.result()
        if self._writer is not None and picture is not None:
            self._writer.write(VideoFrame(picture, time))

    def _label_file(self, number: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}_labels") / f"{number:06d}.png"

    def _write_record(self, problems: list[str]) -> None:
        height, width = self._info.size
        shares = (self._counts / max(1, self._counts.sum())).tolist()
        colors = palette(self._vocabulary.names).tolist()
        record = {
            "video": str(self._source),
            "height": height,
            "width": width,
            "frames": self.num_frames,
            "frames_per_second": float(Fraction(self._info.rate)),
            "settings": self._settings,
            "problems": problems,
            "classes": [
                {"index": index, "name": each.name, "color": colors[index], "share": shares[index]}
                for index, each in enumerate(self._vocabulary.classes)
            ],
            "none_share": shares[-1],
        }
        path = self._stem.with_name(f"{self._stem.name}.json")
        write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

"""YouTube-VIS 2019 and 2021: frames, label maps and instance masks of annotated videos, and their evaluation.

T frames of a video, (H, W) their size. Layout below the data sets' root: ``ytvis_2019/train.json`` beside
``ytvis_2019/train/JPEGImages/<video>/00000.jpg``; the same for ``valid``, ``test`` and 2021.
Only the annotations of the training splits are public.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from san.data.benchmarks import YTVIS_SPLITS
from san.data.subset import evenly_spread
from san.evaluation.per_image import decode_entries
from san.evaluation.video import VideoScores
from san.io.errors import excerpt
from san.io.files import check_file_size
from san.io.image_files import read_image
from san.video.predictor import VideoPredictor

_MAX_BYTES = 2_000_000_000  # the annotations of a training split have some 100 MB


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video.

    Attributes:
        name: name of its folder.
        files: files of its frames.
        size: (H, W).
        instances: its annotations, as in the file; None if it has none.
    """

    name: str
    files: tuple[Path, ...]
    size: tuple[int, int]
    instances: tuple[dict[str, Any], ...] | None

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The frames, (H, W, 3) uint8 RGB each."""
        return (read_image(file) for file in self.files)


class YouTubeVIS:
    """A split of YouTube-VIS.

    Args:
        annotations: its JSON file.
        images: the folder of its videos.

    Attributes:
        names: class names, in the order of the category ids, with spaces instead of underscores.
        videos: in the order of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another layout.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        self.path = Path(annotations)
        if not self.path.is_file():
            raise FileNotFoundError(f"no annotations at {str(annotations)!r}; see docs/video.md for the layout")
        check_file_size(self.path, _MAX_BYTES)
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            categories = sorted(content["categories"], key=lambda each: int(each["id"]))
            self.names = tuple(str(each["name"]).replace("_", " ") for each in categories)
            self._classes = {int(each["id"]): index for index, each in enumerate(categories)}
            self.videos = tuple(_videos(content, Path(images)))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{str(annotations)!r} is not a file of YouTube-VIS ({type(error).__name__}: {excerpt(str(error))}); "
                "it holds videos, categories and annotations"
            ) from error

    @classmethod
    def registered(cls, name: str, root: str | Path) -> YouTubeVIS:
        """Load a split of `YTVIS_SPLITS` below the data sets' root.

        Raises:
            ValueError, FileNotFoundError: the name is unknown, or see `YouTubeVIS`.
        """
        if name not in YTVIS_SPLITS:
            raise ValueError(f"unknown set of videos {excerpt(name)}; there are {', '.join(YTVIS_SPLITS)}")
        annotations, images = YTVIS_SPLITS[name]
        if not (Path(root) / annotations).is_file():
            here = [other for other, (file, _) in YTVIS_SPLITS.items() if (Path(root) / file).is_file()]
            raise FileNotFoundError(
                f"{name} is not there: no annotations at {str(Path(root) / annotations)!r} (of the sets of videos, "
                f"{', '.join(here) or 'none'} is there); see docs/video.md for the layout"
            )
        return cls(Path(root) / annotations, Path(root) / images)

    def label_maps(self, video: AnnotatedVideo) -> npt.NDArray[np.int32]:
        """Return the class of every pixel, (T, H, W); −1 without an instance. Later instances cover earlier ones.

        Raises:
            ValueError: the video has no annotations, or damaged ones.
        """
        return np.stack([self._decoded(video, frame, _instances(video)) for frame in range(len(video.files))])

    def instance_masks(self, video: AnnotatedVideo, frame: int) -> dict[int, npt.NDArray[np.bool_]]:
        """Return the masks (H, W) of the instances in one frame, by instance id.

        Raises:
            ValueError: the video has no annotations, or damaged ones.
        """
        return {
            int(each["id"]): self._decoded(video, frame, [each]) >= 0
            for each in _instances(video)
            if each["segmentations"][frame] is not None
        }

    def _decoded(self, video: AnnotatedVideo, frame: int, instances: Sequence[dict[str, Any]]) -> npt.NDArray[np.int32]:
        try:
            entries = [
                {"category_id": each["category_id"], "segmentation": each["segmentations"][frame]}
                for each in instances
                if each["segmentations"][frame] is not None
            ]
            return decode_entries(entries, video.size, self._classes)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"the annotations of frame {frame} of video {video.name!r} in {str(self.path)!r} are damaged ({error})"
            ) from error


def evaluate_videos(predictor: VideoPredictor, dataset: YouTubeVIS, *, limit: int | None = None) -> dict[str, float]:
    """Return J, F, their mean and mIoU in percent, with the data set's classes as the vocabulary; see `VideoScores`.

    Args:
        predictor: the video predictor.
        dataset: a split with annotations.
        limit: maximum number of videos, evenly spread; None for all.

    Raises:
        ValueError: a video has no annotations, or frames of several sizes.
    """
    scores = VideoScores(len(dataset.names))
    for video in evenly_spread(dataset.videos, limit or 0):
        score_video(predictor, dataset, video, scores)
    return scores.metrics()


def score_video(predictor: VideoPredictor, dataset: YouTubeVIS, video: AnnotatedVideo, scores: VideoScores) -> None:
    """Adds one video to scores; adds nothing where it raises.

    Raises:
        ValueError, OSError: the video has no annotations or damaged ones, or frames that are missing, damaged or of
            another size.
    """
    truth = dataset.label_maps(video)
    found = [result.labels for result in predictor.segment(video.frames(), list(dataset.names))]
    scores.update(np.stack(found), truth)


def _videos(content: dict[str, Any], images: Path) -> Iterator[AnnotatedVideo]:
    annotations = content.get("annotations")
    instances: dict[int, list[dict[str, Any]]] = {}
    for each in annotations or ():
        instances.setdefault(int(each["video_id"]), []).append(each)
    for video in content["videos"]:
        files = tuple(images / str(name) for name in video["file_names"])
        if not files or any(".." in file.parts or not file.is_relative_to(images) for file in files):
            raise ValueError(f"video {video['id']} has no frames, or some outside of the folder of images")
        own = None if annotations is None else tuple(instances.get(int(video["id"]), ()))
        yield AnnotatedVideo(files[0].parent.name, files, (int(video["height"]), int(video["width"])), own)


def _instances(video: AnnotatedVideo) -> tuple[dict[str, Any], ...]:
    if video.instances is None:
        raise ValueError(f"video {video.name!r} has no annotations; only those of the training splits are public")
    return video.instances

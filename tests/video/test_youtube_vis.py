"""YouTube-VIS: the layout of its files, instances and classes per frame, and the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.evaluation.predictions import rle_entries
from san.inference.predictor import Predictor
from san.shapes.clips import MotionStyle, clip_at, render_clip
from san.shapes.world import NAMES
from san.video.predictor import VideoOptions, VideoPredictor
from san.video.youtube_vis import YTVIS_SPLITS, YouTubeVIS, evaluate_videos

SIZE = (4, 6)


def runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as plain run lengths, down the columns."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def square(left: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[1:3, left : left + 2] = True
    return mask


def content() -> dict[str, Any]:
    """Two videos; in the first a seal moves, and a panda covers it in frame 1 and is gone in frame 2."""
    compressed = rle_entries(np.where(square(2), 5, -1), "frame")
    code = next(each["segmentation"] for each in compressed if each["category_id"] == 5)
    files = [f"v0/{index:05d}.jpg" for index in range(3)]
    seal = {
        "id": 11,
        "video_id": 7,
        "category_id": 9,
        "segmentations": [runs(square(0)), runs(square(1)), runs(square(2))],
    }
    panda = {"id": 12, "video_id": 7, "category_id": 5, "segmentations": [runs(square(4)), code, None]}
    return {
        "videos": [
            {"id": 7, "height": 4, "width": 6, "length": 3, "file_names": files},
            {"id": 8, "height": 4, "width": 6, "length": 1, "file_names": ["v1/00000.jpg"]},
        ],
        "categories": [{"id": 9, "name": "earless_seal"}, {"id": 5, "name": "giant_panda"}],
        "annotations": [seal, panda],
    }


def write(root: Path, data: object, name: str = "ytvis_2019_train") -> Path:
    annotations, images = YTVIS_SPLITS[name]
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(data))
    for video in ("v0", "v1"):
        (root / images / video).mkdir(parents=True, exist_ok=True)
        for frame in range(3):
            Image.new("RGB", SIZE[::-1], (10 * frame, 0, 0)).save(root / images / video / f"{frame:05d}.jpg")
    return root


@pytest.mark.parametrize("name", ["ytvis_2019_train", "ytvis_2021_train"])
def test_frames_label_maps_and_instances(tmp_path: Path, name: str) -> None:
    dataset = YouTubeVIS.registered(name, write(tmp_path, content(), name))
    assert dataset.names == ("giant panda", "earless seal")
    first, second = dataset.videos
    assert (first.name, first.size, len(list(first.frames()))) == ("v0", SIZE, 3)
    labels = dataset.label_maps(first)
    assert np.array_equal(labels[0], np.where(square(4), 0, np.where(square(0), 1, -1)))
    assert np.array_equal(labels[1], np.where(square(2), 0, np.where(square(1), 1, -1)))
    assert np.array_equal(labels[2], np.where(square(2), 1, -1))
    masks = dataset.instance_masks(first, 1)
    assert sorted(masks) == [11, 12]
    assert np.array_equal(masks[11], square(1)) and np.array_equal(masks[12], square(2))
    assert list(dataset.instance_masks(first, 2)) == [11]
    assert (dataset.label_maps(second) == -1).all()


def test_splits_without_annotations(tmp_path: Path) -> None:
    data = content() | {"annotations": None}
    dataset = YouTubeVIS.registered("ytvis_2021_valid", write(tmp_path, data, "ytvis_2021_valid"))
    assert len(list(dataset.videos[0].frames())) == 3
    with pytest.raises(ValueError, match="'v0' has no annotations; only those of the training splits"):
        dataset.label_maps(dataset.videos[0])


def broken(change: str) -> Any:
    data = content()
    if change == "layout":
        return [1]
    if change == "no videos":
        del data["videos"]
    elif change == "outside":
        data["videos"][0]["file_names"] = ["../../secret.jpg"]
    elif change == "absolute":
        data["videos"][0]["file_names"] = ["/etc/passwd"]
    return data


@pytest.mark.parametrize("change", ["layout", "no videos", "outside", "absolute"])
def test_other_layouts_are_refused(tmp_path: Path, change: str) -> None:
    write(tmp_path, broken(change))
    with pytest.raises(ValueError, match="is not a file of YouTube-VIS"):
        YouTubeVIS.registered("ytvis_2019_train", tmp_path)


def test_unknown_and_missing_splits_and_damaged_codes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown split 'ytvis_2020'; there are ytvis_2019_train"):
        YouTubeVIS.registered("ytvis_2020", tmp_path)
    with pytest.raises(FileNotFoundError, match="no annotations at"):
        YouTubeVIS.registered("ytvis_2019_train", tmp_path)
    data = content()
    data["annotations"][0]["segmentations"][1] = {"size": [4, 6], "counts": [5, 100]}
    dataset = YouTubeVIS.registered("ytvis_2019_train", write(tmp_path, data))
    with pytest.raises(ValueError, match="annotations of frame 1 of video 'v0'"):
        dataset.label_maps(dataset.videos[0])


def test_the_evaluation_of_shapes_in_this_layout(tmp_path: Path) -> None:
    """Frames of a shapes video, annotated as YouTube-VIS would: J, F and mIoU are high, and those of the label maps."""
    images, truth, _ = render_clip(clip_at(11, 0, motion=MotionStyle(num_frames=3)))
    (tmp_path / "v").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"v/{index}.png")
    found = np.unique(truth).tolist()
    instances = [
        {
            "id": label,
            "video_id": 1,
            "category_id": label + 1,
            "segmentations": [runs(frame == label) if (frame == label).any() else None for frame in truth],
        }
        for label in found
    ]
    names = [{"id": index + 1, "name": name.replace(" ", "_")} for index, name in enumerate(NAMES)]
    files = [f"v/{index}.png" for index in range(3)]
    video = {"id": 1, "height": 128, "width": 128, "length": 3, "file_names": files}
    data = {"videos": [video], "categories": names, "annotations": instances}
    (tmp_path / "a.json").write_text(json.dumps(data))
    dataset = YouTubeVIS(tmp_path / "a.json", tmp_path)
    assert dataset.names == NAMES
    assert np.array_equal(dataset.label_maps(dataset.videos[0]), truth)
    predictor = VideoPredictor(Predictor.from_pretrained("shapes"), VideoOptions(shared=False))
    values = evaluate_videos(predictor, dataset)
    assert set(values) == {"J", "F", "J&F", "mIoU"}
    assert 50 < values["J"] <= 100 and 50 < values["F"] <= 100

"""YouTube-VIS: the layout of its files, instances and classes per frame, and the evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.cli.main import main
from san.d2.data.datasets import check_names
from san.data.benchmarks import YTVIS_SPLITS
from san.evaluation.predictions import rle_entries
from san.inference.predictor import Predictor
from san.shapes.clips import MotionStyle, clip_at, render_clip
from san.shapes.world import NAMES
from san.video.predictor import VideoOptions, VideoPredictor
from san.video.youtube_vis import YouTubeVIS, evaluate_videos

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
    with pytest.raises(ValueError, match=r"unknown set of videos 'ytvis_2020'; there are ytvis_2019_train"):
        YouTubeVIS.registered("ytvis_2020", tmp_path)
    with pytest.raises(FileNotFoundError, match="no annotations at"):
        YouTubeVIS.registered("ytvis_2019_train", tmp_path)
    data = content()
    data["annotations"][0]["segmentations"][1] = {"size": [4, 6], "counts": [5, 100]}
    dataset = YouTubeVIS.registered("ytvis_2019_train", write(tmp_path, data))
    with pytest.raises(ValueError, match="annotations of frame 1 of video 'v0'"):
        dataset.label_maps(dataset.videos[0])


def write_shapes_videos(root: Path, name: str = "ytvis_2021_train") -> np.ndarray:
    """Frames of a shapes video, annotated as YouTube-VIS would, and one whose frames are gone; returns the truth."""
    images, truth, _ = render_clip(clip_at(11, 0, motion=MotionStyle(num_frames=3)))
    annotations, folder = (root / each for each in YTVIS_SPLITS[name])
    (folder / "v").mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"v/{index}.png")
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
    videos = [
        {"id": number, "height": 128, "width": 128, "file_names": [f"{name}/{index}.png" for index in range(3)]}
        for number, name in ((1, "v"), (2, "gone"))
    ]
    annotations.write_text(json.dumps({"videos": videos, "categories": names, "annotations": instances}))
    return truth


def test_the_evaluation_of_shapes_in_this_layout(tmp_path: Path) -> None:
    """J, F and mIoU are high, and those of the label maps."""
    truth = write_shapes_videos(tmp_path)
    dataset = YouTubeVIS.registered("ytvis_2021_train", tmp_path)
    assert dataset.names == NAMES
    assert np.array_equal(dataset.label_maps(dataset.videos[0]), truth)
    predictor = VideoPredictor(Predictor.from_pretrained("shapes"), VideoOptions(shared=False))
    with pytest.raises(FileNotFoundError, match="gone"):
        evaluate_videos(predictor, dataset)
    values = evaluate_videos(predictor, replaced_videos(dataset))
    assert set(values) == {"J", "F", "J&F", "mIoU"}
    assert 50 < values["J"] <= 100 and 50 < values["F"] <= 100


def replaced_videos(dataset: YouTubeVIS) -> YouTubeVIS:
    dataset.videos = dataset.videos[:1]
    return dataset


def test_the_command_evaluates_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is damaged is skipped and named; the figures are those of the function."""
    write_shapes_videos(tmp_path / "data")
    common = ["video", "--evaluate", "ytvis_2021_train", "--data-root", str(tmp_path / "data"), "--frame-by-frame"]
    assert main([*common, "--out", str(tmp_path / "out"), "--quiet"]) == 3
    shown = capsys.readouterr()
    assert "skipped gone: " in shown.err and "ytvis_2021_train, 1 of 2 videos: J " in shown.out
    content = json.loads((tmp_path / "out/ytvis_2021_train/metrics.json").read_text())
    dataset = replaced_videos(YouTubeVIS.registered("ytvis_2021_train", tmp_path / "data"))
    predictor = VideoPredictor(Predictor.from_pretrained("shapes"), VideoOptions(shared=False))
    values = evaluate_videos(predictor, dataset)
    assert {name: content[name] for name in values} == pytest.approx(values)
    assert (content["videos"], content["of"], list(content["skipped"])) == (1, 2, ["gone"])
    assert content["settings"]["shared"] is False and content["model"] == "shapes"
    rows = list(csv.DictReader((tmp_path / "out/ytvis_2021_train/per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == list(NAMES)
    present = [row for row in rows if row["frames"] != "0"]
    assert len(present) < 36 and np.mean([float(row["J"]) for row in present]) == pytest.approx(values["J"], abs=1e-3)
    assert all(not row["J"] for row in rows if row not in present)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evaluate", "ytvis_2020"], "unknown set of videos 'ytvis_2020'; there are ytvis_2019_train"),
        (["--evaluate", "ytvis_2019_train"], "ytvis_2021_valid is there); see docs/video.md"),
        (["--evaluate", "ytvis_2021_valid"], "no video of ytvis_2021_valid could be evaluated"),
        (["--evaluate", "ytvis_2021_valid", "--vocab", "cat"], "leave out --vocab"),
        (["a.mp4", "--evaluate", "ytvis_2021_valid"], "leave out a.mp4"),
    ],
)
def test_what_cannot_be_evaluated(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, content() | {"annotations": None}, "ytvis_2021_valid")
    assert main(["video", *options, "--data-root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_commands_for_images_name_the_one_for_videos() -> None:
    with pytest.raises(
        ValueError, match=r"DATASETS.TEST names 'ytvis_2019_train', .* `san video --evaluate ytvis_2019_"
    ):
        check_names(["ytvis_2019_train"], "DATASETS.TEST")

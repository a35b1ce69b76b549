"""`san video` on small videos, as its users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli import video
from san.cli.main import main
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import variant
from san.shapes.clips import MotionStyle, clip_at, render_clip
from san.video.files import VideoReader
from san.video.predictor import VideoOptions, VideoPredictor
from tests.forks import HANG, Fork
from tests.video.conftest import damaged, moving_square, packets, write_video

pytest.importorskip("av")
REPO = Path(__file__).resolve().parents[2]
WORDS = "red star, blue ring; green square|green cross, striped ground, plain ground"


@pytest.fixture(scope="module")
def shapes() -> Predictor:
    return Predictor.from_pretrained("shapes")


@pytest.fixture
def loaded(shapes: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded once for all tests."""
    monkeypatch.setattr(video, "load_predictor", lambda args: shapes)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model that has learnt nothing, on small frames."""
    torch.manual_seed(0)
    predictor = Predictor(build_san(variant("tiny")), short_side=32)
    monkeypatch.setattr(video, "load_predictor", lambda args: predictor)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shapes video of ten frames, with sound."""
    frames = render_clip(clip_at(7, 3, motion=MotionStyle(num_frames=10)))[0]
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames, sound="aac")


def labels_of(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def pixels_of(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame.pixels for frame in reader.frames()]


@pytest.mark.usefixtures("loaded")
def test_a_video_with_sound(clip: Path, tmp_path: Path, shapes: Predictor, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["video", str(clip), "--vocab", WORDS, "--out", str(out), "--chunk", "6", "--overlap", "2"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert re.search(r"clip\.mp4: 10 frames in [\d.]+ s \([\d.]+ per second\) -> ", shown.out)
    assert {path.name for path in out.iterdir()} == {"clip_overlay.mp4", "clip_labels", "clip.json"}
    predictor = VideoPredictor(shapes, VideoOptions(chunk=6, overlap=2))
    expected = list(predictor.segment(pixels_of(clip), WORDS))
    found = labels_of(out / "clip_labels")
    assert len(found) == 10
    for label_map, overlaid, result in zip(found, pixels_of(out / "clip_overlay.mp4"), expected, strict=True):
        assert np.array_equal(label_map, result.labels)
        assert np.abs(overlaid.astype(int) - np.asarray(result.overlay())).mean() < 12
    assert packets(clip, "audio") == packets(out / "clip_overlay.mp4", "audio")
    record = json.loads((out / "clip.json").read_text())
    assert record["frames"] == 10 and record["problems"] == [] and record["frames_per_second"] == 12
    assert record["settings"]["chunk"] == 6 and record["settings"]["shared"] is True
    assert [each["name"] for each in record["classes"]][:3] == ["red star", "blue ring", "green square"]
    assert sum(each["share"] for each in record["classes"]) + record["none_share"] == pytest.approx(1)
    assert main(command) == 1
    assert "exist already" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_frame_by_frame_replaces_a_longer_video(clip: Path, tmp_path: Path, shapes: Predictor) -> None:
    old = tmp_path / "clip_labels/000010.png"
    old.parent.mkdir()
    old.touch()
    kept = old.with_name("notes.txt")
    kept.touch()
    command = ["video", str(clip), "--vocab", WORDS, "--out", str(tmp_path), "--frame-by-frame", "--quiet"]
    assert main(command) == 1
    assert main([*command, "--format", "labels", "--overwrite", "--none-of-these"]) == 0
    assert kept.exists() and not old.exists() and not (tmp_path / "clip.json").exists()
    kept.unlink()
    expected = shapes.predict_batch(pixels_of(clip), WORDS, none_of_these=True)
    for label_map, result in zip(labels_of(tmp_path / "clip_labels"), expected, strict=True):
        assert np.array_equal(label_map, np.where(result.labels < 0, 255, result.labels))


@pytest.mark.usefixtures("tiny")
def test_a_damaged_video_is_done_as_far_as_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    source = damaged(write_video(tmp_path / "a.mp4", noise, sound="aac"))
    out = tmp_path / "out"
    assert main(["video", str(source), "--vocab", "cat, dog", "--out", str(out), "--clusters", "4"]) == 3
    shown = capsys.readouterr()
    assert "not read whole: " in shown.err and "a_damaged.mp4: " in shown.err and " s to " in shown.err
    frames = pixels_of(out / "a_damaged_overlay.mp4")
    assert 10 < len(frames) == len(labels_of(out / "a_damaged_labels")) <= 40
    record = json.loads((out / "a_damaged.json").read_text())
    assert record["frames"] == len(frames) and record["problems"]


@pytest.mark.usefixtures("tiny")
def test_changing_sizes_and_files_without_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [write_video(tmp_path / f"{size}.h264", moving_square(5, (size, 32))) for size in (32, 48)]
    both, text, whole = tmp_path / "both.h264", tmp_path / "text.mp4", tmp_path / "whole.mp4"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    text.write_text("cat")
    write_video(whole, moving_square(3, (32, 32)))
    out = tmp_path / "out"
    command = ["video", str(both), str(text), str(whole), "--vocab", "cat", "--out", str(out), "--clusters", "4"]
    assert main(command) == 3
    shown = capsys.readouterr()
    assert "frame 5 has 32 x 48 pixels, those before it 32 x 32" in shown.err
    assert "skipped " in shown.err and "text.mp4' cannot be read as a video" in shown.err
    assert shown.err.count("\n") == 2
    assert len(pixels_of(out / "both_overlay.mp4")) == 5
    assert len(pixels_of(out / "whole_overlay.mp4")) == 3
    assert not list(out.glob("text*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4", "--vocab", "cat"], "no video at 'missing.mp4'"),
        (["clip.mp4"], "there are no words"),
        (["clip.mp4", "--vocab", "cat", "--overlap", "32"], "overlap is 32 of a chunk of 32"),
        (["clip.mp4", "--vocab", "cat", "--threshold", "nan"], "--threshold is nan"),
        (["clip.mp4", "sub/clip.mkv", "--vocab", "cat"], "would both be written to"),
    ],
)
def test_wrong_command_lines_are_refused_before_any_work(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "load_predictor", lambda args: pytest.fail("the model was loaded"))
    Path("sub").mkdir()
    for name in ("clip.mp4", "sub/clip.mkv"):
        Path(name).touch()
    assert main(["video", *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_predict_names_the_command_for_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.MP4").touch()
    assert main(["predict", str(tmp_path / "clip.MP4"), "--vocab", "cat"]) == 1
    assert "is a video; use `san video`" in capsys.readouterr().err


def run_until_interrupted(command: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(command))


def test_an_interrupted_run_keeps_what_is_done(clip: Path, tmp_path: Path) -> None:
    """In a process that imports everything itself: a fork of one that has run a video codec's threads may hang."""
    source = write_video(tmp_path / "long.mp4", pixels_of(clip) * 20)
    command = ["video", str(source), "--vocab", WORDS, "--out", str(tmp_path / "out"), "--chunk", "2", "--overlap", "0"]

    process = Fork(partial(run_until_interrupted, command), tmp_path / "shown", spawned=True)
    folder, end = tmp_path / "out/long_labels", time.monotonic() + HANG
    while not (folder.is_dir() and len(list(folder.iterdir())) > 3) and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    error, _ = process.communicate()
    assert process.returncode == 130, error
    count = int(re.search(r"interrupted after (\d+) frames", error)[1])  # type: ignore[index]
    assert 3 <= count < 200
    assert len(pixels_of(tmp_path / "out/long_overlay.mp4")) == len(list(folder.glob("*.png"))) == count
    assert json.loads((tmp_path / "out/long.json").read_text())["frames"] == count
    assert not list((tmp_path / "out").glob(".*"))


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.usefixtures("tiny")
def test_memory_does_not_grow_with_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 frames: what is held after 500 is held at the end."""
    source = write_video(tmp_path / "long.mp4", moving_square(2000, (32, 32)))
    held = []
    plain = VideoPredictor.segment

    def watched(self: VideoPredictor, *args: object, **options: object) -> Iterator[object]:
        for number, result in enumerate(plain(self, *args, **options)):  # type: ignore[arg-type]
            if number % 100 == 0:
                held.append(resident())
            yield result

    monkeypatch.setattr(VideoPredictor, "segment", watched)
    assert main(["video", str(source), "--vocab", "cat, dog", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out/long_labels").iterdir())) == 2000
    assert len(held) == 20
    assert max(held[5:]) - held[5] < 16e6, held

"""Reading and writing video files: times, sound, turned and odd frames, and files that are not what they should be."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from san.video.files import VideoReader, VideoWriter, in_background
from tests.video.conftest import damaged, moving_square, packets, write_video

pytest.importorskip("av")


def read(path: Path) -> tuple[list[np.ndarray], list[float], list[str]]:
    with VideoReader(path) as reader:
        frames = list(reader.frames())
        times = [float(frame.time * reader.info.time_base) for frame in frames]
        return [frame.pixels for frame in frames], times, reader.problems


def copy(source: Path, target: Path, *, whole: bool = True, count: int | None = None) -> VideoWriter:
    with VideoReader(source) as reader, VideoWriter(target, reader.info, source) as writer:
        for frame in itertools.islice(reader.frames(), count):
            writer.write(frame)
        if whole:
            writer.copy_all_sound()
    return writer


def test_frames_times_and_sound_are_kept(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", moving_square(20), sound="aac")
    writer = copy(source, tmp_path / "b.mp4")
    assert not writer.problems
    pixels, times, problems = read(tmp_path / "b.mp4")
    assert not problems
    assert times == pytest.approx([index / 12 for index in range(20)])
    for index, (frame, original) in enumerate(zip(pixels, moving_square(20), strict=True)):
        assert np.abs(frame.astype(int) - original).mean() < 8, index
    assert len(packets(source, "audio")) > 10
    assert packets(source, "audio") == packets(tmp_path / "b.mp4", "audio")


def test_any_frame_rate(tmp_path: Path) -> None:
    """Frames that are shown for different times stay so."""
    steps = [0, 1, 5, 6, 20, 21, 22]
    source = write_video(tmp_path / "a.mkv", moving_square(7), times=steps)
    copy(source, tmp_path / "b.mkv")
    assert read(tmp_path / "b.mkv")[1] == pytest.approx([step / 12 for step in steps], abs=1e-3)


@pytest.mark.parametrize(("sound", "source", "ending"), [("pcm_s16le", "a.mkv", ".mkv"), ("mp3", "a.mkv", ".mp4")])
def test_the_file_can_hold_the_sound(tmp_path: Path, sound: str, source: str, ending: str) -> None:
    path = write_video(tmp_path / source, moving_square(12), sound=sound)
    with VideoReader(path) as reader:
        assert reader.info.sound[0].startswith(sound[:3])
        assert reader.info.ending == ending
    copy(path, tmp_path / f"b{ending}")
    found = packets(tmp_path / f"b{ending}", "audio")
    assert [content for _, content in found] == [content for _, content in packets(path, "audio")]


def test_sound_ends_with_a_video_that_breaks_off(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", moving_square(12), sound="aac")
    copy(source, tmp_path / "b.mp4", whole=False, count=6)
    assert len(read(tmp_path / "b.mp4")[0]) == 6
    last = packets(tmp_path / "b.mp4", "audio")[-1][0]
    assert 0.4 < last < 0.5 < packets(source, "audio")[-1][0]


def test_what_was_written_before_an_error_can_be_played(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", moving_square(12), sound="aac")

    def interrupted(name: str, count: int) -> None:
        with VideoReader(source) as reader, VideoWriter(tmp_path / name, reader.info, source) as writer:
            for frame in itertools.islice(reader.frames(), count):
                writer.write(frame)
            raise KeyboardInterrupt

    for name, count in (("b.mp4", 5), ("none.mp4", 0)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(name, count)
    assert len(read(tmp_path / "b.mp4")[0]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (2, 301)])
def test_odd_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    """They get a row or column more in an H.264 file."""
    source = write_video(tmp_path / "a.mkv", moving_square(3, size), codec="ffv1", pix_fmt="bgr0")
    pixels, _, problems = read(source)
    assert not problems
    assert [frame.shape for frame in pixels] == [(*size, 3)] * 3
    copy(source, tmp_path / "b.mp4")
    height, width = size
    assert read(tmp_path / "b.mp4")[0][0].shape == (height + height % 2, width + width % 2, 3)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["90 degrees", "180", "270"],
)
def test_a_telephone_held_upright(tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    """The turn that an MP4 file's header asks for is carried out."""
    frames = moving_square(3)
    frames[0][:16, :16] = 255
    source = write_video(tmp_path / "a.mp4", frames)
    content = bytearray(source.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    content[place : place + 36] = values.tobytes()
    source.write_bytes(content)
    pixels = read(source)[0][0]
    expected = np.rot90(frames[0], turns)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 10


def test_damage_in_the_middle_is_passed_and_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    source = damaged(write_video(tmp_path / "a.mp4", noise))
    pixels, times, problems = read(source)
    assert 10 < len(pixels) <= 40
    assert times[-1] == pytest.approx(39 / 12)
    assert any(re.fullmatch(r"(packets that|damaged).*: \d+, from \d\.\d\d s to \d\.\d\d s", each) for each in problems)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_file_that_ends_too_early_is_read_as_far_as_it_goes(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    source = write_video(tmp_path / name, noise)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    pixels, _, problems = read(source)
    assert 5 < len(pixels) < 35
    assert "it says it has" in problems[-1]


def test_changing_sizes_end_the_video(tmp_path: Path) -> None:
    """Two streams of other sizes in one file of raw H.264."""
    parts = [write_video(tmp_path / f"{size}.h264", moving_square(6, (size, 64))) for size in (48, 32)]
    source = tmp_path / "both.h264"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    pixels, _, problems = read(source)
    assert len(pixels) == 6
    assert len(problems) == 1
    assert "has 64 x 32 pixels, those before it 64 x 48; the rest is left out" in problems[0]


def tones(path: Path) -> Path:
    """A file of sound without pictures."""
    av = pytest.importorskip("av")
    full = write_video(path.with_name("full.mkv"), moving_square(2), sound="aac")
    with av.open(str(full)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path


def written(content: str | bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tones, "holds no video; give a file with a video stream"),
        (written(""), "cannot be read as a video"),
        (written("cat"), "cannot be read as a video"),
        (written(bytes(5000)), "cannot be read as a video"),
        (
            written("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\nfull.mkv\n#EXT-X-ENDLIST\n"),
            "cannot be read as a video",
        ),
        (written("ffconcat version 1.0\nfile full.mkv\n"), "cannot be read as a video"),
    ],
    ids=["sound", "empty", "text", "zeros", "playlist", "list"],
)
def test_no_video(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    """A playlist or list that calls itself a video opens no other file."""
    write_video(tmp_path / "full.mkv", moving_square(2))
    path = make(tmp_path / "a.mkv")
    with pytest.raises(ValueError, match=message) as error:
        VideoReader(path)
    assert "a.mkv" in str(error.value) and "\n" not in str(error.value)


def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", moving_square(2))
    with pytest.raises(ValueError, match="64 x 48 pixels, at most 3,000 are read"):
        VideoReader(source, max_pixels=3000)


def test_an_iterator_in_the_background_is_ahead_but_not_far() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            assert threading.current_thread() is not threading.main_thread()
            yield number

    found = in_background(numbers(), 4)
    assert list(itertools.islice(found, 50)) == list(range(50))
    assert len(taken) <= 55
    found.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("san-decode")]

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    found = in_background(failing(), 3)
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)

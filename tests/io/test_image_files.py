"""Files that cost more than they look, EXIF data of every kind, and the one place where image files are opened."""

from __future__ import annotations

import io
import os
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.data.images import image_pixels
from san.demo.limits import Limits
from san.io.image_files import (
    ORIENTATION_TAG,
    image_endings,
    open_image,
    orientation,
    read_image,
    read_label_map,
    turn_upright,
)
from san.io.jpeg_limits import MAX_SCANS


def numbered(height: int = 4, width: int = 6) -> np.ndarray:
    """(H, W) uint8, every pixel another value."""
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def exif(tag: int) -> Image.Exif:
    data = Image.Exif()
    data[ORIENTATION_TAG] = tag
    return data


def test_one_file_opens_images(repo: Path) -> None:
    """So that every limit holds everywhere."""
    opening = [path for path in (repo / "san").rglob("*.py") if re.search(r"Image\.open\(|ImageOps", path.read_text())]
    assert sorted(path.name for path in opening) == ["card.py", "image_files.py"], "the card shows an example"


@pytest.mark.parametrize("size", [(1, 2001), (4002, 2), (1, 8_000_000)])
def test_lines_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    """A PNG of 1 x 8,000,000 pixels has 8 kB and took 13 GB."""
    Image.new("1", size).save(tmp_path / "line.png")
    for read in (read_image, read_label_map, image_pixels):
        with pytest.raises(ValueError, match=r"line.png is \d+x\d+ .*: one side is \d+ times the other, at most 2000"):
            read(tmp_path / "line.png")
    with pytest.raises(ValueError, match=r"the picture is .* at most 2000 times is accepted; cut it"):
        read_image((tmp_path / "line.png").read_bytes(), Limits().of_pictures, source="the picture")
    for image in (Image.new("L", size), np.zeros(size, np.uint8)):
        with pytest.raises(ValueError, match="one side is"):
            image_pixels(image, max_pixels=None)


def test_narrow_pictures_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1)).save(tmp_path / "narrow.png")
    assert read_image(tmp_path / "narrow.png").shape == (1, 2000, 3)


def progressive(num_scans: int, size: int = 64) -> bytes:
    """A progressive JPEG with its last scan repeated: the few bytes of each cost a pass over all pixels."""
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 60).convert("RGB").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2][:20]
    own = len(re.findall(rb"\xff\xda", content))
    return content[:-2] + scan * (num_scans - own) + content[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "slow.jpg"
    path.write_bytes(progressive(20_000, 1024))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"slow.jpg is a JPEG of more than 100 scans.*save it again as PNG"):
        read_image(path)
    with pytest.raises(ValueError, match="the picture is a JPEG of more than 100 scans"):
        read_image(path.read_bytes(), Limits().of_pictures, source="the picture")
    assert time.process_time() - start < 1
    path.write_bytes(progressive(MAX_SCANS))
    assert read_image(path).shape == (64, 64, 3)
    assert read_image(path.read_bytes(), Limits().of_pictures, source="the picture").shape == (64, 64, 3)


def test_markers_elsewhere_are_no_scans(tmp_path: Path) -> None:
    """A preview inside the EXIF data, and data after the picture, such as a phone's video."""
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0" + b"\xff\xda\0\x02" * 200)
    path.write_bytes(path.read_bytes() + b"\xff\xda\0\x02" * 200)
    assert read_image(path).shape == (8, 8, 3)


def test_markers_that_decoders_skip_hide_no_scans(tmp_path: Path) -> None:
    """Two bytes where a restart marker is due: a decoder that looks for it passes over them, and no segment follows."""
    content = progressive(20_000)
    second = content.index(b"\xff\xda", content.index(b"\xff\xda") + 2)
    for skipped in (b"\xff\x01", b"\xff\x02", b"\xff\xbf"):
        (tmp_path / "a.jpg").write_bytes(content[:second] + skipped + b"\xff\xff" + content[second:][: 0xFFFF - 9])
        with pytest.raises(ValueError, match="a.jpg is a JPEG of more than 100 scans"):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("flood", [b"\xff\xe1\0\x02" * 1_000_000, b"\xff" * 4_000_000], ids=["segments", "fill"])
def test_a_flooded_jpeg_is_refused_before_pillow_reads_it(
    flood: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow reads each segment, and each byte between two, by itself, and keeps them."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:2] + flood + content[2:])
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow reads it"))
    for file in (tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()):
        with pytest.raises(ValueError, match="a JPEG of more than 10000 segments or 100000 bytes between them"):
            open_image(file, "the picture")


def test_a_picture_within_another_is_refused(tmp_path: Path) -> None:
    """The size and the scans of the JPEG in a BLP are not those that its header says."""
    Image.new("RGB", (8, 8)).save(inner := tmp_path / "inner.jpg")
    content, start = inner.read_bytes(), 28 + 128 + 4
    header = b"BLP1" + struct.pack("<iI", 0, 0) + struct.pack("<II", 8, 8) + struct.pack("<iI", 5, 0)
    offsets = struct.pack("<16I", start + 2, *[0] * 15) + struct.pack("<16I", len(content) - 2, *[0] * 15)
    (tmp_path / "a.blp").write_bytes(header + offsets + struct.pack("<I", 2) + content)
    with pytest.raises(ValueError, match=r"a\.blp is of the format BLP, which is not read.*export it as PNG"):
        read_image(tmp_path / "a.blp")
    assert ".blp" not in image_endings()


def test_a_jpeg_of_many_segments_is_refused(tmp_path: Path) -> None:
    content = progressive(20)
    scan = content.index(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(content[:scan] + b"\xff\xfe\0\x02" * 20_000 + content[scan:])
    with pytest.raises(ValueError, match="more than 10000 segments"):
        read_image(tmp_path / "a.jpg")


def test_an_icon_whose_header_lies(tmp_path: Path) -> None:
    """The picture inside is the size that counts."""
    inner = io.BytesIO()
    Image.new("RGB", (3000, 1)).save(inner, "PNG")
    head = b"\0\0\1\0\1\0" + bytes([16, 16, 0, 0, 1, 0, 32, 0]) + len(inner.getvalue()).to_bytes(4, "little")
    (tmp_path / "a.ico").write_bytes(head + (22).to_bytes(4, "little") + inner.getvalue())
    with (
        pytest.raises(ValueError, match=r"a.ico is 3000x1 .*one side is 3000 times"),
        pytest.warns(UserWarning, match="not the expected"),
    ):
        read_image(tmp_path / "a.ico")


def test_pipes_and_devices_do_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match=f"{name} is not a regular file but a pipe, a socket or a device"):
            read_image(tmp_path / name)
    (tmp_path / "c.png").symlink_to("c.png")
    for name in ("c.png", "x" * 300 + ".png", "a\0.png"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_image_and_label_are_rotated_together(tag: int, ending: str, tmp_path: Path) -> None:
    """According to the orientation in their own file, as in viewers; Pillow itself applies that of a TIFF."""
    path = tmp_path / f"a.{ending}"
    Image.fromarray(numbered()).save(path, exif=exif(tag))
    expected = turn_upright(numbered(), tag)
    assert read_image(path)[..., 0].tolist() == expected.tolist()
    assert read_label_map(path).tolist() == expected.tolist()
    with Image.open(path) as image:
        assert image_pixels(image)[..., 0].tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_of_any_depth_turn(dtype: type, tmp_path: Path) -> None:
    labels = numbered().astype(dtype) + (300 if dtype is np.uint16 else 0)
    Image.fromarray(labels).save(tmp_path / "a.png", exif=exif(6))
    assert read_label_map(tmp_path / "a.png").tolist() == np.rot90(labels, -1).tolist()


def unwritable_exif(tag: int) -> bytes:
    """EXIF data that Pillow reads but cannot write: an offset entry with a text where a number belongs."""

    def entry(number: int, kind: int, value: bytes) -> bytes:
        return (
            number.to_bytes(2, "little")
            + kind.to_bytes(2, "little")
            + (1).to_bytes(4, "little")
            + value.ljust(4, b"\0")
        )

    entries = [entry(ORIENTATION_TAG, 3, bytes([tag])), entry(0x8769, 2, b"abc\0")]
    return b"Exif\0\0II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little") + b"".join(entries) + bytes(4)


@pytest.mark.parametrize(
    ("data", "tag"),
    [
        (unwritable_exif(6), 6),
        (b"Exif\0\0", 1),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", 1),
        (b"Exif\0\0no TIFF at all", 1),
        (unwritable_exif(6)[:25], 1),
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x05\0\1\0\0\0\xf0\xff\xff\xff" + bytes(4), 1),
        (b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff\6\0\0\0" * 40, 1),
    ],
    ids=["unwritable", "empty", "offset", "text", "cut", "rational", "counts"],
)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_no_exif_refuses_a_picture(data: bytes, tag: int, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(numbered()).convert("RGB").save(path, exif=data)
    assert read_image(path).shape == ((6, 4, 3) if tag == 6 else (4, 6, 3))
    assert read_image(path.read_bytes(), Limits().of_pictures, source="the picture").shape == read_image(path).shape


def test_an_invalid_orientation(tmp_path: Path) -> None:
    for tag in (0, 9, 65535):
        Image.new("L", (2, 3)).save(tmp_path / "a.png", exif=exif(tag))
        with Image.open(tmp_path / "a.png") as image:
            assert orientation(image) == 1

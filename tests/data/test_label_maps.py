"""Label maps as people save them: bits, palettes, colours, masks of two values."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.data.checking import CheckTarget, check_pairs, summarise
from san.data.label_mapping import LabelMapping
from san.data.label_maps import doubt_about_masks, read_truth
from san.io.image_files import read_label_map

LABELS = np.array([[0, 1, 2], [3, 1, 0]], np.uint8)


def save(path: Path, labels: np.ndarray) -> Path:
    Image.fromarray(labels).save(path)
    return path


def packed_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, as image tools write where there are few values."""
    per_byte = 8 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % per_byte))).reshape(len(values), -1, per_byte)
    rows = (padded << np.arange(8 - bits, -1, -bits)).sum(axis=2).astype(np.uint8)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
             for kind, data in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_values_as_stored(bits: int, tmp_path: Path) -> None:
    """Pillow spreads them over 0..255: class 1 of 4 bits was class 17."""
    labels = np.arange(2**bits, dtype=np.uint8)[None]
    (tmp_path / "a.png").write_bytes(packed_png(labels, bits))
    assert read_label_map(tmp_path / "a.png").tolist() == labels.tolist()
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "a.tif")  # of 8 bits, or one
        image.convert("P").save(tmp_path / "p.png")
    assert read_label_map(tmp_path / "a.tif").max() == (255 if bits > 1 else 1)


def test_what_holds_no_class_indices_is_refused(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg is a JPEG, which changes values; save label maps as PNG"):
        read_truth(tmp_path / "a.jpg", 4, 255)
    for mode in ("RGB", "RGBA", "LA"):
        Image.fromarray(LABELS).convert(mode).save(tmp_path / "c.png")
        with pytest.raises(ValueError, match=f"c.png has mode {mode} but must have one channel"):
            read_truth(tmp_path / "c.png", 4, 255)


def test_many_classes_need_16_bits(tmp_path: Path) -> None:
    """Else 255 would be a class, and those above never occur."""
    path = save(tmp_path / "a.png", LABELS)
    assert read_truth(path, 256, 65535).tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match=r"a\.png has 8 bits \(mode L\), which hold 256 values, but .* more classes"):
        read_truth(path, 300, 65535)
    assert read_truth(path, 300, 65535, LabelMapping(((0, 299), (1, 0), (2, 1), (3, 2)), 65535)).max() == 299
    save(path, LABELS.astype(np.uint16) + 290)
    assert read_truth(path, 300, 65535).max() == 293


def check(path: Path, num_classes: int, mapping: LabelMapping | None = None) -> dict[str, bool]:
    record = {"file_name": str(path.with_suffix(".jpg")), "sem_seg_file_name": str(path)}
    Image.new("RGB", (3, 2)).save(record["file_name"])
    target = CheckTarget("own", tuple(map(str, range(num_classes))), label_mapping=mapping)
    return {
        finding.kind: finding.wrong for finding in summarise(target, [record], check_pairs([record], target)).findings
    }


def test_masks_of_two_values_are_doubtful(tmp_path: Path) -> None:
    """White pixels of black and white masks were ignored without a word."""
    path = save(tmp_path / "a.png", np.array([[0, 255], [0, 0], [0, 0]], np.uint8).T.copy())
    assert check(path, 2)["doubtful_masks"] is False, "a remark, as it may be meant"
    assert "doubtful_masks" not in check(path, 2, LabelMapping(((0, 0), (255, 1)), 255))
    assert read_truth(path, 2, 255, LabelMapping(((0, 0), (255, 1)), 255)).max() == 1
    assert "write label_mapping {0: <class>, 255: <class>}" in doubt_about_masks([0, 255], 255, None)
    for values in ([0], [255], [0, 1, 255], [1, 255], []):
        assert not doubt_about_masks(values, 255, None)

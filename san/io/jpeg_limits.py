"""Limits on JPEG files, checked before Pillow reads them: scans, segments, and bytes between segments."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

MAX_SCANS = 100
"""Maximum number of scans of a JPEG, the limit of libtiff; encoders write about ten."""

_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # before a segment; decoders skip the two bytes of others
_START_OF_IMAGE, _START_OF_SCAN, _END_OF_IMAGE = b"\xff\xd8", 0xDA, 0xD9
_MAX_SEGMENTS = 10_000  # of a JPEG; a long colour profile or depth map needs hundreds
_MAX_FILL = 100_000  # bytes between them, which Pillow reads one by one


def check_jpeg(file: Path | bytes, source: str) -> None:
    """Refuse a JPEG with more than `MAX_SCANS` scans: each is a pass over all pixels, even if it has few bytes.

    Files of other formats are accepted.

    Args:
        file: path, or content.
        source: name in error messages.

    Raises:
        ValueError: the JPEG has too many scans or segments, or too many bytes between segments.
    """
    if isinstance(file, bytes):
        if not file.startswith(_START_OF_IMAGE):
            return
        num_scans, whole = _count_scans(file)
    else:
        with file.open("rb") as opened:
            if opened.read(len(_START_OF_IMAGE)) != _START_OF_IMAGE:
                return
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                num_scans, whole = _count_scans(content)
    if num_scans > MAX_SCANS or not whole:
        what = f"{MAX_SCANS} scans"
        if num_scans <= MAX_SCANS:
            what = f"{_MAX_SEGMENTS} segments or {_MAX_FILL} bytes between them"
        raise ValueError(
            f"{source} is a JPEG of more than {what}, which would take minutes to decode; save it again as PNG, or as "
            "JPEG that is not progressive"
        )


def _count_scans(content: bytes | mmap.mmap) -> tuple[int, bool]:
    """Return the number of scans, at most one more than allowed, and whether the end was within the other limits.

    A scan's data contains no markers except restarts, so the next other marker starts the next segment.
    """
    position, num_scans, num_fill, in_scan = len(_START_OF_IMAGE), 0, 0, False
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(content, position)
        if not in_scan:
            num_fill += (len(content) if found is None else found.start()) - position
            if num_fill > _MAX_FILL:
                return num_scans, False
        if found is None or content[found.end() - 1] == _END_OF_IMAGE:
            return num_scans, True
        in_scan = content[found.end() - 1] == _START_OF_SCAN
        num_scans += in_scan
        if num_scans > MAX_SCANS:
            return num_scans, True
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    return num_scans, False

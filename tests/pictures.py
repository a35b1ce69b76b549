"""Pictures of the documentation that tests make: compared with those in docs/images, or put there."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"


def check_picture(made: Path, name: str, *, width: int) -> None:
    """Compare sizes: no two browsers draw the same pixels. SAN_UPDATE_IMAGES=1 stores the new picture."""
    with Image.open(made) as image:
        new = image.convert("RGB")
    new = new.resize((width, round(new.height * width / new.width)), Image.Resampling.LANCZOS)
    if os.environ.get("SAN_UPDATE_IMAGES"):
        new.save(IMAGES / name, optimize=True)
    with Image.open(IMAGES / name) as stored:
        remedy = f"{name} is out of date; run this test with SAN_UPDATE_IMAGES=1"
        assert new.width == stored.width, remedy
        assert abs(new.height - stored.height) < 0.2 * new.height, remedy

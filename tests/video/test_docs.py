"""docs/video.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from san.video.predictor import VideoOptions

PAGE = (Path(__file__).resolve().parents[2] / "docs/video.md").read_text(encoding="utf-8")


def test_the_snippets_run() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(snippets) == 1
    scope: dict[str, Any] = {}
    exec(snippets[0], scope)
    assert scope["result"].labels.shape == (128, 128)


def test_defaults_are_those_of_the_page() -> None:
    options = VideoOptions()
    assert f"`--chunk {options.chunk}`, `--overlap {options.overlap}`" in PAGE
    assert f"`--seed {options.seed}`" in PAGE and f"`--batch-size {options.batch_size}`" in PAGE

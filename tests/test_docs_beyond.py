"""docs/beyond.md does what it says: its snippets run, and its configurations hold what the page says of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from san.d2.config.keys import load_config, san_config
from san.model.config import variant
from san.shapes.world import NAMES, NOVEL
from san.vocabulary.vocabulary import Vocabulary

REPO = Path(__file__).resolve().parent.parent


def test_every_snippet_runs(tmp_path: Path, monkeypatch: Any) -> None:
    """One after the other, in one scope."""
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", (REPO / "docs/beyond.md").read_text(encoding="utf-8"), re.M | re.S)
    scope: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, scope)
    assert scope["predictor"].model.config.scorer.name == "second_opinion"


def test_the_configurations_of_a_second_opinion() -> None:
    """The published model otherwise, with the names of its training set."""
    for model in ("vit_b16", "vit_l14_336", "shapes"):
        path = REPO / f"configs/eval/{model}/second_opinion.yaml"
        config = san_config(load_config(str(path), ["MODEL.DEVICE", "cpu"]))
        scorer = config.scorer
        assert config == replace(variant(model), scorer=scorer)
        assert scorer.name == "second_opinion"
        seen = Vocabulary.parse(scorer.options["seen"]).names
        assert seen == (NAMES[:-8] if model == "shapes" else Vocabulary.label_set("coco_stuff_171").names)
    assert not {*NAMES[:-8]} & {*NOVEL}

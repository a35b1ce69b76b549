"""The predictor on a tiny untrained model: encode once, name many times, refuse what makes no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from san.checkpoint import to_published
from san.model.build import build_san
from san.model.config import variant
from san.predictor import Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(build_san(variant("tiny")), short_side=96)


def picture(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_labels_have_the_size_of_the_image(predictor: Predictor, tmp_path: Path) -> None:
    result = predictor.predict(picture(), ["cat", "grass"])
    assert result.labels.shape == (50, 70)
    assert set(np.unique(result.labels)) <= {0, 1}
    assert sum(result.areas().values()) == pytest.approx(1)
    result.panel(tmp_path / "panel.png")
    assert Image.open(tmp_path / "panel.png").width > 100


def test_second_vocabulary_does_not_encode_again(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    propose = predictor.model.propose
    monkeypatch.setattr(predictor.model, "propose", lambda images: calls.append(1) or propose(images))
    predictor.set_image(picture())
    first = predictor.segment(["cat", "grass"])
    second = predictor.segment(["dog", "sky", "person"])
    assert len(calls) == 1
    assert second.names == ("dog", "sky", "person")
    assert np.array_equal(first.labels, predictor.segment(["cat", "grass"]).labels)
    assert np.array_equal(1 - first.labels, predictor.segment(["grass", "cat"]).labels)


def test_file_array_and_pil_image_agree(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    names = ["cat", "dog"]
    results = [
        predictor.predict(source, names) for source in (picture(), Image.fromarray(picture()), tmp_path / "a.png")
    ]
    assert all(np.array_equal(result.labels, results[0].labels) for result in results)


def test_from_a_published_checkpoint(predictor: Predictor, tmp_path: Path) -> None:
    torch.save({"model": to_published(predictor.model.state_dict())}, tmp_path / "san.pth")
    loaded = Predictor.from_pretrained(tmp_path / "san.pth", "tiny")
    names = ["cat", "dog", "grass"]
    assert np.array_equal(loaded.predict(picture(), names).labels, predictor.predict(picture(), names).labels)


def test_refusals(predictor: Predictor, tmp_path: Path) -> None:
    fresh = Predictor(predictor.model)
    with pytest.raises(ValueError, match="call set_image"):
        fresh.segment(["cat"])
    with pytest.raises(ValueError, match=r"\(5, 5\) and type float64"):
        fresh.set_image(np.zeros((5, 5)))
    fresh.set_image(picture())
    for names, message in (
        ("cat", "one string"),
        (["cat", " cat"], "stand twice in the vocabulary: cat"),
        ([], "at least one name"),
        (["cat", ""], "none of them blank"),
    ):
        with pytest.raises(ValueError, match=message):
            fresh.segment(names)
    with pytest.raises(FileNotFoundError, match="none.pth"):
        Predictor.from_pretrained(tmp_path / "none.pth", "tiny")

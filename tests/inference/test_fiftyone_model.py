"""`fiftyone_model` in FiftyOne's own `apply_model`; the data set needs FiftyOne's database, and is skipped without."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.inference.fiftyone_model import fiftyone_model
from san.inference.predictor import Predictor
from san.shapes.render import render
from san.shapes.world import scene_at
from san.vocabulary.vocabulary import Vocabulary

WORDS = "white star, black bar, blue ring, striped ground, plain ground"


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ImportError, match=r'fiftyone_model needs the extra "fiftyone"'):
        fiftyone_model(Predictor.from_pretrained("shapes", text_cache=None), WORDS)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    pytest.importorskip("fiftyone")
    return Predictor.from_pretrained("shapes", text_cache=None)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Of two sizes."""
    first, second, third = render([scene_at(seed=5, index=index) for index in range(3)])[0]
    return [first, second, third[:100, :90]]


def test_masks_are_shifted_by_one(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    made = fiftyone_model(predictor, WORDS, threshold=0.7)
    assert made.mask_targets == dict(enumerate(WORDS.split(", "), start=1))
    for found, picture in zip(made.predict_all(pictures), pictures, strict=True):
        expected = predictor.predict(picture, WORDS, threshold=0.7).labels
        assert np.array_equal(found.mask, expected + 1)
        assert np.array_equal(made.predict(picture).mask, expected + 1)
    assert made.predict_all([]) == []


def test_context_is_background(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    made = fiftyone_model(predictor, Vocabulary.parse("white star, black bar").with_context("shapes_36"))
    assert made.mask_targets == {1: "white star", 2: "black bar"}
    assert {*np.unique(made.predict(pictures[0]).mask)} <= {0, 1, 2}


def test_a_wrong_option_is_refused_at_once(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="min_area is -1"):
        fiftyone_model(predictor, WORDS, min_area=-1)
    with pytest.raises(ValueError, match="vocabulary"):
        fiftyone_model(predictor, "")


@pytest.mark.parametrize(("batch_size", "instances"), [(None, False), (2, False), (2, True)])
def test_a_data_set(
    predictor: Predictor, pictures: list[np.ndarray], tmp_path: Path, batch_size: int | None, instances: bool
) -> None:
    import fiftyone

    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"bild {index} #ä.png")
    try:
        dataset = fiftyone.Dataset()
    except Exception as error:  # whatever a missing database raises
        pytest.skip(f"no database of FiftyOne: {type(error).__name__}")
    try:
        dataset.add_samples([fiftyone.Sample(str(path)) for path in sorted(tmp_path.glob("*.png"))])
        made = fiftyone_model(predictor, WORDS, instances=instances)
        dataset.apply_model(made, label_field="san", batch_size=batch_size, progress=False)
        dataset.mask_targets = {"san": made.mask_targets}
        dataset.reload()
        for sample, picture in zip(dataset, pictures, strict=True):
            result = predictor.predict(picture, WORDS)
            if instances:
                regions = result.regions(instances=True)
                assert [each.label for each in sample.san.detections] == [result.names[each.label] for each in regions]
            else:
                assert np.array_equal(sample.san.mask, result.labels + 1)
                assert dataset.mask_targets["san"][int(sample.san.mask[0, 0])] == result.names[result.labels[0, 0]]
    finally:
        dataset.delete()

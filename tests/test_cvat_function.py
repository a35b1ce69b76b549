"""examples/cvat_auto_annotation.py in the real CVAT SDK, whose driver checks it; only the server is made up."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.inference.predictor import Predictor
from san.shapes.render import render
from san.shapes.world import scene_at

cvataa = pytest.importorskip("cvat_sdk.auto_annotation")
from cvat_sdk import models  # noqa: E402
from cvat_sdk.auto_annotation import driver  # noqa: E402
from cvat_sdk.masks import decode_mask  # noqa: E402

WORDS = "white star|red star, black bar, blue ring, striped ground, plain ground"
NAMES = ["white star", "black bar", "blue ring", "striped ground", "plain ground"]
PICTURES = [Image.fromarray(each) for each in render([scene_at(seed=5, index=index) for index in (2, 6)])[0]]


def function(**options: Any) -> Any:
    """Made as cvat-cli makes it."""
    namespace: dict[str, Any] = {"__name__": "cvat_function"}
    path = Path(__file__).parents[1] / "examples/cvat_auto_annotation.py"
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    return namespace["create"](**{"words": WORDS, **options})


def annotate(made: Any, monkeypatch: pytest.MonkeyPatch, kind: str = "mask", **options: Any) -> list[Any]:
    """Run the SDK's `annotate_task`, and return the shapes it would upload; label ids of the task begin at 100."""
    labels = [
        models.Label(name=name, id=100 + index, type=kind, attributes=[], sublabels=[])
        for index, name in enumerate(NAMES)
    ]
    samples = [
        SimpleNamespace(frame_index=index, frame_name=f"{index}.png", media=SimpleNamespace(load_image=picture.copy))
        for index, picture in enumerate(PICTURES)
    ]
    data = SimpleNamespace(labels=labels, samples=samples)
    monkeypatch.setattr(driver, "TaskDataset", lambda client, task_id, load_annotations: data)
    sent: list[Any] = []
    api = SimpleNamespace(update_annotations=lambda task_id, labeled_data_request: sent.append(labeled_data_request))
    client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
    cvataa.annotate_task(client, 1, made, clear_existing=True, **options)
    (request,) = sent
    assert not request.tags
    shapes: list[Any] = request.shapes
    return shapes


def expected() -> list[np.ndarray]:
    predictor = Predictor.from_pretrained("shapes", text_cache=None)
    return [predictor.predict(each, WORDS).labels for each in PICTURES]


def test_masks_are_the_labels_of_a_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = np.full((2, 128, 128), -1)
    for shape in annotate(function(), monkeypatch):
        assert shape.type.value == "mask" and shape.source == "auto"
        mask = decode_mask(shape.points, image_width=128, image_height=128)
        found[shape.frame][mask] = shape.label_id - 100
    assert np.array_equal(found, expected())


def test_polygons_if_cvat_converts_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = annotate(function(tolerance=0.0), monkeypatch, "polygon", conv_mask_to_poly=True)
    areas = np.zeros((2, len(NAMES)))
    for shape in shapes:
        x, y = np.array(shape.points).reshape(-1, 2).T
        areas[shape.frame, shape.label_id - 100] += abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    assert np.allclose(areas, [np.bincount(each.ravel(), minlength=len(NAMES)) for each in expected()])


def test_thresholds_and_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    every = annotate(function(), monkeypatch)
    predictor = Predictor.from_pretrained("shapes", text_cache=None)
    scores = sorted(region.score for each in PICTURES for region in predictor.predict(each, WORDS).regions())
    sure = annotate(function(), monkeypatch, conf_threshold=(scores[0] + scores[1]) / 2)
    parts = annotate(function(instances=True, min_area=5), monkeypatch)
    assert len(sure) == len(every) - 1 == len(scores) - 1
    assert len(parts) > len(every)


def test_words_without_a_label_are_the_drivers_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    made = function(words="white star, green cross")
    with pytest.raises(cvataa.BadFunctionError, match="'green cross' is not in dataset"):
        annotate(made, monkeypatch)
    assert {each.label_id for each in annotate(made, monkeypatch, allow_unmatched_labels=True)} == {100}


def test_context_is_not_annotated() -> None:
    made = function(words="white star, black bar", context="shapes_36")
    assert [each.name for each in made.spec.labels] == ["white star", "black bar"]
    with pytest.raises(ValueError, match="vocabulary is empty"):
        function(words="")

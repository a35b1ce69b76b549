"""Formats of answers, and kept images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.serve.conftest import png

pytest.importorskip("fastapi_offline", reason="the extra serve is not installed")
from san.serve.answers import chosen_format
from san.web.uploads import Refusal


@pytest.fixture
def expected(predictor, scenes):
    return predictor.predict(*scenes[0])


def test_every_format_is_that_of_the_predictor(client, scenes, expected):
    picture, words = scenes[0]
    asked = {form: client.segment(png(picture), words, format=form) for form in ("labels", "overlay")}
    assert np.array_equal(asked["labels"].picture, expected.labels)
    assert np.array_equal(asked["overlay"].picture, np.asarray(expected.overlay()))
    assert {each.headers["content-type"] for each in asked.values()} == {"image/png"}
    rle = client.segment(png(picture), words, format="rle").json
    assert rle == json.loads(json.dumps(expected.to_coco_rle("a.png")))
    found = client.segment(png(picture), words).json
    assert found == json.loads(json.dumps(expected.to_dict("a.png") | {"notes": []}))


def test_regions_have_their_options(client, scenes, expected):
    picture, words = scenes[0]
    options = {"instances": True, "min_area": 9, "score_threshold": 0.1}
    coco = client.segment(png(picture), words, format="coco", **options).json
    assert coco == json.loads(json.dumps(expected.to_coco("a.png", **options)))
    coco = client.segment(png(picture), words, format="coco", coco_polygons="true", tolerance=1.5).json
    assert coco == json.loads(json.dumps(expected.to_coco("a.png", polygons=True, tolerance=1.5)))
    found = client.segment(png(picture), words, format="polygons", tolerance=1.5, **options).json
    plain = expected.to_polygons(tolerance=1.5, **options)
    assert [each["area"] for each in found] == [each["area"] for each in plain]
    assert np.array_equal(found[0]["polygons"][0][0], plain[0]["polygons"][0][0])


def test_none_of_these_threshold_and_context_reach_the_model(client, predictor, scenes):
    picture, words = scenes[1]
    encoded = predictor.encode(picture)
    one = client.segment(png(picture), words, format="labels", threshold=0.8, none_of_these="true").picture
    labels = predictor.segment(words, encoded=encoded, threshold=0.8, none_of_these=True).labels
    assert np.array_equal(one, np.where(labels < 0, 255, labels)) and (one == 255).any()
    context = client.segment(png(picture), "red star", context="shapes_36").json["classes"]
    assert [each["context"] for each in context] == [False, *[True] * 35]
    assert len(client.segment(png(picture), "shapes_36").json["classes"]) == 36


def test_unknown_words_are_noted_and_not_logged(client, scenes, caplog):
    notes = client.segment(png(scenes[0][0]), "zeppelin, plain ground").json["notes"]
    assert notes == ["the small CLIP does not know 'zeppelin': its embedding means little"]
    assert "zeppelin" not in caplog.text


def test_further_words_for_a_kept_image_skip_the_encoder(client, predictor, scenes):
    picture, words = scenes[2]
    kept = client.post("/v1/images", png(picture), "Straße.png")
    assert kept.status == 201
    handle = kept.json["image_id"]
    assert len(handle) >= 40
    assert (kept.json["height"], kept.json["width"]) == picture.shape[:2]
    encoded = client.metric("san_batch_images_sum")
    for vocabulary in (words, "red star, dotted ground"):
        reply = client.segment(vocabulary=vocabulary, image_id=handle, format="labels")
        assert np.array_equal(reply.picture, predictor.predict(picture, vocabulary).labels)
    body = {"image_id": handle, "vocabulary": words}
    reply = client.ask("POST", "/v1/segment", json.dumps(body), {"content-type": "application/json"})
    assert reply.json["file_name"] == "Straße.png" and reply.headers["san-image-id"] == handle
    assert client.metric("san_batch_images_sum") == encoded
    assert client.metric("san_kept_images") >= 1 and client.metric("san_kept_bytes") > picture.nbytes
    assert client.ask("DELETE", f"/v1/images/{handle}").status == 204
    for gone in (client.segment(image_id=handle), client.ask("DELETE", f"/v1/images/{handle}")):
        assert gone.status == 404 and "send the picture again" in gone.detail
        assert handle not in gone.detail


def test_keep_returns_a_handle_with_the_answer(client, scenes):
    picture, words = scenes[3]
    first = client.segment(png(picture), words, keep="true")
    again = client.segment(vocabulary=words, image_id=first.headers["san-image-id"])
    assert again.json == first.json
    assert "san-image-id" not in client.segment(png(picture), words).headers


@pytest.mark.parametrize(
    ("name", "accept", "form"),
    [
        ("", "", "json"),
        ("", "*/*", "json"),
        ("", "image/png", "labels"),
        ("", "image/*;q=0.5, application/json;q=0.4", "labels"),
        ("", "text/html, application/json;q=0.9, */*;q=0.1", "json"),
        ("", "image/png;q=0, */*", "json"),
        ("overlay", "application/json", "overlay"),
    ],
)
def test_format_and_accept_choose(name, accept, form):
    assert chosen_format(name, accept) == form


@pytest.mark.parametrize(
    ("name", "accept", "status", "message"),
    [
        ("svg", "", 422, "format is 'svg' but must be one of json, labels, overlay, rle, coco, polygons"),
        ("", "text/html", 406, "Accept is 'text/html' but answers are application/json or image/png"),
        ("", "image/png;q=x", 406, "Accept is"),
    ],
)
def test_other_formats_are_refused(name, accept, status, message):
    with pytest.raises(Refusal, match=message) as caught:
        chosen_format(name, accept)
    assert caught.value.status == status

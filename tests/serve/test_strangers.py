"""Wrong, hostile and interrupted requests: answered with 4xx and a remedy, and harmless for others."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import socket
import threading
import time
import urllib.parse
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.serve.conftest import LIMITS, Client, form, png

pytest.importorskip("fastapi_offline", reason="the extra serve is not installed")
from dataclasses import replace

from san.serve.server import ServiceServer
from san.serve.service import SegmentService

GREY = png(np.full((30, 40, 3), 90, np.uint8))
JSON = {"content-type": "application/json"}


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises a huge picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    head = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100)))


@pytest.fixture(autouse=True)
def nothing_is_an_internal_error(client, caplog):
    yield
    assert "Traceback" not in caplog.text and not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        (b"hello", 422, "cannot be read (it is not PNG, JPEG, WEBP, BMP, GIF, TIFF); choose another one"),
        (b"", 422, "empty file (0 bytes)"),
        (GREY[:60], 422, "cannot be read ("),
        (bomb(60_000), 422, "shrink it"),
        (bomb(2000), 422, "4 million pixels, but at most 0.4 million are accepted; shrink it"),
        (b"<svg/>", 422, "is an SVG"),
        (bytes(310_000), 413, "at most 0.3 MB are accepted; shrink it"),
        (bytes(500_000), 413, "the limit here is 0.3 MB. Shrink it"),
        (None, 422, "give image, a file, or image_id"),
    ],
    ids=["text", "empty", "truncated", "bomb", "large", "svg", "too many bytes", "far too many bytes", "none"],
)
def test_what_is_no_picture_is_refused(client, image, status, message):
    reply = client.segment(image)
    assert reply.status == status, reply.content
    assert message in reply.detail


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocabulary": " , ;\n"}, r"vocabulary is ' , ;\n'; give at least one name"),
        ({"vocabulary": ""}, "give at least one name"),
        ({"vocabulary": "cat" * 700}, "the words have 2100 characters, the limit here is 2000"),
        ({"vocabulary": ", ".join(map(str, range(61)))}, "has 61 classes, the limit here is 60"),
        ({"vocabulary": "cat, cat"}, "cat"),
        ({"vocabulary": "shapes_37"}, "shapes_37"),
        ({"context": "shapes_37"}, "shapes_37"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"threshold": "nan"}, "threshold is 'nan': "),
        ({"min_area": "-1"}, "min_area is '-1'"),
        ({"none_of_these": "perhaps"}, "none_of_these is 'perhaps'"),
        ({"vocabulry": "cat"}, "there is no field 'vocabulry'; the fields are image, vocabulary"),
        ({"format": "svg"}, "format is 'svg' but must be one of json, labels"),
        ({"image_id": "guess"}, "one of them"),
    ],
)
def test_wrong_fields_are_refused(client, fields, message):
    reply = client.post("/v1/segment", GREY, **{"vocabulary": "cat, dog", **fields})
    assert reply.status == 422, reply.content
    assert message in reply.detail


form_kind, whole_form = form({"vocabulary": "cat" * 90}, GREY)
latin_kind, latin_form = form({"vocabulary": b"K\xe4fer"}, GREY)


@pytest.mark.parametrize(
    ("kind", "body", "status", "message"),
    [
        ("text/plain", b"cat", 415, "the Content-Type is 'text/plain' but must be multipart/form-data"),
        ("application/x-www-form-urlencoded", b"vocabulary=cat", 415, "application/x-www-form-urlencoded"),
        ("", b"", 415, "Content-Type is ''"),
        ("multipart/form-data", b"cat", 400, "Missing boundary"),
        ("multipart/form-data; boundary=x", b"cat", 400, "the form cannot be read"),
        ("multipart/form-data; boundary=x", b"", 422, "the field vocabulary is missing"),
        ("application/json", b"cat", 400, "is not JSON"),
        ("application/json", b"[]", 400, "it is not an object"),
        ("application/json", b"[" * 15_000, 400, "is not JSON"),
        ("application/json", b'{"vocabulary": "\xe4"}', 400, "is not JSON in UTF-8"),
        ("application/json", b'{"vocabulary": "\\ud800"}', 400, "is not JSON in UTF-8"),
        ("application/json", b'{"vocabulary": ["cat"]}', 422, "vocabulary is ['cat']"),
        ("application/json", b'{"vocabulary": "cat"}', 422, "give image, a file, or image_id"),
        ("application/json", b'{"vocabulary": "cat", "image_id": "guess"}', 404, "send the picture again"),
        ("application/json", b" " * 40_000, 413, "too large"),
        (latin_kind, latin_form, 400, "'vocabulary' is not UTF-8 (invalid continuation byte at byte 1)"),
        (f"{latin_kind}; charset=utf-8", latin_form, 400, "'vocabulary' is not UTF-8"),
        (*form({"vocabulary": "x" * 10_000}, GREY), 400, "at most 2000 characters in each"),
        (*form({f"field{n}": "" for n in range(30)}, GREY), 400, "Too many fields"),
        ("multipart/form-data; boundary=x", form({"a": 1})[1], 400, "the form cannot be read"),
        (form_kind, whole_form[:-300], 422, "the field vocabulary is missing"),
    ],
)
def test_damaged_bodies_are_refused(client, kind, body, status, message):
    reply = client.ask("POST", "/v1/segment", body, {"content-type": kind})
    assert reply.status == status, reply.content
    assert message in reply.detail
    assert len(reply.detail) < 2100


def test_a_picture_as_text_is_refused(client):
    kind, body = form({"vocabulary": "cat", "image": "a.png"})
    reply = client.ask("POST", "/v1/segment", body, {"content-type": kind})
    assert (reply.status, reply.detail[:46]) == (422, "image is the text 'a.png' but must be a file: ")
    handle = client.post("/v1/images", GREY).json["image_id"]
    assert client.post("/v1/segment", vocabulary="cat", image_id=handle, **{"context": "", "format": ""}).status == 200
    kind, body = form({"vocabulary": "cat", "image": "", "image_id": handle, "format": ""})
    assert client.ask("POST", "/v1/segment", body, {"content-type": kind}).status == 200, "as the page /docs sends it"


def test_two_of_a_field_or_two_files_are_refused(client):
    kind, body = form({"vocabulary": "cat"}, GREY)
    boundary = kind.split("=")[1]
    head = f"--{boundary}\r\nContent-Disposition: form-data; "
    for extra, message in (
        ('name="vocabulary"\r\n\r\ndog', "'vocabulary' is given twice"),
        ('name="vocabulary"; filename="a"\r\n\r\ndog', "Too many files"),
        ('name="other"; filename="a"\r\n\r\ndog', "Too many files"),
    ):
        twice = f"{head}{extra}\r\n".encode() + body
        reply = client.ask("POST", "/v1/segment", twice, {"content-type": kind})
        assert reply.status in (400, 422) and message in reply.detail
    only = f'{head}name="vocabulary"; filename="a"\r\n\r\ndog\r\n--{boundary}--\r\n'.encode()
    assert "is a file; only image is one" in client.ask("POST", "/v1/segment", only, {"content-type": kind}).detail


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (3, 2)])
def test_tiny_and_narrow_pictures_are_answered(client, shape):
    reply = client.segment(png(np.full((*shape, 3), 90, np.uint8)), format="labels")
    assert reply.status == 200 and reply.picture.shape == shape


def test_odd_names_of_files_are_names_alone(client):
    for name in ("../../etc/passwd", "Straße #1 (2).png", "a" * 3000 + ".png", "\x7f\u202e.png"):
        reply = client.post("/v1/segment", GREY, name, vocabulary="red star, plain ground")
        assert reply.status == 200 and len(reply.json["file_name"]) <= 255


def test_other_pages_and_methods_are_json_too(client):
    assert client.ask("GET", "/v2/segment").status == 404
    assert client.ask("GET", "/v1/segment").status == 405
    assert client.ask("GET", "/static-offline-docs/../../etc/passwd").status == 404
    assert "/docs" in client.ask("GET", "/nothing").detail
    assert client.ask("HEAD", "/health").status == client.ask("HEAD", "/ready").status == 200


def test_an_upload_with_a_stated_length_is_refused_before_it_is_sent(client):
    parts = urllib.parse.urlsplit(client.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        kind = "Content-Type: multipart/form-data; boundary=x"
        head = f"POST /v1/segment HTTP/1.1\r\nHost: a\r\n{kind}\r\nContent-Length: 9999999\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(1000)


def test_every_answer_forbids_other_sources(client):
    for path in ("/docs", "/health", "/nothing"):
        headers = client.ask("GET", path).headers
        assert (
            "default-src 'self'" in headers["content-security-policy"]
            and headers["x-content-type-options"] == "nosniff"
        )
        assert "http" not in headers["content-security-policy"] and "server" not in headers


def test_the_description_is_whole_and_offline(client):
    page = client.ask("GET", "/docs").content.decode()
    assert "https://" not in page
    for source in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{source}" in page
        assert client.ask("GET", f"/static-offline-docs/{source}").status == 200
    described = client.ask("GET", "/openapi.json").json
    body = described["paths"]["/v1/segment"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert {"image", "vocabulary", "image_id", "format"} <= set(body["multipart/form-data"]["schema"]["properties"])
    assert set(described["paths"]) == {
        "/v1/segment", "/v1/images", "/v1/images/{image_id}", "/metrics", "/health", "/ready"
    }  # fmt: skip


@contextlib.contextmanager
def serving(predictor, keys=(), **limits):
    service = SegmentService(predictor, replace(LIMITS, **limits), keys=keys)
    with ServiceServer(service).running() as url:
        yield Client(url, service)
    assert service.close(10)


@contextlib.contextmanager
def held(client, monkeypatch):
    """Holds the engine at its next picture; yields what lets it go."""
    reached, go = threading.Event(), threading.Event()
    predictor = client.service.engine._predictor
    encode = predictor.encode_batch

    def waiting(*args, **options):
        reached.set()
        assert go.wait(30)
        return encode(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "encode_batch", waiting)
        try:
            yield reached, go
        finally:
            go.set()


def soon(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_full_server_says_when_to_come_again(predictor, monkeypatch):
    with (
        serving(predictor, max_waiting=3) as client,
        held(client, monkeypatch) as (reached, go),
        ThreadPoolExecutor() as pool,
    ):
        first = [pool.submit(client.segment, GREY) for _ in range(3)]
        assert reached.wait(20) and soon(lambda: client.service._admitted == 3)
        reply = client.segment(GREY)
        assert reply.status == 429
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert "3 requests wait already, the limit here is 3" in reply.detail
        assert client.ask("GET", "/health").status == 200, "probes are answered"
        go.set()
        assert [each.result().status for each in first] == [200] * 3
        assert client.segment(GREY).status == 200


def test_what_takes_too_long_is_given_up_and_not_computed(predictor, monkeypatch):
    with (
        serving(predictor, max_seconds=0.3) as client,
        held(client, monkeypatch) as (reached, go),
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(client.segment, GREY)
        assert reached.wait(20)
        waiting = client.segment(GREY)
        for reply in (running.result(), waiting):
            assert reply.status == 503 and "took longer than 0.3 s; send it again later" in reply.detail
            assert "retry-after" in reply.headers
        done = client.metric("san_segmentations_total")
        client.service.limits = LIMITS
        go.set()
        assert soon(lambda: not client.service.engine._waiting)
        assert client.segment(GREY).status == 200
        assert client.metric("san_segmentations_total") <= done + 2, "the one that waited was left out"


def test_who_leaves_is_not_computed_and_hurts_nobody(client, monkeypatch, scenes, predictor):
    kind, body = form({"vocabulary": "red star, plain ground"}, GREY)
    parts = urllib.parse.urlsplit(client.url)
    before = client.metric("san_batch_images_sum")
    with held(client, monkeypatch) as (reached, go), ThreadPoolExecutor() as pool:
        first = pool.submit(client.segment, png(scenes[0][0]), scenes[0][1], format="labels")
        assert reached.wait(20)
        leaving = http.client.HTTPConnection(parts.hostname, parts.port)
        leaving.request("POST", "/v1/segment", body, {"content-type": kind})
        assert soon(lambda: len(client.service.engine._waiting) == 1)
        other = pool.submit(client.segment, png(scenes[1][0]), scenes[1][1], format="labels")
        assert soon(lambda: len(client.service.engine._waiting) == 2)
        leaving.close()
        assert soon(lambda: client.service._admitted == 2), "its place is free"
        assert soon(lambda: len(client.service.engine._waiting) == 1), "and its picture is not kept in memory"
        go.set()
    for reply, (picture, words) in ((first.result(), scenes[0]), (other.result(), scenes[1])):
        assert np.array_equal(reply.picture, predictor.predict(picture, words).labels)
    assert client.metric("san_batch_images_sum") == before + 2


def test_results_are_freed_without_the_garbage_collector(client, monkeypatch, scenes):
    """It would find circles of references rarely, and each holds megabytes."""
    segment, results = client.service.engine._segment, []

    def watched(*args):
        outcome = segment(*args)
        results.append(weakref.ref(outcome.result))
        return outcome

    monkeypatch.setattr(client.service.engine, "_segment", watched)
    gc.collect()
    gc.disable()
    try:
        handle = client.segment(png(scenes[0][0]), keep="true").headers["san-image-id"]
        for form_ in ("labels", "coco", "json"):
            assert client.segment(image_id=handle, format=form_).status == 200
        assert len(results) == 4
        assert soon(lambda: not any(each() is not None for each in results))
    finally:
        gc.enable()


def test_half_an_upload_frees_its_place(client):
    kind, body = form({"vocabulary": "cat"}, GREY)
    parts = urllib.parse.urlsplit(client.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        head = f"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:50])
        assert soon(lambda: client.service._admitted == 1)
    assert soon(lambda: client.service._admitted == 0)


def test_keys_are_needed_where_there_are_some(predictor, caplog):
    keys = ["first-key-of-the-file", "second-key-of-the-file"]
    with serving(predictor, keys) as client:
        for given in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {keys[0]}"},
            {"authorization": ""},
        ):
            reply = Client(client.url, client.service, given).segment(GREY)
            assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in reply.detail and keys[0] not in reply.detail
        for method, path in (("POST", "/v1/images"), ("DELETE", "/v1/images/x"), ("GET", "/metrics")):
            assert client.ask(method, path).status == 401
        for key in keys:
            assert Client(client.url, client.service, {"authorization": f"Bearer {key}"}).segment(GREY).status == 200
        for path in ("/health", "/ready", "/docs", "/openapi.json"):
            assert client.ask("GET", path).status == 200
    assert "key-of-the-file" not in caplog.text


def test_no_answer_reaches_another_client(client, scenes, predictor):
    """Each has its own picture and its own words, in batches and from kept images."""
    expected = [predictor.predict(picture, words).labels for picture, words in scenes]
    handles = [client.post("/v1/images", png(picture)).json["image_id"] for picture, _ in scenes]

    def visit(index: int) -> bool:
        own = index % len(scenes)
        picture, words = scenes[own]
        if index % 3:
            reply = client.segment(png(picture), words, format="labels")
        else:
            reply = client.segment(None, words, format="labels", image_id=handles[own])
        return reply.status == 200 and np.array_equal(reply.picture, expected[own])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(visit, range(36)))


def test_json_s_numbers_and_truths_are_read(client):
    handle = client.post("/v1/images", GREY).json["image_id"]
    body = {"image_id": handle, "vocabulary": "red star", "threshold": 99, "none_of_these": True, "format": "json"}
    assert client.ask("POST", "/v1/segment", json.dumps(body), JSON).json["none_share"] == 1.0

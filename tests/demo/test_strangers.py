"""Invalid requests and many visitors; the demo in folders and frames of other sites."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.parse

import pytest

from tests.demo.test_http import ROLE, Visitor, ask, echo, png

pytest.importorskip("gradio", reason="Gradio is not installed")
from san.demo.guard import Guard
from san.demo.limits import Limits
from san.web import uploads

CLICK, UPLOAD = ("click", 5), ("upload", 4)
HALF_UPLOAD = b"POST /san/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc"


@pytest.mark.parametrize(
    ("data", "session"),
    [
        ([None, "SECRET", "none", ROLE, False], ""),
        ([None, "SECRET", "none", ROLE, False], "a/b"),
        ([None, "SECRET", "none", ROLE, False], "\ud800"),
        ([None, "SECRET", "none", ROLE, False], None),
        ([None, "SECRET", "none", ROLE, False], 5),
        ([None, "SECRET", "SECRET", ROLE, False], "stranger"),
        ([None, "SECRET", 5, ROLE, False], "stranger"),
        ([None, "SECRET", "none", "SECRET", False], "stranger"),
        ([None, "SECRET"], "stranger"),
        ([None, "SECRET", "none", ROLE, False, "SECRET"], "stranger"),
        ([], "stranger"),
    ],
)
def test_odd_values_are_refused_and_not_logged(demo, capfd, caplog, data, session):
    visitor = Visitor(demo.url, session)
    status, _, text = visitor.join(data, CLICK)
    assert (status, json.loads(text)["detail"]) == (400, "This is not a request of the page; reload the page.")
    assert ask(demo.url, "GET", "/gradio_api/queue/data?session_hash=stranger")[0] == 404
    written = capfd.readouterr()
    assert written.err + written.out + caplog.text == ""


def test_odd_values_that_an_input_takes_are_only_values(demo):
    visitor = Visitor(demo.url, "odd_one-1")
    assert visitor.join([["x"], "red star", "none", ROLE, False], CLICK)[0] == 400
    for data in ([None, 5, None, None, "yes"], ["x", "5", "none", ROLE, 1e308]):
        assert visitor.join(data, CLICK)[0] == 200
        assert [each["name"] for each in visitor.result()["classes"]] == ["5"]


def test_half_a_surrogate_pair_does_not_end_the_stream(demo):
    visitor = Visitor(demo.url, "surrogates")
    assert visitor.segment("red \ud800star")["classes"][0]["name"] == "red ?star"
    token = json.loads(ask(demo.url, "POST", "/san/image", png())[2])["token"]
    visitor.join(["red \udfffstar", "none", ROLE, False], UPLOAD, {"token": token, "title": "\ud800.png"})
    view = visitor.result()
    assert (view["image"]["title"], view["classes"][0]["name"]) == ("?.png", "red ?star")
    assert visitor.segment("\N{PILE OF POO}")["classes"][0]["name"] == "\N{PILE OF POO}", "whole pairs stay"


@pytest.mark.parametrize("body", ['{"session_hash": "\\ud800"}', '{"event_id": "\\ud800"}', "[]", "{", "\\ud800"])
@pytest.mark.parametrize("path", ["/gradio_api/cancel", "/gradio_api/reset"])
def test_odd_cancellations_are_refused_and_not_logged(demo, capfd, caplog, path, body):
    assert ask(demo.url, "POST", path, body, {"content-type": "application/json"})[0] in (200, 400, 422)
    written = capfd.readouterr()
    assert written.err + written.out + caplog.text == ""


def test_a_stream_without_a_request_is_refused(demo, capfd, caplog):
    """Gradio writes a page into the log for each."""
    for query in ("", "?session_hash=nobody", "?session_hash=", "?session_hash=%ED%A0%80"):
        assert ask(demo.url, "GET", f"/gradio_api/queue/data{query}")[0] == 404
    written = capfd.readouterr()
    assert written.err + written.out + caplog.text == ""


def test_a_result_is_fetched_once(demo):
    visitor = Visitor(demo.url, "fetcher")
    before = demo.guard.results.usage()[0]
    visitor.segment("red star")
    assert demo.guard.results.usage()[0] == before, "what was read is forgotten"
    assert ask(demo.url, "GET", "/san/result/guess")[0] == 404
    status, headers, text = ask(demo.url, "GET", "/san/result/first")
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert json.loads(text)["image"]["width"] == 384


def test_a_bad_picture_is_refused_at_its_upload(demo):
    before = demo.guard.pictures.usage()[0]
    for content, message in (
        (b"hello", "cannot be read (it is not PNG, JPEG"),
        (b"", "empty"),
        (png()[:60], "cannot be read ("),
    ):
        status, _, text = ask(demo.url, "POST", "/san/image", content)
        assert status == 422
        assert message in json.loads(text)["detail"]
    assert demo.guard.pictures.usage()[0] == before


def test_slow_uploads_of_one_address_leave_room_for_others(demo):
    port = urllib.parse.urlsplit(demo.url).port
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            slow = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=("127.0.0.2", 0))
            stack.enter_context(slow).sendall(HALF_UPLOAD)
        start = time.monotonic()
        assert ask(demo.url, "POST", "/san/image", png())[0] == 200
        assert time.monotonic() - start < uploads._FIRST_SECONDS / 2


def test_who_stalls_does_not_hold_an_upload_s_place(demo, monkeypatch):
    """Also not for others of the same address."""
    monkeypatch.setattr(uploads, "_FIRST_SECONDS", 0.2)
    port = urllib.parse.urlsplit(demo.url).port
    with contextlib.ExitStack() as stack:
        crowd = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(12)]
        for slow in crowd:
            stack.enter_context(slow).sendall(HALF_UPLOAD)
        assert ask(demo.url, "POST", "/san/image", png())[0] == 200
        assert crowd[0].recv(15) == b"HTTP/1.1 408 Req"[:15]


def test_a_crowd_is_answered_without_a_mix_up(demo):
    """Each has a picture of its own size, and asks for words of its own."""
    wrong, shared = [], ["red star", "plain ground"]
    before = demo.guard.pictures.usage()[0], demo.guard.results.usage()[0]

    def visit(number):
        visitor = Visitor(demo.url, f"crowd{number}")
        size = (20 + number, 40)
        views = [(size, visitor.upload(png(*size), f"w{number}, red star"), [f"w{number}", "red star"])]
        for turn in range(2):
            words = [f"w{number}t{turn}", *shared]
            views.append((size, visitor.segment(", ".join(words)), words))
        for (width, height), view, words in views:
            if (view["image"]["width"], view["image"]["height"]) != (width, height):
                wrong.append((number, view["image"]))
            if [each["name"] for each in view["classes"]] != words:
                wrong.append((number, view["classes"]))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    assert not wrong
    assert (demo.guard.pictures.usage()[0], demo.guard.results.usage()[0]) == before, "nothing is left behind"


def got(path, **options):
    """Status, headers and content of a page of a guard's."""
    messages = []

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "client": ("192.0.2.1", 5)}
    asyncio.run(Guard(echo, Limits(), **options)(scope, None, send))
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], headers, json.loads(messages[1]["body"])


@pytest.mark.parametrize(
    ("root_path", "path", "found"),
    [
        ("", "/config", (200, "/config")),
        ("/demo", "/demo/config", (200, "/config")),
        ("/demo", "/config", (200, "/config")),
        ("/a/b.c/", "/a/b.c/", (200, "/")),
        ("/demo", "/demo", (307, "/demo/")),
        ("/demo", "/demolition/config", (404, None)),
        ("/demo", "/demo/demo/config", (404, None)),
        ("", "/demo/config", (404, None)),
    ],
)
def test_in_a_folder_of_a_proxy(root_path, path, found):
    """Whether the proxy passes the folder's name on or not."""
    status, headers, content = got(path, root_path=root_path)
    assert (status, headers.get("location") or content.get("path")) == found


@pytest.mark.parametrize("root_path", ["demo", "https://example.org/demo", "/de mo", "//example.org"])
def test_a_root_path_must_be_one(root_path):
    with pytest.raises(ValueError, match=r"--root-path is '.*' but must be a path such as /demo"):
        Guard(echo, Limits(), root_path=root_path)


def test_who_may_show_the_page_in_a_frame():
    sites = ["https://huggingface.co", "http://127.0.0.1:8000", "https://*.hf.space"]
    policy = got("/config", frame_ancestors=sites)[1]["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' https://huggingface.co http://127.0.0.1:8000 https://*.hf.space")
    for site in ("huggingface.co", "https://huggingface.co/spaces", "https://a.b; script-src *", "none", "", "data:"):
        with pytest.raises(ValueError, match=r"--embed-in holds '.*'; give sites such as https://huggingface.co"):
            Guard(echo, Limits(), frame_ancestors=[site])

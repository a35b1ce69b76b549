"""The demo over HTTP, without the page."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from san.demo.guard import Guard, answer
from san.demo.hosts import KnownHosts
from san.demo.limits import Limits
from san.demo.server import DemoServer

SECRET = "root:"  # how /etc/passwd starts
ROLE = "context, marked as such"


def ask(url, method, path, body=None, headers=None):
    """One request with its path as it is, dots and all; status, headers, text."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        connection.request(
            method, path, body, headers or {}, encode_chunked=bool(headers and "transfer-encoding" in headers)
        )
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def png(width=40, height=30):
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


async def echo(scope, receive, send):
    """An application that says whom it takes the visitor for."""
    await answer(send, 200, {"client": scope["client"][0], "path": scope["path"]})


class Visitor:
    """A session without a browser: events in, results out, as Gradio's client does it."""

    def __init__(self, url, name):
        self.url, self.name = url, name
        _, _, text = ask(url, "GET", "/config")
        self.events = {
            (each["targets"][0][1], len(each["inputs"])): each["id"] for each in json.loads(text)["dependencies"]
        }

    def join(self, data, event, event_data=None):
        function = self.events[event]
        body = {"data": data, "fn_index": function, "session_hash": self.name, "event_data": event_data}
        return ask(self.url, "POST", "/gradio_api/queue/join", json.dumps(body), {"content-type": "application/json"})

    def result(self):
        """The view that the answer names, or a message."""
        _, _, text = ask(self.url, "GET", f"/gradio_api/queue/data?session_hash={self.name}")
        messages = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
        (done,) = (each for each in messages if each["msg"] == "process_completed")
        view = json.loads(done["output"]["data"][-1])
        if "result" in view:
            status, _, text = ask(self.url, "GET", f"/san/result/{view['result']}")
            assert status == 200, text
            return json.loads(text)
        return view

    def upload(self, content, words):
        status, _, text = ask(self.url, "POST", "/san/image", content)
        assert status == 200, text
        sent = {"token": json.loads(text)["token"], "title": "a.png"}
        status, _, text = self.join([words, "none", ROLE, False], ("upload", 4), sent)
        assert status == 200, text
        return self.result()

    def segment(self, words):
        status, _, text = self.join([None, words, "none", ROLE, False], ("click", 5))
        assert status == 200, text
        return self.result()


def test_two_visitors_have_their_own_picture(demo):
    one, other, new = (Visitor(demo.url, name) for name in ("visitorone", "visitorother", "visitornew"))
    assert one.upload(png(40, 30), "red star")["image"]["width"] == 40
    assert other.upload(png(50, 20), "blue ring")["image"]["width"] == 50
    view = one.segment("green bar, white ring")
    assert (view["image"]["width"], view["image"]["height"]) == (40, 30)
    assert [each["name"] for each in view["classes"]] == ["green bar", "white ring"]
    assert other.segment("red star")["image"]["width"] == 50
    assert new.segment("red star")["image"]["width"] == 384, "who chose nothing has the first example"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file//etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/assets//etc/passwd",
        "/gradio_api/proxy=file:///etc/passwd",
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/info",
        "/gradio_api/stream/a/b/c/playlist-file",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/svelte/../../etc/passwd",
    ],
)
def test_no_file_and_no_tool_is_served(demo, path):
    status, _, text = ask(demo.url, "GET", path)
    assert status == 404
    assert SECRET not in text


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/run/predict",
        "/gradio_api/call/on_words",
        "/gradio_api/component_server",
        "/login",
    ],
)
def test_gradio_s_other_doors_are_shut(demo, path):
    assert ask(demo.url, "POST", path, b"{}", {"content-type": "application/json"})[0] == 404


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}, "orig_name": "passwd"}


@pytest.mark.parametrize("file", [FILE, {**FILE, "path": "http://127.0.0.1:1/x"}, [FILE]])
def test_a_file_s_record_is_no_input(demo, file):
    visitor = Visitor(demo.url, "intruder")
    for data, event, sent in (
        ([None, file, "none", ROLE, False], ("click", 5), None),
        ([file, "red star", "none", ROLE, False], ("click", 5), None),
        (["red star", file, ROLE, False], ("upload", 4), {"token": "x"}),
        (["red star", "none", ROLE, False], ("upload", 4), {"token": file}),
    ):
        status, _, text = visitor.join(data, event, sent)
        assert status == 400
        assert "files and records are not an input" in text


def test_a_path_as_token_or_words_is_only_text(demo):
    visitor = Visitor(demo.url, "pathwriter")
    visitor.join(["red star", "none", ROLE, False], ("upload", 4), {"token": "/etc/passwd", "title": "/etc/passwd"})
    view = visitor.result()
    assert "no longer there" in view["message"]
    assert [each["name"] for each in visitor.segment("/etc/passwd, red star")["classes"]] == ["/etc/passwd", "red star"]


def test_odd_requests_are_refused(demo):
    unknown = b'{"data": [], "fn_index": -1, "session_hash": "x"}'
    for body in (b"", b"nonsense", b"[]", b'{"data": 5}', b'{"data": [], "event_data": 3}', b"[" * 15_000, unknown):
        assert ask(demo.url, "POST", "/gradio_api/queue/join", body)[0] == 400
    assert ask(demo.url, "POST", "/gradio_api/queue/join", bytes(100_000))[0] == 413
    assert ask(demo.url, "PUT", "/san/image", b"x")[0] == 404
    assert ask(demo.url, "OPTIONS", "/san/image")[0] == 404


def test_uploads_are_limited(demo):
    status, _, text = ask(demo.url, "POST", "/san/image", bytes(300_001))
    assert status == 413
    assert "too large; the limit here is 0.3 MB" in json.loads(text)["detail"]
    chunks = iter([bytes(100_000)] * 4)  # without a stated length
    assert ask(demo.url, "POST", "/san/image", chunks, {"transfer-encoding": "chunked"})[0] == 413


def test_other_sites_pages_are_refused(demo):
    host = urllib.parse.urlsplit(demo.url).netloc
    assert ask(demo.url, "POST", "/san/image", png(), {"origin": "https://evil.example"})[0] == 403
    assert ask(demo.url, "POST", "/san/image", png(), {"origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/queue/data?session_hash=x", "/san/image"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "192.0.2.7", ""])
def test_a_name_that_is_not_ours_is_refused(demo, path, host):
    """From a page whose owner points its name to this machine (DNS rebinding)."""
    port = urllib.parse.urlsplit(demo.url).port
    method = "POST" if path == "/san/image" else "GET"
    sender = {"host": f"{host}:{port}", "origin": f"http://{host}:{port}"}
    status, _, text = ask(demo.url, method, path, png() if method == "POST" else None, sender)
    assert status in (400, 421), "400: the web server itself takes it for no name"
    assert "gradio" not in text and "token" not in text


def test_names_of_this_machine_are_answered(demo):
    """A header with another name is ignored."""
    port = urllib.parse.urlsplit(demo.url).port
    assert "evil" not in ask(demo.url, "GET", "/config", headers={"x-forwarded-host": "evil.example"})[2]
    for host in (f"localhost:{port}", "LOCALHOST.", "127.0.0.1", f"[::1]:{port}"):
        assert ask(demo.url, "GET", "/config", headers={"host": host})[0] == 200


@pytest.mark.parametrize(
    ("bound", "allowed", "host", "known"),
    [
        ("127.0.0.1", (), "127.0.0.1:7860", True),
        ("192.168.1.5", (), "192.168.1.5", True),
        ("192.168.1.5", (), "192.168.1.6", False),
        ("box.lan", (), "Box.lan:80", True),
        ("0.0.0.0", (), "192.168.1.6:7860", True),
        ("::", (), "[fe80::1]:7860", True),
        ("0.0.0.0", (), "evil.example", False),
        ("127.0.0.1", ("demo.example.org",), "Demo.Example.org", True),
        ("127.0.0.1", ("demo.example.org",), "a.demo.example.org", False),
        ("127.0.0.1", (), "127.0.0.1/x", False),
        ("127.0.0.1", (), "user@127.0.0.1", False),
    ],
)
def test_known_names(bound, allowed, host, known):
    statuses = []

    async def app(scope, receive, send):
        statuses.append(200)

    async def send(message):
        statuses.append(message.get("status"))

    hosts = KnownHosts(app, bound, allowed)
    asyncio.run(hosts({"type": "http", "headers": [(b"host", host.encode())]}, None, send))
    assert statuses[0] == (200 if known else 421)
    for headers in ([], [(b"host", b"localhost"), (b"host", b"evil.example")]):
        statuses.clear()
        asyncio.run(hosts({"type": "http", "headers": headers}, None, send))
        assert statuses[0] == 421


@pytest.mark.parametrize("name", ["http://demo.example.org", "demo.example.org:80", "a b", "*"])
def test_an_allowed_name_must_be_one(name):
    pytest.importorskip("uvicorn", reason="uvicorn, which Gradio brings, is not installed")
    with pytest.raises(ValueError, match="--allowed-hosts holds"):
        DemoServer(None, Limits(), allowed_hosts=[name])  # type: ignore[arg-type]


def test_every_answer_forbids_other_sources(demo):
    for path in ("/", "/theme.css", "/nothing"):
        headers = {name.lower(): value for name, value in ask(demo.url, "GET", path)[1].items()}
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_a_full_queue_has_a_clear_message():
    """Gradio's own words are about its insides."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b'{"detail": "Queue is full. Max size is 2"}'})

    async def receive():
        body = b'{"data": [], "fn_index": 3, "session_hash": "x"}'
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "headers": []}
    asyncio.run(Guard(app, Limits(), {3: lambda values: None})(scope, receive, send))
    assert [message.get("status") for message in sent] == [503, None]
    assert json.loads(sent[1]["body"]) == {"detail": "Too many visitors at the moment; try again in a minute."}


def test_an_address_that_asks_too_often_waits():
    guard, statuses = Guard(echo, Limits(requests_per_minute=3)), []

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        statuses.append(message.get("status"))

    for client in ["192.0.2.1"] * 5 + ["2001:db8::1"] * 3 + ["2001:db8::2", "2001:db8:0:1::2"]:
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/cancel", "headers": [], "client": (client, 5)}
        asyncio.run(guard(scope, receive, send))
    assert [each for each in statuses if each] == [200, 200, 200, 429, 429, 200, 200, 200, 429, 200]


def test_listens_on_this_machine_alone_by_default(demo):
    assert demo.url.startswith("http://127.0.0.1:")
    server = DemoServer(Guard(echo, Limits()), Limits())
    assert server._socket.getsockname()[0] == "127.0.0.1"
    server._socket.close()


def test_a_taken_port_is_named():
    pytest.importorskip("uvicorn", reason="uvicorn, which Gradio brings, is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1 port {port}"):
            DemoServer(None, Limits(), port=port)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose another --host or --port"):
        DemoServer(None, Limits(), port=99_999)  # type: ignore[arg-type]

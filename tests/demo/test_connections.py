"""Limits on connections, attacked on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import time
import urllib.parse

import pytest

pytest.importorskip("uvicorn", reason="uvicorn, which Gradio brings, is not installed")
from san.demo.limits import Limits
from san.demo.server import DemoServer
from san.web import connections

LIMITS = Limits(max_visitors=1)  # 108 connections
HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "
BODY = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
WHOLE = b"GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: %s\r\n\r\n"


async def app(scope, receive, send):
    """Says whom it takes the visitor for; /large is more than a connection's buffers hold, /stream has no end.

    It is slow to notice that a connection was lost, as a busy one is.
    """
    if scope["type"] == "lifespan":
        return
    content = bytes(30_000_000) if scope["path"] == "/large" else scope["client"][0].encode()
    length = [] if scope["path"] == "/stream" else [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": content, "more_body": scope["path"] == "/stream"})
    while scope["path"] == "/stream" and (await receive())["type"] != "http.disconnect":
        pass
    if scope["path"] == "/stream":
        await asyncio.sleep(0.5)


@pytest.fixture
def serve(monkeypatch):
    with contextlib.ExitStack() as stack:

        def serve(request=10.0, answer=60.0, **options):
            monkeypatch.setattr(connections, "_REQUEST_SECONDS", request)
            monkeypatch.setattr(connections, "_ANSWER_SECONDS", answer)
            monkeypatch.setattr(connections, "_TICK_SECONDS", 0.05)
            url = stack.enter_context(DemoServer(app, LIMITS, **options).running())
            return urllib.parse.urlsplit(url).port

        yield serve


def opened(port, sent, address="127.0.0.2"):
    connection = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))
    connection.sendall(sent)
    return connection


def is_cut(connection, *, reading=True):
    """Whether the server has closed a connection; what it sent before is read, or left."""
    connection.setblocking(False)
    try:
        while connection.recv(2**16, 0 if reading else socket.MSG_PEEK):
            if not reading:
                connection.send(b"x")
                return False
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def soon(condition):
    end = time.monotonic() + 20
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


def asked(port, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/", headers=headers or {})
        found = connection.getresponse()
        return found.status, found.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("sent", [HALF, WHOLE % (b"stream", b"")], ids=["half a request", "an open stream"])
def test_who_holds_most_connections_makes_room(serve, sent):
    port = serve()
    other = opened(port, WHOLE % (b"stream", b""), "127.0.0.3")
    crowd = []
    for _ in range(150):
        crowd.append(opened(port, sent))
        assert sent == HALF or crowd[-1].recv(1), "its request is being answered"
    assert asked(port)[0] == 200
    assert soon(lambda: 40 < sum(map(is_cut, crowd)) < 60)
    assert is_cut(crowd[0]) and not is_cut(crowd[-1]), "the oldest went"
    assert not is_cut(other), "who holds one keeps it"


def test_visitors_of_a_proxy_are_counted(serve):
    port = serve(trusted_proxies=["127.0.0.1"])
    crowd = [opened(port, WHOLE % (b"stream", b"192.0.2.1"), "127.0.0.1") for _ in range(60)]
    other = opened(port, WHOLE % (b"stream", b"192.0.2.2"), "127.0.0.1")
    assert other.recv(1), "the request has come, and so is known whose it is"
    crowd += [opened(port, WHOLE % (b"stream", b"192.0.2.1"), "127.0.0.1") for _ in range(90)]
    assert soon(lambda: sum(map(is_cut, crowd)) > 40)
    assert not is_cut(other)


@pytest.mark.parametrize("trickle", [b"", b"x"], ids=["silent", "trickling"])
@pytest.mark.parametrize("sent", [b"", HALF, BODY], ids=["nothing", "half a request", "a body nobody wants"])
def test_requests_that_do_not_arrive_are_not_waited_for(serve, sent, trickle):
    port = serve(request=0.5)
    slow = opened(port, sent)

    def step():
        with contextlib.suppress(OSError):
            slow.send(trickle)
        return is_cut(slow)

    assert soon(step)


def test_a_connection_in_use_is_kept(serve):
    port = serve(request=0.5)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    stream = opened(port, WHOLE % (b"stream", b""))
    for _ in range(8):
        connection.request("GET", "/")
        assert connection.getresponse().read()
        local = connection.sock.getsockname()
        time.sleep(0.15)
    connection.request("GET", "/")
    assert connection.getresponse().read() and connection.sock.getsockname() == local, "never cut"
    assert not is_cut(stream), "an answer may take its time"


def test_unread_answers_are_dropped(serve):
    port = serve(answer=0.5)
    server_side = opened(port, WHOLE % (b"large", b""))
    assert soon(lambda: is_cut(server_side, reading=False))


@pytest.mark.parametrize(
    ("proxies", "client"), [([], "127.0.0.1"), (["127.0.0.1"], "192.0.2.9"), (["127.0.0.0/8"], "192.0.2.9")]
)
def test_who_a_visitor_is_says_a_trusted_proxy_alone(serve, proxies, client, caplog):
    port = serve(trusted_proxies=proxies)
    for _ in range(2):
        assert client in asked(port, {"X-Forwarded-For": "192.0.2.9"})[1]
    assert caplog.text.count("--trusted-proxies 127.0.0.1") == (0 if proxies else 1), "a warning, once"


def test_a_proxy_s_address_must_be_one():
    with pytest.raises(ValueError, match=r"--trusted-proxies holds 'my-proxy'; give addresses or networks"):
        DemoServer(app, LIMITS, trusted_proxies=["my-proxy"])


def test_the_server_ends_at_once_with_streams_open(serve):
    server = DemoServer(app, LIMITS)
    with server.running():
        stream = opened(server.port, WHOLE % (b"stream", b""))
        stream.recv(100)
        start = time.monotonic()
    assert time.monotonic() - start < 2, "no stream is waited for"

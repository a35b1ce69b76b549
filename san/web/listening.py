"""Opens the port of a server, and serves on it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Args:
        host: name or address.
        port: 0 for any free one.

    Raises:
        ValueError: the server cannot listen there.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port} but must be 0..65535; choose another --host or --port")
    try:
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from error
    listener.listen(128)
    return listener


def address_of(host: str, listener: socket.socket) -> str:
    """Return the http:// address of a listening socket."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}/"


class ListeningServer:
    """Serves on a listening socket; a subclass calls `__init__` first, and sets `_server`, uvicorn's.

    Args:
        host: address to listen on.
        port: 0 for any free one.

    Attributes:
        url: its address.

    Raises:
        ValueError: the server cannot listen there.
    """

    _server: Any
    _end_seconds = 10.0  # to wait for the thread of `running`

    def __init__(self, host: str, port: int) -> None:
        self._socket = listen(host, port)
        self.url = address_of(host, self._socket)

    def run(self) -> None:
        """Serve until a signal."""
        self._server.run(sockets=[self._socket])

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve in a thread during the `with`; yields the address."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self._server.should_exit = True
            thread.join(timeout=self._end_seconds)

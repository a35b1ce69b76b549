"""Runs the service: uvicorn with bounded connections, and an orderly end on SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from san.serve.app import create_app
from san.serve.service import SegmentService
from san.web.connections import BoundedConnection
from san.web.listening import ListeningServer

_PAUSE_SECONDS = 75  # between requests of a connection; above the usual 60 s of load balancers


class ServiceServer(ListeningServer):
    """Serves a service until a signal; then it finishes what was accepted. A second signal ends the process at once.

    Args:
        service: the model.
        host: address to listen on.
        port: 0 for any free one.

    Attributes:
        url: its address.
        stopped_by: the signal that ended it.

    Raises:
        ValueError: the server cannot listen on the address.
    """

    _end_seconds = 30.0

    def __init__(self, service: SegmentService, *, host: str = "127.0.0.1", port: int = 0) -> None:
        class Connection(BoundedConnection, H11Protocol):
            """uvicorn's connection with limits."""

            max_connections = 4 * service.limits.max_waiting + 200
            pause_seconds = _PAUSE_SECONDS

        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every damaged form
        self._service = service
        super().__init__(host, port)
        self.stopped_by: int | None = None
        config = uvicorn.Config(
            create_app(service),
            http=Connection,
            log_level="warning",
            access_log=False,  # paths may contain handles
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_PAUSE_SECONDS,
            timeout_graceful_shutdown=max(1, round(service.limits.grace_seconds)),
            ws="none",
        )
        self._server = _Server(config, self._stopping)

    def _stopping(self, number: int) -> None:
        self.stopped_by, self._service.draining = number, True


class _Server(uvicorn.Server):
    """uvicorn's server, whose process ends with an exit code of its own instead of by the signal."""

    def __init__(self, config: uvicorn.Config, stopping: Callable[[int], None]) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        self._stopping(signal.Signals(sig))

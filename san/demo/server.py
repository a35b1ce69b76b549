"""The web server of the page: one address, one process, no tunnel."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

from san.demo.guard import Guard
from san.demo.hosts import KnownHosts
from san.demo.limits import Limits
from san.io.errors import excerpt
from san.web.connections import BoundedConnection
from san.web.listening import ListeningServer
from san.web.uploads import App, Receive, Scope, Send

logger = logging.getLogger(__name__)


class DemoServer(ListeningServer):
    """Serves a page on an address.

    Args:
        guard: the page.
        limits: limits of visitors.
        host: address to listen on.
        port: 0 for any free one.
        trusted_proxies: addresses or networks whose X-Forwarded-For is trusted; none by default.
        allowed_hosts: names under which the page may be requested, in addition to those of this machine and `host`.

    Raises:
        ValueError: the server cannot listen on the address, or an allowed name or a proxy's address is not valid.
    """

    def __init__(
        self,
        guard: Guard,
        limits: Limits,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        trusted_proxies: Iterable[str] = (),
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol

        class Connection(BoundedConnection, H11Protocol):
            """uvicorn's connection with limits."""

            max_connections = 8 * limits.max_visitors + 100

            def shutdown(self) -> None:
                """End the connection without waiting, for instance for an open stream."""
                super().shutdown()
                self.transport.abort()

        proxies = _proxies(trusted_proxies)
        app: App = KnownHosts(guard, host, allowed_hosts)
        if not proxies:
            app = _ProxyWarning(app)
        super().__init__(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=Connection,
            log_level="warning",
            access_log=False,  # URLs contain the visitors' session names
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            timeout_graceful_shutdown=2,
            ws="none",
        )
        self._server = uvicorn.Server(config)


class _ProxyWarning:
    """Warns once about a proxy that is not trusted: all its visitors share the limits of one."""

    def __init__(self, app: App) -> None:
        self._app, self._warned = app, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._warned and any(name == b"x-forwarded-for" for name, _ in scope.get("headers", ())):
            self._warned = True
            logger.warning(
                "a request came through a proxy (X-Forwarded-For), and its visitors share the limits of one; if the "
                "proxy is yours, start with --trusted-proxies %s",
                (scope.get("client") or ("ADDRESS",))[0],
            )
        await self._app(scope, receive, send)


def _proxies(given: Iterable[str]) -> list[str]:
    proxies = list(given)
    for each in proxies:
        try:
            ipaddress.ip_network(each)
        except ValueError as error:
            raise ValueError(
                f"--trusted-proxies holds {excerpt(each)}; give addresses or networks such as 127.0.0.1 or 10.0.0.0/8"
            ) from error
    return proxies

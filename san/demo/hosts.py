"""Checks the Host header, so that other sites cannot reach the demo under their own name (DNS rebinding).

A browser lets a page send requests to its own host. The owner of that host can later point its name to this machine;
requests then arrive here with the foreign name in their Host header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from san.demo.guard import answer
from san.web.uploads import App, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine."""

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/\s]+))(?::\d*)?", re.IGNORECASE)


class KnownHosts:
    """ASGI middleware that answers only requests to names of this server.

    These are the names of this machine, the address that the server listens on, and those that the operator allows. If
    it listens on all addresses, any IP address is accepted, because addresses cannot be redirected as names can.

    Args:
        app: answers them.
        bound: the address that the server listens on, as given.
        allowed: further names.

    Raises:
        ValueError: one of them is not a host name.
    """

    def __init__(self, app: App, bound: str, allowed: Iterable[str] = ()) -> None:
        self._app = app
        self._any_address = _is_wildcard(bound)
        names = [] if self._any_address else [bound]
        for name in allowed:
            found = host_name(name)
            if found is None or "*" in found or found != name.strip("[]").lower().rstrip("."):
                raise ValueError(
                    f"--allowed-hosts holds {name!r}; give names such as demo.example.org, without http:// and port"
                )
            names.append(name)
        self._known = {name.strip("[]").lower().rstrip(".") for name in (*LOCAL, *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif self._knows([value for key, value in scope["headers"] if key == b"host"]):
            # Gradio would use this header for the page's address
            headers = [pair for pair in scope["headers"] if pair[0] != b"x-forwarded-host"]
            await self._app({**scope, "headers": headers}, receive, send)
        elif scope["type"] == "http":
            detail = "This server does not know the name in the address; the operator can add it with --allowed-hosts."
            await answer(send, 421, {"detail": detail})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _knows(self, headers: list[bytes]) -> bool:
        """Whether there is exactly one Host header, with a known name."""
        if len(headers) != 1:
            return False
        name = host_name(headers[0].decode("latin-1"))
        return name is not None and (name in self._known or (self._any_address and _is_address(name)))


def host_name(header: str) -> str | None:
    """Return the host of a Host header, in lower case, without port, brackets and final dot; None if invalid."""
    found = _HOST.fullmatch(header)
    return None if found is None else (found[1] or found[2]).lower().rstrip(".")


def _is_wildcard(address: str) -> bool:
    return not address or (_is_address(address) and ipaddress.ip_address(address).is_unspecified)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

"""Which names the demo answers to: a page elsewhere must not reach it under a name of its own (DNS rebinding).

A browser lets a page talk to the host that it came from. Whoever owns that host's name can let it point to this machine
afterwards; the request then arrives here, but its Host header still bears the foreign name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from san.demo.guard import App, Receive, Scope, Send, answer

LOCAL = ("localhost", "127.0.0.1", "::1")
"""What this machine calls itself."""

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/\s]+))(?::\d*)?", re.IGNORECASE)


class KnownHosts:
    """ASGI middleware that answers only requests to names that are this server's.

    These are the names of this machine itself, the address that is listened on, and those that the operator allows.
    Where every address of the machine is listened on, any address will do: it cannot be let point elsewhere, as a name
    can.

    Args:
        app: what answers them.
        bound: the address that is listened on, as given.
        allowed: further names.

    Raises:
        ValueError: one of them is no name of a host.
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
        """One connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif self._knows([value for key, value in scope["headers"] if key == b"host"]):
            # Gradio would build the page's address of this one, whatever it says
            headers = [pair for pair in scope["headers"] if pair[0] != b"x-forwarded-host"]
            await self._app({**scope, "headers": headers}, receive, send)
        elif scope["type"] == "http":
            detail = "This server does not know the name in the address; who runs it allows it with --allowed-hosts."
            await answer(send, 421, {"detail": detail})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _knows(self, headers: list[bytes]) -> bool:
        """Whether there is one Host header, and it bears a known name."""
        if len(headers) != 1:
            return False
        name = host_name(headers[0].decode("latin-1"))
        return name is not None and (name in self._known or (self._any_address and _is_address(name)))


def host_name(header: str) -> str | None:
    """The name or address in a Host header, in small letters, without port, brackets and final dot; None if odd."""
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

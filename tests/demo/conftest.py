"""One demo for all tests of the page: the committed shapes model behind a real server on a free port."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from san.demo.examples import shapes_examples
from san.demo.guard import Guard
from san.demo.limits import Limits
from san.demo.service import DemoService
from san.inference.predictor import Predictor
from san.shapes.world import NAMES

LIMITS = Limits(max_bytes=300_000, max_pixels=400_000, max_characters=2000, requests_per_minute=2000, max_waiting=100)


@dataclass(frozen=True)
class Running:
    """A demo that is being served.

    Attributes:
        broken: what is answered where these stand in an address: a status, content, and whether it is all of it.
    """

    url: str
    service: DemoService
    guard: Guard
    broken: dict[str, tuple[int, bytes, bool]]


@pytest.fixture(scope="session")
def service() -> Iterator[DemoService]:
    known = frozenset(word for name in NAMES for word in name.split())
    service = DemoService(Predictor.from_pretrained("shapes"), shapes_examples(), LIMITS, known_words=known)
    yield service
    service.close()


@pytest.fixture(scope="session")
def demo(service: DemoService) -> Iterator[Running]:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    from san.demo.page import build_app
    from san.demo.server import DemoServer

    guard, broken = build_app(service), {}

    async def server(scope: Any, receive: Any, send: Any) -> None:
        for part, (status, content, whole) in broken.items():
            if scope["type"] == "http" and part in scope["path"]:
                await send({"type": "http.response.start", "status": status, "headers": []})
                await send({"type": "http.response.body", "body": content, "more_body": not whole})
                return
        await guard(scope, receive, send)

    with DemoServer(server, service.limits).running() as url:
        yield Running(url, service, guard, broken)


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(downloads: Path) -> Iterator[Any]:
    from tests.demo.browser import browser

    with browser(downloads) as driver:
        yield driver

"""One demo for all tests of the page: the committed shapes model behind a real server on a free port."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from san.data.shapes.world import NAMES
from san.demo.examples import shapes_examples
from san.demo.limits import Limits
from san.demo.studio import Studio
from san.predictor import Predictor

LIMITS = Limits(max_bytes=300_000, max_pixels=400_000, max_characters=2000, requests_per_minute=2000)


@dataclass(frozen=True)
class Running:
    """A demo that is being served."""

    url: str
    studio: Studio


@pytest.fixture(scope="session")
def studio() -> Iterator[Studio]:
    known = frozenset(word for name in NAMES for word in name.split())
    studio = Studio(Predictor.from_pretrained("shapes"), shapes_examples(), LIMITS, known_words=known)
    yield studio
    studio.close()


@pytest.fixture(scope="session")
def demo(studio: Studio) -> Iterator[Running]:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    from san.demo.page import build_app
    from san.demo.server import DemoServer

    with DemoServer(build_app(studio), studio.limits).running() as url:
        yield Running(url, studio)

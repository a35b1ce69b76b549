"""One service for all tests of the HTTP interface: the committed shapes model on a free port."""

from __future__ import annotations

import http.client
import io
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.inference.predictor import Predictor
from san.shapes.render import render
from san.shapes.world import scene_at

pytest.importorskip("fastapi_offline", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")
from san.serve.limits import ServeLimits
from san.serve.server import ServiceServer
from san.serve.service import SegmentService

LIMITS = ServeLimits(max_bytes=300_000, max_pixels=400_000, max_characters=2000, max_classes=60, max_waiting=12)


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def detail(self) -> str:
        return self.json["detail"]

    @property
    def picture(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.content)))


@dataclass(frozen=True)
class Client:
    """Asks a server; every request has a connection of its own."""

    url: str
    service: SegmentService
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            found = connection.getresponse()
            return Reply(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()

    def post(
        self, path: str, image: bytes | None = None, name: str = "a.png", accept: str = "", **fields: Any
    ) -> Reply:
        kind, body = form(fields, image, name)
        headers = {"content-type": kind, **({"accept": accept} if accept else {})}
        return self.ask("POST", path, body, headers)

    def segment(self, image: bytes | None = None, vocabulary: Any = "red star, plain ground", **fields: Any) -> Reply:
        return self.post("/v1/segment", image, vocabulary=vocabulary, **fields)

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics").content.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def form(fields: dict[str, Any], image: bytes | None = None, name: str = "a.png") -> tuple[str, bytes]:
    """The content type and the body of a form; values are text or bytes."""
    boundary = "8f3c9ae2"  # the same in every process: it is in names of tests
    parts = [
        (f'name="{key}"', value if isinstance(value, bytes) else str(value).encode()) for key, value in fields.items()
    ]
    if image is not None:
        parts.append((f'name="image"; filename="{name}"', image))
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    )
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return Predictor.from_pretrained("shapes", text_cache=None)


@pytest.fixture(scope="session")
def scenes() -> list[tuple[np.ndarray, str]]:
    """Pictures of one size with their words."""
    found = [scene_at(8, index) for index in range(6)]
    pictures, _ = render(found, 96)
    return [(picture, ", ".join(dict.fromkeys(scene.names))) for picture, scene in zip(pictures, found, strict=True)]


@pytest.fixture(scope="session")
def client(predictor: Predictor) -> Iterator[Client]:
    service = SegmentService(predictor, LIMITS)
    with ServiceServer(service).running() as url:
        yield Client(url, service)
    assert service.close(10)

"""The routes of the service, and their description for OpenAPI."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import san
from san.io.errors import one_line
from san.serve.answers import FORMATS, JSON, PNG, chosen_format, written
from san.serve.engine import EngineTask
from san.serve.forms import FORM, ImageFields, SegmentFields, read_request
from san.serve.service import SegmentService
from san.web.uploads import App, Message, Receive, Refusal, Scope, Send

logger = logging.getLogger(__name__)

IMAGE_ID = "San-Image-Id"
_DESCRIPTION = """Segments pictures with any words: `POST /v1/segment`.

Encode a picture once with `POST /v1/images` (or `keep`), and send further words with its `image_id`.
Errors are JSON: `{{"detail": "what was seen, what is accepted, and what to do"}}`.

Limits here: {bytes:g} MB and {pixels:g} million pixels per picture, {classes} classes, {characters} characters,
{waiting} requests at a time, {seconds:g} s per request. Images are kept for {minutes:g} minutes after their last
use."""
# Swagger UI needs inline code and styles; nothing is loaded from elsewhere
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_bearer = HTTPBearer(auto_error=False, description="the server's API key, if it has one")


def create_app(service: SegmentService) -> FastAPI:
    """Return the ASGI application of a service; it starts and ends the service's decoding process."""
    limits = service.limits

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        await service.start()
        yield
        await service.stop()

    app: FastAPI = FastAPIOffline(
        title="SAN",
        version=san.__version__,
        redoc_url=None,
        lifespan=lifespan,
        description=_DESCRIPTION.format(
            bytes=limits.max_bytes / 1e6,
            pixels=limits.max_pixels / 1e6,
            classes=limits.max_classes,
            characters=limits.max_characters,
            waiting=limits.max_waiting,
            seconds=limits.max_seconds,
            minutes=limits.keep_minutes,
        ),
    )
    for kind in (Refusal, HTTPException):
        app.add_exception_handler(kind, _refused)
    app.add_middleware(Watched, service=service)  # type: ignore[arg-type]  # an ASGI class, with other names
    _add_work(app, service)
    _add_state(app, service)
    return app


def _add_work(app: FastAPI, service: SegmentService) -> None:
    """Add the routes that use the model."""
    limits = service.limits

    def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if service.needs_key and not service.knows(given.credentials if given else ""):
            raise Refusal(
                401,
                "the API key is missing or wrong; send the header Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )

    options: dict[str, Any] = {"dependencies": [Depends(authorised)], "tags": ["pictures"]}

    @app.post("/v1/segment", **options, responses=_SEGMENT_ANSWERS, openapi_extra=_body(SegmentFields, _KEPT_EXAMPLE))
    async def segment(request: Request) -> Response:
        """Segment a picture, or a kept image, with a vocabulary."""
        with service.admission():
            return await _segmented(service, request)

    @app.post("/v1/images", **options, status_code=201, responses=_KEEP_ANSWERS, openapi_extra=_body(ImageFields))
    async def keep_image(request: Request) -> Response:
        """Encode a picture, and keep it for requests with its image_id."""
        with service.admission():
            _, upload = await read_request(request, limits, ImageFields)
            if upload is None:
                raise Refusal(422, "the field image is missing; send the picture as a file: curl -F image=@photo.jpg")
            outcome = await service.compute(EngineTask(await service.decode(upload.content)), request.receive)
            height, width = outcome.encoded.pixels.shape[:2]
            handle = await service.keep(outcome.encoded, upload.file_name)
            return _json(
                201, {"image_id": handle, "height": height, "width": width, "keep_seconds": 60 * limits.keep_minutes}
            )

    @app.delete("/v1/images/{image_id}", **options, status_code=204, responses={404: _error("there is no such image")})
    async def drop_image(image_id: str) -> Response:
        """Forget a kept image before its time is over."""
        await service.drop(image_id)
        return Response(status_code=204)

    @app.get("/metrics", **{**options, "tags": ["server"]}, response_class=Response)
    def metrics() -> Response:
        """Return counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def _segmented(service: SegmentService, request: Request) -> Response:
    """Answer POST /v1/segment."""
    fields, upload = await read_request(request, service.limits, SegmentFields)
    form = chosen_format(fields.format, request.headers.get("accept", ""))
    words, vocabulary = fields.words(service.limits)
    if (upload is None) == (not fields.image_id):
        raise Refusal(422, "give image, a file, or image_id, that of a kept image: one of them")
    if upload is None:
        kept = await service.kept(fields.image_id)
        task, name = EngineTask(kept.encoded, words, vocabulary, fields.threshold), kept.file_name
    else:
        pixels = await service.decode(upload.content)
        task, name = EngineTask(pixels, words, vocabulary, fields.threshold), upload.file_name
    outcome = await service.compute(task, request.receive)
    result = outcome.result
    assert result is not None, "it has words"
    headers = {}
    if upload is None:
        headers[IMAGE_ID] = fields.image_id
    elif fields.keep:
        headers[IMAGE_ID] = await service.keep(outcome.encoded, name)
    content = await service.render(lambda: written(result, form, fields.regions, file_name=name, notes=outcome.notes))
    return Response(content, 200, headers, FORMATS[form][0])


def _add_state(app: FastAPI, service: SegmentService) -> None:
    """Add the probes; they need no key."""

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["server"], responses={503: _error("restart the server; its log has the reason")})
    async def health() -> Response:
        """Whether the process works; if not, restart it."""
        if not service.engine.is_alive:
            raise Refusal(503, "the thread that computes has ended; restart the server, its log has the reason")
        return _json(200, {"status": "ok"})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", tags=["server"], responses={503: _error("the server ends; send requests to another one")})
    async def ready() -> Response:
        """Whether to send requests here; if not, send them elsewhere."""
        if service.draining or not service.engine.is_alive:
            raise Refusal(503, "the server ends; send requests to another one")
        return _json(200, {"status": "ready"})


class Watched:
    """ASGI middleware: counts requests, adds headers, and answers internal errors without their details.

    Args:
        app: answers the requests.
        service: counts them.
    """

    def __init__(self, app: App, service: SegmentService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 0, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        with self._service.metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            except asyncio.CancelledError:  # the server ends, and its time to finish is over
                self._service.was_cut_off = True
                if not status:
                    detail = "the server ends before this was finished; send it to another one"
                    await _json(503, {"detail": detail}, {"Retry-After": "1"})(scope, receive, watched)
            except Exception as error:
                if status:
                    raise
                logger.error("a request failed", exc_info=error)
                await _json(500, {"detail": "an error of the server; its log has the details"})(scope, receive, watched)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self._service.metrics.answered(route, status or 499, start)


def _json(status: int, content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, JSON)


async def _refused(_: Request, error: Exception) -> Response:
    """Answer a wrong request."""
    if isinstance(error, Refusal):
        return _json(error.status, {"detail": one_line(error.detail)}, error.headers)
    assert isinstance(error, HTTPException), "the handlers' two kinds"
    remedy = {404: "there is no such page; /docs lists those that are", 405: "this page has other methods; see /docs"}
    detail = remedy.get(error.status_code, str(error.detail))
    return _json(error.status_code, {"detail": detail}, dict(error.headers or {}))


def _body(fields: type[BaseModel], example: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the description of a request's body."""
    schema = fields.model_json_schema()
    picture = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, BMP, GIF or TIFF"}
    form = {**schema, "properties": {"image": picture, **schema.get("properties", {})}}
    content: dict[str, Any] = {FORM: {"schema": form}}
    if example is None:
        form["required"] = ["image"]
    else:
        content[JSON] = {"schema": schema, "example": example}
    return {"requestBody": {"required": True, "content": content}}


def _error(description: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"detail": {"type": "string"}}}
    return {"description": description, "content": {JSON: {"schema": schema, "example": {"detail": description}}}}


_KEPT_EXAMPLE = {"image_id": "the one of POST /v1/images", "vocabulary": "cat, dog", "format": "json"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: _error("the body is damaged, or not UTF-8"),
    401: _error("the API key is missing or wrong; send the header Authorization: Bearer KEY"),
    408: _error("The upload took too long; choose a smaller picture, or try again with a better connection."),
    413: _error("The file is too large; the limit here is 20.0 MB. Shrink it."),
    415: _error("the Content-Type is 'text/plain' but must be multipart/form-data or application/json"),
    422: _error("the picture cannot be read (it is not PNG, JPEG, WEBP, BMP, GIF, TIFF); choose another one"),
    429: _error("32 requests wait already, the limit here is 32; send it again after the seconds of Retry-After"),
    503: _error("this took longer than 60 s; send it again later, or with a smaller picture or fewer words"),
}
_SEGMENT_EXAMPLE = {
    "image_id": "photo",
    "file_name": "photo.jpg",
    "height": 480,
    "width": 640,
    "none_share": 0.0,
    "classes": [
        {"index": 0, "name": "cat", "synonyms": ["cat"], "prompts": [], "context": False, "area": 98304, "share": 0.32,
         "confidence": 0.91},
    ],
    "notes": [],
}  # fmt: skip
_SEGMENT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the segmentation, in the chosen format",
        "headers": {IMAGE_ID: {"description": "of the kept image", "schema": {"type": "string"}}},
        "content": {
            JSON: {"schema": {}, "example": _SEGMENT_EXAMPLE},
            PNG: {"schema": {"type": "string", "format": "binary"}},
        },
    },
    404: _error("there is no image with this image_id; send the picture again"),
    406: _error("Accept is 'text/html' but answers are application/json or image/png"),
    **_ERRORS,
}
_KEEP_ANSWERS: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "the picture is kept",
        "content": {
            JSON: {
                "schema": {"type": "object"},
                "example": {"image_id": "pZ3v...", "height": 480, "width": 640, "keep_seconds": 600},
            }
        },
    },
    **_ERRORS,
}

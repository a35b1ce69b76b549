"""Reads requests: a form with a picture, or JSON that names a kept one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from san.io.errors import excerpt
from san.serve.answers import FORMATS, RegionFields
from san.serve.limits import ServeLimits
from san.vocabulary.vocabulary import Vocabulary
from san.web.uploads import Refusal, body_chunks, read_body
from san.web.words import Words

FORM, JSON_BODY = "multipart/form-data", "application/json"
_LATE = "The upload took too long; choose a smaller picture, or try again with a better connection."
_MAX_FIELDS, _MAX_FILE_NAME = 20, 255


class ImageFields(BaseModel):
    """Fields of a request that only keeps a picture."""

    model_config = ConfigDict(extra="forbid")


class SegmentFields(BaseModel):
    """Fields of a segmentation, next to the picture."""

    model_config = ConfigDict(extra="forbid")

    vocabulary: str = Field(
        description="classes separated by commas, synonyms of one class by |; or a label set's name",
        examples=["cat, dog, sofa|couch"],
    )
    image_id: str = Field("", description="of a kept image, instead of the picture")
    context: str = Field(
        "", description="a label set whose classes also compete for pixels, such as ade20k_150; none by default"
    )
    format: str = Field(
        "",
        description="of the answer; by default that of the Accept header, else json. "
        + "; ".join(f"{name}: {what}" for name, (_, what) in FORMATS.items()),
        json_schema_extra={"enum": list(FORMATS)},
    )
    threshold: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="pixels whose best score is below it get no class"
    )
    none_of_these: bool = Field(False, description="pixels that fit no class get none")
    keep: bool = Field(False, description="keep the picture; the header San-Image-Id of the answer has its image_id")
    instances: bool = Field(False, description="coco, polygons: one region per connected component")
    min_area: int = Field(0, ge=0, description="coco, polygons: smaller components are left out, pixels")
    score_threshold: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="coco, polygons: regions of a lower mean score are left out"
    )
    tolerance: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="coco, polygons: outlines may deviate by so many pixels"
    )
    coco_polygons: bool = Field(False, description="coco: polygons instead of run lengths")

    def words(self, limits: ServeLimits) -> tuple[Words, Vocabulary]:
        """Return the words, and their classes.

        Raises:
            Refusal: 422, they are not valid.
        """
        words = Words(self.vocabulary, self.context, True, self.none_of_these)
        try:
            if not self.vocabulary.strip(" \t\r\n,;"):
                raise ValueError(f"vocabulary is {excerpt(self.vocabulary)}; give at least one name, such as: cat, dog")
            return words, words.vocabulary(limits)
        except ValueError as error:
            raise Refusal(422, str(error)) from None

    @property
    def regions(self) -> RegionFields:
        """The options of regions."""
        return RegionFields(self.instances, self.min_area, self.score_threshold, self.tolerance, self.coco_polygons)


Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True)
class Upload:
    """A picture's file, and its name on the client's machine."""

    content: bytes
    file_name: str


async def read_request(request: Request, limits: ServeLimits, fields: type[Fields]) -> tuple[Fields, Upload | None]:
    """Read a request's fields and its picture; nothing is written to disk.

    Args:
        request: its body was not read.
        limits: of bytes and characters.
        fields: what it may have.

    Raises:
        Refusal: it has another content type, is too large, too slow, damaged, or has unknown or wrong fields.
    """
    kind = request.headers.get("content-type", "")
    media_type = kind.split(";")[0].strip().lower()
    upload: UploadFile | None = None
    if media_type == FORM:
        found, upload = await _read_form(request, kind, limits)
    elif media_type == JSON_BODY:
        found = _parsed(await read_body(request.scope, request.receive, 6 * limits.max_characters + 20_000, _LATE))
    else:
        raise Refusal(
            415,
            f"the Content-Type is {excerpt(kind)} but must be {FORM} (with a picture, as curl -F sends it) or "
            f"{JSON_BODY} (with the image_id of a kept image)",
        )
    checked = _validated(fields, found)
    return checked, None if upload is None else await _taken(upload, limits)


async def _read_form(request: Request, kind: str, limits: ServeLimits) -> tuple[dict[str, Any], UploadFile | None]:
    """Return text fields, and the file."""
    # the parser would read what is not UTF-8 as Latin-1; so it reads everything as that, which loses no byte
    headers = Headers({"content-type": f"{kind}; charset=latin-1"})
    most = limits.max_bytes + 6 * limits.max_characters + 20_000
    chunks = body_chunks(request.scope, request.receive, most, _LATE)
    parser = MultiPartParser(
        headers, chunks, max_files=1, max_fields=_MAX_FIELDS, max_part_size=4 * limits.max_characters + 1000
    )
    parser.spool_max_size = most + 1  # in memory
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:  # Starlette before 0.47 lets the second through
        reason = getattr(error, "message", None) or str(error)
        raise Refusal(
            400,
            f"the form cannot be read ({reason.rstrip('.')}); send {FORM} with one file, at most {_MAX_FIELDS} "
            f"fields, and at most {limits.max_characters} characters in each",
        ) from None
    found: dict[str, Any] = {}
    upload: UploadFile | None = None
    for name, value in form.multi_items():
        name = _utf8(name, "the name of a field")
        if isinstance(value, UploadFile) and name == "image":
            upload = value
        elif isinstance(value, UploadFile):
            raise Refusal(422, f"{excerpt(name)} is a file; only image is one, send the others as text")
        elif name == "image" and not value:  # as the page /docs sends it
            continue
        elif name == "image":
            raise Refusal(422, f"image is the text {excerpt(value)} but must be a file: curl -F image=@photo.jpg")
        elif name in found:
            raise Refusal(422, f"{excerpt(name)} is given twice; give it once")
        else:
            found[name] = _utf8(value, name)
    return found, upload


async def _taken(upload: UploadFile, limits: ServeLimits) -> Upload:
    content = await upload.read()
    await upload.close()
    if len(content) > limits.max_bytes:
        raise Refusal(
            413,
            f"image has {len(content) / 1e6:.4g} MB, but at most {limits.max_bytes / 1e6:g} MB are accepted; shrink it",
        )
    name = (upload.filename or "").encode("latin-1").decode("utf-8", "replace")
    return Upload(content, name[-_MAX_FILE_NAME:])


def _utf8(text: str, name: str) -> str:
    """Decode a text that was read as Latin-1."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            400, f"{excerpt(name)} is not UTF-8 ({error.reason} at byte {error.start}); send it as UTF-8"
        ) from None


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body.decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
    except (ValueError, RecursionError) as error:
        raise Refusal(
            400, f'the body {excerpt(body)} is not JSON in UTF-8 ({error}); send {{"image_id": ..., "vocabulary": ...}}'
        ) from None
    return found


def _validated(fields: type[Fields], found: Mapping[str, Any]) -> Fields:
    try:
        return fields.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        known = ", ".join(["image", *fields.model_fields])
        if first["type"] == "extra_forbidden":
            detail = f"there is no field {excerpt(name)}; the fields are {known}"
        elif first["type"] == "missing":
            detail = f"the field {name} is missing; the fields are {known}"
        else:
            detail = f"{name} is {excerpt(first['input'])}: {first['msg']}"
        raise Refusal(422, detail) from None

"""A model as a folder: model.safetensors (all weights), config.json (every field), README.md (the model card).

All weights are written, CLIP's too, so that a folder needs nothing else: no download, no open_clip tag, and no code of
anyone's is run to read it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

import san
from san.checkpoint import load_weights
from san.clip.arch import ClipArch
from san.clip.loader import SHAPES_FILE, LoadedClip, load_clip
from san.clip.tokenizer import compact_tokenizer
from san.files import write_together
from san.hub.card import model_card
from san.hub.remote import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from san.model.build import build_san
from san.model.config import SANConfig
from san.model.san import SANModel

Record = TypeVar("Record")

MODEL_TYPE = "san"
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class FolderConfig:
    """The content of config.json.

    Attributes:
        model_type: "san".
        san_version: of the project that wrote it.
        model: the model, every field.
        clip_arch: CLIP's architecture, so that it needs no look-up.
        clip_token_ids: of a CLIP with a small vocabulary of its own (see `compact_tokenizer`); else None.
    """

    model_type: str
    san_version: str
    model: SANConfig
    clip_arch: ClipArch
    clip_token_ids: tuple[int, ...] | None


def save_pretrained(model: SANModel, folder: str | Path, *, half: bool = False) -> Path:
    """Writes a model as a folder that `load_pretrained` and the hub take.

    Args:
        model: any SAN; all its weights are written, CLIP's too, under the project's names.
        folder: made where there is none. Weights and config are replaced; a README.md that is there stays.
        half: in half precision, at half the size; it is loaded into single precision again.

    Returns:
        The folder.

    Raises:
        ValueError: `folder` is a file, the CLIP's own file is gone, or the model's weights were rounded for prediction.
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; give save_pretrained a folder")
    rounded = {value.dtype for value in model.parameters()} - {torch.float32}
    if rounded:
        raise ValueError(
            f"the model's weights were rounded to {', '.join(map(str, rounded))} for prediction; load it in float32 to "
            "save it (half=True writes half precision)"
        )
    config = describe(model)
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        tensors[name] = (value.half() if half and value.is_floating_point() else value.clone()).contiguous()
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    writers: dict[Path, Callable[[Path], object]] = {
        folder / WEIGHTS_FILE: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        folder / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
    }
    if not (folder / CARD_FILE).exists():
        card = model_card(config.model, num_bytes=sum(value.nbytes for value in tensors.values()), half=half)
        writers[folder / CARD_FILE] = lambda path: path.write_text(card, encoding="utf-8")
    write_together(writers)
    return folder


def load_folder(folder: Path) -> SANModel:
    """The model of a folder; strict in both files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config is no SAN's, holds an unknown field or misses one, or the weights do not fit it.
    """
    config = read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".safetensors")
        )
        raise FileNotFoundError(
            f"{str(folder)!r} has no {WEIGHTS_FILE} (weights there: {', '.join(others) or 'none'}); "
            "write the folder with save_pretrained, or give a weights file and its config"
        )
    clip = load_clip(config.model.clip.name, None)
    if config.clip_token_ids is not None:
        tokenizer = compact_tokenizer(config.clip_token_ids, config.clip_arch.text.context_length)
        clip = replace(clip, tokenizer=tokenizer)
    # the weights follow in full, so the CLIP's own are not looked for
    empty = LoadedClip(config.clip_arch, None, clip.tokenizer, fingerprint=f"{config.model.clip.name}/untrained")
    model = build_san(config.model, clip=empty)
    load_weights(model, weights)
    return model


def describe(model: SANModel) -> FolderConfig:
    """The config.json of a model."""
    clip = model.config.clip
    pretrained = clip.pretrained
    if pretrained and Path(pretrained.partition(":")[2] or pretrained).is_file():  # a path means nothing elsewhere
        tag, colon, file = pretrained.partition(":")
        pretrained = tag if colon and Path(file).is_file() else Path(pretrained).name
    config = replace(model.config, clip=replace(clip, pretrained=pretrained))
    ids = _compact_token_ids(clip.pretrained) if clip.name == "shapes" else None
    return FolderConfig(MODEL_TYPE, san.__version__, config, model.arch, ids)


def _compact_token_ids(pretrained: str | None) -> tuple[int, ...]:
    """The small vocabulary of the shapes CLIP at hand, from its file's header."""
    from safetensors import safe_open

    path = SHAPES_FILE if pretrained in (None, "", "shapes") else Path(str(pretrained))
    if not path.is_file():
        raise ValueError(f"the CLIP's file {str(path)!r} is gone, and its vocabulary with it; bring it back and repeat")
    with safe_open(path, framework="pt") as file:
        return tuple(json.loads(file.metadata()["token_ids"]))


def read_config(folder: Path) -> FolderConfig:
    """config.json, strictly: every field, no other, of the right type.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no SAN's, or a field is unknown, missing or of another type.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {CONFIG_FILE}; give a folder that save_pretrained wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON ({error}); write it with save_pretrained") from error
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        kind = content.get("model_type") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{str(path)!r} describes no SAN but model_type {kind!r}; give a folder of save_pretrained")
    try:
        return read_record(FolderConfig, content)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def read_record(kind: type[Record], content: Any, where: str = "") -> Record:
    """A dataclass from plain data, strictly.

    Args:
        kind: a dataclass of numbers, strings, tuples and dataclasses.
        content: what `dataclasses.asdict` gives, through JSON.
        where: the field's name, for messages.

    Raises:
        ValueError: a field is unknown, missing or of another type.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where or 'the content'} is {content!r}; give an object of fields")
    hints = typing.get_type_hints(kind)
    for name in content:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(hints)}"
            raise ValueError(f"unknown field {where + name!r}; {hint}")
    missing = [where + name for name in hints if name not in content]
    if missing:
        raise ValueError(f"missing fields {', '.join(missing)}; write the file with save_pretrained")
    return kind(**{name: _read_value(hint, content[name], where + name) for name, hint in hints.items()})


def _read_value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return read_record(typing.cast(type, hint), value, f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # "X | None"
        return None if value is None else _read_value(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        repeated = arguments[-1] is Ellipsis
        if repeated or len(value) == len(arguments):
            kinds = [arguments[0]] * len(value) if repeated else arguments
            return tuple(_read_value(kind, each, where) for kind, each in zip(kinds, value, strict=True))
    accepted = (int, float) if hint is float else (hint,)
    if origin is None and type(value) in accepted:
        return value
    raise ValueError(f"{where} is {value!r}; give {getattr(hint, '__name__', hint) if origin is None else hint}")

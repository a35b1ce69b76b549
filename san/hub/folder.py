"""Saves and loads a model as a folder: model.safetensors (all weights), config.json (every field), README.md (card).

All weights are written, including CLIP's, so that a folder is complete: loading it needs no download and no open_clip
tag, and runs no code of its author.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import san
from san.checkpoint import fitting_tensors, load_checkpoint_file, load_weights
from san.clip.arch import ClipArch
from san.clip.loader import LoadedClip
from san.clip.tokenizer import BpeTokenizer, CompactTokenizer, HuggingFaceTokenizer, fitting_tokenizer
from san.clip.weights_file import writing_safetensors
from san.hub.card import model_card
from san.hub.remote import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from san.io.errors import excerpt, listed, one_line
from san.io.files import write_together
from san.model.build import ModelClass, build_outline, build_san
from san.model.config import SANConfig
from san.model.int8 import pack_int8
from san.model.parts import describe_parts
from san.model.san import SANModel
from san.record import parse_json, read_record
from san.registry import full_name

logger = logging.getLogger(__name__)

MODEL_TYPE = "san"
FORMAT_VERSION = 3
"""Format of config.json. Version 1 had no `architecture`; version 2 had no registered parts.

A file without `format_version` has version 1.
"""

WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_MAX_CONFIG = 4 << 20  # characters


@dataclass(frozen=True)
class FolderConfig:
    """The content of config.json.

    Attributes:
        model_type: "san".
        san_version: version of SAN that wrote it.
        model: the model's configuration, with every field.
        clip_arch: CLIP's architecture, so that no look-up is needed.
        clip_token_ids: token ids of a CLIP with a reduced vocabulary (see `compact_tokenizer`); else None.
        format_version: see `FORMAT_VERSION`.
        architecture: (part, class) names of the parts that differ from those of `SANModel`; the part "" is the model
            itself.
    """

    FIRST_FIELDS = "model_type san_version model clip_arch clip_token_ids"  # see `read_record`
    model_type: str
    san_version: str
    model: SANConfig
    clip_arch: ClipArch
    clip_token_ids: tuple[int, ...] | None
    format_version: int = 1
    architecture: tuple[tuple[str, str], ...] = ()


WEIGHT_TYPES = ("float32", "float16", "int8")


def save_pretrained(model: SANModel, folder: str | Path, *, half: bool = False, dtype: str = "float32") -> Path:
    """Save a model as a folder that `load_pretrained` and `push_to_hub` accept.

    Args:
        model: any SAN; all its weights are written, including CLIP's, with the project's names.
        folder: created if missing. Weights and config are replaced; an existing README.md is kept.
        half: the same as dtype "float16".
        dtype: number type of the weights in the file, one of `WEIGHT_TYPES`: "float16" at half the size, or "int8", the
            matrices that a `Predictor` with that number type rounds, at about a quarter. All are loaded in float32.

    Returns:
        the folder.

    Raises:
        ValueError: `folder` is a file, CLIP's file no longer exists, the number type is unknown, or the weights were
            rounded for prediction.
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; pass a folder to save_pretrained")
    dtype = "float16" if half else dtype
    if dtype not in WEIGHT_TYPES:
        raise ValueError(f"dtype is {excerpt(dtype)}; pass one of {', '.join(WEIGHT_TYPES)}")
    refuse_rounded(model)
    config = describe(model)
    tensors = {}
    for name, value in (pack_int8(model) if dtype == "int8" else model.state_dict()).items():
        value = value.detach().cpu()
        halved = dtype == "float16" and value.is_floating_point()
        tensors[name] = (value.half() if halved else value.clone()).contiguous()
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    writers: dict[Path, Callable[[Path], object]] = {
        folder / WEIGHTS_FILE: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        folder / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
    }
    if not (folder / CARD_FILE).exists():
        card = model_card(config.model, num_bytes=sum(value.nbytes for value in tensors.values()), dtype=dtype)
        writers[folder / CARD_FILE] = lambda path: path.write_text(card, encoding="utf-8")
    with writing_safetensors():
        write_together(writers)
    return folder


def refuse_rounded(model: SANModel) -> None:
    """Refuse to save a model whose weights were rounded for prediction.

    Raises:
        ValueError: they were.
    """
    rounded = {value.dtype for value in model.state_dict().values()} & {torch.bfloat16, torch.float16, torch.int8}
    if rounded:
        raise ValueError(
            f"the model's weights were rounded to {', '.join(sorted(map(str, rounded)))} for prediction; load it in "
            "float32 to save it (dtype='float16' or 'int8' writes smaller files)"
        )


def load_folder(folder: Path, *, model_class: ModelClass = SANModel) -> SANModel:
    """Load the model of a folder. Both files are checked strictly.

    Args:
        folder: written by `save_pretrained`, or by `san convert --to transformers`.
        model_class: class or function that builds the model; classes named in the file are never imported.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config is not that of a SAN, has an unknown field or lacks one, the model has custom parts, or
            the weights do not fit.
    """
    config = read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES)
        raise FileNotFoundError(
            f"{str(folder)!r} has no {WEIGHTS_FILE} (weights there: {', '.join(others) or 'none'}); "
            "write the folder with save_pretrained, or pass a weights file and its config"
        )
    if config.architecture and model_class is SANModel:
        raise ValueError(
            f"{str(folder / CONFIG_FILE)!r} describes a model with custom parts: {_listed(config.architecture)}. "
            "Import the class, or the function of (config, arch, tokenizer), that builds the model, and pass it: "
            "load_pretrained(folder, model_class=...)"
        )
    try:
        tokenizer = fitting_tokenizer(config.clip_arch.text, config.clip_token_ids)
        # all weights are loaded below, so CLIP's file is not needed
        clip = LoadedClip(config.clip_arch, None, tokenizer, fingerprint=f"{config.model.clip.name}/untrained")
        plain = build_outline(config.model, clip)
    except ValueError as error:
        raise ValueError(f"{str(folder / CONFIG_FILE)!r}: {error}") from error
    if model_class is SANModel:  # before memory is allocated for the model
        fitting_tensors(plain, load_checkpoint_file(weights), repr(str(weights)))
    model = build_san(config.model, clip=clip, model_class=model_class, drawn=False)
    if config.format_version > 1:
        _check_architecture(folder, config.architecture, architecture_of(model, plain))
    load_weights(model, weights)
    return model


def _check_architecture(folder: Path, saved: tuple[tuple[str, str], ...], found: tuple[tuple[str, str], ...]) -> None:
    """Raise if a model's custom parts differ from those of the saved model; their modules may have changed."""
    if saved == found:
        return
    difference = (
        f"{str(folder)!r} was saved with {_listed(saved)}, but model_class builds a model with {_listed(found)}"
    )
    if dict(saved).keys() != dict(found).keys():
        raise ValueError(f"{difference}; pass the class that built the saved model")
    logger.warning("%s", difference)


def describe(model: SANModel) -> FolderConfig:
    """Return the content of config.json for a model.

    Raises:
        ValueError: a file cannot describe the model's tokenizer.
    """
    clip = model.config.clip
    config = describe_parts(replace(model.config, clip=replace(clip, pretrained=clip.public_pretrained)))
    tokenizer = model.text_classifier.embedder.tokenizer
    if not isinstance(tokenizer, (BpeTokenizer, CompactTokenizer, HuggingFaceTokenizer)):
        raise ValueError(f"the model's tokenizer is {excerpt(tokenizer)}, which config.json cannot describe")
    ids = tokenizer.ids if isinstance(tokenizer, CompactTokenizer) else None
    plain = build_outline(model.config, LoadedClip(model.arch, None, tokenizer, fingerprint=""))
    parts = architecture_of(model, plain)
    return FolderConfig(MODEL_TYPE, san.__version__, config, model.arch, ids, FORMAT_VERSION, parts)


def architecture_of(model: SANModel, plain: SANModel) -> tuple[tuple[str, str], ...]:
    """Return the custom parts of a model, see `FolderConfig`; a replaced part is listed without its own parts."""
    own, usual = dict(model.named_modules()), dict(plain.named_modules())
    found: dict[str, str] = {}
    for name in dict.fromkeys([*own, *usual]):
        if any(above and name.startswith(f"{above}.") for above in found):
            continue
        part, usual_part = own.get(name), usual.get(name)
        if type(part) is not type(usual_part):
            found[name] = "nothing" if part is None else full_name(type(part))
        held = {} if part is None else vars(part)
        for attribute in held.keys() - (set() if usual_part is None else vars(usual_part).keys()):
            value = held[attribute]  # for instance a method replaced in this instance
            compiled = hasattr(value, "_torchdynamo_orig_callable")  # not custom: the original, compiled
            if callable(value) and not compiled:
                found[f"{name}.{attribute}".lstrip(".")] = full_name(value)
    return tuple(sorted(found.items()))


def _listed(parts: tuple[tuple[str, str], ...]) -> str:
    """Format parts for a message."""
    shown = [f"{one_line(name, limit=100) or 'the model'} of {one_line(kind, limit=100)}" for name, kind in parts]
    return listed(shown, 10) or "no custom parts"


def read_config(folder: Path) -> FolderConfig:
    """Read config.json strictly: each field is known, of the right type and in its range.

    Raises:
        FileNotFoundError: the folder has no config.json.
        ValueError: it is not that of a SAN or has a later format, or a field is unknown, missing, of another type or
            out of range.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {CONFIG_FILE}; pass a folder written by save_pretrained")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"it has more than {_MAX_CONFIG:,} characters")
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is not valid JSON ({one_line(error)}); write it with save_pretrained"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("san"), dict):  # of `san convert --to transformers`
        content = content["san"]
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        kind = excerpt(content.get("model_type")) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{str(path)!r} has model_type {kind}, not 'san'; pass a folder written by save_pretrained")
    version = content.get("format_version", 1)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format {excerpt(version)}, written by SAN {excerpt(content.get('san_version'))}, but "
            f"this version, {san.__version__}, reads formats up to {FORMAT_VERSION}; install a later version of SAN"
        )
    try:
        return read_record(FolderConfig, content)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {one_line(error)}") from error

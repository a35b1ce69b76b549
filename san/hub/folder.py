"""A model as a folder: model.safetensors (all weights), config.json (every field), README.md (the model card).

All weights are written, CLIP's too, so that a folder needs nothing else: no download, no open_clip tag, and no code of
anyone's is run to read it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import san
from san.checkpoint import fitting_tensors, load_checkpoint_file, load_weights
from san.clip.arch import ClipArch
from san.clip.loader import LoadedClip
from san.clip.tokenizer import BpeTokenizer, CompactTokenizer, fitting_tokenizer
from san.errors import excerpt, one_line
from san.files import write_together
from san.hub.card import model_card
from san.hub.remote import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from san.model.build import ModelClass, build_san, outline
from san.model.config import SANConfig
from san.model.parts import describe_parts
from san.model.san import SANModel
from san.record import parse_json, read_record

logger = logging.getLogger(__name__)

MODEL_TYPE = "san"
FORMAT_VERSION = 3
"""Of config.json. 1 had no `architecture`, and a file without the field is of 1; 2 had no registered parts."""

WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_MAX_CONFIG = 4 << 20  # characters


@dataclass(frozen=True)
class FolderConfig:
    """The content of config.json.

    Attributes:
        model_type: "san".
        san_version: of the project that wrote it.
        model: the model, every field.
        clip_arch: CLIP's architecture, so that it needs no look-up.
        clip_token_ids: of a CLIP with a small vocabulary of its own (see `compact_tokenizer`); else None.
        format_version: see `FORMAT_VERSION`.
        architecture: pairs of a part's name and its class, of the parts that differ from `SANModel`'s own; the name ""
            is the model itself.
    """

    FIRST_FIELDS = "model_type san_version model clip_arch clip_token_ids"  # see `read_record`
    model_type: str
    san_version: str
    model: SANConfig
    clip_arch: ClipArch
    clip_token_ids: tuple[int, ...] | None
    format_version: int = 1
    architecture: tuple[tuple[str, str], ...] = ()


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


def load_folder(folder: Path, *, model_class: ModelClass = SANModel) -> SANModel:
    """The model of a folder; strict in both files.

    Args:
        folder: written by `save_pretrained`.
        model_class: what makes the model, where that is not `SANModel`; no class is imported because a file names it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config is no SAN's, holds an unknown field or misses one, the model has parts that are not
            SAN's own, or the weights do not fit.
    """
    config = read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES)
        raise FileNotFoundError(
            f"{str(folder)!r} has no {WEIGHTS_FILE} (weights there: {', '.join(others) or 'none'}); "
            "write the folder with save_pretrained, or give a weights file and its config"
        )
    if config.architecture and model_class is SANModel:
        raise ValueError(
            f"{str(folder / CONFIG_FILE)!r} describes a model that is not made of SAN's own parts: "
            f"{_listed(config.architecture)}. Import what makes it and give that, load_pretrained(folder, "
            "model_class=...): a class, or a function that takes config, arch and tokenizer and returns the model"
        )
    try:
        tokenizer = fitting_tokenizer(config.clip_arch.text, config.clip_token_ids)
        # the weights follow in full, so the CLIP's own are not looked for
        clip = LoadedClip(config.clip_arch, None, tokenizer, fingerprint=f"{config.model.clip.name}/untrained")
        plain = outline(config.model, clip)
    except ValueError as error:
        raise ValueError(f"{str(folder / CONFIG_FILE)!r}: {error}") from error
    if model_class is SANModel:  # before there is memory for the model
        fitting_tensors(plain, load_checkpoint_file(weights), repr(str(weights)))
    model = build_san(config.model, clip=clip, model_class=model_class)
    if config.format_version > 1:
        _check_architecture(folder, config.architecture, architecture_of(model, plain))
    load_weights(model, weights)
    return model


def _check_architecture(folder: Path, saved: tuple[tuple[str, str], ...], found: tuple[tuple[str, str], ...]) -> None:
    """Refuses a model other parts of which are its own than were when it was saved; classes may have moved."""
    if saved == found:
        return
    difference = f"{str(folder)!r} was saved with {_listed(saved)}, but model_class makes a model with {_listed(found)}"
    if dict(saved).keys() != dict(found).keys():
        raise ValueError(f"{difference}; give what made it when it was saved")
    logger.warning("%s", difference)


def describe(model: SANModel) -> FolderConfig:
    """The config.json of a model.

    Raises:
        ValueError: its tokenizer is none that a file can describe.
    """
    clip = model.config.clip
    config = describe_parts(replace(model.config, clip=replace(clip, pretrained=clip.public_pretrained)))
    tokenizer = model.text_classifier.embedder.tokenizer
    if not isinstance(tokenizer, (BpeTokenizer, CompactTokenizer)):
        raise ValueError(f"the model's tokenizer is {excerpt(tokenizer)}, which config.json cannot describe")
    ids = tokenizer.ids if isinstance(tokenizer, CompactTokenizer) else None
    plain = outline(model.config, LoadedClip(model.arch, None, tokenizer, fingerprint=""))
    parts = architecture_of(model, plain)
    return FolderConfig(MODEL_TYPE, san.__version__, config, model.arch, ids, FORMAT_VERSION, parts)


def architecture_of(model: SANModel, plain: SANModel) -> tuple[tuple[str, str], ...]:
    """The parts of a model that are not those of a plain one, see `FolderConfig`; of a whole part only its name."""
    own, usual = dict(model.named_modules()), dict(plain.named_modules())
    found: dict[str, str] = {}
    for name in dict.fromkeys([*own, *usual]):
        if any(above and name.startswith(f"{above}.") for above in found):
            continue
        part, usual_part = own.get(name), usual.get(name)
        if type(part) is not type(usual_part):
            found[name] = "nothing" if part is None else _full_name(type(part))
        held = {} if part is None else vars(part)
        for attribute in held.keys() - (set() if usual_part is None else vars(usual_part).keys()):
            value = held[attribute]  # such as a method that was replaced in this object alone
            compiled = hasattr(value, "_torchdynamo_orig_callable")  # the part's own, made faster
            if callable(value) and not compiled:
                found[f"{name}.{attribute}".lstrip(".")] = _full_name(value)
    return tuple(sorted(found.items()))


def _full_name(kind: Any) -> str:
    """Of a class or function; of another object that of its class."""
    kind = kind if hasattr(kind, "__qualname__") else type(kind)
    return f"{kind.__module__}.{kind.__qualname__}"


def _listed(parts: tuple[tuple[str, str], ...]) -> str:
    """Parts in words."""
    shown = [f"{one_line(name, limit=100) or 'the model'} of {one_line(kind, limit=100)}" for name, kind in parts[:10]]
    more = f" and {len(parts) - 10} more" if len(parts) > 10 else ""
    return ", ".join(shown) + more or "SAN's own parts"


def read_config(folder: Path) -> FolderConfig:
    """config.json, strictly: no field that is not known, each of the right type and in its range.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no SAN's or a later format's, or a field is unknown, missing, of another type or out of range.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {CONFIG_FILE}; give a folder that save_pretrained wrote")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"it has over {_MAX_CONFIG:,} characters")
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON ({one_line(error)}); write it with save_pretrained") from error
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        kind = excerpt(content.get("model_type")) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{str(path)!r} describes no SAN but model_type {kind}; give a folder of save_pretrained")
    version = content.get("format_version", 1)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} is of format {excerpt(version)}, written by SAN {excerpt(content.get('san_version'))}; "
            f"this version, {san.__version__}, reads formats up to {FORMAT_VERSION}: install the other one"
        )
    try:
        return read_record(FolderConfig, content)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {one_line(error)}") from error

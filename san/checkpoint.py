"""Checkpoint files: conversion from and to published names, strict loading, slim files with only trained tensors.

Source: docs/method.md#10. A file contains a dictionary of tensors, bare or under the key "model".
"""

from __future__ import annotations

import copy
import logging
import re
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from san.clip.weights import check_finite, listed_tensors, tensor_mismatches, weights_fingerprint
from san.clip.weights_file import read_tensors
from san.io.errors import excerpt
from san.model.build import is_clip_tensor, take_over
from san.model.int8 import unpack_int8
from san.model.names import naming_of
from san.model.parts import parts_of
from san.model.san import SANModel
from san.record import FieldError, read_record
from san.registry import PartConfig

_WRAPPERS = r"^(module\.|_orig_mod\.)+"  # of DistributedDataParallel and torch.compile
_SLIM = "trained tensors only"
_NOTE = ("format", "clip", "clip_fingerprint", "clip_tensors")

logger = logging.getLogger(__name__)


def brings_clip(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint (see `load_checkpoint_file`), with any loadable names, has the whole CLIP of its model."""
    if "clip_fingerprint" in content:  # a slim file, of which CLIP's tuned tensors are a part
        return False
    names = [re.sub(_WRAPPERS, "", key) for key in content["model"]]
    naming = naming_of(names)
    own = [naming.own_name(name) for name in names] if naming else [name.removeprefix("model.") for name in names]
    return any(name.startswith("deep_clip.") for name in own)


def load_checkpoint_file(path: str | Path, *, averaged: bool = True) -> dict[str, Any]:
    """Load a checkpoint's content, with the tensors under "model"; no code in the file is run.

    The tensors under "model" are memory-mapped, see `read_tensors`; all others, and int8 weights, which are returned in
    float32, are in memory. The note of a slim file
    about its CLIP is also in the tensors' metadata, where `save_slim` stores it.

    Args:
        path: checkpoint file.
        averaged: replace the trained tensors by their moving averages if the file has them; see `with_average`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, contains anything but tensors and plain data, or contains no tensors.
    """
    loaded = read_tensors(Path(path))
    content: dict[str, Any] = loaded if isinstance(loaded, dict) else {"model": loaded}
    if "model" not in content:
        content = {"model": content.get("state_dict", content)}  # mmsegmentation's files have a "state_dict"
    tensors = content["model"]
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ValueError(
            f"{str(path)!r} contains no dictionary of tensors, neither bare nor under 'model' or "
            "'state_dict'; use a SAN checkpoint"
        )
    odd = [key for key in tensors if not isinstance(key, str)]
    if odd:
        raise ValueError(f"{str(path)!r} has a tensor named {excerpt(odd[0])}, not by a string; use a SAN checkpoint")
    if any(value.dtype == torch.int8 for value in tensors.values()):
        tensors = unpack_int8(tensors, repr(str(path)))
    # an optimizer may keep using its state after the file is deleted
    result = {key: copy.deepcopy(value) for key, value in content.items() if key != "model"}
    note = {key: result[key] for key in _NOTE if key in result}
    result |= {"model": _with_note(tensors, note) if note else tensors}
    return with_average(result, repr(str(path))) if averaged else result


def with_average(content: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Replace the trained weights in a checkpoint's content by their averages, if it has them.

    Args:
        content: as returned by `load_checkpoint_file`; ``{"ema": {"model": tensors by name}}`` has the averages.
        label: name of the checkpoint in messages.

    Returns:
        The content without "ema".

    Raises:
        ValueError: the averages are not tensors of the model.
    """
    if "ema" not in content:
        return {**content}
    tensors, entry = content["model"], content["ema"]
    averages = entry.get("model") if isinstance(entry, Mapping) else None
    if not isinstance(averages, Mapping) or not averages:
        odd = ["no dictionary of tensors"]
        averages = {}
    else:
        odd = [
            f"{excerpt(name)} is not as in the model"
            for name, value in averages.items()
            if not isinstance(value, Tensor) or name not in tensors or value.shape != tensors[name].shape
        ]
    if odd:
        raise ValueError(
            f"{label} has averaged weights ('ema') that do not fit its weights: {listed_tensors(odd)}; "
            "`san convert --no-ema` takes the weights alone"
        )
    merged = OrderedDict({**tensors, **averages})
    merged._metadata = getattr(tensors, "_metadata", {})  # type: ignore[attr-defined]
    return {key: value for key, value in content.items() if key != "ema"} | {"model": merged}


def _with_note(tensors: Mapping[str, Tensor], note: dict[str, Any]) -> OrderedDict[str, Tensor]:
    """Attach the note about CLIP to the tensors' metadata, as many loaders pass only the tensors to a module."""
    state = OrderedDict(tensors)
    state._metadata = {"": note}  # type: ignore[attr-defined]
    return state


def load_weights(model: SANModel, source: str | Path | Mapping[str, Any]) -> None:
    """Load a whole checkpoint into a whole model. If a part does not fit, nothing is changed.

    A model without values (`build_san(..., drawn=False)`) uses the weights without a copy: those of a file stay
    memory-mapped while the model exists. Replace such a file by a new one; do not write into it.

    Args:
        model: any SAN.
        source: a file, or its content as returned by `load_checkpoint_file`; with published or own names; the full
            state, or a slim file with the same CLIP as the model.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, a tensor is missing, unexpected, of another shape or kind (all are listed) or
            not finite, or the checkpoint was trained with another CLIP.
    """
    content = source if isinstance(source, Mapping) else load_checkpoint_file(source)
    label = "the checkpoint" if isinstance(source, Mapping) else repr(str(source))
    tensors = fitting_tensors(model, content, label)
    check_finite(tensors, label)
    if any(value.is_meta for value in model.parameters()):
        take_over(model, tensors)
    else:
        model.load_state_dict(tensors)


def fitting_tensors(
    model: nn.Module, content: Mapping[str, Any], label: str = "the checkpoint", *, fresh: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Convert a checkpoint to the full state of a model, with the model's names, without reading the tensors.

    Args:
        model: a SAN, or a module that has one as ``model`` beside other modules; not changed, may be on the meta
            device.
        content: tensors, bare or beside other entries under "model"; with published or own names, with or without
            prefixes of wrappers. CLIP's frozen tensors may all be missing, as in a slim file; then the model must have
            them: those of the fingerprint if `content` has one, else pretrained ones.
        label: name of the checkpoint in messages.
        fresh: modules of `model` that may be missing in the checkpoint; a warning names their tensors.

    Returns:
        the tensors by name; missing ones are those of the model.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape or kind (all are listed), or the CLIP differs.
    """
    san = model if isinstance(model, SANModel) else model.get_submodule("model")
    assert isinstance(san, SANModel)
    inner = "" if san is model else "model."
    _check_parts(san, content.get("parts"), label)
    wanted: dict[str, Tensor] = model.state_dict()
    found = _under_names_of(wanted, content["model"] if isinstance(content.get("model"), Mapping) else content, inner)
    frozen = {inner + name for name in frozen_names(san, content)}
    if frozen.isdisjoint(found):
        noted = content.get("clip_fingerprint") is not None
        if noted:
            check_clip(san, content, label)
        if noted or san.has_clip_weights:
            found |= {name: wanted[name] for name in frozen}
    for module in fresh:
        own = {name for name in wanted if f"{name}.".startswith(f"{module}.")}
        if own.isdisjoint(found):
            logger.warning("%s has no %s: the initial weights are kept", label, ", ".join(sorted(own)))
            found |= {name: wanted[name] for name in own}
    start = f"{inner}text_classifier.context_offset"
    if start in wanted and start not in found:
        logger.warning("%s has no learnt prompt context: it starts as the words of clip.templates", label)
        found[start] = torch.zeros(wanted[start].shape)
    wrong = tensor_mismatches(found, wanted)
    if wrong:
        remedy = "use the configuration it was trained with"
        if frozen.isdisjoint(found):
            remedy += " (it leaves CLIP's weights to clip.pretrained)"
        if any(name not in found and not name.startswith(inner) for name in wanted):
            remedy += f", or list modules that are not in it in {type(model).__name__}.fresh_modules"
        message = f"{label} does not fit this model; {remedy}. {len(wrong)} tensors differ: {listed_tensors(wrong)}"
        raise FieldError(message, "clip.pretrained")
    return found


def fits(model: SANModel, content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has exactly a model's tensors, or exactly its trained tensors, with the same shapes.

    Args:
        model: not changed, may be on the meta device.
        content: see `fitting_tensors`.
    """
    wanted: dict[str, Tensor] = model.state_dict()
    found = _under_names_of(wanted, content["model"], "")
    frozen = frozen_names(model, content)
    trained = {name: value for name, value in wanted.items() if name not in frozen}
    return not tensor_mismatches(found, wanted) or not tensor_mismatches(found, trained)


def part_note(model: nn.Module) -> dict[str, Any]:
    """Return the checkpoint entry "parts", which describes the model's parts that are not SAN's own, or no entry.

    Args:
        model: a SAN, or a module that has one as ``model``.
    """
    san = model if isinstance(model, SANModel) else getattr(model, "model", None)
    if not isinstance(san, SANModel):
        return {}
    noted = {}
    for registry, part in parts_of(san.config):
        described = registry.described(part)
        if described.module:
            noted[registry.place] = asdict(described)
    return {"parts": noted} if noted else {}


def _check_parts(model: SANModel, noted: object, label: str) -> None:
    """Check that a checkpoint's model has the same registered parts.

    Raises:
        ValueError: a part has another name or version; the message names the module that registers it.
    """
    noted = noted if isinstance(noted, Mapping) else {}
    for registry, part in parts_of(model.config):
        if registry.place not in noted:
            continue
        saved = read_record(PartConfig, noted[registry.place], f"{label}: parts.")
        if saved.name != part.name:
            raise ValueError(
                f"{label} has the {registry.kind} {saved.name!r} of the module {saved.module}, but this model has "
                f"{part.name!r}; set {registry.place} to {saved.name!r} and import the module (--import {saved.module})"
            )
        registry.check_version(saved)
        now = registry.described(part)
        changed = [name for name, value in saved.options.items() if now.options.get(name) != value]
        if changed:
            logger.warning(
                "%s was made with other options of the %s %r: %s",
                label,
                registry.kind,
                part.name,
                ", ".join(f"{name} {excerpt(saved.options[name])}" for name in changed),
            )


def _under_names_of(wanted: Container[str], state: Mapping[str, Any], inner: str) -> dict[str, Any]:
    """Rename tensors to those of a model that has its SAN under the prefix `inner`; unknown names are unchanged."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"a checkpoint must contain tensors by name, but {excerpt(key)} is {excerpt(value)}")
    if all(re.match(_WRAPPERS, key) for key in state):
        state = {re.sub(_WRAPPERS, "", key): value for key, value in state.items()}
    naming = naming_of(state)
    own = naming.to_own(state) if naming else state
    # our files had this name before [SLS] initialisations were parts
    own = {re.sub(r"\bsls_embed$", "sls_init.embed", key): value for key, value in own.items()}
    found = {}
    for key, value in own.items():
        name = inner + key.removeprefix("model.")
        found[name if key not in wanted and name in wanted else key] = value
    return found


def trained_names(model: SANModel) -> set[str]:
    """Return the names of the trained tensors: CLIP's that are not frozen, and all others."""
    names = {name for name in model.state_dict() if not is_clip_tensor(name)}
    if model.config.clip.train_pos_embed:  # also if a user has frozen everything
        names.add("shallow_clip.positional_embedding")
    return names | {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_names(model: SANModel, note: Mapping[str, Any]) -> set[str]:
    """Return the names of CLIP's tensors that a slim file leaves out.

    Args:
        model: any SAN.
        note: the file's, with ``clip_tensors``, the names of CLIP's tensors that it has; without, it has those that
            this model trains.
    """
    has = set(note["clip_tensors"]) if isinstance(note.get("clip_tensors"), list) else trained_names(model)
    return {name for name in model.state_dict() if is_clip_tensor(name)} - has


def frozen_fingerprint(model: SANModel, note: Mapping[str, Any]) -> str:
    """Return a fingerprint, in half precision, of the frozen weights that a slim file with this note needs."""
    frozen = frozen_names(model, note)
    return weights_fingerprint({name: value.half() for name, value in model.state_dict().items() if name in frozen})


def save_slim(model: SANModel, path: str | Path, *, half: bool = False) -> None:
    """Write only the trained tensors, a few MB, with a note about the CLIP they need.

    Args:
        model: any SAN. Tensors of CLIP that are tuned require a gradient.
        path: a `.pth` file.
        half: write half precision, at half the size.
    """
    trained = trained_names(model)
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items() if name in trained}
    tensors = {name: value.half() if half else value.clone() for name, value in tensors.items()}
    clip = model.config.clip
    note: dict[str, Any] = {
        "format": _SLIM,
        "clip": f"{clip.name} {clip.public_pretrained}",
        "clip_tensors": sorted(filter(is_clip_tensor, trained)),
    }
    note["clip_fingerprint"] = frozen_fingerprint(model, note)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": _with_note(tensors, note)} | note, path)


def check_clip(model: SANModel, note: Mapping[str, Any], label: str) -> None:
    """Check that a model has the CLIP that a slim file was trained with.

    Args:
        model: the model with its frozen weights.
        note: the file's ``clip``, ``clip_fingerprint`` and ``clip_tensors``.
        label: name of the file in the message.

    Raises:
        ValueError: the fingerprints differ.
    """
    found = frozen_fingerprint(model, note)
    if note["clip_fingerprint"] != found:
        raise FieldError(
            f"{label} was trained with the frozen CLIP {excerpt(note.get('clip'))} "
            f"({excerpt(note['clip_fingerprint'])}), but "
            f"this model has {model.config.clip.name} {model.config.clip.pretrained} ({found}); set clip.name "
            "and clip.pretrained to those of the checkpoint",
            "clip.name",
            "clip.pretrained",
        )

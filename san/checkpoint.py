"""Checkpoint files: published names to our own and back, strict loading, and slim files of the trained tensors alone.

Source: method.md section 10. A file holds a dictionary of tensors, bare or under the key "model".
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from san.clip.weights import check_finite, listed, misfits, weights_fingerprint
from san.clip.weights_file import read_tensors
from san.errors import excerpt
from san.model.san import SANModel

# published prefix -> own prefix; the first match counts, in either direction
_RENAMES = (
    ("side_adapter_network.vit_model.patch_embed.proj.", "side_adapter.patch_embed."),
    ("side_adapter_network.vit_model.", "side_adapter."),
    ("side_adapter_network.query_", "side_adapter.query_"),
    ("side_adapter_network.fusion_layers.layer_", "side_adapter.fusions."),
    ("side_adapter_network.mask_decoder.query_mlp.", "mask_head.query_mlp."),
    ("side_adapter_network.mask_decoder.pix_mlp.", "mask_head.pixel_mlp."),
    ("side_adapter_network.mask_decoder.attn_mlp.", "bias_head.attn_mlp."),
    ("side_adapter_network.mask_decoder.bias_scaling.weight", "bias_head.scale"),
    ("side_adapter_network.mask_decoder.bias_scaling.bias", "bias_head.offset"),
    ("clip_visual_extractor.", "shallow_clip."),
    ("clip_rec_head.", "deep_clip."),
    ("ov_classifier.bg_embed", "text_classifier.no_object_embed"),
    ("ov_classifier.", "text_classifier."),
)
_DERIVED = ("ov_classifier.attn_mask", "criterion.empty_weight")  # computed here, so neither read nor required
_LEADING_ONE = ("side_adapter.pos_embed", "side_adapter.query_embed", "side_adapter.query_pos_embed", "bias_head.scale")
_SLIM = "trained tensors only"


def own_name(published: str) -> str:
    """Our name of a published tensor; a name that is not a published one comes back unchanged."""
    for theirs, ours in _RENAMES:
        if published.startswith(theirs):
            name = ours + published.removeprefix(theirs)
            if ours == "side_adapter.fusions.":
                name = name.replace(".input_proj.0.", ".norm.").replace(".input_proj.1.", ".proj.")
            return name
    return published


def published_name(own: str) -> str:
    """The published name of one of our tensors; unchanged where there is none."""
    if re.match(r"side_adapter\.fusions\.\d+\.", own):
        own = own.replace(".norm.", ".input_proj.0.").replace(".proj.", ".input_proj.1.")
    for theirs, ours in sorted(_RENAMES, key=lambda pair: -len(pair[1])):
        if own.startswith(ours):
            return theirs + own.removeprefix(ours)
    return own


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names and shapes to ours: leading dimensions of 1 and those of 1x1 kernels go."""
    own = {}
    for key, value in state_dict.items():
        if key in _DERIVED:
            continue
        name = own_name(key)
        if _is_pointwise(name) and value.ndim > 1:
            value = value.flatten(1)
        own[name] = value.squeeze(0) if name in _LEADING_ONE else value
    return own


def to_published(state_dict: Mapping[str, Tensor], *, num_classes: int = 171) -> dict[str, Tensor]:
    """Our names and shapes to the published ones, with the two derived tensors the published code expects.

    Args:
        state_dict: the full state of a model whose [SLS] tokens start from the class token.
        num_classes: classes the model was trained on.
    """
    published = {}
    for name, value in state_dict.items():
        if _is_pointwise(name):
            value = value[:, :, None, None]
        elif name in _LEADING_ONE:
            value = value[None]
        published[published_name(name)] = value
    length = state_dict["text_classifier.positional_embedding"].shape[0]
    published["ov_classifier.attn_mask"] = torch.full((length, length), float("-inf")).triu(1)
    published["criterion.empty_weight"] = torch.cat([torch.ones(num_classes), torch.tensor([0.1])])
    return published


def _is_pointwise(name: str) -> bool:
    """Whether this weight is a 1x1 convolution in the published model and a linear layer in ours."""
    patterns = (
        r"(mask_head\.pixel_mlp|bias_head\.attn_mlp)\.layers\.\d+\.weight|side_adapter\.fusions\.\d+\.proj\.weight"
    )
    return re.fullmatch(patterns, name) is not None


def is_published(state_dict: Mapping[str, Any]) -> bool:
    """Whether tensors are under published names."""
    return any(key.startswith("side_adapter_network.") for key in state_dict)


def load_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, with the tensors under "model"; nothing in the file is run.

    The tensors under "model" are mapped from the file, see `read_tensors`; all others are in memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors and plain data, or no tensors.
    """
    loaded = read_tensors(Path(path))
    content: dict[str, Any] = loaded if isinstance(loaded, dict) and "model" in loaded else {"model": loaded}
    tensors = content["model"]
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ValueError(
            f"{str(path)!r} holds no dictionary of tensors, neither bare nor under 'model'; give a SAN checkpoint"
        )
    odd = [key for key in tensors if not isinstance(key, str)]
    if odd:
        raise ValueError(f"{str(path)!r} holds a tensor named {excerpt(odd[0])}; give a SAN checkpoint, named by text")
    # an optimiser may go on using its state as it is given, long after the file is gone
    return {key: value if key == "model" else copy.deepcopy(value) for key, value in content.items()}


def load_weights(model: SANModel, source: str | Path | Mapping[str, Any]) -> None:
    """Loads all of a checkpoint into all of a model; either everything fits or nothing is changed.

    Args:
        model: any SAN.
        source: a file, or its content as `load_checkpoint_file` gives it; under published names or our own; the full
            state, or a slim file whose CLIP is the one the model has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, or a tensor is missing, unexpected, of another shape or kind (all are listed), or not
            finite; or made with another CLIP.
    """
    content = source if isinstance(source, Mapping) else load_checkpoint_file(source)
    label = "the checkpoint" if isinstance(source, Mapping) else repr(str(source))
    if content.get("format") == _SLIM:
        _check_clip(model, content, label)
    own = fitting_tensors(model, content, label)
    check_finite(own, label)
    model.load_state_dict(own, strict=False)


def fitting_tensors(model: SANModel, content: Mapping[str, Any], label: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under the model's names; none is read for it.

    Args:
        model: any SAN, which may be on the meta device.
        content: see `load_checkpoint_file`.
        label: what messages call it.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape or of another kind; all are listed.
    """
    state = content["model"] if "model" in content and isinstance(content["model"], Mapping) else content
    own = from_published(state) if is_published(state) else dict(state)
    own = {key.removeprefix("model."): value for key, value in own.items()}
    target = model.state_dict()
    if content.get("format") == _SLIM:
        target = {key: value for key, value in target.items() if key in trained_names(model)}
    wrong = misfits(own, target)
    if wrong:
        raise ValueError(
            f"{label} does not fit this model; use the configuration it was trained with. "
            f"{len(wrong)} tensors differ: {listed(wrong)}"
        )
    return own


def trained_names(model: SANModel) -> set[str]:
    """Names of the tensors that training changes."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_fingerprint(model: SANModel) -> str:
    """Identifies the frozen weights a slim checkpoint relies on, to half precision."""
    trained = trained_names(model)
    return weights_fingerprint(
        {name: value.half() for name, value in model.state_dict().items() if name not in trained}
    )


def save_slim(model: SANModel, path: str | Path, *, half: bool = False) -> None:
    """Writes the trained tensors alone, a few MB, with a note of the CLIP they belong to.

    Args:
        model: any SAN.
        path: a `.pth` file.
        half: in half precision, at half the size.
    """
    trained = trained_names(model)
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items() if name in trained}
    tensors = {name: value.half() if half else value.clone() for name, value in tensors.items()}
    clip = model.config.clip
    content = {
        "model": tensors,
        "format": _SLIM,
        "clip": f"{clip.name} {clip.pretrained}",
        "clip_fingerprint": frozen_fingerprint(model),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def _check_clip(model: SANModel, content: Mapping[str, Any], label: str) -> None:
    found = frozen_fingerprint(model)
    if content.get("clip_fingerprint") != found:
        raise ValueError(
            f"{label} was trained on the frozen CLIP {excerpt(content.get('clip'))} "
            f"({excerpt(content.get('clip_fingerprint'))}), but "
            f"this model has {model.config.clip.name} {model.config.clip.pretrained} ({found}); set MODEL.CLIP.NAME "
            "and MODEL.CLIP.PRETRAINED to the former"
        )

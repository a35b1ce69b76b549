"""Builds a model from a configuration: loads CLIP's weights, and freezes everything that is not trained."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from san.clip.arch import ClipArch
from san.clip.loader import LoadedClip, load_clip
from san.clip.text_classifier import OWN_PARAMETERS
from san.clip.tokenizer import Tokenizer
from san.clip.weights import check_finite, listed_tensors, tensor_mismatches
from san.model.config import SANConfig, resolve, unseen_pixels, unusual_depth
from san.model.parts import parts_of
from san.model.san import SANModel
from san.record import FieldError
from san.torch_defaults import torch_defaults

logger = logging.getLogger(__name__)

ModelClass = Callable[[SANConfig, ClipArch, Tokenizer], SANModel]
"""`SANModel`, a subclass, or a function that returns a modified one."""


@torch_defaults()
@torch.inference_mode(False)
def build_san(
    config: SANConfig,
    *,
    clip: LoadedClip | None = None,
    clip_weights: bool = True,
    model_class: ModelClass = SANModel,
    drawn: bool = True,
) -> SANModel:
    """Build a SAN with CLIP's weights and new side weights, in float32 on the CPU.

    A warning is logged if CLIP's patches do not divide its input, or K is far from that of the published models.

    Args:
        config: the model.
        clip: a loaded CLIP, used instead of `config.clip.name` and `config.clip.pretrained`.
        clip_weights: False if a checkpoint provides all of CLIP's weights; nothing is downloaded.
        model_class: makes the model.
        drawn: False keeps tensors that are not CLIP's without values, on the meta device, and uses CLIP's without a
            copy; `san.checkpoint.load_weights` must provide them. Ignored if a part or the class is not SAN's own,
            because its constructor may compute with initialised values.

    Raises:
        ValueError, FileNotFoundError: see `load_clip` and `check_against`.
    """
    clip = clip or load_clip(config.clip.name, config.clip.pretrained, weights=clip_weights)
    config = resolve(config, clip.arch)
    own = None if clip.state_dict is None else clip_state_to_own(clip.state_dict, config.clip.shallow_depth)
    foreign = any(registry.described(part).module for registry, part in parts_of(config))
    drawn = drawn or foreign or model_class is not SANModel
    bare = None if drawn and own is None else build_outline(config, clip)
    if own is not None and bare is not None:
        _check_clip_weights(bare, own)
    for note in (unusual_depth(config, clip.arch), unseen_pixels(config, clip.arch, config.side_adapter.image_size)):
        if note:
            logger.warning("%s", note)
    if drawn or bare is None:
        model = model_class(config, clip.arch, clip.tokenizer)
        if own is not None:
            model.load_state_dict(own, strict=False)
    else:
        model = bare
        model.set_pixel_statistics()
        take_over(model, own or {})
    freeze(model)
    return model


def take_over(model: SANModel, tensors: Mapping[str, Tensor]) -> None:
    """Make tensors the weights of a model, without a copy except for those of another number type.

    A tensor that shares its memory with another one is copied.

    Args:
        model: its weights of these names are replaced.
        tensors: some or all of its state, of the right shapes; may be mapped from a file.
    """
    state, seen = model.state_dict(), set()
    own: dict[str, Tensor] = {}
    for name, value in tensors.items():
        taken = value.detach().to(state[name].dtype)
        storage = taken.untyped_storage()
        if storage.nbytes() != taken.nbytes or not taken.is_contiguous() or storage.data_ptr() in seen:
            taken = taken.clone(memory_format=torch.contiguous_format)
        seen.add(taken.untyped_storage().data_ptr())
        own[name] = taken
    model.load_state_dict(own, strict=False, assign=True)


def warn_of_unseen_pixels(model: SANModel, side: int) -> None:
    """Log which part of images of this side CLIP does not see, unless `build_san` has logged it."""
    note = unseen_pixels(model.config, model.arch, side)
    if note and side != model.config.side_adapter.image_size:
        logger.warning("%s", note)


def build_outline(config: SANConfig, clip: LoadedClip, model_class: ModelClass = SANModel) -> SANModel:
    """Build a SAN with names and shapes but without values, in milliseconds and without memory.

    Tensors of a file are compared with it before memory is allocated for the model.
    """
    with torch.device("meta"), _NoValues():
        return model_class(config, clip.arch, clip.tokenizer)


_OF_SAME_SHAPE = ("normal_", "uniform_", "kaiming_uniform_", "erfinv_", "clamp_", "log")


class _NoValues(TorchFunctionMode):
    """Skips the initialisation of tensors, because torch would import its compiler for it (one second)."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """Call a torch function unless it initialises a tensor."""
        options = options or {}
        name = function.__name__
        if name in _OF_SAME_SHAPE or (name == "mul" and type(arguments[1]) in (int, float)):
            return [*arguments, *options.values()][0]
        if name in ("randn", "ones", "zeros") and torch.device(options.get("device") or "meta").type == "meta":
            function = torch.empty
        return function(*arguments, **options)


def freeze(model: SANModel) -> None:
    """Freeze all but the side network, the heads, "no object" and, if configured, CLIP's positions and prompts."""
    for module in (model.shallow_clip, model.deep_clip, model.text_classifier):
        module.requires_grad_(False)
    for name, parameter in model.text_classifier.named_parameters(recurse=False):
        parameter.requires_grad_(name in OWN_PARAMETERS)
    model.shallow_clip.positional_embedding.requires_grad_(model.config.clip.train_pos_embed)


def clip_state_to_own(state_dict: Mapping[str, Tensor], shallow_depth: int) -> dict[str, Tensor]:
    """Rename CLIP weights from open_clip's names to SAN's: the blocks of the image tower go to its two parts."""
    own = {}
    for key, value in state_dict.items():
        if not key.startswith("visual."):
            own[f"text_classifier.{key}"] = value
            continue
        key = key.removeprefix("visual.")
        index, _, leaf = key.removeprefix("transformer.resblocks.").partition(".")
        if key.startswith("transformer.resblocks.") and re.fullmatch(r"[0-9]{1,4}", index):
            part, number = (
                ("shallow_clip", int(index))
                if int(index) < shallow_depth
                else ("deep_clip", int(index) - shallow_depth)
            )
            own[f"{part}.resblocks.{number}.{leaf}"] = value
        else:
            deep = key.split(".")[0] in ("ln_post", "attn_pool", "proj", "proj_bias")
            own[f"{'deep_clip' if deep else 'shallow_clip'}.{key}"] = value
    return own


def _check_clip_weights(model: SANModel, own: Mapping[str, Tensor]) -> None:
    clip = model.config.clip
    wrong = tensor_mismatches(own, {key: value for key, value in model.state_dict().items() if is_clip_tensor(key)})
    if wrong:
        raise FieldError(
            f"the weights {clip.pretrained!r} do not fit CLIP {clip.name!r}; set clip.name to the model they "
            f"belong to. {len(wrong)} tensors differ: {listed_tensors(sorted(wrong))}",
            "clip.name",
        )
    check_finite(own, f"the file of CLIP weights {clip.pretrained!r}")


def is_clip_tensor(key: str) -> bool:
    """Whether a tensor of the model's state belongs to CLIP."""
    room, _, name = key.partition(".")
    return room in ("shallow_clip", "deep_clip", "text_classifier") and name not in OWN_PARAMETERS

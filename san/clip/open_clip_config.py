"""Reads an architecture from an open_clip configuration, of which every entry must be understood at its value.

A later release of open_clip may add entries that change what a tower computes. An entry or a value that is not in the
tables below is therefore refused, with its name, instead of being ignored (docs/clips.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from san.clip.arch import ClipArch, TextArch, VisionArch
from san.io.errors import excerpt
from san.record import FieldError

Table = Mapping[str, tuple[Any, ...] | None]
"""Entries by name, with the values that are computed; None: any value, see the comment of its table."""

_MODEL: Table = {
    # become fields
    "embed_dim": None, "vision_cfg": None, "text_cfg": None, "quick_gelu": (True, False),
    # names of tensors only
    "custom_text": (True, False),
    # initial values, which the weights replace; a bias of all logits does not change their softmax
    "init_logit_scale": None, "init_logit_bias": None,
    "nonscalar_logit_scale": (False,),
}  # fmt: skip
_BLOCKS: Table = {
    "ls_init_value": (None,), "act_kwargs": (None,), "norm_kwargs": (None,), "block_type": (None,),
    "qk_norm": (False,), "scaled_cosine_attn": (False,), "scale_heads": (False,), "scale_attn_inner": (False,),
    "scale_attn": (False,), "scale_fc": (False,), "output_tokens": (False,),
}  # fmt: skip
"""Entries of the transformer blocks of both towers."""

_VISION: Table = {
    **_BLOCKS,
    # become fields, which have ranges
    "image_size": None, "patch_size": None, "width": None, "layers": None, "head_width": None, "mlp_ratio": None,
    # of training, or of parts that are off
    "patch_dropout": None, "attn_pooler_queries": None, "attn_pooler_heads": None, "timm_model_pretrained": None,
    "timm_pool": None, "timm_proj": None, "timm_proj_bias": None, "timm_drop": None, "timm_drop_path": None,
    "timm_model_name": (None,), "attentional_pool": (False,), "no_ln_pre": (False,),
    "final_ln_after_pool": (False,), "pool_type": ("tok",), "pos_embed_type": ("learnable",),
}  # fmt: skip
_TEXT: Table = {
    **_BLOCKS,
    # become fields, which have ranges
    "context_length": None, "vocab_size": None, "width": None, "layers": None, "heads": None, "mlp_ratio": None,
    # of parts that are off
    "pad_id": None, "eos_id": None, "hf_model_pretrained": None, "hf_proj_type": None, "hf_pooler_type": None,
    "hf_model_name": (None,), "hf_tokenizer_name": (None,), "tokenizer_mode": (None,), "tokenizer_kwargs": (None,),
    "embed_cls": (False,), "no_causal_mask": (False,), "final_ln_after_pool": (False,), "pool_type": ("argmax",),
    "proj_type": ("linear",), "proj_bias": (False,),
}  # fmt: skip


def arch_of(name: str, config: Mapping[str, Any]) -> ClipArch:
    """Return the architecture of an open_clip model.

    Args:
        name: of the model, for messages.
        config: its configuration, with open_clip's keys.

    Raises:
        FieldError: an entry, or its value, is not one that SAN computes; all of them are listed.
    """
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        raise FieldError(
            f"CLIP model {name!r} has no image or no text tower; set clip.name to one with both", "clip.name"
        )
    wrong = [
        *strange_entries("", config, _MODEL),
        *strange_entries("vision ", vision, _VISION),
        *strange_entries("text ", text, _TEXT),
    ]
    if isinstance(vision.get("layers"), list):
        wrong.append("vision is a ResNet, which has no tokens for an attention bias")
    if wrong:
        raise FieldError(
            f"CLIP model {name!r} is not a plain class-token ViT with a causal text tower ({'; '.join(wrong)}); "
            "set clip.name to one of docs/clips.md, such as ViT-B-16 or ViT-L-14-336",
            "clip.name",
        )
    try:
        return _arch(config, vision, text)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise FieldError(
            f"CLIP model {name!r} has sizes that SAN cannot use ({error}); set clip.name to one of docs/clips.md",
            "clip.name",
        ) from error


def strange_entries(section: str, entries: Mapping[str, Any], table: Table) -> list[str]:
    """Return the entries of a section that are not understood, such as "vision pool_type='avg'"."""
    strange = []
    for key, value in entries.items():
        shown = f"{section}{key}={excerpt(value)}"
        if key not in table:
            strange.append(f"{shown}, an entry that SAN does not know")
        elif (accepted := table[key]) is not None and value not in accepted:
            strange.append(shown)
    return strange


def _arch(config: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> ClipArch:
    """Return the architecture of a configuration that is understood; defaults are open_clip's."""
    width, head_width = _whole(vision.get("width", 768)), _whole(vision.get("head_width", 64))
    return ClipArch(
        embed_dim=_whole(config["embed_dim"]),
        vision=VisionArch(
            image_size=_whole(vision.get("image_size", 224)),
            patch_size=_whole(vision.get("patch_size", 16)),
            width=width,
            depth=_whole(vision.get("layers", 12)),
            num_heads=width // head_width,
            mlp_ratio=vision.get("mlp_ratio", 4.0),
        ),
        text=TextArch(
            context_length=_whole(text.get("context_length", 77)),
            vocab_size=_whole(text.get("vocab_size", 49408)),
            width=_whole(text.get("width", 512)),
            depth=_whole(text.get("layers", 12)),
            num_heads=_whole(text.get("heads", 8)),
            mlp_ratio=text.get("mlp_ratio", 4.0),
        ),
        quick_gelu=bool(config.get("quick_gelu", False)),
    )


def _whole(value: Any) -> int:
    """Return a number that must be whole: open_clip also takes a height and a width, and lists of layers."""
    if type(value) is not int:
        raise ValueError(f"{excerpt(value)} is not one whole number")
    return value

"""Reads an architecture from an open_clip configuration, of which every entry must be understood at its value.

A later release of open_clip may add entries that change what a tower computes. An entry or a value that is not in the
tables below is therefore refused, with its name, instead of being ignored (docs/clips.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from san.clip.arch import ClipArch, TextArch, VisionArch
from san.clip.timm_tower import TRUNKS, read_trunk
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
    # of timm's models, which `_trunk_table` checks
    "timm_model_name": (None,), "attentional_pool": (False,), "no_ln_pre": (False,),
    "final_ln_after_pool": (False,), "pool_type": ("tok",), "pos_embed_type": ("learnable",),
}  # fmt: skip
_TEXT: Table = {
    **_BLOCKS,
    # become fields, which have ranges
    "context_length": None, "vocab_size": None, "width": None, "layers": None, "heads": None, "mlp_ratio": None,
    # of parts that are off
    "pad_id": None, "hf_model_pretrained": None, "hf_proj_type": None, "hf_pooler_type": None,
    "hf_model_name": (None,), "tokenizer_mode": (None,), "embed_cls": (False,), "final_ln_after_pool": (False,),
    "proj_type": ("linear",),
    # become fields
    "eos_id": None, "hf_tokenizer_name": None, "pool_type": ("argmax", "eos", "last"),
    "no_causal_mask": (True, False), "proj_bias": (True, False),
    "norm_kwargs": (None, {"eps": 1e-5}, {"eps": 1e-6}), "act_kwargs": (None, {"approximate": "tanh"}),
    "tokenizer_kwargs": (None, {}, {"clean": "whitespace"}, {"clean": "lower"}, {"clean": "canonicalize"}),
}  # fmt: skip
_MODELS = {
    "xlm-roberta-base": ("xlm-roberta", 250002, 768, 12, 12),
    "xlm-roberta-large": ("xlm-roberta", 250002, 1024, 24, 16),
    "roberta-base": ("roberta", 50265, 768, 12, 12),
}
"""Text towers of transformers: type, size of the vocabulary, width, blocks and heads."""


_WITHOUT_TOKENS = ("convnext", "swin", "fastvit", "vitamin")
"""Beginnings of timm's names of image towers in which a bias has nothing to act on."""


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
        *strange_entries("vision ", vision, _trunk_table(vision.get("timm_model_name"))),
        *strange_entries("text ", text, _text_table(text.get("hf_model_name"))),
    ]
    if isinstance(vision.get("layers"), list):
        wrong.append("vision is a ResNet, which has no tokens for an attention bias")
    if str(vision.get("timm_model_name")).startswith(_WITHOUT_TOKENS):
        wrong.append("vision is made of convolutions or windows, which have no tokens for an attention bias")
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


def _trunk_table(name: Any) -> Table:
    """Return the entries of an image tower: open_clip's own ViT, or a model of timm that SAN knows."""
    if name not in TRUNKS:
        return _VISION
    trunk = TRUNKS.get(name)
    # a projection that is not named is timm's own last layer
    projections = (None, "") if trunk.projected else ("none",)
    return {**_VISION, "timm_model_name": (name,), "timm_pool": (trunk.pool,), "timm_proj": projections}


def _text_table(name: Any) -> Table:
    """Return the entries of a text tower: open_clip's own, or one of transformers that SAN knows."""
    if name not in _MODELS:
        return _TEXT
    pooling = {"hf_pooler_type": ("mean_pooler",), "hf_proj_type": ("mlp",)}
    return {**_TEXT, "hf_model_name": (name,), **pooling}


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
    embed_dim, trunk = _whole(config["embed_dim"]), vision.get("timm_model_name")
    tower, pixels = read_trunk(trunk, embed_dim) if trunk else (_vit(vision), {})
    return ClipArch(embed_dim, tower, _text(text), quick_gelu=bool(config.get("quick_gelu", False)), **pixels)


def _vit(vision: Mapping[str, Any]) -> VisionArch:
    """Return the architecture of open_clip's own ViT."""
    width, head_width = _whole(vision.get("width", 768)), _whole(vision.get("head_width", 64))
    return VisionArch(
        image_size=_whole(vision.get("image_size", 224)),
        patch_size=_whole(vision.get("patch_size", 16)),
        width=width,
        depth=_whole(vision.get("layers", 12)),
        num_heads=width // head_width,
        mlp_ratio=vision.get("mlp_ratio", 4.0),
    )


def _text(text: Mapping[str, Any]) -> TextArch:
    """Return the architecture of a text tower."""
    options = {
        "context_length": _whole(text.get("context_length", 77)),
        "tokenizer": text.get("hf_tokenizer_name") or "",
        "clean": (text.get("tokenizer_kwargs") or {}).get("clean", "whitespace"),
    }
    if text.get("hf_model_name"):
        model, vocab_size, width, depth, num_heads = _MODELS[text["hf_model_name"]]
        return TextArch(vocab_size=vocab_size, width=width, depth=depth, num_heads=num_heads, model=model, **options)
    return TextArch(
        vocab_size=_whole(text.get("vocab_size", 49408)),
        width=_whole(text.get("width", 512)),
        depth=_whole(text.get("layers", 12)),
        num_heads=_whole(text.get("heads", 8)),
        mlp_ratio=text.get("mlp_ratio", 4.0),
        pool=text.get("pool_type", "argmax"),
        eos_id=_whole(text.get("eos_id", 2)),
        causal=not text.get("no_causal_mask", False),
        proj_bias=bool(text.get("proj_bias", False)),
        norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        tanh_gelu=bool(text.get("act_kwargs")),
        **options,
    )


def _whole(value: Any) -> int:
    """Return a number that must be whole: open_clip also takes a height and a width, and lists of layers."""
    if type(value) is not int:
        raise ValueError(f"{excerpt(value)} is not one whole number")
    return value

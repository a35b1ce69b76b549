"""Converts CLIP weights of transformers' `CLIPModel` to open_clip's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from san.clip.renaming import block_rows, renamed
from san.io.plain_file import read_plain_file

_MARK = "vision_model.embeddings.class_embedding"
_BLOCK = (
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
    ("self_attn.out_proj.", "attn.out_proj."),
    ("self_attn.q_proj.", "attn.q_proj."),
    ("self_attn.k_proj.", "attn.k_proj."),
    ("self_attn.v_proj.", "attn.v_proj."),
)
_ROWS = (
    (_MARK, "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # transformers' spelling
    *block_rows("vision_model.encoder.layers", "visual.transformer.resblocks", _BLOCK),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    *block_rows("text_model.encoder.layers", "transformer.resblocks", _BLOCK),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
)
_TRANSPOSED = ("visual.proj", "text_projection")


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of transformers' `CLIPModel`."""
    return _MARK in state


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors of a `CLIPModel` to open_clip's names and shapes; attention projections are concatenated."""
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        name = renamed(key, _ROWS)
        own[name] = value.t().contiguous() if name in _TRANSPOSED else value
    for query in [name for name in own if ".attn.q_proj." in name]:
        parts = [own.pop(query.replace(".q_proj.", f".{letter}_proj."), None) for letter in "qkv"]
        if all(part is not None for part in parts):  # missing tensors are reported when the model is built
            own[query.replace("q_proj.", "in_proj_")] = torch.cat([part for part in parts if part is not None])
    return own


def has_quick_gelu(weights: Path) -> bool | None:
    """Whether the config.json next to a weights file sets QuickGELU; None if there is no such configuration.

    Raises:
        ValueError: it cannot be read.
    """
    path = weights.with_name("config.json")
    content = read_plain_file(path, "configuration of CLIP") if path.is_file() else None
    if not isinstance(content, dict) or content.get("model_type") != "clip":
        return None
    vision = content.get("vision_config")
    return not isinstance(vision, dict) or vision.get("hidden_act", "quick_gelu") == "quick_gelu"  # their default

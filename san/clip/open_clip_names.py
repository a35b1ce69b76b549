"""Converts names and shapes of open_clip's weights to those of a plain CLIP, whichever classes hold them.

CustomTextCLIP has the text tower under "text.", timm's image towers are under "visual.trunk.", and projections are
linear layers in some models.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from san.clip.renaming import renamed

_ROWS = (
    ("text.transformer.embeddings.", "foreign.transformer.embeddings."),
    ("text.transformer.encoder.", "foreign.transformer.encoder."),
    ("text.proj.", "foreign.proj."),
    ("text.", ""),
    ("visual.trunk.cls_token", "visual.class_embedding"),
    ("visual.trunk.pos_embed", "visual.positional_embedding"),
    ("visual.trunk.patch_embed.proj.", "visual.conv1."),
    ("visual.trunk.norm_pre.", "visual.ln_pre."),
    ("visual.trunk.blocks.", "visual.transformer.resblocks."),
    ("visual.trunk.norm.", "visual.ln_post."),
    ("visual.trunk.attn_pool.", "visual.attn_pool."),
    ("visual.trunk.head.weight", "visual.proj"),
    ("visual.trunk.head.bias", "visual.proj_bias"),
)
_UNUSED = ("logit_bias",)  # the same for all classes: their softmax does not change


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of a plain CLIP; those that have them already are returned unchanged."""
    plain = {}
    for key, value in state.items():
        name = renamed(key, _ROWS)
        if key.startswith("visual.trunk."):
            if name == "visual.proj":
                value = value.t()
            elif name == "visual.class_embedding":
                value = value.flatten()
            elif name == "visual.positional_embedding" and value.ndim == 3:
                value = value.squeeze(0)
        if name not in _UNUSED:
            plain[name] = value
    for theirs, ours in (
        ("text_projection.weight", "text_projection"),
        ("text_projection.bias", "text_projection_bias"),
    ):
        if theirs in plain:
            plain[ours] = plain.pop(theirs).t()
    return plain

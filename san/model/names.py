"""Names and shapes of a SAN's tensors in files of other code: the published code and mmsegmentation.

Source: docs/method.md#10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from san.clip.renaming import Rows, block_rows, renamed

_POINTWISE = re.compile(
    r"(mask_head\.pixel_mlp|bias_head\.attn_mlp)\.layers\.\d+\.weight|side_adapter\.fusions\.\d+\.proj\.weight"
)
"""Weights that are 1x1 convolutions in other files, and linear layers here."""


@dataclass(frozen=True)
class Naming:
    """Names and shapes of a SAN's tensors in other code.

    Attributes:
        mark: prefix of a name that only files of this kind have.
        rows: pairs of prefixes, theirs and ours. The first match is used, in the other direction the longest match of
            ours.
        leading: number of additional leading dimensions of 1, by our tensor.
        transposed: our matrices that are transposed in their files.
        derived: tensors that are computed here; they are neither read nor required.
    """

    mark: str
    rows: Rows
    leading: Mapping[str, int] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    derived: frozenset[str] = frozenset()

    def describes(self, names: Iterable[str]) -> bool:
        """Whether tensors have these names."""
        return any(name.startswith(self.mark) for name in names)

    def own_name(self, theirs: str) -> str:
        """Return our name of a tensor; other names are returned unchanged."""
        return renamed(theirs, self.rows)

    def name_of(self, own: str) -> str:
        """Return their name of one of our tensors; other names are returned unchanged."""
        rows = [(ours, theirs) for theirs, ours in self.rows]
        return renamed(own, sorted(rows, key=lambda row: -len(row[0])))

    def to_own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert tensors to our names and shapes; those with other names and shapes are returned unchanged."""
        own = {}
        for key, value in state.items():
            if key in self.derived:
                continue
            name = self.own_name(key)
            if _POINTWISE.fullmatch(name) and value.ndim > 1:
                value = value.flatten(1)
            for _ in range(self.leading.get(name, 0)):
                value = value.squeeze(0)
            own[name] = value.t() if name in self.transposed and value.ndim == 2 else value
        return own

    def from_own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert our tensors to their names and shapes."""
        theirs = {}
        for name, value in state.items():
            if _POINTWISE.fullmatch(name):
                value = value[:, :, None, None]
            for _ in range(self.leading.get(name, 0)):
                value = value[None]
            theirs[self.name_of(name)] = value.t().contiguous() if name in self.transposed else value
        return theirs


_SIDE_EMBEDDINGS = {
    "side_adapter.pos_embed": 1,
    "side_adapter.query_embed": 1,
    "side_adapter.query_pos_embed": 1,
    "bias_head.scale": 1,
}

PUBLISHED = Naming(
    mark="side_adapter_network.",
    rows=(
        ("side_adapter_network.vit_model.patch_embed.proj.", "side_adapter.patch_embed."),
        ("side_adapter_network.vit_model.", "side_adapter."),
        ("side_adapter_network.query_", "side_adapter.query_"),
        ("side_adapter_network.fusion_layers.layer_#.input_proj.0.", "side_adapter.fusions.#.norm."),
        ("side_adapter_network.fusion_layers.layer_#.input_proj.1.", "side_adapter.fusions.#.proj."),
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
    ),
    leading=_SIDE_EMBEDDINGS,
    derived=frozenset({"ov_classifier.attn_mask", "criterion.empty_weight"}),
)
"""Naming of the authors' files."""

_ATTENTION = ("attentions.0.attn.", "attn."), ("norms.0.", "ln_1."), ("norms.1.", "ln_2.")
_MLP = ("ffns.0.layers.0.0.", "mlp.c_fc."), ("ffns.0.layers.1.", "mlp.c_proj.")
_SIDE = "decode_head.side_adapter_network"

MMSEGMENTATION = Naming(
    mark="decode_head.side_adapter_network.",
    rows=(
        ("image_encoder.cls_token", "shallow_clip.class_embedding"),
        ("image_encoder.pos_embed", "shallow_clip.positional_embedding"),
        ("image_encoder.patch_embed.projection.", "shallow_clip.conv1."),
        *block_rows(
            "image_encoder.layers",
            "shallow_clip.resblocks",
            [
                ("ln1.", "ln_1."),
                ("ln2.", "ln_2."),
                ("attn.attn.", "attn."),
                ("ffn.layers.0.0.", "mlp.c_fc."),
                ("ffn.layers.1.", "mlp.c_proj."),
            ],
        ),
        ("image_encoder.", "shallow_clip."),
        *block_rows("text_encoder.transformer", "text_classifier.transformer.resblocks", [*_ATTENTION, *_MLP]),
        ("text_encoder.bg_embed", "text_classifier.no_object_embed"),
        ("text_encoder.", "text_classifier."),
        *block_rows("decode_head.rec_with_attnbias.layers", "deep_clip.resblocks", [*_ATTENTION, *_MLP]),
        ("decode_head.rec_with_attnbias.proj.weight", "deep_clip.proj"),
        ("decode_head.rec_with_attnbias.", "deep_clip."),
        (f"{_SIDE}.patch_embed.projection.", "side_adapter.patch_embed."),
        *block_rows(
            f"{_SIDE}.encode_layers",
            "side_adapter.blocks",
            [
                ("ln1.", "norm1."),
                ("ln2.", "norm2."),
                ("attn.attn.in_proj_", "attn.qkv."),
                ("attn.attn.out_proj.", "attn.proj."),
                ("ffn.layers.0.0.", "mlp.fc1."),
                ("ffn.layers.1.", "mlp.fc2."),
            ],
        ),
        (f"{_SIDE}.conv_clips.#.0.", "side_adapter.fusions.#.norm."),
        (f"{_SIDE}.conv_clips.#.1.conv.", "side_adapter.fusions.#.proj."),
        (f"{_SIDE}.mask_decoder.query_mlp.", "mask_head.query_mlp."),
        (f"{_SIDE}.mask_decoder.pix_mlp.", "mask_head.pixel_mlp."),
        (f"{_SIDE}.mask_decoder.attn_mlp.", "bias_head.attn_mlp."),
        (f"{_SIDE}.mask_decoder.bias_scaling.weight", "bias_head.scale"),
        (f"{_SIDE}.mask_decoder.bias_scaling.bias", "bias_head.offset"),
        (f"{_SIDE}.", "side_adapter."),
    ),
    leading=_SIDE_EMBEDDINGS | {"shallow_clip.class_embedding": 2, "shallow_clip.positional_embedding": 1},
    transposed=frozenset({"deep_clip.proj"}),
)
"""Naming of mmsegmentation's SAN (its configs/san)."""

NAMINGS: dict[str, Naming] = {"published": PUBLISHED, "mmsegmentation": MMSEGMENTATION}
"""Namings by the value of `san convert --to`."""


def naming_of(names: Iterable[str]) -> Naming | None:
    """Return the naming of a file's tensors; None for our own."""
    names = list(names)
    return next((naming for naming in NAMINGS.values() if naming.describes(names)), None)


def to_published(state: Mapping[str, Tensor], *, num_classes: int = 171) -> dict[str, Tensor]:
    """Convert our tensors to the format of the authors' files, with the two derived ones that their code expects.

    Args:
        state: the full state of a model with [SLS] tokens that are initialised from the class token.
        num_classes: number of classes that the model was trained on.
    """
    length = state["text_classifier.positional_embedding"].shape[0]
    return {
        **PUBLISHED.from_own(state),
        "ov_classifier.attn_mask": torch.full((length, length), float("-inf")).triu(1),
        "criterion.empty_weight": torch.cat([torch.ones(num_classes), torch.tensor([0.1])]),
    }

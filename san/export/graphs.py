"""A model as three graphs: pixels to mask proposals, tokens to text embeddings, both to a label map.

B batch, Q queries, C classes, P prompts, T text tokens, E joint embedding, (H, W) image, (h_s, w_s) side grid.
Source: docs/method.md#1 to #7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from san.model.san import SANModel

_MAX_SIDE = 4096
"""Pixels, of a padded image in an archive of torch.export."""


@dataclass(frozen=True)
class ModelGraph:
    """A module to export.

    Attributes:
        module: takes the inputs in order, returns a tuple of the outputs.
        inputs: examples by name; no dynamic size of them is 0 or 1, because torch.export would fix it.
        sizes: the dynamic sizes of each input, by axis; none for an input that is not named.
        outputs: their names.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    sizes: Mapping[str, Mapping[int, Any]]
    outputs: tuple[str, ...]

    def trace(self) -> ExportedProgram:
        """Return the program for all sizes."""
        sizes = tuple(dict(self.sizes.get(name, {})) or None for name in self.inputs)
        with torch.no_grad():
            return export(self.module, tuple(self.inputs.values()), dynamic_shapes=sizes, strict=False)


class PixelGraph(nn.Module):
    """`SANModel.stack` for images of one size."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: SANModel) -> None:
        super().__init__()
        self.step = model.config.size_divisibility
        self.register_buffer("mean", model.pixel_mean.flatten())
        self.register_buffer("std", model.pixel_std.flatten())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 RGB to normalised, padded images, and `sizes` (2, 2) int64: padded, then (H, W)."""
        height, width = pixels.shape[1:3]
        below, right = -height % self.step, -width % self.step
        images = ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)  # (B, 3, H, W)
        sizes = torch.stack([torch.tensor([height + below, width + right]), torch.tensor([height, width])])
        return F.pad(images, (0, right, 0, below)), sizes


class ProposalGraph(nn.Module):
    """`SANModel.propose`, without the attention biases."""

    def __init__(self, model: SANModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) of `SANModel.stack` to mask logits (B, Q, h_s, w_s) and [SLS] embeddings (B, Q, E)."""
        proposals = self.model.propose(images)[-1]
        return proposals.mask_logits, proposals.sls_embed


class TextGraph(nn.Module):
    """What `TextEmbedder.embed` computes, for names with equally many prompts."""

    def __init__(self, model: SANModel) -> None:
        super().__init__()
        self.tower = model.text_classifier

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        """Token ids (C, P, T), prompt p by template p, to unit-length embeddings (C, E).

        T may be less than CLIP's context length: all that follows the end-of-text of the longest prompt can be cut.
        """
        count, prompts, _ = tokens.shape
        ids = tokens.flatten(0, 1)  # (C P, T)
        positions = torch.arange(ids.shape[1], device=ids.device)
        kinds = torch.arange(prompts, device=ids.device).repeat(count)
        x = self.tower.ln_final(self.tower.transformer(self.tower.embed_tokens(ids, positions, kinds)))
        is_end = positions == ids.argmax(dim=-1, keepdim=True)  # (C P, T)
        end = (x * is_end[..., None]).sum(dim=1)  # (C P, D); indexing by row is translated for one size only
        per_prompt = F.normalize(end @ self.tower.text_projection, dim=-1)
        return (F.normalize(per_prompt.unflatten(0, (count, prompts)).mean(dim=1), dim=-1),)  # (C, E)


class LabelGraph(nn.Module):
    """`SANModel.classify` and `postprocess.mean_labels` of one image; holds all C x H x W scores."""

    def __init__(self, model: SANModel) -> None:
        super().__init__()
        self.scorer, self.classifier = model.scorer, model.text_classifier

    def forward(
        self, mask_logits: Tensor, sls_embed: Tensor, text_embed: Tensor, sizes: Tensor, output_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels (H, W) int64, the score of each (H, W), and class logits (Q, C + 1).

        Args:
            mask_logits: (1, Q, h_s, w_s).
            sls_embed: (1, Q, E).
            text_embed: (C, E).
            sizes: (2, 2) int64 of `PixelGraph`.
            output_size: (2,) int64, (H, W) of the result.
        """
        class_logits = self.scorer(sls_embed, text_embed, self.classifier)[0]
        probs = class_logits.softmax(dim=-1)[:, :-1]  # (Q, C)
        rows, columns = (
            _resize_weights(grid, sizes[0, axis], sizes[1, axis], output_size[axis])
            for axis, grid in enumerate(mask_logits.shape[2:])
        )
        masks = (rows @ mask_logits[0] @ columns.T).sigmoid()  # (Q, H, W)
        scores, labels = torch.einsum("qc,qhw->chw", probs, masks).max(dim=0)
        return labels, scores, class_logits


def _resize_weights(grid: int, padded: Tensor, image: Tensor, output: Tensor) -> Tensor:
    """Return (output, grid): both resizes of docs/method.md#7.1 along one axis, as `postprocess` has them."""
    cut: Any = image.item()
    wanted: Any = output.item()
    torch._check(cut >= 1)
    torch._check(wanted >= 1)
    to_image = _hat_weights(cut, grid, grid / padded, torch.tensor(grid - 1.0))
    return _hat_weights(wanted, cut, image / output, image - 1.0) @ to_image


def _hat_weights(rows: int, columns: int, ratio: Tensor, last: Tensor) -> Tensor:
    """Return (rows, columns): linear interpolation with ``align_corners=False``, for sizes known only at run time."""
    centres = ((torch.arange(rows) + 0.5) * ratio - 0.5).clamp(min=0).minimum(last)
    return (1 - (centres[:, None] - torch.arange(columns)).abs()).clamp(min=0)


def pixel_graph(model: SANModel) -> ModelGraph:
    """Return the graph that normalises and pads."""
    pixels = torch.zeros(2, 90, 100, 3, dtype=torch.uint8)
    sizes = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
    return ModelGraph(PixelGraph(model), {"pixels": pixels}, {"pixels": sizes}, ("images", "sizes"))


def proposal_graph(model: SANModel) -> ModelGraph:
    """Return the graph of everything that depends on the image alone; sides are multiples of `size_divisibility`."""
    step = model.config.size_divisibility
    images = torch.zeros(2, 3, 3 * step, 4 * step)
    height, width = (step * Dim(name, min=2, max=_MAX_SIDE // step) for name in ("rows", "columns"))
    sizes = {0: Dim("batch", max=1024), 2: height, 3: width}
    return ModelGraph(ProposalGraph(model), {"images": images}, {"images": sizes}, ("mask_logits", "sls_embed"))


def text_graph(model: SANModel) -> ModelGraph:
    """Return the graph of the text tower."""
    longest = model.arch.text.context_length
    tokens = torch.arange(24).view(2, 3, 4)[:, :, : max(2, min(4, longest))] % model.arch.text.vocab_size
    sizes = {0: Dim("names", max=100_000), 1: Dim("prompts", max=1000), 2: Dim("tokens", min=2, max=longest)}
    return ModelGraph(TextGraph(model), {"tokens": tokens}, {"tokens": sizes}, ("text_embed",))


def label_graph(model: SANModel) -> ModelGraph:
    """Return the graph of the label map."""
    queries, width = model.config.side_adapter.num_queries, model.arch.embed_dim
    inputs = {
        "mask_logits": torch.zeros(1, queries, 6, 8),
        "sls_embed": torch.zeros(1, queries, width),
        "text_embed": torch.zeros(3, width),
        "sizes": torch.tensor([[96, 128], [90, 100]]),
        "output_size": torch.tensor([45, 50]),
    }
    sizes = {
        "mask_logits": {2: Dim("mask_rows", max=1024), 3: Dim("mask_columns", max=1024)},
        "text_embed": {0: Dim("classes", max=100_000)},
    }
    return ModelGraph(LabelGraph(model), inputs, sizes, ("labels", "scores", "class_logits"))

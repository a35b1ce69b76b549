"""The method as it is written down, without shortcuts: what the fast paths are tested against and timed beside.

Nothing here is used in training or prediction. `plain_paths` puts a model's image side on these computations;
`plain_labels`, `plain_text_embed` and `PlainCriterion` stand beside `semantic_labels`, `TextClassifier.embed` and
`SetCriterion`. The numbers agree to rounding (tests/test_plain.py).

B batch, Q queries, C classes, E joint embedding, D CLIP width, N_h heads, T patch tokens, (h_s, w_s) side grid.
Source: docs/method.md#2 to #8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from san.clip.blocks import Block
from san.clip.text_classifier import TextClassifier
from san.clip.visual import DeepClip, ShallowFeatures
from san.losses import LossConfig, Target, dice_loss, mask_loss, match, matching_cost
from san.losses.point_sampling import keep_uncertain, sample_points, uniform_points
from san.model.attention_bias import AttentionBiasHead
from san.model.parts import MaskPrediction, SideFeatures
from san.model.san import SANModel
from san.postprocess import Geometry


@contextmanager
def plain_paths(model: SANModel) -> Iterator[SANModel]:
    """The model with its attention, bias head and recognition computed plainly; as it was, afterwards."""
    model.bias_head.forward = partial(attn_bias, model.bias_head)  # type: ignore[method-assign]
    model._recognise = partial(recognise, model)  # type: ignore[method-assign]
    model.propose = partial(_attend_plainly, model.propose)  # type: ignore[method-assign]
    try:
        yield model
    finally:
        del model.bias_head.forward, model._recognise, model.propose


def _attend_plainly(propose: Callable[..., Any], images: Tensor) -> Any:
    with PlainAttention():
        return propose(images)


class PlainAttention(TorchFunctionMode):
    """While it is entered, `plain_attention` stands in for torch's fused kernels, wherever attention is computed."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Any function of torch, as called."""
        if func is F.scaled_dot_product_attention:
            func = plain_attention
        return func(*args, **(kwargs or {}))


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attention (B, N_h, T, d) with all its weights in memory at once; arguments as torch's, a mask or `is_causal`."""
    assert attn_mask is None or not is_causal
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, N_h, T, keys)
    if is_causal:
        attn_mask = torch.ones_like(logits, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        logits = logits + attn_mask
    mixed: Tensor = logits.softmax(dim=-1).to(v.dtype) @ v
    return mixed


def attn_bias(head: AttentionBiasHead, features: SideFeatures, masks: MaskPrediction) -> Tensor:
    """Biases (B, L, N, Q, h_s, w_s): every patch's embedding for every layer and head, times the query embeddings."""
    config = head.config
    patches = head.attn_mlp(features.patch_tokens)
    patches = patches.unflatten(2, (config.num_layers, config.num_heads, head.embed_channels))  # (B, T_s, L, N, c)
    bias: Tensor = torch.einsum("bqc,btlnc->blnqt", masks.queries, patches).unflatten(4, features.grid)
    if config.learnt_scale:
        bias = bias * head.scale + head.offset
    return bias if config.enabled else bias * 0


def recognise(model: SANModel, clip: ShallowFeatures, biases: list[Tensor]) -> tuple[Tensor, ...]:
    """Embeddings (B, Q, E) per bias, one pass of CLIP's deep blocks for each."""
    class_token = clip.class_tokens[-1]
    tokens = torch.cat([model.sls_init(class_token), class_token, clip.patch_tokens[-1]], dim=1)  # (B, Q + 1 + T, D)
    return tuple(_deep_pass(model.deep_clip, tokens, model.bias_head.to_grid(bias, clip.grid)) for bias in biases)


def _deep_pass(deep: DeepClip, x: Tensor, bias: Tensor) -> Tensor:
    """Masked self-attention of [SLS], class and patch tokens (B, Q + 1 + T, D); bias (B, L, N, Q, T)."""
    count = bias.shape[3]
    for index, block in enumerate(deep.resblocks):
        assert isinstance(block, Block)
        q, k, v = block.attn.project(block.ln_1(x))  # (B, N_h, Q + 1 + T, d)
        mask = q.new_zeros(*q.shape[:2], x.shape[1], x.shape[1])
        mask[..., :count] = float("-inf")  # no token sees an [SLS] token,
        mask[..., :count, :count].diagonal(dim1=-2, dim2=-1).zero_()  # but itself;
        mask[..., :count, count] = float("-inf")  # none of them sees the class token
        mask[..., :count, count + 1 :] = bias[:, 0 if bias.shape[1] == 1 else index].to(q.dtype)
        x = block.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    return F.normalize(deep.ln_post(x[:, :count]) @ deep.proj, dim=-1)


def plain_scores(mask_logits: Tensor, class_logits: Tensor, geometry: Geometry) -> Tensor:
    """Scores (C, H, W) of one image; every mask is resized to the padded, then to the output size.

    Arguments as in `san.postprocess.semantic_scores`.
    """
    height, width = geometry.image_size
    masks = F.interpolate(mask_logits.float()[None], geometry.padded_size, mode="bilinear", align_corners=False)
    masks = masks[..., :height, :width]
    masks = F.interpolate(masks, geometry.output_size, mode="bilinear", align_corners=False)[0].sigmoid()  # (Q, H, W)
    return torch.einsum("qc,qhw->chw", class_logits.float().softmax(dim=-1)[:, :-1], masks)


def plain_labels(mask_logits: Tensor, class_logits: Tensor, geometry: Geometry) -> Tensor:
    """The label map (H, W) of all scores at once."""
    return plain_scores(mask_logits, class_logits, geometry).argmax(dim=0)


@torch.no_grad()
def plain_text_embed(classifier: TextClassifier, names: Sequence[str], *, chunk_size: int = 256) -> Tensor:
    """Text embeddings (C, E) of names, each prompt at CLIP's full length, no cache."""
    prompts = [prompt for name in names for prompt in classifier.embedder.prompts(name)]
    tokens = classifier.embedder.tokenizer(prompts).to(classifier.device)  # (N, 77)
    with PlainAttention():
        passes = [classifier.encode_text(part).float() for part in tokens.split(chunk_size)]
    embeds = F.normalize(torch.cat(passes), dim=-1)  # (N, E)
    return F.normalize(embeds.view(len(names), -1, embeds.shape[1]).mean(dim=1), dim=-1)


class PlainCriterion:
    """The losses with full-size masks, each image of each layer matched and moved by itself; one process.

    Args:
        config: weights, costs and points.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Tensor]:
        """As `SetCriterion`, with points from torch's global generator."""
        layers = [*outputs.get("aux_outputs", ()), outputs]
        losses = {}
        for index, layer in enumerate(layers):
            suffix = "" if layer is outputs else f"_{index}"
            for name, value in self._layer(layer["pred_logits"].float(), layer["pred_masks"].float(), targets).items():
                losses[name + suffix] = value
        return losses

    def _layer(self, class_logits: Tensor, mask_logits: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        config, device = self.config, mask_logits.device
        classes = torch.full(class_logits.shape[:2], class_logits.shape[-1] - 1, device=device)
        logits, masks = [mask_logits[:0, 0]], []
        for image, target in enumerate(targets):
            own = target.masks.to(device).float()
            if len(own) == 0:
                continue
            points = uniform_points(1, config.num_points, device=device)
            at_logits, at_masks = (sample_points(maps[None], points)[0] for maps in (mask_logits[image], own))
            labels = target.labels.to(device)
            cost = matching_cost(class_logits[image], at_logits, labels, at_masks, config=config)
            queries, matched = (index.to(device) for index in match(cost))
            classes[image, queries] = labels[matched]
            logits.append(mask_logits[image, queries])
            masks.append(own[matched])
        weight = torch.ones(class_logits.shape[-1], device=device)
        weight[-1] = config.no_object_weight
        loss_ce = F.cross_entropy(class_logits.flatten(0, 1), classes.flatten(), weight)
        paired = torch.cat(logits)
        loss_mask = loss_dice = paired.sum()
        if masks:
            points = self._loss_points(paired.detach()[:, None])
            at_logits = sample_points(paired[:, None], points)[:, 0]
            at_masks = sample_points(torch.cat(masks)[:, None], points)[:, 0]
            loss_mask, loss_dice = mask_loss(at_logits, at_masks).sum(), dice_loss(at_logits, at_masks).sum()
        num_masks = max(1, sum(len(target.labels) for target in targets))
        return {
            "loss_ce": config.class_weight * loss_ce,
            "loss_mask": config.mask_weight * loss_mask / num_masks,
            "loss_dice": config.dice_weight * loss_dice / num_masks,
        }

    def _loss_points(self, logits: Tensor) -> Tensor:
        config, device = self.config, logits.device
        num_uncertain = int(config.importance_ratio * config.num_points)
        candidates = uniform_points(len(logits), int(config.oversample_ratio * config.num_points), device=device)
        fresh = uniform_points(len(logits), config.num_points - num_uncertain, device=device)
        return torch.cat([keep_uncertain(logits, candidates, num_uncertain), fresh], dim=1)

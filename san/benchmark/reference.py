"""The method without shortcuts. The fast paths are tested against it and compared with its time.

Nothing here is used in training or prediction. `PlainSAN`, `plain_labels`, `plain_text_embed` and `PlainCriterion` give
the numbers of `SANModel`, `semantic_labels`, `TextClassifier.embed` and `SetCriterion`, except for rounding
(tests/benchmark/test_reference.py).

B batch, Q queries, S [SLS] tokens, C classes, E joint embedding, D CLIP width, N_h heads, T patch tokens, T_s side
patches, L bias layers, N bias heads, c embed channels, (h_s, w_s) side grid. Source: docs/method.md#2 to #8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from san.clip.arch import ClipArch
from san.clip.blocks import Block
from san.clip.text_classifier import TextClassifier
from san.clip.tokenizer import Tokenizer
from san.clip.towers import ShallowFeatures
from san.clip.visual import DeepClip
from san.losses import LossConfig, Target, dice_loss, mask_loss, match, matching_cost
from san.losses.point_sampling import keep_uncertain, sample_points, uniform_points
from san.model.attention_bias import AttentionBiasHead
from san.model.config import SANConfig
from san.model.parts import MaskPrediction, SideFeatures
from san.model.san import MaskProposals, SANModel
from san.postprocess import Geometry


class PlainSAN(SANModel):
    """A SAN with an image side without shortcuts; weights have the same names as in `SANModel`."""

    def __init__(self, config: SANConfig, arch: ClipArch, tokenizer: Tokenizer) -> None:
        super().__init__(config, arch, tokenizer)
        self.bias_head = PlainBiasHead(None, self.config)
        if type(self.deep_clip) is DeepClip:  # other towers have no plain form
            self.deep_clip = PlainDeepClip(arch, len(self.deep_clip.resblocks))

    def propose(self, images: Tensor) -> list[MaskProposals]:
        """Compute `SANModel.propose` with plain attention."""
        with PlainAttention():
            return super().propose(images)

    def _recognise(
        self,
        clip: ShallowFeatures,
        biases: list[Tensor],
        sls_share: Tensor | None = None,
        pooled_masks: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Return embeddings (B, Q, E) per bias, with one pass of CLIP's deep blocks for each; then per mask."""
        masks = [[each] for each in pooled_masks] or [[]] * len(biases)
        recognise = super()._recognise
        passes = [recognise(clip, [bias], sls_share, own) for bias, own in zip(biases, masks, strict=True)]
        return tuple(embed for kind in zip(*passes, strict=True) for embed in kind)


class PlainAttention(TorchFunctionMode):
    """Context manager in which `plain_attention` replaces torch's fused kernels."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function."""
        if func is F.scaled_dot_product_attention:
            func = plain_attention
        return func(*args, **(kwargs or {}))


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Return attention (B, N_h, T, d) with all weights in memory; arguments as in torch, a mask or `is_causal`."""
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


class PlainBiasHead(AttentionBiasHead):
    """The bias head with an embedding of every patch for every layer and head, times the query embeddings."""

    def forward(self, features: SideFeatures, masks: MaskPrediction) -> Tensor:
        """See `AttentionBiasHead.forward`."""
        config = self.config
        patches = self.attn_mlp(features.patch_tokens)
        patches = patches.unflatten(2, (config.num_layers, config.num_heads, self.embed_channels))  # (B, T_s, L, N, c)
        bias: Tensor = torch.einsum("bqc,btlnc->blnqt", masks.queries, patches).unflatten(4, features.grid)
        if config.learnt_scale:
            bias = bias * self.scale + self.offset
        return bias if config.enabled else bias * 0


class PlainDeepClip(DeepClip):
    """CLIP's deep blocks as masked self-attention over [SLS], class and patch tokens together."""

    def forward(
        self,
        class_token: Tensor,
        patch_tokens: Tensor,
        sls_tokens: Tensor,
        attn_bias: Tensor,
        grid: tuple[int, int] | None = None,
        mask_shares: Tensor | None = None,
    ) -> Tensor:
        """See `DeepTower.forward`; values are projected for every patch."""
        count = sls_tokens.shape[1]
        x = torch.cat([sls_tokens, class_token, patch_tokens], dim=1)  # (B, S + 1 + T, D)
        for index, block in enumerate(self.resblocks):
            assert isinstance(block, Block)
            q, k, v = block.attn.project(block.ln_1(x))  # (B, N_h, S + 1 + T, d)
            mask = q.new_zeros(*q.shape[:2], x.shape[1], x.shape[1])
            mask[..., :count] = float("-inf")  # no token attends to an [SLS] token,
            mask[..., :count, :count].diagonal(dim1=-2, dim2=-1).zero_()  # except itself;
            mask[..., :count, count] = float("-inf")  # no [SLS] token attends to the class token
            mask[..., :count, count + 1 :] = attn_bias[:, 0 if attn_bias.shape[1] == 1 else index].to(q.dtype)
            before = x
            x = block.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        tokens = x[:, :count]
        if mask_shares is not None:
            assert isinstance(block, Block)
            patches = (before + block.attn.merge(v))[:, count + 1 :]
            tokens = torch.cat([tokens, mask_shares @ patches], dim=1)
        return F.normalize(self.ln_post(tokens) @ self.proj, dim=-1)


def plain_scores(mask_logits: Tensor, class_logits: Tensor, geometry: Geometry) -> Tensor:
    """Return scores (C, H, W) of one image; masks are resized to the padded size, then to the output size.

    Arguments as in `san.postprocess.semantic_scores`.
    """
    height, width = geometry.image_size
    masks = F.interpolate(mask_logits.float()[None], geometry.padded_size, mode="bilinear", align_corners=False)
    masks = masks[..., :height, :width]
    masks = F.interpolate(masks, geometry.output_size, mode="bilinear", align_corners=False)[0].sigmoid()  # (Q, H, W)
    return torch.einsum("qc,qhw->chw", class_logits.float().softmax(dim=-1)[:, :-1], masks)


def plain_labels(mask_logits: Tensor, class_logits: Tensor, geometry: Geometry) -> Tensor:
    """Return the label map (H, W), computed from all scores."""
    return plain_scores(mask_logits, class_logits, geometry).argmax(dim=0)


@torch.no_grad()
def plain_text_embed(classifier: TextClassifier, names: Sequence[str]) -> Tensor:
    """Return text embeddings (C, E) of names, with prompts at CLIP's full length and without a cache."""
    prompts = [prompt for name in names for prompt in classifier.embedder.prompts(name)]
    tokens = classifier.embedder.tokenizer(prompts).to(classifier.device)  # (N, 77)
    kinds = torch.arange(len(prompts), device=classifier.device) % (len(prompts) // len(names))  # (N,)
    with PlainAttention():
        parts = zip(tokens.split(256), kinds.split(256), strict=True)
        passes = [classifier.encode_text(*part).float() for part in parts]
    embeds = F.normalize(torch.cat(passes), dim=-1)  # (N, E)
    return F.normalize(embeds.view(len(names), -1, embeds.shape[1]).mean(dim=1), dim=-1)


class PlainCriterion:
    """The losses with full-size masks; each image of each layer is matched by itself; for one process.

    Args:
        config: weights, costs and points.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the losses of `SetCriterion`, with points from torch's global generator."""
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

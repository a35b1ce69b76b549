"""The Side Adapter Network: the method on one screen.

B batch, Q queries, C classes, E joint embedding, L bias layers, N bias heads, (H, W) padded image, (h_s, w_s) side
grid. Source: arXiv 2302.12242, section 3; docs/method.md#1 to #6.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.clip.example_bank import ExampleBank
from san.clip.templates import PROMPTS, load_templates
from san.clip.text_classifier import TextClassifier
from san.clip.tokenizer import Tokenizer
from san.clip.towers import FAMILIES, ShallowFeatures
from san.io.errors import brief_repr
from san.model.config import SANConfig, check_against, resolve
from san.model.layers import mask_shares
from san.model.parts import BIAS_HEADS, MASK_HEADS, SCORERS, SLS_INITS, SideFeatures
from san.model.side_adapter import SideAdapter


class MaskProposals(NamedTuple):
    """Proposals of one supervised block, for any vocabulary; a tuple, so that torch.export and jit can trace it.

    Attributes:
        mask_logits: (B, Q, h_s, w_s), before the sigmoid.
        attn_bias: (B, L, N, Q, h_s, w_s), before pooling to the CLIP grid.
        sls_embed: (B, Q, E), unit length.
        pooled_embed: (B, Q, E), unit length, of CLIP's patches under each mask; (0,) unless the scorer needs it.
    """

    mask_logits: Tensor
    attn_bias: Tensor
    sls_embed: Tensor
    pooled_embed: Tensor = torch.empty(0)

    def __repr__(self) -> str:
        """On one line."""
        return brief_repr(self)


class SANOutput(NamedTuple):
    """Predictions of one supervised block; a tuple, as `MaskProposals`.

    Attributes:
        mask_logits: (B, Q, h_s, w_s), before the sigmoid.
        class_logits: (B, Q, C + 1), "no object" last.
        attn_bias: (B, L, N, Q, h_s, w_s), before pooling to the CLIP grid.
        sls_embed: (B, Q, E), unit length.
        aux: those of earlier supervised blocks, in training only.
    """

    mask_logits: Tensor
    class_logits: Tensor
    attn_bias: Tensor
    sls_embed: Tensor
    aux: tuple[SANOutput, ...] = ()

    def __repr__(self) -> str:
        """On one line."""
        return brief_repr(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the mapping for a criterion: pred_logits, pred_masks, sls_embed, and aux_outputs, a list of these."""
        result: dict[str, Any] = {
            "pred_logits": self.class_logits,
            "pred_masks": self.mask_logits,
            "sls_embed": self.sls_embed,
        }
        if self.aux:
            result["aux_outputs"] = [output.as_dict() for output in self.aux]
        return result


class ImageSide(nn.Module):
    """Calls `SANModel.propose`, as a module that can be compiled by itself: `model.image_side.compile()`.

    Compilation takes a minute or more for each new kind of input, and on a CPU needs a C++ compiler; errors are raised
    by the first call. A copy of a module is not compiled.

    It has no weights, so that those of the model keep their published names; the model is an argument of each call.
    """

    def forward(self, model: SANModel, images: Tensor) -> list[MaskProposals]:
        """Return the model's proposals for images (B, 3, H, W)."""
        return model.propose(images)


class SANModel(nn.Module):
    """A frozen CLIP, a side network, and two decoupled heads.

    `build.build_san` makes one with CLIP's weights; the constructor leaves all weights random and trainable.
    A subclass may override `propose`; `image_side` calls it.

    Raises:
        ValueError: CLIP and configuration do not fit.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    has_clip_weights = False
    """Whether CLIP's weights were loaded."""

    def __init__(self, config: SANConfig, arch: ClipArch, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = resolve(config, arch)
        check_against(config, arch)
        self.weights_id = secrets.token_hex(8)  # identifies these weights; a copy in another process has the same
        clip, width = config.clip, arch.vision.width
        self.config, self.arch = config, arch
        self.shallow_clip, self.deep_clip = FAMILIES.get(arch.vision.family)(arch, clip.shallow_depth)
        prompts = PROMPTS.build(config.prompts, load_templates(clip.templates))
        self.text_classifier = TextClassifier(arch, tokenizer, prompts)
        self.side_adapter = SideAdapter(config, width)
        self.mask_head = MASK_HEADS.build(config.mask_head, config)
        self.bias_head = BIAS_HEADS.build(config.bias_head, config)
        self.sls_init = SLS_INITS.build(clip.sls_init, config.side_adapter.num_queries, width)
        self.scorer = SCORERS.build(config.scorer, config)
        self.image_side = ImageSide()
        self.set_pixel_statistics()

    def set_pixel_statistics(self) -> None:
        """Sets mean and standard deviation of pixels, which no checkpoint holds, to those of the architecture."""
        for name, values in zip(("pixel_mean", "pixel_std"), pixel_statistics(self.arch), strict=True):
            self.register_buffer(name, values, persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Remember whether a state has CLIP's weights; every way of loading calls this."""
        self.weights_id = secrets.token_hex(8)
        self.has_clip_weights |= any(key.startswith(f"{prefix}deep_clip.") for key in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise images, and pad them with zeros at the bottom and right to one size.

        Args:
            images: (3, H_i, W_i) each, RGB, values 0..255, any number type.

        Returns:
            (B, 3, H, W) on the model's device, H and W multiples of `config.size_divisibility`.
        """
        return normalised_batch(images, self.pixel_mean, self.pixel_std, self.config.size_divisibility)

    def forward(self, images: Tensor, text_embed: Tensor, bank: ExampleBank | None = None) -> SANOutput:
        """Predict masks and their classes for a vocabulary.

        Args:
            images: (B, 3, H, W), from `stack`.
            text_embed: (C, E), from `text_classifier.embed`.
            bank: see `classify`.

        Returns:
            The prediction of the last block; in training those of earlier supervised blocks are in `aux`.
        """
        *earlier, last = (self.classify(proposals, text_embed, bank) for proposals in self.image_side(self, images))
        return last._replace(aux=tuple(earlier))

    def propose(self, images: Tensor) -> list[MaskProposals]:
        """Compute what depends on images (B, 3, H, W) alone, per supervised block; in evaluation for the last."""
        return self.propose_from(*self.features(images))

    def features(self, images: Tensor) -> tuple[ShallowFeatures, list[SideFeatures]]:
        """Return features of shallow CLIP and, per supervised block, of the side network, for images (B, 3, H, W)."""
        # a scale factor and a size give different sampling grids (guarded by tests/test_golden.py)
        clip_images = F.interpolate(
            images, scale_factor=self.config.clip.input_scale, mode="bilinear", align_corners=False, antialias=False
        )
        clip = self.shallow_clip(clip_images)
        blocks = self.config.side_adapter.supervised_blocks
        return clip, self.side_adapter(images, clip, blocks if self.training else blocks[-1:])

    def propose_from(
        self, clip: ShallowFeatures, side: list[SideFeatures], sls_share: Tensor | None = None
    ) -> list[MaskProposals]:
        """Compute `propose` from the `features` of images.

        Args:
            clip: features of shallow CLIP; only the last block's are used.
            side: features per supervised block. Their queries may differ from those of the side network, also in
                number.
            sls_share: (P, Q), for other queries (B, P, S): their [SLS] tokens start as these means of the model's Q.
        """
        masks = [self.mask_head(features) for features in side]
        heads = [*zip(side, masks, strict=True)]
        if self.config.attn_bias.stop_gradient:
            heads = [(features.detach(), mask.detach()) for features, mask in heads]
        biases = [self.bias_head(features, mask) for features, mask in heads]
        logits = [mask.logits for mask in masks]
        pooled = "pooled_embed" in self.scorer.needs
        embeds = self._recognise(clip, biases, sls_share, logits if pooled else ())
        count = len(biases)
        others = embeds[count:] or (embeds[0].new_empty(0),) * count
        return [MaskProposals(*parts) for parts in zip(logits, biases, embeds[:count], others, strict=True)]

    def classify(self, proposals: MaskProposals, text_embed: Tensor, bank: ExampleBank | None = None) -> SANOutput:
        """Classify the masks; the only step that depends on the vocabulary (C, E), and on its examples if it has some.

        Args:
            proposals: of `propose`.
            text_embed: (C, E), from `text_classifier.embed`, or the vectors of `text_classifier.embed_with_bank`.
            bank: examples of the same C classes.
        """
        needed = {name: getattr(proposals, name) for name in self.scorer.needs}
        if missing := [name for name, value in needed.items() if not value.numel()]:
            raise ValueError(
                f"the scorer {self.config.scorer.name!r} needs {', '.join(missing)}, which the proposals lack; encode "
                f"the image with this model, and return it from {type(self).__name__}.propose if that is your own"
            )
        class_logits = self.scorer(proposals.sls_embed, text_embed, self.text_classifier, **needed)
        if bank is not None:
            class_logits = bank.mix(class_logits, proposals.sls_embed)
        return SANOutput(proposals.mask_logits, class_logits, proposals.attn_bias, proposals.sls_embed)

    def _recognise(
        self,
        clip: ShallowFeatures,
        biases: list[Tensor],
        sls_share: Tensor | None = None,
        pooled_masks: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Return embeddings (B, Q, E) per bias (B, L, N, Q, h_s, w_s), then those of patches pooled under masks.

        [SLS] tokens do not see each other, so all supervised blocks share one pass through CLIP's deep blocks.

        Args:
            clip: features of shallow CLIP.
            biases: per supervised block.
            sls_share: see `propose_from`.
            pooled_masks: mask logits (B, Q, h_s, w_s) per supervised block, under which patches are pooled; or none.
        """
        class_token = clip.class_tokens[-1]
        sls = self.sls_init(self.deep_clip.start(class_token))
        if sls_share is not None:
            sls = sls_share.to(sls.dtype) @ sls  # (B, P, D)
        on_grid = torch.cat([self.bias_head.to_grid(bias, clip.grid) for bias in biases], dim=3)
        shares = torch.cat([mask_shares(each, clip.grid) for each in pooled_masks], dim=1) if pooled_masks else None
        tokens = sls.repeat(1, len(biases), 1)
        embed = self.deep_clip(class_token, clip.patch_tokens[-1], tokens, on_grid, clip.grid, shares)
        return tuple(embed.split(sls.shape[1], dim=1))


def pixel_statistics(arch: ClipArch) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of pixels (3, 1, 1) each, for values 0..255."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (arch.mean, arch.std))
    return mean, std


def normalised_batch(images: Sequence[Tensor], mean: Tensor, std: Tensor, size_divisibility: int) -> Tensor:
    """Compute `SANModel.stack`, on the device and in the number type of `mean` (3, 1, 1)."""
    step = size_divisibility
    height, width = (-(-max(image.shape[axis] for image in images) // step) * step for axis in (1, 2))
    batch = mean.new_zeros(len(images), 3, height, width)
    for slot, image in zip(batch, images, strict=True):
        image = image.to(slot.device, non_blocking=True).to(slot.dtype)
        slot[:, : image.shape[1], : image.shape[2]] = (image - mean) / std
    return batch

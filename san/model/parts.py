"""The exchangeable parts of a model: their inputs, their outputs, and their registries.

B batch, Q queries, C classes, E joint embedding, S side width, D CLIP width, L bias layers, N bias heads, (h, w) CLIP
grid, (h_s, w_s) side grid, T_s = h_s * w_s. docs/extend.md shows how to add an entry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from san.clip.templates import PROMPTS
from san.model.config import SANConfig
from san.model.layers import adaptive_max_pool
from san.part import Part
from san.registry import PartConfig, Registry

if TYPE_CHECKING:
    from san.clip.text_classifier import TextClassifier

FUSIONS: Registry[type[Fusion]] = Registry("fusion", "fusion.name", "fusion.options.", own="san.model.fusions")
MASK_HEADS: Registry[type[MaskHead]] = Registry(
    "mask head", "mask_head.name", "mask_head.options.", own="san.model.heads"
)
BIAS_HEADS: Registry[type[BiasHead]] = Registry(
    "bias head", "bias_head.name", "bias_head.options.", own="san.model.attention_bias"
)
SLS_INITS: Registry[type[SLSInit]] = Registry(
    "[SLS] initialisation", "clip.sls_init", "clip.sls_init_options.", own="san.model.recognition"
)
SCORERS: Registry[type[Scorer]] = Registry(
    "class scorer", "scorer.name", "scorer.options.", own="san.model.recognition"
)


REGISTRIES: dict[str, Registry[Any]] = {
    "fusion": FUSIONS,
    "mask_head": MASK_HEADS,
    "bias_head": BIAS_HEADS,
    "clip.sls_init": SLS_INITS,
    "prompts": PROMPTS,
    "scorer": SCORERS,
}
"""The registry of each part, by the dotted field of `SANConfig` that names the part."""


def check_parts(config: SANConfig) -> None:
    """Check that parts are registered, and their options known.

    Raises:
        FieldError: names the part, and the nearest name or the module that registers it.
    """
    for registry, part in parts_of(config):
        registry.options(part)


def parts_of(config: SANConfig) -> list[tuple[Registry[Any], PartConfig]]:
    """Return the parts of a model, each with its registry."""
    return [(registry, attrgetter(field)(config)) for field, registry in REGISTRIES.items()]


def describe_parts(config: SANConfig) -> SANConfig:
    """Return the configuration in the format of files; see `Registry.described`."""
    for field, registry in REGISTRIES.items():
        *path, leaf = field.split(".")
        holder: Any = attrgetter(*path)(config) if path else config
        described = replace(holder, **{leaf: registry.described(getattr(holder, leaf))})
        config = replace(config, **{path[0]: described}) if path else described
    return config


@dataclass(frozen=True)
class SideFeatures:
    """Output of a supervised block: queries (B, Q, S) and patch tokens (B, T_s, S) on the grid (h_s, w_s)."""

    queries: Tensor
    patch_tokens: Tensor
    grid: tuple[int, int]

    def detach(self) -> SideFeatures:
        """Return the same tensors without gradient."""
        return SideFeatures(self.queries.detach(), self.patch_tokens.detach(), self.grid)


@dataclass(frozen=True)
class MaskPrediction:
    """Output of a mask head: logits (B, Q, h_s, w_s) before the sigmoid, query embeddings (B, Q, c)."""

    logits: Tensor
    queries: Tensor

    def detach(self) -> MaskPrediction:
        """Return the same tensors without gradient."""
        return MaskPrediction(self.logits.detach(), self.queries.detach())


class Fusion(Part):
    """Fuses a CLIP feature into the patch tokens of the side network, before or after a block.

    Args:
        options: options of the part.
        clip_width: D.
        embed_dim: S.
    """

    def __init__(self, options: Any, clip_width: int, embed_dim: int) -> None:
        super().__init__()

    def forward(self, patches: Tensor, feature: Tensor, grid: tuple[int, int], side_grid: tuple[int, int]) -> Tensor:
        """Return patch tokens (B, T_s, S) on `side_grid`, with the CLIP feature (B, h * w, D) on `grid` fused in."""
        raise NotImplementedError


class MaskHead(Part):
    """Predicts masks from the features of a supervised block.

    Args:
        options: options of the part.
        config: the whole model's, resolved.
    """

    def __init__(self, options: Any, config: SANConfig) -> None:
        super().__init__()

    def forward(self, features: SideFeatures) -> MaskPrediction:
        """Return mask logits (B, Q, h_s, w_s), and query embeddings for the bias head."""
        raise NotImplementedError


class BiasHead(Part):
    """Predicts attention biases from the features of a supervised block.

    Args:
        options: options of the part.
        config: the whole model's, resolved.
    """

    def __init__(self, options: Any, config: SANConfig) -> None:
        super().__init__()
        self.config = config.attn_bias

    def forward(self, features: SideFeatures, masks: MaskPrediction) -> Tensor:
        """Return biases (B, L, N, Q, h_s, w_s), L and N as in ``config.attn_bias``."""
        raise NotImplementedError

    def to_grid(self, bias: Tensor, grid: tuple[int, int]) -> Tensor:
        """Resize biases (B, L, N, Q, h_s, w_s) to the CLIP grid: (B, L, N, Q, h * w)."""
        if bias.shape[-2:] != grid:
            bias = self._resize(bias.flatten(0, 2), grid).unflatten(0, bias.shape[:3])  # (B, L, N, Q, h, w)
        return bias.flatten(4)

    def _resize(self, bias: Tensor, grid: tuple[int, int]) -> Tensor:
        match self.config.pooling:
            case "max":
                return adaptive_max_pool(bias, grid)
            case "average":
                return F.adaptive_avg_pool2d(bias, grid)
            case "bilinear":
                return F.interpolate(bias, size=grid, mode="bilinear", align_corners=False)
            case pooling:
                return F.interpolate(bias, size=grid, mode=pooling)


class SLSInit(Part):
    """Initialises the [SLS] tokens.

    Args:
        options: options of the part.
        num_queries: Q.
        clip_width: D.
    """

    def __init__(self, options: Any, num_queries: int, clip_width: int) -> None:
        super().__init__()
        self.num_queries = num_queries

    def forward(self, class_token: Tensor) -> Tensor:
        """Return [SLS] tokens (B, Q, D), given the class token (B, 1, D) after CLIP's shallow blocks."""
        raise NotImplementedError


class Scorer(Part):
    """Compares masks with class names.

    Args:
        options: options of the part.
        config: the whole model's, resolved.
    """

    def __init__(self, options: Any, config: SANConfig) -> None:
        super().__init__()

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `MaskProposals` that `forward` takes as further keyword arguments, such as "pooled_embed".

        A field that no scorer needs is not computed.
        """
        return ()

    def forward(self, sls_embed: Tensor, text_embed: Tensor, classifier: TextClassifier) -> Tensor:
        """Return class logits (B, Q, C + 1), "no object" last, in float32.

        Args:
            sls_embed: (B, Q, E), unit length.
            text_embed: (C, E), unit length.
            classifier: has CLIP's logit scale and the embedding of "no object"; see `TextClassifier.logits`.
        """
        raise NotImplementedError

"""What a label map was computed from: the network's outputs for an image and a vocabulary, and its mask proposals.

Legend: (H, W) image, C classes, Q mask proposals, L bias layers, N bias heads, (h_s, w_s) side grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from san.io.errors import brief_repr
from san.postprocess import Geometry, View, resized_masks


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a label map was computed from: one view of the image, and the others if several were averaged.

    Attributes:
        mask_logits: (Q, h_s, w_s), before the sigmoid.
        class_logits: (Q, C + 1), "no object" last.
        attn_bias: (L, N, Q, h_s, w_s), before pooling to the CLIP grid.
        geometry: the image's sizes.
        weight: of this view among all.
        others: further scales, mirror images or models.
    """

    mask_logits: Tensor
    class_logits: Tensor
    attn_bias: Tensor
    geometry: Geometry
    weight: float = 1.0
    others: tuple[View, ...] = field(repr=False, default=())

    __repr__ = brief_repr

    @property
    def views(self) -> tuple[View, ...]:
        """All views that scores are averaged over."""
        return (View(self.mask_logits, self.class_logits, self.geometry, weight=self.weight), *self.others)


@dataclass(frozen=True, eq=False)
class ProposedMask:
    """One mask that the model proposed, whether or not the label map contains it.

    Attributes:
        query: its number, 0..Q-1.
        name: the class it most likely shows; None where "no object" is likelier than every class.
        probability: of that class, or of "no object", 0..1.
        evidence: that of the image.
    """

    query: int
    name: str | None
    probability: float
    evidence: Evidence = field(repr=False)

    __repr__ = brief_repr

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return (H, W), true where the probability of the mask is above 0.5."""
        return (self._logits() > 0).cpu().numpy()

    def mask_probs(self) -> npt.NDArray[np.float32]:
        """Return (H, W) float32, 0..1."""
        return self._logits().sigmoid().cpu().numpy()

    @property
    def attn_bias(self) -> npt.NDArray[np.float32]:
        """Return (L, N, h_s, w_s) float32: the bias of this [SLS] token's attention, per layer and head."""
        return self.evidence.attn_bias[:, :, self.query].float().cpu().numpy()

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        """(H, W)."""
        one = self.evidence.mask_logits[self.query : self.query + 1]
        return resized_masks(one, self.evidence.geometry)[0]

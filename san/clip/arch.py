"""The architecture of a CLIP model as a small named record, independent of any library."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionArch:
    """A class-token vision transformer with ln_pre, ln_post and a projection (sizes in pixels)."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    @property
    def grid_size(self) -> int:
        """Side of the square patch grid the positional embedding was trained for."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextArch:
    """A causal text transformer that reads its embedding at the end-of-text token."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class ClipArch:
    """Two towers and what joins them.

    Attributes:
        embed_dim: E, the joint embedding width.
        quick_gelu: the activation is x * sigmoid(1.702 x), as in OpenAI's training, rather than GELU.
        mean, std: per-channel pixel statistics on the 0..1 scale.
    """

    embed_dim: int
    vision: VisionArch
    text: TextArch = field(default_factory=TextArch)
    quick_gelu: bool = False
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, for a file's header."""
        return asdict(self)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> ClipArch:
        """Inverse of `to_dict`."""
        values = dict(record)
        values["vision"] = VisionArch(**values["vision"])
        values["text"] = TextArch(**values["text"])
        values["mean"] = tuple(values["mean"])
        values["std"] = tuple(values["std"])
        return ClipArch(**values)


TINY = ClipArch(
    embed_dim=64,
    vision=VisionArch(image_size=64, patch_size=16, width=96, depth=4, num_heads=3),
    text=TextArch(width=64, depth=2, num_heads=2),
    quick_gelu=True,
)
"""A CLIP for tests: milliseconds per image on a CPU. It has no trained weights."""

"""The architecture of a CLIP model as a small named record, independent of any library."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from san.clip.named import CLIPS
from san.record import Options, field_metadata, option, read_record

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

WIDTH: dict[str, Any] = {"least": 1, "most": 8192}
IMAGE_SIZE: dict[str, Any] = {"least": 1, "most": 8192}
PATCH_SIZE: dict[str, Any] = {"least": 1, "most": 512}
DEPTH: dict[str, Any] = {"least": 1, "most": 128}
NUM_HEADS: dict[str, Any] = {"least": 1, "most": 256}
MLP_RATIO: dict[str, Any] = {"above": 0, "most": 16}
"""Constraints of a transformer's sizes, several times those of the largest CLIP."""


@dataclass(frozen=True)
class VisionArch(Options):
    """A class-token vision transformer with ln_pre, ln_post and a projection (sizes in pixels)."""

    PLACE: ClassVar[str] = "clip_arch.vision."
    FIRST_FIELDS = "image_size patch_size width depth num_heads mlp_ratio"  # see `read_record`
    image_size: int = field(metadata=field_metadata(**IMAGE_SIZE))
    patch_size: int = field(metadata=field_metadata(**PATCH_SIZE))
    width: int = field(metadata=field_metadata(**WIDTH))
    depth: int = field(metadata=field_metadata(**DEPTH))
    num_heads: int = field(metadata=field_metadata(**NUM_HEADS))
    mlp_ratio: float = option(4.0, **MLP_RATIO)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self)
        if self.patch_size > self.image_size:
            raise ValueError(f"{self.PLACE}patch_size is {self.patch_size}, larger than its image of {self.image_size}")

    @property
    def grid_size(self) -> int:
        """Side of the square patch grid the positional embedding was trained for."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextArch(Options):
    """A causal text transformer that reads its embedding at the end-of-text token."""

    PLACE: ClassVar[str] = "clip_arch.text."
    FIRST_FIELDS = "context_length vocab_size width depth num_heads mlp_ratio"
    context_length: int = option(77, least=2, most=4096)
    vocab_size: int = option(49408, least=3, most=1_000_000)
    width: int = option(512, **WIDTH)
    depth: int = option(12, **DEPTH)
    num_heads: int = option(8, **NUM_HEADS)
    mlp_ratio: float = option(4.0, **MLP_RATIO)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self)


@dataclass(frozen=True)
class ClipArch(Options):
    """Architecture of a CLIP: both towers, and the space that they share.

    Attributes:
        embed_dim: E, the joint embedding width.
        quick_gelu: the activation is x * sigmoid(1.702 x), as in OpenAI's training, rather than GELU.
        mean, std: per-channel pixel statistics on the 0..1 scale.
    """

    PLACE: ClassVar[str] = "clip_arch."
    FIRST_FIELDS = "embed_dim vision text quick_gelu mean std"
    embed_dim: int = field(metadata=field_metadata(**WIDTH))
    vision: VisionArch
    text: TextArch = field(default_factory=TextArch)
    quick_gelu: bool = False
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(abs(value) <= 1000 for value in self.mean) or not all(0 < value <= 1000 for value in self.std):
            raise ValueError(
                f"clip_arch.mean is {self.mean} and clip_arch.std {self.std}; give those of pixels in 0..1"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, for the header of a file."""
        return asdict(self)

    @staticmethod
    def from_dict(record: Any) -> ClipArch:
        """Inverse of `to_dict`, through JSON too.

        Raises:
            ValueError: a field is unknown, missing, of another type or out of its range.
        """
        return read_record(ClipArch, record, "clip_arch.")


def _check_heads(tower: VisionArch | TextArch) -> None:
    if tower.width % tower.num_heads:
        raise ValueError(f"{tower.PLACE}width is {tower.width}, not a multiple of its {tower.num_heads} heads")


TINY = ClipArch(
    embed_dim=64,
    vision=VisionArch(image_size=64, patch_size=16, width=96, depth=4, num_heads=3),
    text=TextArch(width=64, depth=2, num_heads=2),
    quick_gelu=True,
)
"""A CLIP for tests: milliseconds per image on a CPU. It has no trained weights."""

CLIPS.register("tiny")(TINY)

"""The architecture of a CLIP model as a small named record, independent of any library."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from san.clip.record import check_ranges, read_record

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

TRANSFORMER: dict[str, tuple[float, float]] = {"depth": (1, 128), "num_heads": (1, 256), "mlp_ratio": (0.0, 16)}
WIDTH, IMAGE_SIZE, PATCH_SIZE = (1, 8192), (1, 8192), (1, 512)
"""Ranges of a transformer's sizes, several times those of the largest CLIP."""


@dataclass(frozen=True)
class VisionArch:
    """A class-token vision transformer with ln_pre, ln_post and a projection (sizes in pixels)."""

    FIRST_FIELDS = "image_size patch_size width depth num_heads mlp_ratio"  # see `read_record`
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        place = "clip_arch.vision."
        check_ranges(
            self, "CLIP's image tower", place, width=WIDTH, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, **TRANSFORMER
        )
        _check_heads(self, place)
        if self.patch_size > self.image_size:
            raise ValueError(f"{place}patch_size is {self.patch_size}, larger than its image of {self.image_size}")

    @property
    def grid_size(self) -> int:
        """Side of the square patch grid the positional embedding was trained for."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextArch:
    """A causal text transformer that reads its embedding at the end-of-text token."""

    FIRST_FIELDS = "context_length vocab_size width depth num_heads mlp_ratio"
    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        place = "clip_arch.text."
        check_ranges(
            self,
            "CLIP's text tower",
            place,
            width=WIDTH,
            context_length=(2, 4096),
            vocab_size=(3, 1_000_000),
            **TRANSFORMER,
        )
        _check_heads(self, place)


@dataclass(frozen=True)
class ClipArch:
    """Two towers and what joins them.

    Attributes:
        embed_dim: E, the joint embedding width.
        quick_gelu: the activation is x * sigmoid(1.702 x), as in OpenAI's training, rather than GELU.
        mean, std: per-channel pixel statistics on the 0..1 scale.
    """

    FIRST_FIELDS = "embed_dim vision text quick_gelu mean std"
    embed_dim: int
    vision: VisionArch
    text: TextArch = field(default_factory=TextArch)
    quick_gelu: bool = False
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        check_ranges(self, "CLIP", "clip_arch.", embed_dim=WIDTH)
        if not all(abs(value) <= 1000 for value in self.mean) or not all(0 < value <= 1000 for value in self.std):
            raise ValueError(
                f"clip_arch.mean is {self.mean} and clip_arch.std {self.std}; give those of pixels in 0..1"
            )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, for a file's header."""
        return asdict(self)

    @staticmethod
    def from_dict(record: Any) -> ClipArch:
        """Inverse of `to_dict`, through JSON too.

        Raises:
            ValueError: a field is unknown, missing, of another type or out of its range.
        """
        return read_record(ClipArch, record, "clip_arch.")


def _check_heads(tower: VisionArch | TextArch, place: str) -> None:
    if tower.width % tower.num_heads:
        raise ValueError(f"{place}width is {tower.width}, not a multiple of its {tower.num_heads} heads")


TINY = ClipArch(
    embed_dim=64,
    vision=VisionArch(image_size=64, patch_size=16, width=96, depth=4, num_heads=3),
    text=TextArch(width=64, depth=2, num_heads=2),
    quick_gelu=True,
)
"""A CLIP for tests: milliseconds per image on a CPU. It has no trained weights."""

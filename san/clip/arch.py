"""The architecture of a CLIP model as a small named record, independent of any library."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from san.clip.named import CLIPS
from san.io.errors import excerpt
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
    """An image tower (sizes in pixels); by default a class-token ViT with ln_pre, ln_post and a projection.

    Attributes:
        family: name of an entry in `san.clip.towers.FAMILIES`.
        trunk: name of an entry in `san.clip.timm_tower.TRUNKS`; "" for open_clip's own ViT.
        pool_heads: heads of the attention pooling in which [SLS] tokens recognise masks; 0 if they do so in the blocks.
    """

    PLACE: ClassVar[str] = "clip_arch.vision."
    FIRST_FIELDS = "image_size patch_size width depth num_heads mlp_ratio"  # see `read_record`
    image_size: int = field(metadata=field_metadata(**IMAGE_SIZE))
    patch_size: int = field(metadata=field_metadata(**PATCH_SIZE))
    width: int = field(metadata=field_metadata(**WIDTH))
    depth: int = field(metadata=field_metadata(**DEPTH))
    num_heads: int = field(metadata=field_metadata(**NUM_HEADS))
    mlp_ratio: float = option(4.0, **MLP_RATIO)
    family: str = "vit"
    trunk: str = ""
    pool_heads: int = option(0, least=0, most=NUM_HEADS["most"])

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self)
        if self.patch_size > self.image_size:
            raise ValueError(f"{self.PLACE}patch_size is {self.patch_size}, larger than its image of {self.image_size}")

    @property
    def grid_size(self) -> int:
        """Side of the square patch grid the positional embedding was trained for."""
        return self.image_size // self.patch_size

    @property
    def bias_heads(self) -> int:
        """Heads in which an attention bias acts."""
        return self.pool_heads or self.num_heads

    def bias_layers(self, shallow_depth: int) -> int:
        """Return the number of layers in which an attention bias acts, given K."""
        return 1 if self.pool_heads else self.depth - shallow_depth


@dataclass(frozen=True)
class TextArch(Options):
    """A text transformer; by default a causal one with CLIP's tokenizer, read at the end-of-text token.

    Attributes:
        pool: token that the embedding is read at: that of the largest id, the first of `eos_id`, or the last.
        eos_id: of the token for `pool` "eos".
        causal: whether a token attends only to itself and earlier ones.
        proj_bias: whether the projection has a bias.
        norm_eps: epsilon of LayerNorm.
        tanh_gelu: the activation is GELU with tanh.
        tokenizer: name of a tokenizer of transformers; "" for CLIP's.
        clean: what is done to texts before that tokenizer, a name of open_clip's.
        model: type of a model of transformers, see `san.clip.hugging_face_text`; "" for a transformer of `causal` etc.
    """

    PLACE: ClassVar[str] = "clip_arch.text."
    FIRST_FIELDS = "context_length vocab_size width depth num_heads mlp_ratio"
    context_length: int = option(77, least=2, most=4096)
    vocab_size: int = option(49408, least=3, most=1_000_000)
    width: int = option(512, **WIDTH)
    depth: int = option(12, **DEPTH)
    num_heads: int = option(8, **NUM_HEADS)
    mlp_ratio: float = option(4.0, **MLP_RATIO)
    pool: str = option("argmax", choices=("argmax", "eos", "last"))
    eos_id: int = option(2, least=0, most=1_000_000)
    causal: bool = True
    proj_bias: bool = False
    norm_eps: float = option(1e-5, above=0, most=1)
    tanh_gelu: bool = False
    tokenizer: str = ""
    clean: str = option("whitespace", choices=("whitespace", "lower", "canonicalize"))
    model: str = option("", choices=("", "roberta", "xlm-roberta"))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self)
        if self.tokenizer and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.tokenizer):  # no path
            raise ValueError(
                f"{self.PLACE}tokenizer is {excerpt(self.tokenizer)}; give a name on the Hugging Face hub, owner/name"
            )


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

    @property
    def is_plain(self) -> bool:
        """Whether both towers are of the published kind: a class-token ViT of open_clip, and a causal text tower."""
        text = self.text
        sizes = (text.context_length, text.vocab_size, text.width, text.depth, text.num_heads, text.mlp_ratio)
        return self.vision.family == "vit" and text == TextArch(*sizes)

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

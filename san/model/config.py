"""What a SAN is made of, as frozen dataclasses with every cross-field check, and the named variants.

Checks that need no CLIP run when a dataclass is made; those against the CLIP at hand run in `check_against`, when a
model is built. Source: docs/method.md#2 to #5; the published configurations.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from san.clip.arch import IMAGE_SIZE, PATCH_SIZE, TRANSFORMER, WIDTH, ClipArch
from san.clip.record import check_ranges
from san.clip.templates import load_templates

SLS_INITS = ("class_token", "learnt", "learnt_plus_class_token")
POOLINGS = ("max", "average", "bilinear", "nearest")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP, and how it is used.

    Attributes:
        name: open_clip model name, "shapes" or "tiny".
        pretrained: open_clip tag, file, "shapes", or None for untrained weights.
        shallow_depth: K, the blocks that feed the side network; the rest recognise.
        input_scale: CLIP sees the image resized by this factor.
        train_pos_embed: whether CLIP's positional embedding of the image is trained.
        templates: prompt template set ("vild", "imagenet" or "plain"), or templates of your own, each with one {} for
            the class's name.
        sls_init: what the [SLS] tokens start as.
    """

    FIRST_FIELDS = "name pretrained shallow_depth input_scale train_pos_embed templates sls_init"  # see `read_record`
    name: str = "ViT-B-16"
    pretrained: str | None = "openai"
    shallow_depth: int = 9
    input_scale: float = 0.5
    train_pos_embed: bool = True
    templates: str | tuple[str, ...] = "vild"
    sls_init: str = "class_token"

    def __post_init__(self) -> None:
        texts = load_templates(self.templates)
        if not isinstance(self.templates, str):
            object.__setattr__(self, "templates", texts)  # a list too
        _require(
            self.sls_init in SLS_INITS,
            f"[SLS] tokens cannot start as {self.sls_init!r}; set MODEL.CLIP.SLS_INIT to one of {', '.join(SLS_INITS)}",
        )
        check_ranges(self, "CLIP", "MODEL.CLIP.", input_scale=(0.0, 2), shallow_depth=(0, 128))

    @property
    def public_pretrained(self) -> str | None:
        """`pretrained` for a file that others get: the tag of "tag:file", a file's name without its folder."""
        tag, colon, _ = (self.pretrained or "").partition(":")
        if colon and len(tag) > 1 and not re.search(r"[\\/]", tag):  # not the colon of a Windows drive, or in a path
            return tag
        return self.pretrained and re.split(r"[\\/]", self.pretrained)[-1]


@dataclass(frozen=True)
class SideAdapterConfig:
    """The side ViT and what CLIP gives it.

    Attributes:
        embed_dim: S, its width; 144, 192, 240 and 288 are the published ones.
        image_size: pixels its positional embedding was laid out for.
        num_queries: Q.
        fusion: pairs (CLIP feature, side block): feature i is added after that side block, 0 meaning before the first.
        supervised_blocks: side blocks whose outputs are supervised in training; the last is the one used at inference.
    """

    FIRST_FIELDS = "embed_dim depth num_heads patch_size image_size mlp_ratio num_queries fusion supervised_blocks"
    embed_dim: int = 240
    depth: int = 8
    num_heads: int = 6
    patch_size: int = 16
    image_size: int = 640
    mlp_ratio: float = 4.0
    num_queries: int = 100
    fusion: tuple[tuple[int, int], ...] = ((0, 0), (3, 1), (6, 2), (9, 3))
    supervised_blocks: tuple[int, ...] = (7, 8)

    def __post_init__(self) -> None:
        own = {"embed_dim": WIDTH, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "num_queries": (1, 10_000)}
        check_ranges(self, "the side network", "MODEL.SIDE_ADAPTER.", **own, **TRANSFORMER)
        _require(
            self.embed_dim % self.num_heads == 0,
            f"side width {self.embed_dim} is not a multiple of its {self.num_heads} heads; "
            "change MODEL.SIDE_ADAPTER.EMBED_DIM or NUM_HEADS",
        )
        _require(
            self.image_size % self.patch_size == 0,
            f"side image size {self.image_size} is not a multiple of its patch {self.patch_size}; "
            "change MODEL.SIDE_ADAPTER.IMAGE_SIZE",
        )
        targets = [block for _, block in self.fusion]
        _require(
            all(0 <= block <= self.depth for block in targets) and len(set(targets)) == len(targets),
            f"fusion targets {targets} do not fit a side network of {self.depth} blocks, each at most once; "
            f"set the right-hand sides of MODEL.SIDE_ADAPTER.FUSION within 0..{self.depth}",
        )
        blocks = self.supervised_blocks
        _require(
            len(blocks) > 0 and list(blocks) == sorted(set(blocks)) and blocks[0] >= 1 and blocks[-1] == self.depth,
            f"supervised blocks {list(blocks)} must be increasing, within 1..{self.depth}, and end with the last; "
            "set MODEL.SIDE_ADAPTER.SUPERVISED_BLOCKS",
        )


@dataclass(frozen=True)
class HeadConfig:
    """The MLPs of both heads: widths and number of layers."""

    FIRST_FIELDS = "embed_channels mlp_channels mlp_num_layers"
    embed_channels: int = 256
    mlp_channels: int = 256
    mlp_num_layers: int = 3

    def __post_init__(self) -> None:
        check_ranges(self, "the heads", "MODEL.HEAD.", embed_channels=WIDTH, mlp_channels=WIDTH, mlp_num_layers=(1, 64))


@dataclass(frozen=True)
class AttnBiasConfig:
    """The attention biases for CLIP's deep blocks.

    Attributes:
        num_heads: CLIP's heads, or 1 to share one bias.
        num_layers: CLIP's deep blocks, or 1 to use the same biases in all of them.
        pooling: how a bias is brought to CLIP's grid.
        learnt_scale: whether a scalar scale and offset are learnt.
        enabled: False holds all biases at zero, to measure what they are worth: every [SLS] token then sees the whole
            image and all masks get the same name.
    """

    FIRST_FIELDS = "num_heads num_layers pooling learnt_scale enabled"
    num_heads: int = 12
    num_layers: int = 1
    pooling: str = "max"
    learnt_scale: bool = True
    enabled: bool = True

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "the attention bias",
            "MODEL.ATTN_BIAS.",
            num_heads=TRANSFORMER["num_heads"],
            num_layers=TRANSFORMER["depth"],
        )
        _require(
            self.pooling in POOLINGS,
            f"unknown pooling {self.pooling!r}; set MODEL.ATTN_BIAS.POOLING to one of {', '.join(POOLINGS)}",
        )


@dataclass(frozen=True)
class SANConfig:
    """A whole model."""

    FIRST_FIELDS = "clip side_adapter head attn_bias size_divisibility"
    clip: ClipConfig = field(default_factory=ClipConfig)
    side_adapter: SideAdapterConfig = field(default_factory=SideAdapterConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    attn_bias: AttnBiasConfig = field(default_factory=AttnBiasConfig)
    size_divisibility: int = 32

    def __post_init__(self) -> None:
        patch = self.side_adapter.patch_size
        check_ranges(self, "the model", "MODEL.", size_divisibility=(1, 1024))
        _require(
            self.size_divisibility % patch == 0,
            f"images are padded to multiples of {self.size_divisibility}, which the side network's patch of {patch} "
            f"does not divide; set MODEL.SIZE_DIVISIBILITY to a multiple of {patch}",
        )
        sources = [source for source, _ in self.side_adapter.fusion]
        depth = self.clip.shallow_depth
        _require(
            all(0 <= source <= depth for source in sources),
            f"fusion takes CLIP features {sources}, but CLIP's shallow part has features 0..{depth}; "
            "change MODEL.SIDE_ADAPTER.FUSION or MODEL.CLIP.SHALLOW_DEPTH",
        )


def check_against(config: SANConfig, arch: ClipArch) -> None:
    """Refuses a configuration that this CLIP cannot serve.

    Raises:
        ValueError: with the value seen, the values accepted and the key to set.
    """
    name, vision, bias = config.clip.name, arch.vision, config.attn_bias
    depth = config.clip.shallow_depth
    _require(
        depth < vision.depth,
        f"K = {depth} shallow blocks leave none to recognise with: CLIP {name!r} has {vision.depth}; "
        f"set MODEL.CLIP.SHALLOW_DEPTH within 0..{vision.depth - 1}",
    )
    _require(
        bias.num_heads in (1, vision.num_heads),
        f"attention bias has {bias.num_heads} heads but CLIP {name!r} has {vision.num_heads}; "
        f"set MODEL.ATTN_BIAS.NUM_HEADS to {vision.num_heads}, or to 1 to share one",
    )
    deep = vision.depth - depth
    _require(
        bias.num_layers in (1, deep),
        f"attention bias has {bias.num_layers} layers but CLIP {name!r} has {deep} deep blocks after K = {depth}; "
        f"set MODEL.ATTN_BIAS.NUM_LAYERS to {deep}, or to 1 to use one for all",
    )


def unseen_pixels(config: SANConfig, arch: ClipArch, side: int) -> str:
    """What of images of a side CLIP does not see because its patches do not divide its input; "" if it sees all.

    Args:
        config: the model.
        arch: of its CLIP.
        side: height or width of the images that go into the network, in pixels.
    """
    scale, patch = config.clip.input_scale, arch.vision.patch_size
    padded = math.ceil(side / config.size_divisibility) * config.size_divisibility
    pixels = math.floor(padded * scale)
    lost = min(pixels, round(side * scale)) - pixels // patch * patch
    if pixels < patch or lost <= 0:  # the former is an error when it is met
        return ""
    better = math.ceil(1e6 * round(pixels / patch) * patch / padded) / 1e6  # rounded up, as pixels are rounded down
    return (
        f"images of {side} pixels become {pixels} at MODEL.CLIP.INPUT_SCALE {scale:g}, which the patch of {patch} of "
        f"CLIP {config.clip.name!r} does not divide: it does not see the last {lost}; set MODEL.CLIP.INPUT_SCALE to "
        f"{better:g}, in training too"
    )


def unusual_depth(config: SANConfig, arch: ClipArch) -> str:
    """Why K, the shallow blocks of CLIP, is not what SAN is meant for; "" if it is."""
    depth, usual = config.clip.shallow_depth, round(0.75 * arch.vision.depth)
    if abs(depth - usual) <= arch.vision.depth / 6:
        return ""
    fusion = [f"{usual * place // 3}->{place}" for place in range(4)]
    return (
        f"K = {depth} of the {arch.vision.depth} blocks of CLIP {config.clip.name!r} feed the side network, where the "
        f"published models use three quarters; for {usual} set MODEL.CLIP.SHALLOW_DEPTH to {usual} and "
        f"MODEL.SIDE_ADAPTER.FUSION to {fusion} before training"
    )


_VIT_L14_336 = SANConfig(
    clip=ClipConfig(name="ViT-L-14-336", shallow_depth=18, input_scale=0.7),
    side_adapter=SideAdapterConfig(fusion=((0, 0), (6, 1), (12, 2), (18, 3))),
    attn_bias=AttnBiasConfig(num_heads=16),
)
_TINY = SANConfig(
    clip=ClipConfig(name="tiny", pretrained=None, shallow_depth=3),
    side_adapter=SideAdapterConfig(
        embed_dim=144, image_size=96, num_queries=10, fusion=((0, 0), (1, 1), (2, 2), (3, 3))
    ),
    head=HeadConfig(embed_channels=32, mlp_channels=32),
    attn_bias=AttnBiasConfig(num_heads=3),
)
_SHAPES = SANConfig(
    clip=ClipConfig(name="shapes", pretrained="shapes", shallow_depth=3, train_pos_embed=False),
    side_adapter=SideAdapterConfig(
        embed_dim=96,
        depth=5,
        num_heads=3,
        patch_size=8,
        image_size=128,
        num_queries=16,
        fusion=((0, 0), (1, 1), (2, 2), (3, 3)),
        supervised_blocks=(4, 5),
    ),
    head=HeadConfig(embed_channels=64, mlp_channels=96),
    attn_bias=AttnBiasConfig(num_heads=4),
)
VARIANTS = {"vit_b16": SANConfig(), "vit_l14_336": _VIT_L14_336, "shapes": _SHAPES, "tiny": _TINY}
SIDE_WIDTHS = {144: 6, 192: 6, 240: 6, 288: 6}
"""The published side widths and their heads."""


def variant(name: str, *, pretrained: str | None = "default", side_width: int | None = None) -> SANConfig:
    """A named model.

    Args:
        name: "vit_b16", "vit_l14_336", "shapes" (configs/shapes) or "tiny" (tests).
        pretrained: other CLIP weights than the variant's own; None for untrained ones.
        side_width: another published side width.

    Raises:
        ValueError: there is no such variant or width.
    """
    _require(name in VARIANTS, f"unknown variant {name!r}; choose one of {', '.join(VARIANTS)}")
    config = VARIANTS[name]
    if pretrained != "default":
        config = replace(config, clip=replace(config.clip, pretrained=pretrained))
    if side_width is not None:
        _require(side_width in SIDE_WIDTHS, f"unknown side width {side_width}; choose one of {list(SIDE_WIDTHS)}")
        side = replace(config.side_adapter, embed_dim=side_width, num_heads=SIDE_WIDTHS[side_width])
        config = replace(config, side_adapter=side)
    return config

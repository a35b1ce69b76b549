"""The configuration of a SAN as frozen dataclasses that check their fields, and the named variants.

Checks without a CLIP run when a dataclass is made, those against a CLIP in `check_against`, when a model is built.
 Source: docs/method.md#2 to #5; the published configurations.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import ClassVar

from san.clip.arch import DEPTH, IMAGE_SIZE, MLP_RATIO, NUM_HEADS, PATCH_SIZE, WIDTH, ClipArch
from san.clip.templates import load_templates
from san.record import AUTO, FieldError, Options, option
from san.registry import PartConfig

POOLINGS = ("max", "average", "bilinear", "nearest")
_AUTO_INPUT = 1.4
"""Side of CLIP's input if the scale is auto, in multiples of its training size."""


def _require(condition: bool, message: str, *names: str) -> None:
    if not condition:
        raise FieldError(message, *names)


@dataclass(frozen=True)
class ClipConfig(Options):
    """Which CLIP, and how it is used."""

    PLACE: ClassVar[str] = "clip."
    FIRST_FIELDS = "name pretrained shallow_depth input_scale train_pos_embed templates sls_init"  # see `read_record`
    name: str = option("ViT-B-16", "open_clip's name of a CLIP of docs/clips.md, shapes, or tiny (for tests)")
    pretrained: str | None = option(
        "openai", "CLIP's weights: an open_clip tag, a file, shapes; empty: untrained", is_path=True
    )
    shallow_depth: int = option(
        9,
        "K, the blocks that feed the side network; the rest recognise; below CLIP's depth; auto: three quarters of it",
        least=0,
        most=128,
        auto=True,
    )
    input_scale: float = option(
        0.5,
        f"factor by which the image is resized for CLIP; auto: about {_AUTO_INPUT} times the side CLIP was trained on, "
        "in whole patches",
        above=0,
        most=2,
        auto=True,
    )
    train_pos_embed: bool = option(True, "whether CLIP's positional embedding of the image is trained")
    templates: str | tuple[str, ...] = option(
        "vild", "prompt template set (vild: 14, imagenet: 80, plain: the name), or a list of texts, each with one {}"
    )
    sls_init: PartConfig = option(
        PartConfig("class_token"), "what the [SLS] tokens start as: class_token, learnt, learnt_plus_class_token"
    )

    def __post_init__(self) -> None:
        if isinstance(self.sls_init, str):
            object.__setattr__(self, "sls_init", PartConfig(self.sls_init))
        texts = load_templates(self.templates)
        if not isinstance(self.templates, str):
            object.__setattr__(self, "templates", texts)  # a list too
        super().__post_init__()

    @property
    def public_pretrained(self) -> str | None:
        """`pretrained` for a published file: the tag of "tag:file", or a file's name without its folder."""
        tag, colon, _ = (self.pretrained or "").partition(":")
        if colon and len(tag) > 1 and not re.search(r"[\\/]", tag):  # not the colon of a Windows drive, or in a path
            return tag
        return self.pretrained and re.split(r"[\\/]", self.pretrained)[-1]


@dataclass(frozen=True)
class SideAdapterConfig(Options):
    """The side ViT and what CLIP gives it."""

    PLACE: ClassVar[str] = "side_adapter."
    FIRST_FIELDS = "embed_dim depth num_heads patch_size image_size mlp_ratio num_queries fusion supervised_blocks"
    embed_dim: int = option(240, "S, width; a multiple of num_heads; published: 144, 192, 240, 288", **WIDTH)
    depth: int = option(8, "transformer blocks", **DEPTH)
    num_heads: int = option(6, "attention heads of the side network", **NUM_HEADS)
    patch_size: int = option(16, "pixels", **PATCH_SIZE)
    image_size: int = option(
        640, "pixels the positional embedding is laid out for; a multiple of patch_size", **IMAGE_SIZE
    )
    mlp_ratio: float = option(4.0, "hidden width of a block's MLP, in multiples of embed_dim", **MLP_RATIO)
    num_queries: int = option(100, "Q, masks predicted per image", least=1, most=10_000)
    fusion: tuple[tuple[int, int], ...] = option(
        ((0, 0), (3, 1), (6, 2), (9, 3)),
        "pairs of CLIP feature and side block: the feature is fused after that block, 0 = before the first; auto: "
        "the stem and each third of shallow_depth",
        auto=True,
    )
    supervised_blocks: tuple[int, ...] = option(
        (7, 8), "side blocks with a loss, increasing; the last is the side network's last, used in inference"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.embed_dim % self.num_heads == 0,
            f"side width {self.embed_dim} is not a multiple of its {self.num_heads} heads; change "
            "side_adapter.embed_dim or side_adapter.num_heads",
            "side_adapter.embed_dim",
            "side_adapter.num_heads",
        )
        _require(
            self.image_size % self.patch_size == 0,
            f"side image size {self.image_size} is not a multiple of its patch {self.patch_size}; change "
            "side_adapter.image_size",
            "side_adapter.image_size",
        )
        targets = [] if self.fusion == AUTO else [block for _, block in self.fusion]
        _require(
            all(0 <= block <= self.depth for block in targets) and len(set(targets)) == len(targets),
            f"fusion targets {targets} do not fit a side network of {self.depth} blocks, each at most once; "
            f"set the right-hand sides of side_adapter.fusion within 0..{self.depth}",
            "side_adapter.fusion",
        )
        blocks = self.supervised_blocks
        _require(
            len(blocks) > 0 and list(blocks) == sorted(set(blocks)) and blocks[0] >= 1 and blocks[-1] == self.depth,
            f"supervised blocks {list(blocks)} must be increasing, within 1..{self.depth}, and end with the last; "
            "set side_adapter.supervised_blocks",
            "side_adapter.supervised_blocks",
        )


@dataclass(frozen=True)
class HeadConfig(Options):
    """The MLPs of both heads: widths and number of layers."""

    PLACE: ClassVar[str] = "head."
    FIRST_FIELDS = "embed_channels mlp_channels mlp_num_layers"
    embed_channels: int = option(256, "channels in which queries and pixels are compared", **WIDTH)
    mlp_channels: int = option(256, "hidden channels of the three MLPs", **WIDTH)
    mlp_num_layers: int = option(3, "layers of each MLP", least=1, most=64)


@dataclass(frozen=True)
class AttnBiasConfig(Options):
    """The attention biases for CLIP's deep blocks."""

    PLACE: ClassVar[str] = "attn_bias."
    FIRST_FIELDS = "num_heads num_layers pooling learnt_scale enabled"
    num_heads: int = option(
        12, "CLIP's heads (one bias per head; auto), or 1 (one bias shared by all heads)", auto=True, **NUM_HEADS
    )
    num_layers: int = option(1, "1 (the same biases in all deep blocks), or the number of CLIP's deep blocks", **DEPTH)
    pooling: str = option("max", "how a bias is resized to CLIP's grid", choices=POOLINGS)
    learnt_scale: bool = option(True, "whether one scale and one offset of the biases are learnt")
    enabled: bool = option(
        True, "False holds all biases at zero: every [SLS] token sees the whole image, and all masks get the same name"
    )
    stop_gradient: bool = option(
        False,
        "True stops the gradient of recognition before the inputs of the bias head: the side network and the mask head "
        "learn from the mask losses alone",
    )


@dataclass(frozen=True)
class SANConfig(Options):
    """A whole model."""

    FIRST_FIELDS = "clip side_adapter head attn_bias size_divisibility"
    clip: ClipConfig = field(default_factory=ClipConfig)
    side_adapter: SideAdapterConfig = field(default_factory=SideAdapterConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    attn_bias: AttnBiasConfig = field(default_factory=AttnBiasConfig)
    size_divisibility: int = option(
        32, "images are padded to multiples of this, in pixels; a multiple of the side patch", least=1, most=1024
    )
    fusion: PartConfig = option(PartConfig("add"), "how a CLIP feature enters the side network")
    mask_head: PartConfig = option(PartConfig("mlp"), "how masks are made of queries and patches")
    bias_head: PartConfig = option(PartConfig("mlp"), "how attention biases are made of queries and patches")
    prompts: PartConfig = option(PartConfig("templates"), "how prompts are made of a class name")
    scorer: PartConfig = option(PartConfig("sls"), "how masks are compared with class names (docs/beyond.md)")

    def __post_init__(self) -> None:
        super().__post_init__()
        patch = self.side_adapter.patch_size
        _require(
            self.size_divisibility % patch == 0,
            f"images are padded to multiples of {self.size_divisibility}, which the side network's patch of {patch} "
            f"does not divide; set size_divisibility to a multiple of {patch}",
            "size_divisibility",
        )
        if AUTO in (self.clip.shallow_depth, self.side_adapter.fusion):
            return
        sources = [source for source, _ in self.side_adapter.fusion]
        depth = self.clip.shallow_depth
        _require(
            all(0 <= source <= depth for source in sources),
            f"fusion takes CLIP features {sources}, but CLIP's shallow part has features 0..{depth}; change "
            "side_adapter.fusion or clip.shallow_depth",
            "side_adapter.fusion",
            "clip.shallow_depth",
        )


def resolve(config: SANConfig, arch: ClipArch) -> SANConfig:
    """Replace `AUTO` by values derived from the CLIP.

    Raises:
        FieldError: given values do not fit the derived ones.
    """
    clip, side, bias, vision = config.clip, config.side_adapter, config.attn_bias, arch.vision
    depth = usual_depth(arch) if clip.shallow_depth == AUTO else clip.shallow_depth
    scale = clip.input_scale
    if scale == AUTO:
        pixels = max(1, round(_AUTO_INPUT * vision.image_size / vision.patch_size)) * vision.patch_size
        scale = min(_scale(pixels, side.image_size), 2.0)
    pairs = usual_fusion(depth, side.depth) if side.fusion == AUTO else side.fusion
    heads = vision.bias_heads if bias.num_heads == AUTO else bias.num_heads
    if (depth, scale, pairs, heads) == (clip.shallow_depth, clip.input_scale, side.fusion, bias.num_heads):
        return config
    return replace(
        config,
        clip=replace(clip, shallow_depth=depth, input_scale=scale),
        side_adapter=replace(side, fusion=pairs),
        attn_bias=replace(bias, num_heads=heads),
    )


def usual_depth(arch: ClipArch) -> int:
    """Return K of the published models: three quarters of CLIP's blocks."""
    return min(round(0.75 * arch.vision.depth), arch.vision.depth - 1)


def usual_fusion(shallow_depth: int, side_depth: int) -> tuple[tuple[int, int], ...]:
    """Return the fusion of the published models: CLIP's stem, and the end of each third of its shallow blocks."""
    sources = sorted({shallow_depth * third // 3 for third in range(4)})
    return tuple((source, block) for block, source in enumerate(sources) if block <= side_depth)


def _scale(pixels: int, side: int) -> float:
    """Return the factor from `side` to `pixels`, rounded up to six digits, because pixels are rounded down."""
    return math.ceil(1e6 * pixels / side) / 1e6


def check_against(config: SANConfig, arch: ClipArch) -> None:
    """Refuse a configuration, resolved by `resolve`, that does not fit this CLIP.

    Raises:
        FieldError: with the value seen, the values accepted and the field to set.
    """
    name, vision, bias = config.clip.name, arch.vision, config.attn_bias
    depth = config.clip.shallow_depth
    _require(
        depth < vision.depth,
        f"K = {depth} shallow blocks leave none to recognise with: CLIP {name!r} has {vision.depth}; "
        f"set clip.shallow_depth within 0..{vision.depth - 1}",
        "clip.shallow_depth",
    )
    heads, layers = vision.bias_heads, vision.bias_layers(depth)
    place = "its attention pooling" if vision.pool_heads else f"CLIP {name!r}"
    _require(
        bias.num_heads in (1, heads),
        f"attention bias has {bias.num_heads} heads but {place} has {heads}; "
        f"set attn_bias.num_heads to {heads}, or to 1 to share one",
        "attn_bias.num_heads",
    )
    deep = f"CLIP {name!r} has {layers} deep blocks after K = {depth}"
    _require(
        bias.num_layers in (1, layers),
        f"attention bias has {bias.num_layers} layers but "
        f"{'acts in the attention pooling alone' if vision.pool_heads else deep}; "
        f"set attn_bias.num_layers to {layers}{'' if layers == 1 else ', or to 1 to use one for all'}",
        "attn_bias.num_layers",
    )


def unseen_pixels(config: SANConfig, arch: ClipArch, side: int) -> str:
    """Return which pixels CLIP does not see because its patches do not divide its input; "" if it sees all.

    Args:
        config: the model.
        arch: of its CLIP.
        side: height or width of the images that go into the network, in pixels.
    """
    scale, patch = config.clip.input_scale, arch.vision.patch_size
    padded = math.ceil(side / config.size_divisibility) * config.size_divisibility
    pixels = math.floor(padded * scale)
    lost = min(pixels, round(side * scale)) - pixels // patch * patch
    if pixels < patch or lost <= 0:  # the former raises when the model runs
        return ""
    better = _scale(round(pixels / patch) * patch, padded)
    return (
        f"images of {side} pixels become {pixels} at clip.input_scale {scale:g}, which the patch of {patch} of "
        f"CLIP {config.clip.name!r} does not divide: it does not see the last {lost}; set clip.input_scale to "
        f"{better:g}, in training too"
    )


def unusual_depth(config: SANConfig, arch: ClipArch) -> str:
    """Return a remark if K, the number of CLIP's shallow blocks, is unusual; "" if it is not."""
    depth, usual = config.clip.shallow_depth, usual_depth(arch)
    if abs(depth - usual) <= arch.vision.depth / 6:
        return ""
    fusion = [f"{source}->{block}" for source, block in usual_fusion(usual, config.side_adapter.depth)]
    return (
        f"K = {depth} of the {arch.vision.depth} blocks of CLIP {config.clip.name!r} feed the side network, where the "
        f"published models use three quarters; for {usual} set clip.shallow_depth to {usual} and "
        f"side_adapter.fusion to {fusion}, or both to auto, before training"
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
    mask_head=PartConfig("fine"),
    attn_bias=AttnBiasConfig(num_heads=4),
)
VARIANTS = {"vit_b16": SANConfig(), "vit_l14_336": _VIT_L14_336, "shapes": _SHAPES, "tiny": _TINY}


def variant_for_clip(name: str, pretrained: str | None) -> SANConfig:
    """Return the published design for any CLIP: what depends on the CLIP is derived from it when a model is built.

    Args:
        name: see `ClipConfig.name`; docs/clips.md lists them.
        pretrained: see `ClipConfig.pretrained`; None for random weights.
    """
    return SANConfig(
        clip=ClipConfig(name=name, pretrained=pretrained, shallow_depth=AUTO, input_scale=AUTO),
        side_adapter=SideAdapterConfig(fusion=AUTO),
        attn_bias=AttnBiasConfig(num_heads=AUTO),
    )


SIDE_WIDTHS = {144: 6, 192: 6, 240: 6, 288: 6}
"""The published side widths and their heads."""


def variant(name: str, *, pretrained: str | None = "default", side_width: int | None = None) -> SANConfig:
    """Return the configuration of a named model.

    Args:
        name: "vit_b16", "vit_l14_336", "shapes" (configs/shapes) or "tiny" (tests).
        pretrained: CLIP weights instead of the variant's own; None for random ones.
        side_width: another published side width.

    Raises:
        ValueError: the variant or width does not exist.
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

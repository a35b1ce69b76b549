"""Draw mask proposals of one image with their attention biases, per head.

Without --queries, the proposals that contribute most to the largest classes are shown.

Examples:
  san visualize attention street.jpg --model san_vit_b_16 --vocab "car, road, sky" --out attention.png
  san visualize attention street.jpg --vocab "car, road, sky" --queries 3,17
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from san.cli.options import add_model_options, add_word_options, load_predictor, path_option, read_words
from san.io.errors import printable, require_extra
from san.visualize.attention import AttentionView, attention_panel
from san.visualize.palette import palette

if TYPE_CHECKING:
    from san.inference.evidence import ProposedMask
    from san.inference.predictor import Predictor
    from san.inference.segmentation import Segmentation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("image", type=path_option, metavar="IMAGE", help="picture file")
    add_word_options(parser.add_mutually_exclusive_group(required=True))
    parser.add_argument(
        "--queries", default="", metavar="N,N", help="indices of the proposals, from 0 (default: see above)"
    )
    parser.add_argument(
        "--top", type=int, default=4, metavar="N", help="without --queries: number of classes (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=path_option,
        default=Path("attention.png"),
        metavar="FILE",
        help="picture to write (default: %(default)s)",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    if args.top < 1:
        raise ValueError(f"--top is {args.top}; give 1 or more")
    try:
        queries = [int(each) for each in args.queries.split(",") if each.strip()]
    except ValueError as error:
        raise ValueError(f"--queries is {args.queries!r}; give numbers such as 3,17") from error
    require_extra("train", "plotting", "matplotlib")
    vocabulary = read_words(args)
    predictor = load_predictor(args)
    result = predictor.predict(args.image, vocabulary)
    views = attention_views(predictor, result, queries or leading_queries(result, args.top))
    attention_panel(result.image, views, args.out, title=f"Attention of the [SLS] tokens: {args.image.name}")
    shown = ", ".join(f"{view.query} ({view.name or 'no object'} {view.probability:.0%})" for view in views)
    print(printable(f"{args.image}: queries {shown} -> {args.out}"))
    return 0


def leading_queries(result: Segmentation, limit: int) -> list[int]:
    """Return, for each of the largest classes, the proposal with the largest sum of probability times mask."""
    masks = result.mask_proposals()
    chosen: list[int] = []
    for name in list(result.areas())[:limit]:
        region = result.mask(name)
        own = [mask for mask in masks if mask.name == name and mask.query not in chosen]
        weights = [mask.probability * float(mask.mask_probs()[region].sum()) for mask in own]
        if own:
            chosen.append(own[int(np.argmax(weights))].query)
    return chosen or [masks[0].query]


def attention_views(predictor: Predictor, result: Segmentation, queries: Sequence[int]) -> list[AttentionView]:
    """Return proposals for `san.visualize.attention_panel`, with biases on CLIP's patch grid.

    Args:
        predictor: that made the result.
        result: of the image.
        queries: indices of the proposals.

    Raises:
        ValueError: the proposal does not exist.
    """
    masks = {mask.query: mask for mask in result.mask_proposals()}
    unknown = [query for query in queries if query not in masks]
    if unknown:
        raise ValueError(f"there is no query {unknown[0]}; the model has 0..{len(masks) - 1}")
    colors = dict(zip(result.names, palette(result.names).tolist(), strict=True))
    return [_view(predictor, masks[query], colors) for query in queries]


def _view(predictor: Predictor, mask: ProposedMask, colors: Mapping[str, Sequence[int]]) -> AttentionView:
    model, geometry = predictor.model, mask.evidence.geometry
    scale, patch = model.config.clip.input_scale, model.arch.vision.patch_size
    grid = tuple(int(side * scale) // patch for side in geometry.padded_size)
    bias = mask.evidence.attn_bias[None, :, :, mask.query : mask.query + 1].float()  # (1, L, N, 1, h_s, w_s)
    pooled = model.bias_head.to_grid(bias, (grid[0], grid[1])).unflatten(4, grid)[0, :, :, 0]  # (L, N, h, w)
    covered = tuple(inner / whole for inner, whole in zip(geometry.image_size, geometry.padded_size, strict=True))
    return AttentionView(
        mask.query,
        mask.name,
        mask.probability,
        mask.mask_probs(),
        pooled.detach().cpu().numpy(),
        (covered[0], covered[1]),
        None if mask.name is None else tuple(colors[mask.name]),  # type: ignore[arg-type]
    )

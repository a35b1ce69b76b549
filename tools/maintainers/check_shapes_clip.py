#!/usr/bin/env python3
"""Measure how well a small CLIP of the shapes world serves SAN, before a SAN is trained on it.

    python tools/maintainers/check_shapes_clip.py                     # the committed CLIP
    python tools/maintainers/check_shapes_clip.py my_clip.safetensors --shallow-depth 2 3 4

In SAN, CLIP classifies one thing among several: an [SLS] token starts as the class token after block K and then sees
only the patches of a mask. Here the masks are the ground truth (patches covered to 40 % or more), and there are 36
names. The zero-shot accuracy on pictures with one thing does not predict this.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from san.cli.main import guarded
from san.clip.loader import LoadedClip, load_clip
from san.clip.templates import Templates, load_templates
from san.clip.text_classifier import TextClassifier
from san.clip.visual import DeepClip, ShallowClip
from san.model.build import clip_state_to_own
from san.shapes.clip import CLIP_FILE
from san.shapes.render import render
from san.shapes.world import GROUNDS, NAMES, SCENE_SIZE, THINGS, SceneStyle, class_index, scene_at

COVERED = 0.4
"""Share of a patch that a mask must cover for the [SLS] token to see it."""


def scenes(count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Return pictures (N, 3, S / 2, S / 2) float in 0..255, as SAN's CLIP sees them, and label maps (N, S, S)."""
    found = [scene_at(seed, index, THINGS, SceneStyle()) for index in range(count)]
    small, _ = render(found, SCENE_SIZE // 2)
    _, labels = render(found, SCENE_SIZE)
    return torch.from_numpy(small).permute(0, 3, 1, 2).float(), labels


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the weights of one part of a model."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


@torch.no_grad()
def recognition(clip: LoadedClip, depth: int, images: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Return the accuracy on true masks, in percent, for seen things, novel things and grounds."""
    assert clip.state_dict is not None
    state = clip_state_to_own(clip.state_dict, depth)
    shallow, deep = ShallowClip(clip.arch, depth), DeepClip(clip.arch, clip.arch.vision.depth - depth)
    texts = TextClassifier(clip.arch, clip.tokenizer, Templates(load_templates("vild")))
    shallow.load_state_dict(part(state, "shallow_clip"))
    deep.load_state_dict(part(state, "deep_clip"))
    texts.load_state_dict(part(state, "text_classifier"), strict=False)  # all but "no object", which SAN learns
    names = texts.embed(list(NAMES))
    mean, std = (255 * torch.tensor(value).view(3, 1, 1) for value in (clip.arch.mean, clip.arch.std))
    features = shallow((images - mean) / std)
    right: dict[str, list[bool]] = {"seen things": [], "novel things": [], "grounds": []}
    for index, label_map in enumerate(labels):
        present = np.unique(label_map)
        masks = torch.from_numpy((label_map == present[:, None, None]).astype(np.float32))  # (M, S, S)
        visible = F.adaptive_avg_pool2d(masks, features.grid).flatten(1) >= COVERED  # (M, T)
        kept = visible.any(dim=1)
        bias = torch.where(visible[kept], 0.0, -30.0)[None, None, None]  # (1, 1, 1, M, T)
        class_token = features.class_tokens[-1][index : index + 1]
        sls = class_token.expand(-1, bias.shape[3], -1)
        embed = deep(class_token, features.patch_tokens[-1][index : index + 1], sls, bias)[0]  # (M, E)
        for label, named in zip(
            present[kept.numpy()].tolist(), (embed @ names.t()).argmax(dim=1).tolist(), strict=True
        ):
            right[kind(label)].append(label == named)
    return {key: 100 * float(np.mean(values)) for key, values in right.items()}


def kind(label: int) -> str:
    """Return the group of a label: seen things come first, then grounds, then novel things."""
    grounds = [class_index(name) for name in GROUNDS]
    return "grounds" if label in grounds else "seen things" if label < min(grounds) else "novel things"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "clip",
        nargs="?",
        default=str(CLIP_FILE),
        help="weights of train_shapes_clip.py (default: the committed ones)",
    )
    parser.add_argument(
        "--shallow-depth",
        type=int,
        nargs="+",
        default=[3],
        metavar="K",
        help="blocks before the [SLS] token (default: 3)",
    )
    parser.add_argument("--scenes", type=int, default=300, help="number of pictures (default: 300)")
    parser.add_argument("--seed", type=int, default=77, help="seed of the pictures; training uses others (default: 77)")
    options = parser.parse_args(arguments)
    try:
        if not Path(options.clip).is_file():
            raise FileNotFoundError(
                f"{options.clip} does not exist; pass weights of tools/maintainers/train_shapes_clip.py"
            )
        clip = load_clip("shapes", options.clip)
        wrong = [depth for depth in options.shallow_depth if not 0 < depth < clip.arch.vision.depth]
        if wrong or options.scenes < 1:
            raise ValueError(
                f"--shallow-depth {wrong or options.shallow_depth} and --scenes {options.scenes}; use depths from 1 "
                f"to {clip.arch.vision.depth - 1}, and at least one scene"
            )
        images, labels = scenes(options.scenes, options.seed)
        for depth in options.shallow_depth:
            found = recognition(clip, depth, images, labels)
            print(f"K = {depth}: " + ", ".join(f"{name} {value:.1f} %" for name, value in found.items()))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

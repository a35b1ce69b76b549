"""Train the small CLIP of the shapes benchmark contrastively, from captions only.

    python tools/maintainers/train_shapes_clip.py --output san/shapes/assets/clip.safetensors

It learns all names, including the novel ones, from pictures and captions, without masks. Every true pair of a batch is
a positive, so two pictures of a red star are not negatives of each other's captions. The stages are a curriculum:
shapes are learnt first on small pictures framed around one thing, which is four times cheaper and avoids a long plateau
at which only colours are learnt; then whole scenes, grounds, and scenes again with a decaying learning rate. In the
last stage, all true captions of a picture share its probability, so that the logits of things and grounds are
comparable, as SAN needs to select one of all names.

docs/shapes.md has the command, time and accuracy of the committed weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from san.cli.main import guarded
from san.clip.arch import ClipArch, TextArch, VisionArch
from san.clip.loader import save_clip_file
from san.clip.open_clip_adapter import build_trainable_clip
from san.clip.templates import load_templates
from san.clip.tokenizer import compact_tokenizer, token_ids
from san.shapes.captions import NAME_TEMPLATES, SCENE_TEMPLATES, join_names
from san.shapes.pretraining import (
    PICTURE_SIZE,
    Bank,
    CaptionStyle,
    crop_bank,
    picture_bank,
    true_pairs,
    turned,
    write_captions,
    zero_shot,
)
from san.shapes.world import GROUNDS, NAMES, SceneStyle

PATCH_SIZE = 8
CONTEXT_LENGTH = 32
START_SCALE, LARGEST_SCALE = 10.0, 50.0


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    Attributes:
        steps: number of steps.
        batch: pictures per step.
        mix: shares of crops, one-thing pictures, bare grounds and scenes; crops are not mixed with others.
        captions: probabilities of the kinds of captions.
        loss: function of a matrix of logits and one of true pairs.
    """

    steps: int
    batch: int
    mix: tuple[float, float, float, float]
    captions: CaptionStyle
    loss: Callable[[Tensor, Tensor], Tensor]


def vocabulary() -> list[int]:
    """Return the sorted ids of CLIP's tokenizer that occur in captions and prompts."""
    texts = [template.format(name) for template in (*NAME_TEMPLATES, *load_templates("vild")) for name in NAMES]
    return token_ids(texts + [template.format(join_names(NAMES[:3], GROUNDS[0])) for template in SCENE_TEMPLATES])


def architecture(width: int, depth: int, vocab_size: int) -> ClipArch:
    """Return the architecture of the small CLIP: patch 8 on 64 x 64 pictures, heads of 32 channels."""
    return ClipArch(
        embed_dim=128,
        vision=VisionArch(PICTURE_SIZE, PATCH_SIZE, width, depth, width // 32),
        text=TextArch(CONTEXT_LENGTH, vocab_size, 128, 2, 4),
    )


@torch.no_grad()
def init_local_attention(visual: Any) -> None:
    """Initialize positions with sines and cosines, and queries equal to keys: near, similar patches attend mutually."""
    width, grid = visual.positional_embedding.shape[1], PICTURE_SIZE // PATCH_SIZE
    frequency = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    phase = torch.arange(grid).float()[:, None] * frequency
    wave = torch.cat([phase.sin(), phase.cos()], dim=1)  # (grid, width / 2)
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    visual.positional_embedding[1:] = 0.5 * torch.cat([rows, columns], dim=-1).flatten(0, 1)
    visual.positional_embedding[0] = 0
    for block in visual.transformer.resblocks:
        for head in range(width // 32):
            basis = 1.3 * torch.linalg.qr(torch.randn(width, 32))[0].T
            rows_q = slice(head * 32, head * 32 + 32)
            block.attn.in_proj_weight[rows_q] = basis
            block.attn.in_proj_weight[width:][rows_q] = basis


class Towers:
    """Both towers of an open_clip model, with support for windows of the grid and for short texts."""

    def __init__(self, model: Any, arch: ClipArch, token_ids: Sequence[int], *, compiled: bool) -> None:
        self.model, self.arch = model, arch
        self.tokenize = compact_tokenizer(token_ids, CONTEXT_LENGTH)
        self._mean = 255 * torch.tensor(arch.mean).view(3, 1, 1)
        self._std = 255 * torch.tensor(arch.std).view(3, 1, 1)
        self._known: dict[str, Tensor] = {}
        self._encode = torch.compile(self._image_tower, dynamic=False) if compiled else self._image_tower

    def _image_tower(self, pixels: Tensor, positions: Tensor) -> Tensor:
        visual = self.model.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (N, T, D)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + positions
        x = visual.ln_pre(x)
        for block in visual.transformer.resblocks:
            x = block(x)
        return visual.ln_post(x[:, 0]) @ visual.proj  # type: ignore[no-any-return]

    def images(self, images: NDArray[np.uint8], rng: np.random.Generator | None = None, *, fast: bool = True) -> Tensor:
        """Embed (N, S, S, 3) uint8 as (N, E); pictures smaller than the grid get a random position in it."""
        positions = self.model.visual.positional_embedding
        grid, side = PICTURE_SIZE // PATCH_SIZE, images.shape[1] // PATCH_SIZE
        if side < grid:
            y, x = (0, 0) if rng is None else rng.integers(grid - side + 1, size=2)
            window = positions[1:].view(grid, grid, -1)[y : y + side, x : x + side].flatten(0, 1)
            positions = torch.cat([positions[:1], window])
        pixels = ((torch.from_numpy(images).permute(0, 3, 1, 2).float() - self._mean) / self._std).contiguous()
        return (self._encode if fast else self._image_tower)(pixels, positions)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, E); the padding after the longest is omitted."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self.tokenize(new), strict=True))
        tokens = torch.stack([self._known[text] for text in texts])
        length = int((tokens != 0).sum(dim=1).max())
        tokens = tokens[:, :length]
        model = self.model
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        for block in model.transformer.resblocks:
            x = block(x, attn_mask=model.attn_mask[:length, :length])
        x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
        return x @ model.text_projection  # type: ignore[no-any-return]

    @torch.no_grad()
    def accuracy(self, count: int) -> dict[str, float]:
        """Compute `san.shapes.pretraining.zero_shot` with the 14 ViLD templates as prompts."""
        prompts = load_templates("vild")
        text = F.normalize(self.texts([prompt.format(name) for name in NAMES for prompt in prompts]), dim=-1)
        classes = F.normalize(text.view(len(NAMES), len(prompts), -1).mean(dim=1), dim=-1)

        def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = F.normalize(self.images(images, fast=False), dim=-1).numpy()
            return found

        return zero_shot(embed, classes.numpy(), count=count)


def margin_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Contrast each true pair with the false pairs of its row and of its column; other true pairs are ignored.

    It separates true from false pairs quickly. But it does not compare true captions of a picture, so that the logits
    of an easy kind of name (grounds) may become much larger than those of a harder one (things).

    Args:
        logits: (N, M) scaled similarities of pictures and captions.
        true: (N, M) whether the caption is true of the picture.
    """
    false_only = logits.masked_fill(true, -1e9)
    losses = []
    for dim in (1, 0):
        each = F.softplus(false_only.logsumexp(dim=dim, keepdim=True) - logits) * true
        losses.append((each.sum(dim=dim) / true.sum(dim=dim).clamp(min=1)).mean())
    return (losses[0] + losses[1]) / 2


def shared_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Cross-entropy with a target that is uniform over the true pairs of a row, and of a column.

    It is minimal if all true captions of a picture have the same logit. Captions that are true of no picture are only
    negatives. Arguments as in `margin_loss`.
    """
    losses = []
    for dim in (1, 0):
        count = true.sum(dim=dim)
        each = -(logits.log_softmax(dim=dim) * true).sum(dim=dim) / count.clamp(min=1)
        losses.append(each.mean())
    return (losses[0] + losses[1]) / 2


STAGES = (
    Stage(1800, 128, (1, 0, 0, 0), CaptionStyle(single=0.85, shape_words=0.3, grounds=0.0), margin_loss),
    Stage(400, 96, (0, 0.31, 0.04, 0.65), CaptionStyle(shape_words=0.3, grounds=0.0), margin_loss),
    Stage(200, 96, (0, 0.20, 0.13, 0.67), CaptionStyle(shape_words=0.15, grounds=0.25), margin_loss),
    Stage(200, 96, (0, 0.11, 0.52, 0.37), CaptionStyle(shape_words=0.1, grounds=0.3), margin_loss),
    Stage(800, 96, (0, 0.19, 0.15, 0.66), CaptionStyle(shape_words=0.15, grounds=0.2), shared_loss),
)
DECAY_STEPS = 600
"""The learning rate is constant, after a warm-up at the start of each stage, and falls to 2 % over the last steps."""


def draw(
    banks: Sequence[Bank], stage: Stage, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[Any], NDArray[Any]]:
    """Draw a batch of pictures, with the names and facts of each."""
    counts = rng.multinomial(stage.batch, np.asarray(stage.mix) / sum(stage.mix))
    picked = [
        (bank, rng.integers(len(bank.images), size=count)) for bank, count in zip(banks, counts, strict=True) if count
    ]
    images = np.concatenate([bank.images[index] for bank, index in picked])
    names = [bank.names[i] for bank, index in picked for i in index]
    return turned(rng, images), names, np.concatenate([bank.holds[index] for bank, index in picked])


def make_banks(seed: int, scale: float) -> list[Bank]:
    """Render the banks in the order of `Stage.mix`: crops, one-thing pictures, bare grounds, scenes."""
    one, none, many = ((1, 1), (32.0, 96.0)), ((0, 0), (32.0, 72.0)), ((2, 4), (32.0, 72.0))
    wide = ((14000, one), (2000, none), (24000, many))
    banks = [crop_bank(500 + seed, max(64, int(30000 * scale)))]
    for offset, (count, (things, sizes)) in enumerate(wide):
        style = SceneStyle(num_things=things, thing_size=sizes)
        banks.append(picture_bank(100 + 10 * seed + offset, max(64, int(count * scale)), style))
    return banks


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, save, and report."""
    start = time.monotonic()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = [replace(stage, steps=max(1, round(stage.steps * args.schedule))) for stage in STAGES]
    ids = vocabulary()
    arch = architecture(args.width, args.depth, len(ids) + 1)
    model: Any = build_trainable_clip(arch)
    nn.init.constant_(model.logit_scale, math.log(START_SCALE))
    init_local_attention(model.visual)
    towers = Towers(model, arch, ids, compiled=args.compile)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-6)
    banks = make_banks(args.seed, args.bank)
    rng = np.random.default_rng(args.seed + 5)
    total, decay, step = sum(s.steps for s in stages), max(1, round(DECAY_STEPS * args.schedule)), 0
    for stage in stages:
        for local_step in range(stage.steps):
            rate = args.lr * min(1, (local_step + 1) / args.warmup) * min(1, max(0.02, (total - step) / decay))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = train_step(towers, optimizer, banks, stage, rng)
            step += 1
            if step % args.log_period == 0 or step == total:
                accuracy = towers.accuracy(200)
                minutes = (time.monotonic() - start) / 60
                sys.stdout.write(f"step {step}/{total} {minutes:.1f} min loss {loss:.3f} zero-shot {accuracy}\n")
                sys.stdout.flush()
                save_clip_file(args.output, model.state_dict(), arch, token_ids=ids)
    report = {
        "command": " ".join(["python", "tools/maintainers/train_shapes_clip.py", *args.argv]),
        "seed": args.seed,
        "steps": total,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "zero_shot_percent": towers.accuracy(1500),
    }
    save_clip_file(args.output, model.state_dict(), arch, token_ids=ids)
    Path(args.output).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def train_step(
    towers: Towers, optimizer: torch.optim.Optimizer, banks: Sequence[Bank], stage: Stage, rng: np.random.Generator
) -> float:
    """Run one step; returns its loss."""
    images, names, holds = draw(banks, stage, rng)
    captions = write_captions(rng, names, stage.captions)
    true = torch.from_numpy(true_pairs(holds, captions))
    with torch.autocast("cpu", torch.bfloat16):
        image_embed = towers.images(images, rng)
        text_embed = towers.texts([caption.text for caption in captions])
    logits = F.normalize(image_embed.float(), dim=-1) @ F.normalize(text_embed.float(), dim=-1).T
    loss = stage.loss(towers.model.logit_scale.exp() * logits, true)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(towers.model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        towers.model.logit_scale.clamp_(0, math.log(LARGEST_SCALE))
    if not math.isfinite(value := loss.item()):
        raise ValueError(f"the loss became {value}; lower --lr")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", default="clip.safetensors", help="weights file to write, with a .json report beside it"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, pictures and captions (default: 0)")
    parser.add_argument(
        "--schedule", type=float, default=1.0, help="factor on the number of steps of all stages (default: 1)"
    )
    parser.add_argument("--bank", type=float, default=1.0, help="factor on the number of pictures, 70000 (default: 1)")
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW's learning rate (default: 0.001)")
    parser.add_argument(
        "--warmup", type=int, default=20, help="steps of warm-up at the start of each stage (default: 20)"
    )
    parser.add_argument(
        "--width", type=int, default=128, help="channels of the image tower, multiple of 32 (default: 128)"
    )
    parser.add_argument("--depth", type=int, default=6, help="blocks of the image tower (default: 6)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 uses PyTorch's default (default: 0)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the image tower; needs a C++ compiler, a little faster"
    )
    parser.add_argument(
        "--log-period", type=int, default=100, help="steps between progress lines and saves (default: 100)"
    )
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        report = train(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

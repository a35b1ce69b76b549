"""Train the small CLIP of the shapes benchmark contrastively, from captions only.

    python tools/maintainers/train_shapes_clip.py --output san/shapes/assets/clip.safetensors

It learns all names, also the novel ones, from pictures and captions, without outlines. Every true pair of a batch is a
positive, so two pictures of a red star are not negatives of each other's captions. The stages are a curriculum:
shapes are learnt first on small pictures framed around one thing, which is four times cheaper and avoids a long plateau
at which only colours are learnt; then whole scenes, grounds, and scenes again with a decaying learning rate. From then
on, all true captions of a picture share its probability, so that the logits of things and grounds are comparable, as
SAN needs to select one of all names. The last stage is of mosaics of several pictures (`san.shapes.mosaics`), each of
which gets captions of its own: CLIP learns to name a part of a picture as SAN asks it to, by a token that starts as the
class token in the middle of the tower and then sees only the patches of that part.

    python tools/maintainers/train_shapes_clip.py --start-from earlier.safetensors --output clip.safetensors

runs the last stage alone.

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
from numpy.typing import NDArray
from torch import Tensor, nn

from san.cli.main import guarded
from san.clip.loader import save_clip_file
from san.shapes.mosaics import MosaicBank, mosaic_bank, whole_names
from san.shapes.pretraining import (
    PICTURE_SIZE,
    Bank,
    CaptionStyle,
    crop_bank,
    fact_table,
    picture_bank,
    true_pairs,
    turned,
    write_captions,
)
from san.shapes.towers import PATCH_SIZE, Towers, margin_loss, shared_loss, starting_model
from san.shapes.world import SceneStyle

LARGEST_SCALE = 50.0
REGION_CAPTIONS = CaptionStyle(single=1.0, shape_words=0.2, grounds=0.0, siblings=0.3)
WHOLE_CAPTIONS = CaptionStyle(single=0.0, shape_words=0.0, grounds=0.0, siblings=0.0)
WHOLE_WEIGHT = 0.2
"""Share of a mosaic as a whole in the loss of a step of mosaics."""


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    Attributes:
        steps: number of steps.
        batch: pictures per step.
        mix: shares of crops, one-thing pictures, bare grounds and scenes; crops are not mixed with others.
        captions: probabilities of the kinds of captions.
        loss: function of a matrix of logits and one of true pairs.
        rate: factor on the learning rate, which is constant after a warm-up.
        decay: share of the steps, at the end, over which the learning rate falls to 2 %.
        mosaics: share of the steps that are on mosaics instead.
    """

    steps: int
    batch: int
    mix: tuple[float, float, float, float]
    captions: CaptionStyle
    loss: Callable[[Tensor, Tensor], Tensor]
    rate: float = 1.0
    decay: float = 0.0
    mosaics: float = 0.0


STAGES = (
    Stage(1800, 128, (1, 0, 0, 0), CaptionStyle(single=0.85, shape_words=0.3, grounds=0.0), margin_loss),
    Stage(400, 96, (0, 0.31, 0.04, 0.65), CaptionStyle(shape_words=0.3, grounds=0.0), margin_loss),
    Stage(200, 96, (0, 0.20, 0.13, 0.67), CaptionStyle(shape_words=0.15, grounds=0.25), margin_loss),
    Stage(200, 96, (0, 0.11, 0.52, 0.37), CaptionStyle(shape_words=0.1, grounds=0.3), margin_loss),
    Stage(800, 96, (0, 0.19, 0.15, 0.66), CaptionStyle(shape_words=0.15, grounds=0.2), shared_loss, decay=0.75),
    Stage(
        *(1500, 96, (0, 0.19, 0.15, 0.66), CaptionStyle(shape_words=0.15, grounds=0.2), shared_loss),
        rate=0.6,
        decay=0.6,
        mosaics=0.85,
    ),
)


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
    (images,) = turned(rng, images)
    return images, names, np.concatenate([bank.holds[index] for bank, index in picked])


def make_banks(seed: int, scale: float, stages: Sequence[Stage]) -> list[Bank]:
    """Render the banks in the order of `Stage.mix`: crops, one-thing pictures, bare grounds, scenes.

    There are few crops if no stage uses them.
    """
    one, none, many = ((1, 1), (32.0, 96.0)), ((0, 0), (32.0, 72.0)), ((2, 4), (32.0, 72.0))
    wide = ((14000, one), (2000, none), (24000, many))
    crops = 30000 if any(stage.mix[0] for stage in stages) else 0
    banks = [crop_bank(500 + seed, max(64, int(crops * scale)))]
    for offset, (count, (things, sizes)) in enumerate(wide):
        style = SceneStyle(num_things=things, thing_size=sizes)
        banks.append(picture_bank(100 + 10 * seed + offset, max(64, int(count * scale)), style))
    return banks


def rates(stage: Stage, warmup: int) -> list[float]:
    """Return the factor on the learning rate of each step of a stage."""
    decay = max(1.0, stage.decay * stage.steps) if stage.decay else 0.0
    falls = [min(1.0, max(0.02, (stage.steps - step) / decay)) if decay else 1.0 for step in range(stage.steps)]
    return [stage.rate * fall * min(1.0, (step + 1) / warmup) for step, fall in enumerate(falls)]


def check(args: argparse.Namespace) -> None:
    """Refuse options that would only fail later.

    Raises:
        ValueError: an option is out of its range, or the output is the file to start from, or a folder.
    """
    for name, least in {"warmup": 1, "log_period": 1, "threads": 0, "seed": 0}.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; use {least} or more")
    for name in ("schedule", "bank", "lr"):
        if not (math.isfinite(getattr(args, name)) and getattr(args, name) > 0):
            raise ValueError(f"--{name} is {getattr(args, name)}; use a number above 0")
    output = Path(args.output)
    if output.is_dir() or output.suffix != ".safetensors":
        raise ValueError(f"--output is {args.output!r}; give the name of a .safetensors file")
    if args.start_from is not None and output.resolve() == Path(args.start_from).resolve():
        raise ValueError(f"--output is the file of --start-from, {args.output!r}; write to another one")


def earlier_report(weights: Path) -> Any:
    """Return the report beside the weights to start from; None without one.

    Raises:
        ValueError: it is damaged.
    """
    path = weights.with_suffix(".json")
    if not path.is_file():
        sys.stderr.write(f"warning: there is no report {path}; the new one will not say how the weights began\n")
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the report {path} is damaged ({error}); repair or remove it") from error


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, save, and report."""
    check(args)
    start = time.monotonic()
    earlier = None if args.start_from is None else earlier_report(Path(args.start_from))
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = [replace(stage, steps=max(1, round(stage.steps * args.schedule))) for stage in STAGES]
    if args.start_from is not None:
        stages = stages[-1:]
    model, arch, ids = starting_model(args.width, args.depth, args.start_from)
    towers = Towers(model, arch, ids, compiled=args.compile)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-6)
    banks = make_banks(args.seed, args.bank, stages)
    mosaics = mosaic_bank(300 + args.seed, max(64, int(20000 * args.bank)), PICTURE_SIZE, PATCH_SIZE)
    rng = np.random.default_rng(args.seed + 5)
    total, step = sum(stage.steps for stage in stages), 0
    for stage in stages:
        for rate in rates(stage, args.warmup):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate
            if stage.mosaics and rng.random() < stage.mosaics:
                error = mosaic_loss(towers, mosaics, stage, rng)
            else:
                error = plain_loss(towers, banks, stage, rng)
            loss = train_step(towers, optimizer, error)
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
    if earlier is not None:
        report["started_from"] = earlier
    save_clip_file(args.output, model.state_dict(), arch, token_ids=ids)
    Path(args.output).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def plain_loss(towers: Towers, banks: Sequence[Bank], stage: Stage, rng: np.random.Generator) -> Tensor:
    """Return the loss of a batch of pictures and captions of them."""
    images, names, facts_of = draw(banks, stage, rng)
    captions = write_captions(rng, names, stage.captions)
    with torch.autocast("cpu", torch.bfloat16):
        image_embed = towers.images(images, rng)
        text_embed = towers.texts([caption.text for caption in captions])
    return stage.loss(towers.logits(image_embed, text_embed), torch.from_numpy(true_pairs(facts_of, captions)))


def mosaic_loss(towers: Towers, bank: MosaicBank, stage: Stage, rng: np.random.Generator) -> Tensor:
    """Return the loss of a batch of mosaics, whose regions have captions of their own."""
    picked = rng.integers(len(bank.images), size=stage.batch)
    images, regions = turned(rng, bank.images[picked], bank.regions[picked])
    parts = [(name,) for index in picked for name in bank.names[index]]
    captions = {caption.text: caption for caption in write_captions(rng, parts, REGION_CAPTIONS)}
    whole = [bank.names[index] for index in picked]
    for caption in write_captions(rng, [whole_names(names) for names in whole], WHOLE_CAPTIONS):
        captions.setdefault(caption.text, caption)
    true = torch.from_numpy(true_pairs(fact_table((*parts, *whole)), list(captions.values())))
    with torch.autocast("cpu", torch.bfloat16):
        embed = towers.mosaics(images, regions)
        text_embed = towers.texts(list(captions))
    used = torch.arange(embed.shape[1] - 1) < torch.tensor([[len(names)] for names in whole])
    logits = towers.logits(torch.cat([embed[:, 1:][used], embed[:, 0]]), text_embed)
    of_parts = stage.loss(logits[: len(parts)], true[: len(parts)])
    return (1 - WHOLE_WEIGHT) * of_parts + WHOLE_WEIGHT * stage.loss(logits[len(parts) :], true[len(parts) :])


def train_step(towers: Towers, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Step along the gradient of a loss; returns its value."""
    if not math.isfinite(value := loss.item()):
        raise ValueError(f"the loss became {value}; lower --lr")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(towers.model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        towers.model.logit_scale.clamp_(0, math.log(LARGEST_SCALE))
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", default="clip.safetensors", help="weights file to write, with a .json report beside it"
    )
    parser.add_argument(
        "--start-from", metavar="FILE", help="weights of an earlier run: only the last stage, of mosaics, is run"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, pictures and captions (default: 0)")
    parser.add_argument(
        "--schedule", type=float, default=1.0, help="factor on the number of steps of all stages (default: 1)"
    )
    parser.add_argument("--bank", type=float, default=1.0, help="factor on the number of pictures, 90000 (default: 1)")
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

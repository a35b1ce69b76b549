#!/usr/bin/env python3
r"""Bring a checkpoint into another form, without optimiser and schedule.

    python tools/convert_checkpoint.py output/shapes/model_final.pth --config-file configs/shapes/san_shapes.yaml \
        --to slim --half --out san.pth

published   all tensors under the names and shapes of the authors' .pth files
own         all tensors under this project's names
slim        the trained tensors alone, a few MB; loads beside the same frozen CLIP, and is refused beside another
folder      model.safetensors with all tensors, config.json and a model card: what `load_pretrained` and the hub take
"""

from __future__ import annotations

import argparse
import sys

import torch

from san.checkpoint import brings_clip, load_checkpoint_file, load_weights, save_slim, to_published
from san.cli.main import guarded
from san.cli.options import add_import_option, path_option
from san.d2.config.keys import load_config, san_config
from san.hub import save_pretrained
from san.model.build import build_san


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=path_option, help="any SAN checkpoint, published or own")
    parser.add_argument("--config-file", required=True, help="the configuration it was trained with")
    add_import_option(parser)
    parser.add_argument("--to", required=True, choices=("published", "own", "slim", "folder"), help="the form to write")
    parser.add_argument("--out", required=True, type=path_option, help="the .pth file, or the folder, to write")
    parser.add_argument("--half", action="store_true", help="in half precision, at half the size (slim and folder)")
    parser.add_argument("--num-classes", type=int, default=171, help="classes trained on (published only; %(default)s)")
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> None:
    """Reads, checks against the model, and writes.

    Raises:
        ValueError, FileNotFoundError: what the configuration or the checkpoint did wrong.
    """
    if options.out.exists():
        raise ValueError(f"{options.out} exists; remove it or choose another --out")
    if options.half and options.to not in ("slim", "folder"):
        raise ValueError(f"--half goes with --to slim and folder, not with {options.to}, which is exact")
    content = load_checkpoint_file(options.checkpoint)
    cfg = load_config(options.config_file, imports=options.imports)
    model = build_san(san_config(cfg), clip_weights=not brings_clip(content["model"]))
    load_weights(model, content)
    if options.to == "folder":
        save_pretrained(model, options.out, half=options.half)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.to == "slim":
        save_slim(model, options.out, half=options.half)
        return
    state = model.state_dict()
    if options.to == "published":
        state = to_published(state, num_classes=options.num_classes)
    torch.save({"model": state}, options.out)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse_arguments(arguments)
    try:
        convert(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    files = list(options.out.iterdir()) if options.out.is_dir() else [options.out]
    print(f"{options.out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

r"""Convert a checkpoint to another format, without optimiser and schedule.

Examples:
  san convert output/shapes/model_final.pth --config-file configs/shapes/san_shapes.yaml --to slim --half --out san.pth
  san convert san-vit-b16_from_mmsegmentation.pth --to published --out san_vit_b_16.pth

published       all tensors under the names and shapes of the authors' .pth files
mmsegmentation  all tensors under the names and shapes of mmsegmentation's SAN, in a "state_dict"
own             all tensors under this project's names
slim            the trained tensors only, a few MB; loads only with the same frozen CLIP
folder          model.safetensors with all tensors, config.json and a model card, for `load_pretrained` and the hub
transformers    the same for AutoModel and AutoProcessor of transformers (extra "transformers"), with their processor

Without --config-file, the checkpoint must have the tensors of a known model. See docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from san.cli.options import path_option

if TYPE_CHECKING:
    from san.model.config import SANConfig
    from san.model.san import SANModel


FORMS = ("published", "mmsegmentation", "own", "slim", "folder", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "checkpoint", type=path_option, metavar="FILE", help="any SAN checkpoint, published, mmsegmentation's or own"
    )
    parser.add_argument("--config-file", metavar="FILE", help="the configuration it was trained with")
    parser.add_argument("--to", required=True, choices=FORMS, help="the form to write")
    parser.add_argument("--out", required=True, type=path_option, help="the .pth file, or the folder, to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="number type of the weights in the file: float16 at half the size (slim and folder), int8 at a quarter, "
        "for prediction (folder) (default: %(default)s)",
    )
    parser.add_argument("--half", action="store_const", const="float16", dest="dtype", help="short for --dtype float16")
    parser.add_argument("--no-ema", action="store_true", help="the trained weights, not their average (SOLVER.EMA)")
    parser.add_argument("--num-classes", type=int, default=171, help="classes trained on (published only; %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Read the checkpoint, check it against the model, and write; return the exit code.

    Raises:
        ValueError, OSError: the output exists, or configuration and checkpoint do not fit.
    """
    import torch

    from san.checkpoint import brings_clip, load_checkpoint_file, load_weights, save_slim
    from san.hub import save_pretrained
    from san.io.errors import require_extra
    from san.model.build import build_san
    from san.model.names import MMSEGMENTATION, to_published

    if args.out.exists():
        raise ValueError(f"{args.out} exists; remove it or choose another --out")
    takes = {"float32": FORMS, "float16": ("slim", "folder"), "int8": ("folder",)}[args.dtype]
    if args.to not in takes:
        raise ValueError(f"--dtype {args.dtype} needs --to {' or '.join(takes)}, not {args.to}")
    if args.to == "transformers":
        require_extra("transformers", "--to transformers", "transformers")
    content = load_checkpoint_file(args.checkpoint, averaged=not args.no_ema)
    content.pop("ema", None)
    config, naming = _config(args, content)
    with naming:
        model = build_san(config, clip_weights=not brings_clip(content))
        load_weights(model, content)
    if args.to in ("published", "mmsegmentation") and not model.arch.is_plain:
        raise ValueError(
            f"the files of --to {args.to} are of class-token ViTs of open_clip, not of CLIP {config.clip.name!r}; use "
            "--to slim, own or folder"
        )
    if args.to == "folder":
        save_pretrained(model, args.out, dtype=args.dtype)
    elif args.to == "transformers":
        from san.transformers import save_transformers

        save_transformers(model, args.out)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.to == "slim":
            if args.config_file is not None:
                _mark_tuned(model, args)
            save_slim(model, args.out, half=args.dtype == "float16")
        else:
            state = model.state_dict()
            if args.to == "mmsegmentation":
                torch.save({"meta": {}, "state_dict": MMSEGMENTATION.from_own(state)}, args.out)
            else:
                state = to_published(state, num_classes=args.num_classes) if args.to == "published" else state
                torch.save({"model": state}, args.out)
    files = list(args.out.iterdir()) if args.out.is_dir() else [args.out]
    print(f"{args.out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
    return 0


def _mark_tuned(model: SANModel, args: argparse.Namespace) -> None:
    """Let exactly those tensors require a gradient that the configuration's SOLVER.PARAM_RULES train."""
    from san.d2.config.keys import load_config, solver_config

    for rule in solver_config(load_config(args.config_file, imports=args.imports)).rules:
        for name, parameter in model.named_parameters():
            if rule.frozen is not None and fnmatchcase(f"model.{name}", rule.match):
                parameter.requires_grad_(not rule.frozen)


def _config(args: argparse.Namespace, content: Mapping[str, Any]) -> tuple[SANConfig, AbstractContextManager[Any]]:
    """The model's configuration, and the context in which errors name the keys of its file."""
    from san.hub.loading import recognised_variant
    from san.model.config import VARIANTS, variant

    if args.config_file is not None:
        from san.d2.config.keys import load_config, naming_keys, san_config

        return san_config(load_config(args.config_file, imports=args.imports)), naming_keys()
    name = recognised_variant(content)
    if name is None:
        raise ValueError(
            f"{str(args.checkpoint)!r} has the tensors of no known model ({', '.join(VARIANTS)}); give --config-file, "
            "the configuration it was trained with"
        )
    print(f"{args.checkpoint}: recognised as {name}")
    return variant(name), nullcontext()

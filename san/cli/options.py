"""Options that several sub-commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from san.model.config import SANConfig
    from san.predictor import Predictor

RUN_CONFIG = "config.yaml"
"""What a training run calls its configuration."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs: what `load_predictor` reads."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="shapes",
        help="a name of `san models`, a folder of save_pretrained or of a training run, a checkpoint file, or "
        "owner/name on the hub (default: %(default)s, which knows shapes only)",
    )
    group.add_argument(
        "--config",
        metavar="VARIANT",
        help="what a bare checkpoint file is: vit_b16, vit_l14_336, shapes, tiny, or a configuration file (YAML)",
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: %(default)s)")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="precision of the image side (default: %(default)s)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the network: a minute or more for the first image of each size, then faster; for many "
        "images; needs a C++ compiler",
    )
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    add_cache_option(group)
    group.add_argument("--offline", action="store_true", help="never ask the network")
    group.add_argument(
        "--text-cache",
        default="auto",
        metavar="DIR",
        help="where embeddings of words are kept from run to run; '' for nowhere (default: SAN_CACHE/text, or "
        "~/.cache/san/text)",
    )


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    """--cache-dir."""
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where models are kept (default: the Hugging Face cache, and ~/.cache/san/models for those fetched by "
        "hand)",
    )


def load_predictor(args: argparse.Namespace) -> Predictor:
    """The predictor that the options of `add_model_options` describe.

    Raises:
        ValueError, FileNotFoundError: see `san.hub.load_pretrained` and `san.predictor.Predictor`.
    """
    from san.clip.text_cache import resolve_folder
    from san.predictor import Predictor

    source, config = find_model(args.model, args.config)
    predictor = Predictor.from_pretrained(
        source,
        config,
        device=args.device,
        dtype=args.dtype,
        cache_dir=args.cache_dir,
        revision=args.revision,
        local_files_only=args.offline,
        compiled=args.compile,
    )
    predictor.text_cache = resolve_folder(args.text_cache, os.environ.get("SAN_CACHE"))
    return predictor


def find_model(model: str, config: str | None = None) -> tuple[str, str | SANConfig | None]:
    """What --model and --config mean to `san.hub.load_pretrained`.

    Args:
        model: --model; of a training run's folder its last checkpoint and its configuration are taken.
        config: --config, a variant's name or a YAML file.

    Raises:
        ValueError, FileNotFoundError: a run's folder holds no checkpoint, or a configuration is wrong.
    """
    folder = Path(model)
    if (folder / RUN_CONFIG).is_file() and not (folder / "config.json").exists():
        found = sorted(folder.glob("model_*.pth"), key=lambda path: path.stat().st_mtime)
        final, last = folder / "model_final.pth", folder / "last_checkpoint"
        if last.is_file():
            found.append(folder / last.read_text(encoding="utf-8").strip())
        checkpoint = final if final.is_file() else found[-1] if found else None
        if checkpoint is None:
            raise FileNotFoundError(f"{model!r} is the folder of a run without a checkpoint; train on with --resume")
        return str(checkpoint), _config_of(config or str(folder / RUN_CONFIG))
    return model, None if config is None else _config_of(config)


def _config_of(config: str) -> str | SANConfig:
    """A variant's name as it is, a YAML file as the model that it describes."""
    if Path(config).suffix not in (".yaml", ".yml"):
        return config
    from san.d2.config import load_config, san_config

    return san_config(load_config(config, ["MODEL.DEVICE", "cpu"]))  # the run's own device may not be here

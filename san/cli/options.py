"""Options of several sub-commands."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.shards import shard_option
from san.io.errors import excerpt
from san.io.files import expand_home

if TYPE_CHECKING:
    from san.d2.api import CfgNode
    from san.inference.predictor import Predictor
    from san.inference.segmenter import Segmenter
    from san.model.config import SANConfig
    from san.vocabulary.vocabulary import Vocabulary

RUN_CONFIG = "config.yaml"
"""Name of a training run's configuration."""


def path_or_name_option(text: str) -> str:
    """Parse a path or name: ``~`` at its beginning is a home folder."""
    try:
        return expand_home(text, "the path")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_option(text: str) -> Path:
    """Parse a path: ``~`` at its beginning is a home folder, also in ``--out=~/masks``."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is an address; give a file or folder of this machine")
    return Path(path_or_name_option(text))


def positive_option(text: str) -> int:
    """Parse a positive number."""
    if not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)


def formats_option(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Parse a list of formats."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no format {unknown[0]!r}; choose of {', '.join(known)}")
    return names


def png_option(text: str) -> Path:
    """Parse the path of a picture that matplotlib draws."""
    path = path_option(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{excerpt(text)} does not end in .png, the one format that is drawn")
    return path


def add_model_options(parser: argparse.ArgumentParser, *, untrained: bool = False) -> None:
    """Add the options of the model and its device, for `load_predictor`.

    Args:
        parser: parser of a command.
        untrained: also add --variant, a model without weights, as an alternative to --model.
    """
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group() if untrained else group
    if untrained:
        which.add_argument(
            "--variant",
            type=path_or_name_option,
            metavar="VARIANT",
            help="instead of --model, a model with random weights: vit_b16, vit_l14_336, shapes, tiny, or a "
            "configuration file (YAML); nothing is downloaded",
        )
    which.add_argument(
        "--model",
        type=path_or_name_option,
        default="shapes",
        help="a name of `san models`, a folder of save_pretrained or of a training run, a checkpoint file, or "
        "owner/name on the hub (default: %(default)s, which knows only shapes)",
    )
    group.add_argument(
        "--config",
        type=path_or_name_option,
        metavar="VARIANT",
        help="model of a bare checkpoint file: vit_b16, vit_l14_336, shapes, tiny, or a configuration file (YAML)",
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: %(default)s)")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "int8"),
        help="number type of the network (default: %(default)s, exact); docs/speed.md compares them: on a CPU with "
        "AVX512-BF16 bfloat16 takes about 0.57 of float32's time and int8 0.47, on one without it float32 is faster "
        "than bfloat16",
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
        help="folder of text embeddings between runs; '' for none (default: SAN_CACHE/text, or ~/.cache/san/text)",
    )


def add_word_options(parser: argparse._ActionsContainer) -> None:
    """Add --vocab and --vocab-file, for `read_words`."""
    parser.add_argument("--vocab", metavar="WORDS", help='the classes, such as "cat, dog; sofa|couch"')
    parser.add_argument(
        "--vocab-file",
        metavar="FILE",
        help="a file of classes: .txt with one a line (sofa|couch are synonyms, # begins a comment line), .json or "
        ".yaml with a list or a mapping, or .safetensors of `san vocab`",
    )


def add_names_option(parser: argparse._ActionsContainer, subject: str) -> None:
    """Add --names; `subject` says whose names."""
    from san.vocabulary.label_sets import NAMES

    parser.add_argument(
        "--names",
        choices=NAMES,
        default=NAMES[0],
        help=f"names {subject}: the published ones, or with synonyms (default: %(default)s; docs/beyond.md)",
    )


def read_words(args: argparse.Namespace) -> Vocabulary:
    """Return the classes of --vocab or --vocab-file.

    Raises:
        ValueError, FileNotFoundError: see `Vocabulary.parse` and `Vocabulary.from_file`; or a word is a file's name.
    """
    from san.vocabulary.vocabulary import Vocabulary

    if args.vocab_file is not None:
        return Vocabulary.from_file(args.vocab_file)
    return parse_words(args.vocab, "--vocab", getattr(args, "names", "default"))


def parse_words(text: str, option: str, names: str = "default") -> Vocabulary:
    """Return the classes of a text on the command line.

    Args:
        text: input of `Vocabulary.parse`.
        option: its option, for messages.
        names: see `Vocabulary.label_set`, if the text is the name of one.

    Raises:
        ValueError: it is blank, `Vocabulary.parse` raises, or a word is a file's name.
    """
    from san.io.plain_file import is_file
    from san.vocabulary.class_file import ENDINGS
    from san.vocabulary.label_sets import LABEL_SETS
    from san.vocabulary.vocabulary import Vocabulary

    if not text.strip():
        raise ValueError(f'{option} is blank; give words, such as "cat, dog"')
    if text.strip() in LABEL_SETS:
        return Vocabulary.label_set(text.strip(), names)
    vocabulary = Vocabulary.parse(text)
    for name in vocabulary.names:
        path = Path(name)
        if path.suffix.lower() in ENDINGS or ((path.suffix or len(path.parts) > 1) and is_file(path)):
            remedy = "write its words out" if option == "--context" else "give it with --vocab-file"
            raise ValueError(f"{option} has the word {excerpt(name)}, the name of a file; {remedy}")
    return vocabulary


def add_data_root_option(parser: argparse._ActionsContainer) -> None:
    """Add --data-root."""
    parser.add_argument(
        "--data-root",
        default="",
        metavar="DIR",
        help="folder of the benchmarks; default: the environment variable DETECTRON2_DATASETS, else 'datasets'",
    )


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add --data-root, and --dataset for files."""
    add_data_root_option(parser)
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML or JSON file that describes your own data set (docs/custom_dataset.md); may be given several times",
    )


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    """Add --cache-dir."""
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="folder of models (default: the Hugging Face cache, and ~/.cache/san/models for those fetched by hand)",
    )


def add_shard_option(parser: argparse._ActionsContainer) -> None:
    """Add --shard, a `san.cli.shards.Shard`."""
    parser.add_argument(
        "--shard",
        type=shard_option,
        metavar="I/N",
        help="only part I of N, from 0/N to N-1/N, of the pictures, for many jobs with one --out (docs/cluster.md)",
    )


def add_averaging_options(parser: argparse.ArgumentParser) -> None:
    """Add --scales and --flip, for `load_segmenter`."""
    group = parser.add_argument_group("averages of several predictions")
    group.add_argument(
        "--scales",
        type=_sides,
        default=(),
        metavar="LIST",
        help="short sides of the image in the network, pixels, whose scores are averaged, such as 480,640,800 "
        "(default: the one the model was trained for)",
    )
    group.add_argument("--flip", action="store_true", help="average with the scores of the mirror image")


def _sides(text: str) -> tuple[int, ...]:
    sides = [side.strip() for side in text.split(",")]
    if not all(side.isdecimal() and 1 <= int(side) <= 8192 for side in sides) or len({*sides}) < len(sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different sizes of 1 to 8192, such as 480,640,800")
    return tuple(map(int, sides))


def load_segmenter(args: argparse.Namespace) -> Segmenter:
    """Return the predictor or ensemble of the options of `add_model_options` and `add_averaging_options`.

    Raises:
        ValueError, FileNotFoundError: see `load_predictor` and `san.inference.ensemble.read_ensemble`.
    """
    with _importing_torch():
        from san.inference.ensemble import is_ensemble_file, load_ensemble

    if not is_ensemble_file(args.model):
        return load_predictor(args)
    given = {"--config": args.config, "--scales": args.scales, "--flip": args.flip, "--revision": args.revision}
    for option, value in given.items():
        if value:
            raise ValueError(
                f"{option} is of one model, but --model {args.model} lists several; write config, short_sides and flip "
                "into that file"
            )
    return load_ensemble(
        args.model,
        lambda each: _predictor(args, each.model, each.config, short_sides=each.short_sides, flip=each.flip),
    )


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Return the predictor of the options of `add_model_options`.

    Raises:
        ValueError, FileNotFoundError: see `san.hub.load_pretrained` and `san.inference.predictor.Predictor`.
    """
    with _importing_torch():
        from san.inference.ensemble import is_ensemble_file

    if is_ensemble_file(args.model):
        raise ValueError(f"--model {args.model} lists an ensemble, for `san predict` and `san eval`; give one model")
    scales, flip = getattr(args, "scales", ()), getattr(args, "flip", False)
    return _predictor(args, args.model, args.config, short_sides=scales, flip=flip)


@contextmanager
def _importing_torch() -> Iterator[None]:
    """Context manager for the first import of PyTorch that excludes its objects from garbage collection, to save time.

    Its million objects are never freed, but the collector would scan them several times during the import, and again at
    the end of the process.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _predictor(
    args: argparse.Namespace, name: str, config: str | None, *, short_sides: Sequence[int], flip: bool
) -> Predictor:
    """Return the predictor of one model, with all other options of the command line."""
    from san.clip.text_cache import resolve_folder
    from san.inference.predictor import Predictor
    from san.model.config import SANConfig

    options: dict[str, Any] = {
        "device": args.device,
        "dtype": args.dtype,
        "compiled": args.compile,
        "flip": flip,
        "text_cache": resolve_folder(args.text_cache, os.environ.get("SAN_CACHE")),
    }
    if getattr(args, "variant", None) is not None:
        from san.model.build import build_san

        untrained = build_san(untrained_config(args))
        return Predictor(untrained, short_sides=(untrained.config.side_adapter.image_size,), **options)
    source, found = find_model(name, config, args.imports)
    if found is None or isinstance(found, (str, SANConfig)):
        remote = {"cache_dir": args.cache_dir, "revision": args.revision, "local_files_only": args.offline}
        return Predictor.from_pretrained(source, found, short_sides=short_sides, **options, **remote)
    from san.d2.sources import load_source

    model = load_source(source, found)
    return Predictor(model, short_sides=short_sides or (model.config.side_adapter.image_size,), **options)


def untrained_config(args: argparse.Namespace) -> SANConfig:
    """Return the model of --variant, without CLIP's weights.

    Raises:
        ValueError, FileNotFoundError: the variant or file does not exist, it describes a meta-architecture of the
            user, or --config is given too.
    """
    from san.model.config import SANConfig, variant

    if args.config is not None:
        raise ValueError("--config goes with a checkpoint file; give --variant alone")
    if Path(args.variant).suffix not in (".yaml", ".yml"):
        return variant(args.variant, pretrained=None)
    from san.d2.sources import model_config_of

    config = model_config_of(args.variant, args.imports)
    assert not isinstance(config, str)
    if not isinstance(config, SANConfig):
        raise ValueError(
            f"{args.variant} sets MODEL.META_ARCHITECTURE to {config.MODEL.META_ARCHITECTURE}, which --variant cannot "
            "build; give a checkpoint of it with --model, and the file with --config"
        )
    return replace(config, clip=replace(config.clip, pretrained=None))


def find_model(
    model: str, config: str | None = None, imports: Sequence[str] = ()
) -> tuple[str, str | SANConfig | CfgNode | None]:
    """Resolve --model, --config and --import; for runs and YAML files with `san.d2.sources.resolve_source`."""
    folder = Path(model)
    is_run = (folder / RUN_CONFIG).is_file() and not (folder / "config.json").exists()
    if not is_run and (config is None or Path(config).suffix not in (".yaml", ".yml")):
        return model, config
    from san.d2.sources import resolve_source

    return resolve_source(model, config, imports)

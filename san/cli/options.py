"""Options that several sub-commands share, and what they mean."""

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

from san.io.errors import excerpt
from san.io.files import expand_home

if TYPE_CHECKING:
    from san.d2.api import CfgNode
    from san.inference.predictor import Predictor
    from san.inference.segmenter import Segmenter
    from san.model.config import SANConfig
    from san.vocabulary.vocabulary import Vocabulary

RUN_CONFIG = "config.yaml"
"""What a training run calls its configuration."""


def place_option(text: str) -> str:
    """An option's value that is a path, a name or something else: ``~`` at its beginning is a home folder."""
    try:
        return expand_home(text, "the path")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_option(text: str) -> Path:
    """An option's value that is a path: ``~`` at its beginning is a home folder, also in ``--out=~/masks``."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is an address; give a file or folder of this machine")
    return Path(place_option(text))


def positive_option(text: str) -> int:
    """An option's value that is a number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def formats_option(text: str, known: Collection[str]) -> tuple[str, ...]:
    """An option's value that lists some of the known formats."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no format {unknown[0]!r}; choose of {', '.join(known)}")
    return names


def png_option(text: str) -> Path:
    """`path_option` of a picture that matplotlib draws."""
    path = path_option(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{excerpt(text)} does not end in .png, the one format that is drawn")
    return path


def add_model_options(parser: argparse.ArgumentParser, *, untrained: bool = False) -> None:
    """Which model, and where it runs: what `load_predictor` reads.

    Args:
        parser: a command's.
        untrained: whether --variant, a model without weights, may be given instead of --model.
    """
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group() if untrained else group
    if untrained:
        which.add_argument(
            "--variant",
            type=place_option,
            metavar="VARIANT",
            help="instead of --model, a model with random weights: vit_b16, vit_l14_336, shapes, tiny, or a "
            "configuration file (YAML); nothing is downloaded",
        )
    which.add_argument(
        "--model",
        type=place_option,
        default="shapes",
        help="a name of `san models`, a folder of save_pretrained or of a training run, a checkpoint file, or "
        "owner/name on the hub (default: %(default)s, which knows shapes only)",
    )
    group.add_argument(
        "--config",
        type=place_option,
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


def add_word_options(parser: argparse._ActionsContainer) -> None:
    """--vocab and --vocab-file: what `read_words` reads."""
    parser.add_argument("--vocab", metavar="WORDS", help='the classes, such as "cat, dog; sofa|couch"')
    parser.add_argument(
        "--vocab-file",
        metavar="FILE",
        help="a file of classes: .txt with one a line (sofa|couch are synonyms, # begins a comment line), or .json or "
        ".yaml with a list or a mapping",
    )


def read_words(args: argparse.Namespace) -> Vocabulary:
    """The classes that --vocab or --vocab-file names.

    Raises:
        ValueError, FileNotFoundError: see `Vocabulary.parse` and `Vocabulary.from_file`; or a word is a file's name.
    """
    from san.vocabulary.vocabulary import Vocabulary

    if args.vocab_file is not None:
        return Vocabulary.from_file(args.vocab_file)
    return parse_words(args.vocab, "--vocab")


def parse_words(text: str, option: str) -> Vocabulary:
    """The classes that a text on the command line names.

    Args:
        text: as `Vocabulary.parse` takes it.
        option: where it was given, for messages.

    Raises:
        ValueError: it is blank, `Vocabulary.parse` refuses it, or a word is a file's name.
    """
    from san.io.plain_file import is_file
    from san.vocabulary.class_file import ENDINGS
    from san.vocabulary.vocabulary import Vocabulary

    if not text.strip():
        raise ValueError(f'{option} is blank; give words, such as "cat, dog"')
    vocabulary = Vocabulary.parse(text)
    for name in vocabulary.names:
        path = Path(name)
        if path.suffix.lower() in ENDINGS or ((path.suffix or len(path.parts) > 1) and is_file(path)):
            remedy = "write its words out" if option == "--context" else "give it with --vocab-file"
            raise ValueError(f"{option} has the word {excerpt(name)}, the name of a file; {remedy}")
    return vocabulary


def add_data_root_option(parser: argparse.ArgumentParser) -> None:
    """--data-root."""
    parser.add_argument(
        "--data-root",
        default="",
        metavar="DIR",
        help="folder of the benchmarks; default: the environment variable DETECTRON2_DATASETS, else 'datasets'",
    )


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """--data-root, and --dataset for files."""
    add_data_root_option(parser)
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML or JSON file that describes your own data set (docs/custom_dataset.md); may be given several times",
    )


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    """--cache-dir."""
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where models are kept (default: the Hugging Face cache, and ~/.cache/san/models for those fetched by "
        "hand)",
    )


def add_averaging_options(parser: argparse.ArgumentParser) -> None:
    """--scales and --flip: what `load_segmenter` reads beside the model."""
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
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different sizes of 1 to 8192, such as 480,640,800")
    return tuple(map(int, sides))


def load_segmenter(args: argparse.Namespace) -> Segmenter:
    """The predictor that the options of `add_model_options` and `add_averaging_options` describe, or the ensemble.

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
    """The predictor that the options of `add_model_options` describe.

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
    """Makes the first import of PyTorch, and what follows, faster: its million objects stay, and are not garbage.

    The search for garbage would pass over them several times during the import, and again at the end of the process.
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
    """A predictor of one model, with all other options of the command line."""
    from san.clip.text_cache import resolve_folder
    from san.inference.predictor import Predictor
    from san.model.config import SANConfig

    options: dict[str, Any] = {"device": args.device, "dtype": args.dtype, "compiled": args.compile, "flip": flip}
    if getattr(args, "variant", None) is not None:
        from san.model.build import build_san

        untrained = build_san(untrained_config(args))
        return Predictor(untrained, short_sides=(untrained.config.side_adapter.image_size,), **options)
    source, found = find_model(name, config, args.imports)
    if found is None or isinstance(found, (str, SANConfig)):
        remote = {"cache_dir": args.cache_dir, "revision": args.revision, "local_files_only": args.offline}
        predictor = Predictor.from_pretrained(source, found, short_sides=short_sides, **options, **remote)
    else:
        from san.d2.sources import load_source

        model = load_source(source, found)
        predictor = Predictor(model, short_sides=short_sides or (model.config.side_adapter.image_size,), **options)
    predictor.text_cache = resolve_folder(args.text_cache, os.environ.get("SAN_CACHE"))
    return predictor


def untrained_config(args: argparse.Namespace) -> SANConfig:
    """The model that --variant describes, without CLIP's weights.

    Raises:
        ValueError, FileNotFoundError: there is no such variant or file, it describes a meta-architecture of the
            user's, or --config is given too.
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
    """What --model, --config and --import mean; see `san.d2.sources.resolve_source`, which runs and YAML files need."""
    folder = Path(model)
    is_run = (folder / RUN_CONFIG).is_file() and not (folder / "config.json").exists()
    if not is_run and (config is None or Path(config).suffix not in (".yaml", ".yml")):
        return model, config
    from san.d2.sources import resolve_source

    return resolve_source(model, config, imports)

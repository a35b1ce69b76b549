r"""Make a vocabulary from examples instead of words: pictures of each class, with a mask, a box or neither.

Examples:
  san vocab mugs.yaml --out mugs.safetensors --model san_vit_b_16
  san vocab --dataset my_data/set.yaml --examples 16 --out my_classes.safetensors
  san vocab --dataset my_data/set.yaml --examples 4 --words 1 --calibrate --out my_words.safetensors
  san predict photos/ --vocab-file mugs.safetensors --model san_vit_b_16

mugs.yaml lists pictures, with paths relative to it:

  classes:
    - name: my mug
      examples: [{image: a.jpg, box: [40, 60, 220, 200]}, {image: b.jpg, mask: b.png}, {image: c.jpg}]
    - mug | cup
    - table

A box is left, top, right, bottom in pixels; a mask is a label map in which 0 is not the object; with neither, the
object is in the middle. Classes without examples keep their words. The file serves only models with the same CLIP. See
docs/examples.md.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from san.cli.options import add_model_options, load_predictor, path_option, positive_option
from san.io.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from san.data.example_files import ClassExample
    from san.vocabulary.classes import ClassText


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "pictures", nargs="?", type=path_option, metavar="FILE", help="YAML or JSON file that lists pictures, see above"
    )
    labelled = parser.add_argument_group("examples from a labelled data set, instead of FILE")
    labelled.add_argument("--dataset", type=path_option, metavar="FILE", help="its file (docs/custom_dataset.md)")
    labelled.add_argument("--split", metavar="NAME", help="one of its splits (default: train, or the only one)")
    labelled.add_argument(
        "--examples", type=positive_option, default=4, metavar="N", help="of each class (default: %(default)s)"
    )
    labelled.add_argument(
        "--classes",
        default="",
        metavar="NAMES",
        help="classes that get examples, separated by commas, or by semicolons if names have commas; the others keep "
        "their words (default: all)",
    )
    labelled.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the choice of examples (default: %(default)s)"
    )
    parser.add_argument("--out", type=path_option, required=True, metavar="FILE.safetensors", help="the vocabulary")
    parser.add_argument(
        "--words",
        type=float,
        metavar="SHARE",
        help="share of the words in the vector of a class with examples: 0 for examples alone (default: 0.85 with one "
        "example, 0.72 with 16)",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="add a bias to each class with which the examples are named best; needs examples of all classes",
    )
    parser.add_argument(
        "--bank",
        action="store_true",
        help="keep every example: the nearest ones of a mask change its class probabilities, beside the vectors",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Make the vocabulary; return the exit code.

    Raises:
        ValueError, FileNotFoundError: the command line, a file or the model is wrong.
    """
    from san.vocabulary.vocabulary_file import check_target

    check_target(args.out)
    classes, examples = _examples(args)
    predictor = load_predictor(args)
    from san.inference.examples import BankOptions, learn_classes

    bank = BankOptions() if args.bank else None
    learnt = learn_classes(predictor, classes, examples, word_share=args.words, calibrated=args.calibrate, bank=bank)
    learnt.save(args.out)
    for name, count in learnt.counts().items():
        print(f"{printable(name)}: {f'{count} example' + 's' * (count > 1) if count else 'words'}")
    if bank is not None:
        print(f"bank: {len(learnt.examples)} examples")
    print(f"written: {args.out}")
    return 0


def _examples(args: argparse.Namespace) -> tuple[tuple[ClassText, ...], Iterable[ClassExample]]:
    """Return the classes, and examples of some of them."""
    from san.data.custom import load_custom_dataset
    from san.data.example_files import examples_of_dataset, read_example_file, split_of

    if (args.pictures is None) == (args.dataset is None):
        raise ValueError("give a file that lists pictures, or a labelled data set with --dataset")
    if args.pictures is not None:
        return read_example_file(args.pictures)
    dataset = load_custom_dataset(args.dataset)
    separator = ";" if ";" in args.classes else ","
    names = [name.strip() for name in args.classes.split(separator) if name.strip()]
    found = examples_of_dataset(dataset, split_of(dataset, args.split), args.examples, names=names, seed=args.seed)
    return dataset.classes, found

"""The options about data sets that all command lines share: ``--data-root`` and ``--dataset``."""

from __future__ import annotations

import argparse

from san.d2.data.datasets import register_custom_files, register_datasets


def add_data_root_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--data-root``.

    Args:
        parser: gets ``data_root`` (text, "" where it is not given).
    """
    parser.add_argument(
        "--data-root",
        default="",
        metavar="DIR",
        help="folder of the benchmarks; default: the environment variable DETECTRON2_DATASETS, else 'datasets'",
    )


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--data-root`` and ``--dataset``.

    Args:
        parser: gets ``data_root`` (text, "" where it is not given) and ``dataset`` (list of files).
    """
    add_data_root_argument(parser)
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML or JSON file that describes your own data set (docs/custom_dataset.md); may be given several times",
    )


def register_from_arguments(args: argparse.Namespace) -> list[str]:
    """Registers the benchmarks and the data set files of a command line; reads no data.

    Args:
        args: with what `add_dataset_arguments` adds.

    Returns:
        The names that the files give, in their order.

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong.
    """
    register_datasets(args.data_root or None)
    return register_custom_files(args.dataset)

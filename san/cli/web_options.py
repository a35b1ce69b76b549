"""Options of commands that serve: the address, and the limits of requests."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

from san.web.limits import InputLimits

Bounds = TypeVar("Bounds", bound=InputLimits)

_LIMITS = {
    "max_bytes": "size of an uploaded file, bytes",
    "max_pixels": "height times width of a picture",
    "max_classes": "classes of a vocabulary",
    "max_characters": "length of the words' text",
    "max_waiting": "requests that may queue",
    "max_seconds": "time limit of a request, seconds",
    "max_decode_seconds": "time limit of decoding a picture, seconds",
}


def add_address_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Add --host and --port.

    Args:
        parser: parser of a command.
        port: the default.
    """
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument(
        "--port", type=int, default=port, help="port to listen on, 0 for any free one (default: %(default)s)"
    )


def add_limit_options(parser: argparse.ArgumentParser, limits: type[InputLimits], further: Mapping[str, str]) -> None:
    """Add an option for each field of a class of limits, for `read_limits`.

    Args:
        parser: parser of a command.
        limits: the class.
        further: help texts of its own fields.
    """
    group, texts = parser.add_argument_group("limits"), {**_LIMITS, **further}
    for field in fields(limits):
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            metavar="N",
            help=f"{texts[field.name]} (default: %(default)s)",
        )


def read_limits(args: argparse.Namespace, limits: type[Bounds]) -> Bounds:
    """Return the limits of the options.

    Raises:
        ValueError: one is not positive.
    """
    return limits(**{field.name: getattr(args, field.name) for field in fields(limits)})

"""Serve the model over HTTP: post a picture and words, get a label map, an overlay, run lengths or polygons.

Examples:
  san serve
  san serve --model san_vit_b_16 --device cuda --host 0.0.0.0 --port 8000 --api-key-file keys.txt
  curl -F image=@photo.jpg -F vocabulary="cat, dog" http://127.0.0.1:8000/v1/segment

By default only this machine (127.0.0.1) can reach it; --host changes that. The API is described at /docs. With
--api-key-file or the environment variable SAN_SERVE_KEY, requests need the header "Authorization: Bearer KEY".

SIGTERM or Ctrl+C ends it in order: it accepts no more, finishes what was accepted, and exits; a second one ends it at
once. Exit codes: 0 ended in order, 1 error or requests were cut off after --grace-seconds, 2 wrong command line, 130
ended in order by Ctrl+C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from san.cli.options import add_model_options, load_predictor, path_option
from san.cli.web_options import add_address_options, add_limit_options, read_limits
from san.io.errors import INTERRUPTED, require_extra
from san.io.files import check_file_size
from san.serve.limits import ServeLimits

DEFAULT_PORT = 8000
KEY_VARIABLE = "SAN_SERVE_KEY"
_CUT_OFF = 1
_MIN_KEY, _MAX_KEY_FILE = 16, 100_000

_LIMITS = {
    "max_waiting": "requests that are read, wait or are computed; further ones get 429",
    "max_batch": "pictures of one size that are encoded together",
    "keep_bytes": "memory of kept images, bytes; the longest unused ones make room",
    "keep_minutes": "minutes after which an unused kept image is dropped",
    "grace_seconds": "time to finish requests after SIGTERM, seconds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_options(parser, untrained=True)
    add_address_options(parser, DEFAULT_PORT)
    parser.add_argument(
        "--api-key-file",
        type=path_option,
        metavar="FILE",
        help=f"API keys, one per line, each of {_MIN_KEY} characters or more (default: the one of {KEY_VARIABLE}, else "
        "anyone may ask)",
    )
    add_limit_options(parser, ServeLimits, _LIMITS)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl+C."""
    require_extra(
        "serve",
        "the service",
        "fastapi",
        "fastapi_offline",
        "uvicorn",
        "python_multipart",
        "prometheus_client",
        "scipy",
        "shapely",
    )
    from san.serve.server import ServiceServer
    from san.serve.service import SegmentService

    limits, keys = read_limits(args, ServeLimits), read_keys(args.api_key_file, os.environ.get(KEY_VARIABLE))
    service = SegmentService(load_predictor(args), limits, keys=keys)
    server = ServiceServer(service, host=args.host, port=args.port)
    print(f"The service runs at {server.url} and is described at {server.url}docs (Ctrl+C ends it)", flush=True)
    server.run()
    idle = service.close(timeout=1.0)
    if service.was_cut_off or not idle:
        print("some requests were not finished; raise --grace-seconds", file=sys.stderr, flush=True)
        os._exit(_CUT_OFF)  # Python would wait for the unused result
    return INTERRUPTED if server.stopped_by == signal.SIGINT else 0


def read_keys(file: Path | None, variable: str | None) -> list[str]:
    """Return the API keys; they are neither logged nor shown in messages.

    Args:
        file: has one per line; it is used instead of the variable.
        variable: one key; None for none.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: there is no key, or one is short or has other characters than printable ASCII.
    """
    if file is None and variable is None:
        return []
    where, text = KEY_VARIABLE, variable or ""
    if file is not None:
        check_file_size(file, _MAX_KEY_FILE)
        where, text = str(file), file.read_text(encoding="utf-8", errors="replace")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"{where} has no API key; write one per line, such as the output of: openssl rand -hex 32")
    for number, key in enumerate(keys, start=1):
        if len(key) < _MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"{where}: key {number} has {len(key)} characters; a key has {_MIN_KEY} or more, of ASCII without "
                "blanks, such as the output of: openssl rand -hex 32"
            )
    return keys

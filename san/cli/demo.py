"""Serve a web page: upload a picture, write words, get masks.

Examples:
  san demo
  san demo --model san_vit_b_16 --examples my_pictures --words "person, car, road, sky"
  san demo --host 0.0.0.0 --port 8080

By default only this machine (127.0.0.1) can open the page; --host changes that. It never opens a public link ("share"):
to show it to others, put it behind your own proxy (docs/demo.md). Ctrl+C ends it.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from san.cli.options import add_model_options, load_predictor, parse_words, path_or_name_option
from san.cli.web_options import add_address_options, add_limit_options, read_limits
from san.demo.limits import Limits
from san.io.errors import INTERRUPTED

if TYPE_CHECKING:
    from san.demo.service import DemoService

DEFAULT_PORT = 7860

_LIMITS = {
    "requests_per_minute": "of one address",
    "max_visitors": "sessions whose pictures are kept in memory",
    "keep_minutes": "minutes after which an idle session's picture is dropped",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_options(parser)
    add_address_options(parser, DEFAULT_PORT)
    parser.add_argument(
        "--trusted-proxies",
        default="",
        metavar="ADDRESSES",
        help="your proxies, whose X-Forwarded-For names the visitor: addresses or networks, separated by commas "
        "(default: none)",
    )
    parser.add_argument(
        "--allowed-hosts",
        default="",
        metavar="NAMES",
        help="further host names of the page, such as a proxy's, separated by commas; --host and localhost are known",
    )
    parser.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="the folder under which a proxy serves the page, such as /demo (default: none)",
    )
    parser.add_argument(
        "--embed-in",
        default="",
        metavar="SITES",
        help="sites whose pages may show this one in a frame, separated by commas, such as https://huggingface.co "
        "(default: no other site)",
    )
    parser.add_argument(
        "--examples",
        type=path_or_name_option,
        metavar="DIR",
        help="a folder of example pictures, instead of the shapes",
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--words", help="the words that each picture of --examples starts with")
    words.add_argument(
        "--vocab-file",
        metavar="FILE",
        help="these words in a file, as `san predict` takes it; with one of `san vocab`, which needs no --examples, "
        "words that are names in it are recognised from its examples",
    )
    add_limit_options(parser, Limits, _LIMITS)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl+C."""
    from san.demo.page import Texts, build_app
    from san.demo.server import DemoServer

    service = make_service(args)
    try:
        guard = build_app(
            service,
            Texts(model=str(args.model)),
            root_path=args.root_path,
            frame_ancestors=_names(args.embed_in),
        )
        server = DemoServer(
            guard,
            service.limits,
            host=args.host,
            port=args.port,
            trusted_proxies=_names(args.trusted_proxies),
            allowed_hosts=_names(args.allowed_hosts),
        )
        print(f"The demo runs at {server.url} (Ctrl+C ends it)", flush=True)
        server.run()
    except KeyboardInterrupt:
        if not service.close():  # otherwise Python would wait for an unused result
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        raise
    finally:
        service.close()
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def make_service(args: argparse.Namespace) -> DemoService:
    """Return the model and the examples of the options.

    Raises:
        ValueError, FileNotFoundError: options do not fit, or a model or picture does not exist.
    """
    from san.demo.examples import folder_examples, shapes_examples
    from san.demo.service import DemoService
    from san.shapes.world import NAMES
    from san.vocabulary.vocabulary import Vocabulary

    limits = read_limits(args, Limits)
    words, classes = args.words, () if args.vocab_file is None else Vocabulary.from_file(args.vocab_file).classes
    learnt = [each for each in classes if each.vector is not None]
    if classes and (args.examples is not None or not learnt):
        words = Vocabulary(tuple(replace(each, vector=None) for each in classes)).as_text()
    if (args.examples is None) != (words is None):
        raise ValueError("--examples and --words (or --vocab-file) belong together; give both or neither")
    if words is not None:
        parse_words(words, "--words")
    examples = folder_examples(args.examples, words, limits) if words is not None else shapes_examples()
    known = frozenset(word for name in NAMES for word in name.split() if args.model == "shapes")
    return DemoService(load_predictor(args), examples, limits, known_words=known, learnt=learnt)

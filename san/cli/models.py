r"""List the known models: size, licence, and whether they are on this machine.

Examples:
  san models
  san models --json
  san models --cache-dir /data/models

A model of the hub is downloaded at its first use, into the Hugging Face cache (HF_HOME). Without a network, download
its file elsewhere and copy it into the folder that is printed below the list. Other models are given by their file,
their folder (written by `save_pretrained`), or their repository on the hub, owner/name.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from san.cli.options import add_cache_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_cache_option(parser)
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list, without using the network."""
    from san.hub import MODELS, find_here, hand_folder, hub_folder

    rows: list[dict[str, Any]] = []
    for name, known in MODELS.items():
        here = find_here(known, cache_dir=args.cache_dir)
        source = "part of the project" if known.path else f"https://huggingface.co/{known.repo_id}"
        rows.append(
            {
                "name": name,
                "title": known.title,
                "megabytes": round(known.num_bytes / 1e6, 1),
                "licence": known.licence,
                "source": source,
                "file": known.file,
                "path": str(here) if here else None,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(f"{row['name']:18}{row['megabytes']:9.1f} MB  {row['licence']}  {row['title']}")
        print(f"{'':18}{row['path'] or 'not on this machine: ' + row['file'] + ' of ' + row['source']}")
    downloads, by_hand = hub_folder(args.cache_dir), hand_folder(args.cache_dir)
    if downloads and by_hand:
        print(f"\nCaches: {downloads} (downloads), {by_hand} (files downloaded manually)")
    else:
        print("\nThere is no home folder to keep models in; give --cache-dir")
    return 0

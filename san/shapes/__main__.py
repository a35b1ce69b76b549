"""Write the shapes benchmark: ``python -m san.shapes --root datasets``."""

from __future__ import annotations

import argparse
import sys

from san.io.redaction import redact_terminal
from san.shapes.dataset import ShapesSizes, write_shapes


def main(argv: list[str] | None = None) -> int:
    """Command line of `write_shapes`; returns the exit status."""
    redact_terminal()
    default = ShapesSizes()
    parser = argparse.ArgumentParser(prog="python -m san.shapes", description=__doc__)
    parser.add_argument(
        "--root", default="datasets", help="folder of the data sets; writes ROOT/shapes (default: datasets)"
    )
    parser.add_argument(
        "--num-train", type=int, default=default.num_train, help="training images (default: %(default)s)"
    )
    parser.add_argument(
        "--num-val", type=int, default=default.num_val, help="images per validation split (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of the images (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a benchmark of other sizes or seed")
    args = parser.parse_args(argv)
    try:
        folder = write_shapes(args.root, ShapesSizes(args.num_train, args.num_val, args.seed), overwrite=args.overwrite)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m san`: the same as the command `san`."""

from __future__ import annotations

import sys

from san.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

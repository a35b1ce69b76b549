"""The demo as a Space on Hugging Face: `san demo`, where the Space's visitors find it.

Hugging Face sets SPACE_HOST (the Space's host name). In the Space's settings, SAN_MODEL names another model, such as
san_vit_b_16.
"""

from __future__ import annotations

import os
import sys

from san.cli.main import main


def arguments(environment: dict[str, str]) -> list[str]:
    """Return the command line of the demo, from the variables of a Space."""
    host = environment.get("SPACE_HOST", "")
    return [
        "demo",
        *("--model", environment.get("SAN_MODEL", "shapes")),
        *("--host", "0.0.0.0", "--port", environment.get("GRADIO_SERVER_PORT", "7860")),
        *("--allowed-hosts", host, "--embed-in", "https://huggingface.co"),
    ]


if __name__ == "__main__":
    sys.exit(main(arguments(dict(os.environ))))

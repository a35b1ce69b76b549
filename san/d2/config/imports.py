"""MODEL.IMPORTS: the user's modules that a configuration may import, and the meta-architectures they register."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from san.d2.api import META_ARCH_REGISTRY, CfgNode
from san.io.errors import excerpt
from san.user_modules import import_modules

WEIGHTS = ("last_checkpoint", "*.pth", "*.pt", "*.bin", "*.safetensors")
"""Files next to a configuration that may have been downloaded together with it."""


def import_configured(cfg: CfgNode, files: Sequence[Path], asked: Sequence[str]) -> None:
    """Import MODEL.IMPORTS and the modules of the command line, and record both in the configuration.

    Args:
        cfg: changed in place: MODEL.IMPORTS lists all of them.
        files: may set MODEL.IMPORTS; a file next to weights imports only modules that are in `asked` too.
        asked: modules of ``--import``.

    Raises:
        ValueError: a file next to weights names a module that is not in `asked`, or a module does not exist.
    """
    unasked = [name for name in cfg.MODEL.IMPORTS if name not in asked]
    doubtful = [path for path in files if any(any(path.parent.glob(each)) for each in WEIGHTS)]
    if unasked and doubtful:
        raise ValueError(
            f"{doubtful[0]} is in a folder with weights, so its MODEL.IMPORTS {excerpt(unasked)} is not imported; if "
            f"you trust that code, give {excerpt(' '.join(f'--import {name}' for name in unasked))}"
        )
    cfg.MODEL.IMPORTS = [*dict.fromkeys([*cfg.MODEL.IMPORTS, *asked])]
    import_modules(cfg.MODEL.IMPORTS)


def check_model_name(name: str) -> None:
    """Check that MODEL.META_ARCHITECTURE is registered.

    Raises:
        ValueError: it is not; names the nearest registered name.
    """
    if name not in META_ARCH_REGISTRY:
        known = [each for each, _ in META_ARCH_REGISTRY]
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name!r}, which is not registered; set it to {(near or ['SAN'])[0]}, or name "
            "the module that registers it with --import or in MODEL.IMPORTS"
        )

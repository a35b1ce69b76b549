"""MODEL.IMPORTS: which modules of the user's a configuration may import, and the meta-architectures they register."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from san.d2.api import META_ARCH_REGISTRY, CfgNode
from san.io.errors import excerpt
from san.user_modules import import_modules

WEIGHTS = ("last_checkpoint", "*.pth", "*.pt", "*.bin", "*.safetensors")
"""What lies beside a configuration that may have been downloaded with them."""


def import_configured(cfg: CfgNode, files: Sequence[Path], asked: Sequence[str]) -> None:
    """Imports MODEL.IMPORTS and what the command line asks for, and notes both in the configuration.

    Args:
        cfg: changed in place: MODEL.IMPORTS holds all of them.
        files: where MODEL.IMPORTS may be from; they import nothing by themselves where weights lie beside one.
        asked: modules of ``--import``.

    Raises:
        ValueError: such a file names a module that was not asked for, or there is no such module.
    """
    unasked = [name for name in cfg.MODEL.IMPORTS if name not in asked]
    doubtful = [path for path in files if any(any(path.parent.glob(each)) for each in WEIGHTS)]
    if unasked and doubtful:
        raise ValueError(
            f"{doubtful[0]} lies beside weights, so MODEL.IMPORTS {excerpt(unasked)} is not imported because of it; if "
            f"you trust that code, give {excerpt(' '.join(f'--import {name}' for name in unasked))}"
        )
    cfg.MODEL.IMPORTS = [*dict.fromkeys([*cfg.MODEL.IMPORTS, *asked])]
    import_modules(cfg.MODEL.IMPORTS)


def check_model_name(name: str) -> None:
    """Refuses a MODEL.META_ARCHITECTURE that nothing has registered.

    Raises:
        ValueError: naming the nearest one.
    """
    if name not in META_ARCH_REGISTRY:
        known = [each for each, _ in META_ARCH_REGISTRY]
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name!r}, which is not registered; set it to {(near or ['SAN'])[0]}, or name "
            "the module that registers it with --import or in MODEL.IMPORTS"
        )

"""Writes docs/configuration.md: a table of every configuration key, from the fields of the dataclasses.

Example:
  python tools/maintainers/write_configuration_docs.py
"""

from __future__ import annotations

import argparse
import types
import typing
from pathlib import Path
from typing import Any

from san.clip.templates import PROMPTS
from san.d2.config.schema import KEYS, Key
from san.files import replacing
from san.losses import TERMS
from san.model.parts import BIAS_HEADS, FUSIONS, MASK_HEADS, SCORERS, SLS_INITS
from san.registry import Registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
HEAD = """# Configuration keys

Every key of a configuration, with type, default and legal values. A key is set in a YAML file or on the command line:

```bash
san train --config-file configs/shapes/san_shapes_quick.yaml SOLVER.MAX_ITER 50 OUTPUT_DIR output/short
```

- A file holds only what differs from the defaults; `_BASE_` names a file to start from. The defaults are the published
  ViT-B/16 recipe.
- An unknown key, a value of another type and a value out of range are errors that name the key.
- `OUTPUT_DIR/config.yaml` lists the values that a run used.
- "auto" derives a value from the CLIP when the model is built.
- A key that ends in `OPTIONS` holds the options of a part, by name; [extend.md](extend.md) shows how to add parts.

This page is generated from the dataclasses by `python tools/maintainers/write_configuration_docs.py`.
"""
REGISTRIES: dict[str, Registry[Any]] = {
    "MODEL.FUSION.NAME": FUSIONS,
    "MODEL.MASK_HEAD.NAME": MASK_HEADS,
    "MODEL.BIAS_HEAD.NAME": BIAS_HEADS,
    "MODEL.CLIP.SLS_INIT": SLS_INITS,
    "MODEL.PROMPTS.NAME": PROMPTS,
    "MODEL.SCORER.NAME": SCORERS,
    "MODEL.LOSS.TERMS": TERMS,
}


def page() -> str:
    """The text of docs/configuration.md."""
    parts, section = [HEAD], None
    for key in sorted(KEYS.values(), key=lambda each: _section(each.name)):
        if _section(key.name) != section:
            section = _section(key.name)
            parts.append(
                f"\n## {section or 'Run'}\n\n| key | type | default | legal values | meaning |\n|---|---|---|---|---|\n"
            )
        parts.append(_row(key))
    return "".join(parts)


def _section(name: str) -> str:
    """The heading a key stands under: its section, with that of MODEL's own keys before those inside it."""
    sections = name.split(".")[:-1]
    return ".".join(sections[:2] if sections[:1] == ["MODEL"] else sections[:1])


def _row(key: Key) -> str:
    legal = key.constraint.text()
    if key.name in REGISTRIES:
        legal = f"registered: {', '.join(REGISTRIES[key.name])}"
    cells = (f"`{key.name}`", _type(key.hint), _default(key), legal, key.help)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _type(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    if origin is tuple:
        length = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"list of {length}{_type(arguments[0])}" if arguments[0] is not Any else "list"
    name = getattr(origin or hint, "__name__", str(hint))
    return {"Mapping": "mapping", "dict": "mapping"}.get(name, name)


def _default(key: Key) -> str:
    if key.name == "MODEL.DEVICE":
        return "cuda or cpu"
    return "empty" if key.default in ("", [], {}) else f"`{key.default}`"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with replacing(PAGE) as partial:
        partial.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(KEYS)} keys")

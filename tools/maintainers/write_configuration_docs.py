"""Writes docs/configuration.md: a table of every configuration key, from the fields of the dataclasses.

Example:
  python tools/maintainers/write_configuration_docs.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from san.d2.config.coerce import wanted
from san.d2.config.schema import KEYS, Key
from san.io.files import replacing
from san.losses import TERMS
from san.model.parts import REGISTRIES

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
    for registry in (*REGISTRIES.values(), TERMS):
        if registry.place == key.field:
            legal = f"registered: {', '.join(registry)}"
    cells = (f"`{key.name}`", wanted(key.hint).removeprefix("a "), _default(key), legal, key.help)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _default(key: Key) -> str:
    if key.name == "MODEL.DEVICE":
        return "cuda or cpu"
    return "empty" if key.default in ("", [], {}) else f"`{key.default}`"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with replacing(PAGE) as partial:
        partial.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(KEYS)} keys")

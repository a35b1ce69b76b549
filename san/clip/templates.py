"""The prompt template sets by name; templates.json is their one source."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def _sets() -> dict[str, tuple[str, ...]]:
    text = files("san.clip").joinpath("templates.json").read_text(encoding="utf-8")
    return {name: tuple(prompts) for name, prompts in json.loads(text).items()}


def template_names() -> tuple[str, ...]:
    """Names of the template sets there are."""
    return tuple(sorted(_sets()))


def load_templates(name: str) -> tuple[str, ...]:
    """The prompts of a set, each with one "{}" for the class name.

    Args:
        name: "vild" (14 prompts, the published default), "imagenet" (80) or "plain" (the bare name).

    Raises:
        ValueError: there is no such set.
    """
    sets = _sets()
    if name not in sets:
        raise ValueError(f"unknown template set {name!r}; set MODEL.CLIP.TEMPLATES to one of {', '.join(sorted(sets))}")
    return sets[name]

"""The prompt template sets by name; templates.json is their one source."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from san.clip.prompts import Prompts
from san.io.errors import excerpt
from san.record import FieldError
from san.registry import NoOptions, Registry

PROMPTS: Registry[Callable[..., Prompts]] = Registry(
    "kind of prompts", "prompts.name", "prompts.options.", own=__name__
)
"""Called with options and the templates of `clip.templates`, and returns what makes prompts of a name."""

MAX_TEMPLATES, MAX_LENGTH = 1000, 500
"""Of a list of one's own, and characters of each."""


@dataclass(frozen=True)
class Templates:
    """Makes prompts by putting a name into templates; see `san.clip.text_embedder.Prompts`.

    Attributes:
        texts: as `load_templates` gives them.
        learnt_contexts: the words in front of the name whose token embeddings are trained, per template; () for none.
    """

    texts: tuple[str, ...]
    learnt_contexts: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Equal for equal templates."""
        return str(self.texts)

    def __call__(self, name: str) -> list[str]:
        """A prompt per template."""
        return [template.format(name) for template in self.texts]


@PROMPTS.register("templates")
def template_prompts(options: NoOptions, templates: Sequence[str]) -> Templates:
    """The prompts of `clip.templates`, see `load_templates`."""
    return Templates(tuple(templates))


@PROMPTS.register("learnt_context")
def learnt_context_prompts(options: NoOptions, templates: Sequence[str]) -> Templates:
    """The prompts of `clip.templates`, of which the words in front of the name are learnt, as in CoOp.

    A learnt offset, zero at first, is added to the embedding of each of their tokens. All names share it.

    Source: CoOp, arXiv 2109.01134, with unified context.

    Raises:
        FieldError: a template has no word in front of the name, or the name continues its last word.
    """
    contexts = tuple(text.split("{}")[0] for text in templates)
    for text, context in zip(templates, contexts, strict=True):
        if not context.strip() or context[-1].isalnum():
            raise FieldError(
                f"clip.templates holds {excerpt(text)}, but the prompts learnt_context learn the words in front of the "
                "name; give templates with words and a blank there, such as 'a photo of a {}.'",
                "clip.templates",
            )
    return Templates(tuple(templates), contexts)


@cache
def _sets() -> dict[str, tuple[str, ...]]:
    text = files("san.clip").joinpath("templates.json").read_text(encoding="utf-8")
    return {name: tuple(prompts) for name, prompts in json.loads(text).items()}


def load_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The prompts of a set, or of your own list, each with one "{}" for the class name.

    Args:
        templates: "vild" (14 prompts, the published default), "imagenet" (80) or "plain" (the bare name); or the
            prompts themselves.

    Raises:
        ValueError: there is no such set, or a prompt is not of this form.
    """
    sets = _sets()
    if isinstance(templates, str):
        if templates not in sets:
            raise FieldError(
                f"unknown template set {excerpt(templates)}; set clip.templates to one of "
                f"{', '.join(sorted(sets))}, or to a list of texts, each with one {{}} for the class's name",
                "clip.templates",
            )
        return sets[templates]
    if not 1 <= len(templates) <= MAX_TEMPLATES:
        raise FieldError(f"clip.templates lists {len(templates)} texts; give 1 to {MAX_TEMPLATES}", "clip.templates")
    for text in templates:
        parts = text.split("{}") if isinstance(text, str) and len(text) <= MAX_LENGTH else []
        if len(parts) != 2 or any(brace in part for brace in "{}" for part in parts):
            raise FieldError(
                f"clip.templates holds {excerpt(text)}; give texts of at most {MAX_LENGTH} characters with one "
                "{} for the class's name and no other brace, such as 'a photo of a {}.'",
                "clip.templates",
            )
    return tuple(templates)

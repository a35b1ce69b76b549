"""Named sets of prompt templates, read from templates.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from san.clip.grammar import plural_of, with_article
from san.clip.prompts import Prompts
from san.io.errors import excerpt
from san.record import FieldError, Options, option
from san.registry import NoOptions, Registry

PROMPTS: Registry[Callable[..., Prompts]] = Registry(
    "kind of prompts", "prompts.name", "prompts.options.", own=__name__
)
"""Entries are called with their options and the templates of `clip.templates`, and return a `Prompts`."""

MAX_TEMPLATES, MAX_LENGTH = 1000, 500
"""Limits of a custom list: number of templates, and characters of each."""


@dataclass(frozen=True)
class Templates:
    """Makes prompts by inserting a name into templates; a `san.clip.prompts.Prompts`.

    Attributes:
        texts: templates of `load_templates`.
        learnt_contexts: per template, the words before the name with trained token embeddings; () for none.
    """

    texts: tuple[str, ...]
    learnt_contexts: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Return a text that is equal if and only if the templates are equal."""
        return str(self.texts)

    def __call__(self, name: str) -> list[str]:
        """Return one prompt per template."""
        return [template.format(name) for template in self.texts]


@PROMPTS.register("templates")
def template_prompts(options: NoOptions, templates: Sequence[str]) -> Templates:
    """Make the prompts of `clip.templates`; see `load_templates`."""
    return Templates(tuple(templates))


@PROMPTS.register("learnt_context")
def learnt_context_prompts(options: NoOptions, templates: Sequence[str]) -> Templates:
    """Make the prompts of `clip.templates` with a learnt context, as in CoOp: the words before the name.

    A learnt offset, initially zero, is added to the embedding of each token of these words. All names share it.

    Source: docs/extend.md#prompts; CoOp, arXiv 2109.01134, with a context that all names share.

    Raises:
        FieldError: a template has no word before the name, or a letter or digit directly before it.
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


@dataclass(frozen=True)
class GrammarOptions(Options):
    """What fits a prompt to its name."""

    articles: bool = option(
        True, 'whether "a" in a template becomes "an" in front of a vowel, and none before a plural'
    )
    plurals: bool = option(False, "whether each name has prompts of its plural too, which are averaged in")


@PROMPTS.register("grammatical")
class GrammaticalPrompts:
    """Inserts a name into templates with the article, and the plural, of English; see `san.clip.grammar`."""

    Options = GrammarOptions

    def __init__(self, options: GrammarOptions, templates: Sequence[str]) -> None:
        self.options, self.texts = options, tuple(templates)

    @property
    def identity(self) -> str:
        """Return a text that is equal if and only if the prompts are equal."""
        return f"{self.texts} {self.options}"

    def __call__(self, name: str) -> list[str]:
        """Return one prompt per template, then one of its plural each, if there are plurals."""
        forms = [name, plural_of(name)] if self.options.plurals else [name]
        insert = with_article if self.options.articles else str.format
        return [insert(template, form) for form in forms for template in self.texts]


@cache
def _sets() -> dict[str, tuple[str, ...]]:
    text = files("san.clip").joinpath("templates.json").read_text(encoding="utf-8")
    return {name: tuple(prompts) for name, prompts in json.loads(text).items()}


def load_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates of a set, or check a custom list; each has one "{}" for the class name.

    Args:
        templates: "vild" (14 prompts, the published default), "imagenet" (80) or "plain" (the bare name); or the
            prompts themselves.

    Raises:
        ValueError: the set does not exist, or a prompt is invalid.
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

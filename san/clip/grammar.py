"""English articles and plurals of class names, by rules that need no dictionary."""

from __future__ import annotations

import re

_ARTICLE = re.compile(r"\b(?P<article>[Aa])n? (?P<adjective>(?:\w+ )?)$")
"""An article, and at most one word, in front of a name."""

_AN = re.compile(r"(?!uni|use|usu|ute|uti|eu|ewe|one\b|once\b|ubi)[aeiou]|hour|honest|heir", re.IGNORECASE)
"""Beginnings that take "an"."""

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "sheep": "sheep", "fish": "fish", "aircraft": "aircraft", "leaf": "leaves",
    "knife": "knives", "shelf": "shelves", "loaf": "loaves", "wolf": "wolves", "calf": "calves", "scarf": "scarves",
}  # fmt: skip
_PLURALS = {*_IRREGULAR.values(), "skis"} - {"sheep", "fish", "aircraft"}
_SINGULAR_ENDS = ("ss", "us", "is", "as", "lens")
"""Ends of words that end in s and are no plurals: glass, bus, tennis, canvas, lens."""


def is_plural(name: str) -> bool:
    """Whether a name is a plural, such as "clouds" and "chests of drawers", by its last word before "of" or a comma."""
    _, word, _ = _parts(name)
    lower = word.lower()
    return lower in _PLURALS or (lower.endswith("s") and not lower.endswith(_SINGULAR_ENDS))


def plural_of(name: str) -> str:
    """Return the plural of a name; a plural is returned unchanged."""
    before, word, after = _parts(name)
    lower = word.lower()
    if is_plural(name) or not re.search(r"[a-z]$", lower):
        return name
    if lower in _IRREGULAR:
        plural = word[:1] + _IRREGULAR[lower][1:]
    elif re.search(r"[^aeiou]y$", lower):
        plural = word[:-1] + "ies"
    else:
        plural = word + ("es" if re.search(r"(s|x|z|ch|sh)$", lower) else "s")
    return before + plural + after


def with_article(template: str, name: str) -> str:
    """Insert a name into a template, with the article that fits it.

    An "a" or "an" in front of the name fits its first letter, and is left out in front of a plural.

    Args:
        template: a text with one {}.
        name: the name.
    """
    before, after = template.split("{}")
    found = _ARTICLE.search(before)
    if found is None:
        return template.format(name)
    rest, adjective = before[: found.start()], found["adjective"]
    if is_plural(name):
        rest = re.sub(r"\b(There) is $", r"\1 are ", rest)
        return rest + adjective + name + after
    article = found["article"] + ("n" if _AN.match(adjective or name) else "")
    return f"{rest}{article} {adjective}{name}{after}"


def _parts(name: str) -> tuple[str, str, str]:
    """Split a name at the word that takes the plural: what is before it, the word, and what is after it."""
    head = re.split(r" of |,", name, maxsplit=1)[0]
    before, blank, word = head.rpartition(" ")
    return before + blank, word, name[len(head) :]

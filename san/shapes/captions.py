"""Captions of scenes, from which the small CLIP learns language.

A caption names some or all things in a picture, without positions. `facts` lists what is true of a picture, so that the
contrastive training can use every true pair of a batch as a positive, not only the pair that a caption was written for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from san.shapes.world import GROUNDS, SHAPES

NAME_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
    "a {}",
    "{}",
    "the {}",
    "a picture of the {}",
    "an image with a {}.",
)
"""Sentences about one name: the 14 ViLD templates, which the classifier uses, and a few simpler ones. As in the
classifier, the words small, medium and large have no meaning."""

SCENE_TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}.",
    "This is a photo of {}",
    "There is {} in the scene",
    "a picture of {}",
    "an image with {}.",
)
"""Sentences about several names, joined by `join_names`."""


@dataclass(frozen=True)
class Caption:
    """A sentence and the facts it states: names, or a shape without its colour."""

    text: str
    names: frozenset[str]


def join_names(things: Sequence[str], ground: str | None) -> str:
    """Join names to a phrase such as "a red star, a blue ring and a white bar on dotted ground".

    Args:
        things: thing names in order; may be empty if there is a ground.
        ground: name of the ground, or None to omit it.
    """
    phrases = [f"a {name}" for name in things]
    phrase = " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else "".join(phrases)
    if ground is None:
        return phrase
    return f"{phrase} on {ground}" if phrase else ground


def write_caption(rng: np.random.Generator, names: Sequence[str], *, single: float = 0.6) -> Caption:
    """Write one caption of a picture.

    Args:
        rng: the only source of randomness.
        names: names in the picture (things in any order and one ground), e.g. `Scene.names`.
        single: probability that the caption states a single name; else it lists one or more things, with or without the
            ground.
    """
    things = [name for name in names if name not in GROUNDS]
    grounds = [name for name in names if name in GROUNDS]
    if not things or rng.random() < single:
        pool = list(grounds) if not things or (grounds and rng.random() < 0.15) else things
        name = pool[int(rng.integers(len(pool)))]
        return Caption(NAME_TEMPLATES[int(rng.integers(len(NAME_TEMPLATES)))].format(name), frozenset([name]))
    order = [things[i] for i in rng.permutation(len(things))]
    kept = order[: int(rng.integers(1, len(order) + 1))]
    ground = grounds[0] if grounds and (len(kept) == 1 or rng.random() < 0.6) else None
    text = SCENE_TEMPLATES[int(rng.integers(len(SCENE_TEMPLATES)))].format(join_names(kept, ground))
    return Caption(text, frozenset(kept) | frozenset([ground] if ground else []))


def sibling_captions(caption: Caption) -> list[Caption]:
    """Return hard negatives: a single-name caption with its shape (or ground) replaced by each of the others."""
    if len(caption.names) != 1:
        return []
    name = next(iter(caption.names))
    if name in GROUNDS:
        others = [other for other in GROUNDS if other != name]
    elif name in SHAPES:
        others = [other for other in SHAPES if other != name]
    else:
        colour, shape = name.split()
        others = [f"{colour} {other}" for other in SHAPES if other != shape]
    return [Caption(caption.text.replace(name, other), frozenset([other])) for other in others]


def word_caption(rng: np.random.Generator, names: Sequence[str], *, ground: bool) -> Caption | None:
    """Write a caption that states one shape without its colour ("a photo of a star"), or the ground.

    Returns:
        the caption; None if the picture has no such thing.
    """
    pool = [name if ground else name.split()[1] for name in names if (name in GROUNDS) == ground]
    if not pool:
        return None
    word = pool[int(rng.integers(len(pool)))]
    return Caption(NAME_TEMPLATES[int(rng.integers(len(NAME_TEMPLATES)))].format(word), frozenset([word]))


def facts(names: Iterable[str]) -> frozenset[str]:
    """Return all facts of a picture with these names: the names, and the shapes among them."""
    names = list(names)
    return frozenset(names) | {name.split()[1] for name in names if name not in GROUNDS}

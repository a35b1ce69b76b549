"""Training data of the small CLIP: banks of pictures and batches of captions; and its zero-shot accuracy.

Legend: N pictures, M captions, F facts (`FACTS`), S picture size, (h, w) CLIP grid.
Pictures are rendered at half the scenes' size, as SAN's CLIP sees a scene at an input scale of 0.5. Training gets no
outlines: a picture has the set of its facts, a caption the set of facts that it states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from san.shapes.captions import Caption, facts, sibling_captions, word_caption, write_caption
from san.shapes.render import render
from san.shapes.world import NAMES, SCENE_SIZE, SHAPES, THINGS, Scene, SceneStyle, class_index, scene_at

PICTURE_SIZE = SCENE_SIZE // 2
CROP_SIZE = 40
FACTS: tuple[str, ...] = (*NAMES, *SHAPES)
_FACT_INDEX = {fact: index for index, fact in enumerate(FACTS)}


@dataclass(frozen=True)
class Bank:
    """Pictures that are rendered once and sampled many times.

    Attributes:
        images: (N, S, S, 3) uint8.
        names: names in each picture: its things and its ground.
        holds: (N, F) bool, the facts that are true of each picture.
    """

    images: NDArray[np.uint8]
    names: tuple[tuple[str, ...], ...]
    holds: NDArray[np.bool_]


@dataclass(frozen=True)
class CaptionStyle:
    """Probabilities of the kinds of captions in a batch.

    Attributes:
        single: probability that a picture's caption states a single name.
        shape_words: probability of a further caption that states only a shape ("a photo of a star").
        grounds: probability of a further caption that states only the ground.
        siblings: probability of each hard negative of a single-name caption.
    """

    single: float = 0.6
    shape_words: float = 0.15
    grounds: float = 0.25
    siblings: float = 0.4


def _chunks(scenes: Sequence[Scene], size: int) -> NDArray[np.uint8]:
    return np.concatenate([render(scenes[i : i + 256], size)[0] for i in range(0, len(scenes), 256)])


def fact_table(names: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Return the facts that are true of pictures with these names, (N, F)."""
    found = np.zeros((len(names), len(FACTS)), dtype=bool)
    for row, own in zip(found, names, strict=True):
        row[[_FACT_INDEX[fact] for fact in facts(own)]] = True
    return found


def _bank(images: NDArray[np.uint8], scenes: Sequence[Scene]) -> Bank:
    names = tuple(scene.names for scene in scenes)
    return Bank(images, names, fact_table(names))


def picture_bank(seed: int, count: int, style: SceneStyle, size: int = PICTURE_SIZE) -> Bank:
    """Render ``count`` pictures of whole scenes with all things, including novel ones.

    Args:
        seed: seed of the stream of scenes.
        count: N.
        style: number and sizes of things.
        size: S.
    """
    scenes = [scene_at(seed, index, THINGS, style) for index in range(count)]
    return _bank(_chunks(scenes, size), scenes)


def crop_bank(seed: int, count: int) -> Bank:
    """Render ``count`` small pictures (CROP_SIZE) framed around one thing, at a quarter of the cost."""
    style = SceneStyle(num_things=(1, 1), thing_size=(32.0, 76.0))
    scenes = [scene_at(seed, index, THINGS, style) for index in range(count)]
    wide = _chunks(scenes, PICTURE_SIZE)
    rng = np.random.default_rng((seed, count))
    crops = np.empty((count, CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8)
    for crop, image, scene in zip(crops, wide, scenes, strict=True):
        middle = np.asarray(scene.things[0].centre) * PICTURE_SIZE / SCENE_SIZE + rng.uniform(-5, 5, 2)
        y, x = np.clip(middle - CROP_SIZE / 2, 0, PICTURE_SIZE - CROP_SIZE).astype(int)
        crop[:] = image[y : y + CROP_SIZE, x : x + CROP_SIZE]
    return _bank(crops, scenes)


def write_captions(rng: np.random.Generator, names: Sequence[Sequence[str]], style: CaptionStyle) -> list[Caption]:
    """Write M distinct captions for a batch of pictures, including hard negatives.

    Args:
        rng: the only source of randomness.
        names: names in each picture.
        style: probabilities of the kinds of captions.
    """
    captions: dict[str, Caption] = {}
    for held in names:
        own = [write_caption(rng, held, single=style.single)]
        if rng.random() < style.shape_words and (caption := word_caption(rng, held, ground=False)):
            own.append(caption)
        if rng.random() < style.grounds and (caption := word_caption(rng, held, ground=True)):
            own.append(caption)
        captions.update((caption.text, caption) for caption in own)
    for caption in list(captions.values()):
        for other in sibling_captions(caption):
            if rng.random() < style.siblings:
                captions.setdefault(other.text, other)
    return list(captions.values())


def true_pairs(holds: NDArray[np.bool_], captions: Sequence[Caption]) -> NDArray[np.bool_]:
    """Return which captions are true of which pictures: (N, F) facts and M captions -> (N, M)."""
    states = np.zeros((len(captions), len(FACTS)), dtype=np.float32)
    for row, caption in zip(states, captions, strict=True):
        row[[_FACT_INDEX[fact] for fact in caption.names]] = 1
    pairs: NDArray[np.bool_] = holds.astype(np.float32) @ states.T == states.sum(axis=1)
    return pairs


def turned(rng: np.random.Generator, *batches: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Rotate pictures by a random multiple of 90 degrees and randomly mirror them; names do not depend on either.

    Args:
        rng: the only source of randomness.
        batches: pictures (N, S, S, 3) and maps of them (N, G, G, any), which are turned the same way.
    """
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    rotated = [np.rot90(batch, turns, (1, 2)) for batch in batches]
    return tuple(np.ascontiguousarray(batch[:, :, ::-1] if mirrored else batch) for batch in rotated)


def zero_shot(
    embed_images: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    text_embed: NDArray[np.float32],
    *,
    seed: int = 900,
    count: int = 600,
) -> dict[str, float]:
    """Compute the zero-shot accuracy on new pictures with one thing of any name, in percent.

    Args:
        embed_images: (N, S, S, 3) uint8 -> unit-length embeddings (N, E).
        text_embed: (36, E) unit-length embeddings of `world.NAMES`.
        seed: seed of the stream of scenes; training uses others.
        count: N.

    Returns:
        ``things``, ``seen`` and ``novel`` (among the 32 things), ``grounds`` (among the 4 grounds).
    """
    bank = picture_bank(seed, count, SceneStyle(num_things=(1, 1)))
    scores = np.concatenate([embed_images(bank.images[i : i + 100]) for i in range(0, count, 100)]) @ text_embed.T
    things = np.array([class_index(name) for name in THINGS])
    grounds = np.array([index for index in range(len(NAMES)) if index not in set(things.tolist())])
    thing = np.array([class_index(names[0]) for names in bank.names])
    ground = np.array([class_index(names[-1]) for names in bank.names])
    right = things[scores[:, things].argmax(axis=1)] == thing
    right_ground = grounds[scores[:, grounds].argmax(axis=1)] == ground
    novel = thing > grounds.max()
    parts = {"things": right, "seen": right[~novel], "novel": right[novel], "grounds": right_ground}
    return {key: round(100 * float(part.mean()), 2) for key, part in parts.items()}

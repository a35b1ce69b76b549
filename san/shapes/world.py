"""The shapes world: its classes, and the random generation of scenes.

A *thing* is a combination of a colour and a shape ("red star"); a *ground* is a background texture ("striped ground").
A scene is a small record of numbers (`Scene`) that depends only on ``numpy.random.default_rng((seed, index))``, so that
image ``index`` of a split is the same on every machine and in any order. `san.shapes.render` renders scenes to
images and label maps, `san.shapes.captions` describes them.

All lengths are in scene pixels: a scene is `SCENE_SIZE` x `SCENE_SIZE`, at any resolution of the rendering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SCENE_SIZE = 128
"""Height and width of a scene in pixels."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.10),
    "yellow": (0.95, 0.85, 0.08),
    "green": (0.08, 0.62, 0.14),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.10, 0.18, 0.88),
    "purple": (0.72, 0.10, 0.78),
    "white": (0.96, 0.96, 0.96),
    "black": (0.05, 0.05, 0.05),
}
"""Mean RGB of each colour word, 0..1; each thing has a random shade of it."""

SHAPES: tuple[str, ...] = ("star", "ring", "square", "bar")
GROUNDS: tuple[str, ...] = ("plain ground", "striped ground", "dotted ground", "checked ground")

THINGS: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
NOVEL: tuple[str, ...] = tuple(f"{colour} {SHAPES[i % len(SHAPES)]}" for i, colour in enumerate(COLOURS))
"""Things that occur in captions but never with a mask in training: one shape of every colour, two colours of every
shape."""
SEEN: tuple[str, ...] = tuple(name for name in THINGS if name not in NOVEL)

NAMES: tuple[str, ...] = SEEN + GROUNDS + NOVEL
"""All names in the order of the label maps: first those with masks in training (0..27), then the novel ones
(28..35)."""
NUM_TRAIN_CLASSES = len(SEEN) + len(GROUNDS)

FAR_WORDS = frozenset({"cyan", "black", "bar"})
"""Words that only the captions of the small CLIP have, if a run trains on the narrow split."""
FAR: tuple[str, ...] = tuple(name for name in THINGS if FAR_WORDS & {*name.split()})
NEAR: tuple[str, ...] = tuple(name for name in NOVEL if name not in FAR)
"""Novel things of a colour and a shape that occur in the narrow split, but not together."""
NARROW_SEEN: tuple[str, ...] = tuple(name for name in SEEN if name not in FAR)
"""Things of the narrow split: two shapes of each of six colours, four colours of each of three shapes."""

_INDEX = {name: index for index, name in enumerate(NAMES)}


@dataclass(frozen=True)
class SceneStyle:
    """Ranges from which scenes are drawn.

    Attributes:
        num_things: minimum and maximum number of things in a scene.
        thing_size: minimum and maximum diameter of a thing, in scene pixels.
        margin: minimum distance of a thing's centre from the border, as a share of its diameter (0.5: never cut off).
        spread: minimum distance of the centres of two things, as a share of the mean of their diameters.
    """

    num_things: tuple[int, int] = (2, 4)
    thing_size: tuple[float, float] = (32.0, 72.0)
    margin: float = 0.35
    spread: float = 0.6


REPEATED_STYLE = SceneStyle(num_things=(3, 5), thing_size=(30.0, 58.0))
"""Ranges of the scenes in which a name may occur several times."""


@dataclass(frozen=True)
class Thing:
    """One thing of a scene; lengths in scene pixels, angles in radians, colours 0..1."""

    name: str
    centre: tuple[float, float]  # (y, x)
    radius: tuple[float, float]  # half size along its own two axes
    angle: float
    colour: tuple[float, float, float]
    shading: tuple[float, float]  # relative change of brightness from the middle to the rim, along its own two axes
    texture: tuple[float, float, float]  # amplitude, cycles per diameter, phase

    @property
    def shape(self) -> str:
        """The shape word of the name."""
        return self.name.split()[1]


@dataclass(frozen=True)
class Ground:
    """The texture behind the things; two muted colours in a pattern."""

    name: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    period: float
    angle: float
    phase: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """All parameters of an image. ``things`` are in painting order: later ones cover earlier ones."""

    ground: Ground
    things: tuple[Thing, ...]
    light: tuple[float, float, float]  # gain, its slope along y, its slope along x (relative, edge to edge)
    noise: float  # standard deviation of the pixel noise, 0..1 scale
    blur: float  # weight of each neighbour in the three-tap blur, 0 (none) .. 0.25
    noise_seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the things in painting order, then of the ground."""
        return (*(thing.name for thing in self.things), self.ground.name)


def class_index(name: str) -> int:
    """Return the label-map value of a name.

    Raises:
        ValueError: the world has no such name.
    """
    if name not in _INDEX:
        raise ValueError(f"the shapes world has no class {name!r}; it has {', '.join(NAMES)}")
    return _INDEX[name]


def draw_scene(
    rng: np.random.Generator,
    things: Sequence[str] = THINGS,
    style: SceneStyle | None = None,
    *,
    required: Sequence[str] = (),
) -> Scene:
    """Draw one scene.

    Args:
        rng: the only source of randomness.
        things: names to draw things from; no name occurs twice in a scene.
        style: ranges of counts and sizes; the default is that of the data sets.
        required: if given (a subset of ``things``), the scene contains at least one of these names.

    Returns:
        a scene of things on one ground; the centre of each thing is visible, because centres keep a distance.

    Raises:
        ValueError: there are fewer names than things.
    """
    style = style or SceneStyle()
    low, high = style.num_things
    if high > len(things):
        raise ValueError(f"a scene of up to {high} things needs as many names, got {len(things)}; pass more names")
    count = int(rng.integers(low, high + 1))
    names = [str(name) for name in rng.choice(np.asarray(things, dtype=object), size=count, replace=False)]
    if required and count and not set(names) & set(required):
        names[int(rng.integers(count))] = str(rng.choice(np.asarray(required, dtype=object)))
    drawn: list[Thing] = []
    for name in names:
        drawn.append(_draw_thing(rng, name, style, drawn))
    return _scene_of(rng, drawn)


def _scene_of(rng: np.random.Generator, things: Sequence[Thing]) -> Scene:
    """Draw what a scene has besides its things."""
    return Scene(
        ground=_draw_ground(rng),
        things=tuple(things),
        light=(float(rng.uniform(0.88, 1.08)), float(rng.uniform(-0.12, 0.12)), float(rng.uniform(-0.12, 0.12))),
        noise=float(rng.uniform(0.015, 0.05)),
        blur=float(rng.uniform(0.0, 0.22)),
        noise_seed=int(rng.integers(2**31)),
    )


def scene_at(
    seed: int,
    index: int,
    things: Sequence[str] = THINGS,
    style: SceneStyle | None = None,
    *,
    required: Sequence[str] = (),
) -> Scene:
    """Return scene ``index`` of the infinite stream ``seed``; deterministic."""
    return draw_scene(np.random.default_rng((seed, index)), things, style, required=required)


def repeated_scene_at(
    seed: int, stream: int, index: int, things: Sequence[str] = THINGS, *, required: Sequence[str] = ()
) -> Scene:
    """Return scene ``index`` of an infinite stream of scenes in which a name may occur several times; deterministic.

    A scene has 3 to 5 things. In most scenes one name occurs two or three times; half of these copies touch or overlap
    an earlier one.

    Args:
        seed: seed of the streams.
        stream: number of the stream, 1 or more; the scenes of `scene_at` are others.
        index: number of the scene.
        things: names to draw things from, five or more.
        required: if given (a subset of ``things``), the scene contains at least one of these names.
    """
    assert stream > 0, "a 0 would repeat the numbers of scene_at"
    rng = np.random.default_rng((seed, index, stream))
    count = int(rng.integers(REPEATED_STYLE.num_things[0], REPEATED_STYLE.num_things[1] + 1))
    copies = int(rng.choice(3, p=(0.15, 0.5, 0.35))) + 1
    num_names = count - copies + 1
    names = [str(name) for name in rng.choice(np.asarray(things, dtype=object), size=num_names, replace=False)]
    if required and not set(names) & set(required):
        names[int(rng.integers(num_names))] = str(rng.choice(np.asarray(required, dtype=object)))
    names += names[:1] * (copies - 1)
    drawn: list[Thing] = []
    for place in rng.permutation(count).tolist():
        thing = _draw_thing(rng, names[place], REPEATED_STYLE, drawn)
        siblings = [other for other in drawn if other.name == thing.name]
        if siblings and rng.random() < 0.5:
            thing = replace(thing, centre=_beside(rng, thing, siblings[-1], drawn))
        drawn.append(thing)
    return _scene_of(rng, drawn)


def _beside(rng: np.random.Generator, thing: Thing, sibling: Thing, others: Sequence[Thing]) -> tuple[float, float]:
    """Draw the centre (y, x) of a thing that touches or overlaps another one, far from the centres of the others."""
    radius = max(thing.radius)
    distance = rng.uniform(0.75, 1.05) * (radius + max(sibling.radius))
    angles = rng.uniform(0.0, 2 * np.pi, size=12)
    candidates = np.array(sibling.centre) + distance * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    margin = REPEATED_STYLE.margin * 2 * radius
    candidates = np.clip(candidates, margin, SCENE_SIZE - margin)
    centres = np.array([other.centre for other in others])
    radii = np.array([max(other.radius) for other in others])
    gaps = np.linalg.norm(candidates[:, None] - centres, axis=-1) / (radii + radius)
    y, x = candidates[int(gaps.min(axis=1).argmax())]
    return float(y), float(x)


def _draw_thing(rng: np.random.Generator, name: str, style: SceneStyle, others: Sequence[Thing]) -> Thing:
    """Draw one thing at a distance from the others' centres, if a few tries find space."""
    diameter = float(rng.uniform(*style.thing_size))
    low, high = style.margin * diameter, SCENE_SIZE - style.margin * diameter
    candidates = rng.uniform(low, high, size=(12, 2))
    centre = candidates[0]
    if others:
        centres = np.array([other.centre for other in others])
        radii = np.array([max(other.radius) for other in others])
        gaps = np.linalg.norm(candidates[:, None] - centres, axis=-1) / (radii + diameter / 2)
        closest = gaps.min(axis=1)
        roomy = np.flatnonzero(closest >= style.spread)
        centre = candidates[roomy[0] if len(roomy) else int(closest.argmax())]
    stretch = float(rng.uniform(-0.1, 0.1))
    rgb = np.asarray(COLOURS[name.split()[0]])
    colour = np.clip(rgb + rng.normal(0.0, 0.035, 3) + rng.normal(0.0, 0.02), 0.0, 1.0)
    return Thing(
        name=name,
        centre=(float(centre[0]), float(centre[1])),
        radius=(diameter / 2 * (1 - stretch), diameter / 2 * (1 + stretch)),
        angle=float(rng.uniform(0.0, 2 * np.pi)),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        shading=(float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.15, 0.15))),
        texture=(float(rng.uniform(0.0, 0.09)), float(rng.uniform(2.0, 7.0)), float(rng.uniform(0.0, 2 * np.pi))),
    )


def _draw_ground(rng: np.random.Generator) -> Ground:
    """Draw one ground: two shades of a greyish colour, far from the colours of things."""
    name = GROUNDS[int(rng.integers(len(GROUNDS)))]
    base = rng.uniform(0.40, 0.62) + rng.normal(0.0, 0.03, 3)
    step = rng.uniform(0.07, 0.11) + rng.normal(0.0, 0.012, 3)
    dark, bright = np.clip(base - step, 0, 1), np.clip(base + step, 0, 1)
    if rng.random() < 0.5:
        dark, bright = bright, dark
    return Ground(
        name=name,
        colours=(
            (float(dark[0]), float(dark[1]), float(dark[2])),
            (float(bright[0]), float(bright[1]), float(bright[2])),
        ),
        period=float(rng.uniform(12.0, 22.0)),
        angle=float(rng.uniform(0.0, 2 * np.pi)),
        phase=(float(rng.random()), float(rng.random())),
    )

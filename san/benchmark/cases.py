"""The cases that are measured, as records and tables.

Sizes are (height, width) in pixels. Weights are random: time does not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

SQUARE, WIDE = (640, 640, 640, 640), (640, 853, 512, 683)
"""Height and width of the image in the network, then of the label map: a square crop, and a photograph of ADE20K."""

TASKS = {
    "inference": "normalised image to label map; the vocabulary's text embedding is cached",
    "text": "a vocabulary's names, in 14 templates each, to text embeddings",
    "training": "one step: forward, losses on made-up label maps, backward, clipping, update",
    "loading": "32 samples, each a 640x480 JPEG with its label map, read, augmented and cut to 640x640",
    "evaluation": "inference, then counting the label map against a made-up truth",
}

MODEL_TITLES = {"vit_b16": "B/16", "vit_l14_336": "L/14"}
"""Names of models in tables."""


DTYPES = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
"""Number types in names of cases."""


@dataclass(frozen=True)
class Case:
    """One case to measure.

    Attributes:
        task: one of TASKS.
        model: name of a variant; its weights are random.
        height, width: size of the network's input image.
        out_height, out_width: size of the label map.
        classes: size of the vocabulary.
        batch: images per run.
        dtype: one of DTYPES: "float32", "bfloat16" for mixed precision, or "int8", which is not supported in training.
        compiled: compile the network with torch.compile.
        queries: number of queries; None for the model's own.
        workers: number of loading processes; 0 loads in the main process.

    Raises:
        ValueError: a task or number type is unknown, or a number is too small.
    """

    task: str
    model: str = "vit_b16"
    height: int = 640
    width: int = 640
    out_height: int = 640
    out_width: int = 640
    classes: int = 171
    batch: int = 1
    dtype: str = "float32"
    compiled: bool = False
    queries: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        """Raise for unknown names and for numbers that are too small."""
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; choose one of {', '.join(TASKS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown number type {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if self.dtype == "int8" and self.task == "training":
            raise ValueError("int8 is for prediction; choose float32 or bfloat16 for a training step")
        sizes = (self.height, self.width, self.out_height, self.out_width, self.classes, self.batch, self.queries or 1)
        if min(sizes) < 1 or self.workers < 0:
            raise ValueError(f"sizes, classes, batch and queries must be 1 or more and workers 0 or more; got {self}")

    @property
    def name(self) -> str:
        """Unique name, which --cases matches."""
        if self.task == "loading":
            return f"loading/{self.workers or 'no'}-workers"
        if self.task == "text":
            return f"text/{self.model}/{self.classes}"
        size = f"{self.height}x{self.width}"
        if self.task != "training" and (self.out_height, self.out_width) != (self.height, self.width):
            size += f"-{self.out_height}x{self.out_width}"
        parts = [self.task, self.model, size, f"{self.classes}", f"b{self.batch}"]
        parts.append(DTYPES[self.dtype])
        if self.task != "training" or self.compiled:
            parts.append("compiled" if self.compiled else "eager")
        return "/".join([*parts, *([f"q{self.queries}"] if self.queries else [])])

    @property
    def title(self) -> str:
        """Description for tables, unique among the cases of a task."""
        model = MODEL_TITLES.get(self.model, self.model)
        if self.task == "loading":
            return {0: "in one process", 1: "1 worker"}.get(self.workers, f"{self.workers} workers")
        if self.task == "text":
            return f"{model}, {self.classes} classes"
        size = f"{self.height}×{self.width}"
        if self.task != "training" and (self.out_height, self.out_width) != (self.height, self.width):
            size += f" to {self.out_height}×{self.out_width}"
        parts = [model, size, f"{self.classes} classes"]
        parts += [f"batch {self.batch}"] if self.batch > 1 or self.task == "training" else []
        parts += [DTYPES[self.dtype]]
        parts += ["compiled"] if self.compiled else []
        return ", ".join(parts + ([f"{self.queries} queries"] if self.queries else []))

    def to_dict(self) -> dict[str, Any]:
        """Return the case as plain data, with its name."""
        return {"name": self.name, **asdict(self)}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Case:
        """Inverse of `to_dict`."""
        return Case(**{key: value for key, value in record.items() if key != "name"})


def sized(case: Case, size: tuple[int, int, int, int]) -> Case:
    """Return a case with other sizes: height and width of the image, then of the label map."""
    height, width, out_height, out_width = size
    return replace(case, height=height, width=width, out_height=out_height, out_width=out_width)


_B16, _L14 = Case("inference"), Case("inference", "vit_l14_336")
_TRAINING, _EVALUATION = Case("training", batch=2), sized(Case("evaluation"), WIDE)

_OTHERS = (
    *(Case("text", model, classes=classes) for model, classes in product(("vit_b16", "vit_l14_336"), (171, 847))),
    *(replace(_TRAINING, model=model, batch=batch) for model, batch in product(("vit_b16", "vit_l14_336"), (2, 4))),
    Case("loading"),
    *(replace(_EVALUATION, classes=classes) for classes in (150, 847)),
)

STANDARD: tuple[Case, ...] = (
    *(sized(replace(_B16, classes=c), size) for size, c in product((SQUARE, WIDE), (20, 171, 847))),
    replace(_B16, dtype="bfloat16"),
    replace(_B16, dtype="int8"),
    replace(_B16, compiled=True),
    replace(_B16, batch=8),
    _L14,
    replace(_L14, dtype="bfloat16"),
    *_OTHERS,
)
"""Return the default cases, which vary one setting at a time."""

FULL: tuple[Case, ...] = (
    *(
        sized(Case("inference", model, classes=classes, batch=batch, dtype=dtype, compiled=compiled), size)
        for model, size, classes, batch, dtype, compiled in product(
            ("vit_b16", "vit_l14_336"),
            (SQUARE, WIDE),
            (20, 171, 847),
            (1, 8),
            ("float32", "bfloat16"),
            (False, True),
        )
    ),
    *_OTHERS,
    *(replace(case, dtype="bfloat16") for case in _OTHERS if case.task == "training"),
)
"""Return all combinations."""

CUDA: tuple[Case, ...] = (
    *(
        Case("inference", model, batch=batch, dtype=dtype, compiled=compiled)
        for model, batch, (dtype, compiled) in product(
            ("vit_b16", "vit_l14_336"), (1, 32), (("float32", False), ("bfloat16", False), ("bfloat16", True))
        )
    ),
    *(Case("training", model, batch=32, dtype="bfloat16") for model in ("vit_b16", "vit_l14_336")),
    *(case for case in _OTHERS if case.task in ("text", "evaluation")),
)
"""Return the default cases of a GPU."""

_TINY = Case("inference", "tiny", 96, 96, 96, 96, classes=20)

QUICK: tuple[Case, ...] = (
    _TINY,
    sized(replace(_TINY, batch=2, dtype="bfloat16"), (96, 128, 77, 103)),
    Case("text", "tiny", classes=20),
    replace(_TINY, task="training", batch=2),
    replace(_TINY, task="evaluation", classes=150),
    Case("loading"),
)
"""Return cases of a small model, which show in a minute that everything works."""

GROWTH: dict[str, tuple[Case, ...]] = {
    "image side": tuple(sized(_B16, (side,) * 4) for side in (320, 480, 640, 800, 960)),
    "classes": tuple(sized(replace(_B16, classes=classes), WIDE) for classes in (20, 59, 171, 459, 847, 2000)),
    "queries": tuple(replace(_B16, queries=queries) for queries in (25, 50, 100, 200, 400)),
    "batch": tuple(replace(_B16, batch=batch) for batch in (1, 2, 4, 8)),
    "batch of a training step": tuple(replace(_TRAINING, batch=batch) for batch in (1, 2, 4)),
    "classes embedded": tuple(Case("text", classes=classes) for classes in (20, 59, 171, 459, 847)),
    "loading workers": tuple(Case("loading", workers=workers) for workers in (0, 1, 2, 4)),
}
"""Return series of cases that differ in one number."""

VARIED = {
    "image side": "height",
    "classes": "classes",
    "queries": "queries",
    "batch": "batch",
    "batch of a training step": "batch",
    "classes embedded": "classes",
    "loading workers": "workers",
}
"""Attribute of a case that a growth series varies."""

FIXED = {
    "image side": "inference, B/16, 171 classes; both sides, in pixels",
    "classes": "inference, B/16, 640×853 to 512×683",
    "queries": "inference, B/16, 640×640, 171 classes",
    "batch": "inference, B/16, 640×640, 171 classes",
    "batch of a training step": "training, B/16, 640×640, 171 classes",
    "classes embedded": "text, B/16, 14 templates",
    "loading workers": "loading; 0: in one process",
}
"""Fixed settings of a growth series."""


def growth_cases() -> tuple[Case, ...]:
    """Return the cases of all growth series, each once."""
    return tuple(dict.fromkeys(case for series in GROWTH.values() for case in series))


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the cases with a name that matches one of the patterns; all without a pattern.

    Args:
        cases: cases to select from.
        patterns: shell patterns ("inference/vit_b16/*", "*/847/*"); the whole name must match.

    Raises:
        ValueError: a pattern matches no case.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise ValueError(
                f"no case matches {pattern!r}; --list shows the {len(cases)} of this table, --full --list all of them"
            )
    return [case for case in cases if not patterns or any(fnmatchcase(case.name, pattern) for pattern in patterns)]

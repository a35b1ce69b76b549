"""Makes a function that runs a case repeatedly."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.clip.loader import load_clip
from san.model.build import build_outline, build_san, freeze
from san.model.config import variant
from san.model.san import SANModel


@dataclass(frozen=True)
class Workload:
    """A case that is ready to run.

    Attributes:
        run: runs the case once, and marks its parts.
        items: number of items of the case.
        item: kind of the items.
        sampled: number of items per run if the time is extrapolated from a sample; None for all.
    """

    run: Callable[[Recorder], None]
    items: int
    item: str = "images"
    sampled: int | None = None

    @property
    def scale(self) -> float:
        """Ratio of the time of all items to that of a run."""
        return self.items / (self.sampled or self.items)


MODULES = {
    "inference": "san.benchmark.inference",
    "evaluation": "san.benchmark.inference",
    "text": "san.benchmark.text",
    "training": "san.benchmark.training",
    "loading": "san.benchmark.loading",
}
"""Modules with `make_workload` and, for matrix products, `count_run`; imported when needed, to save memory."""


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """Set up a case.

    Args:
        case: the case.
        device: its device.
        plain: use the path without shortcuts, `san.benchmark.reference`.
    """
    workload: Workload = importlib.import_module(MODULES[case.task]).make_workload(case, device, plain=plain)
    return workload


def random_model(case: Case, device: torch.device, model_class: type[SANModel] = SANModel) -> SANModel:
    """Return a model with random weights, always the same; without values on the device "meta"."""
    config = variant(case.model, pretrained=None)
    if case.queries:
        config = replace(config, side_adapter=replace(config.side_adapter, num_queries=case.queries))
    torch.manual_seed(0)
    if device.type == "meta":
        model = build_outline(config, load_clip(config.clip.name, None), model_class)
        freeze(model)
        return model
    return build_san(config, model_class=model_class).to(device)


def random_text_embed(model: SANModel, classes: int) -> Tensor:
    """Return unit vectors (C, E) instead of text embeddings."""
    values = torch.randn(classes, model.arch.embed_dim, generator=torch.manual_seed(1))
    return F.normalize(values, dim=-1).to(model.pixel_mean.device)


def random_images(case: Case, device: torch.device) -> list[Tensor]:
    """Return random images (3, H, W) uint8."""
    generator = torch.manual_seed(2)
    sizes = (3, case.height, case.width)
    return [torch.randint(0, 256, sizes, dtype=torch.uint8, generator=generator).to(device) for _ in range(case.batch)]


def random_label_map(case: Case, size: tuple[int, int], *, seed: int) -> Tensor:
    """Return a label map (H, W) int64 of blocks: at most 12 classes, about one block in thirty is ignored (-1)."""
    generator = torch.manual_seed(seed)
    present = torch.randperm(case.classes, generator=generator)[:12]
    blocks = present[torch.randint(0, len(present), (8, 8), generator=generator)]
    blocks[torch.rand(8, 8, generator=generator) < 1 / 30] = -1
    return F.interpolate(blocks[None, None].double(), size=size, mode="nearest")[0, 0].long()


def synthetic_scene(
    num_queries: int, grid: tuple[int, int], num_classes: int, *, seed: int = 4, num_things: int = 12
) -> tuple[Tensor, Tensor]:
    """Return mask logits (Q, h_s, w_s) and class logits (Q, C + 1) like those of a trained model, for round things.

    With 24 queries or more, two have a certain mask of each thing; the others are weak and "no object". A query prefers
    the class of its thing, but others are possible. Random weights would give one class everywhere, which is too fast.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in grid), indexing="ij")
    centres = torch.rand(num_things, 2, 1, 1, generator=generator) * torch.tensor(grid).view(2, 1, 1)
    radius = (0.1 + 0.25 * torch.rand(num_things, 1, 1, generator=generator)) * min(grid)
    inside = radius - (rows - centres[:, 0]).hypot(columns - centres[:, 1])  # (things, h_s, w_s), in cells
    queries = torch.arange(num_queries)
    thing, weak = queries % num_things, queries >= 2 * num_things
    masks = inside[thing] + 0.7 * torch.randn(num_queries, *grid, generator=generator)
    masks[weak] -= 4
    classes = 2.5 * torch.randn(num_queries, num_classes + 1, generator=generator)
    classes[queries, torch.randint(num_classes, (num_things,), generator=generator)[thing]] += 8
    classes[weak, -1] += 9
    return masks, classes


class PartMarks:
    """Marks the ends of CLIP's shallow blocks, the side network and the heads, with hooks of the model.

    Everything before the first of them is "input".

    Args:
        model: the model.
        fine: separate "mask head" and "bias head" (else "heads"), and "fusion" from "side network".
    """

    def __init__(self, model: SANModel, *, fine: bool = False) -> None:
        self.recorder: Recorder | None = None
        parts: list[tuple[nn.Module, str]] = [
            (model.shallow_clip, "shallow CLIP"),
            (model.side_adapter, "side network"),
            (model.mask_head, "mask head" if fine else "heads"),
            (model.bias_head, "bias head" if fine else "heads"),
        ]
        starts: list[tuple[nn.Module, str]] = [(model.shallow_clip, "input")]
        if fine:
            fusions = model.side_adapter.fusions.values()
            parts += [(fusion, "fusion") for fusion in fusions]
            starts += [(fusion, "side network") for fusion in fusions]
        for module, before in starts:
            module.register_forward_pre_hook(lambda *_, part=before: self.mark(part))
        for module, part in parts:
            module.register_forward_hook(lambda *_, part=part: self.mark(part))

    @contextmanager
    def to(self, recorder: Recorder) -> Iterator[None]:
        """Context manager that sends marks to this recorder."""
        self.recorder = recorder
        try:
            yield
        finally:
            self.recorder = None

    def mark(self, part: str) -> None:
        """End the named part, if a run is being recorded."""
        if self.recorder is not None:
            self.recorder.mark(part)

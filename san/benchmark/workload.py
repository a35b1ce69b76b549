"""From a case to something that can be run again and again."""

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
from san.model.build import build_san, freeze, outline
from san.model.config import variant
from san.model.san import SANModel


@dataclass(frozen=True)
class Workload:
    """What a case does.

    Attributes:
        run: does it once, on the path asked for, and marks its parts.
        items: how many things the case deals with.
        item: what they are.
        sampled: how many of them a run really deals with, where all cost the same and the time of all is extrapolated
            from an even sample; None deals with all.
    """

    run: Callable[[Recorder], None]
    items: int
    item: str = "images"
    sampled: int | None = None

    @property
    def scale(self) -> float:
        """What the time of a run has to be multiplied by."""
        return self.items / (self.sampled or self.items)


MODULES = {
    "inference": "san.benchmark.inference",
    "evaluation": "san.benchmark.inference",
    "text": "san.benchmark.text",
    "training": "san.benchmark.training",
    "loading": "san.benchmark.loading",
}
"""Where a task's `make_workload` and, if it multiplies matrices, `count_run` are; imported when needed, for memory."""


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """Sets a case up.

    Args:
        case: what to do.
        device: where.
        plain: on the unoptimised path, `san.benchmark.reference`.
    """
    workload: Workload = importlib.import_module(MODULES[case.task]).make_workload(case, device, plain=plain)
    return workload


def draw_model(case: Case, device: torch.device, model_class: type[SANModel] = SANModel) -> SANModel:
    """A model with drawn weights, the same each time; on the device "meta" with none."""
    config = variant(case.model, pretrained=None)
    if case.queries:
        config = replace(config, side_adapter=replace(config.side_adapter, num_queries=case.queries))
    torch.manual_seed(0)
    if device.type == "meta":
        model = outline(config, load_clip(config.clip.name, None), model_class)
        freeze(model)
        return model
    return build_san(config, model_class=model_class).to(device)


def drawn_text_embed(model: SANModel, classes: int) -> Tensor:
    """Unit vectors (C, E) in place of a vocabulary's embedding."""
    values = torch.randn(classes, model.arch.embed_dim, generator=torch.manual_seed(1))
    return F.normalize(values, dim=-1).to(model.pixel_mean.device)


def drawn_images(case: Case, device: torch.device) -> list[Tensor]:
    """Images (3, H, W) uint8."""
    generator = torch.manual_seed(2)
    sizes = (3, case.height, case.width)
    return [torch.randint(0, 256, sizes, dtype=torch.uint8, generator=generator).to(device) for _ in range(case.batch)]


def drawn_label_map(case: Case, size: tuple[int, int], *, seed: int, num_present: int = 12) -> Tensor:
    """A label map (H, W) int64 of blocks: at most `num_present` classes, about one block in thirty ignored (-1)."""
    generator = torch.manual_seed(seed)
    present = torch.randperm(case.classes, generator=generator)[:num_present]
    blocks = present[torch.randint(0, len(present), (8, 8), generator=generator)]
    blocks[torch.rand(8, 8, generator=generator) < 1 / 30] = -1
    return F.interpolate(blocks[None, None].double(), size=size, mode="nearest")[0, 0].long()


def drawn_scene(
    num_queries: int, grid: tuple[int, int], num_classes: int, *, seed: int = 4, num_things: int = 12
) -> tuple[Tensor, Tensor]:
    """Mask logits (Q, h_s, w_s) and class logits (Q, C + 1) like those of a trained model, of round things.

    Of 24 queries and more, two have a sure mask of each thing; the others' are weak and "no object". A query prefers
    its thing's class, but hardly any other is out of the question. Drawn weights give one class everywhere: too easy.
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
    """Marks when CLIP's shallow blocks, the side network and the heads are through, from outside the model.

    Whatever comes before the first of them is "input".

    Args:
        model: to watch.
        fine: tells "mask head" and "bias head" apart, which else are "heads", and "fusion" from "side network".
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
        """Marks go to this recorder meanwhile."""
        self.recorder = recorder
        try:
            yield
        finally:
            self.recorder = None

    def mark(self, part: str) -> None:
        """The named part of the run that is being recorded, if one is, ends here."""
        if self.recorder is not None:
            self.recorder.mark(part)

"""One training step on made-up images and label maps: the step that `san train` runs, without a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.reference import PlainCriterion, PlainSAN
from san.benchmark.workload import PartMarks, Workload, draw_model, drawn_images, drawn_label_map, drawn_text_embed
from san.d2.solver import SolverConfig, build_optimizer, trained_parameters
from san.d2.train.iteration import PendingLosses, StepConfig, Stepper
from san.losses import LabelMapTarget, LossConfig, Normalisers, SetCriterion, Target
from san.model.san import SANModel

IGNORED = 65535
"""Label of pixels that belong to no mask."""


class Losses(nn.Module):
    """A model's losses of a list of samples, as `Stepper` takes it.

    Args:
        model: the network.
        criterion: outputs and targets to losses by name.
        text_embed: (C, E), the vocabulary's.
        marks: told of the parts.
    """

    def __init__(self, model: SANModel, criterion: Any, text_embed: Tensor, marks: PartMarks) -> None:
        super().__init__()
        self.model, self.criterion, self.text_embed, self.marks = model, criterion, text_embed, marks

    def forward(self, samples: list[dict[str, Any]], norm: Normalisers | None = None) -> Mapping[str, Tensor]:
        """The losses; `norm` is for accumulation steps and processes, of which there are none here."""
        recorder = self.marks.recorder
        assert recorder is not None
        output = self.model(self.model.stack([sample["image"] for sample in samples]), self.text_embed)
        recorder.mark("recognition")
        device = self.model.pixel_mean.device
        targets = [to_device(sample["target"], device) for sample in samples]
        losses: Mapping[str, Tensor] = self.criterion(output.as_dict(), targets)
        recorder.mark("losses")
        return losses


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """Samples lie in the main memory as a loader leaves them, for a GPU pinned; a run ends with the updated weights.

    As in training the losses of a run are read in the next one.

    Plain: the plain network and losses, one mask per class at full size, and an update that goes tensor by tensor.
    """
    model = draw_model(case, device, PlainSAN if plain else SANModel).train()
    marks = PartMarks(model)
    if case.compiled:
        raise ValueError("a compiled training step is not among the cases; measure it eager")
    text_embed, solver, losses = drawn_text_embed(model, case.classes), SolverConfig(), LossConfig()
    criterion = PlainCriterion(losses) if plain else SetCriterion(losses)
    optimizer = plain_optimizer(model, solver) if plain else build_optimizer(model, solver)
    optimizer.register_step_pre_hook(lambda *_: marks.mark("backward, clipping"))
    amp = None if case.dtype == "float32" else getattr(torch, case.dtype)
    config = StepConfig(solver, device.type, amp, model.config.side_adapter.num_queries, losses.no_object_weight)
    stepper = Stepper(Losses(model, criterion, text_embed, marks), optimizer, config)
    images, targets = drawn_images(case, torch.device("cpu")), make_targets(case, masks=plain)
    if device.type == "cuda":
        images, targets = [image.pin_memory() for image in images], [pinned(target) for target in targets]
    samples = [
        {"image": image, "target": target, "num_masks": len(target.labels), "file_name": "made up"}
        for image, target in zip(images, targets, strict=True)
    ]

    pending: list[PendingLosses] = []

    def settle() -> None:
        while pending:
            pending.pop().read()

    def run(recorder: Recorder) -> None:
        with marks.to(recorder):
            pending.append(stepper.run([samples], iteration=0, before_update=settle))
        recorder.mark("update")

    return Workload(run, case.batch)


def count_run(case: Case, recorder: Recorder, *, plain: bool) -> None:
    """Forward and backward without numbers, for counting; class logits and losses take next to nothing."""
    model = draw_model(case, torch.device("meta"), PlainSAN if plain else SANModel).train()
    marks = PartMarks(model)
    with marks.to(recorder):
        proposals = model.propose(model.stack(drawn_images(case, torch.device("meta"))))
    recorder.mark("recognition")
    torch.stack([layer.mask_logits.sum() + layer.sls_embed.sum() for layer in proposals]).sum().backward()
    recorder.mark("backward, clipping")


def make_targets(case: Case, *, masks: bool) -> Sequence[LabelMapTarget | Target]:
    """One target per image, as a label map or as a mask per class."""
    maps = [drawn_label_map(case, (case.height, case.width), seed=10 + index) for index in range(case.batch)]
    classes = [label_map[label_map >= 0].unique() for label_map in maps]
    pairs = list(zip(classes, maps, strict=True))
    if masks:
        return [Target(labels, label_map == labels[:, None, None]) for labels, label_map in pairs]
    small = [label_map.masked_fill(label_map < 0, IGNORED).to(torch.int32) for label_map in maps]
    return [LabelMapTarget(labels, label_map) for labels, label_map in zip(classes, small, strict=True)]


def pinned(target: LabelMapTarget | Target) -> LabelMapTarget | Target:
    """A sample's truth as a loader hands it on for a GPU."""
    if isinstance(target, LabelMapTarget):
        return LabelMapTarget(target.labels, target.label_map.pin_memory())
    return Target(target.labels, target.masks.pin_memory())


def to_device(target: LabelMapTarget | Target, device: torch.device) -> LabelMapTarget | Target:
    """A sample's truth where the network is."""
    if isinstance(target, LabelMapTarget):
        return LabelMapTarget(target.labels, target.label_map.to(device, non_blocking=True))
    return Target(target.labels.to(device), target.masks.to(device))


def plain_optimizer(model: nn.Module, solver: SolverConfig) -> torch.optim.AdamW:
    """AdamW with a group per tensor, each updated by itself."""
    trained = trained_parameters(model, solver)
    groups = [{"params": [each.parameter], "weight_decay": each.weight_decay} for each in trained]
    return torch.optim.AdamW(groups, lr=solver.base_lr, betas=solver.betas, foreach=False, fused=False)

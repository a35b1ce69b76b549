"""Workload of training: one step of `san train` on synthetic images and label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.reference import PlainCriterion, PlainSAN
from san.benchmark.workload import PartMarks, Workload, random_images, random_label_map, random_model, random_text_embed
from san.d2.solver import SolverConfig, build_optimizer, trained_parameters
from san.d2.train.iteration import PendingLosses, StepConfig, Stepper
from san.losses import LabelMapTarget, LossConfig, Normalisers, SetCriterion, Target
from san.model.san import SANModel

IGNORED = 65535
"""Label of ignored pixels."""


class Losses(nn.Module):
    """Computes a model's losses of a list of samples, for `Stepper`.

    Args:
        model: the network.
        criterion: computes losses by name.
        text_embed: (C, E), text embeddings of the vocabulary.
        marks: records the parts.
    """

    def __init__(self, model: SANModel, criterion: Any, text_embed: Tensor, marks: PartMarks) -> None:
        super().__init__()
        self.model, self.criterion, self.text_embed, self.marks = model, criterion, text_embed, marks

    def forward(self, samples: list[dict[str, Any]], norm: Normalisers | None = None) -> Mapping[str, Tensor]:
        """Return the losses; `norm` is ignored, because there is one process and no accumulation."""
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
    """Set up a training step; samples are in main memory (pinned for a GPU), as from a loader.

    As in training, the losses of a run are read in the next one. The plain path has the plain network and losses, one
    full-size mask per class, and an update tensor by tensor.
    """
    model = random_model(case, device, PlainSAN if plain else SANModel).train()
    marks = PartMarks(model)
    if case.compiled:
        raise ValueError("a compiled training step is not among the cases; measure it eager")
    text_embed, solver, losses = random_text_embed(model, case.classes), SolverConfig(), LossConfig()
    criterion = PlainCriterion(losses) if plain else SetCriterion(losses)
    optimizer = plain_optimizer(model, solver) if plain else build_optimizer(model, solver)
    optimizer.register_step_pre_hook(lambda *_: marks.mark("backward, clipping"))
    amp = None if case.dtype == "float32" else getattr(torch, case.dtype)
    config = StepConfig(solver, device.type, amp, model.config.side_adapter.num_queries, losses.no_object_weight)
    stepper = Stepper(Losses(model, criterion, text_embed, marks), optimizer, config)
    images, targets = random_images(case, torch.device("cpu")), make_targets(case, masks=plain)
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
    """Run forward and backward without values, for counting; class logits and losses are negligible."""
    model = random_model(case, torch.device("meta"), PlainSAN if plain else SANModel).train()
    marks = PartMarks(model)
    with marks.to(recorder):
        proposals = model.propose(model.stack(random_images(case, torch.device("meta"))))
    recorder.mark("recognition")
    torch.stack([layer.mask_logits.sum() + layer.sls_embed.sum() for layer in proposals]).sum().backward()
    recorder.mark("backward, clipping")


def make_targets(case: Case, *, masks: bool) -> Sequence[LabelMapTarget | Target]:
    """Return one target per image, as a label map or as masks per class."""
    maps = [random_label_map(case, (case.height, case.width), seed=10 + index) for index in range(case.batch)]
    classes = [label_map[label_map >= 0].unique() for label_map in maps]
    pairs = list(zip(classes, maps, strict=True))
    if masks:
        return [Target(labels, label_map == labels[:, None, None]) for labels, label_map in pairs]
    small = [label_map.masked_fill(label_map < 0, IGNORED).to(torch.int32) for label_map in maps]
    return [LabelMapTarget(labels, label_map) for labels, label_map in zip(classes, small, strict=True)]


def pinned(target: LabelMapTarget | Target) -> LabelMapTarget | Target:
    """Return the target of a sample as a loader does, pinned for a GPU."""
    if isinstance(target, LabelMapTarget):
        return LabelMapTarget(target.labels, target.label_map.pin_memory())
    return Target(target.labels, target.masks.pin_memory())


def to_device(target: LabelMapTarget | Target, device: torch.device) -> LabelMapTarget | Target:
    """Return the target of a sample on the network's device."""
    if isinstance(target, LabelMapTarget):
        return LabelMapTarget(target.labels, target.label_map.to(device, non_blocking=True))
    return Target(target.labels.to(device), target.masks.to(device))


def plain_optimizer(model: nn.Module, solver: SolverConfig) -> torch.optim.AdamW:
    """Return AdamW with a group per tensor, each updated separately."""
    trained = trained_parameters(model, solver)
    groups = [{"params": [each.parameter], "weight_decay": each.weight_decay} for each in trained]
    return torch.optim.AdamW(groups, lr=solver.base_lr, betas=solver.betas, foreach=False, fused=False)

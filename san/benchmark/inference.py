"""Workloads of inference and evaluation: images to label maps, and their confusion matrix.

Q queries, C classes, (H, W) output.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.reference import PlainSAN, plain_labels
from san.benchmark.workload import (
    PartMarks,
    Workload,
    random_images,
    random_label_map,
    random_model,
    random_text_embed,
    synthetic_scene,
)
from san.evaluation import ConfusionMatrix
from san.model.precision import mixed_precision, round_weights
from san.model.san import SANModel
from san.postprocess import Geometry, semantic_labels

IGNORED = 65535
"""Label of ignored pixels."""


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """Set up inference or evaluation; images and text embeddings exist, label maps stay on the device.

    The network computes class logits, but the label maps are made from those of a synthetic scene.

    The parts are "input" (normalising, padding, CLIP's smaller copy), "shallow CLIP", "side network", "heads" (masks
    and attention biases), "recognition" (CLIP's deep blocks) and "output" (class logits and label map), compiled
    "network" and "output"; of an evaluation also "confusion matrix".
    """
    model = random_model(case, device, PlainSAN if plain else SANModel).eval()
    text_embed, images = random_text_embed(model, case.classes), random_images(case, device)
    side, (height, width) = model.config.side_adapter, model.stack(images).shape[2:]
    scene = synthetic_scene(side.num_queries, (height // side.patch_size, width // side.patch_size), case.classes)
    masks, classes = (logits.to(device) for logits in scene)
    labels = plain_labels if plain else semantic_labels
    dtype: torch.dtype = getattr(torch, case.dtype)
    if not plain:
        round_weights(model, dtype)
    marks = None if case.compiled else PartMarks(model)  # hooks would split the compiled graph
    if case.compiled and not plain:
        model.image_side.compile()
    counts = _Counts(case) if case.task == "evaluation" else None

    @torch.inference_mode()
    def run(recorder: Recorder) -> None:
        with marks.to(recorder) if marks else nullcontext(), mixed_precision(device, dtype):
            batch = model.stack(images)
            (proposals,) = model.image_side(model, batch)
        recorder.mark("network" if case.compiled else "recognition")
        output = model.classify(proposals, text_embed)
        assert output.mask_logits.shape[1:] == masks.shape, "the scene needs the shape of the network's masks"
        maps = [labels(masks, classes, geometry(case, batch)) for _ in images]
        recorder.mark("output")
        if counts:
            for label_map in maps:
                counts.add(label_map)
            recorder.mark("confusion matrix")

    return Workload(run, case.batch)


def count_run(case: Case, recorder: Recorder, *, plain: bool) -> None:
    """Run network and label map without values, for counting; class logits are negligible."""
    meta = torch.device("meta")
    model = random_model(case, meta, PlainSAN if plain else SANModel).eval()
    labels = plain_labels if plain else semantic_labels
    with torch.inference_mode(), PartMarks(model).to(recorder):
        batch = model.stack(random_images(case, meta))
        (proposals,) = model.propose(batch)
    recorder.mark("recognition")
    class_logits = torch.empty(*proposals.sls_embed.shape[:2], case.classes + 1, device=meta)
    for masks, classes in zip(proposals.mask_logits, class_logits, strict=True):
        labels(masks, classes, geometry(case, batch))
    recorder.mark("output")


def geometry(case: Case, batch: torch.Tensor) -> Geometry:
    """Return the sizes of the images of a padded batch (B, 3, H, W) and of their label maps."""
    height, width = batch.shape[2:]
    return Geometry((height, width), (case.height, case.width), (case.out_height, case.out_width))


class _Counts:
    """Return the function that an evaluation applies to label maps."""

    def __init__(self, case: Case) -> None:
        truth = random_label_map(case, (case.out_height, case.out_width), seed=3)
        self.truth = truth.masked_fill(truth < 0, IGNORED).numpy().astype("uint16")
        self.matrix = ConfusionMatrix(case.classes, IGNORED)

    def add(self, label_map: torch.Tensor) -> None:
        self.matrix.update(label_map.to(torch.int32).cpu().numpy(), self.truth)

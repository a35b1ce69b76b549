"""Parameters, multiply-adds, time and memory of each part of a model.

A part ends where `PartMarks` sets a mark, so counting and timing divide a run in the same way. Registered parts of a
user are counted and timed like SAN's own.

(H, W) image, C classes, Q queries. See docs/analyze.md.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from san.benchmark.clocks import Recorder, clock_of, counting
from san.benchmark.machine import peak_memory, reset_peak_memory
from san.benchmark.reference import PlainSAN, plain_labels
from san.benchmark.text import class_names, count_names
from san.benchmark.workload import PartMarks, synthetic_scene
from san.clip.loader import LoadedClip
from san.io.errors import one_line
from san.model.attention_bias import AttentionBiasHead
from san.model.build import build_outline
from san.model.san import SANModel
from san.postprocess import Geometry, semantic_labels
from san.shapes.world import NAMES as SHAPES_NAMES
from san.vocabulary.label_sets import LABEL_SETS, load_label_set

NETWORK = (
    "input", "shallow CLIP", "side network", "fusion", "mask head", "bias head", "deep CLIP", "classification",
)  # fmt: skip
"""Parts of the network, in order."""
LABEL_MAP, TEXT_TOWER, OTHER = "label map", "text tower", "other"
COMPILED = "compiled network"
PARTS = (COMPILED, *NETWORK, LABEL_MAP, TEXT_TOWER, OTHER)

_OWNERS = {
    "shallow_clip.": "shallow CLIP",
    "side_adapter.fusions.": "fusion",
    "side_adapter.": "side network",
    "mask_head.": "mask head",
    "bias_head.": "bias head",
    "sls_init.": "deep CLIP",
    "deep_clip.": "deep CLIP",
    "scorer.": "classification",
    "text_classifier.no_object_embed": "classification",
    "text_classifier.logit_scale": "classification",
    "text_classifier.": TEXT_TOWER,
}
"""Part of a parameter, by the prefix of its name; the first match counts."""


@dataclass(frozen=True)
class AnalysisInput:
    """Input of a measurement: one random image, and a vocabulary.

    Attributes:
        height, width: size of the network's input image and of the label map, in pixels.
        classes: C.

    Raises:
        ValueError: one of them is below 1.
    """

    height: int
    width: int
    classes: int

    def __post_init__(self) -> None:
        """Raise for values below 1."""
        if min(self.height, self.width, self.classes) < 1:
            raise ValueError(f"height, width and classes must be 1 or more; got {self}")


@dataclass(frozen=True)
class Timing:
    """Measured time and memory.

    Attributes:
        seconds: median time of one image, from uint8 pixels to the label map; the text embeddings exist.
        spread: half the distance between the quartiles.
        parts: median seconds of each part.
        peak_bytes: peak memory of a run, including weights and libraries; on a GPU that of torch's allocator.
        peak_is_of_runs: False if the peak includes loading the model, because the system cannot reset it.
        text_seconds: time to embed the names once without a cache; None without names.
    """

    seconds: float
    spread: float
    parts: dict[str, float]
    peak_bytes: int
    peak_is_of_runs: bool
    text_seconds: float | None


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the number of all parameters and of trained parameters (that require a gradient) of each part."""
    found: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = next((owner for start, owner in _OWNERS.items() if name.startswith(start)), OTHER)
        total, trained = found.get(part, (0, 0))
        found[part] = (total + parameter.numel(), trained + parameter.numel() * parameter.requires_grad)
    return {part: found[part] for part in PARTS if part in found}


def on_meta(model: SANModel) -> SANModel:
    """Return a float32 copy of a model on the meta device, which has shapes but no values."""

    def bare(value: Tensor) -> Tensor:
        return torch.empty_like(value, device="meta", dtype=torch.float32 if value.is_floating_point() else None)

    tensors = {id(each): bare(each) for each in model.buffers()}
    for each in model.parameters():
        tensors[id(each)] = nn.Parameter(bare(each), each.requires_grad)
    return copy.deepcopy(model, tensors)


def plain_on_meta(model: SANModel) -> SANModel:
    """Return a copy as `on_meta`, computed without shortcuts."""
    clip = LoadedClip(model.arch, None, model.text_classifier.embedder.tokenizer, fingerprint="")
    return build_outline(model.config, clip, PlainSAN)


def count_multiply_adds(model: SANModel, piece: AnalysisInput, *, as_written: bool = False) -> dict[str, int] | None:
    """Count the multiply-adds of each part for one image: matrix products, convolutions and attention.

    The label map is counted with every class at every pixel; on a CPU a prediction skips classes that cannot win.

    Args:
        model: on any device; a copy without values is counted.
        piece: the image and the vocabulary.
        as_written: count the method without shortcuts, `san.benchmark.reference`.

    Returns:
        multiply-adds by part; None for `as_written` with a custom bias head or another CLIP family than "vit", which
        have no plain form.

    Raises:
        ValueError: a part reads values of tensors, which the copy does not have.
    """
    if as_written and (type(model.bias_head) is not AttentionBiasHead or model.arch.vision.family != "vit"):
        return None
    model = (plain_on_meta(model) if as_written else on_meta(model)).eval().requires_grad_(False)
    run = make_run(model, piece, marks=PartMarks(model, fine=True), plain=as_written)
    with counting() as recorder_of:
        recorder = recorder_of()
        try:
            run(recorder)
        except RuntimeError as error:
            if "meta" not in str(error):  # the device of tensors without values
                raise
            raise ValueError(
                f"the model cannot be counted: one of its parts reads the values of tensors ({one_line(error)}); "
                "write it without .item(), .tolist() and if on tensors"
            ) from error
        parts = recorder.parts()
    return {part: int(parts[part]) for part in PARTS if part in parts}


def count_text(model: SANModel, names: Sequence[str], *, as_written: bool = False) -> int:
    """Count multiply-adds of embedding names in the model's templates; `as_written` at CLIP's full length."""
    classifier = on_meta(model).text_classifier
    with counting() as recorder_of:
        recorder = recorder_of()
        count_names(classifier, names, plain=as_written)
        recorder.mark(TEXT_TOWER)
        return int(recorder.parts()[TEXT_TOWER])


def names_for(model: SANModel, count: int) -> list[str] | None:
    """Return names to embed: those of a label set of this size, else the first of ADE20K-847; None if too few."""
    if model.config.clip.name == "shapes":  # its tokenizer knows no other words
        return list(SHAPES_NAMES[:count]) if count <= len(SHAPES_NAMES) else None
    for label_set in map(load_label_set, LABEL_SETS):
        if label_set.num_classes == count:
            return list(label_set.classes)
    return class_names(count) if count <= load_label_set("ade20k_847").num_classes else None


def measure_time(
    model: SANModel, piece: AnalysisInput, *, dtype: torch.dtype, runs: int = 5, compiled: bool = False
) -> Timing:
    """Time a model on its device.

    Args:
        model: in evaluation mode, with weights in `dtype` (see `san.model.precision`).
        piece: the image and the vocabulary.
        dtype: number type in which the network computes.
        runs: number of timed runs, after two others.
        compiled: the network is compiled, and is one part, "compiled network".
    """
    device = model.pixel_mean.device
    run = make_run(model, piece, marks=None if compiled else PartMarks(model, fine=True), dtype=dtype)
    is_of_runs = reset_peak_memory(device)
    rounds = [_once(run, device) for _ in range(2 + runs)][2:]
    peak = peak_memory(device)
    names, text_seconds = names_for(model, piece.classes), None
    if names is not None:

        def embed(recorder: Recorder) -> None:
            model.text_classifier.embedder.forget()
            model.text_classifier.embed(names)
            recorder.mark(TEXT_TOWER)

        embedder = model.text_classifier.embedder
        folder = embedder.disk_cache
        embedder.use_disk_cache(None)
        model.text_classifier.embed(names[:1])  # loads the tokenizer
        text_seconds = _once(embed, device)[TEXT_TOWER]
        embedder.use_disk_cache(folder)
    wholes = [sum(parts.values()) for parts in rounds]
    lower, median, upper = statistics.quantiles(wholes, n=4, method="inclusive") if runs > 1 else wholes * 3
    parts = {part: statistics.median(parts[part] for parts in rounds) for part in rounds[0]}
    return Timing(median, (upper - lower) / 2, parts, peak, is_of_runs, text_seconds)


def make_run(
    model: SANModel,
    piece: AnalysisInput,
    *,
    marks: PartMarks | None,
    plain: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Callable[[Recorder], None]:
    """Return a function that processes one image, from pixels to the label map, and marks the parts.

    Class logits are computed, but the label map is made from those of a synthetic scene, because random weights give
    one class everywhere, which is too fast.

    Args:
        model: in evaluation mode.
        piece: the image and the vocabulary.
        marks: those of the model; None for a compiled one.
        plain: make the label map without shortcuts.
        dtype: number type in which the network computes.
    """
    device, size = model.pixel_mean.device, (piece.height, piece.width)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.manual_seed(2)).to(device)
    text_embed = torch.zeros(piece.classes, model.arch.embed_dim, device=device)
    text_embed[:, 0] = 1
    labels = plain_labels if plain else semantic_labels
    scene: list[tuple[Tensor, Tensor]] = []  # created when the shape of the masks is known

    @torch.inference_mode()
    def run(recorder: Recorder) -> None:
        with (
            marks.to(recorder) if marks else nullcontext(),
            torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext(),
        ):
            batch = model.stack([image])
            *_, proposals = model.propose(batch)
        recorder.mark("deep CLIP" if marks else COMPILED)
        output = model.classify(proposals, text_embed)
        recorder.mark("classification")
        if not scene:
            scene.append(_scene(output.mask_logits[0], piece.classes))
        masks, classes = scene[0]
        labels(masks, classes, Geometry((batch.shape[2], batch.shape[3]), size, size))
        recorder.mark(LABEL_MAP)

    return run


def _scene(masks: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return logits of a synthetic scene with the shape (Q, h_s, w_s) and device of the network's logits."""
    if masks.is_meta:
        return torch.empty_like(masks), masks.new_empty(len(masks), classes + 1)
    drawn, logits = synthetic_scene(len(masks), (masks.shape[1], masks.shape[2]), classes)
    return drawn.to(masks.device), logits.to(masks.device)


def _once(run: Callable[[Recorder], None], device: torch.device) -> dict[str, float]:
    """Run once, and return the seconds of each part."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    recorder = Recorder(clock_of(device))
    run(recorder)
    return recorder.parts()

"""What a model consists of and costs, part by part: parameters, multiply-adds, time and memory.

A part ends where `PartMarks` sets a mark, so that counting and timing divide a run in the same places, and a registered
part of the user's is counted and timed like SAN's own.

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
from san.benchmark.workload import PartMarks, drawn_scene
from san.clip.loader import LoadedClip
from san.io.errors import one_line
from san.model.attention_bias import AttentionBiasHead
from san.model.build import outline
from san.model.san import SANModel
from san.postprocess import Geometry, semantic_labels
from san.shapes.world import NAMES as SHAPES_NAMES
from san.vocabulary.label_sets import LABEL_SETS, load_label_set

NETWORK = (
    "input", "shallow CLIP", "side network", "fusion", "mask head", "bias head", "deep CLIP", "classification",
)  # fmt: skip
"""The parts of the network, in the order in which they first end."""
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
"""The part of a parameter by the beginning of its name; the first that fits."""


@dataclass(frozen=True)
class Workpiece:
    """What is put through a model: one drawn image, and a vocabulary.

    Attributes:
        height, width: of the image as it goes into the network, and of the label map, in pixels.
        classes: C.

    Raises:
        ValueError: one of them is below 1.
    """

    height: int
    width: int
    classes: int

    def __post_init__(self) -> None:
        """Refuse what cannot be put through."""
        if min(self.height, self.width, self.classes) < 1:
            raise ValueError(f"height, width and classes must be 1 or more; got {self}")


@dataclass(frozen=True)
class Timing:
    """What was measured of a model on a machine.

    Attributes:
        seconds: median time of one image, from uint8 pixels to the label map; the text embeddings exist.
        spread: half the distance between the quartiles.
        parts: median seconds of each part.
        peak_bytes: the most memory held in a run, weights and libraries included; on a GPU what torch gave out.
        peak_is_of_runs: False where the system cannot tell the runs' peak from that of loading the model.
        text_seconds: of embedding the names once, none of them cached; None without names.
    """

    seconds: float
    spread: float
    parts: dict[str, float]
    peak_bytes: int
    peak_is_of_runs: bool
    text_seconds: float | None


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """All parameters of each part, and those that are trained (that require a gradient)."""
    found: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = next((owner for start, owner in _OWNERS.items() if name.startswith(start)), OTHER)
        total, trained = found.get(part, (0, 0))
        found[part] = (total + parameter.numel(), trained + parameter.numel() * parameter.requires_grad)
    return {part: found[part] for part in PARTS if part in found}


def on_meta(model: SANModel) -> SANModel:
    """A copy of a model that has shapes only, which takes no memory and no time to run; in float32."""

    def bare(value: Tensor) -> Tensor:
        return torch.empty_like(value, device="meta", dtype=torch.float32 if value.is_floating_point() else None)

    tensors = {id(each): bare(each) for each in model.buffers()}
    for each in model.parameters():
        tensors[id(each)] = nn.Parameter(bare(each), each.requires_grad)
    return copy.deepcopy(model, tensors)


def plain_on_meta(model: SANModel) -> SANModel:
    """As `on_meta`, computed as the method is written."""
    clip = LoadedClip(model.arch, None, model.text_classifier.embedder.tokenizer, fingerprint="")
    return outline(model.config, clip, PlainSAN)


def count_multiply_adds(model: SANModel, piece: Workpiece, *, as_written: bool = False) -> dict[str, int] | None:
    """Multiply-adds of each part for one image, in matrix products, convolutions and attention; other operators are 0.

    The label map is counted with every class at every pixel. A prediction on a CPU leaves out classes that cannot win.

    Args:
        model: on any device; counted is a copy without values.
        piece: the image and the vocabulary.
        as_written: of the method without shortcuts, `san.benchmark.reference`.

    Returns:
        Part to multiply-adds; None as written where the bias head is not SAN's own, which has no plain form.

    Raises:
        ValueError: a part reads the values of tensors, of which a copy without values has none.
    """
    if as_written and type(model.bias_head) is not AttentionBiasHead:
        return None
    model = (plain_on_meta(model) if as_written else on_meta(model)).eval()
    run = make_run(model, piece, marks=PartMarks(model, fine=True), plain=as_written)
    with counting() as recorder_of:
        recorder = recorder_of()
        try:
            run(recorder)
        except RuntimeError as error:
            if "meta" not in str(error):  # device of tensors without values
                raise
            raise ValueError(
                f"the model cannot be counted: one of its parts reads the values of tensors ({one_line(error)}); "
                "write it without .item(), .tolist() and if on tensors"
            ) from error
        parts = recorder.parts()
    return {part: int(parts[part]) for part in PARTS if part in parts}


def count_text(model: SANModel, names: Sequence[str], *, as_written: bool = False) -> int:
    """Multiply-adds of embedding names in the model's templates; as written with every prompt at CLIP's full length."""
    classifier = on_meta(model).text_classifier
    with counting() as recorder_of:
        recorder = recorder_of()
        count_names(classifier, names, plain=as_written)
        recorder.mark(TEXT_TOWER)
        return int(recorder.parts()[TEXT_TOWER])


def names_for(model: SANModel, count: int) -> list[str] | None:
    """Names to embed: those of a label set of so many classes, else the first of ADE20K-847; None for more."""
    if model.config.clip.name == "shapes":  # whose tokenizer knows no other words
        return list(SHAPES_NAMES[:count]) if count <= len(SHAPES_NAMES) else None
    for label_set in map(load_label_set, LABEL_SETS):
        if label_set.num_classes == count:
            return list(label_set.classes)
    return class_names(count) if count <= load_label_set("ade20k_847").num_classes else None


def measure_time(
    model: SANModel, piece: Workpiece, *, dtype: torch.dtype, runs: int = 5, compiled: bool = False
) -> Timing:
    """Times a model where it is.

    Args:
        model: in evaluation, its weights held in `dtype` (see `san.model.precision`).
        piece: the image and the vocabulary.
        dtype: what the network computes in.
        runs: timed runs, after two that are not.
        compiled: the network is compiled: it is one part, "compiled network".
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
    piece: Workpiece,
    *,
    marks: PartMarks | None,
    plain: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Callable[[Recorder], None]:
    """One image from pixels to the label map, on the model's device; parts are marked in a recorder.

    The class logits are computed, but the label map is made of a drawn scene's: random weights give one class
    everywhere, which would be too easy.

    Args:
        model: in evaluation.
        piece: the image and the vocabulary.
        marks: hooked to the model; None for a compiled one.
        plain: the label map is made without shortcuts; the network is what the model makes of it.
        dtype: what the network computes in.
    """
    device, size = model.pixel_mean.device, (piece.height, piece.width)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.manual_seed(2)).to(device)
    text_embed = torch.zeros(piece.classes, model.arch.embed_dim, device=device)
    text_embed[:, 0] = 1
    labels = plain_labels if plain else semantic_labels
    scene: list[tuple[Tensor, Tensor]] = []  # made once the shape of the network's masks is known

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
    """Logits of a drawn scene that have the shape of the network's (Q, h_s, w_s), on its device."""
    if masks.is_meta:
        return torch.empty_like(masks), masks.new_empty(len(masks), classes + 1)
    drawn, logits = drawn_scene(len(masks), (masks.shape[1], masks.shape[2]), classes)
    return drawn.to(masks.device), logits.to(masks.device)


def _once(run: Callable[[Recorder], None], device: torch.device) -> dict[str, float]:
    """Seconds of the parts of a run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    recorder = Recorder(clock_of(device))
    run(recorder)
    return recorder.parts()

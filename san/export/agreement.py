"""Compares exported graphs with the model: relative errors, agreement of label maps, CPU time.

C classes, P prompts, T text tokens, (H, W) image. Source: docs/method.md#7.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from san.data.transforms import resize_image, resize_short_side
from san.export.formats import onnx_path
from san.export.graphs import PixelGraph, TextGraph
from san.inference.predictor import Predictor
from san.postprocess import Geometry, labels_and_scores
from san.torch_defaults import torch_defaults

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Agreement:
    """How the graphs of one precision compare with the model in PyTorch, float32, at worst over the pictures.

    Attributes:
        precision: of the graphs.
        mask_error: largest difference of mask logits, relative to the largest of them.
        sls_error: as `mask_error`, of [SLS] embeddings.
        text_error: as `mask_error`, of text embeddings.
        labels: share of all pixels with the same class.
        seconds: CPU time per picture, of the graph "image".
        torch_seconds: CPU time per picture, of the model.
        megabytes: of the graph "image".
    """

    precision: str
    mask_error: float
    sls_error: float
    text_error: float
    labels: float
    seconds: float
    torch_seconds: float
    megabytes: float


@torch_defaults()
@torch.inference_mode()
def measure_agreement(
    predictor: Predictor, folder: Path, precision: str, pictures: Sequence[npt.NDArray[np.uint8]], tokens: Tensor
) -> Agreement:
    """Run the graphs of a folder with onnxruntime, and compare.

    Args:
        predictor: of the model that was exported.
        folder: with the graphs.
        precision: of the graphs.
        pictures: (H, W, 3) uint8 RGB, at least one.
        tokens: (C, P, T) ids of the classes among which pixels are labelled.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting is no work

    def session(graph: str, kind: str = precision) -> Callable[[Arrays], dict[str, Any]]:
        opened = onnxruntime.InferenceSession(
            onnx_path(folder, graph, kind), options, providers=["CPUExecutionProvider"]
        )
        names = [each.name for each in opened.get_outputs()]
        return lambda inputs: dict(zip(names, opened.run(names, inputs), strict=True))

    image, text, labels = session("image"), session("text"), session("labels", "float32")
    model = predictor.model
    expected_text = TextGraph(model)(tokens)[0]
    text_embed = text({"tokens": tokens.numpy()})["text_embed"]
    errors, same, total, times = [(0.0, 0.0)], 0, 0, [0.0, 0.0]
    for picture in pictures:
        size = resize_short_side(picture.shape[0], picture.shape[1], predictor.short_side, predictor.max_size)
        pixels = resize_image(picture, size)[None]
        image({"pixels": pixels})  # the first run of a size prepares its memory
        found, times[0] = _timed(image, {"pixels": pixels}, times[0])
        stacked, sizes = PixelGraph(model)(torch.from_numpy(pixels))
        (*_, expected), times[1] = _timed(model.propose, stacked, times[1])
        errors.append(
            (_relative(found["mask_logits"], expected.mask_logits), _relative(found["sls_embed"], expected.sls_embed))
        )
        output = (picture.shape[0], picture.shape[1])
        answer = labels(found | {"text_embed": text_embed, "output_size": np.array(output)})
        padded = (int(sizes[0, 0]), int(sizes[0, 1]))
        scored = model.classify(expected, expected_text)
        wanted, _ = labels_and_scores(scored.mask_logits[0], scored.class_logits[0], Geometry(padded, size, output))
        same, total = same + int((answer["labels"] == wanted.numpy()).sum()), total + wanted.numel()
    mask_error, sls_error = map(max, zip(*errors, strict=True))
    return Agreement(
        precision,
        mask_error,
        sls_error,
        _relative(text_embed, expected_text),
        same / total,
        times[0] / len(pictures),
        times[1] / len(pictures),
        onnx_path(folder, "image", precision).stat().st_size / 1e6,
    )


def drawn_pictures(short_side: int) -> list[npt.NDArray[np.uint8]]:
    """Return pictures of odd sizes, of smooth colours, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(short_side, short_side), (short_side - 3, short_side * 4 // 3 + 1), (short_side * 3 // 2 - 1, short_side)]
    coarse = [torch.rand(1, 3, 6, 8, generator=generator) * 255 for _ in sizes]
    smooth = [F.interpolate(each, size, mode="bicubic").clamp(0, 255) for each, size in zip(coarse, sizes, strict=True)]
    return [each[0].permute(1, 2, 0).to(torch.uint8).numpy() for each in smooth]


def drawn_tokens(predictor: Predictor) -> Tensor:
    """Return tokens (20, 2, T) of random texts, the same on every call; the last token of a text is the largest id."""
    text = predictor.model.arch.text
    length = min(8, text.context_length)
    ids = torch.randint(text.vocab_size - 1, (20, 2, length), generator=torch.Generator().manual_seed(0))
    ids[..., -1] = text.vocab_size - 1
    return ids


def _timed(action: Callable[[Any], Any], argument: Any, before: float) -> tuple[Any, float]:
    """Return an action's result, and the CPU time so far."""
    start = time.process_time()
    result = action(argument)
    return result, before + time.process_time() - start


def _relative(found: npt.NDArray[np.float32], expected: Tensor) -> float:
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())

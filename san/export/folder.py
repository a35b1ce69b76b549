"""Exports a model into a folder: ONNX files, an archive of torch.export, the embeddings of a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from san import __version__
from san.export.agreement import Agreement, drawn_pictures, drawn_tokens, measure_agreement
from san.export.formats import (
    AGREEMENT_FILE,
    COMPILED_FILE,
    FORMATS,
    ONNX_TORCH,
    OPSET,
    OPSETS,
    PRECISIONS,
    PROGRAM_FILE,
    VOCABULARY_FILE,
)
from san.export.graphs import proposal_graph
from san.export.onnx_files import write_onnx, write_variant
from san.inference.predictor import Predictor
from san.io.errors import require_extra
from san.io.files import replacing, write_whole
from san.torch_defaults import torch_defaults
from san.vocabulary.vocabulary import Vocabulary, VocabularyLike


@torch_defaults()
@torch.inference_mode(False)
def export_model(
    predictor: Predictor,
    folder: str | Path,
    *,
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("float32",),
    vocabulary: VocabularyLike | None = None,
    opset: int = OPSET,
    pictures: Sequence[npt.NDArray[np.uint8]] = (),
    check: bool = True,
) -> list[Agreement]:
    """Export a model, and compare the ONNX files with it.

    Args:
        predictor: of the model, on the CPU, in float32, with one short side.
        folder: is made; existing files are replaced.
        formats: of `FORMATS`.
        precisions: of `PRECISIONS`, of the ONNX files; float32 is always written.
        vocabulary: classes whose embeddings are written to ``vocabulary.npz``.
        opset: of the ONNX files, of `OPSETS`.
        pictures: (H, W, 3) uint8 RGB, for the comparison; by default three of odd sizes are drawn.
        check: whether to compare; the result is also written to ``agreement.json``.

    Returns:
        One comparison per precision; empty without "onnx" or `check`.

    Raises:
        ValueError: a format, precision or opset is unknown, the predictor does not fit, or PyTorch is too old.
        MissingExtraError: the extra "export" is not installed.
    """
    for kind, given, known in (("format", formats, FORMATS), ("precision", precisions, PRECISIONS)):
        for each in given:
            if each not in known:
                raise ValueError(f"no {kind} {each!r} of an export; choose of {', '.join(known)}")
    if opset not in OPSETS:
        raise ValueError(f"no opset {opset} of an export; choose {OPSETS.start} to {OPSETS.stop - 1}")
    if predictor.device.type != "cpu" or predictor.dtype != torch.float32:
        raise ValueError(f"an export is made of a model on the CPU in float32, not of {predictor}; load it so")
    if len(predictor.short_sides) > 1 or predictor.flip:
        raise ValueError(f"an export has one size and no mirror image, not those of {predictor}; give one short side")
    if not predictor.model.arch.is_plain:
        raise ValueError(
            f"an export is made of a model on open_clip's class-token ViT with CLIP's own text tower, not on "
            f"{predictor.model.config.clip.name!r}; use san predict or san.Predictor"
        )
    if "onnx" in formats:
        require_extra("export", "exporting to ONNX", "onnx", "onnxscript", "onnxruntime")
        if torch_release() < ONNX_TORCH:
            oldest = ".".join(map(str, ONNX_TORCH))
            raise ValueError(
                f"PyTorch {torch.__version__} is older than {oldest}, the first with which ONNX was tested; "
                "update it, or choose the format pt2"
            )
    if needs := predictor.model.scorer.needs:
        raise ValueError(
            f"an export computes [SLS] embeddings alone, but the scorer {predictor.model.config.scorer.name!r} also "
            f"needs {', '.join(needs)}; load the model with the scorer sls"
        )
    words = None if vocabulary is None else Vocabulary.parse(vocabulary)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if words is not None:
        _write_vocabulary(predictor, words, folder / VOCABULARY_FILE)
    _write_programs(predictor, folder, formats)
    if "onnx" not in formats:
        return []
    metadata = {"short_side": str(predictor.short_side), "max_size": str(predictor.max_size), "san": __version__}
    write_onnx(predictor.model, folder, opset=opset, metadata=metadata)
    kinds = [each for each in PRECISIONS if each in {"float32", *precisions}]
    for precision in kinds[1:]:
        write_variant(folder, precision)
    if not check:
        return []
    shown = pictures or drawn_pictures(predictor.short_side)
    tokens = drawn_tokens(predictor) if words is None else tokens_of(predictor, words.names)
    found = [measure_agreement(predictor, folder, precision, shown, tokens) for precision in kinds]
    write_whole(folder / AGREEMENT_FILE, json.dumps([asdict(each) for each in found], indent=1) + "\n")
    return found


def torch_release() -> tuple[int, ...]:
    """Return the release of PyTorch, such as (2, 14)."""
    return tuple(map(int, torch.__version__.split(".")[:2]))


def tokens_of(predictor: Predictor, names: Sequence[str]) -> torch.Tensor:
    """Return the token ids (C, P, T) of names in all templates, the input of the graph "text"; T as small as it can be.

    Args:
        predictor: of the model.
        names: C of them.
    """
    embedder = predictor.model.text_classifier.embedder
    ids: torch.Tensor = embedder.tokenizer([prompt for name in names for prompt in embedder.prompts(name)])  # (C P, T)
    tokens: torch.Tensor = ids[:, : int(ids.argmax(dim=-1).max()) + 1].unflatten(0, (len(names), -1))  # (C, P, T)
    return tokens


def _write_vocabulary(predictor: Predictor, words: Vocabulary, path: Path) -> None:
    """Write the embeddings of a vocabulary, and what class logits are computed with, as numpy arrays."""
    model = predictor.model
    arrays: dict[str, Any] = {"names": np.array(words.names)}
    with torch.no_grad():
        arrays["text_embed"] = model.text_classifier.embed(words.classes).numpy()
        if model.config.scorer.name == "sls":  # others have a computation of their own
            arrays["no_object_embed"] = torch.nn.functional.normalize(model.text_classifier.no_object_embed).numpy()
            arrays["logit_scale"] = model.text_classifier.logit_scale.exp().numpy()
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def _write_programs(predictor: Predictor, folder: Path, formats: Sequence[str]) -> None:
    """Write the graph of the image as archives of torch.export."""
    if not {"pt2", "aoti"} & {*formats}:
        return
    program = proposal_graph(predictor.model).trace()
    if "pt2" in formats:
        with replacing(folder / PROGRAM_FILE) as path:
            torch.export.save(program, path)
    if "aoti" in formats:
        with replacing(folder / COMPILED_FILE) as path:
            path.unlink()
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))

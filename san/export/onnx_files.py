"""Writes the graphs of a model as ONNX files, and their variants in int8 and half precision."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from san.export.formats import onnx_path
from san.export.graphs import ModelGraph, label_graph, pixel_graph, proposal_graph, text_graph
from san.io.files import replacing
from san.model.san import SANModel


def write_onnx(model: SANModel, folder: Path, *, opset: int, metadata: Mapping[str, str]) -> None:
    """Write the three graphs in float32.

    Args:
        model: on the CPU, in evaluation.
        folder: exists.
        opset: of the files.
        metadata: kept in the file of the image's graph.
    """
    from onnx.compose import add_prefix, merge_models

    # one graph cannot be traced for all sizes: what pads loses that its result is a multiple of the side patch
    pixels = add_prefix(_translate(pixel_graph(model), opset), "pad_", rename_inputs=False, rename_outputs=False)
    proposals = _translate(proposal_graph(model), opset)
    image = merge_models(
        pixels, proposals, io_map=[("images", "images")], outputs=["mask_logits", "sls_embed", "sizes"]
    )
    del image.opset_import[1:]  # merging lists it twice
    for key, value in metadata.items():
        image.metadata_props.add(key=key, value=value)
    for name, proto in (("image", image), ("text", _translate(text_graph(model), opset))):
        _save(proto, onnx_path(folder, name))
    _save(_translate(label_graph(model), opset), onnx_path(folder, "labels"))


def write_variant(folder: Path, precision: str) -> None:
    """Write the graphs of image and text in another precision, from their float32 files.

    Inputs and outputs keep their types. "int8" quantises the weights of matrix products; their inputs are quantised
    at run time.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    for graph in ("image", "text"):
        source = onnx_path(folder, graph)
        with replacing(onnx_path(folder, graph, precision)) as path, _quiet():
            if precision == "int8":
                quantize_dynamic(
                    source,
                    path,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    reduce_range=True,  # 7 bits: x86 CPUs without VNNI add products in 16 bits, which 8 bits overflow
                )
            else:
                half = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
                half.topological_sort()  # the converter appends its casts
                onnx.save(half.model, path)


def _translate(graph: ModelGraph, opset: int) -> Any:
    """Return the ONNX model of a graph."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.trace(),
            dynamo=True,
            input_names=[*graph.inputs],
            output_names=[*graph.outputs],
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _save(proto: Any, path: Path) -> None:
    import onnx

    with replacing(path) as temporary:
        onnx.save(proto, temporary)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of exporter and quantiser, and their messages in the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)

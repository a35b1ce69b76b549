"""What an export can be: names of formats and precisions, and of the files in its folder."""

from __future__ import annotations

from pathlib import Path

FORMATS = ("onnx", "pt2", "aoti")
"""ONNX files, an archive of torch.export, and one that is compiled for this machine's CPU."""

PRECISIONS = ("float32", "float16", "int8")
"""Of the weights in ONNX files; float32 is always written, because the others are made of it."""

OPSET = 23
"""Of ONNX files by default."""

OPSETS = range(18, 24)
"""Those that can be chosen: PyTorch's exporter writes 18 and later."""

ONNX_TORCH = (2, 14)
"""The first release of PyTorch that writes ONNX files here; earlier ones are not tested."""

VOCABULARY_FILE, PROGRAM_FILE, COMPILED_FILE = "vocabulary.npz", "image.pt2", "image_compiled.pt2"
AGREEMENT_FILE = "agreement.json"


def onnx_path(folder: Path, graph: str, precision: str = "float32") -> Path:
    """Return the ONNX file of a graph: "image", "text", or "labels", which has no weights and no other precision."""
    return folder / (f"{graph}.onnx" if precision == "float32" else f"{graph}_{precision}.onnx")

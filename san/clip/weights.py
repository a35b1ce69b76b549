"""Weights files: read without ever running code from them, and told apart by a fingerprint."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from san.files import sha256_of

_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)
"""What readers raise on a file that is cut, foreign, or holds more than tensors."""


def read_tensors(path: Path) -> Any:
    """The content of a weights file, never running code from it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {str(path)!r}; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{str(path)!r} is no readable weights file ({reason}); download or write it again") from error


def read_clip_weights(path: Path, *, trusted_scripts: Callable[[], Container[str]]) -> tuple[dict[str, Tensor], bool]:
    """CLIP weights in float32 under open_clip's names, and whether they are an original OpenAI file.

    Args:
        path: a weights file; OpenAI published TorchScript archives, which hold code beside the weights.
        trusted_scripts: gives the SHA-256 of the archives that may be opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no CLIP, or a TorchScript archive other than the trusted ones.
    """
    loaded = _read_script(path, trusted_scripts()) if _is_script(path) else read_tensors(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or "visual.class_embedding" not in {key.removeprefix("module.") for key in state}:
        raise ValueError(
            f"{str(path)!r} holds no class-token ViT CLIP in open_clip's naming; give a file that open_clip reads"
        )
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    openai = "input_resolution" in state
    keep = {
        key: value.float()
        for key, value in state.items()
        if value.is_floating_point() and not key.endswith("attn_mask")
    }
    return keep, openai


def _is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except _DAMAGED:  # read as plain tensors, where the damage is told of
        return False


def _read_script(path: Path, trusted: Container[str]) -> Mapping[str, Tensor]:
    digest = sha256_of(path)
    if digest not in trusted:
        raise ValueError(
            f"{str(path)!r} is a TorchScript archive, which can run code, and none that OpenAI published (SHA-256 "
            f"{digest}); save its state_dict as a .safetensors file and give that"
        )
    state: Mapping[str, Tensor] = torch.jit.load(path, map_location="cpu").state_dict()
    return state


def weights_fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """A short hash of names, shapes and a sample of every tensor's values."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        value = state_dict[key].detach().float().flatten()
        sample = value[:: max(1, value.numel() // 64)].contiguous().cpu().numpy()
        digest.update(f"{key}{tuple(state_dict[key].shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]

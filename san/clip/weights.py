"""Reads CLIP weights from a file, and checks weights before a model loads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from san.clip.hugging_face import from_hugging_face, has_quick_gelu, is_hugging_face
from san.clip.open_clip_names import from_open_clip
from san.clip.weights_file import DAMAGED, kind_of_flaw, open_archive, read_tensors
from san.io.errors import excerpt, listed, one_line
from san.io.files import sha256_of
from san.torch_defaults import torch_defaults

_MAX_SCRIPT = 4 << 30  # bytes; OpenAI's largest archive has 1.3 GB
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2}
"""Number types that a tensor of weights may be converted from and to."""


def read_clip_weights(
    path: Path, *, trusted_scripts: Callable[[], Container[str]]
) -> tuple[dict[str, Tensor], bool | None]:
    """Read CLIP weights in the file's precision, with open_clip's names, and whether they need QuickGELU.

    OpenAI's own file says so, as does the config.json beside one of transformers; None where nothing does.

    Args:
        path: a weights file of open_clip or transformers' `CLIPModel`; OpenAI published TorchScript archives, which
            hold code beside the weights.
        trusted_scripts: gives the SHA-256 of the archives that may be opened.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, not a CLIP, or a TorchScript archive that is not trusted.
    """
    loaded = _read_script(path, trusted_scripts()) if _is_script(path) else read_tensors(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    state = state if isinstance(state, Mapping) else {}
    state = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    quick_gelu = True if "input_resolution" in state else None  # OpenAI's own
    if is_hugging_face(state):
        state, quick_gelu = from_hugging_face(state), has_quick_gelu(path)
    state = from_open_clip(state)
    if "visual.positional_embedding" not in state:
        raise ValueError(
            f"{str(path)!r} contains no class-token ViT CLIP; give a file that open_clip reads, or the weights of "
            "transformers' CLIPModel"
        )
    keep = {key: value for key, value in state.items() if value.is_floating_point() and not key.endswith("attn_mask")}
    return keep, quick_gelu


def _is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        archive = open_archive(path)
    except DAMAGED:  # `read_tensors` says what is wrong
        return False
    if archive is None:
        return False
    with archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_script(path: Path, trusted: Container[str]) -> Mapping[str, Tensor]:
    digest = sha256_of(path) if path.stat().st_size <= _MAX_SCRIPT else "not computed: it is too large"
    if digest not in trusted:
        raise ValueError(
            f"{str(path)!r} is a TorchScript archive, which can run code, and is not one of OpenAI's (SHA-256 "
            f"{digest}); save its state_dict as a .safetensors file and give that"
        )
    state: Mapping[str, Tensor] = torch.jit.load(path, map_location="cpu").state_dict()
    return state


def tensor_mismatches(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return why tensors cannot be loaded into a model, a line each, without copying anything.

    Args:
        found: tensors by name.
        wanted: those of the model, which may be on the meta device.
    """
    lines = [f"{key}: missing" for key in wanted if key not in found]
    lines += [f"{_shown(key)}: unexpected" for key in found if key not in wanted]
    for key, target in wanted.items():
        if key not in found:
            continue
        value, flaw = found[key], kind_of_flaw(found[key])
        if flaw:
            lines.append(f"{key}: {flaw} instead of dense")
        elif value.shape != target.shape:
            lines.append(f"{key}: {excerpt(tuple(value.shape))} instead of {tuple(target.shape)}")
        elif value.dtype != target.dtype and not {value.dtype, target.dtype} <= _FLOATS:
            lines.append(f"{key}: {value.dtype} instead of {target.dtype}")
    return lines


def listed_tensors(lines: Iterable[str]) -> str:
    """Join the lines about tensors into one text."""
    return listed(lines, 40, "; ")


@torch_defaults()
def check_finite(tensors: Mapping[str, Tensor], label: str) -> None:
    """Refuse weights that are NaN or infinite, or would be in single precision.

    Args:
        tensors: by name; complex ones are not checked.
        label: their source, for the message.

    Raises:
        ValueError: names the tensors and the number of such values.
    """
    lines = []
    for key, value in tensors.items():
        if value.numel() and value.is_floating_point():
            value = value.float() if value.element_size() in (1, 8) else value
            if not torch.isfinite(torch.stack(torch.aminmax(value))).all():  # NaN is the least and the largest
                count = int((~torch.isfinite(value)).sum())
                lines.append(f"{_shown(key)} ({count:,} of {value.numel():,})")
    if lines:
        raise ValueError(
            f"{label} holds NaN or infinite weights in {len(lines)} of {len(tensors)} tensors: "
            f"{listed_tensors(lines)}; use a file from before training diverged, or download it again"
        )


def _shown(key: str) -> str:
    """Return a name from a file, safe for a message."""
    return one_line(key, limit=100) or excerpt(key)


def weights_fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """Return a short hash of names, shapes and a sample of every tensor's values."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        value = state_dict[key].detach().flatten()
        sample = value[:: max(1, value.numel() // 64)].float().contiguous().cpu().numpy()
        digest.update(f"{key}{tuple(state_dict[key].shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]

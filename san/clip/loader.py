"""Loads a CLIP by name and weights, as plain records.

A CLIP comes from open_clip by name and tag, from a local weights file, or from a self-describing file of this project
(`save_clip_file`), which may also have a name (`san.clip.named.CLIPS`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from san.clip import open_clip_adapter
from san.clip.arch import ClipArch
from san.clip.named import CLIPS
from san.clip.open_clip_config import arch_of
from san.clip.tokenizer import Tokenizer, fitting_tokenizer
from san.clip.weights import read_clip_weights, weights_fingerprint
from san.clip.weights_file import read_metadata, read_tensors
from san.io.errors import one_line
from san.record import FieldError, FieldFileError, parse_json
from san.torch_defaults import torch_defaults

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedClip:
    """Everything that is needed to build a CLIP.

    Attributes:
        arch: the architecture, with QuickGELU as the weights were trained.
        state_dict: weights under open_clip's names, in the precision of their file; None without pretrained weights.
        tokenizer: texts to ids.
        fingerprint: identifies the weights; equal weights give equal fingerprints.
    """

    arch: ClipArch
    state_dict: dict[str, Tensor] | None = field(repr=False)
    tokenizer: Tokenizer
    fingerprint: str


@torch_defaults()
def load_clip(
    name: str,
    pretrained: str | None,
    *,
    weights: bool = True,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> LoadedClip:
    """Load a CLIP by name and weights.

    Args:
        name: one of `CLIPS`, or an open_clip model name of a class-token ViT ("ViT-B-16", "ViT-L-14-336", ...).
        pretrained: an open_clip tag ("openai", ...), a weights file, "tag:file" for a tag's weights in a file of yours,
            the name of one of `CLIPS` for its own weights, or None for an untrained model.
        weights: False skips the weights of a tag and downloads nothing, because a checkpoint will provide them.
        cache_dir: of a tag's weights, see `open_clip_adapter.fetch_weights`.
        local_files_only: do not use the network.

    Raises:
        ValueError: the name or the tag is unknown, or the model has no class-token ViT, which SAN needs.
        FileNotFoundError: the weights are not on this machine and cannot be downloaded; the message says what to
            download, and where to put it.
    """
    own = CLIPS.get(name) if name in CLIPS else None
    if isinstance(own, Path):
        return _load_named_file(name, own, pretrained)
    if pretrained in CLIPS and pretrained != name:
        raise FieldError(
            f"the weights {pretrained!r} are not of CLIP {name!r}; set clip.name to {pretrained}", "clip.name"
        )
    arch = own or _open_clip_arch(name)
    tokenizer = fitting_tokenizer(arch.text, None)
    if not pretrained:
        return LoadedClip(arch, None, tokenizer, fingerprint=f"{name}/untrained")
    tag, file = _tag_and_file(pretrained)
    if tag:
        if own:
            raise FieldError(
                f"CLIP {name!r} has no weights {tag!r}; leave clip.pretrained empty, or name a file", "clip.pretrained"
            )
        arch = _as_trained(arch, open_clip_adapter.trained_as(name, tag), openai=tag == "openai")
        if not file and not weights:
            return LoadedClip(arch, None, tokenizer, fingerprint=f"{name}/{tag}")
        file = file or open_clip_adapter.fetch_weights(
            name, tag, cache_dir=cache_dir, local_files_only=local_files_only
        )
    assert file is not None
    state_dict, quick_gelu = read_clip_weights(file, trusted_scripts=open_clip_adapter.openai_hashes)
    if not tag:
        arch = replace(arch, quick_gelu=arch.quick_gelu or bool(quick_gelu))
        if quick_gelu is None and not arch.quick_gelu and not own and arch.is_plain:
            logger.warning(
                "%s does not say how it was trained: it is used as %s with plain GELU. If these are OpenAI's weights, "
                "every result would be wrong: set clip.pretrained to openai:%s",
                file,
                name,
                file,
            )
    return LoadedClip(arch, state_dict, tokenizer, weights_fingerprint(state_dict))


def _load_named_file(name: str, file: Path, pretrained: str | None) -> LoadedClip:
    """Load a named CLIP from its own file, from another file of the same kind, or without weights."""
    if not pretrained:
        return replace(_load_own_file(file), state_dict=None, fingerprint=f"{name}/untrained")
    if pretrained != name and not Path(pretrained).is_file():
        raise FieldError(
            f"CLIP {name!r} has the weights {name!r}, and there is no file {pretrained!r}; "
            f"set clip.pretrained to {name}, or to a file of san.clip.loader.save_clip_file",
            "clip.pretrained",
        )
    return _load_own_file(file if pretrained == name else Path(pretrained))


def _tag_and_file(pretrained: str) -> tuple[str, Path | None]:
    """Split into tag and file ("openai:ViT-B-16.safetensors"); the tag is "" if only a file is given."""
    if Path(pretrained).is_file():
        return "", Path(pretrained)
    tag, colon, file = pretrained.partition(":")
    if colon and Path(file).is_file():
        return tag, Path(file)
    if colon or Path(pretrained).suffix or len(Path(pretrained).parts) > 1:
        raise FieldFileError(
            f"no CLIP weights at {file if colon else pretrained!r}; "
            "set clip.pretrained to an open_clip tag or an existing file",
            "clip.pretrained",
        )
    return pretrained, None


def _as_trained(arch: ClipArch, record: Mapping[str, Any], *, openai: bool) -> ClipArch:
    """Return the architecture with the activation and pixel statistics of its training."""
    return replace(
        arch,
        quick_gelu=arch.quick_gelu or openai or bool(record.get("quick_gelu")),
        mean=tuple(record.get("mean", arch.mean)),
        std=tuple(record.get("std", arch.std)),
    )


def _open_clip_arch(name: str) -> ClipArch:
    return arch_of(name, open_clip_adapter.model_config(name))


def save_clip_file(
    path: Path | str, state_dict: Mapping[str, Tensor], arch: ClipArch, *, token_ids: Sequence[int]
) -> None:
    """Write a self-describing CLIP file in half precision.

    Args:
        path: a `.safetensors` file.
        arch: the architecture.
        state_dict: weights under open_clip's names; `arch.text.vocab_size` is len(token_ids) + 1.
        token_ids: see `compact_tokenizer`.
    """
    from safetensors.torch import save_file

    tensors = {
        key: value.detach().half().contiguous().cpu()
        for key, value in state_dict.items()
        if not key.endswith("attn_mask")
    }
    header = {"format": "san-clip", "arch": json.dumps(arch.to_dict()), "token_ids": json.dumps(list(token_ids))}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=header)


def _load_own_file(path: Path) -> LoadedClip:
    header = read_metadata(path)
    if header.get("format") != "san-clip":
        read_tensors(path)  # reports a damaged file as damaged
        raise ValueError(
            f"{str(path)!r} is not a CLIP file of this project; write one with san.clip.loader.save_clip_file"
        )
    try:
        arch = ClipArch.from_dict(parse_json(header["arch"]))
        tokenizer = fitting_tokenizer(arch.text, parse_json(header["token_ids"]))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} has a header that describes no CLIP: {one_line(error, limit=300)}") from error
    state = read_tensors(path)
    return LoadedClip(arch, state, tokenizer, weights_fingerprint(state))

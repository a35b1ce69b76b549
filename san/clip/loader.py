"""From a CLIP's name and weights to plain records: the only file that imports open_clip.

A CLIP comes from open_clip by name and tag, from a local weights file, or from a self-describing file of this project
(`save_clip_file`), as the small CLIP of the shapes benchmark does.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from san.clip.arch import TINY, ClipArch, TextArch, VisionArch
from san.clip.weights import read_clip_weights, read_tensors, weights_fingerprint

logger = logging.getLogger(__name__)

_MAX_TOLD = 10_000  # words remembered, so that each is told once
_MAX_SHOWN = 10  # words in one warning

Tokenizer = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (N, context_length), int64; the end-of-text token has the largest id of its row."""

SHAPES_FILE = Path(__file__).parent.parent / "data" / "shapes" / "assets" / "clip.safetensors"
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_UNSUPPORTED_VISION = {
    "timm_model_name": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "ls_init_value": None,
    "pool_type": "tok",
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "qk_norm": False,
    "block_type": None,
}
_UNSUPPORTED_TEXT = {
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_type": "linear",
    "proj_bias": False,
    "ls_init_value": None,
}


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP ready to be built.

    Attributes:
        arch: the architecture, with QuickGELU as the weights were trained.
        state_dict: weights under open_clip's names, float32; None where no pretrained weights were asked for.
        tokenizer: texts to ids.
        fingerprint: identifies the weights; equal weights give equal fingerprints.
    """

    arch: ClipArch
    state_dict: dict[str, Tensor] | None
    tokenizer: Tokenizer
    fingerprint: str


def load_clip(name: str, pretrained: str | None, *, weights: bool = True) -> LoadedClip:
    """Finds a CLIP by name and weights.

    Args:
        name: an open_clip model name of a class-token ViT ("ViT-B-16", "ViT-L-14-336", ...), "shapes", or "tiny".
        pretrained: an open_clip tag ("openai", ...), a weights file, "tag:file" for a tag's weights in a file of yours,
            "shapes" for the committed small CLIP, or None for an untrained model.
        weights: False leaves a tag's weights out and downloads nothing; a checkpoint that has them all will bring them.

    Raises:
        ValueError: the name or the tag is unknown, or the model has not the class-token ViT that SAN needs.
        FileNotFoundError: the weights are neither here nor to be had; the message says what to download, and where to
            put it.
    """
    if name == "shapes":
        return _load_shapes(pretrained)
    if pretrained == "shapes":
        raise ValueError(f"the weights 'shapes' are not of CLIP {name!r}; set MODEL.CLIP.NAME to shapes")
    arch = TINY if name == "tiny" else _open_clip_arch(name)
    tokenizer = _bpe_tokenizer(arch.text.context_length)
    if not pretrained:
        return LoadedClip(arch, None, tokenizer, fingerprint=f"{name}/untrained")
    tag, file = _tag_and_file(pretrained)
    if tag:
        if name == "tiny":
            raise ValueError(f"CLIP 'tiny' has no weights {tag!r}; leave MODEL.CLIP.PRETRAINED empty, or name a file")
        record = _tag_record(name, tag)
        arch = _as_trained(arch, record, openai=tag == "openai")
        if not file and not weights:
            return LoadedClip(arch, None, tokenizer, fingerprint=f"{name}/{tag}")
        file = file or _fetch(name, tag, record)
    assert file is not None
    state_dict, openai = read_clip_weights(file, trusted_scripts=_openai_hashes)
    if not tag:
        arch = replace(arch, quick_gelu=arch.quick_gelu or openai)
        if not arch.quick_gelu and name != "tiny":
            logger.warning(
                "%s does not say how it was trained: taken as %s with plain GELU. If these are OpenAI's weights, every "
                "number would be off: set MODEL.CLIP.PRETRAINED to openai:%s",
                file,
                name,
                file,
            )
    return LoadedClip(arch, state_dict, tokenizer, weights_fingerprint(state_dict))


def _load_shapes(pretrained: str | None) -> LoadedClip:
    """The committed small CLIP, one like it from a file, or its architecture without weights."""
    if pretrained in (None, "", "shapes"):
        clip = _load_own_file(SHAPES_FILE)
        return clip if pretrained else replace(clip, state_dict=None, fingerprint="shapes/untrained")
    assert pretrained is not None
    if not Path(pretrained).is_file():
        raise ValueError(
            f"CLIP 'shapes' has the weights 'shapes', and there is no file {pretrained!r}; "
            "set MODEL.CLIP.PRETRAINED to shapes, or to a file of tools/train_shapes_clip.py"
        )
    return _load_own_file(Path(pretrained))


def _tag_and_file(pretrained: str) -> tuple[str, Path | None]:
    """A tag, a file, or both ("openai:ViT-B-16.safetensors"); an empty tag where only a file is named."""
    if Path(pretrained).is_file():
        return "", Path(pretrained)
    tag, colon, file = pretrained.partition(":")
    if colon and Path(file).is_file():
        return tag, Path(file)
    if colon or Path(pretrained).suffix or len(Path(pretrained).parts) > 1:
        raise FileNotFoundError(
            f"no CLIP weights at {file if colon else pretrained!r}; "
            "set MODEL.CLIP.PRETRAINED to an open_clip tag or an existing file"
        )
    return pretrained, None


def _openai_hashes() -> set[str]:
    """SHA-256 of the TorchScript files OpenAI published; their addresses hold it."""
    import open_clip

    names = open_clip.list_pretrained_models_by_tag("openai")
    urls = [open_clip.get_pretrained_cfg(name, "openai").get("url", "") for name in names]
    return {url.split("/")[-2] for url in urls if url}


def _as_trained(arch: ClipArch, record: Mapping[str, Any], *, openai: bool) -> ClipArch:
    """The architecture with the activation and pixel statistics its weights were trained with."""
    return replace(
        arch,
        quick_gelu=arch.quick_gelu or openai or bool(record.get("quick_gelu")),
        mean=tuple(record.get("mean", arch.mean)),
        std=tuple(record.get("std", arch.std)),
    )


def _open_clip_arch(name: str) -> ClipArch:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        near = [other for other in open_clip.list_models() if other.lower().startswith(name.lower()[:5])]
        raise ValueError(
            f"open_clip knows no model {name!r}; set MODEL.CLIP.NAME to one of its class-token ViTs, "
            f"such as {near or ['ViT-B-16']}"
        )
    vision, text = config["vision_cfg"], config["text_cfg"]
    wrong = [
        f"vision {key}={vision[key]!r}" for key, value in _UNSUPPORTED_VISION.items() if vision.get(key, value) != value
    ]
    wrong += [f"text {key}={text[key]!r}" for key, value in _UNSUPPORTED_TEXT.items() if text.get(key, value) != value]
    if isinstance(vision.get("layers"), list):
        wrong.append("vision is a ResNet")
    if "multimodal_cfg" in config:
        wrong.append("a CoCa model")
    if wrong:
        raise ValueError(
            f"CLIP model {name!r} is no plain class-token ViT with a causal text tower ({'; '.join(wrong)}); "
            "set MODEL.CLIP.NAME to one that is, such as ViT-B-16 or ViT-L-14-336"
        )
    width = vision.get("width", 768)
    return ClipArch(
        embed_dim=config["embed_dim"],
        vision=VisionArch(
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 16),
            width=width,
            depth=vision.get("layers", 12),
            num_heads=width // vision.get("head_width", 64),
            mlp_ratio=vision.get("mlp_ratio", 4.0),
        ),
        text=TextArch(
            context_length=text.get("context_length", 77),
            vocab_size=text.get("vocab_size", 49408),
            width=text.get("width", 512),
            depth=text.get("layers", 12),
            num_heads=text.get("heads", 8),
            mlp_ratio=text.get("mlp_ratio", 4.0),
        ),
        quick_gelu=bool(config.get("quick_gelu", False)),
    )


def _bpe_tokenizer(context_length: int, ids: Sequence[int] | None = None) -> Tokenizer:
    """CLIP's byte-pair tokenizer; with `ids`, mapped to their ranks, and every other id to 0."""
    import open_clip

    tokenize = open_clip.SimpleTokenizer(context_length=context_length)
    if ids is None:
        return lambda texts: tokenize(list(texts))
    return CompactTokenizer(lambda texts: tokenize(list(texts)), ids, tokenize.vocab_size)


class CompactTokenizer:
    """A tokenizer whose ids are the ranks of the few that a small CLIP knows; every other id becomes 0.

    Args:
        tokenize: texts to full ids.
        ids: the ids that are known, ascending.
        vocab_size: number of full ids.
    """

    def __init__(self, tokenize: Tokenizer, ids: Sequence[int], vocab_size: int) -> None:
        self._tokenize = tokenize
        self._ranks = torch.zeros(vocab_size, dtype=torch.long)
        self._ranks[torch.as_tensor(ids)] = torch.arange(1, len(ids) + 1)  # sorted: end-of-text stays the largest
        self._told: set[str] = set()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (N, T); words that the CLIP has never met are told."""
        full = self._tokenize(texts)
        tokens = self._ranks[full]
        unknown = ((tokens == 0) & (full != 0)).any(dim=1).tolist()
        self._tell({word for text, strange in zip(texts, unknown, strict=True) if strange for word in _words(text)})
        return tokens

    def _tell(self, words: set[str]) -> None:
        """One warning for those of the words that are unknown and were not told before."""
        if len(self._told) > _MAX_TOLD:  # a server meets words without end
            self._told.clear()
        fresh = sorted(words - self._told)
        if not fresh:
            return
        self._told.update(fresh)
        full = self._tokenize(fresh)
        never = ((self._ranks[full] == 0) & (full != 0)).any(dim=1).tolist()
        strange = [word for word, unknown in zip(fresh, never, strict=True) if unknown]
        if strange:
            shown = ", ".join(map(repr, strange[:_MAX_SHOWN]))
            more = f" and {len(strange) - _MAX_SHOWN} more" if len(strange) > _MAX_SHOWN else ""
            logger.warning("the small CLIP has never met %s%s: embeddings of it mean little", shown, more)


def _words(text: str) -> list[str]:
    """A text's words without the punctuation of the templates."""
    return [word for raw in text.split() if (word := raw.strip(".,"))]


def _tag_record(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of a tag: where its weights are, activation, pixel statistics."""
    import open_clip

    record: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not record:
        known = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(
            f"open_clip has no weights {tag!r} for {name!r}; set MODEL.CLIP.PRETRAINED to one of {known} or to a file"
        )
    return record


def _fetch(name: str, tag: str, record: dict[str, Any]) -> Path:
    """The weights file of an open_clip tag, from its cache or its hub."""
    import open_clip
    from huggingface_hub import constants, try_to_load_from_cache

    hub = record.get("hf_hub", "").strip("/")
    if hub:
        source, folder = f"{constants.ENDPOINT}/{hub} ({' or '.join(_HUB_FILES)})", constants.HF_HUB_CACHE
        for name_there in _HUB_FILES:
            found = try_to_load_from_cache(hub, name_there, cache_dir=constants.HF_HUB_CACHE)
            if isinstance(found, str):
                return Path(found)
    else:
        source, folder = record["url"], str(Path("~/.cache/clip").expanduser())
    try:
        if not getproxies():  # without a network, say so now and not after a minute of retries
            socket.getaddrinfo(urlparse(source).hostname, 443)
        return Path(open_clip.download_pretrained(record))  # checks what it finds in its cache
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the weights {tag!r} of CLIP {name!r} are not on this machine and cannot be downloaded ({error}); "
            f"download {source} elsewhere and set MODEL.CLIP.PRETRAINED to {tag}:FILE, or keep it in the cache {folder}"
        ) from error


def build_trainable_clip(arch: ClipArch) -> nn.Module:
    """An untrained open_clip CLIP of this architecture: encode_image, encode_text and logit_scale, to be pretrained."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision, text = arch.vision, arch.text
    model: nn.Module = CLIP(
        arch.embed_dim,
        CLIPVisionCfg(
            layers=vision.depth,
            width=vision.width,
            head_width=vision.width // vision.num_heads,
            mlp_ratio=vision.mlp_ratio,
            patch_size=vision.patch_size,
            image_size=vision.image_size,
        ),
        CLIPTextCfg(
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            width=text.width,
            heads=text.num_heads,
            layers=text.depth,
            mlp_ratio=text.mlp_ratio,
        ),
        quick_gelu=arch.quick_gelu,
    )
    return model


def token_ids(texts: Iterable[str]) -> list[int]:
    """Sorted ids of CLIP's tokenizer that occur in these texts, start and end of text among them."""
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    ids = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    return sorted(ids.union(*(tokenizer.encode(text) for text in texts)))


def compact_tokenizer(ids: Sequence[int], context_length: int) -> Tokenizer:
    """CLIP's tokenizer for a small vocabulary.

    Args:
        ids: sorted ids of CLIP's tokenizer that occur; id number i becomes i + 1, every other id 0.
        context_length: tokens in a row.
    """
    if list(ids) != sorted(set(ids)):
        raise ValueError("the ids of a compact vocabulary must be sorted and distinct")
    return _bpe_tokenizer(context_length, ids)


def save_clip_file(
    path: Path | str, state_dict: Mapping[str, Tensor], arch: ClipArch, *, token_ids: Sequence[int]
) -> None:
    """Writes a self-describing CLIP in half precision.

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


def _own_header(path: Path) -> dict[str, str] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return header if header.get("format") == "san-clip" else None


def _load_own_file(path: Path) -> LoadedClip:
    tensors = read_tensors(path)
    header = _own_header(path)
    if header is None:
        raise ValueError(f"{str(path)!r} is no CLIP file of this project; write one with tools/train_shapes_clip.py")
    arch = ClipArch.from_dict(json.loads(header["arch"]))
    state = {key: value.float() for key, value in tensors.items()}
    tokenizer = compact_tokenizer(json.loads(header["token_ids"]), arch.text.context_length)
    return LoadedClip(arch, state, tokenizer, weights_fingerprint(state))

"""Models, weights and tokenizer of open_clip. Only this file imports it.

Importing open_clip also loads torchvision and timm, and takes 4 s and 280 MB. Therefore functions import it locally,
architectures are read from its data files, and its tokenizer is loaded as a single module if possible.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

from torch import Tensor, nn

from san.clip.arch import OPENAI_MEAN, OPENAI_STD, ClipArch
from san.io.errors import excerpt, one_line
from san.io.files import home_folder, user_path
from san.record import FieldError, FieldFileError

_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TOKENIZER_FILE = "tokenizer.py"
_SINCE = (("SigLIP2", "2.31"), ("PE-Core", "3.0"), ("worldwide", "3.1"), ("MobileCLIP2", "3.2"))
"""Parts of names, and the first releases of open_clip with such models."""

OPENAI_MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
"""The class-token ViTs that OpenAI published (guarded by tests/clip/test_open_clip_adapter.py)."""


def model_config(name: str) -> Mapping[str, Any]:
    """Return the configuration of an open_clip model, with open_clip's keys.

    Raises:
        ValueError: open_clip does not have this model.
    """
    if "open_clip" not in sys.modules and (found := _packaged_config(name)) is not None:
        return found
    import open_clip

    # open_clip would download a name with a colon
    config: Mapping[str, Any] | None = None if ":" in name else open_clip.get_model_config(name)
    if config is None:
        near = [other for other in open_clip.list_models() if other.lower().startswith(name.lower()[:5])]
        since = [f"; those of {part!r} need open_clip_torch>={release}" for part, release in _SINCE if part in name]
        raise FieldError(
            f"open_clip {open_clip_version()} knows no model {excerpt(name)}{''.join(since)}; set clip.name to one of "
            f"docs/clips.md, such as {near or ['ViT-B-16']}",
            "clip.name",
        )
    return config


def models_and_tags() -> dict[str, list[str]]:
    """Return the names of all models, with the tags of their weights."""
    import open_clip

    return {name: open_clip.list_pretrained_tags_by_model(name) for name in open_clip.list_models()}


def _packaged_config(name: str) -> Mapping[str, Any] | None:
    """Return a model's data file in the package, without importing the package; None if there is none."""
    spec = find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        files = {path.stem: path for path in (Path(folder) / "model_configs").glob("*.json")}
        if name in files:
            config: Mapping[str, Any] = json.loads(files[name].read_text(encoding="utf-8"))
            return config
    return None


def trained_as(name: str, tag: str) -> Mapping[str, Any]:
    """Return activation and pixel statistics of a tag: `tag_record`, or the known ones of OpenAI.

    Raises:
        ValueError: the model has no such tag.
    """
    if tag == "openai" and name in OPENAI_MODELS:
        return {"quick_gelu": True, "mean": OPENAI_MEAN, "std": OPENAI_STD}
    return tag_record(name, tag)


def tag_record(name: str, tag: str) -> dict[str, Any]:
    """Return open_clip's record of a tag: activation, pixel statistics, and where its weights are.

    Raises:
        ValueError: the model has no such tag.
    """
    import open_clip

    record: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not record:
        known = open_clip.list_pretrained_tags_by_model(name)
        raise FieldError(
            f"open_clip has no weights {tag!r} for {name!r}; set clip.pretrained to one of {known} or to a file",
            "clip.pretrained",
        )
    return record


def openai_hashes() -> set[str]:
    """Return the SHA-256 of OpenAI's TorchScript files, which their URLs contain."""
    import open_clip

    names = open_clip.list_pretrained_models_by_tag("openai")
    urls = [open_clip.get_pretrained_cfg(name, "openai").get("url", "") for name in names]
    return {url.split("/")[-2] for url in urls if url}


def fetch_weights(name: str, tag: str, *, cache_dir: str | Path | None = None, local_files_only: bool = False) -> Path:
    """Return the weights file of an open_clip tag, from the cache or the hub.

    Args:
        name: of the model.
        tag: of its weights.
        cache_dir: folder to use instead of huggingface_hub's cache and ~/.cache/clip.
        local_files_only: do not use the network; HF_HUB_OFFLINE does the same.

    Raises:
        FileNotFoundError: it is not on this machine and cannot be downloaded; the message names the file to download
            and its folder.
        ValueError: the model has no such tag.
    """
    import open_clip
    from huggingface_hub import constants

    record = tag_record(name, tag)
    hub, _, file = record.get("hf_hub", "").rpartition("/")
    source = f"{constants.ENDPOINT}/{hub} ({file or ' or '.join(_HUB_FILES)})" if hub else record["url"]
    usual = home_folder(constants.HF_HUB_CACHE if hub else "~/.cache/clip")
    folder = user_path(str(cache_dir), "cache_dir") if cache_dir else usual
    if file:
        names = [file]
    elif hub:
        names = list(_HUB_FILES)
    else:
        names = [source.rpartition("/")[2]]
    here = None if folder is None else _kept(folder, hub, names)
    offline = local_files_only or constants.HF_HUB_OFFLINE
    if here and (hub or offline):
        return here
    reason = "and the network is off" if offline else "and there is no home folder to keep them in"
    if folder and not offline:
        try:
            if not here:
                require_host(source)
            return Path(open_clip.download_pretrained(record, cache_dir=folder))  # checks the hash of an existing file
        except (OSError, RuntimeError) as error:
            reason = f"and cannot be downloaded ({one_line(error, limit=300)})"
    raise FieldFileError(
        f"the weights {tag!r} of CLIP {name!r} are not on this machine {reason}; download {source} elsewhere and set "
        f"clip.pretrained to {tag}:FILE, or keep it in the cache {folder or '(HF_HOME names a folder for it)'}",
        "clip.pretrained",
    )


def require_host(address: str = "") -> None:
    """Raise OSError if a host, by default the hub, cannot be found: a download would fail after a minute of retries."""
    from huggingface_hub import constants

    if not getproxies():
        socket.getaddrinfo(urlparse(address or constants.ENDPOINT).hostname, 443)


def _kept(folder: Path, hub: str, files: Sequence[str]) -> Path | None:
    """Return the first existing file in huggingface_hub's cache, or in open_clip's if `hub` is ""."""
    from huggingface_hub import try_to_load_from_cache

    for name in files:
        found = try_to_load_from_cache(hub, name, cache_dir=folder) if hub else folder / name
        if isinstance(found, (str, Path)) and Path(found).is_file():
            return Path(found)
    return None


def tokenize(texts: Sequence[str], context_length: int) -> Tensor:
    """Return ids (N, context_length) of the process's CLIP byte-pair tokenizer; longer texts are truncated."""
    ids: Tensor = _tokenizer_module().tokenize(list(texts), context_length=context_length)
    return ids


def open_tokenizer(context_length: int) -> Any:
    """Return CLIP's byte-pair tokenizer: texts -> ids (N, context_length)."""
    return _tokenizer_module().SimpleTokenizer(context_length=context_length)


def text_cleaner(kind: str) -> Callable[[str], str]:
    """Return what open_clip does to texts before a tokenizer of transformers: whitespace, lower or canonicalize."""
    module = _tokenizer_module()
    home = module if hasattr(module, "get_clean_fn") else module.tokenizer  # of the whole package
    clean: Callable[[str], str] = home.get_clean_fn(kind)
    return clean


@cache
def _tokenizer_module() -> Any:
    """Return open_clip's tokenizer module; without the rest of open_clip if that is not imported yet."""
    spec = None if "open_clip" in sys.modules else find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = spec_from_file_location("open_clip_tokenizer", Path(folder) / _TOKENIZER_FILE)
        if found is not None and found.loader is not None:
            module = module_from_spec(found)
            with suppress(ImportError, OSError):  # in some releases it has moved or imports other modules
                found.loader.exec_module(module)
                return module
    import open_clip

    return open_clip


def open_clip_version() -> str:
    """Return the version of the installed package, without importing it."""
    return version("open_clip_torch")


def build_trainable_clip(arch: ClipArch) -> nn.Module:
    """Return an untrained open_clip CLIP, for pretraining: encode_image, encode_text and logit_scale."""
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

"""The open-vocabulary classifier: class names to text embeddings, [SLS] embeddings to class logits.

B batch, Q queries, C classes, E joint embedding, T text tokens, D text width. Source: docs/method.md#6.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.clip.blocks import Block
from san.clip.prompt_passes import encode_prompts
from san.clip.templates import load_templates
from san.clip.text_cache import TextCache
from san.clip.tokenizer import CompactTokenizer, Tokenizer, tokenizer_identity
from san.clip.vocabulary import ClassText
from san.torch_defaults import torch_defaults, without_autocast

logger = logging.getLogger(__name__)

_MAX_CACHED = 32_768  # embeddings a model keeps in memory; at a width of 512 that is 64 MB
_MORE_ON_GPU = 8  # times the tokens of a pass, where launching a pass takes longer than computing it
_FULL_PRECISION = ("highest", "ieee", "none")  # of products, in old and new words
_TEMPLATED, _VERBATIM = "t:", "p:"  # before a text, in a cache: it goes into the templates, or to CLIP as it is


class Transformer(nn.Module):
    """Causal blocks in a row."""

    def __init__(self, arch: ClipArch) -> None:
        super().__init__()
        text = arch.text
        self.resblocks = nn.ModuleList(
            Block(text.width, text.num_heads, text.mlp_ratio, quick_gelu=arch.quick_gelu) for _ in range(text.depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        for block in self.resblocks:
            x = block(x, causal=True)
        return x


class TextClassifier(nn.Module):
    """CLIP's frozen text tower with a learnt embedding for "no object".

    Args:
        arch: the CLIP's architecture.
        tokenizer: texts to ids.
        templates: name of a template set, or templates, see `load_templates`.
        tokens_per_pass: how many tokens go through the text tower together on a CPU, about; on a GPU 8 times as many.

    Attributes:
        disk_cache: folder in which embeddings are kept from one run to the next; None keeps them in memory only.
    """

    def __init__(
        self,
        arch: ClipArch,
        tokenizer: Tokenizer,
        *,
        templates: str | Sequence[str] = "vild",
        tokens_per_pass: int = 1024,
    ) -> None:
        super().__init__()
        text = arch.text
        self.templates, self._prompts = templates, load_templates(templates)
        self._tokenizer, self._tokens_per_pass = tokenizer, tokens_per_pass
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(text.context_length, text.width) * 0.01)
        self.transformer = Transformer(arch)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.randn(text.width, arch.embed_dim) * text.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.no_object_embed = nn.Parameter(torch.randn(1, arch.embed_dim) * arch.embed_dim**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.disk_cache: str | Path | None = None
        self._arch = arch
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._vocabularies: OrderedDict[tuple[tuple[str, ...], ...], Tensor] = OrderedDict()
        self._cache_key: object = None
        self._store: TextCache | None = None
        self._measured: set[str] = set()
        self._lock = threading.Lock()

    def embed(self, classes: Sequence[str | ClassText]) -> Tensor:
        """Text embeddings (C, E) of unit length, averaged over templates and synonyms; a text is embedded once.

        A vocabulary that comes again, as with every batch, gets the same tensor again: do not write to it. Several
        threads may call this.

        A text longer than CLIP reads is cut, and a warning says where.

        Raises:
            ValueError: there is no class, or one is blank.
        """
        texts = tuple(_texts_of(each) for each in classes)
        if not texts:
            raise ValueError("a vocabulary needs at least one name, and none of them blank; got an empty list")
        with self._lock:  # the memory of embeddings is shared by threads
            self._drop_stale_cache()
            found = self._vocabularies.get(texts)
            return self._embed_vocabulary(texts) if found is None else found

    def _embed_vocabulary(self, texts: tuple[tuple[str, ...], ...]) -> Tensor:
        """(C, E) of the marked texts of each class, remembered."""
        # the memory outlives the caller's inference mode, autocast and default number type
        with torch_defaults(), torch.inference_mode(False), torch.no_grad():
            vectors = self._vectors(list(dict.fromkeys(text for own in texts for text in own)))
            result = torch.stack([_mean_direction([vectors[text] for text in own]) for own in texts])
        self._vocabularies[texts] = result
        while len(self._vocabularies) > 1 and sum(map(len, list(self._vocabularies.values()))) > _MAX_CACHED:
            self._vocabularies.popitem(last=False)
        return result

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without embeddings, as its weights may be others, and without the lock."""
        fresh: dict[str, Any] = {
            "_cache": OrderedDict(),
            "_vocabularies": OrderedDict(),
            "_cache_key": None,
            "_store": None,
        }
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | fresh

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts to ids."""
        return self._tokenizer

    def forget(self) -> None:
        """Drops the embeddings in memory; those on disk stay."""
        self._cache.clear()
        self._vocabularies.clear()

    def logits(self, sls_embed: Tensor, text_embed: Tensor) -> Tensor:
        """Class logits (B, Q, C + 1), "no object" last, of unit-length [SLS] embeddings (B, Q, E) for names (C, E).

        In float32 also under autocast: half precision would be off by up to 0.3 at the scale of trained weights.
        """
        with without_autocast(sls_embed.device):
            no_object = F.normalize(self.no_object_embed.float(), dim=-1)
            classes = torch.cat([text_embed.float(), no_object])  # (C + 1, E)
            logits: Tensor = self.logit_scale.float().exp() * sls_embed.float() @ classes.t()
        return logits

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeddings (N, E), not normalised, of token ids (N, T); read at end-of-text, the largest id of a row."""
        tokens_embed = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x: Tensor = self.ln_final(self.transformer(tokens_embed))
        end = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]  # (N, D)
        return end @ self.text_projection

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter of the text tower; all but the "no object" embedding."""
        return (parameter for name, parameter in self.named_parameters() if name != "no_object_embed")

    def fingerprint(self) -> str:
        """Identifies all that a text's embedding depends on: every weight, architecture, tokenizer and templates."""
        digest = hashlib.sha256(f"{self._arch.text} {self._arch.quick_gelu} {self._prompts}".encode())
        digest.update(tokenizer_identity(self._tokenizer, [prompt.format("") for prompt in self._prompts]))
        precision = _product_precision(self.no_object_embed.device)
        if self.no_object_embed.device.type != "cpu" or precision not in _FULL_PRECISION:
            digest.update(precision.encode())
        for name, parameter in self.named_parameters():
            if name not in ("no_object_embed", "logit_scale"):
                values = parameter.detach().float().cpu().contiguous().numpy()
                digest.update(f"{name}{values.shape}".encode())
                digest.update(values.data)
        return digest.hexdigest()[:32]

    def _vectors(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Unit-length embeddings (E,) of texts: from memory, from disk, or made now."""
        fresh = [text for text in texts if text not in self._measured]
        if fresh and isinstance(self._tokenizer, CompactTokenizer):
            self._tokenizer([text[len(_TEMPLATED) :] for text in fresh])  # one warning for all words it has never met
        self._report_cuts(fresh)
        vectors = {text: self._cache[text] for text in texts if text in self._cache}
        missing = [text for text in texts if text not in vectors]
        if missing:
            store = self._open_store()
            found = store.load(missing) if store else {}
            new = [text for text in missing if text not in found]
            made = dict(zip(new, self._embed_new(new), strict=True))
            if store:
                store.store(made)
            device = self.no_object_embed.device
            vectors |= {text: vector.to(device) for text, vector in (found | made).items()}
            self._cache.update((text, vectors[text]) for text in missing)
            while len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return vectors

    def _embed_new(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), E), unit length."""
        width = self.no_object_embed.shape[1]
        if not texts:
            return torch.empty(0, width)
        prompts = [self._prompts_of(text) for text in texts]
        tokens = self._tokenizer([prompt for own in prompts for prompt in own])
        kinds = torch.tensor([kind for text in texts for kind in self._kinds_of(text)])
        per_text = F.normalize(self._encode_prompts(tokens, kinds).float(), dim=-1).split([len(p) for p in prompts])
        return torch.stack([F.normalize(own.mean(dim=0), dim=-1) for own in per_text])

    def _prompts_of(self, text: str) -> list[str]:
        """The prompts of a marked text."""
        kind, words = text[: len(_TEMPLATED)], text[len(_TEMPLATED) :]
        return [words] if kind == _VERBATIM else [template.format(words) for template in self._prompts]

    def _encode_prompts(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        """As `encode_text`, without computing a token twice or in vain; prompts of one kind may begin alike."""
        more = _MORE_ON_GPU if self.positional_embedding.is_cuda else 1
        return encode_prompts(self, tokens, kinds, tokens_per_pass=self._tokens_per_pass * more)

    def _kinds_of(self, text: str) -> Sequence[int]:
        """A number per prompt of a marked text: those of one template begin alike, those as they are may."""
        if text.startswith(_VERBATIM):
            return [len(self._prompts)]
        return range(len(self._prompts))

    def _report_cuts(self, texts: Sequence[str]) -> None:
        """One warning for all texts of which CLIP does not read the end; none for a text that was measured before."""
        if len(self._measured) > _MAX_CACHED:  # a server measures texts without end
            self._measured.clear()
        self._measured.update(texts)
        limit = self._arch.text.context_length
        cut: dict[str, str] = {}  # the remark on each name
        for text, prompts in self._long_prompts(texts).items():
            read = [_words_read(prompt, self._tokenizer, limit) for prompt in prompts]
            kept, prompt = min(zip(read, prompts, strict=True), key=lambda pair: pair[0] - len(pair[1].split()))
            words = prompt.split()
            if kept < len(words):
                name = _shortened(text[len(_TEMPLATED) :])
                cut[name] = (
                    f"{name!r} is longer than the {limit} tokens CLIP reads: of its prompt's {len(words)} words the "
                    f"first {kept} are read, up to {' '.join(words[max(0, kept - 3) : kept])!r}; the rest, from "
                    f"{_shortened(' '.join(words[kept:]))!r} on, is not; use fewer words"
                )
        if cut:
            more = f" (and {len(cut) - 1} more such names)" if len(cut) > 1 else ""
            logger.warning("%s%s", next(iter(cut.values())), more, extra={"cut": cut})

    def _long_prompts(self, texts: Sequence[str]) -> dict[str, list[str]]:
        """The prompts of the texts that may be too long for CLIP, by counting each different word once."""
        room = self._arch.text.context_length - 2  # start and end
        prompts_of = {text: self._prompts_of(text) for text in texts}
        # a token is at least one byte
        long = {text: own for text, own in prompts_of.items() if max(len(prompt.encode()) for prompt in own) > room}
        words = list({word for own in long.values() for prompt in own for word in prompt.split()})
        counts = dict(zip(words, _num_tokens(words, self._tokenizer), strict=True)) if words else {}
        return {
            text: own
            for text, own in long.items()
            if any(sum(map(counts.__getitem__, prompt.split())) > room for prompt in own)
        }

    def _open_store(self) -> TextCache | None:
        """The cache on disk, if there is to be one; a model on the meta device has no values to keep."""
        if self.disk_cache is None or self.no_object_embed.is_meta:
            return None
        if self._store is None or self._store.root != Path(self.disk_cache):
            self._store = TextCache(Path(self.disk_cache), self.fingerprint(), width=self.no_object_embed.shape[1])
        return self._store

    def _drop_stale_cache(self) -> None:
        """Embeddings of weights since replaced, trained or moved, or of another precision, are forgotten."""
        # tensors of inference mode count no versions: of those, only replaced and moved ones are seen
        key = (
            _product_precision(self.no_object_embed.device),
            *(
                (id(each), None if each.is_inference() else each._version, each.device)
                for each in self.frozen_parameters()
            ),
        )
        if key != self._cache_key:
            self.forget()
            self._cache_key, self._store = key, None


def _product_precision(device: torch.device) -> str:
    """How products of float32 are computed on a device, which the user may have set lower for speed."""
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    found: str | None = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # of later versions of torch
    return torch.get_float32_matmul_precision() if found is None else found


def _texts_of(each: str | ClassText) -> tuple[str, ...]:
    """The marked texts whose embeddings a class's is the mean of."""
    each = each if isinstance(each, ClassText) else ClassText(each)
    if each.prompts:
        return tuple(_VERBATIM + prompt for prompt in each.prompts)
    return tuple(_TEMPLATED + synonym for synonym in each.synonyms)


def _mean_direction(vectors: list[Tensor]) -> Tensor:
    """The mean (E,) of unit vectors, of unit length; a single one as it is, to the last digit."""
    return vectors[0] if len(vectors) == 1 else F.normalize(torch.stack(vectors).mean(dim=0), dim=-1)


def _words_read(prompt: str, tokenizer: Tokenizer, limit: int) -> int:
    """How many of a prompt's words fit into `limit` tokens, start and end among them.

    A tokenizer does not say what it cut, but words become tokens one by one, so their lengths add up.
    """
    words = prompt.split()
    if int(tokenizer([prompt]).argmax()) < limit - 1:
        return len(words)
    lengths = torch.tensor(_num_tokens(words, tokenizer))
    return int((lengths.cumsum(0) <= limit - 2).sum())


def _num_tokens(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each text between start and end, as many as CLIP reads."""
    counts: list[int] = (tokenizer(texts).argmax(dim=-1) - 1).tolist()
    return counts


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"

"""Maps class names to text embeddings: from memory, from disk, or computed by CLIP's text tower.

C classes, E joint embedding, N prompts, T text tokens. Source: docs/method.md#6.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from san.clip.example_bank import ExampleBank
from san.clip.prompt_length import cut_remarks
from san.clip.prompt_passes import encode_prompts
from san.clip.prompts import Prompts
from san.clip.text_cache import TextCache
from san.clip.text_tower import TextTower
from san.clip.tokenizer import CompactTokenizer, Tokenizer, tokenizer_identity
from san.io.errors import brief_repr, excerpt, listed
from san.torch_defaults import torch_defaults
from san.vocabulary.classes import ClassText, ClassVector

_MAX_CACHED = 32_768  # embeddings kept in memory; at a width of 512 that is 64 MB
_MORE_ON_GPU = 8  # factor on the tokens per pass, because launching a pass takes long
_FULL_PRECISION = ("highest", "ieee", "none")  # of matrix products, old and new names in PyTorch
_MAX_TOKENS = 16  # number of vocabularies with cached token ids in training
_NAME, _PROMPT = "t:", "p:"  # prefix of a cached text: a name, or a prompt
_PROBES = ("red", "a photo of a star.", "plain ground")  # which the small CLIP of the shapes world knows, too
_SAME_CLIP = 0.99  # least cosine of two embeddings of them; number types change it by less than 0.002

Texts = tuple[str | ClassVector, ...]
"""What the embedding of a class is made from: prefixed texts, or one vector."""


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """The embeddings of a vocabulary, with remarks for the user.

    Attributes:
        vectors: (C, E), of unit length, except for classes with a `ClassVector`. Shared by all callers with this
            vocabulary: do not modify it.
        cut: a remark for each text that is too long for CLIP.
        unknown: words that a small CLIP does not know; their embeddings are not meaningful.
        bank: single examples that masks are compared with, too; see `SANModel.classify`.
    """

    vectors: Tensor
    cut: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    bank: ExampleBank | None = None

    __repr__ = brief_repr


class PromptTokens(NamedTuple):
    """The prompts of a vocabulary as token ids.

    Attributes:
        ids: (N, T) int64 on the CPU.
        kinds: (N,) int64, the index of each prompt's template; the number of templates for a class's own prompt.
        class_ids: (N,) int64, the class of each prompt.
    """

    ids: Tensor
    kinds: Tensor
    class_ids: Tensor


class TextEmbedder:
    """Computes embeddings of names, each text once. Several threads may share it.

    The tower is an argument, not an attribute, so that a model and its embedder form no reference cycle.

    Args:
        tokenizer: texts to ids.
        prompts: names to prompts.
        tokens_per_pass: approximate number of tokens per forward pass on a CPU; on a GPU 8 times as many.

    Attributes:
        disk_cache: folder that keeps embeddings between runs; None keeps them in memory only. See `use_disk_cache`.
        amp_dtype: number type of the blocks' products; None uses that of the weights. Embeddings are float32.
    """

    def __init__(self, tokenizer: Tokenizer, prompts: Prompts, *, tokens_per_pass: int = 1024) -> None:
        self.tokenizer, self.prompts, self.tokens_per_pass = tokenizer, prompts, tokens_per_pass
        self.disk_cache: Path | None = None
        self.amp_dtype: torch.dtype | None = None
        self._start_empty()

    def _start_empty(self) -> None:
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._vocabularies: OrderedDict[tuple[Texts, ...], TextEmbeddings] = OrderedDict()
        self._tokens: dict[tuple[Texts, ...], tuple[Tensor, Tensor]] = {}
        self._cache_key: object = None
        self._store: TextCache | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Copy without embeddings, because the weights may change."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        self.__dict__.update(state)
        self._start_empty()

    def use_disk_cache(self, folder: str | Path | None) -> None:
        """Keep embeddings in a folder from now on; None keeps them in memory only."""
        self.disk_cache = None if folder is None else Path(folder)

    def embed(self, tower: TextTower, classes: Sequence[str | ClassText], *, store: bool = True) -> TextEmbeddings:
        """Return text embeddings of unit length, averaged over prompts and synonyms.

        A repeated vocabulary returns the same record.

        Args:
            tower: the text tower. If its weights were replaced, trained or moved, embeddings are recomputed.
            classes: C names, or classes with synonyms or prompts.
            store: whether new embeddings may be written to `disk_cache`.

        Raises:
            ValueError: there is no class, one is blank, one has a vector of another CLIP, or two have different banks.
        """
        texts = tuple(_texts_of(each) for each in classes)
        if not texts:
            raise ValueError("a vocabulary needs at least one name, and none of them blank; got an empty list")
        with self._lock:
            self._drop_stale_cache(tower)
            found = self._vocabularies.get(texts)
            return self._embed_vocabulary(tower, texts, store) if found is None else found

    def embed_with_gradient(self, tower: TextTower, classes: Sequence[str | ClassText]) -> Tensor:
        """Return the text embeddings (C, E) of `embed` with a gradient; they are not cached.

        Raises:
            ValueError: a class has a vector, which has no gradient.
        """
        texts = tuple(_texts_of(each) for each in classes)
        prompts_of = self._prompts_of_all(texts)
        if any(isinstance(text, ClassVector) for own in texts for text in own):
            raise ValueError("a learnt context cannot be trained on classes with a vector; give their words alone")
        with self._lock:
            if texts not in self._tokens:
                self._tokens = {texts: self._tokenised(prompts_of)} | dict(
                    list(self._tokens.items())[: _MAX_TOKENS - 1]
                )
            tokens = self._tokens[texts]
        with torch_defaults():
            vectors = self._encode(tower, prompts_of, *tokens)
            return torch.stack([_mean_direction([vectors[str(text)] for text in own]) for own in texts])

    def probe(self, tower: TextTower, *, store: bool = True) -> Tensor:
        """Return an embedding (E,), unit length, of fixed prompts, by which a CLIP is recognised in any number type.

        Args:
            tower: the text tower.
            store: whether it may be written to `disk_cache`.
        """
        return self.embed(tower, [ClassText("probe", prompts=_PROBES)], store=store).vectors[0]

    def tokenise(self, classes: Sequence[ClassText]) -> PromptTokens:
        """Return the tokens of all prompts of classes, from which `embed_tokens` computes their embeddings.

        Args:
            classes: of a `Vocabulary`, so that no two have a text in common.

        Raises:
            ValueError: a class has a vector instead of texts.
        """
        learnt = [each.name for each in classes if each.vector is not None]
        if learnt:
            raise ValueError(
                f"class {excerpt(learnt[0])} has a vector from examples, which tokens do not express; give embeddings "
                "(text_embeds), or words"
            )
        texts = [_words_of(each) for each in classes]
        prompts_of = {text: self._prompts_of(text) for own in texts for text in own}
        class_ids = [index for index, own in enumerate(texts) for text in own for _ in prompts_of[text]]
        return PromptTokens(*self._tokenised(prompts_of), torch.tensor(class_ids))

    def embed_tokens(self, tower: TextTower, prompts: PromptTokens) -> Tensor:
        """Return the text embeddings (C, E) of `tokenise`; with a gradient if enabled, and not cached."""
        starts = (prompts.kinds == 0) | (prompts.kinds >= len(self.prompts("")))  # the first prompt of each text
        counts = (starts.cumsum(0) - 1).bincount().tolist()
        vectors = self._encode(
            tower, {str(text): [""] * count for text, count in enumerate(counts)}, prompts.ids, prompts.kinds
        )
        class_of = prompts.class_ids[starts].tolist()
        own: list[list[Tensor]] = [[] for _ in range(max(class_of) + 1)]
        for index, vector in zip(class_of, vectors.values(), strict=True):
            own[index].append(vector)
        return torch.stack([_mean_direction(each) for each in own])

    def remarks(self, classes: Sequence[ClassText], context_length: int) -> list[str]:
        """Return remarks for the user on texts that are too long for CLIP, and on words that a small CLIP lacks."""
        plain = {text[len(_NAME) :]: self._prompts_of(text) for each in classes for text in _words_of(each)}
        unknown = self._unknown(plain)
        found = [*cut_remarks(plain, self.tokenizer, context_length).values()]
        return [*found, f"the small CLIP does not know {listed(unknown, 10)}"] if unknown else found

    def forget(self) -> None:
        """Drop the embeddings in memory; those on disk are kept."""
        self._cache.clear()
        self._vocabularies.clear()

    def fingerprint(self, tower: TextTower) -> str:
        """Return a hash of all inputs of an embedding: weights, architecture, tokenizer, prompts, precision."""
        arch = tower.arch
        digest = hashlib.sha256(f"{arch.text} {arch.quick_gelu} {self.prompts.identity}".encode())
        digest.update(tokenizer_identity(self.tokenizer, self.prompts("")))
        precision = _product_precision(tower.device)
        if tower.device.type != "cpu" or precision not in _FULL_PRECISION:
            digest.update(precision.encode())
        if self.amp_dtype is not None:
            digest.update(str(self.amp_dtype).encode())
        for name, parameter in tower.tower_tensors():
            values = parameter.detach().float().cpu().contiguous().numpy()
            digest.update(f"{name}{values.shape}".encode())
            digest.update(values.data)
        return digest.hexdigest()[:32]

    def _embed_vocabulary(self, tower: TextTower, texts: tuple[Texts, ...], store: bool) -> TextEmbeddings:
        """Embed the prefixed texts of each class, and remember the result."""
        prompts_of = self._prompts_of_all(texts)
        # the result must not depend on the caller's inference mode, autocast and default number type
        with torch_defaults(), torch.inference_mode(False), torch.no_grad():
            vectors = self._vectors(tower, prompts_of, store)
            means = torch.stack([self._mean(tower, own, vectors, store) for own in texts])
            found = [own[0] if isinstance(own[0], ClassVector) else None for own in texts]
            bank = ExampleBank.of_classes(found, tower.device)
        plain = {text[len(_NAME) :]: prompts for text, prompts in prompts_of.items()}
        cut = cut_remarks(plain, self.tokenizer, tower.arch.text.context_length)
        result = self._vocabularies[texts] = TextEmbeddings(means, cut, self._unknown(plain), bank)
        while len(self._vocabularies) > 1 and sum(map(_num_kept, self._vocabularies.values())) > _MAX_CACHED:
            self._vocabularies.popitem(last=False)
        return result

    def _mean(self, tower: TextTower, own: Texts, vectors: Mapping[str, Tensor], store: bool) -> Tensor:
        """Return the embedding (E,) of a class, given those of all prefixed texts."""
        if not isinstance(own[0], ClassVector):
            return _mean_direction([vectors[str(text)] for text in own])
        probes = {_PROMPT + prompt: [prompt] for prompt in _PROBES}
        found = self._vectors(tower, probes, store)
        mine, theirs = _mean_direction([found[text] for text in probes]), _as_tensor(own[0].probe, tower.device)
        if mine.shape != theirs.shape or mine @ theirs < _SAME_CLIP:
            raise ValueError(
                f"the vocabulary has vectors that were made with the CLIP {excerpt(own[0].clip)}, which is not the "
                "CLIP of this model; make the vocabulary file again with this model (san vocab --model)"
            )
        return _as_tensor(own[0].values, tower.device)

    def _unknown(self, prompts_of: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        if not isinstance(self.tokenizer, CompactTokenizer):
            return ()
        return self.tokenizer.unknown_words(prompt for prompts in prompts_of.values() for prompt in prompts)

    def _vectors(self, tower: TextTower, prompts_of: Mapping[str, Sequence[str]], store: bool) -> Mapping[str, Tensor]:
        """Return unit-length embeddings (E,) of prefixed texts: from memory, from disk, or computed."""
        vectors = {text: self._cache[text] for text in prompts_of if text in self._cache}
        missing = [text for text in prompts_of if text not in vectors]
        if missing:
            kept = self._open_store(tower)
            found = kept.load(missing) if kept else {}
            made = self._embed_new(tower, {text: prompts_of[text] for text in missing if text not in found})
            if kept and store:
                kept.store(made)
            vectors |= {text: vector.to(tower.device) for text, vector in (found | made).items()}
            self._cache.update((text, vectors[text]) for text in missing)
            while len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return vectors

    def _embed_new(self, tower: TextTower, prompts_of: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Compute unit-length embeddings (E,) of prefixed texts from their prompts."""
        if not prompts_of:
            return {}
        return self._encode(tower, prompts_of, *self._tokenised(prompts_of))

    def _tokenised(self, prompts_of: Mapping[str, Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Return token ids (N, T) of all prompts, and the index (N,) of the template of each."""
        tokens = self.tokenizer([prompt for prompts in prompts_of.values() for prompt in prompts])  # (N, T)
        # prompts of one template share their beginning
        kinds = torch.tensor(
            [
                len(self.prompts("")) if text.startswith(_PROMPT) else index
                for text, prompts in prompts_of.items()
                for index in range(len(prompts))
            ]
        )
        return tokens, kinds

    def _encode(
        self, tower: TextTower, prompts_of: Mapping[str, Sequence[str]], tokens: Tensor, kinds: Tensor
    ) -> dict[str, Tensor]:
        """Return unit-length embeddings (E,) of prefixed texts, given tokens (N, T) and templates (N,) of prompts."""
        per_prompt = F.normalize(self._encode_prompts(tower, tokens, kinds).float(), dim=-1)  # (N, E)
        per_text = per_prompt.split([len(prompts) for prompts in prompts_of.values()])
        return {text: F.normalize(own.mean(dim=0), dim=-1) for text, own in zip(prompts_of, per_text, strict=True)}

    def _encode_prompts(self, tower: TextTower, tokens: Tensor, kinds: Tensor) -> Tensor:
        """Encode prompts; see `encode_prompts`."""
        more = _MORE_ON_GPU if tower.device.type == "cuda" else 1
        amp, device = self.amp_dtype, tower.device.type
        with nullcontext() if amp is None or device == "meta" else torch.autocast(device, amp):
            return encode_prompts(tower, tokens, kinds, tokens_per_pass=self.tokens_per_pass * more)

    def _prompts_of_all(self, texts: Sequence[Texts]) -> dict[str, Sequence[str]]:
        """Return the prompts of each prefixed text."""
        return {text: self._prompts_of(text) for own in texts for text in own if isinstance(text, str)}

    def _prompts_of(self, text: str) -> Sequence[str]:
        """Return the prompts of a prefixed text."""
        kind, words = text[: len(_NAME)], text[len(_NAME) :]
        return [words] if kind == _PROMPT else self.prompts(words)

    def _open_store(self, tower: TextTower) -> TextCache | None:
        """Return the cache on disk; None if it is off, or for a model on the meta device."""
        if self.disk_cache is None or tower.device.type == "meta":
            return None
        if self._store is None or self._store.root != self.disk_cache:
            self._store = TextCache(self.disk_cache, self.fingerprint(tower), width=tower.arch.embed_dim)
        return self._store

    def _drop_stale_cache(self, tower: TextTower) -> None:
        """Drop embeddings if weights were replaced, trained or moved, or prompts or precision differ."""
        # tensors of inference mode have no version: only replacing and moving them is detected
        key = (
            self.prompts.identity,
            self.amp_dtype,
            _product_precision(tower.device),
            *(
                (id(each), None if each.is_inference() else each._version, each.device)
                for _, each in tower.tower_tensors()
            ),
        )
        if key != self._cache_key:
            self.forget()
            self._cache_key, self._store = key, None


def _product_precision(device: torch.device) -> str:
    """Return the precision of float32 matrix products on a device, which the user may have lowered."""
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    found: str | None = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # later versions of torch
    return torch.get_float32_matmul_precision() if found is None else found


def _num_kept(text: TextEmbeddings) -> int:
    """Return the number of embeddings in memory, those of a bank included."""
    return len(text.vectors) + (0 if text.bank is None else len(text.bank))


def _texts_of(each: str | ClassText) -> Texts:
    """Return the prefixed texts of a class, whose embedding is the mean of theirs, or its vector."""
    each = each if isinstance(each, ClassText) else ClassText(each)
    return _words_of(each) if each.vector is None else (each.vector,)


def _words_of(each: ClassText) -> tuple[str, ...]:
    """Return the prefixed texts of a class."""
    if each.prompts:
        return tuple(_PROMPT + prompt for prompt in each.prompts)
    return tuple(_NAME + synonym for synonym in each.synonyms)


def _mean_direction(vectors: list[Tensor]) -> Tensor:
    """Return the normalised mean (E,) of unit vectors; a single vector is returned unchanged."""
    return vectors[0] if len(vectors) == 1 else F.normalize(torch.stack(vectors).mean(dim=0), dim=-1)


def _as_tensor(values: bytes, device: torch.device) -> Tensor:
    """Return the numbers of a `ClassVector`, (E,)."""
    return torch.from_numpy(np.frombuffer(values, "<f4").astype(np.float32)).to(device)

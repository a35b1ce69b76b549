"""Texts to token ids: CLIP's tokenizer, and one for the small vocabulary of a small CLIP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from san.clip.arch import TextArch
from san.clip.open_clip_adapter import open_clip_version, open_tokenizer, require_host, text_cleaner, tokenize
from san.io.errors import excerpt, one_line, require_extra
from san.record import FieldFileError

Tokenizer = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (N, context_length), int64. The end-of-text token has the largest id of its row, unless the
tokenizer has a method `ends`, see `text_ends`."""

VOCAB_SIZE = 49408
"""Of CLIP's tokenizer (guarded by tests/clip/test_open_clip_adapter.py)."""


class BpeTokenizer:
    """CLIP's byte-pair tokenizer, loaded at first use in a process, because cached embeddings do not need it.

    Args:
        context_length: ids in a row.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    @property
    def identity(self) -> str:
        """Equal for tokenizers that give equal ids."""
        return f"open_clip {open_clip_version()} ftfy {version('ftfy')} SimpleTokenizer {self.context_length}"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids (N, context_length); a longer text is cut and ends with end-of-text."""
        return tokenize(texts, self.context_length)


class CompactTokenizer:
    """A tokenizer whose ids are ranks in a list of known ids; all other ids become 0.

    Args:
        tokenize: texts to full ids.
        ids: the ids that are known, ascending.
    """

    def __init__(self, tokenize: BpeTokenizer, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self._tokenize = tokenize
        self._ranks = torch.zeros(VOCAB_SIZE, dtype=torch.long)
        self._ranks[torch.as_tensor(ids)] = torch.arange(1, len(ids) + 1)  # sorted: end-of-text stays the largest

    @property
    def identity(self) -> str:
        """Equal for tokenizers that give equal ids."""
        return f"{self._tokenize.identity}, ids {hashlib.sha256(self._ranks.numpy().tobytes()).hexdigest()}"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (N, T)."""
        return self._ranks[self._tokenize(texts)]

    def unknown_words(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the words that the CLIP does not know, sorted, without punctuation."""
        words = sorted({word for text in texts for raw in text.split() if (word := raw.strip(".,"))})
        if not words:
            return ()
        full = self._tokenize(words)
        unknown = ((self._ranks[full] == 0) & (full != 0)).any(dim=1).tolist()
        return tuple(word for word, never_met in zip(words, unknown, strict=True) if never_met)


class HuggingFaceTokenizer:
    """A tokenizer of transformers, loaded at first use in a process.

    Args:
        text: the tower's architecture, which names it.
    """

    def __init__(self, text: TextArch) -> None:
        self.text = text

    @property
    def identity(self) -> str:
        """Equal for tokenizers that give equal ids."""
        text = self.text
        return (
            f"open_clip {open_clip_version()} ftfy {version('ftfy')} transformers {version('transformers')} "
            f"{text.tokenizer} {text.clean} {text.context_length}"
        )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids (N, context_length), padded; a longer text is cut.

        Raises:
            ValueError: an id is not below the tower's `vocab_size`.
        """
        clean = text_cleaner(self.text.clean)
        found = _hugging_face_tokenizer(self.text.tokenizer)(
            [clean(text) for text in texts],
            return_tensors="pt",
            max_length=self.text.context_length,
            padding="max_length",
            truncation=True,
        )
        ids: Tensor = found.input_ids
        if ids.numel() and int(ids.max()) >= self.text.vocab_size:
            raise ValueError(
                f"clip_arch.text.vocab_size is {self.text.vocab_size}, but the tokenizer {self.text.tokenizer!r} gives "
                f"the id {int(ids.max())}; use the tokenizer of this CLIP"
            )
        return ids

    def ends(self, ids: Tensor) -> Tensor:
        """Return the position (N,) of the first end-of-text token of ids (N, T); the last position without one."""
        loaded = _hugging_face_tokenizer(self.text.tokenizer)
        end = loaded.sep_token_id if loaded.eos_token_id is None else loaded.eos_token_id
        found = ids == (-1 if end is None else end)
        return torch.where(found.any(dim=-1), found.int().argmax(dim=-1), ids.shape[1] - 1)


@cache
def _hugging_face_tokenizer(name: str) -> Any:
    """Return a tokenizer of transformers.

    Raises:
        FieldFileError: it is not on this machine and cannot be downloaded.
    """
    require_extra("multilingual", "the tokenizer of this CLIP", "transformers")
    from transformers import AutoTokenizer

    try:
        try:
            loaded = AutoTokenizer.from_pretrained(name, local_files_only=True)
        except OSError:
            require_host()
            loaded = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise FieldFileError(
            f"the tokenizer {name!r} of this CLIP is not on this machine and cannot be downloaded "
            f"({one_line(error, limit=200)}); "
            f"download it elsewhere (hf download {name}) and copy it into the Hugging Face cache (HF_HOME)",
            "clip.name",
        ) from error
    return loaded


def text_ends(tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """Return the position (N,) of the end-of-text token of each row of a tokenizer's ids (N, T)."""
    ends: Callable[[Tensor], Tensor] | None = getattr(tokenizer, "ends", None)
    return ids.argmax(dim=-1) if ends is None else ends(ids)


def tokenizer_identity(tokenizer: Tokenizer, texts: Sequence[str]) -> bytes:
    """Return the identity of a tokenizer: its name if it has one, else its ids of some texts."""
    if isinstance(tokenizer, (BpeTokenizer, CompactTokenizer, HuggingFaceTokenizer)):
        return tokenizer.identity.encode()
    return tokenizer(texts).numpy().tobytes()


def token_ids(texts: Iterable[str]) -> list[int]:
    """Return the sorted ids of CLIP's tokenizer in these texts, including start and end of text."""
    tokenizer = open_tokenizer(77)
    ids = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    return sorted(ids.union(*(tokenizer.encode(text) for text in texts)))


def compact_tokenizer(ids: Sequence[int], context_length: int) -> Tokenizer:
    """Return CLIP's tokenizer for a small vocabulary.

    Args:
        ids: sorted ids of CLIP's tokenizer that occur; id number i becomes i + 1, every other id 0.
        context_length: tokens in a row.

    Raises:
        ValueError: the ids are not sorted, distinct ids of CLIP's tokenizer.
    """
    known = isinstance(ids, (list, tuple)) and all(type(each) is int and 0 <= each < VOCAB_SIZE for each in ids)
    if not known or not ids or list(ids) != sorted(set(ids)):
        raise ValueError(
            f"the ids of a compact vocabulary (clip_token_ids) are {excerpt(ids)}; give distinct ones of CLIP's "
            "tokenizer, sorted, and one at least"
        )
    return CompactTokenizer(BpeTokenizer(context_length), ids)


def fitting_tokenizer(text: TextArch, ids: Sequence[int] | None) -> Tokenizer:
    """Return the tokenizer of a text tower.

    Args:
        text: its architecture.
        ids: of a compact vocabulary, see `compact_tokenizer`; None for all of CLIP's.

    Raises:
        ValueError: the tower does not have a row for every id.
    """
    if text.tokenizer:
        if ids is not None:
            raise ValueError(f"a compact vocabulary (clip_token_ids) is of CLIP's tokenizer, not of {text.tokenizer!r}")
        return HuggingFaceTokenizer(text)
    tokenizer = BpeTokenizer(text.context_length) if ids is None else compact_tokenizer(ids, text.context_length)
    needed = VOCAB_SIZE if ids is None else len(ids) + 1
    if text.vocab_size < needed:
        raise ValueError(f"clip_arch.text.vocab_size is {text.vocab_size}, but the tokenizer has {needed} ids")
    return tokenizer

"""Finds prompts that are longer than CLIP reads, and where it stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from san.clip.tokenizer import Tokenizer, text_ends


def cut_remarks(prompts_of: Mapping[str, Sequence[str]], tokenizer: Tokenizer, limit: int) -> dict[str, str]:
    """Return a remark for each text whose prompts are too long for CLIP; it says where CLIP stops.

    Args:
        prompts_of: the prompts of each text.
        tokenizer: texts to ids.
        limit: tokens that CLIP reads, start and end among them.
    """
    remarks = {}
    for text, prompts in _long_prompts(prompts_of, tokenizer, limit).items():
        read = [_words_read(prompt, tokenizer, limit) for prompt in prompts]
        kept, prompt = min(zip(read, prompts, strict=True), key=lambda pair: pair[0] - len(pair[1].split()))
        words = prompt.split()
        if kept < len(words):
            remarks[text] = (
                f"{_shortened(text)!r} is longer than the {limit} tokens CLIP reads: of its prompt's {len(words)} "
                f"words the first {kept} are read, up to {' '.join(words[max(0, kept - 3) : kept])!r}; the rest, from "
                f"{_shortened(' '.join(words[kept:]))!r} on, is not; use fewer words"
            )
    return remarks


def _long_prompts(
    prompts_of: Mapping[str, Sequence[str]], tokenizer: Tokenizer, limit: int
) -> dict[str, Sequence[str]]:
    """Return the prompts of texts that may be too long; each different word is counted once."""
    room = limit - 2  # start and end
    # a token is at least one byte
    long = {text: own for text, own in prompts_of.items() if max(len(prompt.encode()) for prompt in own) > room}
    words = list({word for own in long.values() for prompt in own for word in prompt.split()})
    counts = dict(zip(words, _num_tokens(words, tokenizer), strict=True)) if words else {}
    return {
        text: own
        for text, own in long.items()
        if any(sum(map(counts.__getitem__, prompt.split())) > room for prompt in own)
    }


def _words_read(prompt: str, tokenizer: Tokenizer, limit: int) -> int:
    """Return how many of a prompt's words fit into `limit` tokens, including start and end.

    A tokenizer does not report what it cut. It splits each word by itself, so the lengths can be added.
    """
    words = prompt.split()
    if int(text_ends(tokenizer, tokenizer([prompt]))) < limit - 1:
        return len(words)
    lengths = torch.tensor(_num_tokens(words, tokenizer))
    return int((lengths.cumsum(0) <= limit - 2).sum())


def _num_tokens(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Return the number of tokens of each text, without those of an empty text, as far as CLIP reads."""
    counts: list[int] = (text_ends(tokenizer, tokenizer([*texts, ""]))).tolist()
    return [count - counts[-1] for count in counts[:-1]]


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"

"""Encodes many prompts with CLIP's text tower, without redundant or unused tokens.

A causal tower: a token sees only itself and earlier tokens. Therefore tokens after end-of-text are skipped, the
shared beginning of prompts (of one template) is computed once, and the last block is computed for end-of-text only.
Prompts are sorted by the number of their remaining tokens, so they need little padding. For 847 classes in 14
templates this takes 1/14 of the multiply-adds of 77 tokens each.

N prompts, K kinds of them, T tokens, P tokens of a shared beginning, S tokens of the rest, D width, N_h heads,
d = D / N_h, L blocks. Source: docs/method.md#6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from san.clip.blocks import Block
from san.clip.text_tower import TextTower
from san.torch_defaults import without_autocast

_WORTH_SHARING = 512
"""Tokens that sharing must save: the pass for the beginnings reads every weight once more."""


@dataclass(frozen=True)
class Beginnings:
    """The shared beginnings of the prompts of each kind.

    Attributes:
        lengths: (K,) int64, number of shared tokens.
        keys, values: per block (K, N_h, P, d), padded to the longest; the padding is masked.
    """

    lengths: Tensor
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


def encode_prompts(tower: TextTower, tokens: Tensor, kinds: Tensor, *, tokens_per_pass: int) -> Tensor:
    """Return embeddings (N, E), not normalised, equal to those of `TextTower.encode_text`.

    Args:
        tower: the text tower.
        tokens: (N, T) ids on the CPU.
        kinds: (N,) int64 from 0; prompts of one kind (template) may share their beginning. Any numbers are correct.
        tokens_per_pass: approximate number of tokens per forward pass.
    """
    if tower.foreign is not None or not tower.arch.text.causal:  # every token depends on all
        count = max(1, tokens_per_pass // tokens.shape[1])
        parts = zip(tokens.split(count), kinds.split(count), strict=True)
        return torch.cat([tower.encode_text(ids.to(tower.device), own.to(tower.device)) for ids, own in parts])
    ends = tower.ends(tokens)  # (N,)
    lengths = shared_lengths(tokens, ends, kinds)
    beginnings = _begin(tower, tokens, kinds, lengths) if lengths.any() else Beginnings(lengths)
    own = lengths[kinds]  # (N,)
    order = ((ends - own) * tokens.shape[1] + own).argsort(stable=True)  # by remaining tokens, then by the start
    result = tower.text_projection.new_empty(len(tokens), tower.text_projection.shape[1])
    for rows in _passes(order, (ends + 1 - own)[order].tolist(), tokens_per_pass):
        result[rows.to(result.device, non_blocking=True)] = _finish(
            tower, tokens[rows], kinds[rows], ends[rows], beginnings
        )
    return result


def shared_lengths(tokens: Tensor, ends: Tensor, kinds: Tensor) -> Tensor:
    """Return (K,) the number of shared tokens per kind, without end-of-text; all 0 if sharing saves too little."""
    shared, saved = [], 0
    for kind in range(int(kinds.max()) + 1):
        rows = tokens[kinds == kind]
        if len(rows) == 0:
            shared.append(0)
            continue
        equal = int((rows == rows[0]).all(dim=0).long().cumprod(dim=0).sum())
        shared.append(min(equal, int(ends[kinds == kind].min())))
        saved += shared[-1] * (len(rows) - 1)
    if saved < _WORTH_SHARING:
        return torch.zeros(len(shared), dtype=torch.long)
    return torch.tensor(shared)


def _passes(order: Tensor, sizes: Sequence[int], tokens_per_pass: int) -> list[Tensor]:
    """Split `order`, prompts of ascending `sizes`, into passes of about `tokens_per_pass` tokens."""
    counts, count = [], 0
    for size in sizes:
        if count and (count + 1) * size > tokens_per_pass:
            counts.append(count)
            count = 0
        count += 1
    return list(order.split([*counts, count]))


def _begin(tower: TextTower, tokens: Tensor, kinds: Tensor, lengths: Tensor) -> Beginnings:
    """Compute keys and values of all beginnings in one pass of K rows."""
    first = torch.stack([(kinds == kind).long().argmax() for kind in range(len(lengths))])  # of each kind
    ids = tokens[first, : int(lengths.max())].to(tower.positional_embedding.device, non_blocking=True)  # (K, P)
    every, positions = torch.arange(len(ids), device=ids.device), torch.arange(ids.shape[1], device=ids.device)
    x = tower.embed_tokens(ids, positions, every)
    keys, values = [], []
    for block in _blocks(tower):
        q, k, v = block.attn.project(block.ln_1(x))  # (K, N_h, P, d)
        keys.append(k)
        values.append(v)
        if len(keys) < len(tower.transformer.resblocks):  # the result of the last block is not used
            x = block.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return Beginnings(lengths, tuple(keys), tuple(values))


def _finish(tower: TextTower, tokens: Tensor, kinds: Tensor, ends: Tensor, beginnings: Beginnings) -> Tensor:
    """Return embeddings (N, E) of prompts (N, T), given their beginnings."""
    device = tower.positional_embedding.device
    shared = beginnings.lengths[kinds]  # (N,)
    longest, size = int(shared.max()), int((ends + 1 - shared).max())  # P, S
    positions = (shared[:, None] + torch.arange(size)).clamp(max=tokens.shape[1] - 1)  # (N, S)
    ids = tokens.gather(1, positions)
    seen = torch.ones(size, longest + size, dtype=torch.bool).tril(longest).repeat(len(tokens), 1, 1)  # (N, S, P + S)
    seen[:, :, :longest] &= torch.arange(longest) < shared[:, None, None]
    ids, positions, kinds, seen, last = (  # seen: (N, 1, S, P + S), last: (N,)
        each.to(device, non_blocking=True) for each in (ids, positions, kinds, seen[:, None], ends - shared)
    )
    rows = torch.arange(len(tokens), device=device)
    x = tower.embed_tokens(ids, positions, kinds)  # (N, S, D)
    for index, block in enumerate(_blocks(tower)):
        q, k, v = block.attn.project(block.ln_1(x))  # (N, N_h, S, d)
        if longest:
            k = torch.cat([beginnings.keys[index][kinds, :, :longest], k], dim=2)  # (N, N_h, P + S, d)
            v = torch.cat([beginnings.values[index][kinds, :, :longest], v], dim=2)
        if index == len(tower.transformer.resblocks) - 1:  # only end-of-text is used
            q, x, seen = q[rows, :, last].unsqueeze(2), x[rows, last].unsqueeze(1), seen[rows, :, last].unsqueeze(2)
        x = block.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
    with without_autocast(device):
        return tower.project(tower.ln_final(x[:, 0].to(tower.text_projection.dtype)))


def _blocks(tower: TextTower) -> list[Block]:
    return [cast(Block, block) for block in tower.transformer.resblocks]

"""Many prompts through CLIP's text tower with no token computed twice or in vain.

The tower is causal: a token sees only itself and those before it. So nothing after a prompt's end-of-text changes its
embedding, prompts that begin alike (as those of one template do) have the same tokens' values up to where they part,
and of the last block only the end-of-text token's row is read. Sorted by what is left of them, prompts hardly need
padding. Compared with 77 tokens each, 847 classes in 14 templates take 1/14 of the multiply-adds.

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
"""Tokens that sharing must save before a pass is made for the beginnings: each pass reads every weight."""


@dataclass(frozen=True)
class Beginnings:
    """What all prompts of a kind begin with, computed once.

    Attributes:
        lengths: (K,) int64, tokens that are shared.
        keys, values: per block (K, N_h, P, d), those of the longest; shorter ones' last are not to be seen.
    """

    lengths: Tensor
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


def encode_prompts(tower: TextTower, tokens: Tensor, kinds: Tensor, *, tokens_per_pass: int) -> Tensor:
    """Embeddings (N, E), not normalised, as `TextTower.encode_text` gives them of the whole rows.

    Args:
        tower: whose weights.
        tokens: (N, T) ids on the CPU; the largest of a row is its end-of-text.
        kinds: (N,) int64 from 0, which prompts may begin alike (the template's index); any numbers are right.
        tokens_per_pass: how many tokens go through the tower together, about.
    """
    ends = tokens.argmax(dim=-1)  # (N,)
    lengths = shared_lengths(tokens, ends, kinds)
    beginnings = _begin(tower, tokens, kinds, lengths) if lengths.any() else Beginnings(lengths)
    own = lengths[kinds]  # (N,)
    order = ((ends - own) * tokens.shape[1] + own).argsort(stable=True)  # by what is left, then by where it begins
    result = tower.text_projection.new_empty(len(tokens), tower.text_projection.shape[1])
    for rows in _passes(order, (ends + 1 - own)[order].tolist(), tokens_per_pass):
        result[rows.to(result.device, non_blocking=True)] = _finish(
            tower, tokens[rows], kinds[rows], ends[rows], beginnings
        )
    return result


def shared_lengths(tokens: Tensor, ends: Tensor, kinds: Tensor) -> Tensor:
    """(K,) how many tokens all prompts of a kind begin with, end-of-text left out; all 0 where it is not worth it."""
    shared, saved = [], 0
    for kind in range(int(kinds.max()) + 1):
        rows = tokens[kinds == kind]
        if len(rows) == 0:
            shared.append(0)
            continue
        alike = int((rows == rows[0]).all(dim=0).long().cumprod(dim=0).sum())
        shared.append(min(alike, int(ends[kinds == kind].min())))
        saved += shared[-1] * (len(rows) - 1)
    if saved < _WORTH_SHARING:
        return torch.zeros(len(shared), dtype=torch.long)
    return torch.tensor(shared)


def _passes(order: Tensor, sizes: Sequence[int], tokens_per_pass: int) -> list[Tensor]:
    """`order`, whose prompts have these numbers of tokens, ascending, cut into passes of about so many tokens."""
    counts, count = [], 0
    for size in sizes:
        if count and (count + 1) * size > tokens_per_pass:
            counts.append(count)
            count = 0
        count += 1
    return list(order.split([*counts, count]))


def _begin(tower: TextTower, tokens: Tensor, kinds: Tensor, lengths: Tensor) -> Beginnings:
    """Keys and values of all kinds' beginnings: one pass of K rows."""
    first = torch.stack([(kinds == kind).long().argmax() for kind in range(len(lengths))])  # of each kind
    ids = tokens[first, : int(lengths.max())].to(tower.positional_embedding.device, non_blocking=True)  # (K, P)
    x = tower.token_embedding(ids) + tower.positional_embedding[: ids.shape[1]]
    keys, values = [], []
    for block in _blocks(tower):
        q, k, v = block.attn.project(block.ln_1(x))  # (K, N_h, P, d)
        keys.append(k)
        values.append(v)
        if len(keys) < len(tower.transformer.resblocks):  # nobody reads what the last block makes of them
            x = block.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return Beginnings(lengths, tuple(keys), tuple(values))


def _finish(tower: TextTower, tokens: Tensor, kinds: Tensor, ends: Tensor, beginnings: Beginnings) -> Tensor:
    """Embeddings (N, E) of prompts (N, T) whose beginnings are there."""
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
    x = tower.token_embedding(ids) + tower.positional_embedding[positions]  # (N, S, D)
    for index, block in enumerate(_blocks(tower)):
        q, k, v = block.attn.project(block.ln_1(x))  # (N, N_h, S, d)
        if longest:
            k = torch.cat([beginnings.keys[index][kinds, :, :longest], k], dim=2)  # (N, N_h, P + S, d)
            v = torch.cat([beginnings.values[index][kinds, :, :longest], v], dim=2)
        if index == len(tower.transformer.resblocks) - 1:  # of which only end-of-text is read
            q, x, seen = q[rows, :, last].unsqueeze(2), x[rows, last].unsqueeze(1), seen[rows, :, last].unsqueeze(2)
        x = block.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
    with without_autocast(device):
        embed: Tensor = tower.ln_final(x[:, 0].to(tower.text_projection.dtype)) @ tower.text_projection
    return embed


def _blocks(tower: TextTower) -> list[Block]:
    return [cast(Block, block) for block in tower.transformer.resblocks]

"""The nearest examples of a mask, and how they change its class probabilities.

B batch, Q queries, C classes, N examples, E joint embedding. Source: docs/examples.md#bank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from san.io.errors import brief_repr, excerpt
from san.torch_defaults import without_autocast
from san.vocabulary.bank import BankOptions
from san.vocabulary.classes import ClassVector

_MAX_COSINES = 2**24  # in memory at a time: 64 MB


@dataclass(frozen=True, eq=False)
class ExampleBank:
    """Examples of the classes of a vocabulary, ready to be compared with [SLS] embeddings.

    The search is exact. FAISS's exact index was slower at every size that was measured; docs/examples.md has the times.

    Attributes:
        examples: (N, E) float32, whitened, unit length.
        owner: (N,) int64, the class of each.
        has_examples: (C,) bool.
        mean: (E,) float32, see `whitened`.
        whitening: (E, E) float32.
        options: how examples count.
    """

    examples: Tensor
    owner: Tensor
    has_examples: Tensor
    mean: Tensor
    whitening: Tensor
    options: BankOptions

    __repr__ = brief_repr

    @staticmethod
    def of_classes(vectors: Sequence[ClassVector | None], device: torch.device) -> ExampleBank | None:
        """Return the bank of the classes with these vectors; None if no class has one.

        Raises:
            ValueError: two classes have different banks.
        """
        banks = {each.bank: each.clip for each in vectors if each is not None and each.bank and each.examples}
        if not banks:
            return None
        if len(banks) > 1:
            raise ValueError(
                f"the vocabulary has classes of {len(banks)} different banks, made with the CLIP "
                f"{excerpt(next(iter(banks.values())))}; make one vocabulary file of all examples (san vocab --bank)"
            )
        (bank,) = banks
        mean = _tensor(bank.mean, "<f4", device)
        whitening = _tensor(bank.whitening, "<f4", device).view(len(mean), len(mean))
        own = [b"" if each is None or each.bank is None else each.examples for each in vectors]
        rows = [_tensor(each, "<f2", device).view(-1, len(mean)) for each in own]
        counts = torch.tensor([len(each) for each in rows], device=device)
        owner = torch.arange(len(rows), device=device).repeat_interleave(counts)
        return ExampleBank(whitened(torch.cat(rows), mean, whitening), owner, counts > 0, mean, whitening, bank.options)

    def __len__(self) -> int:
        return len(self.examples)

    def mix(self, class_logits: Tensor, sls_embed: Tensor) -> Tensor:
        """Return class logits with the neighbours' classes mixed into the probabilities of classes with examples.

        With weight w, class probabilities p and the neighbours' votes v, which are 1 in all, those of a class with
        examples become (1 - w) p + w m v, where m is the sum of p over these classes. All others, and "no object", keep
        theirs.

        Args:
            class_logits: (B, Q, C + 1), "no object" last.
            sls_embed: (B, Q, E).

        Returns:
            (B, Q, C + 1) float32.
        """
        with without_autocast(class_logits.device):
            logits, no_object = class_logits[..., :-1].float(), class_logits[..., -1:].float()
            votes = self.votes(sls_embed.flatten(0, 1)).view_as(logits)
            # in logarithms, because a probability may be too small for float32; "share" is that of m
            share = logits.masked_fill(~self.has_examples, -math.inf).logsumexp(dim=-1, keepdim=True)
            weight = self.options.weight
            mixed = torch.logaddexp(logits + math.log1p(-weight), share + math.log(weight) + votes.log())
            return torch.cat([torch.where(self.has_examples, mixed, logits), no_object], dim=-1)

    def votes(self, embeds: Tensor) -> Tensor:
        """Return the share (M, C) of each class among the neighbours of embeddings (M, E); each row's sum is 1."""
        cosines, found = self.nearest(embeds)
        shares = (cosines / self.options.temperature).softmax(dim=1)
        votes = shares.new_zeros(len(embeds), len(self.has_examples))
        return votes.scatter_add(1, self.owner[found], shares)

    def nearest(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whitened cosines (M, k) of the nearest examples of embeddings (M, E), and their indices (M, k).

        They are sorted, the nearest first. If there are fewer examples than neighbours, k is their number.
        """
        queries = whitened(embeds.float(), self.mean, self.whitening)
        count = min(self.options.neighbours, len(self))
        parts = queries.split(max(1, _MAX_COSINES // len(self)))
        found = [(part @ self.examples.T).topk(count, dim=1) for part in parts]
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def whitened(embeds: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Return embeddings (N, E) minus the mean (E,), times the whitening (E, E), with unit length."""
    return F.normalize((embeds - mean) @ whitening, dim=-1)


def _tensor(values: bytes, kind: str, device: torch.device) -> Tensor:
    """Return little-endian numbers as a float32 vector."""
    return torch.from_numpy(np.frombuffer(values, kind).astype(np.float32)).to(device)

"""CLIP's text tower: token ids to embeddings. Weights only; `text_embedder` turns names into token ids.

B batch, T text tokens, D text width, N texts, E joint embedding. Source: docs/method.md#6.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.clip.blocks import Block


class Transformer(nn.Module):
    """A sequence of causal blocks."""

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


class TextTower(nn.Module):
    """The text side of a CLIP, with open_clip's names.

    Args:
        arch: the CLIP's architecture.
    """

    def __init__(self, arch: ClipArch) -> None:
        super().__init__()
        text = arch.text
        self.arch = arch
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(text.context_length, text.width) * 0.01)
        self.transformer = Transformer(arch)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.randn(text.width, arch.embed_dim) * text.width**-0.5)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text_projection.device

    def embed_tokens(self, ids: Tensor, positions: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Return the input (N, T, D) of the blocks for token ids (N, T) at positions (T,) or (N, T).

        Args:
            ids: of the tokens.
            positions: in their prompts, from 0.
            kinds: (N,) the index of each row's template; a subclass may treat templates differently.
        """
        x: Tensor = self.token_embedding(ids) + self.positional_embedding[positions]
        return x

    def encode_text(self, tokens: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Return embeddings (N, E), not normalised, of token ids (N, T), read at end-of-text (the largest id)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x: Tensor = self.ln_final(self.transformer(self.embed_tokens(tokens, positions, kinds)))
        end = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]  # (N, D)
        return end @ self.text_projection

    def tower_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights that an embedding depends on, without those of a subclass."""
        parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
        tensors = chain(self.named_parameters(), self.named_buffers())  # int8 weights are buffers
        return ((name, value) for name, value in tensors if name.split(".")[0] in parts)

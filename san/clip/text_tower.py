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
from san.clip.hugging_face_text import HuggingFaceText


class Transformer(nn.Module):
    """A sequence of blocks."""

    def __init__(self, arch: ClipArch) -> None:
        super().__init__()
        text = arch.text
        self.causal = text.causal
        self.resblocks = nn.ModuleList(
            Block(
                text.width,
                text.num_heads,
                text.mlp_ratio,
                quick_gelu=arch.quick_gelu,
                tanh_gelu=text.tanh_gelu,
                norm_eps=text.norm_eps,
            )
            for _ in range(text.depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        for block in self.resblocks:
            x = block(x, causal=self.causal)
        return x


class TextTower(nn.Module):
    """The text side of a CLIP, with open_clip's names.

    Args:
        arch: the CLIP's architecture.

    Attributes:
        foreign: a tower of transformers, which replaces all other modules; else None.
    """

    foreign: HuggingFaceText | None

    def __init__(self, arch: ClipArch) -> None:
        super().__init__()
        text = arch.text
        self.arch = arch
        self.foreign = HuggingFaceText(arch) if text.model else None
        if self.foreign is not None:
            return
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(text.context_length, text.width) * 0.01)
        self.transformer = Transformer(arch)
        self.ln_final = nn.LayerNorm(text.width, eps=text.norm_eps)
        self.text_projection = nn.Parameter(torch.randn(text.width, arch.embed_dim) * text.width**-0.5)
        if text.proj_bias:
            self.text_projection_bias = nn.Parameter(torch.zeros(arch.embed_dim))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

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
        """Return embeddings (N, E), not normalised, of token ids (N, T), read at `ends`."""
        if self.foreign is not None:
            embed: Tensor = self.foreign(tokens)
            return embed
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x: Tensor = self.ln_final(self.transformer(self.embed_tokens(tokens, positions, kinds)))
        return self.project(x[torch.arange(len(x), device=x.device), self.ends(tokens)])

    def ends(self, tokens: Tensor) -> Tensor:
        """Return the positions (N,) at which the embeddings of token ids (N, T) are read."""
        text = self.arch.text
        if text.pool == "last":
            return tokens.new_full((len(tokens),), tokens.shape[1] - 1)
        return ((tokens == text.eos_id).int() if text.pool == "eos" else tokens).argmax(dim=-1)

    def project(self, states: Tensor) -> Tensor:
        """Return embeddings (N, E) of states (N, D) after `ln_final`."""
        embed = states @ self.text_projection
        return embed + self.text_projection_bias if self.arch.text.proj_bias else embed

    def tower_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights that an embedding depends on, without those of a subclass."""
        parts = (
            "token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection",
            "text_projection_bias", "foreign",
        )  # fmt: skip
        tensors = chain(self.named_parameters(), self.named_buffers())  # int8 weights are buffers
        return ((name, value) for name, value in tensors if name.split(".")[0] in parts)

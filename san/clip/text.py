"""The open-vocabulary classifier: class names to text embeddings, [SLS] embeddings to class logits.

B batch, Q queries, C classes, E joint embedding, T text tokens, D text width. Source: method.md section 6.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.clip.blocks import Block
from san.clip.loader import Tokenizer
from san.clip.templates import load_templates


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
        templates: name of the template set.
        chunk_size: prompts per pass of the text tower.
    """

    def __init__(self, arch: ClipArch, tokenizer: Tokenizer, *, templates: str = "vild", chunk_size: int = 256) -> None:
        super().__init__()
        text = arch.text
        self.templates, self._prompts = templates, load_templates(templates)
        self._tokenizer, self._chunk_size = tokenizer, chunk_size
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(text.context_length, text.width) * 0.01)
        self.transformer = Transformer(arch)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.randn(text.width, arch.embed_dim) * text.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.no_object_embed = nn.Parameter(torch.randn(1, arch.embed_dim) * arch.embed_dim**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cache_key: object = None

    @torch.no_grad()
    def embed(self, names: Sequence[str]) -> Tensor:
        """Text embeddings (C, E) of unit length, averaged over the templates; a name is embedded once per model.

        Raises:
            ValueError: there is no name, or one is blank.
        """
        names = [name.strip() for name in names]
        if not names or not all(names):
            raise ValueError(f"a vocabulary needs at least one name, and none of them blank; got {names!r}")
        self._drop_stale_cache()
        missing = list(dict.fromkeys(name for name in names if name not in self._cache))
        with torch.autocast(self.no_object_embed.device.type, enabled=False):  # the cache outlives mixed precision
            self._cache.update(zip(missing, self._embed_new(missing), strict=True))
        return torch.stack([self._cache[name] for name in names]).to(self.no_object_embed.device)

    def logits(self, sls_embed: Tensor, text_embed: Tensor) -> Tensor:
        """Class logits (B, Q, C + 1), "no object" last, of unit-length [SLS] embeddings (B, Q, E) for names (C, E).

        In float32 also under autocast: half precision would be off by up to 0.3 at the scale of trained weights.
        """
        with torch.autocast(sls_embed.device.type, enabled=False):
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

    def _embed_new(self, names: Sequence[str]) -> Tensor:
        """(len(names), E), in chunks of prompts."""
        prompts = [prompt.format(name) for name in names for prompt in self._prompts]
        device = self.positional_embedding.device
        chunks = [prompts[start : start + self._chunk_size] for start in range(0, len(prompts), self._chunk_size)]
        encoded = [self.encode_text(self._tokenizer(chunk).to(device)).float() for chunk in chunks]
        if not encoded:
            return torch.empty(0, self.no_object_embed.shape[1])
        per_prompt = F.normalize(torch.cat(encoded), dim=-1).view(len(names), len(self._prompts), -1)
        return F.normalize(per_prompt.mean(dim=1), dim=-1)

    def _drop_stale_cache(self) -> None:
        """Embeddings of weights that have since been replaced or trained are forgotten."""
        key = tuple((id(parameter), parameter._version) for parameter in self.frozen_parameters())
        if key != self._cache_key:
            self._cache.clear()
            self._cache_key = key

"""The open-vocabulary classifier: maps class names to text embeddings, and [SLS] embeddings to class logits.

B batch, Q queries, C classes, E joint embedding. Source: docs/method.md#6.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.clip.prompts import Prompts, learnt_contexts
from san.clip.text_embedder import TextEmbedder, TextEmbeddings
from san.clip.text_tower import TextTower
from san.clip.tokenizer import Tokenizer
from san.io.errors import excerpt, listed
from san.record import FieldError
from san.torch_defaults import torch_defaults, without_autocast
from san.vocabulary.classes import ClassText

logger = logging.getLogger(__name__)

_MAX_LOGGED = 32_768  # remembered remarks; each is logged once
_MAX_SHOWN = 10  # words in one warning

OWN_PARAMETERS = ("no_object_embed", "context_offset")
"""Trained parameters that `TextClassifier` adds to CLIP's text tower."""


class TextClassifier(TextTower):
    """CLIP's frozen text tower with a learnt embedding for "no object" and, if the prompts define it, a learnt context.

    Args:
        arch: the CLIP's architecture.
        tokenizer: texts to ids.
        prompts: names to prompts.

    Attributes:
        embedder: names to embeddings, with caches and remarks.
        context_offset: (P, M, D), added to the embeddings of the first `context_length` tokens of prompts of P
            templates; None if the prompts have no learnt context.
        context_length: (P, 1), tokens of each template's learnt context.
    """

    context_length: Tensor

    def __init__(self, arch: ClipArch, tokenizer: Tokenizer, prompts: Prompts) -> None:
        super().__init__(arch)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.no_object_embed = nn.Parameter(torch.randn(1, arch.embed_dim) * arch.embed_dim**-0.5)
        if self.foreign is None:
            nn.init.normal_(self.token_embedding.weight, std=0.02)  # last, because random numbers depend on the order
        self.embedder = TextEmbedder(tokenizer, prompts)
        self.context_offset: nn.Parameter | None = None
        if learnt_contexts(prompts):
            if arch.text.tokenizer:  # its texts may begin without a token for the start
                raise FieldError(
                    "prompts with a learnt context need CLIP's own tokenizer, and this CLIP has "
                    f"{arch.text.tokenizer!r}; set prompts.name to templates",
                    "prompts.name",
                )
            lengths = self.context_lengths()
            self.context_offset = nn.Parameter(torch.zeros(len(lengths), int(lengths.max()), arch.text.width))
            self.register_buffer("context_length", lengths, persistent=False)
        self._logged: set[str] = set()

    @torch_defaults()
    def context_lengths(self) -> Tensor:
        """Return (P, 1), the value of `context_length`, without start and end of text."""
        lengths: Tensor = self.embedder.tokenizer(learnt_contexts(self.embedder.prompts)).argmax(dim=-1, keepdim=True)
        return lengths - 1

    def embed(self, classes: Sequence[str | ClassText]) -> Tensor:
        """Return text embeddings (C, E), see `TextEmbedder.embed`; logs each remark once.

        In training with a learnt context, every call computes them with a gradient.

        Raises:
            ValueError: see `TextEmbedder.embed`; or the classes have a bank, which the result cannot express.
        """
        learns = self.context_offset is not None and self.context_offset.requires_grad
        if self.training and learns and torch.is_grad_enabled():
            return self.embedder.embed_with_gradient(self, classes)
        text = self.embed_with_bank(classes)
        if text.bank is not None:
            raise ValueError(
                "the vocabulary has a bank of examples, which works only where masks are classified by san itself "
                "(Predictor, san predict, label, video, eval); make the file without --bank for this"
            )
        return text.vectors

    def embed_with_bank(self, classes: Sequence[str | ClassText]) -> TextEmbeddings:
        """Return the text embeddings of `embed`, without a gradient, and the examples for `SANModel.classify`."""
        text = self.embedder.embed(self, classes)
        self._log_remarks(text)
        return text

    def logits(self, sls_embed: Tensor, text_embed: Tensor) -> Tensor:
        """Return class logits (B, Q, C + 1), "no object" last, for unit vectors of [SLS] (B, Q, E) and names (C, E).

        Computed in float32 also under autocast: half precision has errors of up to 0.3 at the trained logit scale.
        """
        with without_autocast(sls_embed.device):
            no_object = F.normalize(self.no_object_embed.float(), dim=-1)
            classes = torch.cat([text_embed.float(), no_object])  # (C + 1, E)
            logits: Tensor = self.logit_scale.float().exp() * sls_embed.float() @ classes.t()
        return logits

    def embed_tokens(self, ids: Tensor, positions: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Embed tokens as `TextTower` does, and add the learnt offsets of templates; other kinds have none."""
        x = super().embed_tokens(ids, positions, kinds)
        if self.context_offset is None or kinds is None:
            return x
        templates, longest = self.context_offset.shape[:2]
        own = kinds.clamp(max=templates - 1)
        offsets = self.context_offset[own[:, None], (positions - 1).clamp(0, longest - 1)]  # (N, T, D)
        learnt = (positions >= 1) & (positions <= self.context_length[own]) & (kinds < templates)[:, None]  # (N, T)
        return x + offsets * learnt[..., None]

    def tower_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Return all weights that an embedding depends on, by name."""
        yield from super().tower_tensors()
        if self.context_offset is not None:
            yield "context_offset", self.context_offset

    def _log_remarks(self, text: TextEmbeddings) -> None:
        """Log one warning for new unknown words, and one for new truncated texts."""
        unknown = [word for word in text.unknown if word not in self._logged]
        cut = [name for name in text.cut if name not in self._logged]
        if len(self._logged) > _MAX_LOGGED:
            self._logged.clear()
        self._logged.update(unknown, cut)
        if unknown:
            shown = listed(map(excerpt, unknown), _MAX_SHOWN)
            logger.warning("the small CLIP does not know %s: their embeddings mean little", shown)
        if cut:
            more = f" (and {len(cut) - 1} more such names)" if len(cut) > 1 else ""
            logger.warning("%s%s", text.cut[cut[0]], more)

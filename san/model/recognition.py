"""Initialisations of the [SLS] tokens, and scorers that compare their embeddings with class names.

B batch, Q queries, C classes, E joint embedding, D CLIP width. Source: docs/method.md#5 and #6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from san.clip.text_classifier import TextClassifier
from san.model.parts import SCORERS, SLS_INITS, Scorer, SLSInit


@SLS_INITS.register("class_token")
class ClassTokenInit(SLSInit):
    """Every [SLS] token starts as a copy of CLIP's class token (published)."""

    def forward(self, class_token: Tensor) -> Tensor:
        """(B, 1, D) to (B, Q, D)."""
        return class_token.expand(-1, self.num_queries, -1)


@SLS_INITS.register("learnt")
class LearntInit(SLSInit):
    """One learnt embedding per [SLS] token."""

    def __init__(self, options: Any, num_queries: int, clip_width: int) -> None:
        super().__init__(options, num_queries, clip_width)
        self.embed = nn.Parameter(torch.randn(num_queries, clip_width) * 0.02)

    def forward(self, class_token: Tensor) -> Tensor:
        """(B, 1, D) to (B, Q, D)."""
        return self.embed.to(class_token.dtype).expand(class_token.shape[0], -1, -1)


@SLS_INITS.register("learnt_plus_class_token")
class LearntPlusClassTokenInit(LearntInit):
    """One learnt embedding per [SLS] token, added to the class token."""

    def forward(self, class_token: Tensor) -> Tensor:
        """(B, 1, D) to (B, Q, D)."""
        return class_token.expand(-1, self.num_queries, -1) + self.embed.to(class_token.dtype)


@SCORERS.register("sls")
class SLSScorer(Scorer):
    """Scaled cosine similarity of [SLS] and text embeddings (published)."""

    def forward(self, sls_embed: Tensor, text_embed: Tensor, classifier: TextClassifier) -> Tensor:
        """(B, Q, C + 1)."""
        return classifier.logits(sls_embed, text_embed)

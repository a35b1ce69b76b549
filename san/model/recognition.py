"""Initialisations of the [SLS] tokens, and scorers that compare their embeddings with class names.

B batch, Q queries, C classes, E joint embedding, D CLIP width. Source: docs/method.md#5 and #6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from san.clip.text_classifier import TextClassifier
from san.model.config import SANConfig
from san.model.parts import SCORERS, SLS_INITS, Scorer, SLSInit
from san.record import FieldError, Options, option
from san.vocabulary.classes import ClassText
from san.vocabulary.label_sets import LABEL_SETS
from san.vocabulary.vocabulary import Vocabulary

_SAME_NAME = 0.999
"""Cosine of two text embeddings from which they are of one name."""


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


@dataclass(frozen=True)
class SecondOpinionOptions(Options):
    """How much CLIP's patches under a mask count beside its [SLS] token."""

    seen_weight: float = option(0.2, "share of the second opinion on names that training had masks of", least=0, most=1)
    novel_weight: float = option(0.2, "share of the second opinion on other names", least=0, most=1)
    seen: str = option(
        "", "the names that training had masks of: words, or a label set such as coco_stuff_171; for different weights"
    )

    @property
    def seen_classes(self) -> tuple[ClassText, ...]:
        """The classes of `seen`; those of a label set in each form that its names may have."""
        classes = Vocabulary.parse(self.seen).classes
        if self.seen.strip() not in LABEL_SETS:
            return classes
        return (*classes, *Vocabulary.label_set(self.seen.strip(), "expanded").classes)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seen:
            try:
                Vocabulary.parse(self.seen)
            except ValueError as error:
                raise FieldError(f"seen does not list names: {error}", "seen") from None
        elif self.seen_weight != self.novel_weight:
            raise FieldError(
                f"seen is empty, but seen_weight {self.seen_weight:g} and novel_weight {self.novel_weight:g} differ; "
                "list the names that training had masks of, such as coco_stuff_171, or give both one weight",
                "seen",
            )


@SCORERS.register("second_opinion")
class SecondOpinionScorer(Scorer):
    """[SLS] tokens and CLIP's patches under each mask together, in evaluation; in training [SLS] tokens alone.

    Probabilities of classes are a weighted geometric mean of both; that of "no object" is from the [SLS] token. It has
    no weights of its own and fits any checkpoint. The mean is that of FC-CLIP (arXiv 2308.02487).
    """

    Options = SecondOpinionOptions

    def __init__(self, options: SecondOpinionOptions, config: SANConfig) -> None:
        super().__init__(options, config)
        self.options = options

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Scorer.needs`."""
        return () if self.training else ("pooled_embed",)

    def forward(
        self, sls_embed: Tensor, text_embed: Tensor, classifier: TextClassifier, pooled_embed: Tensor | None = None
    ) -> Tensor:
        """(B, Q, C + 1), given also `pooled_embed` (B, Q, E), unit length."""
        logits = classifier.logits(sls_embed, text_embed)
        if pooled_embed is None:
            return logits
        first, no_object = logits[..., :-1], logits[..., -1:]
        second = classifier.logits(pooled_embed, text_embed)[..., :-1]
        weight = self._weights(text_embed, classifier)  # (C,)
        mean = torch.lerp(first.log_softmax(dim=-1), second.log_softmax(dim=-1), weight).log_softmax(dim=-1)
        return torch.cat([mean + first.logsumexp(dim=-1, keepdim=True), no_object], dim=-1)

    def _weights(self, text_embed: Tensor, classifier: TextClassifier) -> Tensor:
        """Return the share (C,) of the second opinion on each class."""
        options = self.options
        weights = text_embed.new_full((len(text_embed),), options.novel_weight)
        if options.seen_weight == options.novel_weight:
            return weights
        seen = classifier.embed(options.seen_classes)  # cached
        is_seen = (text_embed @ seen.T).amax(dim=1) >= _SAME_NAME
        return weights.masked_fill(is_seen, options.seen_weight)

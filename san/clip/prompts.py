"""What the text embedder is given to make prompts with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Prompts(Protocol):
    """What makes prompts of a name, such as `san.clip.templates.Templates`."""

    @property
    def identity(self) -> str:
        """Equal for two if and only if they make the same prompts; embeddings on disk are known by it."""

    def __call__(self, name: str) -> Sequence[str]:
        """The prompts of a name, as many for every name.

        Prompts of the same index may begin alike for all names; what they share is computed once.
        """


def learnt_contexts(prompts: Prompts) -> tuple[str, ...]:
    """What prompts name in ``learnt_contexts``: per prompt index the words before the name whose embeddings are learnt.

    Empty where they have no such attribute: nothing is learnt.
    """
    found: Sequence[str] = getattr(prompts, "learnt_contexts", ())
    return tuple(found)

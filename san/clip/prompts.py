"""The interface of what makes prompts, for the text embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Prompts(Protocol):
    """Makes prompts of a name; `san.clip.templates.Templates` is one."""

    @property
    def identity(self) -> str:
        """Equal if and only if the prompts are equal; part of the key of embeddings on disk."""

    def __call__(self, name: str) -> Sequence[str]:
        """Return the prompts of a name; their number is the same for every name.

        The shared beginning of prompts of the same index is computed once.
        """


def learnt_contexts(prompts: Prompts) -> tuple[str, ...]:
    """What prompts name in ``learnt_contexts``: per prompt index the words before the name whose embeddings are learnt.

    Empty where they have no such attribute: nothing is learnt.
    """
    found: Sequence[str] = getattr(prompts, "learnt_contexts", ())
    return tuple(found)

"""The interface of prompts, for the text embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Prompts(Protocol):
    """Makes prompts from a name, for example `san.clip.templates.Templates`."""

    @property
    def identity(self) -> str:
        """Equal if and only if the prompts are equal; part of the key of embeddings on disk."""

    def __call__(self, name: str) -> Sequence[str]:
        """Return the prompts of a name; the number is the same for every name.

        The common prefix of prompts with the same index is computed once.
        """


def learnt_contexts(prompts: Prompts) -> tuple[str, ...]:
    """Return ``learnt_contexts`` of prompts: per prompt index, the words before the name with learnt embeddings.

    Empty if prompts do not have this attribute.
    """
    found: Sequence[str] = getattr(prompts, "learnt_contexts", ())
    return tuple(found)

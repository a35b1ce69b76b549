"""A class as CLIP's text tower takes it: a name to show, and the texts its embedding is averaged over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassText:
    """One class of a vocabulary.

    Its embedding is the mean over its synonyms (each averaged over the prompt templates) or over its own prompts,
    brought to unit length; of a single synonym it is that synonym's embedding itself.

    Attributes:
        name: what is shown.
        synonyms: all texts that are put into the templates; without any, and without prompts, the name alone. Where
            some are given, the name is embedded only if it is among them.
        prompts: complete prompts that are embedded as they are, in place of synonyms and templates.

    Raises:
        ValueError: a text is blank, stands twice, or both synonyms and prompts are given.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = _stripped(self.name, "the name of a class")
        if not name:
            raise ValueError(
                f"the name of a class is {self.name!r}; a vocabulary needs at least one name, and none of them blank"
            )
        synonyms, prompts = _texts(self.synonyms, name, "synonyms"), _texts(self.prompts, name, "prompts")
        if synonyms and prompts:
            raise ValueError(
                f"class {name!r} has both synonyms and prompts; give synonyms, which go into the prompt templates, or "
                "prompts, which take their place"
            )
        unfilled = [prompt for prompt in prompts if "{}" in prompt]
        if unfilled:
            raise ValueError(
                f"the prompt {unfilled[0]!r} of class {name!r} holds {{}}, but a class's prompts go to CLIP as they "
                "are; write the words out"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "synonyms", synonyms or (() if prompts else (name,)))
        object.__setattr__(self, "prompts", prompts)


def text_key(text: str) -> str:
    """What two texts have in common that CLIP's tokenizer does not tell apart: letter case and blanks are ignored."""
    return " ".join(text.casefold().split())


def _stripped(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{what} is {text!r} of type {type(text).__name__}; give text")
    return text.strip()


def _texts(texts: tuple[str, ...], name: str, kind: str) -> tuple[str, ...]:
    """The texts without outer blanks."""
    if isinstance(texts, str):
        raise ValueError(f"the {kind} of class {name!r} are one string, {texts!r}; give a list of texts")
    found = tuple(_stripped(text, f"one of the {kind} of class {name!r}") for text in texts)
    if not all(found):
        raise ValueError(f"class {name!r} has a blank among its {kind} {list(texts)}; remove it")
    keys = [text_key(text) for text in found]
    twice = [text for text, key in zip(found, keys, strict=True) if keys.count(key) > 1]
    if twice:
        raise ValueError(f"the {kind} of class {name!r} hold {twice[0]!r} twice; remove the repetition")
    return found

"""Vocabularies: what people write or choose, turned into the classes that pixels are given.

Order is kept and nothing is dropped or added silently: what makes no sense is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Union

from san.clip.vocabulary import ClassText, text_key
from san.data.label_sets import LABEL_SETS, load_label_set
from san.data.shapes.world import NAMES as SHAPES_NAMES

VocabularyLike = Union["Vocabulary", str, Iterable[Any], Mapping[str, Any]]
"""What `Vocabulary.parse` takes."""

LABEL_SET_NAMES: tuple[str, ...] = (*LABEL_SETS, "shapes_36")
"""The label sets that can be named: the six benchmarks', and the 36 names of the shapes world."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes an image is segmented into.

    Attributes:
        classes: in the order asked for; a label map holds indices into it.
        num_context: the last so many classes are context: they compete for pixels and are shown as what they are, but
            were not among the words asked for.

    Raises:
        ValueError: there is no class, or two are the same: equal names, a synonym that is another class's name, or
            equal texts. Letter case and blanks make no difference, as they make none to CLIP.
    """

    classes: tuple[ClassText, ...]
    num_context: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.classes:
            raise ValueError("the vocabulary is empty: it needs at least one name, and none of them blank")
        if not 0 <= self.num_context < len(self.classes):
            raise ValueError(
                f"num_context is {self.num_context} of {len(self.classes)} classes; at least one class must be free"
            )
        _check_distinct(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names shown, in order."""
        return tuple(each.name for each in self.classes)

    @property
    def free(self) -> tuple[ClassText, ...]:
        """The classes asked for, without the context."""
        return self.classes[: len(self.classes) - self.num_context]

    def __len__(self) -> int:
        return len(self.classes)

    @staticmethod
    def parse(spec: VocabularyLike) -> Vocabulary:
        """A vocabulary from what people write.

        Args:
            spec: one of
                - text: "cat, dog; sofa|couch". Commas, semicolons and line breaks separate classes, | the synonyms of
                  one; the first is shown. Blank pieces, as after a trailing comma, are passed over. A single word in
                  the form of a label set's name ("ade20k_150") or nearly so is one, refused if there is none;
                - a list of names (taken whole, commas and all), `ClassText`s, or {"name": ..., "synonyms": [...]} or
                  {"name": ..., "prompts": [...]};
                - a mapping from name to its prompt or list of prompts, or to {"synonyms": [...]}, or None for the
                  templates;
                - a `Vocabulary`, which comes back as it is.

        Raises:
            ValueError: it is empty, a name in a list is blank, two classes are the same, or there is no such label set.
        """
        if isinstance(spec, Vocabulary):
            return spec
        if isinstance(spec, str):
            word = spec.strip()
            if _means_label_set(word):
                return Vocabulary.label_set(word)
            return Vocabulary(_from_text(spec))
        if isinstance(spec, Mapping):
            return Vocabulary(tuple(_from_pair(name, value) for name, value in spec.items()))
        if isinstance(spec, ClassText) or not isinstance(spec, Iterable):
            raise ValueError(f"the vocabulary is {spec!r}; give text such as 'cat, dog', a list of names or a mapping")
        return Vocabulary(tuple(_from_item(item) for item in spec))

    @staticmethod
    def label_set(name: str) -> Vocabulary:
        """All classes of one of `LABEL_SET_NAMES`; a name with commas is one text.

        Raises:
            ValueError: there is no such label set.
        """
        if name == "shapes_36":
            return Vocabulary(tuple(ClassText(each) for each in SHAPES_NAMES))
        try:
            return Vocabulary(tuple(ClassText(each) for each in load_label_set(name).classes))
        except ValueError as error:
            raise ValueError(f"{error}, and shapes_36") from None

    def with_context(self, context: VocabularyLike) -> Vocabulary:
        """This vocabulary followed by classes that compete for pixels though nobody asked for them.

        Without context every pixel must get one of the words, however poorly they fit. A context class is left out
        where one of its texts (its name, a synonym, or a part between the commas of a label set's name such as
        "painting, picture") is already among the words.

        Args:
            context: a label set's name, or anything else that `parse` takes.

        Raises:
            ValueError: there is a context already, or the context makes no sense on its own.
        """
        if self.num_context:
            raise ValueError(f"the vocabulary already has a context of {self.num_context} classes; give one context")
        words = {text_key(text) for each in self.classes for text in (each.name, *each.synonyms)}
        added = tuple(each for each in Vocabulary.parse(context).classes if not words & _context_keys(each))
        return Vocabulary(self.classes + added, num_context=len(added))


def _means_label_set(word: str) -> bool:
    """Whether a text is a label set's name or looks like a slip in one, as no word of a language does."""
    in_form = re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_\d+", word)  # "ade20k_150"
    slip = re.fullmatch(r"\w*[\d_][\w-]*", word) and get_close_matches(word, LABEL_SET_NAMES, n=1, cutoff=0.8)
    return word in LABEL_SET_NAMES or bool(in_form or slip)


def _context_keys(context_class: ClassText) -> set[str]:
    """The texts by which a context class may already be among the words."""
    texts = (context_class.name, *context_class.synonyms)
    return {text_key(part) for text in texts for part in (text, *text.split(","))}


def _from_text(text: str) -> tuple[ClassText, ...]:
    pieces = [piece for piece in re.split(r"[,;\n\r]", text) if piece.strip()]
    classes = []
    for piece in pieces:
        synonyms = tuple(word.strip() for word in piece.split("|"))
        if not all(synonyms):
            raise ValueError(f"{piece.strip()!r} has a blank synonym; write words on both sides of every |")
        classes.append(ClassText(synonyms[0], synonyms))
    if not classes:
        raise ValueError(f"the vocabulary {text!r} is empty: it needs at least one name, and none of them blank")
    return tuple(classes)


def _from_item(item: Any) -> ClassText:
    """One entry of a list."""
    if isinstance(item, ClassText):
        return item
    if isinstance(item, str):
        return ClassText(item)
    if isinstance(item, Mapping) and "name" in item:
        return _from_pair(item["name"], {key: value for key, value in item.items() if key != "name"})
    raise ValueError(
        f"the vocabulary holds {item!r}; each class is a name, a ClassText or {{'name': ..., 'synonyms': [...]}}"
    )


def _from_pair(name: Any, value: Any) -> ClassText:
    """A name and its prompts, or its synonyms or prompts by name."""
    if value is None:
        return ClassText(name)
    if isinstance(value, Mapping):
        unknown = sorted(map(str, set(value) - {"synonyms", "prompts"}))
        if unknown:
            raise ValueError(f"class {name!r} has the unknown field {unknown[0]!r}; give 'synonyms' or 'prompts'")
        return ClassText(name, *(_as_tuple(value.get(key) or (), name) for key in ("synonyms", "prompts")))
    prompts = _as_tuple(value, name)
    if not prompts:
        raise ValueError(f"class {name!r} has an empty list of prompts; give prompts, or None for the templates")
    return ClassText(name, prompts=prompts)


def _as_tuple(value: Any, name: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise ValueError(f"the texts of class {name!r} are {value!r}; give text or a list of texts")
    return tuple(value)


def _check_distinct(classes: tuple[ClassText, ...]) -> None:
    by_name: dict[str, ClassText] = {}
    by_texts: dict[frozenset[str], ClassText] = {}
    for each in classes:
        other = by_name.setdefault(text_key(each.name), each)
        if other is not each:
            same = "" if other.name == each.name else f" (as {other.name!r} and {each.name!r}; case does not matter)"
            raise ValueError(f"names stand twice in the vocabulary: {each.name}{same}; remove the repetitions")
        texts = frozenset(map(text_key, each.synonyms or each.prompts))
        other = by_texts.setdefault(texts, each)
        if other is not each:
            raise ValueError(
                f"{other.name!r} and {each.name!r} have the same texts, so the second could never win; remove one"
            )
    for each in classes:
        for synonym in each.synonyms:
            other = by_name.get(text_key(synonym), each)
            if other is not each:
                raise ValueError(
                    f"{synonym!r} is a synonym of {each.name!r} and a class of its own; remove it from one of them"
                )

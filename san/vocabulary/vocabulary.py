"""Vocabularies: the classes that an image is segmented into, parsed from user input.

The order is kept and nothing is dropped or added silently: invalid input is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union

from san.io.errors import excerpt
from san.io.plain_file import user_path
from san.vocabulary.class_file import read_class_file
from san.vocabulary.classes import (
    ClassText,
    check_distinct,
    clean_text,
    named_class,
    parse_class,
    parse_class_list,
    split_text,
    text_key,
)
from san.vocabulary.label_sets import LABEL_SETS, NAMES, expanded_names, load_label_set
from san.vocabulary.vocabulary_file import ENDING as VECTORS_ENDING
from san.vocabulary.vocabulary_file import read_learnt_classes

VocabularyLike = Union["Vocabulary", str, Path, Iterable[Any], Mapping[str, Any]]
"""Input types of `Vocabulary.parse`."""

_SHOWN = 5  # number of names in a vocabulary's repr
_MAX_NAME = 100  # maximum characters of a possible label set name


@dataclass(frozen=True)
class Vocabulary:
    """The classes an image is segmented into.

    Attributes:
        classes: classes in the requested order; a label map contains indices into it.
        num_context: number of context classes, which come last: they compete for pixels and are shown with their names,
            but were not requested.

    Raises:
        ValueError: there is no class, one has `ClassText.separate`, or two have the same name, a text in common, or the
            same prompts. Texts are compared as by CLIP, see `san.vocabulary.classes.text_key`.
    """

    classes: tuple[ClassText, ...]
    num_context: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.classes:
            raise ValueError("the vocabulary is empty; give at least one name")
        if not 0 <= self.num_context < len(self.classes):
            raise ValueError(
                f"num_context is {self.num_context} of {len(self.classes)} classes; at least one class must be free"
            )
        check_distinct(self.classes, "the vocabulary")
        for each in self.classes:
            if each.separate:
                raise ValueError(
                    f"class {excerpt(each.name)} has 'separate', which is for the classes of a data set; give its "
                    "synonyms as classes, or as the context"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The displayed names, in order."""
        return tuple(each.name for each in self.classes)

    @property
    def free(self) -> tuple[ClassText, ...]:
        """The requested classes, without the context."""
        return self.classes[: len(self.classes) - self.num_context]

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        shown = [excerpt(each.name, limit=30) for each in self.classes[:_SHOWN]]
        more = ["..."] if len(self) > _SHOWN else []
        context = f", {self.num_context} of them context" if self.num_context else ""
        return f"Vocabulary({len(self)} classes{context}: {', '.join(shown + more)})"

    @staticmethod
    def parse(spec: VocabularyLike) -> Vocabulary:
        """Build a vocabulary from user input.

        Args:
            spec: one of
                - text: "cat, dog; sofa|couch". Commas, semicolons and line breaks separate classes, | separates
                  synonyms; the first is shown. Blank pieces, as after a trailing comma, are skipped. A single word that
                  looks like a label set's name ("ade20k_150") is read as one, and refused if it does not exist;
                - a list, each entry text (| between synonyms; a comma belongs to the name), a `ClassText`, or {"name":
                  ..., "synonyms": ...} or {"name": ..., "prompts": ...}; synonyms are a list, or comma-separated text;
                - a mapping from name to its prompt or list of prompts, or to {"synonyms": ...} or {"prompts": ...}, or
                  None for the templates;
                - a `Path`: see `from_file`;
                - a `Vocabulary`, which is returned unchanged.

        Raises:
            ValueError: the input is empty, a name in a list is blank, two classes are equal, or the label set does not
                exist.
            FileNotFoundError: the file does not exist.
        """
        if isinstance(spec, Vocabulary):
            return spec
        if isinstance(spec, Path):
            return Vocabulary.from_file(spec)
        if isinstance(spec, str):
            word = clean_text(spec) if len(spec) <= _MAX_NAME else ""
            if _means_label_set(word):
                return Vocabulary.label_set(word)
            classes = parse_class_list(split_text(spec), "the vocabulary")
            sets = [each.name for each in classes if each.name in LABEL_SETS]
            if sets:
                raise ValueError(f"the label set {sets[0]!r} stands among words; give it alone, or as their context")
            return Vocabulary(classes)
        if isinstance(spec, Mapping):
            return Vocabulary(tuple(_from_pair(name, value) for name, value in spec.items()))
        if isinstance(spec, ClassText) or not isinstance(spec, Iterable):
            raise ValueError(
                f"the vocabulary is {excerpt(spec)}; give text such as 'cat, dog', a list of names or a mapping"
            )
        return Vocabulary(parse_class_list(spec, "the vocabulary"))

    @staticmethod
    def from_file(path: str | Path) -> Vocabulary:
        """Read a vocabulary from a file.

        Args:
            path: UTF-8 file; .txt with one class per line and | between synonyms, where blank lines and lines starting
                with # are skipped; .json, .yaml or .yml with a list or a mapping for `parse`; or .safetensors, see
                `san.vocabulary.vocabulary_file`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file has another extension, cannot be read, or `parse` refuses its content.
        """
        path = user_path(str(path), "the path of a vocabulary file")
        if path.suffix.lower() == VECTORS_ENDING:
            return Vocabulary(read_learnt_classes(path).classes)
        content, where = read_class_file(path, "vocabulary file"), f"vocabulary file {path}"
        if isinstance(content, list):
            return Vocabulary(parse_class_list(content, where))
        try:
            return Vocabulary.parse(content)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @staticmethod
    def label_set(name: str, names: str = "default") -> Vocabulary:
        """Return all classes of one of `LABEL_SETS`.

        Args:
            name: of the label set.
            names: of `NAMES`; in "default" a name with commas is one text.

        Raises:
            ValueError: the label set does not exist, or `names` is none of them.
        """
        if names not in NAMES:
            raise ValueError(f"the names of a label set are {excerpt(names)}; give one of {', '.join(NAMES)}")
        classes = load_label_set(name).classes
        texts = expanded_names(name) if names == "expanded" else {}
        return Vocabulary(tuple(ClassText(each, texts.get(each, ())) for each in classes))

    def as_text(self) -> str:
        """Format the vocabulary as a text that `parse` reads as the same classes.

        Raises:
            ValueError: a class has no such form: it has prompts, a vector, a comma, or a name that is not its first
                synonym.
        """
        texts = ["|".join(each.synonyms) for each in self.classes]
        for each, text in zip(self.classes, texts, strict=True):
            if split_text(text) != [text] or parse_class(text) != each:
                raise ValueError(
                    f"the class {excerpt(each.name)} cannot be written in one line of words: it has prompts, a "
                    "vector, a comma, or a name that is not its first synonym; change it"
                )
        return ", ".join(texts)

    def with_context(self, context: VocabularyLike) -> Vocabulary:
        """Append context classes, which compete for pixels without being requested.

        Without context, every pixel gets one of the requested classes, even if none fits. A context class is omitted if
        one of its texts (its name, a synonym, or a part between the commas of a label set's name such as "painting,
        picture") is already in the vocabulary.

        Args:
            context: name of a label set, or any other input of `parse`.

        Raises:
            ValueError: the vocabulary already has a context, or the context is not valid input of `parse`.
        """
        if self.num_context:
            raise ValueError(f"the vocabulary already has a context of {self.num_context} classes; give one context")
        words = {text_key(text) for each in self.classes for text in (each.name, *each.synonyms)}
        added = tuple(each for each in Vocabulary.parse(context).classes if not words & _context_keys(each))
        return Vocabulary(self.classes + added, num_context=len(added))


def _means_label_set(word: str) -> bool:
    """Whether a text is a label set's name or resembles one more than a word of a language."""
    in_form = re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_\d+", word)  # "ade20k_150"
    slip = re.fullmatch(r"\w*[\d_][\w-]*", word) and get_close_matches(word, LABEL_SETS, n=1, cutoff=0.8)
    return word in LABEL_SETS or bool(in_form or slip)


def _context_keys(context_class: ClassText) -> set[str]:
    """Return the texts by which a context class may already be in the vocabulary."""
    texts = (context_class.name, *context_class.synonyms)
    return {text_key(part) for text in texts for part in (text, *text.split(","))}


def _from_pair(name: Any, value: Any) -> ClassText:
    """Parse a name and its prompts, or its synonyms or prompts by kind."""
    if value is None:
        return parse_class(name)
    return named_class(name, value if isinstance(value, Mapping) else {"prompts": value})

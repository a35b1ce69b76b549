"""Classes as input of CLIP's text tower: their syntax, and which texts are equal to CLIP."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ftfy
import regex

from san.io.errors import excerpt
from san.vocabulary.bank import BankSettings

KINDS = ("synonyms", "prompts")
"""Keys that a class written as a mapping may have besides its name."""

SEPARATE = "separate"
"""A further key, for data sets: see `ClassText.separate`."""

MAX_CHARACTERS = 10_000
"""Maximum characters of a name or prompt; CLIP reads 77 tokens of it."""

_COMMAS, _BARS = ",;，；、،؛", "|｜"  # including the Chinese, Japanese and Arabic forms

_TOKENS = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
"""Pieces that CLIP's tokenizer splits a text into before byte-pair encoding; tests compare it with the tokenizer."""

_JOINED = r"[^\s\p{Latin}\p{Greek}\p{Cyrillic}\p{DI}]"
_INVISIBLE = regex.compile(
    rf"(?:(?<={_JOINED}\ufe0f?)[\u200c\u200d](?=\p{{DI}}*{_JOINED})"  # joiners inside Arabic and Indic words and emoji
    rf"|(?<={_JOINED})[\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"  # variant of the preceding character
    r"|\U0001f3f4[\U000e0020-\U000e007f]+"  # the flags of England, Scotland and Wales
    r")(*SKIP)(*FAIL)"  # these change the displayed text; the following ones do not
    r"|[[\p{DI}\p{Cc}\ufff9-\ufffb]--\s]",
    regex.V1,
)


@dataclass(frozen=True)
class ClassVector:
    """A fixed embedding of a class, made from examples, instead of that of its texts.

    Attributes:
        values: E little-endian float32 numbers. [SLS] embeddings are compared with them as with a text embedding, but
            they are of any length.
        clip: name of the CLIP in whose joint space they are, for messages.
        probe: E such numbers, an embedding by which that CLIP is recognised; see `TextEmbedder.probe`.
        examples: n x E little-endian float16 numbers, the embedding of each example, unit length, if there is a bank.
        bank: how masks are compared with single examples, too; None if they are not.
    """

    values: bytes
    clip: str
    probe: bytes
    examples: bytes = b""
    bank: BankSettings | None = None

    def __repr__(self) -> str:
        more = "" if self.bank is None else f", {self.bank}"
        numbers = hashlib.sha256(self.values + self.examples).hexdigest()[:16]
        return f"ClassVector({numbers}, {excerpt(self.clip)}{more})"


@dataclass(frozen=True)
class ClassText:
    """One class of a vocabulary.

    Its embedding is the mean over its synonyms (each averaged over the prompt templates) or over its own prompts,
    normalised to unit length; for a single synonym it is that synonym's embedding. All texts are stored as returned by
    `clean_text`.

    Attributes:
        name: displayed name.
        synonyms: all texts inserted into the templates; by default, and without prompts, the name. If given, the name
            is embedded only if it is one of them.
        prompts: complete prompts, embedded unchanged instead of synonyms and templates.
        separate: in evaluation each synonym is scored as a class of its own, and a pixel belongs to this class if one
            of them is best, as for a background of unlike things; see `separate_words`.

    Raises:
        ValueError: a text is blank, too long or duplicate, both synonyms and prompts are given, or there is no second
            synonym to separate.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    separate: bool = False
    vector: ClassVector | None = None

    def __post_init__(self) -> None:
        name = _checked(self.name, "the name of a class")
        synonyms, prompts = _texts(self.synonyms, name, "synonyms"), _texts(self.prompts, name, "prompts")
        if synonyms and prompts:
            raise ValueError(
                f"class {excerpt(name)} has both synonyms and prompts; give synonyms, which go into the prompt "
                "templates, or prompts, which replace them"
            )
        unfilled = [prompt for prompt in prompts if "{}" in prompt]
        if unfilled:
            raise ValueError(
                f"the prompt {excerpt(unfilled[0])} of class {excerpt(name)} holds {{}}, but a class's prompts go to "
                "CLIP as they are; write the words out"
            )
        if not isinstance(self.separate, bool) or (self.separate and len(synonyms) < 2):
            raise ValueError(
                f"separate of class {excerpt(name)} is {excerpt(self.separate)} with {len(synonyms)} synonyms; give "
                "true with two or more synonyms, or leave it out"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "synonyms", synonyms or (() if prompts else (name,)))
        object.__setattr__(self, "prompts", prompts)


def separate_words(classes: Sequence[str | ClassText]) -> tuple[tuple[str | ClassText, ...], tuple[int, ...]]:
    """Return the words that are scored, and the index of the class of each.

    These are the classes themselves, except that a class with `ClassText.separate` has each of its synonyms.
    """
    words: list[str | ClassText] = []
    owners: list[int] = []
    for index, each in enumerate(classes):
        own = map(ClassText, each.synonyms) if isinstance(each, ClassText) and each.separate else (each,)
        words.extend(own)
        owners.extend([index] * (len(words) - len(owners)))
    return tuple(words), tuple(owners)


def clean_text(text: str) -> str:
    """Remove invisible characters: byte order marks, zero-width and control characters, surplus blanks."""
    return " ".join(_INVISIBLE.sub("", text).split())


@lru_cache(maxsize=16_384)
def text_key(text: str) -> str:
    """Return a key that is equal for two texts if and only if CLIP's tokenizer gives both the same ids.

    It ignores letter case, blanks, composed or decomposed accents, full-width letters, curly quotes and HTML entities;
    "Straße" and "Strasse" differ.
    """
    cleaned = html.unescape(html.unescape(ftfy.fix_text(clean_text(text))))
    return " ".join(_TOKENS.findall(" ".join(cleaned.split()).lower()))


def split_text(text: str) -> list[str]:
    """Split at commas, semicolons and line breaks; blank pieces are dropped."""
    return [piece for piece in re.split(f"[{_COMMAS}\n\r]", text) if clean_text(piece)]


def parse_class(item: Any, kinds: Sequence[str] = KINDS) -> ClassText:
    """Parse a class.

    Args:
        item: text with | between synonyms (the first is the name; commas are part of a text); a `ClassText`; or a
            mapping with "name" and either "synonyms" or "prompts".
        kinds: keys of `KINDS` that a mapping may have.

    Raises:
        ValueError: the item is none of these, or `ClassText` refuses its values.
    """
    if isinstance(item, ClassText):
        return item
    if isinstance(item, str):
        words = re.split(f"[{_BARS}]", item)
        if len(words) > 1 and not all(map(clean_text, words)):
            raise ValueError(f"{excerpt(item.strip())} has a blank synonym; write words on both sides of every |")
        return ClassText(words[0], tuple(words) if len(words) > 1 else ())
    if isinstance(item, Mapping) and "name" in item:
        return named_class(item["name"], {key: value for key, value in item.items() if key != "name"}, kinds)
    raise ValueError(
        f"a class is {excerpt(item)}; give text (in quotes where YAML reads it otherwise) or "
        "{name: ..., synonyms: ...}"
    )


def named_class(name: Any, texts: Mapping[Any, Any], kinds: Sequence[str] = KINDS) -> ClassText:
    """Build a class from its name and its texts by kind.

    Args:
        name: displayed name.
        texts: "synonyms" (a list, or comma-separated text) or "prompts" (a list, or one text), and `SEPARATE`.
        kinds: accepted keys of these.

    Raises:
        ValueError: there is another kind, a value is neither text nor a list of texts, or `ClassText` refuses the
            texts.
    """
    unknown = [key for key in texts if key not in kinds]
    if unknown:
        raise ValueError(
            f"class {excerpt(name)} has the unknown key {excerpt(unknown[0])}; beside the name it may have "
            f"{' or '.join(kinds)}"
        )
    lists: dict[str, Any] = {}
    for kind, value in texts.items():
        if kind == SEPARATE:
            lists[kind] = value
            continue
        if isinstance(value, str):
            value = [value] if kind == "prompts" else re.split(f"[{_COMMAS}{_BARS}]", value)
        if isinstance(value, Mapping) or not isinstance(value, Iterable) or not (value := tuple(value)):
            raise ValueError(
                f"the {kind} of class {excerpt(name)} are {excerpt(texts[kind])}; give text or a list of texts, or "
                f"leave the {kind} out"
            )
        lists[kind] = value
    return ClassText(name, **lists)


def parse_class_list(items: Iterable[Any], where: str, kinds: Sequence[str] = KINDS) -> tuple[ClassText, ...]:
    """Parse a list of distinct classes, see `parse_class`.

    Args:
        items: at least one item.
        where: source of the list for messages, such as its file and key.
        kinds: keys of `KINDS` that a mapping may have.

    Raises:
        ValueError: there is no item, one cannot be parsed, or two are equal; the message names the place.
    """
    classes = []
    for index, item in enumerate(items):
        try:
            classes.append(parse_class(item, kinds))
        except ValueError as error:
            raise ValueError(f"{where}[{index}]: {error}") from None
    if not classes:
        raise ValueError(f"{where} is empty; give at least one name")
    check_distinct(classes, where)
    return tuple(classes)


def check_distinct(classes: Sequence[ClassText], where: str) -> None:
    """Check that no two classes share a name, a text or all prompts.

    Args:
        classes: classes in the order of their indices.
        where: source of the classes for messages.

    Raises:
        ValueError: two classes do; the message names both.
    """
    owners: dict[object, int] = {}
    for index, each in enumerate(classes):
        for text in (each.name, *each.synonyms):
            first = owners.setdefault(text_key(text), index)
            if first != index and text_key(classes[first].name) == text_key(each.name):
                written = "" if classes[first].name == each.name else f" (once as {excerpt(classes[first].name)})"
                raise ValueError(
                    f"{where} names the class {excerpt(each.name)} twice, at index {first} and {index}{written}; "
                    "remove one: letter case, blanks and look-alike characters make no difference to CLIP"
                )
            if first != index:
                raise ValueError(
                    f"{where} gives the text {excerpt(text)} to both {excerpt(classes[first].name)} and "
                    f"{excerpt(each.name)}; remove it from one"
                )
        first = owners.setdefault(frozenset(map(text_key, each.prompts)), index) if each.prompts else index
        if first != index:
            raise ValueError(
                f"{where} gives {excerpt(classes[first].name)} and {excerpt(each.name)} the same prompts, so that the "
                "second could never win; remove one"
            )


def _checked(text: Any, what: str) -> str:
    """Return a text as it is stored."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {excerpt(text)} of type {type(text).__name__}; give text")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{what} has {len(text):,} characters, {excerpt(text)}; give at most {MAX_CHARACTERS:,}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{what} is {excerpt(text)}, of which a part was not read as UTF-8; save the file as UTF-8, or use a "
            "terminal and locale of UTF-8"
        )
    cleaned = clean_text(text)
    if not text_key(cleaned):
        raise ValueError(f"{what} is {excerpt(text)}, which is blank; write it out or remove it")
    return cleaned


def _texts(texts: Sequence[str], name: str, kind: str) -> tuple[str, ...]:
    """Return texts as they are stored, and check that they are distinct."""
    if isinstance(texts, str):
        raise ValueError(f"the {kind} of class {excerpt(name)} are one string, {excerpt(texts)}; give a list of texts")
    found = tuple(_checked(text, f"one of the {kind} of class {excerpt(name)}") for text in texts)
    seen: set[str] = set()
    for text in found:
        if text_key(text) in seen:
            raise ValueError(
                f"the {kind} of class {excerpt(name)} hold {excerpt(text)} twice; remove the repetition: letter case, "
                "blanks and look-alike characters make no difference to CLIP"
            )
        seen.add(text_key(text))
    return found

"""The classes of one's own data set: names with synonyms, written in its file or in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from san.data.plain_file import check_keys, is_file, read_plain_file, user_path

KEYS = ("name", "synonyms")
"""What a class written as a mapping may say."""


@dataclass(frozen=True)
class CustomClass:
    """One class.

    Attributes:
        name: what is shown and reported.
        synonyms: all texts that go to the text encoder for it; the name alone where none are given.
    """

    name: str
    synonyms: tuple[str, ...]


def parse_classes(content: Any, where: str, folder: Path) -> tuple[CustomClass, ...]:
    """The classes from what a data set file says under ``classes``.

    Args:
        content: a list of classes, each text (``|`` between synonyms, the first is the name) or a mapping with ``name``
            and ``synonyms``; or the path of a file that holds such a list (.json, .yaml) or one class a line (.txt).
        where: file and key, for messages.
        folder: relative paths are relative to it.

    Returns:
        One entry per class, in class-index order.

    Raises:
        FileNotFoundError: the file named does not exist.
        ValueError: there is none, one is malformed or blank, or two share a name or a text.
    """
    if isinstance(content, str):
        path = folder / user_path(content, where)
        content, where = _read_list(path), f"class file {path}"
    if isinstance(content, Mapping) or not isinstance(content, Sequence) or not content:
        raise ValueError(
            f"{where} is {content!r}; give a list of class names, or the path of a .txt, .json or .yaml file"
        )
    classes = tuple(_parse_class(each, f"{where}[{index}]") for index, each in enumerate(content))
    _check_distinct(classes, where)
    return classes


def _read_list(path: Path) -> Any:
    """The content of a class file."""
    if path.suffix.lower() != ".txt":
        return read_plain_file(path, "class file")
    if not is_file(path):
        raise FileNotFoundError(f"class file {path} does not exist; correct the path under classes")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"class file {path} is no UTF-8 text ({error.reason}); save it as UTF-8") from None
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _parse_class(content: Any, where: str) -> CustomClass:
    """One class from text or a mapping."""
    if isinstance(content, str):
        texts = _texts(content.split("|"), where)
        return CustomClass(texts[0], texts)
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {content!r}, no text; put class names in quotes if YAML reads them otherwise")
    check_keys(content, KEYS, where)
    name = _texts([content.get("name")], f"{where}.name")[0]
    synonyms = content.get("synonyms", [name])
    parts = synonyms.split(",") if isinstance(synonyms, str) else synonyms
    if not isinstance(parts, Sequence) or not parts:
        raise ValueError(
            f"{where}.synonyms is {synonyms!r}; give texts between commas, such as 'sofa, couch', or a list"
        )
    return CustomClass(name, _texts(parts, f"{where}.synonyms"))


def _texts(parts: Sequence[Any], where: str) -> tuple[str, ...]:
    """Texts without white space around them; none blank, none twice."""
    for part in parts:
        if not isinstance(part, str) or not part.strip():
            raise ValueError(
                f"{where} holds {part!r}; give text that is not blank, in quotes where YAML reads it otherwise"
            )
    texts = tuple(part.strip() for part in parts)
    if len({text.casefold() for text in texts}) < len(texts):
        raise ValueError(f"{where} holds one text twice: {', '.join(texts)}; remove one")
    return texts


def _check_distinct(classes: Sequence[CustomClass], where: str) -> None:
    """Refuses two classes of one name, and a text that belongs to two: the text encoder ignores case."""
    names: dict[str, int] = {}
    owners: dict[str, str] = {}
    for index, each in enumerate(classes):
        first = names.setdefault(each.name.casefold(), index)
        if first != index:
            raise ValueError(f"{where} names the class {each.name!r} twice, at index {first} and {index}; rename one")
        for text in each.synonyms:
            owner = owners.setdefault(text.casefold(), each.name)
            if owner != each.name:
                raise ValueError(
                    f"{where} gives the text {text!r} to both {owner!r} and {each.name!r}; remove it from one"
                )

"""Reads the classes of a custom data set, names with synonyms, from its file or from a separate file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from san.io.errors import excerpt
from san.io.plain_file import read_plain_file, read_text, user_path
from san.vocabulary.classes import SEPARATE, ClassText, parse_class_list

ENDINGS = (".txt", ".json", ".yaml", ".yml")
"""Extensions of class files."""


def parse_classes(content: Any, where: str, folder: Path) -> tuple[ClassText, ...]:
    """Read the classes from the value of ``classes`` in a data set file.

    Args:
        content: a list of classes, each text (``|`` between synonyms, the first is the name) or a mapping with
            ``name``, ``synonyms`` and ``separate``; or the path of a file with such a list (.json, .yaml) or one class
            per line (.txt).
        where: file and key for messages.
        folder: base of relative paths.

    Returns:
        one entry per class, in class-index order.

    Raises:
        FileNotFoundError: the class file does not exist.
        ValueError: there is no class, one is malformed or blank, or two share a name or a text.
    """
    if isinstance(content, str):
        path = folder / user_path(content, where)
        content, where = read_class_file(path, "class file"), f"class file {path}"
    if isinstance(content, Mapping) or not isinstance(content, Sequence) or not content:
        raise ValueError(
            f"{where} is {excerpt(content)}; give a list of class names, or the path of a .txt, .json or .yaml file"
        )
    return parse_class_list(content, where, kinds=("synonyms", SEPARATE))


def read_class_file(path: Path, title: str) -> Any:
    """Read a class file: the lines of a .txt file, or the plain data of another file.

    Args:
        path: UTF-8 file; in a .txt file, blank lines and lines starting with # are skipped.
        title: kind of file for messages, such as "class file".

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another extension or cannot be read; or a .txt file is a single line with commas, which
            would be one class.
    """
    if path.is_dir():
        raise ValueError(f"{title} {path} is a folder; give a file that ends in {', '.join(ENDINGS)}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{title} {path} ends in {path.suffix!r}; give a file that ends in {', '.join(ENDINGS)}")
    if ending != ".txt":
        return read_plain_file(path, title)
    lines = [line for line in read_text(path, title).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) == 1 and "," in lines[0]:
        raise ValueError(
            f"{title} {path} has one line, {excerpt(lines[0])}; write one class a line: a comma belongs to the name"
        )
    return lines

"""Messages contain untrusted names: one line, limited length, no control characters."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from san.io.errors import MAX_LINE, MissingExtraError, brief_repr, excerpt, listed, one_line, printable, require_extra


def test_the_first_items_are_listed() -> None:
    assert listed([]) == ""
    assert listed([1, 2, 3]) == "1, 2, 3"
    assert listed(range(2004)) == "0, 1, 2 and 2,001 more"
    assert listed("abc", 2, "; ") == "a; b; and 1 more"


def test_a_message_is_one_line_of_bounded_length() -> None:
    assert one_line(ValueError("a\n  b\r\nc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert one_line("") == ""
    long = one_line(ValueError("begin " + "x" * 1_000_000 + " end"))
    assert len(long) < MAX_LINE + 10 and long.startswith("begin x") and long.endswith("x end") and "[...]" in long


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),  # clears the screen
        ("a\x07\x08b", "a\\x07\\x08b"),
        ("\x9b31m", "\\x9b31m"),  # the 8-bit form of the escape above
        ("png\u202egpj", "png\\u202egpj"),  # right to left
        ("\udcff.jpg", "\\udcff.jpg"),  # a byte of a file name that is not UTF-8
        ("Straße, 猫 ×", "Straße, 猫 ×"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert one_line(ValueError(text)) == shown
    one_line(text).encode()  # can be written to any stream


def test_an_excerpt_of_a_huge_value_is_short_and_quick() -> None:
    huge: list[object] = ["x" * 20_000_000, {"key": ["y" * 20_000_000] * 1000}, *range(1_000_000)]
    start = time.process_time()
    assert all(len(excerpt(value)) <= 163 for value in (huge, huge[0], huge[1]))
    assert time.process_time() - start < 1
    assert excerpt("short") == "'short'"
    assert excerpt(12) == "12"
    assert excerpt("\x1b[0m") == "'\\x1b[0m'"


@dataclass(frozen=True)
class Record:
    pixels: np.ndarray
    tensor: torch.Tensor
    note: str
    inner: Record | None = None
    hidden: str = field(default="secret", repr=False)

    __repr__ = brief_repr


def test_a_brief_repr_is_one_short_line() -> None:
    record = Record(np.zeros((300, 200, 3), np.uint8), torch.ones(4, 5), "a\nb\x1b[2J" + "x" * 10_000)
    text = repr(Record(record.pixels, record.tensor, "", inner=record))
    assert text.startswith("Record(pixels=uint8 (300, 200, 3), tensor=float32 (4, 5), note='', inner=Record(pixels=")
    assert text.isprintable() and len(text) < 400 and "secret" not in text


def test_a_package_of_an_extra_that_is_missing_is_named_with_the_command_that_installs_it() -> None:
    require_extra("train", "training", "json", "numpy")
    with pytest.raises(MissingExtraError) as caught:
        require_extra("train", "training", "json", "no_such_package")
    assert str(caught.value) == (
        "training needs the extra \"train\" (No module named 'no_such_package'); install it: "
        'pip install "san-segmentation[train]"'
    )

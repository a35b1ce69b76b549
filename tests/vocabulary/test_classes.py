"""Which texts are equal for CLIP, compared with its own tokenizer, and how the user's spelling is kept."""

from __future__ import annotations

import html
import unicodedata
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from san.clip.open_clip_adapter import open_tokenizer
from san.clip.templates import load_templates
from san.vocabulary.classes import ClassText, clean_text, parse_class, text_key

PARTS = st.sampled_from([
    "cat", "café", "T-shirt", "3d", "rock 'n' roll", "L’avion", "ＡＢＣ", "&amp;amp; x", "Ã©", "ſ", "'ſ", "İ", "ß",
    "ss", "straße", "ﬁsh", "ﷺ", "黑猫", "👩\u200d🚀", "it's", "it ' s", "<end_of_text>", "<END_of", "a_b", "1,5",
    "  x\u3000y", "①", "½", "\u212b", "Å", "\u212a", "ǅ", "ЖУК", "&lt;x", "a\x85b", "a\x1cb", "\ufeff", "\u200b",
    "\u0301", "…", "“x”", "don´t", "x\u00ady", "&#233;", "&nbsp;", " ", "-", ".", "'", "&", ";", "قطة",
])  # fmt: skip
TEXT = st.lists(PARTS, max_size=3).map("".join) | st.text(max_size=6)
CHANGES = st.sampled_from(
    [
        lambda text: text,
        str.upper,
        str.lower,
        str.casefold,
        *(lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")),
        lambda text: text.replace(" ", "\u00a0 "),
        lambda text: text.replace("'", "’"),
        lambda text: text.replace(" ", ""),
        lambda text: " ".join(text),
        lambda text: f"\ufeff{text} \u200b",
        html.escape,
    ]
)


@cache
def tokenizer():
    return open_tokenizer(77)


def ids(text: str) -> list[int]:
    return tokenizer().encode(text)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(TEXT, CHANGES, TEXT | st.none())
def test_equal_keys_are_equal_ids(text, change, other):
    first, second = (clean_text(each) for each in (text, change(text) if other is None else other))
    assert (text_key(first) == text_key(second)) == (ids(first) == ids(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cat", "\ufeffCat\u200b "),
        ("café", "cafe\u0301"),
        ("rock 'n' roll", "Rock ‘n’ Roll"),
        ("red  star", "red\u00a0star\n"),
        ("cat", "ｃａｔ"),
        ("cat", "c\u00ada\u200dt\ufe0f"),
        ("black & white", "black &amp; white"),
        ("T-shirt", "t - shirt"),
        ("Å", "\u212b"),
    ],
)
def test_the_same_to_clip(first, second):
    assert text_key(first) == text_key(second)
    for template in ("{}", *load_templates("vild")):
        assert ids(template.format(first)) == ids(template.format(clean_text(second)))
    with pytest.raises(ValueError, match="twice"):
        ClassText("x", (first, second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Straße", "Strasse"),
        ("cat", "cats"),
        ("café", "cafe"),
        ("ﬁsh", "f ish"),
        ("١", "1"),
        ("а", "a"),
        ("👩‍🚀", "👩🚀"),
    ],
)
def test_different_to_clip(first, second):
    assert text_key(first) != text_key(second)
    assert ids(first) != ids(second)
    assert ClassText("x", (first, second)).synonyms == (first, second)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\ufeff Sofa\u200b \x07", "Sofa"),
        ("a\u202eb", "ab"),
        ("red \t star", "red star"),
        ("“Cafe\u0301”", "“Cafe\u0301”"),
        ("👩\u200d🚀 ❤\ufe0f 1\ufe0f\u20e3", "👩\u200d🚀 ❤\ufe0f 1\ufe0f\u20e3"),
        ("می\u200cخواهم\u200c", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("🏴\U000e0067\U000e0062\U000e007f x\U000e0067", "🏴\U000e0067\U000e0062\U000e007f x"),
    ],
)
def test_what_is_shown_is_what_was_written_without_the_invisible(text, shown):
    assert clean_text(text) == shown
    assert ClassText(text).name == shown


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\ufeff\u3000", "&nbsp;", "\u200d\ufe0f"])
def test_blank_is_what_clip_reads_nothing_of(text):
    assert ids(clean_text(text)) == []
    with pytest.raises(ValueError, match="is blank"):
        ClassText(text)


def test_every_form_of_a_class():
    sofa = ClassText("sofa", ("sofa", "couch"))
    for item in (
        "sofa|couch",
        " sofa ｜ couch",
        {"name": "sofa", "synonyms": "sofa, couch"},
        {"name": "sofa", "synonyms": "sofa | couch"},
        {"name": "sofa", "synonyms": ["sofa", "couch"]},
        sofa,
    ):
        assert parse_class(item) == sofa
    assert parse_class("road, route") == parse_class({"name": "road, route"}) == ClassText("road, route")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 10_001, "has 10,001 characters, 'xxx.*; give at most 10,000"),
        ("r\udcc3\udcb6d", "a part was not read as UTF-8; save the file as UTF-8"),
    ],
)
def test_what_clip_cannot_read_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        ClassText("a", (text,))
    assert len(str(caught.value)) < 500

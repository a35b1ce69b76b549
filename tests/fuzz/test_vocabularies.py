"""Vocabularies from anything: classes that differ, or ValueError."""

# ruff: noqa: PT017 (an example is either taken or refused with such a message)

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from san.vocabulary.classes import ClassText, text_key
from san.vocabulary.label_sets import LABEL_SETS
from san.vocabulary.vocabulary import Vocabulary

WORDS = st.text(max_size=10) | st.sampled_from(["cat", "dog|hound", "Cat ", "ade20k_150", "a,b", "{}", "ſ", "ß", "İ"])
TEXT = st.lists(WORDS, max_size=6).map(", ".join) | st.text(max_size=40)
ITEM = st.one_of(
    WORDS,
    st.integers(),
    st.none(),
    st.dictionaries(st.sampled_from(["name", "synonyms", "prompts", "x"]), WORDS | st.lists(WORDS, max_size=3)),
)
VALUE = st.one_of(st.none(), WORDS, st.lists(WORDS | st.integers(), max_size=3), ITEM)
SPEC = st.one_of(TEXT, st.lists(ITEM, max_size=5), st.dictionaries(WORDS | st.integers(), VALUE, max_size=4), ITEM)


def parsed(spec):
    try:
        return Vocabulary.parse(spec)
    except ValueError as error:
        assert str(error)
        return None


@given(SPEC)
@example("ade20k_151")
@example([["cat"]])
@example([{"name": ["cat"]}])
@example({"cat": {"synonyms": {"a": 1}}})
@example([{"name": "cat", 5: 1}])
@example({"cat": {1: 2, "x": 3}})
def test_any_spec(spec):
    vocabulary = parsed(spec)
    if vocabulary is None:
        return
    assert len(vocabulary) >= 1
    assert len({text_key(name) for name in vocabulary.names}) == len(vocabulary)
    assert all(isinstance(each, ClassText) and each.name.strip() == each.name for each in vocabulary.classes)
    assert parsed(list(vocabulary.classes)) == vocabulary, "what came out goes in again"


@given(SPEC, st.sampled_from(LABEL_SETS) | SPEC)
def test_any_context(spec, context):
    vocabulary = parsed(spec)
    if vocabulary is None:
        return
    try:
        whole = vocabulary.with_context(context)
    except ValueError:
        return
    assert whole.free == vocabulary.classes
    assert len(whole) == len(vocabulary) + whole.num_context

"""Vocabularies: every way of writing one, context, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from san.clip.vocabulary import ClassText
from san.data.label_sets import LABEL_SETS, load_label_set
from san.data.shapes.world import NAMES
from san.vocabulary import LABEL_SET_NAMES, Vocabulary


def test_text_with_every_separator() -> None:
    found = Vocabulary.parse(" cat, dog ; sofa | couch\nred star,\r\n")
    assert found.names == ("cat", "dog", "sofa", "red star")
    assert found.classes[2] == ClassText("sofa", ("sofa", "couch"))
    assert found.classes[0].synonyms == ("cat",)
    assert len(found) == 4
    assert found.num_context == 0


def test_lists_take_names_whole_and_keep_the_order() -> None:
    items: list[Any] = ["road, route", ClassText("b"), {"name": "c", "synonyms": ["c1", "c2"]}, {"name": "a"}]
    found = Vocabulary.parse(items)
    assert found.names == ("road, route", "b", "c", "a")
    assert found.classes[2].synonyms == ("c1", "c2")


def test_mapping_gives_prompts_or_synonyms() -> None:
    found = Vocabulary.parse(
        {"cat": ["a cat on a mat", "my cat"], "dog": "one dog", "sky": None, "x": {"synonyms": "y"}}
    )
    assert found.classes[0] == ClassText("cat", prompts=("a cat on a mat", "my cat"))
    assert found.classes[0].synonyms == ()
    assert found.classes[1].prompts == ("one dog",)
    assert found.classes[2] == ClassText("sky")
    assert found.classes[3].synonyms == ("y",)


@pytest.mark.parametrize("name", LABEL_SET_NAMES)
def test_label_sets_by_name(name: str) -> None:
    """Also as text, and every benchmark's own list passes the check for duplicates."""
    expected = NAMES if name == "shapes_36" else load_label_set(name).classes
    assert Vocabulary.label_set(name).names == tuple(expected)
    assert Vocabulary.parse(f" {name}\n") == Vocabulary.label_set(name)
    assert set(LABEL_SET_NAMES) == {*LABEL_SETS, "shapes_36"}


@pytest.mark.parametrize("word", ["ade", "cat_1a", "boeing747", "u-boat", "voc", "7up"])
def test_words_are_not_taken_for_label_sets(word: str) -> None:
    assert Vocabulary.parse(word).names == (word,)


def test_a_vocabulary_comes_back_as_it_is() -> None:
    vocabulary = Vocabulary.parse("cat, dog").with_context("voc_20")
    assert Vocabulary.parse(vocabulary) is vocabulary


def test_context_follows_the_words_and_leaves_out_what_is_among_them() -> None:
    found = Vocabulary.parse("Sofa|Couch, picture").with_context(["couch", "tree", "painting, picture", "cat"])
    assert found.names == ("Sofa", "picture", "tree", "cat")
    assert found.num_context == 2
    assert [each.name for each in found.free] == ["Sofa", "picture"]
    with pytest.raises(ValueError, match="already has a context of 2"):
        found.with_context("voc_20")


def test_context_of_a_label_set() -> None:
    found = Vocabulary.parse("unicorn, cat").with_context("voc_20")
    assert found.names[:2] == ("unicorn", "cat")
    assert found.num_context == 19
    assert found.names.count("cat") == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is empty"),
        (" ,; \n", "is empty"),
        ([], "is empty"),
        ({}, "is empty"),
        (["cat", "  "], "none of them blank"),
        ("cat, |dog", "'|dog' has a blank synonym"),
        ("cat, cat", "stand twice in the vocabulary: cat;"),
        (["Cat", "cat "], "as 'Cat' and 'cat'; case does not matter"),
        ("red  star, red star", "stand twice"),
        ("sofa|couch, couch", "'couch' is a synonym of 'sofa' and a class of its own"),
        ("sofa|sofa", "the synonyms of class 'sofa' hold 'sofa' twice"),
        ([ClassText("a", ("x",)), ClassText("b", ("X",))], "'a' and 'b' have the same texts"),
        ("ade20k_151", "unknown label set 'ade20k_151'; did you mean 'ade20k_150'"),
        ("coco_stuff", "unknown label set 'coco_stuff'; did you mean 'coco_stuff_171'"),
        ("ade20k-150", "did you mean 'ade20k_150'"),
        ("nothing_7", "voc_20, .*shapes_36"),
        (None, "the vocabulary is None"),
        (7, "the vocabulary is 7"),
        ([3], "the vocabulary holds 3"),
        ([{"nam": "x"}], "the vocabulary holds"),
        ({"cat": []}, "empty list of prompts"),
        ({"cat": {"prompt": "x"}}, "unknown field 'prompt'"),
        ({"cat": 5}, "texts of class 'cat' are 5"),
        ({"cat": ["a photo of a {}"]}, "write the words out"),
        ({"cat": {"synonyms": ["x"], "prompts": ["y"]}}, "both synonyms and prompts"),
        ({3: None}, "the name of a class is 3 of type int"),
    ],
)
def test_refusals(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", "[|]").replace("{", "[{]")):
        Vocabulary.parse(spec)


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="at least one class must be free"):
        Vocabulary((ClassText("a"),), num_context=1)
    with pytest.raises(ValueError, match="one string, 'xy'; give a list"):
        ClassText("a", "xy")  # type: ignore[arg-type]
    assert ClassText(" a ", (" b ",)) == ClassText("a", ("b",))

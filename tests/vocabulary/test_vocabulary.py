"""Vocabularies: every way of writing one, context, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from san.shapes.dataset import BENCHMARKS, IGNORE_LABEL
from san.shapes.world import NAMES
from san.vocabulary.classes import ClassText
from san.vocabulary.label_sets import LABEL_SETS, load_label_set
from san.vocabulary.vocabulary import Vocabulary

REPO = Path(__file__).resolve().parents[2]


def test_text_with_every_separator() -> None:
    found = Vocabulary.parse(" cat, dog ; sofa | couch\nred star,\r\n")
    assert found.names == ("cat", "dog", "sofa", "red star")
    assert found.classes[2] == ClassText("sofa", ("sofa", "couch"))
    assert found.classes[0].synonyms == ("cat",)
    assert len(found) == 4
    assert found.num_context == 0
    assert Vocabulary.parse("猫，沙发｜長椅；狗、قطة، كلب").names == ("猫", "沙发", "狗", "قطة", "كلب")
    assert Vocabulary.parse("\ufeffcat\u200b, \u200b").names == ("cat",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "\ufeff# words\r\nsofa|couch\r\n\r\n  # more\r\nroad, route\r\n"),
        ("names.json", '[{"name": "sofa", "synonyms": "sofa, couch"}, "road, route"]'),
        ("names.yaml", "- sofa | couch\n- {name: 'road, route'}\n"),
        ("names.yml", "sofa: {synonyms: [sofa, couch]}\nroad, route:\n"),
        ("names.JSON", '{"sofa|couch": null, "road, route": {"synonyms": ["Road, route"]}}'),
    ],
)
def test_files(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    found = Vocabulary.parse(path)
    assert found == Vocabulary.from_file(str(path))
    assert found.names == ("sofa", "road, route")
    assert found.classes[0] == ClassText("sofa", ("sofa", "couch"))
    assert [text.lower() for text in found.classes[1].synonyms] == ["road, route"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "cat\n\nCat\u200b\n", r"a\.txt names the class 'Cat' twice, at index 0 and 1 \(once as 'cat'\)"),
        ("a.txt", "# nothing\n", r"a\.txt is empty"),
        ("a.txt", "cat, dog\n", r"a\.txt has one line, 'cat, dog'; write one class a line"),
        ("a.txt", b"\xff\xfec\0", r"a\.txt is not UTF-8 text .* save it as UTF-8"),
        ("a.csv", "cat", r"a\.csv ends in '\.csv'; give a file that ends in \.txt, \.json"),
        ("a.json", '["cat", 3]', r"a\.json\[1\]: a class is 3"),
        ("a.json", '{"cat": 3}', r"a\.json: the prompts of class 'cat' are 3"),
        ("a.yaml", "- cat\n- no\n", r"a\.yaml\[1\]: a class is False; give text \(in quotes"),
        ("a.yaml", "", r"a\.yaml: the vocabulary is None"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_file(path)


def test_a_file_of_five_thousand_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("".join(f"thing {number}|object {number}\n" for number in range(5000)))
    start = time.process_time()
    assert len(Vocabulary.from_file(path)) == 5000
    assert time.process_time() - start < 10
    with pytest.raises(FileNotFoundError, match="vocabulary file .*gone.txt does not exist"):
        Vocabulary.parse(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="is a folder; give a file that ends in .txt, .json"):
        Vocabulary.from_file(tmp_path)


def test_as_text_is_read_back() -> None:
    vocabulary = Vocabulary.parse(["cat", "sofa|couch"])
    assert vocabulary.as_text() == "cat, sofa|couch"
    assert Vocabulary.parse(vocabulary.as_text()) == vocabulary
    specs: list[Any] = [["road, route"], {"cat": "a cat"}, {"cat": {"synonyms": ["kitten", "cat"]}}]
    for spec in specs:
        with pytest.raises(ValueError, match="cannot be written in one line of words"):
            Vocabulary.parse(spec).as_text()


def test_lists_take_names_whole_and_keep_the_order() -> None:
    items: list[Any] = ["road, route", ClassText("b"), {"name": "c", "synonyms": "c1, c2"}, {"name": "a"}, "d|e"]
    found = Vocabulary.parse(items)
    assert found.names == ("road, route", "b", "c", "a", "d")
    assert found.classes[4].synonyms == ("d", "e")
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


@pytest.mark.parametrize("name", LABEL_SETS)
def test_label_sets_by_name(name: str) -> None:
    """Also as text, and every benchmark's own list passes the check for duplicates."""
    assert Vocabulary.label_set(name).names == load_label_set(name).classes
    assert Vocabulary.parse(f" {name}\n") == Vocabulary.label_set(name)


def test_the_shapes_world_is_in_its_file() -> None:
    labels = BENCHMARKS["shapes_sem_seg_val_mixed"].labels
    found = load_label_set("shapes_36")
    assert found.classes == NAMES == labels.classes
    assert found.raw_values == labels.raw_values
    assert found.ignore_label == labels.ignore_label == IGNORE_LABEL


def test_words_need_neither_pillow_nor_torch(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(['PIL', 'torch', 'torchvision', 'numpy']))"
    code = "import san; print(len(san.Vocabulary.parse('shapes_36')), san.ClassText('a').name)"
    command = [sys.executable, "-c", f"{hidden}; sys.path.insert(0, {str(REPO)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "36 a", done.stderr


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
        (["cat", "  "], r"the vocabulary\[1\]: the name of a class is '  ', which is blank"),
        ("cat, |dog", "'|dog' has a blank synonym"),
        ("cat, cat", "the vocabulary names the class 'cat' twice, at index 0 and 1; remove one"),
        (["Cat", "cat "], r"the class 'cat' twice, at index 0 and 1 \(once as 'Cat'\)"),
        ("red  star, red star", "names the class 'red star' twice"),
        ("sofa|couch, couch", "gives the text 'couch' to both 'sofa' and 'couch'"),
        ("sofa|sofa", "the synonyms of class 'sofa' hold 'sofa' twice"),
        ([ClassText("a", ("x",)), ClassText("b", ("X",))], "gives the text 'X' to both 'a' and 'b'"),
        ("ade20k_151", "unknown label set 'ade20k_151'; did you mean 'ade20k_150'"),
        ("coco_stuff", "unknown label set 'coco_stuff'; did you mean 'coco_stuff_171'"),
        ("ade20k-150", "did you mean 'ade20k_150'"),
        ("cat, voc_20", "the label set 'voc_20' stands among words; give it alone, or as their context"),
        ("nothing_7", "voc_20, .*shapes_36"),
        (None, "the vocabulary is None"),
        (7, "the vocabulary is 7"),
        ([3], r"the vocabulary\[0\]: a class is 3; give text"),
        ([{"nam": "x"}], "a class is {'nam': 'x'}; give text"),
        ({"cat": []}, r"the prompts of class 'cat' are \[\]"),
        ({"cat": {"prompt": "x"}}, "unknown key 'prompt'; beside the name it may have synonyms or prompts"),
        ({"cat": 5}, "the prompts of class 'cat' are 5; give text or a list"),
        ({"cat": ["a photo of a {}"]}, "write the words out"),
        ({"cat": {"synonyms": ["x"], "prompts": ["y"]}}, "both synonyms and prompts"),
        ({3: None}, "a class is 3; give text"),
        ({3: "x"}, "the name of a class is 3 of type int"),
        ({"cat": ["x"], "dog": "X"}, "gives 'cat' and 'dog' the same prompts"),
        ({"cat": {"synonyms": []}}, r"the synonyms of class 'cat' are \[\]; .* leave the synonyms out"),
        ("sofa|couch, settee|couch", "gives the text 'couch' to both 'sofa' and 'settee'"),
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

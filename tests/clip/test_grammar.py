"""Articles and plurals of names, and the prompts that use them."""

from __future__ import annotations

import pytest

from san.clip.grammar import is_plural, plural_of, with_article
from san.clip.templates import PROMPTS, load_templates
from san.d2.config.keys import load_config, san_config
from san.registry import PartConfig


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("glass", "glasses"),
        ("dish", "dishes"),
        ("baby", "babies"),
        ("toy", "toys"),
        ("stop sign", "stop signs"),
        ("person", "people"),
        ("Mouse", "Mice"),
        ("bookshelf", "bookshelfs"),  # only whole irregular words are known
        ("chest of drawers", "chests of drawers"),
        ("road, route", "roads, route"),
        ("clouds", "clouds"),
        ("men", "men"),
        ("sheep", "sheep"),
        ("猫", "猫"),
        ("ab-3", "ab-3"),
    ],
)
def test_plurals(name: str, plural: str) -> None:
    assert plural_of(name) == plural
    assert plural_of(plural) == plural or not is_plural(plural)


@pytest.mark.parametrize("name", ["bus", "grass", "tennis", "canvas", "lens", "chest of drawers", "sheep"])
def test_no_plurals(name: str) -> None:
    assert not is_plural(name)


@pytest.mark.parametrize(
    ("template", "name", "prompt"),
    [
        ("a photo of a {}.", "dog", "a photo of a dog."),
        ("a photo of a {}.", "apple", "a photo of an apple."),
        ("a photo of an {}.", "dog", "a photo of a dog."),
        ("A {}", "orange", "An orange"),
        ("a {}", "unicorn", "a unicorn"),
        ("a {}", "hourglass", "an hourglass"),
        ("a photo of a {}.", "clouds", "a photo of clouds."),
        ("There is a {} in the scene.", "skis", "There are skis in the scene."),
        ("There is a large {} in the scene.", "apple", "There is a large apple in the scene."),
        ("There is a large {} in the scene.", "stairs", "There are large stairs in the scene."),
        ("There is the {} in the scene", "apple", "There is the apple in the scene"),
        ("a photo of {}.", "apple", "a photo of apple."),
        ("{}", "apple", "apple"),
    ],
)
def test_articles(template: str, name: str, prompt: str) -> None:
    assert with_article(template, name) == prompt


def test_each_name_has_the_same_number_of_prompts_and_options_are_part_of_the_identity() -> None:
    templates = load_templates("vild")
    made = {
        (articles, plurals): PROMPTS.build(
            PartConfig("grammatical", {"articles": articles, "plurals": plurals}), templates
        )
        for articles in (False, True)
        for plurals in (False, True)
    }
    plain = PROMPTS.build(PartConfig("templates"), templates)
    assert made[False, False]("apple") == plain("apple")
    assert made[False, True]("apple") == [*plain("apple"), *plain("apples")]
    assert made[True, True]("apple")[-len(templates)] == with_article(templates[0], "apples")
    for (_, plurals), prompts in made.items():
        assert {len(prompts(name)) for name in ("dog", "clouds", "chest of drawers")} == {14 * (1 + plurals)}
    assert len({each.identity for each in made.values()}) == 4


def test_the_configuration_chooses_them() -> None:
    options = ["MODEL.PROMPTS.NAME", "grammatical", "MODEL.PROMPTS.OPTIONS.PLURALS", "True"]
    found = san_config(load_config("", ["MODEL.DEVICE", "cpu", *options])).prompts
    assert found == PartConfig("grammatical", {"plurals": True})

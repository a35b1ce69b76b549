"""Registered parts: names, options, versions, and what is said where one is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from san.record import FieldError, Options, option
from san.registry import PartConfig, Registry


@dataclass(frozen=True)
class SizeOptions(Options):
    size: int = option(3, "of the part", least=1, most=9)
    names: tuple[str, ...] = option((), "some texts")


def make() -> Registry[type]:
    registry: Registry[type] = Registry("wheel", "wheel.name", "wheel.options.", own=__name__)

    @registry.register("round")
    class Round:
        Options = SizeOptions
        version = 2

        def __init__(self, options: SizeOptions, *given: object) -> None:
            self.options, self.given = options, given

    @registry.register("plain")
    class Plain:
        def __init__(self, options: object) -> None:
            self.options = options

    return registry


def test_a_part_is_built_with_its_options() -> None:
    registry = make()
    assert list(registry) == ["round", "plain"] and "round" in registry and None not in registry
    built = registry.build(PartConfig("round", {"size": 5, "names": ["a"]}), 1, 2)
    assert built.options == SizeOptions(5, ("a",)) and built.given == (1, 2)
    assert registry.build(PartConfig("round", {}, version=2)).options == SizeOptions()
    described = registry.described(PartConfig("round", {"size": 5}))
    assert described == PartConfig("round", {"size": 5, "names": ()}, __name__, 2)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (PartConfig("rund"), "wheel.name is 'rund', which is not a registered wheel; did you mean 'round'"),
        (PartConfig("x"), r"choose one of round, plain, or import the module that registers it \(--import my_module\)"),
        (PartConfig("x", module="other"), r"registered by the module other: import that first \(--import other\)"),
        (PartConfig("round", {"sizes": 1}), "unknown field 'wheel.options.sizes'; did you mean 'size'"),
        (PartConfig("round", {"size": "1"}), "wheel.options.size is '1'; give int"),
        (PartConfig("round", {"size": 10}), "wheel.options.size is 10; set it within 1..9"),
        (PartConfig("plain", {"size": 1}), "unknown field 'wheel.options.size'; there is none"),
    ],
)
def test_a_wrong_part_is_refused(part: PartConfig, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        make().build(part)


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'round' has version 2, but the file was written by version 1; use the"):
        make().build(PartConfig("round", version=1))


def test_a_name_is_given_once() -> None:
    registry = make()
    round_wheel = registry.get("round")
    registry.register("round")(round_wheel)  # a module that is imported twice
    with pytest.raises(ValueError, match="wheel 'round' is registered already, <class .*Round'>; choose another name"):
        registry.register("round")(int)
    with pytest.raises(ValueError, match="'two words' cannot be registered"):
        registry.register("two words")

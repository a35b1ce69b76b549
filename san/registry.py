"""Registries of exchangeable parts: a name in a configuration selects a class with its own options.

A user's module adds an entry with a decorator; the configuration names the entry, and ``--import`` or MODEL.IMPORTS
imports the module (docs/extend.md).
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

from san.io.errors import excerpt
from san.record import FieldError, Options, option, read_record

Entry = TypeVar("Entry")
Class = TypeVar("Class")


@dataclass(frozen=True)
class NoOptions(Options):
    """Options of a part without options."""


@dataclass(frozen=True)
class PartConfig:
    """The choice of a registered part in a configuration.

    Attributes:
        name: name of an entry in the part's registry.
        options: values for fields of the entry's ``Options``, by name; others have their defaults.
        module: module that registers the entry, for messages if it is not imported; "" for SAN's own entries.
        version: version of the entry when the file was written; 0 if unknown.
    """

    SHORT_FIELD: ClassVar[str] = "name"
    name: str
    options: Mapping[str, Any] = option(dict)
    module: str = ""
    version: int = 0


class Registry(Generic[Entry]):
    """Named entries of one kind.

    Args:
        kind: kind of the entries, for messages, such as "fusion".
        place: dotted name of the option that names an entry, such as "fusion.name".
        options_place: dotted name of the options of the entry "{name}", with a dot at the end; "" if entries have none.
        own: module that registers SAN's own entries; imported when an entry is first looked up.
    """

    def __init__(self, kind: str, place: str, options_place: str = "", *, own: str) -> None:
        self.kind, self.place, self.options_place, self._own = kind, place, options_place, own
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Return a decorator that registers a class (or another object) under a name.

        Raises:
            ValueError: the name is already used by another entry, or has invalid characters.
        """
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"{self.kind} {excerpt(name)} cannot be registered; choose a name of letters, digits, '_', '-' and '.'"
            )

        def add(entry: Class) -> Class:
            present = self._entries.get(name, entry)
            again = hasattr(entry, "__qualname__") and full_name(present) == full_name(entry)  # imported twice
            if present is not entry and not again:
                raise ValueError(f"the {self.kind} {name!r} is registered already, {present!r}; choose another name")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def __contains__(self, name: object) -> bool:
        importlib.import_module(self._own)
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self._own)
        return iter(self._entries)

    def get(self, name: str, module: str = "") -> Entry:
        """Return the entry of a name.

        Args:
            name: name of the entry.
            module: module that registers it, if known from a file.

        Raises:
            FieldError: the name is not registered.
        """
        importlib.import_module(self._own)
        if name in self._entries:
            return self._entries[name]
        if module:
            remedy = f"it is registered by the module {module}: import that first (--import {module})"
        else:
            near = difflib.get_close_matches(str(name)[:100], self._entries, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            remedy = (
                f"{hint}choose one of {', '.join(self._entries)}, or import the module that registers it "
                "(--import my_module)"
            )
        message = f"{self.place} is {excerpt(name)}, which is not a registered {self.kind}; {remedy}"
        raise FieldError(message, self.place)

    def options(self, part: PartConfig) -> Any:
        """Return the record of options of a part's entry.

        Raises:
            FieldError: the entry is not registered, or an option is unknown, of another type or out of its range.
        """
        kind = options_class(self.get(part.name, part.module))
        return read_record(kind, dict(part.options), self.options_place.format(name=part.name))

    def build(self, part: PartConfig, *args: Any) -> Any:
        """Create an instance of a part's entry: the class is called with the record of options and the arguments.

        Raises:
            ValueError: see `options`; or the file was written with another version of the part.
        """
        entry: Any = self.check_version(part)
        return entry(self.options(part), *args)

    def check_version(self, part: PartConfig) -> Entry:
        """Return the entry of a part, if it is the one that the file was written with.

        Raises:
            ValueError: the entry is not registered, or has another version.
        """
        entry = self.get(part.name, part.module)
        version = getattr(entry, "version", 1)
        if part.version not in (0, version):
            raise ValueError(
                f"the {self.kind} {part.name!r} has version {version}, but the file was written by version "
                f"{part.version}; use the {_module_of(entry)} of that version, or train again"
            )
        return entry

    def described(self, part: PartConfig) -> PartConfig:
        """Return the description of a part for a file: every option and, unless it is SAN's own, module and version."""
        entry = self.get(part.name, part.module)
        values = asdict(self.options(part))
        module = _module_of(entry)
        if module.startswith("san."):
            return PartConfig(part.name, values)
        return PartConfig(part.name, values, module, getattr(entry, "version", 1))


def options_class(entry: object) -> type[Options]:
    """Return the class of an entry's options: its attribute ``Options``."""
    return getattr(entry, "Options", NoOptions)


def _module_of(entry: object) -> str:
    return str(getattr(entry, "__module__", type(entry).__module__))


def full_name(entry: object) -> str:
    """Return module and name of a class or function, or of the class of another object."""
    return f"{_module_of(entry)}.{getattr(entry, '__qualname__', type(entry).__qualname__)}"

"""Stands in for `detectron2.data.catalog`: data sets and what is known about them, by name.

The error types and messages are Detectron2's, because code that registers data sets relies on them.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

Samples = list[dict[str, Any]]
"""A data set: one dictionary per image."""


class _DatasetCatalog(UserDict):  # type: ignore[type-arg]
    """Name of a data set → function that returns its samples."""

    def register(self, name: str, func: Callable[[], Samples]) -> None:
        """Makes a data set known.

        Args:
            name: by which configurations call it.
            func: takes nothing and returns the samples, the same on every call.

        Raises:
            AssertionError: if ``func`` cannot be called or the name is taken.
        """
        assert callable(func), "You must register a function with `DatasetCatalog.register`!"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> Samples:  # type: ignore[override]
        """Reads a data set.

        Args:
            name: a registered name.

        Returns:
            What its function returns.

        Raises:
            KeyError: if the name is not registered; the message lists those that are.
        """
        if name not in self.data:
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {', '.join(self.data)}")
        samples: Samples = self.data[name]()
        return samples

    def list(self) -> list[str]:
        """Names of all registered data sets."""
        return [*self.data]

    def remove(self, name: str) -> None:
        """Remove a data set; KeyError if the name is unknown."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.data)})"

    __str__ = __repr__


class Metadata(SimpleNamespace):
    """Constant metadata of one data set, as attributes, such as ``stuff_classes``.

    An attribute is set once; setting it again to something else is an AssertionError, reading an unknown one an
    AttributeError that lists the known ones.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = self.__dict__
        if len(known) > 1:
            reason = f". Available keys are {known.keys()}."
        else:
            reason = ": metadata is empty."
        raise AttributeError(f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'{reason}")

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self.__dict__:
            old = self.__dict__[key]
            refusal = f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different value!"
            assert old == val, f"{refusal}\n{old} != {val}"
        else:
            super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """All attributes; a copy."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> Metadata:
        """Sets several attributes at once.

        Args:
            **kwargs: name and value of each.

        Returns:
            This object.
        """
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute, or ``default`` where it is not set."""
        return self.__dict__.get(key, default)


class _MetadataCatalog(UserDict):  # type: ignore[type-arg]
    """Name of a data set → its `Metadata`."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The one `Metadata` of a name.

        Args:
            name: of the data set, not empty; it need not be registered.

        Returns:
            The same object on every call, made on the first.
        """
        assert len(name), "a data set's name must not be empty"
        if name not in self.data:
            self.data[name] = Metadata(name=name)
        metadata: Metadata = self.data[name]
        return metadata

    def list(self) -> list[str]:
        """Return the names of all data sets with metadata."""
        return [*self.data]

    def remove(self, name: str) -> None:
        """Remove the metadata of a data set; KeyError if there is none."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.data)})"

    __str__ = __repr__


DatasetCatalog = _DatasetCatalog()
"""The process's data sets. Like Detectron2's, a registry filled on import or by the script."""

MetadataCatalog = _MetadataCatalog()
"""The metadata of the process's data sets."""

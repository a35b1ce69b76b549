"""A retrieval bank: how single examples of the classes count beside the vectors of these. E joint embedding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from san.record import Options, option


@dataclass(frozen=True)
class BankOptions(Options):
    """How the nearest examples of a mask change its class probabilities; see docs/examples.md.

    Raises:
        FieldError: a value is out of range.
    """

    PLACE = "bank."

    neighbours: int = option(8, "nearest examples of a mask that count", least=1, most=1000)
    temperature: float = option(0.2, "of the softmax over their whitened cosines", above=0, most=100)
    weight: float = option(0.3, "share of the neighbours in the class probabilities", above=0, most=0.99)


@dataclass(frozen=True)
class BankSettings:
    """What all classes with examples of one vocabulary file have in common; the examples are in `ClassVector`.

    Attributes:
        options: how examples count.
        mean: E little-endian float32 numbers, the mean [SLS] embedding of the example pictures.
        whitening: E x E such numbers, a symmetric matrix; (embedding - mean) times it is what is compared.
    """

    options: BankOptions
    mean: bytes
    whitening: bytes

    def __repr__(self) -> str:
        return f"BankSettings({hashlib.sha256(self.mean + self.whitening).hexdigest()[:16]}, {self.options})"

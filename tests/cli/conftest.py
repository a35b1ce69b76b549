"""The committed model, loaded once per file of tests."""

from __future__ import annotations

import pytest

from san.inference.predictor import Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_pretrained("shapes")

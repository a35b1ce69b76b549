"""Banks of examples: the neighbours of a mask, and what they do to its class probabilities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from san.clip import example_bank
from san.clip.example_bank import ExampleBank
from san.vocabulary.bank import BankOptions, BankSettings
from san.vocabulary.classes import ClassVector

WIDTH, CPU = 6, torch.device("cpu")


def bank_of(random: np.random.Generator, counts: list[int], options: BankOptions) -> tuple[ExampleBank, np.ndarray]:
    """A bank with some examples of each class, and these; a class without an example has no bank."""
    mean, root = random.normal(size=WIDTH).astype("<f4"), random.normal(size=(WIDTH, WIDTH))
    bank = BankSettings(options, mean.tobytes(), (root @ root.T).astype("<f4").tobytes())
    rows = [random.normal(size=(count, WIDTH)).astype("<f2") for count in counts]
    vectors = [ClassVector(mean.tobytes(), "tiny", b"", own.tobytes(), bank) if len(own) else None for own in rows]
    found = ExampleBank.of_classes(vectors, CPU)
    assert found is not None and len(found) == sum(counts)
    return found, np.concatenate(rows).astype(np.float64)


def by_hand(bank: ExampleBank, rows: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whitened cosines of all pairs, sorted, and the examples' indices, in float64 numpy."""
    mean, whitening = bank.mean.double().numpy(), bank.whitening.double().numpy()
    left, right = (queries - mean) @ whitening, (rows - mean) @ whitening
    cosines = left @ right.T / np.linalg.norm(left, axis=1)[:, None] / np.linalg.norm(right, axis=1)
    order = np.argsort(-cosines, axis=1)
    return np.take_along_axis(cosines, order, 1), order


@pytest.mark.parametrize(("counts", "neighbours"), [([40, 1, 0, 25], 8), ([2, 0, 1], 8), ([300, 300], 1)])
@pytest.mark.parametrize("at_once", [2**24, 100])
def test_neighbours_are_those_of_brute_force(counts, neighbours, at_once, monkeypatch):
    monkeypatch.setattr(example_bank, "_MAX_COSINES", at_once)  # 100: a few or one query at a time
    random = np.random.default_rng(len(counts))
    bank, rows = bank_of(random, counts, BankOptions(neighbours))
    queries = random.normal(size=(30, WIDTH)).astype(np.float32)
    cosines, found = bank.nearest(torch.from_numpy(queries))
    wanted, order = by_hand(bank, rows, queries.astype(np.float64))
    count = min(neighbours, sum(counts))
    assert found.shape == (30, count)
    np.testing.assert_allclose(cosines, wanted[:, :count], atol=2e-5)
    assert (found.numpy() == order[:, :count]).mean() > 0.99  # but for ties in float32


def test_neighbours_are_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    bank, _ = bank_of(random, [500, 0, 700], BankOptions())
    index = faiss.IndexFlatIP(WIDTH)
    index.add(bank.examples.numpy())
    queries = torch.from_numpy(random.normal(size=(50, WIDTH)).astype(np.float32))
    cosines, found = bank.nearest(queries)
    theirs, order = index.search(example_bank.whitened(queries, bank.mean, bank.whitening).numpy(), 8)
    np.testing.assert_allclose(cosines, theirs, atol=1e-5)
    assert (found.numpy() == order).mean() > 0.99


def test_probabilities_are_mixed_as_written():
    """(1 - w) p + w m v for classes with examples; all others and "no object" keep theirs."""
    random = np.random.default_rng(1)
    bank, rows = bank_of(random, [3, 0, 2, 4], BankOptions(4, 0.5, 0.4))
    logits = torch.from_numpy(random.normal(size=(2, 3, 5)).astype(np.float32)) * 3
    queries = torch.from_numpy(random.normal(size=(2, 3, WIDTH)).astype(np.float32))
    before, after = logits.double().softmax(-1).numpy(), bank.mix(logits, queries).double().softmax(-1).numpy()
    owner = np.array([0, 0, 0, 2, 2, 3, 3, 3, 3])
    for image in range(2):
        cosines, order = by_hand(bank, rows, queries[image].double().numpy())
        for query in range(3):
            shares = np.exp(cosines[query, :4] / 0.5)
            votes = np.bincount(owner[order[query, :4]], shares / shares.sum(), minlength=4)
            old = before[image, query]
            mass = old[[0, 2, 3]].sum()
            wanted = [old[1] if index == 1 else 0.6 * old[index] + 0.4 * mass * votes[index] for index in range(4)]
            np.testing.assert_allclose(after[image, query], [*wanted, old[4]], atol=2e-5)


def test_probabilities_too_small_for_float32_stay_finite():
    bank, _ = bank_of(np.random.default_rng(2), [1, 1, 0], BankOptions(1))
    found = bank.mix(torch.tensor([[[900.0, -900, 0, 30]]]), torch.ones(1, 1, WIDTH))
    assert found.isfinite().all() and found.dtype == torch.float32


def test_the_result_does_not_depend_on_autocast():
    random = np.random.default_rng(3)
    bank, _ = bank_of(random, [5, 5], BankOptions())
    logits, queries = torch.randn(1, 4, 3), torch.randn(1, 4, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found = bank.mix(logits, queries)
    assert torch.equal(found, bank.mix(logits, queries))


def test_classes_of_two_banks_are_refused():
    bank = BankSettings(BankOptions(), bytes(4 * WIDTH), bytes(4 * WIDTH**2))
    first = ClassVector(bytes(4 * WIDTH), "tiny", b"", bytes(2 * WIDTH), bank)
    second = replace(first, bank=replace(bank, options=BankOptions(3)))
    assert ExampleBank.of_classes([None, replace(first, bank=None), replace(first, examples=b"")], CPU) is None
    with pytest.raises(ValueError, match=r"2 different banks.*make one vocabulary file"):
        ExampleBank.of_classes([first, second], CPU)


@pytest.mark.parametrize("values", [{"neighbours": 0}, {"temperature": 0}, {"weight": 1}, {"weight": 0}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=f"bank.{next(iter(values))} is"):
        BankOptions(**values)

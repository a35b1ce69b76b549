"""The thread that owns the model: batches, order, errors, memory of kept images."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="the extra serve is not installed")
from san.serve.engine import Engine, EngineTask, apart, bytes_of
from san.serve.limits import ServeLimits
from san.serve.metrics import ServeMetrics
from san.web.words import Words
from tests.serve.test_strangers import held, soon

LIMITS = ServeLimits(max_batch=3)


def task(picture, text="red star, plain ground"):
    words = Words(text)
    return EngineTask(picture, words, words.vocabulary(LIMITS))


@pytest.fixture
def engine(predictor):
    engine = Engine(predictor, LIMITS, ServeMetrics())
    yield engine
    assert engine.close(20) and not engine.is_alive


class Holder:
    """What `held` needs."""

    def __init__(self, engine):
        self.engine, self.service = engine, self


def test_waiting_pictures_of_one_size_are_encoded_together(engine, predictor, scenes, monkeypatch):
    sizes = []
    with held(Holder(engine), monkeypatch) as (reached, go):
        futures = [engine.submit(task(scenes[0][0]))]
        assert reached.wait(20)
        other = np.full((40, 60, 3), 90, np.uint8)
        pictures = [scenes[1][0], other, scenes[2][0], scenes[3][0], scenes[4][0]]
        futures += [engine.submit(task(picture)) for picture in pictures]
        encode = predictor.encode_batch
        monkeypatch.setattr(
            predictor, "encode_batch", lambda each, **more: sizes.append(len(each)) or encode(each, **more)
        )
        go.set()
        results = [each.result(60).result for each in futures]
    assert sizes == [3, 1, 1], "three of one size, the other size, and what was above max_batch"
    for result, picture in zip(results, [scenes[0][0], *pictures], strict=True):
        assert np.array_equal(result.image, picture)


def test_one_picture_s_error_is_not_that_of_its_batch(engine, predictor, scenes, monkeypatch):
    with held(Holder(engine), monkeypatch) as (reached, go):
        first = engine.submit(task(scenes[0][0]))
        assert reached.wait(20)
        bad = np.full_like(scenes[1][0], 7)
        futures = [engine.submit(task(picture)) for picture in (scenes[1][0], bad, scenes[2][0])]
        encode = predictor.encode_batch

        def failing(pictures, **options):
            if any(np.array_equal(each, bad) for each in pictures):
                raise RuntimeError("made for this test")
            return encode(pictures, **options)

        monkeypatch.setattr(predictor, "encode_batch", failing)
        go.set()
        assert first.result(60).result is not None
        with pytest.raises(RuntimeError, match="made for this test"):
            futures[1].result(60)
        assert futures[0].result(60).result is not None and futures[2].result(60).result is not None


def test_a_kept_image_holds_its_own_memory(predictor, scenes):
    one, _ = predictor.encode_batch([scenes[0][0], scenes[1][0]])
    assert one.proposals.attn_bias.untyped_storage().nbytes() == 2 * one.proposals.attn_bias.nbytes
    alone = apart(one)
    assert alone.proposals.attn_bias.untyped_storage().nbytes() == one.proposals.attn_bias.nbytes
    assert bytes_of(alone) == one.pixels.nbytes + sum(each.nbytes for each in one.proposals)
    words = "red star, plain ground"
    assert np.array_equal(predictor.segment(words, encoded=alone).labels, predictor.segment(words, encoded=one).labels)


def test_a_closed_engine_drops_what_waits(predictor, scenes, monkeypatch):
    engine = Engine(predictor, LIMITS, ServeMetrics())
    with held(Holder(engine), monkeypatch) as (reached, go):
        running = engine.submit(task(scenes[0][0]))
        assert reached.wait(20)
        waiting = engine.submit(task(np.zeros((9, 9, 3), np.uint8)))
        assert not engine.close(0.1), "it computes"
        assert waiting.cancelled()
        go.set()
    assert running.result(60).result is not None
    assert engine.close(20) and soon(lambda: not engine.is_alive)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(task(scenes[0][0]))

"""The demo's service, without a browser."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from san.cli import demo
from san.cli.demo import make_service
from san.cli.main import make_parser
from san.data.example_files import ClassExample
from san.demo.examples import folder_examples, shapes_examples
from san.demo.limits import Limits
from san.demo.service import DemoService, explain
from san.demo.view import picture_view, result_view
from san.inference.examples import learn_classes
from san.inference.segmentation import Segmentation
from san.shapes.world import NAMES
from san.visualize import palette
from san.vocabulary.classes import ClassText
from san.vocabulary.vocabulary import Vocabulary
from san.web.words import Words

LIMITS = Limits(max_classes=180, max_characters=300)


def upload(service: DemoService, pixels: np.ndarray, title: str = "mine.png"):
    return service.open_picture(pixels, title)


def test_examples_are_segmented_well(service):
    for index, example in enumerate(service.examples):
        result, *_ = service.segment(service.open_example(index), Words(example.words))
        assert set(result.areas()) == set(result.names), example.title


def test_an_image_is_encoded_once(service, monkeypatch):
    calls = []
    propose = service._predictor.model.propose
    monkeypatch.setattr(service._predictor.model, "propose", lambda batch: calls.append(1) or propose(batch))
    session = upload(service, service.examples[1].pixels)
    results = [service.segment(session, Words(text))[0] for text in ("black star, dotted ground", "cyan ring, red bar")]
    assert len(calls) == 1
    assert results[0].names == ("black star", "dotted ground")
    assert results[1].names == ("cyan ring", "red bar")
    service.open_example(2), service.open_example(2)
    assert len(calls) <= 2, "an example is encoded once for all"


def test_sessions_do_not_mix(service):
    one, other = (upload(service, example.pixels) for example in service.examples[:2])
    assert one.image_id != other.image_id
    words = Words(", ".join(NAMES))
    first = service.segment(one, words)[0].labels
    assert not np.array_equal(first, service.segment(other, words)[0].labels)
    assert np.array_equal(first, service.segment(one, words)[0].labels)


def test_vocabularies():
    assert Words("cat, dog; sofa|couch").vocabulary(LIMITS).names == ("cat", "dog", "sofa")
    alone = Words("  ", "voc_20", as_context=False).vocabulary(LIMITS)
    assert len(alone.names) == 20
    assert alone.num_context == 0
    context = Words("cat, teapot", "voc_20").vocabulary(LIMITS)
    assert context.names[:2] == ("cat", "teapot")
    assert context.num_context == 19, "the set's own cat is left out"
    words = Words("cat, teapot", "voc_20", as_context=False).vocabulary(LIMITS)
    assert words.names == context.names
    assert words.num_context == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Words(""), "no words"),
        (Words(" ,;\n"), "no words"),
        (Words("", "voc_20"), "no words"),
        (Words("cat, cat"), "twice"),
        (Words("cat|"), "blank synonym"),
        (Words("x" * 301), "301 characters, the limit here is 300"),
        (Words(", ".join(f"w{i}" for i in range(10)), "coco_stuff_171"), "181 classes, the limit here is 180"),
        (Words("cat", "../../etc/passwd"), "unknown label set"),
    ],
)
def test_words_that_make_no_sense(words, message):
    with pytest.raises(ValueError, match=message):
        words.vocabulary(LIMITS)


def test_a_long_request_is_given_up(service, monkeypatch):
    quick = DemoService(service._predictor, service.examples[:1], Limits(max_seconds=0.05))
    session = service.open_example(0)
    segment = service._predictor.segment
    monkeypatch.setattr(service._predictor, "segment", lambda *a, **k: time.sleep(0.3) or segment(*a, **k))
    with pytest.raises(ValueError, match=r"longer than 0\.05 s and was stopped"):
        quick.segment(session, Words("red star"))
    quick.close()


def test_words_reach_neither_disk_nor_log(service, tmp_path, caplog):
    predictor = service._predictor
    before = predictor.text_cache
    predictor.set_text_cache(tmp_path / "cache")
    try:
        with caplog.at_level(logging.INFO):
            service.segment(service.open_example(0), Words("my secret teapot, red star", "shapes_36"))
        assert "teapot" not in caplog.text
        files = list((tmp_path / "cache").rglob("*.safetensors"))
        assert len(files) <= 1, "the label set's names may be kept"
        assert predictor.text_cache == tmp_path / "cache"
        service._predictor.segment("my other teapot, red star", encoded=service.open_example(0).encoded)
        assert "'teapot'" in caplog.text, "callers other than visitors get a warning"
    finally:
        predictor.set_text_cache(before)


def test_remarks(service):
    session = service.open_example(0)
    (note,) = service.segment(session, Words("green star, teapot")).notes
    assert "does not know: teapot. It knows bar, black, " in note
    assert service.segment(session, Words("green star")).notes == ()
    assert service.segment(session, Words("green star", "voc_20")).notes == (), "the context is nobody's words"
    long = " ".join(["star"] * 300)
    for _ in range(2):  # each visitor gets the remark, not only the first
        (note,) = service.segment(session, Words(f"{long}, plain ground", "shapes_36")).notes
        assert "longer than the 32 tokens" in note
    (note,) = DemoService(service._predictor, service.examples, LIMITS).segment(session, Words("teapot")).notes
    assert note == "This small model does not know: teapot. For all other words the demo needs a larger model."


def test_the_view_holds_the_result(service):
    session = service.open_example(0)
    result, seconds, _ = service.segment(session, Words("green star, teapot", "shapes_36", none_of_these=True))
    view = json.loads(picture_view(session, result, seconds))
    colors = [list(bytes.fromhex(each["color"][1:])) for each in view["classes"]]
    assert colors == palette(result.names).tolist()  # the page paints what `san predict` writes
    flat = np.frombuffer(zlib.decompress(base64.b64decode(view["labels"])), np.uint8)
    expected = np.where(result.labels < 0, 255, result.labels)
    assert np.array_equal(flat.reshape(result.labels.shape), expected)
    stored = Image.open(io.BytesIO(base64.b64decode(view["files"]["labels"])))
    assert np.array_equal(np.asarray(stored), expected)
    assert json.loads(view["files"]["json"]) == json.loads(json.dumps(result.to_dict()))
    assert [each["name"] for each in view["classes"]] == list(result.names)
    assert sum(each["area"] for each in view["classes"]) + view["none"] == pytest.approx(1)
    assert [each["context"] for each in view["classes"][:3]] == [False, False, True]
    shown = Image.open(io.BytesIO(base64.b64decode(view["picture"].split(",")[1])))
    assert np.array_equal(np.asarray(shown), service.examples[0].pixels)
    again = json.loads(result_view(session, result, seconds))
    assert "picture" not in again
    assert again["serial"] > view["serial"], "the page sees an equal result as new"


def test_large_vocabularies_take_two_bytes(service):
    labels = np.random.default_rng(0).integers(-1, 300, (384, 384))
    vocabulary = Vocabulary.parse([f"class {index}" for index in range(300)])
    result = Segmentation(service.examples[0].pixels, labels, vocabulary, np.ones(labels.shape, np.float32))
    view = json.loads(result_view(service.open_example(0), result, 0.1))
    assert view["bytes"] == 2
    flat = np.frombuffer(zlib.decompress(base64.b64decode(view["labels"])), "<u2")
    assert np.array_equal(flat.reshape(labels.shape), np.where(labels < 0, 65535, labels))


def test_a_file_name_never_leads_anywhere(service):
    session = upload(service, service.examples[0].pixels, "../../etc/<b>passwd</b>.png")
    result, seconds, _ = service.segment(session, Words("red star"))
    stem = json.loads(result_view(session, result, seconds))["files"]["stem"]
    assert stem == "etc_b_passwd_b"


def test_internal_errors_are_not_shown(caplog):
    assert explain(ValueError("too large")) == "too large"
    message = explain(RuntimeError("/home/somebody/weights.pth is broken"))
    assert "somebody" not in message
    assert "weights.pth" in caplog.text


def test_examples_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        folder_examples(tmp_path, "cat", Limits())
    Image.new("RGB", (30, 20)).save(tmp_path / "my_cat.png")
    (example,) = folder_examples(tmp_path, "cat, sofa", Limits())
    assert (example.title, example.words, example.pixels.shape) == ("my cat", "cat, sofa", (20, 30, 3))
    with pytest.raises(ValueError, match="my_cat.png is 30x20 .*at most 0.0005 million.*raise --max-pixels"):
        folder_examples(tmp_path, "cat", Limits(max_pixels=500))


def test_the_words_of_examples_from_a_file(service, tmp_path, monkeypatch):
    monkeypatch.setattr("san.cli.demo.load_predictor", lambda args: service._predictor)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "names.txt").write_text("cat\nsofa|couch\n")
    options = ["--examples", str(tmp_path), "--vocab-file", str(tmp_path / "names.txt")]
    made = make_service(make_parser(demo).parse_args(options))
    made.close()
    assert made.examples[0].words == "cat, sofa|couch"
    for wrong, message in (
        (options[2:], "belong together"),
        ([*options[:2], "--words", "names.txt"], "--words has the word"),
        ([*options[:2], "--words", "cat, Cat"], "names the class 'Cat' twice"),
    ):
        with pytest.raises(ValueError, match=message):
            make_service(make_parser(demo).parse_args(wrong))


def test_shapes_examples_are_the_same_everywhere():
    one, other = shapes_examples(), shapes_examples()
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    assert "green star" in one[0].title


def test_there_must_be_an_example(service):
    with pytest.raises(ValueError, match="at least one example"):
        DemoService(service._predictor, [], Limits())
    for wrong in (9, -1, "0", None, True and 99):
        with pytest.raises(ValueError, match="no example"):
            service.open_example(wrong)


@pytest.mark.parametrize("with_folder", [False, True])
def test_words_of_a_vocabulary_file_are_recognised_from_its_examples(service, tmp_path, monkeypatch, with_folder):
    monkeypatch.setattr("san.cli.demo.load_predictor", lambda args: service._predictor)
    example = service.examples[0]
    _, *others = Vocabulary.parse(example.words).names
    expected = service._predictor.predict(example.pixels, example.words).labels == 0
    words = "my thing", others[0]  # a synonym in the file is no word of the visitor, who may write it for another class
    shown = ClassExample("my thing", example.pixels, mask=expected)
    learnt = learn_classes(service._predictor, [ClassText("my thing", words)], [shown], word_share=0.0)
    learnt.save(tmp_path / "mine.safetensors")
    options = ["--vocab-file", str(tmp_path / "mine.safetensors")]
    if with_folder:
        Image.fromarray(example.pixels).save(tmp_path / "a.png")
        options += ["--examples", str(tmp_path)]
    made = make_service(make_parser(demo).parse_args(options))
    try:
        if with_folder:
            assert made.examples[0].words == "|".join(words)
        answer = made.segment(upload(made, example.pixels), Words(", ".join(["my thing", *others])))
        assert (answer.result.labels == 0)[expected].mean() > 0.9
        assert not answer.notes  # its name is no word of the small CLIP
    finally:
        made.close()

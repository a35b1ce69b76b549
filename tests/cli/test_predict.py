"""`san predict` on the committed model, as its users run it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli import predict
from san.cli.main import main
from san.inference.predictor import Predictor
from san.inference.segmentation import Segmentation
from san.io.files import FORMATS
from san.model.san import SANModel
from san.shapes.dataset import SHAPES_SPLITS, split_images
from san.vocabulary.vocabulary import Vocabulary
from tests.forks import Fork

REPO = Path(__file__).resolve().parents[2]
WORDS = "red star, blue ring; green square|green cross, striped ground"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images, two of them in a sub-folder; one of another size."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    arrays = split_images(SHAPES_SPLITS[0], 0, range(4))[0]
    for name, array in zip(("a.png", "b.jpg", "sub/a.png", "sub/c.webp"), arrays, strict=True):
        Image.fromarray(array if name != "b.jpg" else array[:96]).save(folder / name)
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the model fails the test."""
    monkeypatch.setattr(predict, "load_segmenter", lambda args: pytest.fail("the model was loaded"))


@pytest.fixture
def loaded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded once for all tests."""
    monkeypatch.setattr(predict, "load_segmenter", lambda args: predictor)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_format_is_written_under_its_ending(tmp_path: Path) -> None:
    result = Segmentation(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int64), Vocabulary.parse("cat"))
    found = result.save(tmp_path / "a", tuple(FORMATS))
    assert {name: path.name.removeprefix("a") for name, path in found.items()} == FORMATS


@pytest.mark.usefixtures("loaded")
def test_a_folder_with_sub_folders(
    images: Path, tmp_path: Path, predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["predict", str(images), "--recursive", "--vocab", WORDS, "--out", str(out), "--batch-size", "3"]
    assert main(command) == 0
    shown = capsys.readouterr()
    stems = ("a", "b", "sub/a", "sub/c")
    assert files(out) == sorted(
        stem + end for stem in stems for end in ("_overlay.png", "_labels.png", "_rle.json", ".json")
    )
    assert f"{images / 'b.jpg'}: " in shown.out and "%" in shown.out
    assert "4 pictures in" in shown.err
    for stem, image in zip(stems, ("a.png", "b.jpg", "sub/a.png", "sub/c.webp"), strict=True):
        expected = predictor.predict(images / image, WORDS)
        assert np.array_equal(np.asarray(Image.open(out / f"{stem}_labels.png")), expected.labels)
        assert np.array_equal(np.asarray(Image.open(out / f"{stem}_overlay.png")), np.asarray(expected.overlay()))
        written = json.loads((out / f"{stem}.json").read_text())
        assert [each["name"] for each in written["classes"]] == [
            "red star",
            "blue ring",
            "green square",
            "striped ground",
        ]
        assert written["file_name"] == str(images / image)
    assert main(command) == 1
    assert "16 of the results exist already" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_again_is_the_same(images: Path, tmp_path: Path) -> None:
    """Colours do not depend on the run, the batch or the number of threads."""
    command = ["predict", str(images), "--vocab", WORDS, "--format", "overlay,panel", "--quiet", "--out", str(tmp_path)]
    assert main([*command, "--workers", "1"]) == 0
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert sorted(before) == ["a_overlay.png", "a_panel.png", "b_overlay.png", "b_panel.png"]
    assert main([*command, "--workers", "4", "--batch-size", "2", "--overwrite"]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


@pytest.mark.usefixtures("loaded")
def test_images_side_by_side_give_the_same(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, propose = [], SANModel.propose

    def noted(self: SANModel, batch: torch.Tensor) -> Any:
        threads.append((threading.current_thread().name.split("_")[0], torch.get_num_threads()))
        return propose(self, batch)

    monkeypatch.setattr(SANModel, "propose", noted)
    command = ["predict", str(images), "--recursive", "--vocab", WORDS, "--format", "labels", "--quiet", "--out"]
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            assert main([*command, str(tmp_path / f"{count}")]) == 0
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)
    assert threads == [("MainThread", 1)] * 4 + [("MainThread", 2)] + [("san-network", 1)] * 3
    for name in files(tmp_path / "1"):
        one, two = (np.asarray(Image.open(tmp_path / count / name)) for count in ("1", "2"))
        assert np.mean(one == two) > 0.999  # rounding of sums that threads share


@pytest.mark.usefixtures("loaded")
def test_bad_images_are_skipped(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "cut.png").write_bytes((images / "a.png").read_bytes()[:200])
    (folder / "empty.jpg").touch()
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    (folder / "ok.png").write_bytes((images / "a.png").read_bytes())
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    command = ["predict", str(folder), str(tmp_path / "drawing.svg"), "--vocab", "red star", "--out", str(out)]
    assert main([*command, "--format", "labels", "--batch-size", "2"]) == 3
    shown = capsys.readouterr().err
    assert files(out) == ["ok_labels.png", "one_labels.png"]
    for name in ("cut.png", "empty.jpg", "drawing.svg"):
        assert sum(line.startswith("skipped") and name in line for line in shown.splitlines()) == 1
    assert "2 pictures in" in shown and "3 skipped" in shown
    (folder / "cut.png").write_bytes((images / "a.png").read_bytes())
    (folder / "empty.jpg").unlink()
    again = ["predict", str(folder), "--vocab", "red star", "--out", str(out), "--format", "labels", "--skip-existing"]
    assert main(again) == 0
    assert "1 pictures in" in capsys.readouterr().err
    assert main(again) == 0
    assert "all 3 pictures have their results" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_odd_names_spoil_nothing(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too long for its results, no UTF-8, a link to itself: each is one picture's fault, also when it resumes."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    good = ["$x_1$.png", "\x1b[31m.png", os.fsdecode(b"caf\xe9.png"), "z.png"]
    for name in (*good, "x" * 250 + ".png"):
        (folder / name).write_bytes((images / "a.png").read_bytes())
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "raw.nef").touch()
    command = ["predict", str(folder), "--vocab", "red star", "--out", str(out), "--format", "labels,json,rle,panel"]
    assert main(command) == 3
    shown = capsys.readouterr()
    assert files(out) == sorted(
        name[:-4] + end for name in good for end in ("_labels.png", ".json", "_rle.json", "_panel.png")
    )
    assert "caf\\udce9.png: red star" in shown.out
    assert "\\x1b[31m.png: red star" in shown.out and "\x1b" not in shown.out  # no terminal is to obey it
    assert "left out: 1 of a format that Pillow does not open: " in shown.err and "raw.nef" in shown.err
    assert "File name too long; rename it" in shown.err and "loop.png does not exist" in shown.err
    assert "4 pictures in" in shown.err and "2 skipped" in shown.err
    assert main([*command, "--skip-existing"]) == 3
    assert "0 pictures in" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_pixels_without_a_class(images: Path, tmp_path: Path) -> None:
    command = ["predict", str(images / "a.png"), "--vocab", WORDS, "--format", "labels", "--out", str(tmp_path)]
    assert main([*command, "--threshold", "1000"]) == 0
    assert set(np.unique(np.asarray(Image.open(tmp_path / "a_labels.png")))) == {255}
    expected = Predictor.from_pretrained("shapes").predict(images / "a.png", WORDS, none_of_these=True)
    assert main([*command, "--none-of-these", "--overwrite"]) == 0
    found = np.asarray(Image.open(tmp_path / "a_labels.png")).astype(int)
    assert np.array_equal(np.where(found == 255, -1, found), expected.labels)


@pytest.mark.usefixtures("loaded")
def test_words_from_elsewhere(images: Path, tmp_path: Path) -> None:
    """A label set, context, and a data set's file."""
    (tmp_path / "set.yaml").write_text("name: toy\nclasses: [red star, {name: ring, synonyms: [blue ring, red ring]}]\n"
                                       "splits: {val: {images: i, labels: l}}\n")  # fmt: skip
    (tmp_path / "names.txt").write_text("red star|scarlet star\nblue ring\n")
    given = {
        "names": (["--vocab-file", str(tmp_path / "names.txt")], 2),
        "set": (["--label-set", "shapes_36"], 36),
        "context": (["--vocab", "red star, moon", "--context", "shapes_36"], 37),
        "file": (["--dataset", str(tmp_path / "set.yaml")], 2),
    }
    for name, (options, number) in given.items():
        out = tmp_path / name
        assert main(["predict", str(images / "a.png"), *options, "--format", "json", "--out", str(out)]) == 0
        classes = json.loads((out / "a.json").read_text())["classes"]
        assert len(classes) == number
        assert sum(each["context"] for each in classes) == (35 if name == "context" else 0)
    assert classes[1]["synonyms"] == ["blue ring", "red ring"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab", " "], "--vocab is blank"),
        (["--vocab", "red star, Red Star"], "names the class 'Red Star' twice"),
        (
            ["--vocab", "cat, names.txt"],
            "--vocab has the word 'names.txt', the name of a file; give it with --vocab-file",
        ),
        (["--vocab", str(REPO / "README.md")], "--vocab has the word '.*README.md', the name of a file"),
        (["--vocab", "a", "--context", "names.yaml"], "--context has the word 'names.yaml', the name of a file"),
        (["--vocab-file", "gone.txt"], "vocabulary file gone.txt does not exist"),
        (["--vocab", "a", "--vocab-file", "b"], "--vocab and --vocab-file are given"),
        ([], "give one of --vocab, --vocab-file, --label-set, --dataset"),
        (["--vocab", "a", "--label-set", "voc_20"], "--vocab and --label-set are given.*--context"),
        (["--label-set", "voc_21"], "unknown label set 'voc_21'"),
        (["--vocab", "a", "--context", "voc_21"], "'voc_21'"),
        (["--dataset", "gone.yaml"], "gone.yaml"),
        (["--vocab", "a", "--threshold", "-1"], "--threshold is -1.0"),
        (["--vocab", "a", "--threshold", "nan"], "--threshold is nan"),
        (["--vocab", "a", "--out", str(REPO / "README.md" / "x")], "cannot write to --out"),
    ],
)
def test_refused_before_the_model_is_loaded(
    images: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert main(["predict", str(images), "--out", str(tmp_path / "out"), *options]) == 1
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert shown.count("\n") == 1 and shown.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "labels,svg"], "no format 'svg'; choose of overlay"),
        (["--batch-size", "0"], "'0' is not a number from 1 to 100000"),
        (["--overwrite", "--skip-existing"], "not allowed with"),
        (["--dtype", "int4"], "invalid choice: 'int4'"),
    ],
)
def test_a_wrong_option_is_code_2(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "a.png", "--vocab", "a", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "abacus"], "device is 'abacus'; set it to cpu"),
        (["--model", "gone"], "unknown model 'gone'"),
        (["--model", "san_vit_b_16", "--offline"], "san_vit_b_16.pth of Mendel192/san is not on this machine"),
        (["--config", "vit_b16"], "omit config"),
    ],
)
def test_a_wrong_model_is_one_line(
    images: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(images), "--vocab", "a", "--out", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]
    assert main([*command, *options]) == 1
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert files(tmp_path) == []


def test_ctrl_c_leaves_whole_files_only(images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(400):
        os.link(images / "a.png", folder / f"{number:03}.png")

    def predict_all() -> None:
        # where the tests run in the background the shell has switched SIGINT off
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(main(["predict", str(folder), "--vocab", WORDS, "--out", str(out)]))

    process = Fork(predict_all, tmp_path / "shown")
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("*_labels.png")):
            assert time.monotonic() < deadline and process.poll() is None, "no result yet"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert shown.splitlines()[-1] == "interrupted" and "interrupted after" in shown and "Traceback" not in shown
    left = files(out)
    assert 0 < len(left) < 1600
    assert not [name for name in left if "unfinished" in name or "partial" in name]
    for name in left:
        if name.endswith(".json"):
            json.loads((out / name).read_text())
        else:
            Image.open(out / name).load()


def test_scales_and_ensembles(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--scales and --flip, and a file that lists the same twice, give what `Predictor` gives with them."""
    command = ["predict", str(images / "a.png"), "--vocab", WORDS, "--format", "labels", "--overwrite", "--quiet"]
    averaged = Predictor.from_pretrained("shapes", short_sides=(112, 128), flip=True)
    expected = averaged.predict(images / "a.png", WORDS).labels
    assert main([*command, "--out", str(tmp_path), "--scales", "112,128", "--flip"]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_labels.png")), expected)
    assert not np.array_equal(Predictor.from_pretrained("shapes").predict(images / "a.png", WORDS).labels, expected)
    listed = "{model: shapes, short_sides: [112, 128], flip: true}"
    (tmp_path / "e.yaml").write_text(f"models: [{listed}, {listed}]")
    ensemble = [*command, "--out", str(tmp_path / "e"), "--model", str(tmp_path / "e.yaml")]
    assert main(ensemble) == 0
    assert np.mean(np.asarray(Image.open(tmp_path / "e/a_labels.png")) == expected) > 0.999
    capsys.readouterr()
    assert main([*ensemble, "--flip"]) == 1
    assert "--flip is of one model, but --model" in capsys.readouterr().err
    for wrong in ("0", "128,128", "128;96", ""):
        assert main([*command, "--scales", wrong]) == 2


def test_names_of_a_label_set_may_be_expanded() -> None:
    """Also of the context; words of one's own have no others."""

    def read(*words: str) -> Vocabulary:
        parser = argparse.ArgumentParser()
        predict.add_vocabulary_options(parser)
        return predict.read_vocabulary(parser.parse_args(words))

    found = read("--label-set", "voc_20", "--names", "expanded")
    assert found == read("--vocab", " voc_20 ", "--names", "expanded") == Vocabulary.label_set("voc_20", "expanded")
    assert found.names == read("--label-set", "voc_20").names
    assert found.classes[0].synonyms == ("airplane", "aeroplane", "plane", "aircraft")
    context = read("--vocab", "plane", "--context", "voc_20", "--names", "expanded")
    assert "aeroplane" not in context.names and len(context) == 20
    assert "aeroplane" in read("--vocab", "plane", "--context", "voc_20").names
    with pytest.raises(ValueError, match="--names expanded is of label sets, and none is given"):
        read("--vocab", "cat", "--names", "expanded")

"""--shard and --merge: many jobs with one folder of results, some of them killed, repeated, missing or mistaken."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from san.cli import label, predict, shards
from san.cli.jobs import Job
from san.cli.label_work import UNFINISHED, LabelWork
from san.cli.main import main
from san.cli.shards import Shard
from san.inference.predictor import Predictor
from san.io.files import LABEL_FORMATS
from san.shapes.dataset import SHAPES_SPLITS, split_images
from tests.forks import Fork

WORDS = "blue square, blue ring|azure ring; cyan square, striped ground"
NAMES = ("7.png", "b c#.jpg", "sub/7.png", "sub/é.png", "z.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, two of them in a sub-folder, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for name, array in zip(NAMES, split_images(SHAPES_SPLITS[0], 0, range(len(NAMES)))[0], strict=True):
        Image.fromarray(array).save(folder / name)
    (folder / "bad.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(autouse=True)
def loaded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The model is loaded once for all tests; returns a list that gets an entry for each use."""
    used: list[int] = []

    def load(args: object) -> Predictor:
        used.append(1)
        return predictor

    monkeypatch.setattr(label, "load_segmenter", load)
    monkeypatch.setattr(predict, "load_segmenter", load)
    return used


def command(name: str, images: Path, out: Path, *more: str, words: str = WORDS) -> list[str]:
    return [name, str(images), "--out", str(out), "--vocab", words, "--recursive", "--quiet", *more]


def content(folder: Path, *, apart: str = UNFINISHED) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and apart not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def message(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("count", [1, 3, 7, 100, 120])
def test_shards_are_disjoint_whole_and_even_in_any_order(count: int) -> None:
    jobs = [Job(Path(f"in/{index}.png"), Path(f"out/{index % 3}/{index}")) for index in range(100)]
    parts = [Shard(index, count).of(jobs) for index in range(count)]
    assert sorted((job for part in parts for job in part), key=str) == sorted(jobs, key=str)
    assert {len(part) for part in parts} <= {100 // count, -(-100 // count)}
    random.Random(0).shuffle(jobs)
    assert [Shard(index, count).of(jobs) for index in range(count)] == parts


@pytest.mark.parametrize("text", ["", "/4", "4/4", "-1/4", "1", "0/0", "1/x", "1/2/3", "0/1000000", "٠/٤"])
@pytest.mark.parametrize("name", ["predict", "label"])
def test_what_is_no_shard_is_refused(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "photos", "--vocab", "cat", f"--shard={text}"]) == 2
    assert "is not I/N with I from 0 to N - 1; of 16 shards, the first is 0/16" in message(capsys)


def test_predictions_of_shards_are_those_of_one_run(images: Path, tmp_path: Path, loaded: list[int]) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert main(command("predict", images, one)) == 3
    codes = [main(command("predict", images, many, "--shard", f"{index}/4")) for index in (2, 0, 3, 1)]
    assert codes == [3 if codes.index(3) == place else 0 for place in range(4)]  # only that of the bad picture
    assert content(many, apart=predict.SHARDS) == content(one)
    loaded.clear()
    assert [main(command("predict", images, tmp_path / "5", "--shard", f"{index}/9")) for index in (6, 7, 8)] == [0] * 3
    assert not loaded, "nothing to do, but the model was loaded"


def test_a_prediction_continues_and_refuses_other_jobs(
    images: Path, tmp_path: Path, loaded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    good = images / "sub"
    given = command("predict", good, tmp_path, "--shard", "0/2")
    assert main(given) == 0
    before = content(tmp_path)
    assert main(given) == 1
    assert "7.json'" not in (text := message(capsys)) and "4 of the results exist already" in text
    loaded.clear()
    assert main([*given, "--skip-existing"]) == 0
    assert not loaded and "all 1 pictures of shard 0/2 have their results" in message(capsys)
    for mistaken, reason in (
        (command("predict", good, tmp_path, "--shard", "1/2", words="red star"), "another classes, [['blue square'"),
        (command("predict", good, tmp_path, "--shard", "1/3"), "another number of shards, 2 instead of 3"),
        (command("predict", images, tmp_path, "--shard", "1/2"), "another number of pictures, 2 instead of 6"),
        (command("predict", good, tmp_path, "--shard", "1/2", "--flip"), "another flip, False instead of True"),
    ):
        assert main(mistaken) == 1
        assert reason in (text := message(capsys)) and "remove" in text
    assert content(tmp_path) == before
    assert main(command("predict", good, tmp_path, "--skip-existing")) == 0
    assert "1 pictures in" in message(capsys)


def test_of_two_jobs_that_begin_at_once_with_other_settings_one_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one writes its settings after this one has looked for them."""
    write = shards.write_whole

    def after_another(path: Path, text: str) -> None:
        monkeypatch.setattr(shards, "write_whole", write)
        shards.join_jobs(tmp_path, {"words": "a"}, remedy="stop")
        write(path, text)

    monkeypatch.setattr(shards, "write_whole", after_another)
    with pytest.raises(ValueError, match="has another words, 'a' instead of 'b'; stop"):
        shards.join_jobs(tmp_path, {"words": "b"}, remedy="stop")


@pytest.mark.parametrize("count", [2, 8])
def test_merged_sets_are_those_of_one_run_to_the_byte(
    images: Path, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every format; one picture cannot be read, and of 8 shards two are empty."""
    one, many = tmp_path / "1/set", tmp_path / "2/set"
    formats = ("--format", ",".join(LABEL_FORMATS), "--instances")
    assert main(command("label", images, one, *formats)) == 3
    codes = [main(command("label", images, many, "--shard", f"{at}/{count}", "--instances")) for at in range(count)]
    assert sorted(codes) == [0] * (count - 1) + [3]
    assert [path.name for path in many.iterdir()] == [UNFINISHED]
    capsys.readouterr()
    assert main(command("label", images, many, "--merge", *formats)) == 3
    assert "left out: 1 that could not be read: " in (text := message(capsys)) and "bad.png" in text
    assert content(many) == content(one) and len(content(one)) > 40
    assert not (many / UNFINISHED).exists()


def test_a_merge_names_the_shard_that_it_refuses(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = images / "sub"

    def refused(*more: str, **changed: str) -> str:
        assert main(command("label", good, tmp_path, *more, **changed)) == 1
        return message(capsys)

    assert "no shard has begun in" in refused("--merge")
    assert not (tmp_path / UNFINISHED).exists()
    assert main(command("label", good, tmp_path, "--shard", "2/3")) == 0
    assert "shard 0/3, 1/3 has not been run" in refused("--merge")
    assert main(command("label", good, tmp_path, "--shard", "0/3")) == 0
    (record,) = tmp_path.rglob("0_of_3.json")
    (tmp_path / record).with_name("1_of_3.json").write_text('{"done": false}')
    assert "shard 1/3 has not ended; wait for it" in refused("--merge")
    assert main(command("label", good, tmp_path, "--shard", "1/3")) == 0

    record.with_name("1_of_3 (1).json").write_bytes(record.read_bytes())
    assert "1_of_3 (1).json' is not the record of one of 3 shards, but a copy" in refused("--merge")
    record.with_name("1_of_3 (1).json").unlink()
    (result,) = tmp_path.rglob("7.npz")
    aside = result.rename(tmp_path / "aside")
    assert "shard 0/3 is done, but has no result of '7.png'; run it again" in refused("--merge")
    aside.rename(result)
    assert "run of shard 0/3, 1/3, 2/3 in" in (text := refused("--shard", "0/4"))
    assert "another number of shards, 3 instead of 4; give the same number" in text
    assert "shard 0/3, 1/3, 2/3 in" in (text := refused("--merge", words="red star"))
    assert (
        "another classes, [['blue square', " in text
        and "instead of [['red star', 'red star']]; give the same options" in text
    )
    other = shards.join_jobs(tmp_path / "elsewhere", {"classes": [["red star"]]}, remedy="")
    (other / "shards/x").mkdir(parents=True)
    (other / "shards/x/5_of_6.json").write_text('{"done": true}')
    foreign = other.rename(tmp_path / UNFINISHED / other.name)
    assert "the run of shard 5/6 in" in refused("--merge")
    foreign.rename(tmp_path / "gone")
    assert main([*command("label", images, tmp_path), "--merge"]) == 1
    assert "another number of pictures, 2 instead of 6" in message(capsys)
    assert "--shard and --merge are given" in refused("--shard", "0/3", "--merge")
    assert "--overwrite would remove the results of other shards" in refused("--shard", "0/3", "--overwrite")
    assert main(command("label", good, tmp_path, "--merge")) == 0
    assert "coco' exists already; remove it" in refused("--shard", "0/3")
    assert "coco' exists already; give --overwrite" in refused("--merge")


def killed_at(picture: int, predictor: Predictor) -> Callable[[object], Any]:
    """A model that ends its process at a picture, as a scheduler does; the results are made before the fork."""
    array = split_images(SHAPES_SPLITS[0], 0, range(1))[0][0]
    result = predictor.predict(array, WORDS)
    seen = 0

    def predict_batch(pictures: list[Any], *_: object, **__: object) -> list[Any]:
        nonlocal seen
        seen += 1
        if seen == picture:
            os.kill(os.getpid(), signal.SIGKILL)
        return [result]

    return lambda args: SimpleNamespace(predict_batch=predict_batch, models=[])


def test_a_killed_job_continues(
    images: Path, tmp_path: Path, predictor: Predictor, loaded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = command("label", images, tmp_path / "many", "--shard", "0/2")
    with monkeypatch.context() as patch:
        patch.setattr(label, "load_segmenter", killed_at(2, predictor))
        job = Fork(lambda: main([*given, "--workers", "1"]), tmp_path / "output")
        output = job.communicate()[0]
    assert job.returncode == -signal.SIGKILL, output
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert main(command("label", images, tmp_path / "many", "--shard", "1/2")) in (0, 3)
    loaded.clear()
    assert main(given) in (0, 3)
    assert loaded and kept == {path: path.stat().st_mtime_ns for path in kept}
    assert main(command("label", images, tmp_path / "many", "--merge")) == 3
    names = json.loads((tmp_path / "many/coco/annotations/instances_train.json").read_text())["images"]
    assert sorted(each["file_name"] for each in names) == sorted(NAMES)


def test_two_jobs_of_one_shard_are_harmless_and_a_late_one_stops(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One job runs while another does all the work and merges."""
    good, one, many = images / "sub", tmp_path / "1/set", tmp_path / "2/set"
    assert main(command("label", good, one)) == 0
    write, written = LabelWork.write, []

    def after_another(self: LabelWork, *given: Any, **more: Any) -> None:
        written.append(given)
        if len(written) == 2:
            monkeypatch.setattr(LabelWork, "write", write)
            assert main(command("label", good, many, "--shard", "0/1")) == 0
            assert main(command("label", good, many, "--merge")) == 0
        write(self, *given, **more)

    monkeypatch.setattr(LabelWork, "write", after_another)
    assert main(command("label", good, many, "--shard", "0/1", "--workers", "1")) == 1
    assert "has gone: another job has written the sets" in message(capsys)
    assert content(many) == content(one)
    assert [path.name for path in many.iterdir()] == ["coco"]


def test_one_run_finishes_what_shards_have_left(images: Path, tmp_path: Path, loaded: list[int]) -> None:
    one, many = tmp_path / "1/set", tmp_path / "2/set"
    assert main(command("label", images / "sub", one)) == 0
    assert main(command("label", images / "sub", many, "--shard", "1/2")) == 0
    assert main(command("label", images / "sub", many)) == 1
    assert main(command("label", images / "sub", many, "--resume")) == 0
    assert content(many) == content(one)

"""The assembly line of `san predict`, with a model of numbers: background threads, bounds, failures, interruption."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.cli.jobs import Job
from san.cli.pipeline import PipelineSteps, run_pipeline, write_results
from san.inference.segmentation import Segmentation
from san.vocabulary.vocabulary import Vocabulary

SECONDS = 20
"""How long a test waits for another thread before it fails."""


def jobs(number: int) -> list[Job]:
    return [Job(Path(f"{index}.png"), Path(f"out/{index}")) for index in range(number)]


class Recorder:
    """Reads the number in a file's name, doubles it, and keeps what is written."""

    def __init__(self) -> None:
        self.written: dict[str, int] = {}
        self.failed: list[str] = []
        self.batches: list[int] = []
        self.threads: set[str] = set()

    def steps(self, **changed: Any) -> PipelineSteps[int, int]:
        parts: dict[str, Callable[..., Any]] = {
            "read": self.read,
            "predict": self.predict,
            "write": self.write,
            "failed": lambda job, error: self.failed.append(f"{job.image.name}: {error}"),
        }
        return PipelineSteps(**(parts | changed))

    def read(self, path: Path) -> int:
        self.threads.add(threading.current_thread().name.split("_")[0])
        return int(path.stem)

    def predict(self, batch: list[int]) -> list[int]:
        assert threading.current_thread() is threading.main_thread()
        self.batches.append(len(batch))
        return [2 * number for number in batch]

    def write(self, job: Job, result: int) -> None:
        self.threads.add(threading.current_thread().name.split("_")[0])
        self.written[job.image.stem] = result


def nothing_runs() -> bool:
    return not [thread.name for thread in threading.enumerate() if thread.name.startswith("san-")]


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 7), (3, [3, 3, 1]), (10, [7])])
def test_everything_is_done_in_order(batch_size: int, batches: list[int]) -> None:
    seen = Recorder()
    done = [(job.image.stem, result) for job, result in run_pipeline(jobs(7), seen.steps(batch_size=batch_size))]
    assert done == [(str(number), 2 * number) for number in range(7)]
    assert seen.written == dict(done)
    assert seen.batches == batches
    assert seen.threads == {"san-read", "san-write"}
    assert nothing_runs()


def test_reading_goes_on_while_the_model_works() -> None:
    seen, second = Recorder(), threading.Event()

    def read(path: Path) -> int:
        if path.stem == "1":
            second.set()
        return int(path.stem)

    def predict(batch: list[int]) -> list[int]:
        assert second.wait(SECONDS), "the second image is not read while the first is predicted"
        return batch

    assert len(list(run_pipeline(jobs(3), seen.steps(read=read, predict=predict)))) == 3


def test_writing_goes_on_while_the_model_works() -> None:
    seen, second = Recorder(), threading.Event()

    def predict(batch: list[int]) -> list[int]:
        if batch == [1]:
            second.set()
        return batch

    def write(job: Job, result: int) -> None:
        if result == 0:
            assert second.wait(SECONDS), "the second image is not predicted while the first is written"

    assert len(list(run_pipeline(jobs(3), seen.steps(predict=predict, write=write)))) == 3


def test_several_calls_of_the_model_at_once() -> None:
    """After the first, which is made alone where the line runs; results and failures stay in order."""
    seen, together, threads = Recorder(), threading.Barrier(2, timeout=SECONDS), set()

    def predict(batch: list[int]) -> list[int]:
        threads.add(threading.current_thread().name.split("_")[0])
        if batch == [0]:
            return batch
        together.wait()  # of pairs
        if batch == [3]:
            raise ValueError("not this one")
        return batch

    done = [result for _, result in run_pipeline(jobs(7), seen.steps(predict=predict, streams=2))]
    assert done == [0, 1, 2, 4, 5, 6] and seen.failed == ["3.png: not this one"]
    assert threads == {"MainThread", "san-network"}
    assert nothing_runs()


def test_a_defect_in_one_of_several_calls_ends_all() -> None:
    seen = Recorder()
    with pytest.raises(ZeroDivisionError):
        list(run_pipeline(jobs(9), seen.steps(predict=lambda batch: [1 // (3 - each) for each in batch], streams=2)))
    assert nothing_runs() and not seen.failed


def test_images_of_one_kind_go_together() -> None:
    """None waits for its kind while more than twice a batch are there."""
    seen = Recorder()
    mixed = seen.steps(batch_size=3, kind=lambda number: number % 2 if number < 8 else number)
    batches: list[list[int]] = []

    def predict(batch: list[int]) -> list[int]:
        batches.append(batch)
        return batch

    done = [result for _, result in run_pipeline(jobs(16), replace(mixed, predict=predict))]
    assert sorted(done) == list(range(16)) and sorted(seen.written) == sorted(map(str, range(16)))
    assert batches[:4] == [[0, 2, 4], [1, 3, 5], [6], [7]]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_queues_are_bounded(batch_size: int) -> None:
    """A stopped model leaves a few images read; a stopped disk leaves a few results waiting."""
    seen, lock, counts = Recorder(), threading.Lock(), {"read": 0, "predicted": 0, "written": 0}
    most = {"read": 0, "unwritten": 0}

    def count(what: str, number: int = 1) -> None:
        with lock:
            counts[what] += number
            most["read"] = max(most["read"], counts["read"] - counts["predicted"])
            most["unwritten"] = max(most["unwritten"], counts["predicted"] - counts["written"])

    line = seen.steps(
        read=lambda path: count("read"),
        predict=lambda batch: count("predicted", len(batch)) or batch,
        write=lambda job, result: threading.Event().wait(0.005) or count("written"),
        batch_size=batch_size,
        workers=2,
    )
    assert len(list(run_pipeline(jobs(60), line))) == 60
    assert most["read"] <= 2 + 3 * batch_size
    assert most["unwritten"] <= 2 * 2 + batch_size + 1


def test_what_cannot_be_read_is_skipped() -> None:
    seen = Recorder()

    def read(path: Path) -> int:
        if path.stem in ("0", "3"):
            raise (ValueError if path.stem == "0" else OSError)(f"no {path.stem}")
        return int(path.stem)

    done = [job.image.stem for job, _ in run_pipeline(jobs(5), seen.steps(read=read, batch_size=2))]
    assert done == ["1", "2", "4"] == list(seen.written)
    assert seen.failed == ["0.png: no 0", "3.png: no 3"]


def test_an_image_that_the_model_refuses_spoils_no_other_of_its_batch() -> None:
    seen = Recorder()

    def predict(batch: list[int]) -> list[int]:
        if 1 in batch:
            raise ValueError("not this one")
        return batch

    done = [result for _, result in run_pipeline(jobs(4), seen.steps(predict=predict, batch_size=3))]
    assert done == [0, 2, 3]
    assert seen.failed == ["1.png: not this one"]


def test_what_cannot_be_written_alone_is_skipped() -> None:
    seen = Recorder()

    def write(job: Job, result: int) -> None:
        if job.image.stem in ("0", "3"):
            raise ValueError("its name is too long")
        seen.write(job, result)

    done = [job.image.stem for job, _ in run_pipeline(jobs(5), seen.steps(write=write, batch_size=2))]
    assert done == ["1", "2", "4"] == list(seen.written)
    assert seen.failed == ["0.png: its name is too long", "3.png: its name is too long"]


@pytest.mark.parametrize("number", [0, 4])
def test_a_full_disk_ends_it(number: int) -> None:
    seen = Recorder()

    def write(job: Job, result: int) -> None:
        if job.image.stem == str(number):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        list(run_pipeline(jobs(5), seen.steps(write=write)))
    assert nothing_runs()


def test_a_defect_is_no_bad_image() -> None:
    seen = Recorder()
    with pytest.raises(ZeroDivisionError):
        list(run_pipeline(jobs(3), seen.steps(read=lambda path: 1 // 0)))
    assert not seen.failed
    assert nothing_runs()


def test_interruption_ends_what_was_begun_and_starts_nothing_more() -> None:
    seen = Recorder()

    def interrupted() -> None:
        with closing(run_pipeline(jobs(500), seen.steps())) as done:
            for job, _ in done:
                if job.image.stem == "5":
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert nothing_runs()
    assert len(seen.written) <= 6 + 2 * 2  # what waits to be written


def segmentation() -> Segmentation:
    return Segmentation(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), int), Vocabulary.parse("cat"))


def test_files_appear_whole_and_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = {"labels": "_x.png", "json": ".json"}
    job = Job(Path("in/a.png"), tmp_path / "out" / "sub" / "a")
    write_results(job, segmentation(), endings)
    assert sorted(path.name for path in job.stem.parent.iterdir()) == ["a.json", "a_x.png"]
    assert json.loads((job.stem.parent / "a.json").read_text())["file_name"] == "in/a.png"
    assert Image.open(job.stem.parent / "a_x.png").size == (6, 4)

    def full(path: Path, text: str) -> None:
        path.write_text(text[:9])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("san.inference.segmentation.write_text", full)
    again = Job(Path("in/b.png"), tmp_path / "out" / "b")
    with pytest.raises(OSError, match=r"cannot write the results of 'in/b.png' to .*No space left") as caught:
        write_results(again, segmentation(), endings)
    assert "partial" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sub"]


def test_a_folder_called_like_a_result_is_not_written_into(tmp_path: Path) -> None:
    """`Segmentation.save` would take it as the folder meant."""
    (tmp_path / "a").mkdir()
    write_results(Job(Path("in/a.png"), tmp_path / "a"), segmentation(), {"json": ".json"})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "a.json"]


def test_a_name_is_no_full_disk(tmp_path: Path) -> None:
    """A picture whose result names are too long, or whose folder is missing, does not end the run."""
    (tmp_path / "b.json").mkdir()
    for stem, message in (("x" * 252, "File name too long"), ("b", "it is a folder")):
        with pytest.raises(ValueError, match=f"cannot write the results of 'in/a.png' to .*: {message}; rename it"):
            write_results(Job(Path("in/a.png"), tmp_path / stem), segmentation(), {"json": ".json"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_name_that_is_not_utf_8_comes_back_from_json(tmp_path: Path) -> None:
    name = "Straße/" + os.fsdecode(b"caf\xe9.png")
    write_results(Job(Path(name), tmp_path / "a"), segmentation(), {"json": ".json", "rle": "_rle.json"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert '"file_name": "Straße/caf\\udce9.png"' in text
    assert json.loads(text)["file_name"] == name
    assert json.loads((tmp_path / "a_rle.json").read_text(encoding="utf-8"))[0]["file_name"] == name

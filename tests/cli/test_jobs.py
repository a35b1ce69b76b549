"""What `san predict` has to do: which files are images, what results are called, what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from san.cli.jobs import Job, find_jobs, prepare_output, refuse_collisions, unfinished

ENDINGS = ("_overlay.png", ".json", "_rle.json")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def stems(jobs: list[Job], out: Path) -> list[str]:
    return [job.stem.relative_to(out).as_posix() for job in jobs]


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "in", "b.jpg", "a.PNG", "c.d.tif", "notes.txt", ".hidden.png", "sub/e.webp")
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert [job.image.name for job in jobs] == ["a.PNG", "b.jpg", "c.d.tif"]
    assert stems(jobs, tmp_path / "out") == ["a", "b", "c.d"]
    assert jobs[2].outputs([".json"]) == [tmp_path / "out" / "c.d.json"]


def test_sub_folders_are_kept_below_out(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", "x/y/a.png", "z/b.png", ".cache/c.png")
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out", recursive=True)
    assert stems(jobs, tmp_path / "out") == ["a", "x/y/a", "z/b"]
    refuse_collisions(jobs, ENDINGS, overwrite=False)


def test_results_inside_the_folder_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", "out/a_overlay.png")
    jobs = find_jobs([tmp_path / "in"], tmp_path / "in" / "out", recursive=True)
    assert [job.image.name for job in jobs] == ["a.png"]
    with pytest.raises(ValueError, match="both an input and --out"):
        find_jobs([tmp_path / "in"], tmp_path / "in")


def test_a_named_file_is_tried_whatever_it_is_called_and_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "photo", "b.png")
    jobs = find_jobs([tmp_path / "photo", tmp_path / "b.png", tmp_path, tmp_path / "photo"], tmp_path / "out")
    assert stems(jobs, tmp_path / "out") == ["photo", "b"]


def test_missing_and_empty_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "in", "notes.txt", "sub/a.png")
    with pytest.raises(ValueError, match=r"holds no image \(.*\.png.*--recursive"):
        find_jobs([tmp_path / "in"], tmp_path / "out")
    assert len(find_jobs([tmp_path / "in"], tmp_path / "out", recursive=True)) == 1
    with pytest.raises(FileNotFoundError, match="gone.png"):
        find_jobs([tmp_path / "gone.png"], tmp_path / "out")


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.png", "a_rle.png")])
def test_two_results_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The second pair: the masks of a.png and the description of a_rle.png would both be a_rle.json."""
    touch(tmp_path, *names)
    jobs = find_jobs([tmp_path / name for name in names], tmp_path / "out")
    with pytest.raises(ValueError, match="would both be written to"):
        refuse_collisions(jobs, ENDINGS, overwrite=True)


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_overlay.png")
    jobs = find_jobs([tmp_path / "a.png", tmp_path / "a_overlay.png"], tmp_path)
    with pytest.raises(ValueError, match="is an input and would be overwritten"):
        refuse_collisions(jobs, ENDINGS, overwrite=True)


def test_results_that_are_there_are_refused_or_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/b.png", *(f"out/a{ending}" for ending in ENDINGS), "out/b.json")
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"4 of the results exist already.*--overwrite"):
        refuse_collisions(jobs, ENDINGS, overwrite=False)
    refuse_collisions(jobs, ENDINGS, overwrite=True)
    assert stems(unfinished(jobs, ENDINGS), tmp_path / "out") == ["b"]


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(OSError, match=r"cannot write to --out .*choose a folder"):
        prepare_output(tmp_path / "file" / "out")
    prepare_output(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody may write to is known on Linux only")
def test_output_that_is_there_but_takes_no_file() -> None:
    with pytest.raises(OSError, match=r"cannot write to --out '/proc/self' .*choose a folder"):
        prepare_output(Path("/proc/self"))

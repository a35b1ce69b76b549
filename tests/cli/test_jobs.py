"""The jobs of `san predict`: images, names of results, and errors before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from san.cli.jobs import Job, find_jobs, prepare_output, refuse_collisions, refuse_existing, unfinished

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
    jobs, _ = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert [job.image.name for job in jobs] == ["a.PNG", "b.jpg", "c.d.tif"]
    assert stems(jobs, tmp_path / "out") == ["a", "b", "c.d"]
    assert jobs[2].outputs([".json"]) == [tmp_path / "out" / "c.d.json"]


def test_sub_folders_are_kept_below_out(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", "x/y/a.png", "z/b.png", ".cache/c.png")
    jobs, _ = find_jobs([tmp_path / "in"], tmp_path / "out", recursive=True)
    assert stems(jobs, tmp_path / "out") == ["a", "x/y/a", "z/b"]
    refuse_existing(jobs, ENDINGS)


def test_results_inside_the_folder_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", "out/a_overlay.png")
    jobs, _ = find_jobs([tmp_path / "in"], tmp_path / "in" / "out", recursive=True)
    assert [job.image.name for job in jobs] == ["a.png"]
    with pytest.raises(ValueError, match="both an input and --out"):
        find_jobs([tmp_path / "in"], tmp_path / "in")


def test_a_file_given_by_name_is_always_tried_and_used_once(tmp_path: Path) -> None:
    touch(tmp_path, "photo", "b.png")
    jobs, _ = find_jobs([tmp_path / "photo", tmp_path / "b.png", tmp_path, tmp_path / "photo"], tmp_path / "out")
    assert stems(jobs, tmp_path / "out") == ["photo", "b"]


def test_missing_and_empty_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "in", "notes.txt", "sub/a.png")
    with pytest.raises(ValueError, match=r"holds no image \(.*\.png.*--recursive"):
        find_jobs([tmp_path / "in"], tmp_path / "out")
    assert len(find_jobs([tmp_path / "in"], tmp_path / "out", recursive=True)[0]) == 1
    with pytest.raises(FileNotFoundError, match="gone.png"):
        find_jobs([tmp_path / "gone.png"], tmp_path / "out")


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.png", "a_rle.png")])
def test_two_results_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The second pair: the masks of a.png and the description of a_rle.png would both be a_rle.json."""
    touch(tmp_path, *names)
    jobs, _ = find_jobs([tmp_path / name for name in names], tmp_path / "out")
    with pytest.raises(ValueError, match="would both be written to"):
        refuse_collisions(jobs, ENDINGS)


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_overlay.png")
    jobs, _ = find_jobs([tmp_path / "a.png", tmp_path / "a_overlay.png"], tmp_path)
    with pytest.raises(ValueError, match="is an input and would be overwritten"):
        refuse_collisions(jobs, ENDINGS)


def test_results_that_are_there_are_refused_or_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/b.png", *(f"out/a{ending}" for ending in ENDINGS), "out/b.json")
    jobs, _ = find_jobs([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"4 of the results exist already.*--overwrite"):
        refuse_existing(jobs, ENDINGS)
    refuse_collisions(jobs, ENDINGS)
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


def test_what_pillow_opens_is_taken_and_the_rest_is_named(tmp_path: Path) -> None:
    """`.svg`, `.nef` and `.eps` are pictures that Pillow does not read; a text and a video are none."""
    taken = ["a.jfif", "b.mpo", "c.jp2", "d.PPM", "e.JPE", "f.tga", "g.qoi", "h.ico", "i.psd"]
    left_out = ["a.svg", "b.nef", "c.eps"]
    touch(tmp_path / "in", *taken, *left_out, "notes.txt", "film.mp4", "film.mpg")
    jobs, skipped = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert [job.image.name for job in jobs if job.image.suffix != ".avif"] == taken
    assert [(each.path.name, each.missed) for each in skipped] == [(name, True) for name in left_out]
    touch(tmp_path / "raw", "a.nef")
    with pytest.raises(ValueError, match=r"holds no image .* left out: 1 of a format that Pillow .*a\.nef"):
        find_jobs([tmp_path / "raw"], tmp_path / "out")


def test_endings_of_plug_ins_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats are registered as by pillow-heif."""
    touch(tmp_path / "in", "a.heic", "b.png")
    assert [each.path.name for each in find_jobs([tmp_path / "in"], tmp_path / "out")[1]] == ["a.heic"]
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    jobs, skipped = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert [job.image.name for job in jobs] == ["a.heic", "b.png"] and not skipped


def test_loops_of_links(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", "sub/b.png")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    jobs, skipped = find_jobs([tmp_path / "in"], tmp_path / "out", recursive=True)
    assert stems(jobs, tmp_path / "out") == ["a", "loop", "sub/b"], "whoever reads the second says that it is none"
    assert [(each.path.name, each.missed) for each in skipped] == [("up", False)]
    refuse_existing(jobs, ENDINGS)
    assert find_jobs([tmp_path / "in" / "loop.png"], tmp_path / "out")[0][0].stem.name == "loop"


def test_a_name_that_leaves_no_room_for_its_results(tmp_path: Path) -> None:
    """It is a job like the others, which is not done; what cannot be written is said when it is written."""
    touch(tmp_path / "in", "a.png", "x" * 250 + ".png")
    jobs, _ = find_jobs([tmp_path / "in", tmp_path / ("y" * 300)][:1], tmp_path / "out")
    refuse_existing(jobs, ENDINGS)
    assert unfinished(jobs, ENDINGS) == jobs
    with pytest.raises(FileNotFoundError, match="no image or folder at"):
        find_jobs([tmp_path / ("y" * 300)], tmp_path / "out")


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    touch(tmp_path / "in", os.fsdecode(b"caf\xe9.png"))
    jobs, _ = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert os.fsencode(jobs[0].outputs([".json"])[0].name) == b"caf\xe9.json"

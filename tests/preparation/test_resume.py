"""A run that is killed leaves no half-written file, and the next one ends where an uninterrupted one does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from san.preparation import PreparationOptions, check, prepare
from san.preparation.files import STATE_FOLDER, only_run, place_file, remove_partial_files, write_atomically
from san.preparation.jobs import FileJob, run_jobs
from tests.data.raw_trees import Sizes, make_raw_tree

RUN = "import sys; from san.cli.main import main; "
RUN += "sys.exit(main(['prepare', *sys.argv[1:]])) if __name__ == '__main__' else None"


def start(repo: Path, *arguments: object, code: str = RUN) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and STATE_FOLDER not in path.parts
    }


@pytest.mark.parametrize(
    ("name", "workers", "ending"),
    [
        pytest.param("ade20k_full", 1, "*.tif", marks=pytest.mark.slow),
        ("pcontext_full", 2, "*.jpg"),
        ("voc", 1, "*.png"),
    ],
)
def test_killed_in_the_middle(name, workers, ending, repo, tmp_path):
    """SIGKILL after the first files; then the second run gives the bytes of an uninterrupted one."""
    tree = make_raw_tree(name, tmp_path / "raw", archives=name == "voc", sizes=Sizes(36, 24, 120, 160))
    prepare(name, PreparationOptions(root=tmp_path / "whole", raw=(tree.raw,), partial=True))
    whole, root = files(tmp_path / "whole"), tmp_path / "killed"

    process = start(repo, name, "--root", root, "--raw", tree.raw, "--partial", "--workers", workers)
    while process.poll() is None and sum(1 for _ in root.rglob(ending)) < 5:
        time.sleep(0.002)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    time.sleep(0.3)  # the workers notice that their parent is gone
    left = files(root)
    finished = {path: content for path, content in left.items() if not path.endswith(".partial")}
    assert 5 <= len(finished) < len(whole), "killed too late to tell anything"
    assert finished.items() <= whole.items(), "no half-written file has a final name"
    assert files(root) == left, "no process writes any more"

    assert start(repo, name, "--root", root, "--raw", tree.raw, "--partial", "--workers", 1).wait() == 0
    assert files(root) == whole
    assert all(report.ok for report in check(name, PreparationOptions(root=root, partial=True)))


def test_killed_while_a_file_is_being_written(repo, tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom san.preparation.files import write_atomically\n"
        "def half(path):\n    path.write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), half)\n"
    )
    target = tmp_path / "label.png"
    target.write_bytes(b"old")
    assert start(repo, target, code=code).wait() == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2, "the half-written file is there under another name"
    assert remove_partial_files([tmp_path, tmp_path / "absent"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["label.png"]


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_atomically(tmp_path / "deep" / "label.png", fail)
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_unfinished_file_has_no_ending_that_anyone_reads(tmp_path):
    """Pairing and checks take a folder's files by their ending, hidden ones too."""
    names = []
    write_atomically(tmp_path / "label.png", lambda partial: names.append(partial.name))
    assert names[0].endswith(".partial")


@pytest.mark.parametrize("link", [True, False])
def test_a_file_is_placed_as_a_link_or_a_copy(tmp_path, link):
    (tmp_path / "source.jpg").write_bytes(b"image")
    for _ in range(2):  # the second over the first
        place_file(tmp_path / "source.jpg", tmp_path / "out/a.jpg", link=link)
    assert (tmp_path / "out/a.jpg").is_symlink() == link
    assert (tmp_path / "out/a.jpg").read_bytes() == b"image"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]


def test_prepare_clears_temporary_files_of_a_killed_run(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "raw")
    options = PreparationOptions(root=tmp_path / "root", raw=(tree.raw,), partial=True)
    prepare("voc", options)
    whole = files(options.root)
    for folder in ("annotations_detectron2/val", "JPEGImages", "."):
        (options.root / "VOC2012" / folder / ".2009_000001.png.123.partial").write_bytes(b"half")
    prepare("voc", options)
    assert files(options.root) == whole


def test_unpacking_goes_on_after_a_kill(tmp_path, monkeypatch):
    """Stopped after a few members; without the archive the half-filled folder is refused, with it completed."""
    tree = make_raw_tree("ade20k", tmp_path / "raw", archives=True)
    root, count = tmp_path / "root", 0
    options = PreparationOptions(root=root, raw=(tree.raw,), partial=True)
    from san.preparation import archives

    def stop(member, partial, copy=archives._copy):
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        copy(member, partial)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare("ade20k", options)
    assert sum(1 for path in files(root)) == 6
    annotations = root / "ADEChallengeData2016/annotations/training"
    annotations.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match=r"unpacking ADEChallengeData2016.zip .* was interrupted: pass .* with --raw"):
        prepare("ade20k", PreparationOptions(root=root, partial=True))
    prepare("ade20k", options)
    prepare("ade20k", PreparationOptions(root=tmp_path / "whole", raw=(tree.raw,), partial=True))
    assert files(root) == files(tmp_path / "whole")


def test_a_shorter_file_of_an_archive_is_unpacked_again(tmp_path):
    tree = make_raw_tree("coco_stuff", tmp_path / "raw", archives=True)
    root = tmp_path / "root"
    image = root / "coco/train2017/000000000009.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"\xff\xd8half")
    assert prepare("coco_stuff", PreparationOptions(root=root, raw=(tree.raw,), partial=True)).good
    assert image.stat().st_size > 100


def test_what_was_deleted_after_the_unpacking_is_unpacked_again(tmp_path):
    """An image found damaged, or the download's folders, which may be deleted when all is converted."""
    tree = make_raw_tree("ade20k", tmp_path / "raw", archives=True)
    options = PreparationOptions(root=tmp_path / "root", raw=(tree.raw,), partial=True)
    assert prepare("ade20k", options).good
    whole, home = files(options.root), options.root / "ADEChallengeData2016"
    (home / "images/training/ADE_train_00000001.jpg").unlink()
    shutil.rmtree(home / "annotations")
    shutil.rmtree(home / "annotations_detectron2")
    assert prepare("ade20k", options).good
    assert files(options.root) == whole
    assert not list((options.root / STATE_FOLDER).glob("*.unpacking"))


def test_the_ade20k_archive_may_have_a_name_of_its_own(tmp_path):
    tree = make_raw_tree("ade20k_full", tmp_path / "raw", archives=True)
    archive = tree.raw / "ADE20K_2021_17_01.zip"
    archive = archive.rename(archive.with_name("0123abc_ADE20K_2021_17_01 (1).zip"))
    assert prepare("ade20k_full", PreparationOptions(root=tmp_path / "root", raw=(archive,), partial=True)).good
    assert prepare("ade20k_full", PreparationOptions(root=tmp_path / "other", raw=(tree.raw,), partial=True)).good


def test_two_runs_at_once_are_refused(tmp_path):
    tree = make_raw_tree("voc", tmp_path / "raw")
    options = PreparationOptions(root=tmp_path / "root", raw=(tree.raw,), partial=True)
    with only_run(options.root), pytest.raises(ValueError, match="another preparation is writing below"):
        prepare("voc", options)
    assert prepare("voc", options).good


def _die_on_7(path: Path) -> None:
    if path.name == "7":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_that_kills_its_worker_is_named_and_the_others_are_done():
    jobs = [FileJob(Path(str(number)), _die_on_7) for number in range(40)]
    done, failures = run_jobs(jobs, workers=2, progress=False, title="test")
    assert done == 39
    (failure,) = failures
    assert failure.startswith("7: ") and "died" in failure and "--workers" in failure


def _fail_on_even(path: Path) -> None:
    if int(path.name) % 2 == 0:
        raise ValueError(f"file {path.name} is wrong")


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_gathered_and_many_stop_the_run(workers):
    jobs = [FileJob(Path(str(number)), _fail_on_even) for number in range(40)]
    done, failures = run_jobs(jobs, workers=workers, progress=False, title="test")
    assert done == 20 and sorted(failures) == sorted(f"file {number} is wrong" for number in range(0, 40, 2))
    done, failures = run_jobs(jobs, workers=workers, progress=False, title="test", max_failures=10)
    assert done < 20 and len(failures) < 20 and "were skipped" in failures[-1]

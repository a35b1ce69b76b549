"""OUTPUT_DIR of a run: refused where it is another's, moved aside on request, its own checkpoints alone."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from san.d2.checkpoints import run_folder
from san.d2.checkpoints.checkpointer import (
    SANCheckpointer,
    identity_of,
    latest_checkpoint,
    remove_checkpoint,
    weights_file,
)
from san.d2.checkpoints.run_folder import occupied
from san.d2.run import run
from san.d2.train.checkpoint_hooks import CheckpointHook

MakeCfg = Callable[..., Any]


def save(folder: Path, name: str, iteration: int, run_id: str = "") -> Path:
    """A checkpoint of a tiny module in a run's folder."""
    checkpointer = SANCheckpointer(nn.Linear(2, 2), str(folder), run_id=run_id)
    checkpointer.save(name, iteration=iteration)
    return folder / f"{name}.pth"


def record(folder: Path, run_id: str) -> None:
    (folder / "run.json").write_text(f'{{"id": "{run_id}"}}')


def test_a_used_folder_is_refused_and_left_as_it_is(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    save(folder, "model_0000004", 4, "a")
    (folder / "config.yaml").write_text("as it was")
    with pytest.raises(ValueError, match=r"already has a run \(model_0000004.pth\); .* --resume, .*--move-aside"):
        run(cfg)
    assert (folder / "config.yaml").read_text() == "as it was" and not (folder / "log.txt").exists()
    remove_checkpoint(folder / "model_0000004.pth")
    (folder / "metrics.json").write_text('{"iteration": 3}\n')
    with (
        pytest.raises(ValueError, match=r"already has a run \(metrics.json\)"),
        occupied(folder, resume=False, move_aside=False),
    ):
        pass
    (folder / "metrics.json").write_text("")
    with occupied(folder, resume=False, move_aside=False):  # nothing but what a refused command has left
        pass


def test_a_run_is_moved_aside_with_its_own_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "inference/voc").mkdir(parents=True)
    save(folder, "model_final", 5, "a")
    for name in ("config.yaml", "metrics.json", "log.txt", "log.txt.rank1", "notes.txt"):
        (folder / name).write_text(name)
    with occupied(folder, resume=False, move_aside=True):
        pass
    (moved,) = tmp_path.glob("run-2*")
    assert {path.name for path in folder.iterdir()} == {"notes.txt", ".lock"}
    assert {path.name for path in moved.iterdir()} == {
        "config.yaml", "metrics.json", "log.txt", "log.txt.rank1", "inference", "last_checkpoint", "model_final.pth",
        "model_final.pth.sha256",
    }  # fmt: skip
    with occupied(folder, resume=False, move_aside=True):  # nothing to move
        pass
    assert len(list(tmp_path.glob("run-2*"))) == 1


def test_move_aside_goes_with_a_new_run_alone(make_cfg: MakeCfg) -> None:
    for mode in ("resume", "eval_only"):
        with pytest.raises(ValueError, match="--move-aside makes room for a new run"):
            run(make_cfg(), move_aside=True, **{mode: True})


def test_nothing_is_moved_aside_for_a_run_that_cannot_start(make_cfg: MakeCfg) -> None:
    folder = Path(make_cfg().OUTPUT_DIR)
    folder.mkdir()
    own = save(folder, "model_0000004", 4, "a")
    with pytest.raises(ValueError, match=r"MODEL.WEIGHTS .*model_0000004.pth is in OUTPUT_DIR .*use another"):
        run(make_cfg(MODEL__WEIGHTS=str(own)), move_aside=True)
    with pytest.raises(FileNotFoundError, match=r"gone.pth does not exist; correct MODEL.WEIGHTS"):
        run(make_cfg(MODEL__WEIGHTS=str(folder.parent / "gone.pth")), move_aside=True)
    assert own.is_file() and [path.name for path in folder.parent.glob("run*")] == ["run"]


@pytest.mark.parametrize(
    ("name", "reason"), [("file/run", "Not a directory"), ("x" * 300, "File name too long"), ("a\0b", "null byte")]
)
def test_a_folder_that_cannot_be_made(tmp_path: Path, make_cfg: MakeCfg, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    for eval_only in (False, True):
        with pytest.raises(ValueError, match=f"OUTPUT_DIR .* cannot be created .*{reason}.*; set it to a folder"):
            run(make_cfg(OUTPUT_DIR=str(tmp_path / name)), eval_only=eval_only)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    """Also with --resume and --move-aside; the lock ends with the run."""

    def second() -> None:
        with occupied(tmp_path, resume=True, move_aside=False):
            pass

    def outcome() -> str:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()

        def tell() -> None:
            try:
                second()
                theirs.send("it runs")
            except ValueError as error:
                theirs.send(str(error))

        process = context.Process(target=tell)
        process.start()
        process.join()
        return ours.recv()

    with occupied(tmp_path, resume=False, move_aside=False):
        assert f"another run is training in OUTPUT_DIR {tmp_path} (process {os.getpid()} on " in outcome()
    assert outcome() == "it runs"


@pytest.mark.parametrize("name", ["metrics.json", "last_checkpoint", "config.yaml", "run.json", "log.txt", ".lock"])
def test_a_pipe_instead_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with (
        pytest.raises(ValueError, match=f"{name} is not a regular file"),
        occupied(tmp_path, resume=True, move_aside=False),
    ):
        pass


def test_evaluations_and_refused_commands_leave_the_configuration(reference: Path, make_cfg: MakeCfg) -> None:
    """A run that is complete, too, has nothing to start."""
    before = (reference / "config.yaml").read_text()
    common = {"OUTPUT_DIR": str(reference), "DATASETS__TEST": ["voc_sem_seg_val"], "TEST__NUM_PANELS": 0}
    run(make_cfg(**common), eval_only=True, resume=True)
    assert (reference / "config.yaml").read_text() == before
    assert "NUM_PANELS: 0" in (reference / "inference/config.yaml").read_text()
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        run(make_cfg(**common, DATASETS__TRAIN=[]), resume=True)
    run(make_cfg(**common), resume=True)
    assert (reference / "config.yaml").read_text() == before


def test_a_run_writes_its_id(reference: Path) -> None:
    run_id = run_folder.recorded_run(reference)
    assert run_id and len(run_id) == 16
    assert {identity_of(path) for path in reference.glob("model_*.pth")} == {(run_id, 2), (run_id, 5)}


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"x\0y", b"a" * 5000])
def test_checkpoints_are_found_without_last_checkpoint(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest by its iteration, not by its name or time; a damaged one is skipped."""
    newest = save(tmp_path, "model_0000009", 9, "a")
    save(tmp_path, "model_final", 5, "a")
    (tmp_path / "model_0000011.pth").write_bytes(b"half")
    (tmp_path / "last_checkpoint").unlink()
    if content is not None:
        (tmp_path / "last_checkpoint").write_bytes(content)
    record(tmp_path, "a")
    with caplog.at_level("WARNING", "san.d2.checkpointer"):
        assert latest_checkpoint(tmp_path) == newest == Path(weights_file(str(tmp_path)))
    assert (
        str(tmp_path / "last_checkpoint") in caplog.text
        and "resuming from the newest undamaged checkpoint" in caplog.text
    )


def test_checkpoints_of_an_older_run_are_not_taken(tmp_path: Path) -> None:
    save(tmp_path, "model_final", 39, "old")
    own = save(tmp_path, "model_0000009", 9, "new")
    record(tmp_path, "new")
    (tmp_path / "last_checkpoint").unlink()
    assert latest_checkpoint(tmp_path) == own
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")  # which is gone
    assert latest_checkpoint(tmp_path) == own
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert latest_checkpoint(tmp_path) == own
    remove_checkpoint(own)
    with pytest.raises(ValueError, match=r"model_final.pth belongs to another run .*: no checkpoint in "):
        latest_checkpoint(tmp_path)


def test_checkpoints_without_an_id_are_those_of_a_run_without_one(tmp_path: Path) -> None:
    """Such as those of Detectron2's trainer, which may have continued a run, and of versions without ids."""
    save(tmp_path, "model_0000004", 4)
    final = save(tmp_path, "model_final", 9)
    assert latest_checkpoint(tmp_path) == final
    record(tmp_path, "a")
    assert latest_checkpoint(tmp_path) == final  # last_checkpoint names it
    own = save(tmp_path, "model_0000006", 6, "a")
    (tmp_path / "last_checkpoint").unlink()
    assert latest_checkpoint(tmp_path) == own


def test_only_own_checkpoints_are_removed(tmp_path: Path) -> None:
    old, foreign = save(tmp_path, "model_0000019", 19, "old"), save(tmp_path, "model_0000099", 99)
    checkpointer = SANCheckpointer(nn.Linear(2, 2), str(tmp_path), run_id="new")
    hook = CheckpointHook(checkpointer, period=2, keep=1)
    hook.trainer = type("Trainer", (), {"iter": 0, "start_iter": 0, "max_iter": 6})()  # type: ignore[assignment]
    for hook.trainer.iter in range(6):
        hook.after_step()
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {old.name, foreign.name, "model_0000005.pth", "model_final.pth"}


def test_resuming_goes_on_with_the_run(make_cfg: MakeCfg, reference: Path) -> None:
    """Under its id, also where only its checkpoint is there; an older run's end is not taken for its own."""
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=3)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    shutil.copy(reference / "model_0000002.pth", folder)
    content = torch.load(reference / "model_final.pth", weights_only=True)
    torch.save(content | {"run": "older"}, folder / "model_final.pth")
    record(folder, content["run"])
    run(cfg, resume=True)
    assert run_folder.recorded_run(folder) == content["run"] == identity_of(folder / "model_final.pth").run  # type: ignore[union-attr]
    assert "Resuming at iteration 3 of 6" in (folder / "log.txt").read_text()


def test_make_shapes_runs_again(repo: Path) -> None:
    """A newcomer repeats the first command of the README: the earlier run is moved aside."""
    shown = subprocess.run(["make", "-n", "shapes"], cwd=repo, capture_output=True, text=True, check=True).stdout
    assert " --move-aside " in shown and " OUTPUT_DIR output/shapes_quick" in shown

"""The scripts: help, exit status, summary."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from san.cli.main import main as command
from san.cli.prepare import _SETS
from san.preparation import PREPARATIONS
from tests.data.raw_trees import make_raw_tree


def load(repo: Path, name: str):
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", repo / "datasets" / f"prepare_{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_script_a_set(repo):
    scripts = {path.stem.removeprefix("prepare_") for path in (repo / "datasets").glob("*.py")}
    assert scripts == PREPARATIONS.keys()


def test_the_command_prepares_every_set(tmp_path, capsys):
    assert sorted(_SETS) == sorted(PREPARATIONS)
    tree = make_raw_tree("voc", tmp_path / "raw")
    options = ["--root", str(tmp_path / "root"), "--raw", str(tree.raw), "--workers", "1", "--partial"]
    assert command(["prepare", "voc", *options]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    assert command(["prepare", "voc", *options[:2], "--check", "--partial"]) == 0
    assert command(["prepare", "vok"]) == 2
    assert "choose from" in capsys.readouterr().err


@pytest.mark.parametrize("name", PREPARATIONS)
def test_help(name, repo, capsys):
    with pytest.raises(SystemExit) as stop:
        load(repo, name).main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for option in ("--root", "--raw", "--workers", "--splits", "--link", "--partial", "--check"):
        assert option in text
    for benchmark in PREPARATIONS[name].benchmarks(["train", "val"]):
        assert benchmark.label_dir.split("/")[0] in text


def test_prepare_then_check_as_a_user_does(repo, tmp_path, monkeypatch, capsys):
    tree = make_raw_tree("voc", tmp_path / "raw", archives=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    main = load(repo, "voc").main
    raw = ["--raw", str(tree.raw), "--workers", "1"]

    assert main(["--check", "--workers", "1"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("does not exist; prepare the set") == 2 and output.endswith("NOT OK")
    assert main(raw) == 1, "five images are not the whole set"
    output = capsys.readouterr().out
    assert "voc_sem_seg_train: 5 of 10,582 labels; 5 files written, 0 there before" in output
    assert "problem: 4 labels, but the published set has 1,449" in output and "2 problems" in output
    assert main([*raw, "--partial"]) == 0
    output = capsys.readouterr().out
    assert "0 files written, 5 there before" in output and output.endswith("all is well\n")
    assert main(["--check", "--partial", "--workers", "1", "--splits", "val"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("voc_sem_seg_val\npairs    4 (published: 1,449), 4 read\n") and output.endswith("\nok\n")
    assert "voc_sem_seg_train" not in output
    assert main(["--check", "--workers", "1", "--splits", "val"]) == 1
    assert "WRONG  the number of pairs is not the published one" in capsys.readouterr().out


def test_errors_are_one_line(repo, tmp_path, capsys):
    assert load(repo, "ade20k").main(["--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ADE20K SceneParse150 not found: looked for ") and error.count("\n") == 1
    assert load(repo, "ade20k").main(["--root", str(tmp_path), "--workers", "0"]) == 1
    assert "workers is 0" in capsys.readouterr().err


def test_script_runs_with_worker_processes(repo, tmp_path):
    """Spawned workers import the script again, which must not start it again."""
    tree = make_raw_tree("pcontext", tmp_path / "raw")
    script = repo / "datasets" / "prepare_pcontext.py"
    command = [sys.executable, str(script), "--root", str(tmp_path / "root"), "--raw", str(tree.raw)]
    result = subprocess.run([*command, "--workers", "2", "--partial"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "10 files written" in result.stdout and "8 files written" in result.stdout

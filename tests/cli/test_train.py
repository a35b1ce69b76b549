"""`san train`, `san eval`, and the models of training runs; the run itself is tested in tests/d2."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from san.cli import replay, train
from san.cli.eval import named_weights
from san.cli.main import main, make_parser
from san.cli.options import find_model, path_option
from san.hub import SHAPES_CHECKPOINT, load_pretrained
from san.model.build import build_san
from san.model.config import variant

TINY = """
MODEL:
  DEVICE: cuda
  CLIP: {NAME: tiny, PRETRAINED: "", SHALLOW_DEPTH: 3}
  SIDE_ADAPTER:
    {EMBED_DIM: 144, IMAGE_SIZE: 96, NUM_QUERIES: 10, FUSION: ["0->0", "1->1", "2->2", "3->3"]}
  HEAD: {EMBED_CHANNELS: 32, MLP_CHANNELS: 32}
  ATTN_BIAS: {NUM_HEADS: 3}
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Instead of starting processes, remembers what would be run."""
    calls: list[Any] = []
    monkeypatch.setattr("san.d2.processes.launcher.start_workers", lambda worker, cfg, args: calls.append((cfg, args)))
    return calls


def test_train_passes_everything_on(started: list[Any], repo: Path) -> None:
    config = str(repo / "configs" / "shapes" / "san_shapes_quick.yaml")
    command = ["train", "--config-file", config, "--num-gpus", "2", "--resume", "--data-root", "there"]
    assert main([*command, "SOLVER.MAX_ITER", "7", "MODEL.DEVICE", "cpu"]) == 0
    ((cfg, args),) = started
    assert (cfg.SOLVER.MAX_ITER, cfg.DATASETS.ROOT, args.num_gpus) == (7, "there", 2)
    assert args.resume and not args.eval_only
    assert cfg.is_frozen()


def test_eval_sets_weights_and_subset(started: list[Any], repo: Path) -> None:
    config = str(repo / "configs" / "shapes" / "san_shapes_quick.yaml")
    command = ["eval", "--config-file", config, "--weights", "shapes", "--subset", "5"]
    assert main([*command, "MODEL.DEVICE", "cpu", "DATASETS.TEST", "voc_sem_seg_val"]) == 0
    ((cfg, args),) = started
    assert str(SHAPES_CHECKPOINT) == cfg.MODEL.WEIGHTS
    assert cfg.DATASETS.TEST_SUBSET == 5
    assert list(cfg.DATASETS.TEST) == ["voc_sem_seg_val"]
    assert args.eval_only and not args.resume


def test_weights_of_names_and_files(tmp_path: Path) -> None:
    """MODEL.WEIGHTS takes a folder itself."""
    assert named_weights("shapes") == SHAPES_CHECKPOINT
    assert named_weights(str(tmp_path)) == tmp_path
    assert named_weights("a.pth") == Path("a.pth")


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config-file", "gone.yaml"]) == 1
    assert main(["train", "MODEL.DEVICE", "cpu"]) == 1
    assert main(["eval", "MODEL.DEVICE", "cpu", "DATASETS.TEST", "voc_sem_seg_val"]) == 1
    lines = capsys.readouterr().err.splitlines()
    for line, part in zip(lines, ("gone.yaml does not exist", "DATASETS.TRAIN is empty", "needs weights"), strict=True):
        assert line.startswith("error: ") and part in line


@pytest.mark.parametrize(("end", "code"), [(SystemExit("error: x"), 1), (SystemExit(1), 1), (SystemExit(None), 0)])
def test_the_end_of_a_worker_is_the_exit_code(
    end: SystemExit, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(args: object) -> None:
        raise end

    monkeypatch.setattr(train, "start", start)
    assert main(["train"]) == code
    assert capsys.readouterr().err == ("error: x\n" if end.code == "error: x" else "")


def test_a_training_run_is_a_model(tmp_path: Path) -> None:
    """A run's folder, or its checkpoint and configuration; trained on a GPU, used without one."""
    torch.manual_seed(0)
    model = build_san(variant("tiny"))
    (tmp_path / "config.yaml").write_text(TINY)
    with pytest.raises(FileNotFoundError, match="neither a checkpoint of a run"):
        find_model(str(tmp_path))
    for name in ("model_0000009.pth", "model_0000019.pth"):
        torch.save({"model": model.state_dict(), "iteration": 9}, tmp_path / name)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert find_model(str(tmp_path))[0] == str(tmp_path / "model_0000009.pth")
    torch.save({"model": model.state_dict(), "iteration": 29}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    source, config = find_model(str(tmp_path))
    assert (source, config) == (str(tmp_path / "model_final.pth"), variant("tiny"))
    assert find_model(source, str(tmp_path / "config.yaml")) == (source, config)
    loaded = load_pretrained(source, config)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), atol=0, rtol=0)
    assert find_model("shapes") == ("shapes", None)
    assert find_model("a.pth", "vit_b16") == ("a.pth", "vit_b16")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_options_may_follow_overrides(command: str, started: list[Any], repo: Path) -> None:
    config = str(repo / "configs" / "shapes" / "san_shapes_quick.yaml")
    given = ["SEED", "-1", "--resume", "SOLVER.MAX_ITER=10", "--num-gpus", "2", "OUTPUT_DIR=a=b", "--dataset=no.yaml"]
    module = importlib.import_module(f"san.cli.{command}")
    options = make_parser(module).parse_args(["--config-file", config, *given])
    with pytest.raises(FileNotFoundError, match=r"no.yaml"):
        module.run(options)
    assert main([command, "--config-file", config, *given[:-1]]) == 0
    cfg, args = started[0]
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR, args.num_gpus, args.resume) == (-1, 10, "a=b", 2, True)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "SEED"], "SEED has no value"),
        (["train", "OUTPUT_DIR", "--resume"], "OUTPUT_DIR has no value"),
        (["train", "SEED", "1", "--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_overrides_without_a_value(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["https://example.org/masks", "s3://bucket/masks"])
def test_an_address_is_no_path(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is an address; give a file or folder of this machine"):
        path_option(text)


def test_options_after_the_overrides_of_a_replay_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser(replay).parse_args(["dump.json", "SEED=1", "--iteration", "3"])
    assert "--iteration follows KEY VALUE" in capsys.readouterr().err
    args = make_parser(replay).parse_args(["--iteration", "3", "dump.json", "SEED=1", "A", "b"])
    assert (args.iteration, args.opts) == (3, ["SEED=1", "A", "b"])

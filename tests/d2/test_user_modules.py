"""A meta-architecture of the user's: imported when asked to, trained, saved, loaded and resumed as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from san.cli.main import main
from san.cli.options import find_model
from san.d2.api import META_ARCH_REGISTRY, build_model
from san.d2.checkpoints.checkpointer import SANCheckpointer
from san.d2.config.keys import load_config
from san.d2.run import run
from tests.d2.conftest import TINY, as_arguments

REPO = Path(__file__).resolve().parents[2]

MODULE = """
import torch
from san.d2 import SAN
from san.d2.api import META_ARCH_REGISTRY


@META_ARCH_REGISTRY.register()
class {name}(SAN):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.extra = torch.nn.Linear(2, 1)

    def forward(self, batched_inputs):
        found = super().forward(batched_inputs)
        return found | {{"loss_extra_mask": self.extra.weight.square().sum()}} if self.training else found
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a module in the working directory; it registers a class of its name in capitals."""
    name = f"user_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name.upper()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield name
    sys.modules.pop(name, None)
    META_ARCH_REGISTRY._obj_map.pop(name.upper(), None)


def write_config(path: Path, module: str) -> str:
    path.write_text(f"MODEL: {{META_ARCHITECTURE: {module.upper()}, IMPORTS: [{module}], DEVICE: cpu}}\n")
    return str(path)


def test_a_configuration_of_ones_own_imports(tmp_path: Path, module: str) -> None:
    cfg = load_config(write_config(tmp_path / "my.yaml", module))
    assert [module] == cfg.MODEL.IMPORTS
    assert module in sys.modules


def test_the_command_line_imports(module: str) -> None:
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", module.upper(), "MODEL.DEVICE", "cpu"], imports=[module])
    assert [module] == cfg.MODEL.IMPORTS
    sys.modules.pop(module)
    META_ARCH_REGISTRY._obj_map.pop(module.upper())
    load_config("", ["MODEL.META_ARCHITECTURE", module.upper(), "MODEL.DEVICE", "cpu", "MODEL.IMPORTS", module])
    assert module in sys.modules


@pytest.mark.parametrize("how", ["itself", "its base", "based on another"])
@pytest.mark.parametrize("weights", ["model_final.pth", "model.safetensors", "last_checkpoint"])
def test_a_configuration_beside_weights_imports_nothing(how: str, weights: str, tmp_path: Path, module: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / weights).touch()
    if how == "its base":
        path = str(tmp_path / "my.yaml")
        write_config(tmp_path / "run/config.yaml", module)
        (tmp_path / "my.yaml").write_text("_BASE_: run/config.yaml\n")
    else:
        path = write_config(tmp_path / "run/config.yaml", module)
    if how == "based on another":
        write_config(tmp_path / "base.yaml", module)
        Path(path).write_text("_BASE_: ../base.yaml\n")
    with pytest.raises(ValueError, match=f"in a folder with weights.*--import {module}"):
        load_config(path)
    with pytest.raises(ValueError, match=f"in a folder with weights.*--import {module}"):
        load_config(path, imports=["json"])
    assert module not in sys.modules
    assert [module] == load_config(path, imports=[module]).MODEL.IMPORTS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module", "no_such_module, which is neither in .* nor on Python's path"),
        ("json.no_such_module", "json.no_such_module, which is neither"),
        ("user_module.py", "give a module as Python imports it"),
        ("", "give a module as Python imports it"),
        ("a/b", "give a module as Python imports it"),
        (".relative", "give a module as Python imports it"),
    ],
)
def test_modules_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("", imports=[name])


def test_what_a_module_itself_lacks_is_no_error_of_the_name(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_config("", imports=[module])


def test_an_unregistered_name_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="MODEL.META_ARCHITECTURE is 'MINE'.*--import or in MODEL.IMPORTS"):
        load_config("", ["MODEL.META_ARCHITECTURE", "MINE"])


@pytest.fixture
def make_own(options: dict[str, Any], module: str) -> Callable[..., Any]:
    """A function from changed options to a configuration of the user's class."""
    own = {"MODEL.META_ARCHITECTURE": module.upper(), "DATASETS.TEST": ["voc_sem_seg_val"], "TEST.NUM_PANELS": 0}

    def make(**changes: Any) -> Any:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        return load_config("", as_arguments(options | own | changed), imports=[module])

    return make


def test_modules_of_a_subclass_live_as_long_as_san(
    make_own: Callable[..., Any], module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_voc: Path
) -> None:
    """Trained, saved, resumed, evaluated and predicted with."""
    run(make_own(SOLVER__MAX_ITER=2))
    folder = tmp_path / "run"
    saved = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    cfg = make_own(MODEL__WEIGHTS=folder)
    model = build_model(cfg)
    assert not torch.equal(model.extra.weight, saved["extra.weight"])
    SANCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0)

    whole = run(make_own(SOLVER__MAX_ITER=4, OUTPUT_DIR=tmp_path / "whole"))
    run(make_own(SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=2, OUTPUT_DIR=tmp_path / "halves"))
    (tmp_path / "halves/last_checkpoint").write_text("model_0000001.pth")
    run(make_own(SOLVER__MAX_ITER=4, OUTPUT_DIR=tmp_path / "halves"), resume=True)
    ends = [torch.load(tmp_path / each / "model_final.pth", weights_only=True)["model"] for each in ("whole", "halves")]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert not torch.equal(ends[0]["extra.weight"], saved["extra.weight"])

    command = ["eval", "--config-file", str(tmp_path / "whole/config.yaml"), "--weights", str(tmp_path / "whole")]
    assert main(command) == 1
    assert f"--import {module}" in capsys.readouterr().err
    assert main([*command, "--import", module, "OUTPUT_DIR", str(tmp_path / "again")]) == 0
    again = (tmp_path / "again/inference/voc_sem_seg_val/metrics.json").read_text()
    assert again == (tmp_path / "whole/inference/voc_sem_seg_val/metrics.json").read_text()
    assert whole["voc_sem_seg_val"]["mIoU"] >= 0

    image = next((shared_voc / "VOC2012/JPEGImages").glob("val_*.jpg"))
    predict = [
        "predict",
        str(image),
        "--vocab",
        "cat",
        "--model",
        str(tmp_path / "whole"),
        "--out",
        str(tmp_path / "p"),
    ]
    assert main(predict) == 1
    assert f"--import {module}" in capsys.readouterr().err
    assert main([*predict, "--import", module]) == 0
    assert find_model(str(tmp_path / "whole"), imports=[module])[0] == str(tmp_path / "whole/model_final.pth")


def test_a_checkpoint_without_a_module_of_the_users(
    make_own: Callable[..., Any], make_cfg: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    plain, own = build_model(make_cfg()).state_dict(), build_model(make_own())
    name = type(own).__name__
    with pytest.raises(ValueError, match=rf"{name}.fresh_modules.*extra.weight: missing; extra.bias: missing"):
        own.load_state_dict(plain, strict=False)
    type(own).fresh_modules = ("extra",)
    fresh = own.extra.weight.clone()
    own.load_state_dict(plain)
    assert torch.equal(own.extra.weight, fresh)
    assert "has no extra.bias, extra.weight: the initial weights are kept" in caplog.text
    torch.testing.assert_close({k: v for k, v in own.state_dict().items() if k in plain}, dict(plain), rtol=0, atol=0)
    with pytest.raises(ValueError, match="extra.bias: missing"):
        own.load_state_dict(plain | {"extra.weight": fresh})


@pytest.mark.slow
def test_spawned_workers_import_too(module: str, shared_voc: Path, tmp_path: Path) -> None:
    options = TINY | {"DATASETS.ROOT": shared_voc, "OUTPUT_DIR": tmp_path / "run", "SOLVER.MAX_ITER": 1}
    command = [sys.executable, "-W", "ignore", str(REPO / "tools/train_net.py"), "--import", module, "--num-gpus", "2"]
    overrides = as_arguments(options | {"MODEL.META_ARCHITECTURE": module.upper()})
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([*command, *overrides], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "extra.weight" in torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"]

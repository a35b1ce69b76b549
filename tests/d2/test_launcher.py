"""Starting workers: their number, their device, torchrun, settings of PyTorch."""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from san.d2 import standin
from san.d2.processes import launcher
from san.d2.processes.stopping import StopRequested
from san.d2.standin.launch import launch as standin_launch
from san.d2.train import writers

MakeCfg = Callable[..., Any]
ENGINES = ["standin", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"} | changes))


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes the launcher start workers with one engine."""
    if request.param == "standin":
        monkeypatch.setattr(launcher, "launch", standin_launch)
    else:
        from detectron2.engine import launch

        monkeypatch.setattr(launcher, "launch", launch)
    return str(request.param)


@pytest.mark.parametrize("number", [0, 1])
def test_no_gpu_or_one_runs_in_this_process(engine: str, make_cfg: MakeCfg, number: int) -> None:
    seen: list[Any] = []
    launcher.start_workers(lambda cfg, args: seen.append(args.num_gpus), make_cfg(), arguments(num_gpus=number))
    assert seen == [number]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": -1}, "--num-gpus is -1"),
        ({"num_machines": 0}, "--num-machines is 0"),
        ({"num_gpus": 0, "num_machines": 2}, "0 with 2 machines"),
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank is 2 but --num-machines is 2"),
        ({"num_machines": 2, "machine_rank": -1}, "--machine-rank is -1"),
        ({"machine_rank": 1}, "--machine-rank is 1 but --num-machines is 1"),
        ({"num_machines": 2, "dist_url": "auto"}, "--dist-url auto finds a port on one machine only"),
        ({"num_gpus": 2, "dist_url": "tcp://localhost"}, "--dist-url is 'tcp://localhost'"),
        ({"num_gpus": 2, "dist_url": "tcp://localhost:99999"}, "--dist-url is 'tcp://localhost:99999'"),
        ({"num_gpus": 2, "dist_url": "tcp://[::1"}, r"--dist-url is 'tcp://\[::1'"),
        ({"num_gpus": 2, "dist_url": "localhost:2000"}, "--dist-url is 'localhost:2000'"),
        ({"num_gpus": 2, "dist_url": "tcp://no.such.machine.invalid:2000"}, "no.such.machine.invalid is unknown"),
        ({"num_gpus": 2, "dist_url": "tcp://192.0.2.1:2000"}, "192.0.2.1:2000: this machine cannot listen there"),
    ],
)
def test_numbers_that_start_nothing_are_refused(make_cfg: MakeCfg, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launcher.start_workers(lambda cfg, args: None, make_cfg(), arguments(**changes))


@pytest.mark.parametrize("machines", [1, 2])
def test_a_port_that_is_taken_is_one_error(make_cfg: MakeCfg, machines: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        changes = {"num_gpus": 2, "num_machines": machines, "dist_url": f"tcp://127.0.0.1:{taken.getsockname()[1]}"}
        with pytest.raises(ValueError, match=r"cannot listen there \(Address already in use\).* another free port"):
            launcher.start_workers(lambda cfg, args: None, make_cfg(), arguments(**changes))


def on_device(cfg: Any, device: str) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    return cfg


def test_one_numbered_gpu_is_not_for_several_processes(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(launcher, "launch", lambda main, num_gpus, *args, **kwargs: started.append(num_gpus))
    cfg = on_device(make_cfg(), "cuda:1")
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda:1' but there are 2 processes"):
        launcher.start_workers(lambda cfg, args: None, cfg, arguments(num_gpus=2))
    launcher.start_workers(lambda cfg, args: None, cfg, arguments())
    assert started == [1]


def test_the_numbered_gpu_is_made_the_current_one(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: f"GPU of {chosen}")
    launcher.setup_run(on_device(make_cfg(), "cuda:1"))
    assert chosen == ["cuda:1"]


TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Torchrun's environment, and what is done to the process group."""
    done: list[str] = []
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *a, timeout: done.append(f"init {timeout}"))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: done.append("destroy"))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: bool(done))
    monkeypatch.setattr(launcher.comm, "synchronize", lambda: None)
    monkeypatch.setattr(launcher.comm, "create_local_process_group", lambda number: None)
    return done


def test_torchrun_leaves_the_group_unless_it_has_failed(torchrun: list[str], make_cfg: MakeCfg) -> None:
    def end(error: BaseException) -> Any:
        def main(cfg: Any, args: Any) -> None:
            raise error

        return main

    launcher.start_workers(lambda cfg, args: None, make_cfg(), arguments())
    assert torchrun == ["init 0:30:00", "destroy"]
    torchrun.clear()
    with pytest.raises(SystemExit):
        launcher.start_workers(end(StopRequested()), make_cfg(), arguments())
    assert torchrun == ["init 0:30:00", "destroy"]
    torchrun.clear()
    with pytest.raises(SystemExit):
        launcher.start_workers(end(SystemExit(1)), make_cfg(), arguments())
    assert torchrun == ["init 0:30:00"]


@pytest.mark.parametrize("precision", ["high", "medium", ""])
def test_float32_precision_is_applied(make_cfg: MakeCfg, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    launcher.setup_run(make_cfg(FLOAT32_PRECISION=precision))
    assert asked == ([precision] if precision else [])


def test_memory_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert writers.memory_mib() is not None
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert writers.memory_mib() is None
    line = writers.ProgressLine(max_iter=3)
    monkeypatch.setattr(writers, "get_event_storage", standin.get_event_storage)
    with standin.EventStorage(0) as storage:
        storage.put_scalars(total_loss=1.0)
        line.write()


def test_without_a_home_folder_caches_go_below_the_run(tmp_path, monkeypatch):
    """Under a number that no user of the machine has; iopath would make a folder called ~, wandb fail."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    launcher.place_caches(tmp_path)
    assert os.environ == {"HOME": str(tmp_path)}
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "environ", {"WANDB_CACHE_DIR": "/mine"})
    launcher.place_caches(tmp_path)
    assert os.environ["FVCORE_CACHE"] == os.environ["WANDB_CONFIG_DIR"] == str(tmp_path / "cache")
    assert os.environ["WANDB_CACHE_DIR"] == "/mine"

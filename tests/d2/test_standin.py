"""One contract, both engines: every piece of the stand-in behaves like this, and so does Detectron2 where installed."""

from __future__ import annotations

import importlib
import json
import logging
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.d2.conftest import lines_writer

ENGINES = ["standin", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def load_engine(name: str) -> Any:
    """The names that `san.d2.api` serves, of one engine; both can live in one process."""
    if name == "standin":
        import san.d2.standin

        return san.d2.standin
    parts = ("checkpoint", "config", "data", "engine", "evaluation", "modeling", "utils.events", "utils.logger")
    names: dict[str, Any] = {}
    for part in parts:
        names |= vars(importlib.import_module(f"detectron2.{part}"))
    names["comm"] = importlib.import_module("detectron2.utils.comm")
    return SimpleNamespace(**{name: value for name, value in names.items() if not name.startswith("_")})


@pytest.fixture(params=ENGINES)
def engine(request):
    return load_engine(request.param)


@pytest.fixture(autouse=True)
def _restore_loggers():
    """Removes handlers of a test's log files."""
    names = ["fvcore", "detectron2", "san.d2.standin", "toy"]
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names}
    yield
    for name, (handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:], logger.propagate = handlers, propagate


def test_every_name_of_the_door_is_served(engine):
    """All names that `san.d2.api` imports exist in both backends."""
    import san.d2.api
    import san.d2.standin

    own = {"BACKEND", "BACKEND_REASON", "broadcast", "forget_groups", "forget_log_files", "log_backend"}
    for name in set(san.d2.api.__all__) - own:
        assert hasattr(engine, name), name
    assert set(san.d2.standin.__all__) == set(san.d2.api.__all__) - own


# ------------------------------------------------------------------------------------------------------ configuration


def test_config_base_merge_list_and_freeze(engine, tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 3\nMODEL:\n  DEVICE: cpu\nSOLVER:\n  MAX_ITER: 7\n")
    (tmp_path / "own.yaml").write_text("VERSION: 2\n_BASE_: base.yaml\nSEED: 4\n")
    cfg = engine.get_cfg()
    cfg.merge_from_file(str(tmp_path / "own.yaml"))
    cfg.merge_from_list(["SOLVER.BASE_LR", "1e-4", "DATASETS.TEST", "('a', 'b')", "SOLVER.WEIGHT_DECAY", 0.1])
    assert (cfg.SEED, cfg.MODEL.DEVICE, cfg.SOLVER.MAX_ITER) == (4, "cpu", 7)
    assert (cfg.SOLVER.BASE_LR, cfg.DATASETS.TEST, cfg.SOLVER.WEIGHT_DECAY) == (1e-4, ("a", "b"), 0.1)
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.SEED = 5
    clone = cfg.clone()
    assert clone.is_frozen()
    clone.defrost()
    clone.SEED = 6
    assert cfg.SEED == 4
    assert engine.get_cfg().SEED == -1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["SEED", "abc"], ValueError, "Type mismatch"),
        (["SEED", "1.5"], ValueError, "Type mismatch"),
        (["SOLVER.NO_SUCH", "1"], AssertionError, "NO_SUCH"),
        (["SEED"], AssertionError, "odd length"),
    ],
)
def test_config_refuses_options(engine, options, error, message):
    with pytest.raises(error, match=message):
        engine.get_cfg().merge_from_list(options)


def test_config_refuses_a_file_with_unknown_key_or_wrong_type(engine, tmp_path):
    (tmp_path / "a.yaml").write_text("VERSION: 2\nSOLVER:\n  MAXITER: 3\n")
    with pytest.raises(KeyError, match=r"SOLVER\.MAXITER"):
        engine.get_cfg().merge_from_file(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("VERSION: 2\nSOLVER:\n  MAX_ITER: many\n")
    with pytest.raises(ValueError, match="MAX_ITER"):
        engine.get_cfg().merge_from_file(str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: !!python/object/apply:os.getpid []\n", "Python tags"),
        ("VERSION: 3\n", "VERSION 3; this configuration is VERSION 2"),
        ("VERSION: 1\n", "VERSION 1"),
        ("", "table of keys"),
        ("- 1\n", "table of keys"),
        ("SEED: [1\n", "table of keys"),
    ],
)
def test_standin_refuses_a_file_that_is_no_plain_table(tmp_path, text, message):
    """Intentionally stricter than Detectron2, which runs Python tags and has less clear errors."""
    (tmp_path / "bad.yaml").write_text(text)
    cfg = load_engine("standin").get_cfg()
    with pytest.raises(ValueError, match=message) as refused:
        cfg.merge_from_file(str(tmp_path / "bad.yaml"), allow_unsafe=True)
    assert "bad.yaml" in str(refused.value)
    assert cfg == load_engine("standin").get_cfg()
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        cfg.merge_from_file(str(tmp_path / "none.yaml"))


# ------------------------------------------------------------------------------------------------- catalogs, registry


def test_dataset_catalog(engine):
    catalog = engine.DatasetCatalog
    catalog.register("toy_data", lambda: [{"file_name": "a.png"}])
    try:
        assert catalog.get("toy_data") == [{"file_name": "a.png"}]
        assert "toy_data" in catalog
        assert "toy_data" in catalog.list()
        with pytest.raises(AssertionError, match="already registered"):
            catalog.register("toy_data", list)
    finally:
        catalog.remove("toy_data")
    with pytest.raises(KeyError, match="'toy_data' is not registered! Available datasets are"):
        catalog.get("toy_data")
    with pytest.raises(AssertionError, match="must register a function"):
        catalog.register("toy_data", [])
    with pytest.raises(KeyError):
        catalog.remove("toy_data")


def test_metadata_catalog(engine):
    catalog = engine.MetadataCatalog
    metadata = catalog.get("toy_data")
    try:
        with pytest.raises(AttributeError, match="'stuff_classes'.*'toy_data': metadata is empty"):
            _ = metadata.stuff_classes
        assert metadata.set(stuff_classes=["red star"], ignore_label=255) is metadata
        metadata.ignore_label = 255
        with pytest.raises(AssertionError, match="cannot be set to a different value"):
            metadata.ignore_label = 0
        with pytest.raises(AttributeError, match="Available keys are.*'name', 'stuff_classes', 'ignore_label'"):
            _ = metadata.colours
        assert metadata.get("colours") is None
        assert metadata.get("colours", 1) == 1
        assert metadata.get("name") == "toy_data"
        expected = {"name": "toy_data", "stuff_classes": ["red star"], "ignore_label": 255}
        assert metadata.as_dict() == expected
        assert catalog.get("toy_data") is metadata
        assert "toy_data" in catalog.list()
    finally:
        catalog.remove("toy_data")
    assert "toy_data" not in catalog.list()


def test_build_model(engine):
    name = "ToyArchOfTestStandin"
    if name not in engine.META_ARCH_REGISTRY:

        def build(cfg: Any) -> nn.Module:
            return nn.Linear(cfg.SOLVER.IMS_PER_BATCH, 1)

        engine.META_ARCH_REGISTRY._do_register(name, build)
    cfg = engine.get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = name
    assert engine.build_model(cfg).weight.shape == (1, 16)
    cfg.MODEL.META_ARCHITECTURE = "Nowhere"
    with pytest.raises(KeyError, match="No object named 'Nowhere' found in 'META_ARCH' registry"):
        engine.build_model(cfg)


# -------------------------------------------------------------------------------------------------- storage, writers


def test_event_storage(engine):
    with pytest.raises(AssertionError, match="with EventStorage"):
        engine.get_event_storage()
    with engine.EventStorage(5) as storage:
        assert engine.get_event_storage() is storage
        storage.put_scalar("x", 1)
        storage.put_scalar("y", torch.tensor(2.5), smoothing_hint=False)
        storage.put_scalars(a=1, b=2.0)
        with pytest.raises(AssertionError, match="different smoothing_hint"):
            storage.put_scalar("x", 2, smoothing_hint=False)
        with pytest.raises(KeyError):
            storage.history("nothing")
        assert storage.iter == 5
        assert storage.latest()["y"] == (2.5, 5)
        assert storage.latest()["b"] == (2.0, 5)
        storage.iter = 6
        storage.put_scalar("y", 4, smoothing_hint=False)
        assert storage.latest()["y"] == (4.0, 6)
        assert storage.history("y").values() == [(2.5, 5), (4.0, 6)]
        with engine.EventStorage() as inner:
            assert engine.get_event_storage() is inner
        assert engine.get_event_storage() is storage


def test_smoothing_is_the_median_over_iterations(engine):
    with engine.EventStorage() as storage:
        for storage.iter in range(50):
            storage.put_scalar("noisy", storage.iter)
            storage.put_scalar("exact", storage.iter, smoothing_hint=False)
        assert storage.latest_with_smoothing_hint(20) == {"noisy": (39.5, 49), "exact": (49.0, 49)}
        storage.put_scalar("rare", 2, cur_iter=20)
        storage.put_scalar("rare", 4, cur_iter=40)
        assert [storage.count_samples("rare", size) for size in (20, 21)] == [1, 2]
        assert storage.latest_with_smoothing_hint(21)["rare"] == (3.0, 40)


def test_tensorboard_writer(engine, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with engine.EventStorage() as storage:
        writer = engine.TensorboardXWriter(str(tmp_path))
        for storage.iter in range(4):
            storage.put_scalar("loss", storage.iter)
            if storage.iter % 2:
                writer.write()
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (3, 1.5)]


# ------------------------------------------------------------------------------------------------------- trainer, hooks


def make_trainer(engine: Any, **attributes: Any) -> Any:
    """A trainer that counts, on the given engine."""

    class Toy(engine.TrainerBase):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            vars(self).update(attributes)

        def run_step(self) -> None:
            self.storage.put_scalar("loss", float(self.iter))

    return Toy()


def test_trainer_calls_its_hooks_in_order(engine):
    calls = []

    class Note(engine.HookBase):
        def __init__(self, name: str) -> None:
            self.name = name

        def note(self, what: str) -> None:
            calls.append(f"{self.name} {what} {self.trainer.iter}")

        def before_train(self) -> None:
            self.note("before_train")

        def before_step(self) -> None:
            self.note("before_step")

        def after_backward(self) -> None:
            self.note("after_backward")

        def after_step(self) -> None:
            self.note("after_step")

        def after_train(self) -> None:
            self.note("after_train")

    trainer = make_trainer(engine)
    trainer.register_hooks([Note("a"), None, Note("b")])
    trainer.train(3, 5)
    order = ["before_train 3", *("before_step 3", "after_step 3"), *("before_step 4", "after_step 4"), "after_train 5"]
    assert calls == [f"{name} {call}" for call in order for name in "ab"]
    assert (trainer.iter, trainer.start_iter, trainer.max_iter, trainer.storage.iter) == (5, 3, 5, 5)
    with pytest.raises(AssertionError):
        trainer.register_hooks([3])


def test_trainer_ends_its_hooks_when_a_step_fails(engine, caplog):
    ended = []

    class End(engine.HookBase):
        def before_step(self) -> None:
            if self.trainer.iter == 1:
                raise FloatingPointError("the loss is not finite")

        def after_train(self) -> None:
            ended.append(self.trainer.iter)

    trainer = make_trainer(engine)
    trainer.register_hooks([End()])
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.train(0, 5)
    assert ended == [1]


def test_trainer_state(engine):
    class Keep(engine.HookBase):
        def __init__(self, value: int) -> None:
            self.value = value

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]

    trainer, other, bare = (make_trainer(engine) for _ in range(3))
    trainer.register_hooks([Keep(3), Keep(4), engine.hooks.IterationTimer()])
    other.register_hooks([kept := Keep(0)])
    trainer.train(0, 2)
    state = trainer.state_dict()
    assert state == {"iteration": 2, "hooks": {Keep.__qualname__: {"value": 3}}}
    other.load_state_dict(state)
    assert (other.iter, kept.value) == (2, 3)
    bare.load_state_dict(state)  # a state without its hook is left out
    assert bare.state_dict() == {"iteration": 2}


def test_iteration_timer(engine, caplog):
    trainer = make_trainer(engine)
    seen = []

    class See(engine.HookBase):
        def after_step(self) -> None:
            seen.append("time" in self.trainer.storage.latest())

    trainer.register_hooks([engine.hooks.IterationTimer(), See()])
    trainer.train(0, 4)
    assert seen == [False, False, True, True]
    assert trainer.storage.latest()["time"][0] >= 0


def test_lr_scheduler_hook(engine):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.1}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / 10)
    optimizer.step()
    trainer = make_trainer(engine, optimizer=optimizer, scheduler=scheduler)
    trainer.register_hooks([engine.hooks.LRScheduler()])
    trainer.train(0, 4)
    assert trainer.storage.history("lr").values() == [(0.5 * (1 - i / 10), i) for i in range(4)]
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * 0.6)
    state = trainer.state_dict()["hooks"]["LRScheduler"]
    assert state["last_epoch"] == 4
    fresh = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / 10)
    again = make_trainer(engine, optimizer=optimizer, scheduler=fresh)
    again.register_hooks([engine.hooks.LRScheduler()])
    again.load_state_dict(trainer.state_dict())
    assert fresh.last_epoch == 4


@pytest.mark.parametrize(
    ("sizes", "rates", "expected"),
    [([1, 1, 1, 1], [0.1, 0.2, 0.2, 0.3], 1), ([1, 3, 2], [0.1, 0.2, 0.3], 1), ([2, 2], [0.1, 0.2], 0)],
)
def test_lr_scheduler_picks_a_group(engine, sizes, rates, expected):
    groups = [
        {"params": [nn.Parameter(torch.ones(1)) for _ in range(size)], "lr": rate}
        for size, rate in zip(sizes, rates, strict=True)
    ]
    assert engine.hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(groups)) == expected


def test_evaluation_and_writer_hooks(engine, tmp_path):
    trainer = make_trainer(engine)
    calls = []

    def evaluate() -> dict[str, Any]:
        calls.append(trainer.iter)
        return {"sem_seg": {"mIoU": 3, "IoU": {"red star": 1.5}}, "speed": 2}

    writer = lines_writer(engine, tmp_path / "metrics.json")
    hooks = [engine.hooks.EvalHook(2, evaluate), engine.hooks.PeriodicWriter([writer], 3)]
    trainer.register_hooks(hooks)
    trainer.train(0, 4)
    assert calls == [1, 4]
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    results = {"sem_seg/mIoU": 3.0, "sem_seg/IoU/red star": 1.5, "speed": 2.0}
    assert lines == [
        {"iteration": 2, "loss": 1.0},
        {"iteration": 1, **results},
        {"iteration": 3, "loss": 1.5},
        {"iteration": 4, **results},
    ]


def test_writers_write_periodically_and_after_the_last_iteration(engine):
    class Note(engine.EventWriter):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def write(self) -> None:
            self.calls.append(engine.get_event_storage().iter)

        def close(self) -> None:
            self.calls.append("closed")

    trainer, note = make_trainer(engine), Note()
    trainer.register_hooks([engine.hooks.PeriodicWriter([note], 3)])
    trainer.train(0, 5)
    assert note.calls == [2, 4, 5, "closed"]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [("x", AssertionError, "must return a dict"), ({"a": {"b": "x"}}, ValueError, "nested dict of float.*'a/b: x'")],
)
def test_evaluation_hook_refuses_what_is_no_result(engine, result, error, message):
    trainer = make_trainer(engine)
    trainer.register_hooks([engine.hooks.EvalHook(0, lambda: result)])
    with pytest.raises(error, match=message):
        trainer.train(0, 2)


def test_evaluation_hook_without_result_or_at_the_end(engine):
    trainer = make_trainer(engine)
    calls = []
    trainer.register_hooks([engine.hooks.EvalHook(1, lambda: calls.append(1), eval_after_train=False)])
    trainer.train(0, 3)
    assert len(calls) == 2


# ----------------------------------------------------------------------------------------------------- checkpoint files


def test_checkpointer_reads_what_it_wrote(engine, tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    checkpointer = engine.DetectionCheckpointer(model, str(tmp_path), optimizer=torch.optim.SGD(model.parameters()))
    assert not checkpointer.has_checkpoint()
    checkpointer.save("toy", iteration=4)
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "toy.pth")
    reader = engine.DetectionCheckpointer(other, str(tmp_path), optimizer=torch.optim.SGD(other.parameters()))
    assert reader.resume_or_load("", resume=True) == {"iteration": 4}
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert reader.load("") == {}
    silent = engine.DetectionCheckpointer(model, str(tmp_path / "none"), save_to_disk=False)
    silent.save("toy")
    assert not (tmp_path / "none").exists()


def test_checkpoints_of_a_run_hold_its_trainer(engine, tmp_path):
    class Saving(engine.HookBase):
        def after_step(self) -> None:
            if self.trainer.iter in (5, 9):
                checkpointer.save("model_final" if self.trainer.iter == 9 else "model_0000005", iteration=trainer.iter)

    trainer = make_trainer(engine)
    checkpointer = engine.DetectionCheckpointer(nn.Linear(2, 2), str(tmp_path), trainer=trainer)
    trainer.register_hooks([Saving()])
    trainer.train(0, 10)
    files = {"model_0000005.pth": 5, "model_final.pth": 9}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", *files]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    for name, iteration in files.items():
        content = torch.load(tmp_path / name, weights_only=True)
        assert sorted(content) == ["iteration", "model", "trainer"]
        assert content["iteration"] == iteration
        assert content["trainer"] == {"iteration": iteration}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_checkpointer_takes_a_bare_or_wrapped_model(engine, tmp_path, prefix, wrapped):
    tensors = {f"{prefix}weight": torch.ones(2, 2), f"{prefix}bias": torch.zeros(2)}
    torch.save({"model": tensors} if wrapped else tensors, tmp_path / "toy.pth")
    model = nn.Linear(2, 2)
    assert engine.DetectionCheckpointer(model).load(str(tmp_path / "toy.pth")) == {}
    assert model.weight.eq(1).all()


def test_checkpointer_leaves_out_what_does_not_fit(engine, tmp_path):
    torch.save({"weight": torch.ones(3, 2), "bias": torch.zeros(2)}, tmp_path / "toy.pth")
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    engine.DetectionCheckpointer(model).load(str(tmp_path / "toy.pth"))
    assert model.weight.equal(before)
    assert model.bias.eq(0).all()


def test_checkpointer_refuses_a_missing_file(engine, tmp_path):
    with pytest.raises(AssertionError, match=r"nowhere\.pth not found"):
        engine.DetectionCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("content", [b"garbage", b"", [3]])
def test_standin_refuses_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"bad\.pth"):
        load_engine("standin").DetectionCheckpointer(nn.Linear(2, 2)).load(str(path))


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemError('code ran')",))


def test_standin_runs_no_code_of_a_checkpoint(tmp_path):
    torch.save({"model": {}, "extra": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="plain data are read"):
        load_engine("standin").DetectionCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "bad.pth"))


# ---------------------------------------------------------------------------------------- results, command line, set-up


def test_verify_results(engine):
    cfg = engine.get_cfg()
    assert engine.verify_results(cfg, {"sem_seg": {"mIoU": 1.0}}) is True
    cfg.TEST.EXPECTED_RESULTS = [["sem_seg", "mIoU", 40.0, 1.0]]
    assert engine.verify_results(cfg, {"sem_seg": {"mIoU": 41.0}}) is True
    for missed in (41.5, 38.9, float("nan")):
        with pytest.raises(SystemExit) as stopped:
            engine.verify_results(cfg, {"sem_seg": {"mIoU": missed}})
        assert stopped.value.code == 1
    with pytest.raises(KeyError):
        engine.verify_results(cfg, {"other": {}})


def test_evaluator_base(engine):
    evaluator = engine.DatasetEvaluator()
    evaluator.reset()
    evaluator.process([], [])
    assert evaluator.evaluate() is None


def test_command_line(engine):
    parser = engine.default_argument_parser()
    args = parser.parse_args(["--config-file", "a.yaml", "--resume", "--num-gpus", "2", "SEED", "3"])
    assert (args.config_file, args.resume, args.eval_only, args.num_gpus) == ("a.yaml", True, False, 2)
    assert args.opts == ["SEED", "3"]
    assert "SOLVER.BASE_LR 0.001" in parser.format_help()
    assert engine.default_argument_parser("mine").epilog == "mine"


def test_setup_logger(engine, tmp_path, capsys):
    for _ in range(2):
        logger = engine.setup_logger(str(tmp_path), name="toy", abbrev_name="t")
    assert isinstance(logger, logging.Logger)
    logging.getLogger("toy.part").warning("attention")
    logger.debug("detail")
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert "WARNING" in out[0]
    assert "t.part]:" in out[0]
    assert out[0].endswith("attention")
    log = (tmp_path / "log.txt").read_text()
    assert "part WARNING: attention" in log
    assert "toy DEBUG: detail" in log
    engine.setup_logger(str(tmp_path / "mine.txt"), 2, name="toy")
    assert (tmp_path / "mine.txt.rank2").is_file()


def test_standin_logs_full_names_to_the_file(tmp_path, capsys):
    """Only the terminal abbreviates; Detectron2's file does too, but on worker 0 only."""
    load_engine("standin").setup_logger(str(tmp_path), name="toy", abbrev_name="t")
    logging.getLogger("toy.part").info("hello")
    assert "t.part]: hello" in capsys.readouterr().out
    assert "toy.part INFO: hello" in (tmp_path / "log.txt").read_text()
    logging.getLogger("toy.part").info("caf\udce9.jpg")  # a name that is not UTF-8
    assert "toy.part INFO: caf\\udce9.jpg" in (tmp_path / "log.txt").read_text()


def test_comm_alone(engine):
    comm = engine.comm
    assert isinstance(comm, ModuleType)
    assert (comm.get_rank(), comm.get_local_rank(), comm.get_world_size()) == (0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.gather("x") == comm.all_gather("x") == ["x"]
    assert 0 <= comm.shared_random_seed() < 2**31

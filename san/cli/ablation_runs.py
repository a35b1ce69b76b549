"""The runs of `san ablate`: one `san train` per configuration and seed, in its own folder."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from san.cli.options import RUN_CONFIG
from san.data.metrics_lines import metrics_lines
from san.io.errors import excerpt, listed, one_line, require_extra

if TYPE_CHECKING:
    from san.d2.api import CfgNode

METRICS, FINAL, LOG = "metrics.json", "model_final.pth", "ablate.log"
STOPPED = 75
"""Exit status of a run that stopped on request and can be resumed."""

_PR_SET_PDEATHSIG = 1  # prctl option of Linux: the signal that a process gets when its parent ends

_WITHOUT_EFFECT = ("OUTPUT_DIR", "DATASETS.ROOT", "DATALOADER.", "WANDB.", "MODEL.CLIP.TEXT_CACHE", "MODEL.DEVICE",
                   "MODEL.WEIGHTS", "TEST.PARTIAL_PERIOD", "TEST.NUM_PANELS", "SOLVER.LOG_PERIOD",
                   "SOLVER.CHECKPOINT_")  # fmt: skip
"""Prefixes of keys that may differ between an existing run and the requested one; MODEL.WEIGHTS of a resumed run is its
own checkpoint."""


@dataclass(frozen=True)
class SharedRunOptions:
    """Options of all runs.

    Attributes:
        out: folder of the runs' folders.
        overrides: KEY VALUE pairs.
        datasets: values of --dataset.
        data_root: value of --data-root.
        imports: values of --import.
        num_gpus: value of --num-gpus.
    """

    out: Path
    overrides: Sequence[str] = ()
    datasets: Sequence[str] = ()
    data_root: str = ""
    imports: Sequence[str] = ()
    num_gpus: int = 1

    @property
    def sources(self) -> dict[str, Any]:
        """Return further arguments of `san.d2.config.keys.load_config`."""
        return {"data_root": self.data_root, "datasets": self.datasets, "imports": self.imports}


@dataclass(frozen=True)
class AblationRun:
    """One training run.

    Attributes:
        name: name of the configuration.
        seed: SEED.
        folder: OUTPUT_DIR.
        command: command that trains or resumes it.
        settings: the whole requested configuration.
        after: the run of the list that provides its initial weights, if any.
    """

    name: str
    seed: int
    folder: Path
    command: tuple[str, ...]
    settings: CfgNode = field(repr=False)
    after: AblationRun | None = None

    def final_metrics(self) -> dict[str, float] | None:
        """Return the metrics of the last evaluation, as ``<data set>/<metric>``; None if the run is not finished."""
        path = self.folder / METRICS
        if not path.is_file() or not (self.folder / FINAL).is_file():
            return None
        end, names = self.settings.SOLVER.MAX_ITER, [f"{name}/mIoU" for name in self.settings.DATASETS.TEST]
        rows = [row for _, row in metrics_lines(path) if row is not None and row["iteration"] >= end - 1]
        found = next((row for row in reversed(rows) if all(name in row for name in names)), None)
        return None if found is None else {name: value for name, value in found.items() if "/" in name}

    def check_settings(self) -> None:
        """Check that the folder does not contain a run with other settings.

        Raises:
            ValueError: it does; names the keys that differ.
        """
        from san.d2.config.keys import san_cfg
        from san.d2.config.yaml_file import flatten, merge_file, plain_value

        path = self.folder / RUN_CONFIG
        if not path.is_file():
            return
        content = san_cfg()
        merge_file(content, str(path))  # does not import MODEL.IMPORTS
        there = dict(flatten(content))
        asked = dict(flatten(self.settings))
        wrong = [
            f"{key} is {excerpt(there.get(key))} there and {excerpt(asked.get(key))} here"
            for key in dict.fromkeys([*asked, *there])
            if not key.startswith(_WITHOUT_EFFECT) and plain_value(there.get(key)) != plain_value(asked.get(key))
        ]
        if wrong:
            raise ValueError(
                f"{self.folder} contains a run with other settings ({listed(wrong, separator='; ')}); "
                "give another --out, or move it away"
            )


def configuration_name(path: Path) -> str:
    """Return the last two parts of a path, such as fusion/none, which also name the folder of its runs."""
    return "/".join(path.resolve().with_suffix("").parts[1:][-2:])


def plan_ablation(configs: Sequence[Path], seeds: Sequence[int], common: SharedRunOptions) -> list[AblationRun]:
    """Plan all runs; a run comes after the one that provides its initial weights.

    A configuration starts from another of the list if its MODEL.WEIGHTS is a file in the other's OUTPUT_DIR. Its run
    then uses the file of the other's run with the same seed.

    Raises:
        ValueError, FileNotFoundError: a configuration is missing or invalid, two have one name, or they start from
            each other.
    """
    from san.d2.config.keys import load_config

    names = {configuration_name(path): path for path in reversed(configs)}
    for path in configs:
        other = names[configuration_name(path)]
        if other != path:
            raise ValueError(
                f"{other} and {path} would both be called {configuration_name(path)}; rename a file or its folder"
            )
    as_written = {
        name: load_config(str(names[name]), ["MODEL.DEVICE", "cpu"], imports=common.imports) for name in names
    }
    folders = {Path(cfg.OUTPUT_DIR): name for name, cfg in as_written.items()}
    runs: dict[tuple[str, int], AblationRun] = {}

    def add(name: str, seed: int, waiting: tuple[str, ...] = ()) -> AblationRun:
        if (name, seed) in runs:
            return runs[name, seed]
        if name in waiting:
            raise ValueError(f"{' and '.join(waiting)} start from each other's weights; correct their MODEL.WEIGHTS")
        weights = Path(as_written[name].MODEL.WEIGHTS)
        source = folders.get(weights.parent) if as_written[name].MODEL.WEIGHTS else None
        after = add(source, seed, (*waiting, name)) if source else None
        folder = common.out / name / f"seed{seed}"
        own = ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
        own += ["MODEL.WEIGHTS", str(after.folder / weights.name)] if after else []
        settings = load_config(str(names[name]), [*common.overrides, *own], **common.sources)
        if not settings.DATASETS.TEST:
            raise ValueError(f"{names[name]}: DATASETS.TEST is empty, so there is nothing to compare; name data sets")
        settings.freeze()
        runs[name, seed] = AblationRun(name, seed, folder, _command(names[name], common, own), settings, after)
        return runs[name, seed]

    for path in configs:
        for seed in seeds:
            add(configuration_name(path), seed)
    return list(runs.values())


def _command(config: Path, common: SharedRunOptions, own: Sequence[str]) -> tuple[str, ...]:
    options = ["--config-file", str(config), "--resume"]
    options += ["--num-gpus", str(common.num_gpus)] if common.num_gpus != 1 else []
    options += ["--data-root", common.data_root] if common.data_root else []
    options += [part for each in common.datasets for part in ("--dataset", each)]
    options += [part for each in common.imports for part in ("--import", each)]
    return (sys.executable, "-m", "san", "train", *options, *common.overrides, *own)


def run_serially(runs: Sequence[AblationRun], say: Callable[[str], object]) -> dict[tuple[str, int], str]:
    """Train unfinished runs one after the other. After a failure, only runs that start from it are skipped.

    Args:
        runs: see `plan_ablation`.
        say: called with a line at each start and end.

    Returns:
        reasons of unfinished runs, by name and seed.
    """
    problems: dict[tuple[str, int], str] = {}
    for number, run in enumerate(runs, start=1):
        title = f"[{number}/{len(runs)}] {run.name}, seed {run.seed}"
        problem = ""
        try:
            run.check_settings()
            if run.final_metrics() is not None:
                say(f"{title}: finished before")
                continue
            if run.after and (run.after.name, run.after.seed) in problems:
                raise ValueError(f"not run, as {run.after.name}, whose weights it starts from, is not finished")
            say(f"{title}: {'resumes' if (run.folder / METRICS).is_file() else 'starts'}; log: {run.folder / LOG}")
            run.folder.mkdir(parents=True, exist_ok=True)
            earlier = _size(run.folder / LOG)
            status = run_command(run.command, run.folder / LOG)
            if status == STOPPED:
                problem = "stopped by a signal; the same command resumes it"
            elif status < 0:
                problem = f"was killed by signal {-status}; the same command resumes it"
            elif status or run.final_metrics() is None:
                problem = f"failed with exit status {status} ({last_error(run.folder / LOG, earlier)})"
        except (ValueError, OSError) as error:
            problem = one_line(error)
        if problem:
            problems[run.name, run.seed] = problem
        say(f"{title}: {problem or 'finished'}")
    return problems


def _size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def last_error(log: Path, start: int = 0) -> str:
    """Return the last line of a log with an error, or its last line; bytes before `start` belong to earlier runs."""
    if not log.is_file():
        return "no log"
    with log.open("rb") as file:
        file.seek(max(start, _size(log) - 20_000))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith("error:")]
    return one_line((wrong or lines or ["empty log"])[-1].removeprefix("error: "), limit=300)


def run_command(command: Sequence[str], log: Path, started: Callable[[int], object] = lambda pid: None) -> int:
    """Run a command to its end. Ctrl-C and SIGTERM are forwarded, and raised here after it has saved and ended.

    If this process is killed, the command gets SIGTERM, so that no run continues in the background.

    Args:
        command: command to run.
        log: its output is appended to this file.
        started: called with its process id.

    Returns:
        The exit status; the negative signal number if a signal ended it.

    Raises:
        KeyboardInterrupt, SystemExit: this process received a signal.
    """
    with log.open("ab") as file, _sigterm_raises():
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_SET_CHILD_SIGNALS)
        started(process.pid)
        try:
            return process.wait()
        except BaseException:
            if process.poll() is None:
                process.terminate()
            process.wait()
            raise


def _set_child_signals() -> None:
    """Set the signals of a run, in its process before it starts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends submitit's signal to all processes of a job


_SET_CHILD_SIGNALS = _set_child_signals if hasattr(signal, "SIGUSR2") else None  # Windows has neither


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class TrainingJob:
    """A job of one run; it fails if the run fails, so that a scheduler does not start dependent jobs.

    Attributes:
        command: command of the run.
        log: log file of the run.
    """

    command: Sequence[str]
    log: Path
    _pid: int = 0

    def __call__(self) -> None:
        """Run the command.

        Raises:
            RuntimeError: it fails.
        """
        earlier = _size(self.log)
        if status := run_command(self.command, self.log, partial(setattr, self, "_pid")):
            raise RuntimeError(f"exit status {status}: {last_error(self.log, earlier)}")

    def checkpoint(self) -> Any:
        """End the run, which saves, and return the job that resumes it.

        submitit calls this in a signal handler before the time limit, or if a job is preempted, and queues the job
        again.
        """
        from submitit.helpers import DelayedSubmission

        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)  # the interrupted `run_command` waits for it too
        return DelayedSubmission(TrainingJob(self.command, self.log))


def submit_jobs(
    runs: Sequence[AblationRun], cluster: str, folder: Path, options: Mapping[str, Any]
) -> dict[tuple[str, int], str]:
    """Submit unfinished runs with submitit, one job per run; return job ids by name and seed.

    Args:
        runs: see `plan_ablation`.
        cluster: slurm, or local for processes on this machine.
        folder: folder for submitit's files.
        options: parameters of submitit's executor, such as slurm_partition.

    Raises:
        MissingExtraError: submitit is not installed.
        ValueError: a folder contains a run with other settings, or the scheduler or an option is not valid.
    """
    require_extra("slurm", "san ablate --submit", "submitit")
    import submitit

    for run in runs:
        run.check_settings()
    jobs: dict[tuple[str, int], str] = {}
    for run in runs:
        if run.final_metrics() is not None:
            continue
        own: dict[str, Any] = {"name": f"{run.name}-{run.seed}".replace("/", "-"), **options}
        earlier = jobs.get((run.after.name, run.after.seed)) if run.after else None
        if earlier and cluster == "slurm":
            more = own.get("slurm_additional_parameters", {})
            own["slurm_additional_parameters"] = {**more, "dependency": f"afterok:{earlier}"}
        elif earlier:
            raise ValueError(f"{run.name} starts from a run of the list, which jobs of this machine do not wait for")
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            executor.update_parameters(**own)
            job = executor.submit(TrainingJob(run.command, run.folder / LOG))
        except (RuntimeError, NameError, TypeError, AssertionError) as error:  # raised by submitit
            before = ", ".join(f"{name}, seed {seed}: job {job}" for (name, seed), job in jobs.items())
            raise ValueError(
                f"{run.name}, seed {run.seed} cannot be submitted ({one_line(error, limit=600)}); correct --job, or "
                f"train without --submit{'. Submitted before: ' if before else ''}{before}"
            ) from None
        jobs[run.name, run.seed] = job.job_id
    return jobs

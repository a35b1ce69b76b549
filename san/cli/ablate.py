r"""Train configurations with several seeds, and compare them in one table.

Examples:
  san ablate configs/ablations/shapes/base.yaml configs/ablations/shapes/fusion/*.yaml --seeds 0,1,2
  san ablate configs/ablations/shapes/{base,heads/coupled}.yaml --seeds 0 SOLVER.MAX_ITER 100 DATASETS.TEST_SUBSET 50
  san ablate configs/ablations/base.yaml configs/ablations/queries/*.yaml --num-gpus 8 --submit slurm \
    --job timeout_min=1440 --job slurm_partition=gpu
  san ablate configs/ablations/base.yaml configs/ablations/queries/*.yaml --collect

Each run is a `san train` process in OUT/<folder>/<name>/seed<N>, the last two parts of the configuration's path. The
same command again skips finished runs and resumes the others. A run that fails is reported, and the others go on.
Writes ablation.md, ablation.csv and ablation.png to OUT. KEY VALUE or KEY=VALUE change all configurations. See
docs/ablations.md.

Exit codes: 0 all runs are finished, or submitted; 1 one is not, or an error; 2 wrong command line; 75 asked to stop;
130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.main import DONE, ERROR
from san.cli.options import add_dataset_options, path_option
from san.cli.train import Overrides
from san.io.errors import excerpt

if TYPE_CHECKING:
    from san.cli.ablation_runs import AblationRun
    from san.evaluation.ablation import AblationResult

MAX_SEEDS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.usage = "%(prog)s CONFIG [CONFIG ...] [options] [KEY VALUE ...]"
    parser.add_argument(
        "--seeds", type=_seeds, default=(0, 1, 2), metavar="N,N,...", help="SEED of the runs (default: 0,1,2)"
    )
    parser.add_argument(
        "--base", type=path_option, metavar="CONFIG", help="reference of the differences (default: the first one)"
    )
    parser.add_argument(
        "--out",
        type=path_option,
        default=Path("output/ablate"),
        metavar="DIR",
        help="folder of the runs and the table (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a column of the table, such as shapes_sem_seg_val_mixed/mIoU-novel; may be repeated (default: the mIoU "
        "of every data set; ablation.csv has all metrics)",
    )
    add_dataset_options(parser)
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs, or processes on the CPU, of each run (default: 1)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print the commands of the runs, and run nothing")
    how.add_argument("--collect", action="store_true", help="run nothing; make the table of what is finished")
    how.add_argument(
        "--submit",
        choices=("slurm", "local"),
        help="submit each unfinished run with submitit, to Slurm or as processes of this machine, and return; "
        "--collect makes the table later",
    )
    parser.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of submitit's executor, such as timeout_min=600 or slurm_partition=gpu; may be repeated",
    )
    parser.set_defaults(configs=[])
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        action=_ConfigsAndOverrides,
        metavar="CONFIG ... KEY VALUE",
        help="configuration files (.yaml), then changes of all of them",
    )


class _ConfigsAndOverrides(Overrides):
    """Parses the configuration files at the beginning; `Overrides` parses the rest."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given: list[str] = [*values]
        files = list(takewhile(lambda each: each.endswith((".yaml", ".yml")) and "=" not in each, given))
        namespace.configs = [*(getattr(namespace, "configs", None) or []), *map(path_option, files)]
        super().__call__(parser, namespace, given[len(files) :], option_string)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(each) for each in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{excerpt(text)} is not a list of seeds; give whole numbers, such as 0,1,2"
        ) from None
    if min(found) < 0 or max(found) >= 2**63 or len(found) > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"{excerpt(text)}: give 1 to {MAX_SEEDS} seeds within 0..2**63 - 1")
    return found


def run(args: argparse.Namespace) -> int:
    """Plan, run and compare; return the exit code.

    Raises:
        ValueError, FileNotFoundError: a configuration or an option is wrong.
        MissingExtraError: --submit without submitit.
    """
    from san.cli.ablation_runs import SharedRunOptions, configuration_name, plan_ablation, run_serially, submit_jobs

    listed = {path.resolve(): path for path in args.configs}
    configs = [*([args.base] if args.base and args.base.resolve() not in listed else []), *listed.values()]
    if not args.configs:
        raise ValueError("no configuration is given; name YAML files, such as configs/ablations/shapes/base.yaml")
    options = _job_options(args.job)
    common = SharedRunOptions(args.out, args.opts, args.dataset, args.data_root, args.imports, args.num_gpus)
    runs = plan_ablation(configs, args.seeds, common)
    if args.dry_run:
        for each in runs:
            print(shlex.join(each.command))
        return DONE
    if args.submit:
        jobs = submit_jobs(runs, args.submit, args.out / "jobs", options)
        for (name, seed), job in jobs.items():
            print(f"{name}, seed {seed}: job {job}")
        print(f"{len(jobs)} jobs are submitted; the same command with --collect instead of --submit makes the table")
        return DONE
    problems = {} if args.collect else run_serially(runs, lambda line: print(line, flush=True))
    results = collect(runs, problems)
    base = next(each for each in results if each.name == configuration_name(args.base or configs[0]))
    write_table(results, base, args.out, args.metric or default_metrics(runs), args.opts)
    return ERROR if any(each.problems for each in results) else DONE


def _job_options(given: Sequence[str]) -> dict[str, Any]:
    """Parse the values of --job; whole numbers become int.

    Raises:
        ValueError: a value is not KEY=VALUE.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--job {excerpt(text)} is not KEY=VALUE, such as timeout_min=600")
        found[key] = int(value) if value.isdecimal() else value
    return found


def default_metrics(runs: Sequence[AblationRun]) -> list[str]:
    """Return the mIoU of every data set that a run evaluates."""
    return list(dict.fromkeys(f"{name}/mIoU" for each in runs for name in each.settings.DATASETS.TEST))


def collect(runs: Sequence[AblationRun], problems: dict[tuple[str, int], str]) -> list[AblationResult]:
    """Return the results of each configuration's finished runs, in the order of the list.

    Args:
        runs: all runs.
        problems: reasons of unfinished runs, by name and seed.
    """
    from san.evaluation.ablation import AblationResult

    seeds: dict[str, dict[int, dict[str, float]]] = {}
    missing: dict[str, dict[int, str]] = {}
    for each in runs:
        seeds.setdefault(each.name, {})
        problem = problems.get((each.name, each.seed), "")
        try:
            each.check_settings()
            found = None if problem else each.final_metrics()
        except (ValueError, OSError) as error:
            found, problem = None, problem or str(error)
        if found is None:
            missing.setdefault(each.name, {})[each.seed] = problem or "not finished"
        else:
            seeds[each.name][each.seed] = found
    return [AblationResult(name, values, missing.get(name, {})) for name, values in seeds.items()]


def write_table(
    results: Sequence[AblationResult], base: AblationResult, out: Path, metrics: Sequence[str], changes: Sequence[str]
) -> None:
    """Print the table, and write it as Markdown, CSV and a picture.

    Args:
        results: in the order of the rows.
        base: the reference, one of them.
        out: folder to write to.
        metrics: the columns.
        changes: KEY VALUE pairs of all runs, for the headings.

    Raises:
        ValueError: the runs have no metric of this name.
    """
    from san.evaluation.ablation import ablation_cell, ablation_csv, ablation_markdown
    from san.io.files import write_text, write_together
    from san.visualize import drawing
    from san.visualize.ablation_plot import AblationBar, plot_ablation

    known = {name for each in results for values in each.seeds.values() for name in values}
    unknown = [name for name in metrics if known and name not in known]
    if unknown:
        raise ValueError(
            f"--metric {excerpt(unknown[0])} is not a metric of these runs; there are {', '.join(sorted(known))}"
        )
    heading = f"Ablation, changes for all: {shlex.join(changes)}" if changes else "Ablation"
    table = ablation_markdown(results, base, metrics)
    text = f"# {heading}\n\n{table}"
    write_together(
        {
            out / "ablation.md": lambda path: write_text(path, text),
            out / "ablation.csv": lambda path: write_text(path, ablation_csv(results, base)),
        }
    )
    columns: dict[str, list[AblationBar]] = {}
    for metric in metrics:
        for each in results:
            cell = ablation_cell(each, base, metric)
            bar = AblationBar(each.name, list(cell.values.values()), cell.mean, cell.spread, each is base)
            columns.setdefault(metric, []).append(bar)
    with drawing(out / "ablation.png"):
        plot_ablation(columns, out / "ablation.png", title=heading)
    print(f"\n{table}\n{out / 'ablation.md'}, ablation.csv, ablation.png")

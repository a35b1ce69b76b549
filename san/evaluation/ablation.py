"""Formats an ablation as Markdown and CSV: means and spreads over seeds, and differences to a base."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AblationResult:
    """The results of one configuration.

    Attributes:
        name: name of the configuration, unique in a table.
        seeds: metrics in percent by name, for each seed with a finished run.
        problems: the reason why a seed has no result, one line each.
    """

    name: str
    seeds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    problems: Mapping[int, str] = field(default_factory=dict)

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric by seed, without NaN (no class occurs)."""
        found = {seed: values[metric] for seed, values in self.seeds.items() if metric in values}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}


@dataclass(frozen=True)
class AblationCell:
    """One metric of one configuration.

    Attributes:
        values: value by seed.
        mean: None without a value.
        spread: sample standard deviation over the seeds; None for fewer than two.
        difference: mean difference to the base over the seeds that both have; None if they share none.
    """

    values: Mapping[int, float]
    mean: float | None
    spread: float | None
    difference: float | None


def ablation_cell(result: AblationResult, base: AblationResult, metric: str) -> AblationCell:
    """Return a metric of a configuration, compared with the base."""
    own, other = result.values(metric), base.values(metric)
    pairs = [value - other[seed] for seed, value in own.items() if seed in other]
    return AblationCell(
        own,
        statistics.fmean(own.values()) if own else None,
        statistics.stdev(own.values()) if len(own) > 1 else None,
        statistics.fmean(pairs) if pairs and result is not base else None,
    )


def ablation_markdown(results: Sequence[AblationResult], base: AblationResult, metrics: Sequence[str]) -> str:
    """Format the Markdown table, one row per configuration, followed by the reasons for missing runs.

    Args:
        results: in the order of the rows.
        base: one of them.
        metrics: the metrics to show; each has a column for its value and one for the difference.
    """
    head = ["configuration", "seeds", *(part for metric in metrics for part in (metric, "difference"))]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for result in results:
        cells = [f"{result.name} (base)" if result is base else result.name, str(len(result.seeds))]
        for metric in metrics:
            cell = ablation_cell(result, base, metric)
            spread = "" if cell.spread is None else f" ± {cell.spread:.1f}"
            cells.append("–" if cell.mean is None else f"{cell.mean:.1f}{spread}")
            cells.append("" if cell.difference is None else f"{cell.difference:+.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Percent; ±: sample standard deviation over seeds. A difference is the mean over the seeds that both have.",
    ]
    missing = [f"- {each.name}, seed {seed}: {why}" for each in results for seed, why in each.problems.items()]
    return "\n".join([*lines, *(["", "Missing:", "", *missing] if missing else [])]) + "\n"


def ablation_csv(results: Sequence[AblationResult], base: AblationResult) -> str:
    """Format a CSV table with one row per metric and configuration; missing values are empty.

    Args:
        results: in the order of the rows.
        base: one of them.
    """
    names = dict.fromkeys(name for result in results for values in result.seeds.values() for name in values)
    seeds = sorted({seed for result in results for seed in (*result.seeds, *result.problems)})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["configuration", "metric", *(f"seed {seed}" for seed in seeds), "mean", "spread", "difference to base"]
    )
    for result in results:
        for metric in names:
            cell = ablation_cell(result, base, metric)
            numbers = [*(cell.values.get(seed) for seed in seeds), cell.mean, cell.spread, cell.difference]
            writer.writerow([result.name, metric, *("" if each is None else f"{each:.4f}" for each in numbers)])
    return text.getvalue()

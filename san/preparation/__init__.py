"""Converts the publishers' downloads of the benchmarks to the folders that `san.data.benchmarks` registers.

`prepare(name, PreparationOptions(root=...))` converts, and `check` checks the result with `san.data.checking`;
`datasets/prepare_<name>.py` are the command lines.
The module of each set finds its download (`sources`, `archives`) and lists one job per file (`plan`). The jobs run in
worker processes (`jobs`) and write each file atomically (`files`).
"""

from san.preparation.engine import PREPARATIONS, SplitSummary, Summary, check, prepare
from san.preparation.sources import PreparationOptions

__all__ = ["PREPARATIONS", "PreparationOptions", "SplitSummary", "Summary", "check", "prepare"]

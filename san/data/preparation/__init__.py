"""From the publishers' downloads of the six benchmarks to the folders that `san.data.benchmarks` registers.

`prepare(name, Options(root=...))` converts, `check` has `san.data.checking` read the result;
`datasets/prepare_<name>.py` are their command lines.
Each set's module finds its download (`sources`, `archives`) and lists one job a file (`plan`), which run in a few
processes (`jobs`) and write each file whole or not at all (`files`).
"""

from san.data.preparation.engine import PREPARATIONS, SplitSummary, Summary, check, prepare
from san.data.preparation.sources import Options

__all__ = ["PREPARATIONS", "Options", "SplitSummary", "Summary", "check", "prepare"]

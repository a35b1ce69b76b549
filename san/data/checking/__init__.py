"""Checking a data set on disk: every pair read, every file name looked at, one report; one bad file stops nothing.

`check_pairs` reads, in any number of processes, `check_folders` looks at the names, `summarise` adds up to a
`CheckReport`, and `san.data.checking.writing` makes text, CSV and JSON of it.
"""

from san.data.checking.benchmark import check_benchmark, make_target
from san.data.checking.folders import Folder, check_folders
from san.data.checking.pair import CheckTarget, Finding, PairResult, check_pair
from san.data.checking.processes import check_pairs
from san.data.checking.report import CheckReport, failed_report, summarise
from san.data.checking.writing import format_classes, format_report, write_check_report, write_classes

__all__ = [
    "CheckReport",
    "CheckTarget",
    "Finding",
    "Folder",
    "PairResult",
    "check_benchmark",
    "check_folders",
    "check_pair",
    "check_pairs",
    "failed_report",
    "format_classes",
    "format_report",
    "make_target",
    "summarise",
    "write_classes",
    "write_check_report",
]

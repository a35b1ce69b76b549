"""Checks a data set on disk: reads every pair, inspects every file name, and continues after a bad file.

`check_pairs` reads the pairs in any number of processes, `check_folders` checks the names, `summarise` builds a
`CheckReport`, and `san.data.checking.writing` writes it as text, CSV and JSON.
"""

from san.data.checking.benchmark import check_benchmark, make_target
from san.data.checking.folders import Folder, check_annotations, check_folders
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
    "check_annotations",
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

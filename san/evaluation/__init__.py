"""Confusion matrix, the benchmarks' metrics, and the files that an evaluation writes."""

from san.evaluation.confusion import ConfusionMatrix
from san.evaluation.metrics import metrics
from san.evaluation.predictions import RLEWriter, rle_entries, write_label_map
from san.evaluation.report import format_summary, write_report

__all__ = [
    "ConfusionMatrix",
    "RLEWriter",
    "format_summary",
    "metrics",
    "rle_entries",
    "write_label_map",
    "write_report",
]

"""Stands in for `detectron2.evaluation`: the interface of evaluators, and the check of final results."""

from __future__ import annotations

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from san.d2.standin.config import CfgNode


class DatasetEvaluator:
    """Base class of evaluators: `reset`, then `process` for every batch, then `evaluate`."""

    def reset(self) -> None:
        """Reset the results."""

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Process one batch.

        Args:
            inputs: inputs of the model, one dictionary per image.
            outputs: outputs of the model, one per image.
        """

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the results.

        Returns:
            Task → metric → score; None on workers that have no result.
        """
        return None


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Check results against ``TEST.EXPECTED_RESULTS``; ends the program with status 1 if one is missed.

    Args:
        cfg: its ``TEST.EXPECTED_RESULTS`` lists (task, metric, value, tolerance).
        results: task → metric → score.

    Returns:
        True: all are met, or none was expected.

    Raises:
        KeyError: if a task is expected that has no results.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    logger = logging.getLogger(__name__)
    met = True
    for task, metric, value, tolerance in expected:
        actual = results[task].get(metric)
        # Written so that NaN is missed.
        if actual is None or not math.isfinite(actual) or not abs(actual - value) <= tolerance:
            met = False
    if met:
        logger.info("Results verification passed.")
        return True
    logger.error("Result verification failed!")
    logger.error("Expected Results: %s", expected)
    logger.error("Actual Results: %s", pprint.pformat(results))
    sys.exit(1)

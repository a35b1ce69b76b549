"""Evaluation: predicting, counting, resuming, and falling back when memory is short."""

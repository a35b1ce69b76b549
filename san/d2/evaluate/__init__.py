"""Evaluation: prediction, confusion matrix, resuming, and the fallback when GPU memory runs out."""

"""Data sets, samples and loaders of training and evaluation."""

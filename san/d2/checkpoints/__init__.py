"""Checkpoint files, the folder of a run, and the state of a trainer."""

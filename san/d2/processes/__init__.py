"""Starts and ends the processes of a run."""

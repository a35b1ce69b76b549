"""Measuring the project: cases as data, each in a process of its own, beside the floor that this machine sets."""

"""Benchmarks: each case is measured in its own process and compared with the machine's floor."""

"""Freed large buffers stay with the process, if the C library supports it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, sys
if sys.argv[1] == "keep":
    from san.allocator import keep_large_buffers
    assert keep_large_buffers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    buffer = bytearray(32 << 20)
    buffer[::4096] = b"x" * len(buffer[::4096])
    del buffer
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is configured")
def test_pages_are_not_fetched_again(repo):
    faults = {}
    for mode in ("system", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", PROBE, mode], cwd=repo, capture_output=True, text=True, timeout=60, check=True
        )
        faults[mode] = int(done.stdout)
    assert faults["keep"] < faults["system"] / 4, faults

"""Machines for tests of jobs on several of them: this one alone, or two network namespaces joined by a cable."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@dataclass(frozen=True)
class Machine:
    """Where a process runs.

    Attributes:
        address: under which others reach it.
        namespace: of the network; empty for that of this process.
        environment: what processes on it need.
    """

    address: str = "127.0.0.1"
    namespace: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def on(self, action: Callable[[], Any]) -> Callable[[], Any]:
        """A function that does something on this machine; for a process of its own, which moves there."""
        return functools.partial(_in_network, self.namespace, action) if self.namespace else action


def _in_network(namespace: str, action: Callable[[], Any]) -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")
    return action()


@contextlib.contextmanager
def two_machines() -> Iterator[list[Machine]]:
    """Two network namespaces, which reach each other and nothing else; skips the test where none can be made."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the command ip, and root")
    number = os.getpid() % 100_000
    names = [f"san{number}{end}" for end in "ab"]
    with contextlib.ExitStack() as cleanup:
        for name in names:
            if _ip("netns", "add", name).returncode:
                pytest.skip("this machine makes no network namespaces")
            cleanup.callback(_ip, "netns", "delete", name)
        made = [_ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1])]
        machines = []
        for index, name in enumerate(names):
            address = f"10.83.61.{index + 1}"
            made.append(_ip("-n", name, "address", "add", f"{address}/24", "dev", name))
            made += [_ip("-n", name, "link", "set", device, "up") for device in ("lo", name)]
            machines.append(Machine(address, name, {"GLOO_SOCKET_IFNAME": name}))
        failed = [each.stderr for each in made if each.returncode]
        if failed:
            pytest.skip(f"two network namespaces cannot be joined: {failed[0]}")
        yield machines


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)

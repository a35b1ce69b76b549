"""Reads the rank of this process in a job started by torchrun, srun or another launcher from the environment."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_FIRST_PORT, _NUM_PORTS = 15000, 15000
"""Ports from which the id of a Slurm job selects one; below the ephemeral ports of systems."""


@dataclass(frozen=True)
class JobRank:
    """The rank of one process in a job, and the address of the job.

    Attributes:
        rank: global rank, 0 .. world_size - 1.
        world_size: number of processes.
        local_rank: rank on this machine.
        local_world_size: number of processes per machine.
        address: address of the machine of rank 0.
        port: port on which rank 0 listens.
        source: the launcher, for messages.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    source: str

    def as_variables(self) -> dict[str, str]:
        """Return the environment variables that PyTorch reads."""
        numbers = (self.rank, self.world_size, self.local_rank, self.local_world_size)
        return dict(zip(_VARIABLES, (*map(str, numbers), self.address, str(self.port)), strict=True))


def find_rank(environment: Mapping[str, str]) -> JobRank | None:
    """Return the rank of this process according to the environment; None if no launcher has started it.

    torchrun sets RANK and WORLD_SIZE; if other variables of it are missing, those of Slurm are used. Without RANK and
    WORLD_SIZE, an srun step with several tasks is one job with one process per task.

    Raises:
        ValueError: a variable is missing or invalid.
    """
    slurm = _slurm_variables(environment)
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        if not slurm:
            return None
        found, source = slurm | {key: environment[key] for key in _ADDRESS_VARIABLES if key in environment}, "srun"
    else:
        if "RANK" not in environment and environment["WORLD_SIZE"] == "1":
            return None
        found, source = slurm | {key: environment[key] for key in _VARIABLES if key in environment}, "the launcher"
    missing = [key for key in _VARIABLES if key not in found]
    if missing:
        shown = ", ".join(f"{key} {value}" for key, value in found.items())
        raise ValueError(
            f"{source} has set {shown}, but not {', '.join(missing)}; start with torchrun or srun, set "
            f"{' and '.join(missing)}, or unset RANK and WORLD_SIZE to run this process alone"
        )
    numbers = {key: _number(key, found[key]) for key in _VARIABLES if key != "MASTER_ADDR"}
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if not 0 <= numbers[rank] < numbers[size]:
            raise ValueError(f"{rank} is {numbers[rank]} but {size} is {numbers[size]}; set it to 0 .. {size} - 1")
    if numbers["WORLD_SIZE"] % numbers["LOCAL_WORLD_SIZE"]:
        raise ValueError(
            f"{numbers['WORLD_SIZE']} processes are not a multiple of {numbers['LOCAL_WORLD_SIZE']} per machine; start "
            "the same number on every machine (srun --ntasks-per-node)"
        )
    return JobRank(
        numbers["RANK"],
        numbers["WORLD_SIZE"],
        numbers["LOCAL_RANK"],
        numbers["LOCAL_WORLD_SIZE"],
        found["MASTER_ADDR"],
        numbers["MASTER_PORT"],
        source,
    )


_ADDRESS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *_ADDRESS_VARIABLES)
"""The variables that torchrun sets."""


def _slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those of `_VARIABLES` that Slurm knows; none outside an srun step, or in one with a single task."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment or tasks == "1":
        return {}
    found = {"RANK": environment["SLURM_PROCID"], "WORLD_SIZE": tasks}
    if "SLURM_LOCALID" in environment:
        found["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", ""))
    spread = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NTASKS_PER_NODE", ""))
    if nodes == "1":
        found["LOCAL_WORLD_SIZE"] = tasks
    elif re.fullmatch(r"\d+(\(x\d+\))?", spread):  # 4(x2): four tasks on each of two nodes
        found["LOCAL_WORLD_SIZE"] = spread.partition("(")[0]
    elif "," in spread:
        raise ValueError(f"srun spreads its tasks unevenly over nodes ({spread}); use srun --ntasks-per-node")
    listed = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    if nodes == "1":
        found["MASTER_ADDR"] = "127.0.0.1"
    elif listed:
        found["MASTER_ADDR"] = first_host(listed)
    job, step = environment.get("SLURM_JOB_ID", ""), environment["SLURM_STEP_ID"]
    if job.isdecimal() and step.isdecimal():
        found["MASTER_PORT"] = str(_FIRST_PORT + (int(job) + 997 * int(step)) % _NUM_PORTS)
    return found


def first_host(listed: str) -> str:
    """Return the first host of a Slurm host list such as ``node[03-07,12],gpu1``."""
    first = re.split(r",(?![^\[]*\])", listed)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _number(name: str, text: str) -> int:
    """Parse the value of a variable."""
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"the environment variable {name} is {text[:80]!r}; set it to a number")
    return int(text)


def check_dist_url(url: str, *, machines: int, here: bool) -> None:
    """Check that processes can connect at an address, before they wait for each other.

    Args:
        url: ``--dist-url``.
        machines: number of machines.
        here: whether rank 0, which listens, is on this machine.

    Raises:
        ValueError: it is not an address, its host is unknown or not this machine, or its port is in use.
    """
    if url == "auto":
        if machines > 1:
            raise ValueError(
                f"--dist-url auto finds a port on one machine only, but there are {machines}; use "
                "tcp://<first machine>:<free port>, the same on every machine"
            )
        return
    if url.startswith("file:///"):
        return
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        fits = parts.scheme == "tcp" and parts.path in ("", "/")
    except ValueError:  # an invalid port or host, such as half of [::1]
        host, port, fits = None, None, False
    if not fits or not host or not port:
        raise ValueError(
            f"--dist-url is {url[:200]!r}; use tcp://<first machine>:<port>, a port of 1 to 65535, or auto on one "
            "machine"
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"--dist-url {url}: the host {host} is unknown ({error.strerror or error})") from None
    if not here:
        return
    if machines > 1:  # others may reach this machine at an address that it does not know
        family, address = socket.AF_INET, ("", port)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        free = "another free port, or auto" if machines == 1 else "another free port, the same on every machine"
        raise ValueError(
            f"--dist-url {url}: this machine cannot listen there ({error.strerror or error}); does another run use "
            f"this port? Use {free}"
        ) from None

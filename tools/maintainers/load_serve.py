"""Load `san serve` on this machine: times, throughput, memory, and whether every client gets its own answer.

    python tools/maintainers/load_serve.py                                        # the shapes model
    python tools/maintainers/load_serve.py --memory 2000                          # and memory over 2,000 requests
    python tools/maintainers/load_serve.py --requests 3 --format overlay -- --variant vit_b16

What follows -- goes to `san serve`. Every client has a picture and words of its own, and compares each answer with the
one that it got while it was alone. Prints rows of docs/serve.md; exits with 1 after a wrong answer or an error.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

from san.shapes.render import render
from san.shapes.world import NAMES, scene_at

_SAME = 0.99  # of the pixels; a batch rounds otherwise than a single picture


@dataclass
class LoadClient:
    """One client: its own picture and words, on one connection."""

    url: str
    number: int
    side: int
    form: str
    times: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        pictures, _ = render([scene_at(8, self.number)], self.side)
        buffer = io.BytesIO()
        Image.fromarray(pictures[0]).save(buffer, "PNG")
        self.picture = buffer.getvalue()
        self.words = ", ".join(np.roll(NAMES, self.number)[:12])
        parts = urllib.parse.urlsplit(self.url)
        self.connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=600)
        kept = self.ask({"keep": "true"}, self.picture)
        self.expected, self.handle = self.last, kept.headers["San-Image-Id"]
        self.times.clear()

    def ask(self, fields: dict[str, str], picture: bytes | None) -> http.client.HTTPResponse:
        """Post a segmentation; keeps the answer's pixels in `last`."""
        fields = {"vocabulary": self.words, "format": self.form, **fields}
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        if picture is not None:
            parts.append(b'name="image"; filename="a.png"\r\n\r\n' + picture)
        body = (
            b"".join(b"--x-x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--x-x--\r\n"
        )
        start = time.perf_counter()
        self.connection.request("POST", "/v1/segment", body, {"Content-Type": "multipart/form-data; boundary=x-x"})
        answer = self.connection.getresponse()
        content = answer.read()
        self.times.append(time.perf_counter() - start)
        if answer.status == 200:
            self.last = np.asarray(Image.open(io.BytesIO(content)))
        else:
            self.failed += 1
        return answer

    def work(self, count: int, *, kept: bool) -> None:
        """Ask repeatedly, on a new connection, because the server may have closed an idle one."""
        self.connection.close()
        for _ in range(count):
            self.ask({"image_id": self.handle} if kept else {}, None if kept else self.picture)
            self.wrong += not alike(self.last, self.expected)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two answers are the same but for rounding."""
    return one.shape == other.shape and float((one == other).mean()) >= _SAME


def main() -> int:
    """Starts the server, loads it, and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8,32", help="numbers of clients (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=20, help="of each client (default: %(default)s)")
    parser.add_argument("--side", type=int, default=384, help="of the pictures, pixels (default: %(default)s)")
    parser.add_argument("--format", default="labels", choices=("labels", "overlay"), help="default: %(default)s")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="also watch memory over N requests")
    parser.add_argument("serve", nargs="*", help="options of san serve, after --")
    args = parser.parse_args()
    command = [sys.executable, "-m", "san", "serve", "--port", "0", *args.serve]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the server, too
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "is a pipe"
            found = re.search(r"http://\S+/", process.stdout.readline())
            if not found:
                return 1
            return load(found[0], args)
        finally:
            process.terminate()


def load(url: str, args: argparse.Namespace) -> int:
    """Run every row; returns the exit code."""
    numbers = [int(each) for each in args.clients.split(",")]
    clients = [LoadClient(url, number, args.side, args.format) for number in range(max(numbers))]
    for one in clients:
        mixed = [other.number for other in clients if other is not one and alike(one.expected, other.expected)]
        assert not mixed, f"the answers of clients {one.number} and {mixed} are alike; a mix-up would not be seen"
    print(
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start; "
        f"Python {platform.python_version()}, torch {torch.__version__}, fastapi {version('fastapi')}, "
        f"uvicorn {version('uvicorn')}\n"
    )
    print("| request | clients | requests | requests/s | p50, ms | p95, ms | p99, ms | CPU per request, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for kept in (False, True):
        for number in numbers:
            row(url, clients[:number], args.requests, kept=kept)
    if args.memory:
        memory(url, clients[:8], args.memory)
    wrong, failed = sum(each.wrong for each in clients), sum(each.failed for each in clients)
    total = f"load average {os.getloadavg()[0]:.1f} at the end; wrong answers: {wrong}, errors: {failed}"
    print(f"\n{total}", flush=True)
    return int(wrong + failed > 0)


def row(url: str, clients: list[LoadClient], count: int, *, kept: bool) -> None:
    """Measure one row."""
    start, before = time.perf_counter(), metric(url, "process_cpu_seconds_total")
    together(clients, count, kept=kept)
    seconds, cpu = time.perf_counter() - start, metric(url, "process_cpu_seconds_total") - before
    times = np.concatenate([each.times for each in clients]) * 1000
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    figures = f"{len(times) / seconds:.2f} | {p50:.0f} | {p95:.0f} | {p99:.0f} | {1000 * cpu / len(times):.0f}"
    print(f"| {'kept image' if kept else 'picture'} | {len(clients)} | {len(times)} | {figures} |", flush=True)


def memory(url: str, clients: list[LoadClient], total: int) -> None:
    """Print the resident memory before, and after each quarter of the requests."""
    shown = [metric(url, "process_resident_memory_bytes")]
    for _ in range(4):
        together(clients, total // 4 // len(clients), kept=False)
        shown.append(metric(url, "process_resident_memory_bytes"))
    print(f"\nRSS over {total} requests, MB: {', '.join(f'{each / 1e6:.0f}' for each in shown)}", flush=True)


def together(clients: list[LoadClient], count: int, *, kept: bool) -> None:
    """Let all clients ask at the same time."""
    threads = [threading.Thread(target=each.work, args=(count,), kwargs={"kept": kept}) for each in clients]
    for each in clients:
        each.times.clear()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def metric(url: str, name: str) -> float:
    """Return a value of /metrics."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    connection.request("GET", "/metrics")
    found = re.search(rf"^{name} (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
    connection.close()
    assert found is not None, f"{name} is no metric"
    return float(found[1])


if __name__ == "__main__":
    sys.exit(main())

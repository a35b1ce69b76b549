"""The example on Ray Serve, with the real Ray."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import Client, png

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_replicas_share_kept_images(scenes):
    pytest.importorskip("ray", reason="ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, REPO / "examples/ray_serve.py", "--port", str(port), "--cpus", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert any("The service runs at" in line for line in process.stdout)
            client = Client(f"http://127.0.0.1:{port}/", None)
            picture, words = scenes[0]
            handle = client.post("/v1/images", png(picture)).json["image_id"]
            first, *others = [client.segment(None, words, image_id=handle) for _ in range(8)]
            assert first.status == 200 and all(each.json == first.json for each in others)
            started = {re.search(rb"^process_start_time_seconds (.*)$", each.content, re.M)[1] for each in (
                client.ask("GET", "/metrics") for _ in range(20)
            )}  # fmt: skip
            assert len(started) == 2, "both replicas answered"
            assert client.metric("san_kept_images") == 1
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

"""`san demo` as its user starts and ends it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed")
from tests.demo.test_http import ask
from tests.web.test_decoding import slow_jpeg


@pytest.mark.slow
def test_options_reach_the_server_and_ctrl_c_ends_it_at_once():
    options = "--port 0 --root-path /demo --embed-in https://a.example,https://b.example --trusted-proxies 127.0.0.1"
    command = [sys.executable, "-m", "san", "demo", *options.split(), "--max-pixels", "9000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = re.search(r"http://\S+/", process.stdout.readline())[0]
        status, headers, text = ask(url, "GET", "/demo/config", headers={"x-forwarded-for": "192.0.2.1"})
        assert (status, json.loads(text)["root"]) == (200, f"{url}demo")
        assert "frame-ancestors 'self' https://a.example https://b.example" in headers["content-security-policy"]
        content = slow_jpeg()
        head = f"POST /san/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(url).port)) as upload:
            upload.sendall(head.encode() + content)
            time.sleep(1)  # for the picture to be under way
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - start < 20, "the picture would have taken a minute"
    assert "Traceback" not in errors
    assert errors.endswith("interrupted\n")

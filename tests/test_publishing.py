"""Files of .github, the citation, the release tools and the Space: valid, complete, and they name what exists."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import san
from tests.forks import Fork
from tests.test_tools import load_tool

REPO = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((REPO / ".github/workflows").glob("*.yml"))
TEMPLATES = REPO / ".github/ISSUE_TEMPLATE"
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.github-issue-forms": sorted(path for path in TEMPLATES.glob("*.yml") if path.name != "config.yml"),
    "vendor.github-issue-config": [TEMPLATES / "config.yml"],
    "vendor.citation-file-format": [REPO / "CITATION.cff"],
}
ADDRESS = load_tool("set_address").address(REPO)


def run_lines(path: Path) -> list[str]:
    """The shell lines of a workflow."""
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [step for job in content["jobs"].values() for step in job["steps"]]
    return [line for step in steps for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_have_the_form_that_github_reads(schema):
    assert SCHEMAS[schema]
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed (the extra release)")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *SCHEMAS[schema]]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_job_has_a_time_limit_and_few_rights():
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "docs.yml", "release.yml", "versions.yml"}
    for path in WORKFLOWS:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert content["permissions"] == {"contents": "read"}, path
        for name, job in content["jobs"].items():
            assert 10 <= job["timeout-minutes"] <= 120, (path, name)
            assert "secrets." not in str(job), (path, name)


def test_workflows_run_what_a_contributor_can_run():
    """Scripts, files and targets that exist; no step of CI is written out in YAML alone."""
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    lines = [line for path in WORKFLOWS for line in run_lines(path)]
    assert ".ci/run" in lines
    for line in lines:
        for target in re.findall(r"\bmake ([\w-]+)", line):
            assert re.search(rf"^{target}:", makefile, re.M), line
        for name in re.findall(r"(?<![\w./-])(?:\./|\.ci/|tools/|tests/)[\w./-]+", line):
            assert (REPO / name).exists(), line


def test_the_matrix_has_the_supported_pythons_and_every_row_of_versions():
    supported = re.findall(r"Python :: (3\.\d+)", (REPO / "pyproject.toml").read_text(encoding="utf-8"))
    jobs: Any = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    for job in ("check", "smoke"):
        matrix = jobs[job]["strategy"]["matrix"]
        pythons = matrix.get("python") or [each["python"] for each in matrix["include"]]
        assert {supported[0], supported[-1]} <= set(pythons), job
    assert {each["detectron2"] for each in jobs["check"]["strategy"]["matrix"]["include"]} == {"skip", "build"}
    versions: Any = yaml.safe_load((REPO / ".github/workflows/versions.yml").read_text(encoding="utf-8"))
    rows = [each["row"] for each in versions["jobs"]["row"]["strategy"]["matrix"]["include"]]
    assert rows == list(load_tool("check_versions").ROWS)


def test_the_citation_is_that_of_the_readme():
    citation: Any = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert f"{{{paper['title']}}}" in readme
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert f"{{{' and '.join(names)}}}" in readme
    assert citation["repository-code"] == ADDRESS
    assert "version" not in citation  # it has one place, san/__init__.py


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of the files that repeat the address, and one that names a similar one."""
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", "san/__init__.py", "docs/predict.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    (tmp_path / "other.md").write_text(f"{ADDRESS}-fork is another one, and so is datasets/OWNER/REPOSITORY.")
    (tmp_path / "weights.bin").write_bytes(b"\0\xff")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")
def test_one_command_sets_the_address_everywhere(copy):
    tool = load_tool("set_address")
    other = (copy / "other.md").read_text()
    assert set(tool.set_address(copy, "https://github.com/me/san")) >= {"pyproject.toml", "CITATION.cff"}
    assert tool.address(copy) == "https://github.com/me/san"
    citation = (copy / "CITATION.cff").read_text()
    assert "https://github.com/me/san\n" in citation
    assert (copy / "other.md").read_text() == other
    assert tool.set_address(copy, "https://github.com/you/s.an")
    assert "me/san" not in (copy / "pyproject.toml").read_text() + (copy / "CITATION.cff").read_text()
    with pytest.raises(ValueError, match="the address is 'me/san' but must be https://github.com/OWNER/NAME"):
        tool.set_address(copy, "me/san")


def test_a_release_has_its_version_its_address_and_a_dated_section(tmp_path):
    tool = load_tool("check_release")
    for name in ("pyproject.toml", "san/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    log, tag = tmp_path / "CHANGELOG.md", f"v{san.__version__}"
    log.write_text(
        f"# Changelog\n\n## [{san.__version__}] - 2026-11-27\n\n- One.\n\n## [0.0.1] - 2026-01-01\n\n- Old.\n"
    )
    assert tool.release_notes(tmp_path, tag, ADDRESS) == "- One.\n"
    with pytest.raises(ValueError, match=re.escape(f"the tag is 'v9' but san/__init__.py has '{san.__version__}'")):
        tool.release_notes(tmp_path, "v9", ADDRESS)
    with pytest.raises(ValueError, match="this repository is https://github.com/fork/san, but pyproject.toml has"):
        tool.release_notes(tmp_path, tag, "https://github.com/fork/san")
    log.write_text("# Changelog\n\n## [Unreleased]\n\n- One.\n")
    with pytest.raises(ValueError, match="CHANGELOG.md has no section"):
        tool.release_notes(tmp_path, tag, ADDRESS)


def test_the_space_names_its_files_and_a_gradio_that_the_demo_accepts():
    text = (REPO / "spaces/README.md").read_text(encoding="utf-8")
    front: Any = yaml.safe_load(text.split("---\n")[1])
    assert (REPO / "spaces" / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    project = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    (gradio,) = re.findall(r'"(gradio>=[^"]*)"', project)
    assert Requirement(gradio).specifier.contains(front["sdk_version"])
    assert f"Python :: {front['python_version']}" in project
    requirement = Requirement((REPO / "spaces/requirements.txt").read_text().strip())
    assert (requirement.name, requirement.extras) == ("san-segmentation", {"demo"})


def test_the_space_serves_its_own_host_inside_hugging_face(tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    environment = {"SPACE_HOST": "me-san.hf.space", "GRADIO_SERVER_PORT": "0"}
    log = tmp_path / "log"
    process = Fork(lambda: runpy.run_path(str(REPO / "spaces/app.py"), run_name="__main__"), log, environment)
    try:
        end = time.monotonic() + 300
        while not (found := re.search(r"http://0\.0\.0\.0:(\d+)/", log.read_text() if log.exists() else "")):
            assert time.monotonic() < end, "it does not start"
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        assert _get(found[1], "other.example")[0] == 421
        status, policy = _get(found[1], "me-san.hf.space")
        assert status == 200
        assert "frame-ancestors" in policy
        assert "https://huggingface.co" in policy
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def _get(port: str, host: str) -> tuple[int, str]:
    """Status and content security policy of the page."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as error:
        return error.code, ""

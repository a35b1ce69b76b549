"""No source file of the project reads files in a way that could run their content."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDERS = ("san", "tools", "datasets")

UNPICKLERS = {"san/preparation/unpickling.py"}  # by an allow-list, see its tests
SUBPROCESSES = {  # this Python, git, and uv with what the project asks for: no input in them
    "san/benchmark/runner.py", "san/benchmark/machine.py", "san/cli/ablation_runs.py",
    "tools/maintainers/check_versions.py", "tools/maintainers/load_serve.py", "tools/maintainers/set_address.py",
}  # fmt: skip
READERS = {"san/clip/weights_file.py", "san/d2/standin/checkpoint.py"}  # of weights: bounded by `check_pickle`
SCRIPTS = {"san/clip/weights.py"}  # TorchScript of OpenAI's own files, known by their SHA-256

NEVER = {
    "eval", "exec", "compile", "os.system", "os.popen", "os.execv", "os.spawnv", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "yaml.unsafe_load_all", "yaml.load", "yaml.safe_load", "marshal.loads",
    "marshal.load", "shelve.open",
    "joblib.load", "torch.hub.load", "torch.package.PackageImporter", "pickle.load", "pickle.loads", "dill.load",
    "tempfile.mktemp", "shutil.unpack_archive",
}  # fmt: skip
"""yaml only by `san.io.plain_file.parse_yaml`, which bounds the data of a file."""

SOURCES = sorted(path for folder in FOLDERS for path in (Path(__file__).parent.parent / folder).rglob("*.py"))


def findings(source: str, name: str = "x.py") -> list[str]:
    """Finds calls in a source file that may run the content of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if called in NEVER or called.endswith((".extractall", ".extract")):
                found.append(called)
            if called.startswith("torch.jit.load") and name not in SCRIPTS:
                found.append(called)
            if called == "torch.load" and name not in READERS:
                found.append("torch.load beside san.clip.weights_file.read_tensors")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if keywords.get("allow_pickle", "False") != "False":
                found.append(f"{called} with allow_pickle")
            if keywords.get("shell", "False") != "False":
                found.append(f"{called} with shell")
            if called.endswith("Unpickler") and name not in UNPICKLERS:
                found.append(called)
            if called.startswith("subprocess.") and name not in SUBPROCESSES:
                found.append(called)
        if isinstance(node, ast.ClassDef) and name not in UNPICKLERS:
            found += [ast.unparse(base) for base in node.bases if "Unpickler" in ast.unparse(base)]
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "subprocess", "os", "yaml"):
            found += [f"from {node.module} import {a.name}" for a in node.names if f"{node.module}.{a.name}" in NEVER]
    return found


def test_no_file_is_read_so_that_it_could_run(repo):
    assert len(SOURCES) > 150
    wrong = {
        str(path.relative_to(repo)): found
        for path in SOURCES
        if (found := findings(path.read_text(encoding="utf-8"), path.relative_to(repo).as_posix()))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "torch.load('x')", "torch.load('x', weights_only=False)", "np.load('x', allow_pickle=True)",
        "pickle.load(f)", "pickle.Unpickler(f)", "class A(pickle.Unpickler): pass", "yaml.load(f, Loader=yaml.Loader)",
        "subprocess.run('x', shell=True)", "from pickle import loads", "pack.extractall('x')", "os.system('x')",
        "torch.jit.load('x')",
    ],
)  # fmt: skip
def test_each_of_these_would_be_found(source):
    assert findings(source)


def test_plain_code_has_no_findings():
    source = "model.eval()\ntorch.load(x, weights_only=True)\nre.compile('x')\nnp.load(x)"
    assert findings(source, "san/clip/weights_file.py") == []
    assert findings(source) == ["torch.load beside san.clip.weights_file.read_tensors"]

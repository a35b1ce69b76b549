"""The reader of weights files: valid ones as torch reads them, crafted ones refused before they cost anything."""

from __future__ import annotations

import io
import pickle
import tarfile
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from san.clip import pickle_check, weights_file
from san.clip.weights_file import read_metadata, read_tensors

SHARED = torch.arange(6.0)


def contents() -> dict[str, Any]:
    """The content of checkpoints: a model, and the states of an optimiser and a schedule."""
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    model = OrderedDict(a=SHARED, tied=SHARED, half=torch.ones(3).half(), turned=torch.ones(4, 2).t(), odd=parameter)
    model._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    betas = (0.9, 0.99)
    steps = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3)}},
        "param_groups": [{"betas": betas}] * 2,
    }
    state = {"optimizer": steps, "milestones": Counter([3, 5]), "size": torch.Size([2])}
    return {"model": model, "trainer": state | {"type": torch.float16, "empty": torch.ones(0)}, "iteration": 7}


@pytest.mark.parametrize("form", ["zip", "old", "repacked"])
def test_what_torch_saves_is_read_as_torch_reads_it(form: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(contents(), path, _use_new_zipfile_serialization=form != "old")
    if form == "repacked":  # another writer ends an archive otherwise, and puts tensors at any place
        members = zipfile.ZipFile(path)
        with zipfile.ZipFile(path := tmp_path / "y.pth", "w", zipfile.ZIP_STORED) as other:
            for name in members.namelist():
                other.writestr(name, members.read(name))
    found, wanted = read_tensors(path), torch.load(path, weights_only=True)
    torch.testing.assert_close(found["model"], dict(wanted["model"]), atol=0, rtol=0)
    torch.testing.assert_close(found["trainer"]["optimizer"], wanted["trainer"]["optimizer"], atol=0, rtol=0)
    for key in ("milestones", "size", "type"):
        assert found["trainer"][key] == wanted["trainer"][key]
    first, second = found["trainer"]["optimizer"]["param_groups"]
    assert first is second, "saved again, it would be other bytes"
    assert type(found["model"]) is dict and type(found["model"]["odd"]) is torch.Tensor


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def laughs(depth: int = 40) -> bytes:
    """The instructions of a tuple that holds itself twice, level by level."""
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value, value)
    return pickle.dumps(value, 2)[2:-1]


def archive(path: Path, pickle: bytes, *, kind: int = zipfile.ZIP_STORED, **records: bytes) -> None:
    with zipfile.ZipFile(path, "w", kind) as pack:
        for name, content in {"data.pkl": pickle, "version": b"3\n", "byteorder": b"little", **records}.items():
            pack.writestr(f"archive/{name.replace('_', '/')}", content)


def saved(path: Path, value: Any) -> None:
    torch.save({"model": {"a": value}}, path)


def lying(path: Path) -> None:
    """A tensor's values are said to be as large as the memory of ten machines, in every list that says so."""
    archive(path, pickled(b"}"), data_0=b"\0" * 64)
    content = path.read_bytes()
    path.write_bytes(content.replace((64).to_bytes(4, "little") * 2, (1 << 31).to_bytes(4, "little") * 2))


def in_two_ways(path: Path) -> None:
    """Python's zipfile takes what precedes an archive as no part of it; torch counts from the first byte."""
    archive(path, pickled(b"}"))
    path.write_bytes(path.read_bytes()[:4] + b"x" * 100 + path.read_bytes())


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as pack:
        for name in ("data.pkl", "DATA.PKL"):  # for readers that are blind to case
            pack.writestr(f"archive/{name}", pickled(b"}"))


def grown(path: Path) -> None:
    """A tensor of 4 TB on a storage of 16 bytes."""
    torch.save({"a": torch.zeros(4)}, path)
    content = path.read_bytes()
    assert content.count(b"K\x04\x85") == 1
    members = zipfile.ZipFile(path)
    changed = {name: members.read(name) for name in members.namelist()}
    with zipfile.ZipFile(path, "w") as pack:
        for name, data in changed.items():
            pack.writestr(name, data.replace(b"K\x04\x85", b"\x8a\x05\x00\x00\x00\x00\x01\x85"))


def polyglot(path: Path) -> None:
    """Five pickles that are also a tar archive's first name; torch would unpack it onto the disk."""
    old = io.BytesIO()
    torch.save({}, old, _use_new_zipfile_serialization=False)
    magic = old.getvalue()[: old.getvalue().index(b".") + 1]
    info = tarfile.TarInfo((magic + pickled(b"M\xe9\x03") + pickled(b"}") * 2 + pickled(b"]")).decode("latin-1"))
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT, "latin-1") + bytes(1024))


SPARSE = torch.eye(3).to_sparse()
PLAIN = b"ccollections\nOrderedDict\n"
CRAFTED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deflated": (
        lambda p: archive(p, pickled(b"}"), kind=zipfile.ZIP_DEFLATED, data_0=bytes(1 << 20)),
        "are compressed",
    ),
    "sizes that lie": (lying, "larger than the file"),
    "two directories": (in_two_ways, "in two ways"),
    "a name twice": (twice, "in two ways"),
    "cut": (lambda p: p.write_bytes(b"PK\3\4" + bytes(500)), "cut short"),
    "laughs as a key": (lambda p: archive(p, pickled(b"}", laughs(), b"K\x01s")), "describes over 4,000,000 values"),
    "laughs as a storage": (lambda p: archive(p, pickled(laughs(), b"Q")), "describes over"),
    "laughs as a size": (lambda p: archive(p, pickled(b"ctorch\nSize\n", laughs(), b"\x85R")), "describes over"),
    "laughs, old form": (lambda p: p.write_bytes(pickled(b"}", laughs(), b"K\x01s")), "describes over"),
    "laughs filled from outside": (
        lambda p: archive(p, pickled(b"]q\0]q\1h\0h\0\x86a", b"h\1h\1\x86a0")),
        "changes a value",
    ),
    "many instructions": (lambda p: archive(p, pickled(b"(" + b"]" * 30_000 + b"t")), "over 20,000 instructions"),
    "a long pickle": (lambda p: archive(p, pickled(b"N" * (9 << 20))), "far more than weights take"),
    "bytes by the gigabyte": (
        lambda p: archive(p, pickled(b"cbuiltins\nbytearray\n", b"J\xff\xff\xff\x7f\x85R")),
        "contains builtins.bytearray",
    ),
    "a storage by the gigabyte": (
        lambda p: archive(p, pickled(b"ctorch.storage\nUntypedStorage\n", b"J\xff\xff\xff\x7f\x85R")),
        r"calls torch\.storage\.UntypedStorage",
    ),
    "attributes of a value": (lambda p: archive(p, pickled(b"ctorch\nSize\n)R}b")), "changes a value"),
    "a protocol of its own": (lambda p: archive(p, b"\x80\x04\x95\1\0\0\0\0\0\0\0N."), "instruction FRAME"),
    "sparse": (lambda p: saved(p, SPARSE), "_rebuild_sparse_tensor"),
    "meta": (lambda p: saved(p, torch.empty(2, device="meta")), "_rebuild_meta_tensor"),
    "expanded": (lambda p: saved(p, torch.zeros(1).expand(1 << 20, 1 << 20)), "more values than the file contains"),
    "a view of what is not there": (grown, "cannot be read as a weights file"),
    "tar": (polyglot, "tar archive"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_check, "MAX_STEPS", 20_000)
    make, message = CRAFTED[name]
    make(tmp_path / "x.pth")
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        read_tensors(tmp_path / "x.pth")
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_attributes_of_a_dictionary_do_not_reach_us(tmp_path: Path) -> None:
    """An OrderedDict of a file may have attributes of any name, such as one that replaces its `items`."""
    archive(tmp_path / "x.pth", pickled(PLAIN, b")R(X\1\0\0\0aK\1u", b"}X\5\0\0\0itemsK\1s", b"b"))
    assert read_tensors(tmp_path / "x.pth") == {"a": 1}


def test_the_header_of_a_safetensors_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((100 << 20).to_bytes(8, "little") + bytes(50))
    with pytest.raises(ValueError, match="header has 104,857,600 bytes"):
        read_tensors(path)
    assert read_metadata(path) == {}
    save_file({"a": torch.ones(1)}, path, metadata={"format": "pt"})
    assert read_metadata(path) == {"format": "pt"}
    path.write_bytes(save({"a": torch.ones(1)}))
    assert read_metadata(path) == {}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read without end; a link to a file is one, as in the hub's cache."""
    import os

    saved(tmp_path / "a.pth", torch.ones(1))
    (tmp_path / "link.pth").symlink_to(tmp_path / "a.pth")
    assert torch.equal(read_tensors(tmp_path / "link.pth")["model"]["a"], torch.ones(1))
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "device.pth").symlink_to("/dev/zero")
    (tmp_path / "folder.pth").mkdir()
    for name in ("pipe.pth", "device.pth", "folder.pth"):
        with pytest.raises(FileNotFoundError, match="no weights file"):
            read_tensors(tmp_path / name)


def test_flaws() -> None:
    class Own(torch.Tensor):
        pass

    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    kinds = [torch.ones(1), SPARSE, torch.empty(1, device="meta"), nested, torch.ones(1).as_subclass(Own)]
    assert [weights_file.kind_of_flaw(kind) for kind in kinds] == ["", "sparse", "meta", "nested", "'Own'"]

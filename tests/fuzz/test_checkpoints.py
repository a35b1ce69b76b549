"""Damaged weights, model folders, pickles and archives: the documented errors; nothing is run or written elsewhere."""

# ruff: noqa: PT017 (an example is either taken or refused with such a message)

from __future__ import annotations

import io
import pickle
import random
import shutil
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from san.checkpoint import load_checkpoint_file
from san.clip.arch import ClipArch, TextArch, VisionArch
from san.clip.loader import load_clip, save_clip_file
from san.clip.weights import read_clip_weights
from san.hub import SHAPES_CHECKPOINT, load_pretrained, save_pretrained
from san.hub.folder import read_config
from san.preparation.archives import unpack
from san.preparation.unpickling import load_plain_pickle
from tests.fuzz.malformed import mutated

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)}


def damaged(content: bytes, count: int, seed: int = 0):
    """That many mutations, half of them in the first bytes, where lengths and names stand."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = content
        for _ in range(rng.randint(1, 3)):
            changed = mutated(changed, rng)
        yield changed


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors"])
def test_damaged_weights(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        content = {"model": TENSORS, "iteration": 5, "trainer": {"x": [1, 2.5, None]}}
        torch.save(content, path, _use_new_zipfile_serialization=suffix == ".pth")
    read = 0
    for changed in damaged(path.read_bytes(), 250):
        path.write_bytes(changed)
        for reader in (load_checkpoint_file, partial(read_clip_weights, trusted_scripts=lambda: ())):
            try:
                reader(path)
                read += 1
            except ValueError as error:
                assert str(path) in str(error)
    assert read < 240


def test_damaged_clip_files(tmp_path):
    """CLIP files of this project, whose header describes the architecture and the vocabulary."""
    path, taken = tmp_path / "clip.safetensors", 0
    arch = ClipArch(8, VisionArch(16, 8, 8, 1, 1), TextArch(4, 5, 8, 1, 1))
    save_clip_file(path, {"visual.class_embedding": torch.ones(8)}, arch, token_ids=[1, 2, 3, 4])
    for changed in damaged(path.read_bytes(), 300):
        path.write_bytes(changed)
        try:
            load_clip("shapes", str(path))
            taken += 1
        except ValueError as error:
            assert str(path) in str(error)
    assert 0 < taken < 250


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_weights_that_hold_code_are_refused_unrun(form, tmp_path):
    path, marker = tmp_path / "x.pth", tmp_path / "ran"
    content = {"model": TENSORS, "extra": Evil(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"extra": Evil(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"x\.pth.*cannot be read as a weights file"):
        load_checkpoint_file(path)
    assert not marker.exists()
    with pytest.raises(ValueError, match="cannot be read as a weights file"):
        load_pretrained(path, "tiny")


def test_damaged_model_folders(tmp_path):
    folder = save_pretrained(load_pretrained("shapes"), tmp_path / "model")
    config = folder / "config.json"
    refused = 0
    for changed in damaged(config.read_bytes(), 200):
        config.write_bytes(changed)
        try:
            read_config(folder)
        except ValueError as error:
            assert "config.json" in str(error)
            refused += 1
    assert refused > 100
    shutil.rmtree(folder)
    assert SHAPES_CHECKPOINT.is_file()


def test_damaged_pickles(tmp_path):
    import numpy as np

    good = pickle.dumps({"filename": ["a"], "counts": np.arange(6).reshape(2, 3), "text": np.array(["x"])}, 2)
    path = tmp_path / "index.pkl"
    for changed in damaged(good, 1000):
        path.write_bytes(changed)
        try:
            load_plain_pickle(path)
        except ValueError as error:
            assert "index.pkl" in str(error)


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    files = {"data/a.txt": b"one" * 50, "data/b/c.txt": b"two", "other.txt": b"x"}
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
            for name, content in files.items():
                pack.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as pack:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                pack.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_damaged_archives(kind, tmp_path):
    path, home = tmp_path / f"x.{kind}", tmp_path / "out" / "home"
    whole = 0
    for changed in damaged(archive(kind), 150):
        path.write_bytes(changed)
        shutil.rmtree(home.parent, ignore_errors=True)
        try:
            unpack(path, home, r"data/(.*)", note=tmp_path / "note.json")
            whole += 1
        except ValueError as error:
            assert path.name in str(error)
        (tmp_path / "note.json").unlink(missing_ok=True)
        written = {each for each in tmp_path.rglob("*") if each.is_file()} - {path}
        assert all(home in each.parents for each in written)
        assert not any(each.is_symlink() for each in home.rglob("*"))
    assert whole < 140


def special(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([special("data/../../x", tarfile.REGTYPE)], "leads out"),
        ([special("/x", tarfile.REGTYPE)], "leads out"),
        ([special("C:\\x", tarfile.REGTYPE)], "leads out"),
        ([special("data\\..\\..\\x", tarfile.REGTYPE)], "leads out"),
        ([special("data/a", tarfile.SYMTYPE, "/etc"), special("data/a/x", tarfile.REGTYPE)], "link or a device"),
        ([special("data/a", tarfile.LNKTYPE, "../../x")], "link or a device"),
        ([special("data/a", tarfile.CHRTYPE)], "link or a device"),
        ([special("data/a", tarfile.FIFOTYPE)], "link or a device"),
        ([special("data/a", tarfile.GNUTYPE_LONGNAME, size=1 << 40)], "damaged or incomplete"),
    ],
)
def test_archives_that_lead_elsewhere(members, message, tmp_path):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        for info in members:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1024))
    with pytest.raises(ValueError, match=message):
        unpack(path, tmp_path / "home", r"data/(.*)", note=tmp_path / "note.json")
    assert not [each for each in (tmp_path / "home").rglob("*") if each.is_file()]


@pytest.mark.parametrize("what", ["a member", "a header"])
def test_a_small_archive_that_unpacks_to_a_full_disk(what, tmp_path, monkeypatch):
    """300 MB of zeros in 1 MB where the disk has 100 MB left; and a name of 300 MB, which would fill the memory."""
    from san.preparation import files

    usage = type("Usage", (), {"free": 100 << 20})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    path, size = tmp_path / "x.tar.gz", 300 << 20
    kind = tarfile.REGTYPE if what == "a member" else tarfile.GNUTYPE_LONGNAME
    with tarfile.open(path, "w:gz", compresslevel=1) as pack:
        pack.addfile(special("data/a", kind, size=size), Zeros(size))
    with pytest.raises(ValueError, match="needs about 314.6 MB" if what == "a member" else "headers exceed 65.5 kB"):
        unpack(path, tmp_path / "home", r"data/(.*)", note=tmp_path / "note.json")
    assert not (tmp_path / "home" / "a").exists()


class Zeros(io.RawIOBase):
    """A stream of the given number of zeros, which are not in memory."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, count: int = -1) -> bytes:
        count = min(self.left, count)
        self.left -= count
        return bytes(count)

"""Archives: nothing gets out of the folder, damage is one clear error, the disk is asked first."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from san.data.preparation import Options, files, prepare
from san.data.preparation.archives import unpack
from tests.data.raw_trees import make_raw_tree

PATTERN = r"(?:.*/)?top/(.+)"


def make_zip(path: Path, names: dict[str, bytes], *, mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as pack:
        for name, content in names.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            pack.writestr(info, content)
    return path


def make_tar(path: Path, names: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as pack:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            pack.addfile(info, io.BytesIO(content))
    return path


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_needed_files_only(ending, tmp_path):
    make = make_zip if ending == "zip" else make_tar
    names = {
        "top/a.txt": b"a",
        "deep/top/b/c.txt": b"c",
        "other/d.txt": b"d",
        "__MACOSX/top/a.txt": b"",
        "top/._a": b"",
    }
    archive = make(tmp_path / f"pack.{ending}", names)
    unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")
    assert everything(tmp_path / "home") == {"a.txt", "b/c.txt"}
    assert (tmp_path / "home/b/c.txt").read_bytes() == b"c"


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    "name",
    ["../evil/top/a.txt", "top/../../evil.txt", "/abs/top/a.txt", "C:/top/a.txt", "top\\..\\..\\a.txt", "x/../y"],
)
def test_names_that_lead_out_are_refused(ending, name, tmp_path):
    make = make_zip if ending == "zip" else make_tar
    archive = make(tmp_path / f"pack.{ending}", {name: b"evil"})
    with pytest.raises(ValueError, match=r"pack.* is refused: its member .* leads out of the folder; take"):
        unpack(archive, tmp_path / "in/home", PATTERN, note=tmp_path / "note.json")
    assert everything(tmp_path) == {archive.name}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind, tmp_path):
    archive = make_tar(tmp_path / "pack.tar", {"top/a.txt": b""}, kind=kind, link="/etc/passwd")
    with pytest.raises(ValueError, match="'top/a.txt' is a link or a device"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")
    assert not everything(tmp_path / "home")


def test_links_in_a_zip_are_refused(tmp_path):
    archive = make_zip(tmp_path / "pack.zip", {"top/a.txt": b"/etc/passwd"}, mode=0o120777)
    with pytest.raises(ValueError, match="'top/a.txt' is a link or a device"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")
    assert not everything(tmp_path / "home")


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_a_truncated_archive_is_one_clear_error(ending, tmp_path):
    make = make_zip if ending == "zip" else make_tar
    archive = make(tmp_path / f"pack.{ending}", {f"top/{i}.bin": os.urandom(3000) for i in range(5)})
    archive.write_bytes(archive.read_bytes()[:7000])
    with pytest.raises(ValueError, match=r"pack.* is damaged or incomplete .*download it again"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")
    assert all((tmp_path / "home" / name).stat().st_size == 3000 for name in everything(tmp_path / "home"))


def test_a_wrong_byte_in_a_zip_is_noticed(tmp_path):
    archive = make_zip(tmp_path / "pack.zip", {"top/a.bin": bytes(5000)})
    content = bytearray(archive.read_bytes())
    content[2000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or incomplete .*CRC"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")
    assert not everything(tmp_path / "home")


def test_another_archive_of_that_name_is_refused(tmp_path):
    archive = make_zip(tmp_path / "pack.zip", {"else/a.txt": b"a"})
    with pytest.raises(ValueError, match="holds none of the files wanted"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")


@pytest.mark.parametrize("archives", [False, True], ids=["unpacked", "archives"])
def test_a_small_disk_is_refused_before_anything_is_written(archives, tmp_path, monkeypatch):
    tree = make_raw_tree("ade20k", tmp_path / "raw", archives=archives)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"root.* needs about .* but the disk has 1.0 kB free: free some"):
        prepare("ade20k", Options(root=tmp_path / "root", raw=(tree.raw,), partial=True))
    assert not [name for name in everything(tmp_path / "root") if name.endswith(("png", "jpg"))]

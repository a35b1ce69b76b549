"""Archives: nothing gets out of the folder, damage is one clear error, free space is checked first."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from san.preparation import PreparationOptions, files, prepare
from san.preparation import archives as archives_module
from san.preparation.archives import unpack
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
    with pytest.raises(ValueError, match=r"pack.* is refused: its member .* leads out of the folder; use"):
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
    with pytest.raises(ValueError, match="contains no file that matches"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")


@pytest.mark.parametrize("archives", [False, True], ids=["unpacked", "archives"])
def test_a_small_disk_is_refused_before_anything_is_written(archives, tmp_path, monkeypatch):
    tree = make_raw_tree("ade20k", tmp_path / "raw", archives=archives)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"root.* needs about .* but the disk has 1.0 kB free: free some"):
        prepare("ade20k", PreparationOptions(root=tmp_path / "root", raw=(tree.raw,), partial=True))
    assert not [name for name in everything(tmp_path / "root") if name.endswith(("png", "jpg"))]


def header(name: bytes, size: int | bytes, kind: bytes) -> bytes:
    """One block of a tar file."""
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + digits + b"00000000000\0" + b" " * 8)
    block = bytearray(bytes(block + kind).ljust(257, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def record(key: bytes, value: bytes) -> bytes:
    """One entry of a pax header, whose length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(rest) + len(b"%d" % length):
        length += 1
    return b"%d" % length + rest


def pax(content: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", len(content), kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


MEMBER = header(b"top/a.txt", 1, b"0") + b"a".ljust(512, b"\0")
LONG = record(b"comment", b"x" * (1 << 20))
SPARSE = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
HEADERS = "its headers exceed 65.5 kB"
BOMBS = {
    "headers in a row": (lambda: [pax(record(b"comment", b"x" * 40_000))] * 3000, HEADERS),
    "a large header": (lambda: [pax(LONG), MEMBER], HEADERS),
    "headers for all": (lambda: [pax(record(b"k%d" % n, b"x" * 30_000), b"g") + MEMBER for n in range(3)], HEADERS),
    "long names": (lambda: [pax(b"x" * 40_000, b"L")] * 3000, HEADERS),
    "empty members": (lambda: [header(b"e", 0, b"0")] * 600, "it has more than 500 members"),
    "a list of pieces": (lambda: [header(b"top/a", 0, b"S")], "it has a sparse file"),
    "pieces in pax": (lambda: [pax(SPARSE), MEMBER], "it has a sparse file"),
    "a negative size": (lambda: [MEMBER, header(b"top/b", b"\xff" * 12, b"0")], "a header has a negative size"),
    "a negative header": (lambda: [header(b"pax", b"\xff" * 12, b"x")], "a header has a negative size"),
    "a negative size in pax": (lambda: [pax(record(b"size", b"-1024")) + MEMBER] * 3, "a header has a negative size"),
    "a damaged header": (lambda: [MEMBER, b"x" * 512, MEMBER], "a header is damaged"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_headers_and_members_are_bounded_while_they_are_read(bomb, tmp_path, monkeypatch):
    monkeypatch.setattr(archives_module, "_MAX_MEMBERS", 500)
    blocks, message = BOMBS[bomb]
    with gzip.open(tmp_path / "pack.tar.gz", "wb", compresslevel=1) as file:
        for block in blocks():
            file.write(block)
        file.write(bytes(1024))
    with pytest.raises(ValueError, match=rf"archive .*pack.tar.gz is damaged or incomplete.*\({message}.*download"):
        unpack(tmp_path / "pack.tar.gz", tmp_path / "home", PATTERN, note=tmp_path / "note.json")


def test_members_that_are_not_needed_take_no_memory(tmp_path):
    (tmp_path / "pack.tar").write_bytes(header(b"other", 0, b"0") * 10_000 + MEMBER + bytes(1024))
    tracemalloc.start()
    unpack(tmp_path / "pack.tar", tmp_path / "home", r"top/(.+)", note=tmp_path / "note.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # kept, they take 10 MB


def test_a_zip_of_too_many_members_is_refused_while_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(archives_module, "_MAX_MEMBERS", 100)
    archive = make_zip(tmp_path / "pack.zip", {f"top/{number}": b"" for number in range(101)})
    with pytest.raises(ValueError, match=r"pack.zip is damaged or incomplete \(it has more than 100 members\)"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("names", [["top/a", "top/a/b"], ["top/a/b", "top/a"], ["top/" + "x" * 300]], ids=range(3))
def test_names_that_cannot_be_written_are_refused_with_the_archive(ending, names, tmp_path):
    make = make_zip if ending == "zip" else make_tar
    archive = make(tmp_path / f"pack.{ending}", dict.fromkeys(names, b"content"))
    (tmp_path / "home").mkdir()  # asked for a long name, a folder that is there gives another error than a missing one
    with pytest.raises(ValueError, match=rf"pack.{ending} is refused: its member 'top/.*cannot be written to"):
        unpack(archive, tmp_path / "home", PATTERN, note=tmp_path / "note.json")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_zero_byte_in_a_name_is_refused(tmp_path):
    (tmp_path / "pack.tar").write_bytes(pax(record(b"path", b"top/a\0\x1b[31m.txt")) + MEMBER + bytes(1024))
    archive = make_zip(tmp_path / "pack.zip", {"top/aXb.txt": b""})
    archive.write_bytes(archive.read_bytes().replace(b"aXb", b"a\0b"))
    for name, shown in (("pack.tar", r"'top/a\\x00\\x1b\[31m.txt'"), ("pack.zip", r"'top/a\\x00b.txt'")):
        with pytest.raises(ValueError, match=rf"{name} is refused: its member {shown} has a zero byte in its name"):
            unpack(tmp_path / name, tmp_path / "home", PATTERN, note=tmp_path / "note.json")

"""The files of a folder: links, hidden and system names, pipes, folders that are named like files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from san.data.checking import Folder, check_folders
from san.data.pairing import pair_files
from san.io.listing import describe_skipped, list_files


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def is_jpg(name: str) -> bool:
    return name.endswith(".jpg")


def listed(folder: Path, **options: object) -> tuple[list[str], list[str]]:
    found = list_files(folder, is_jpg, **options)  # type: ignore[arg-type]
    return tuple([path.relative_to(folder).as_posix() for path in part] for part in
                 (found.files, [each.path for each in found.skipped]))  # type: ignore[return-value]  # fmt: skip


def test_files_come_before_those_of_sub_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.jpg", "a/b/y.jpg", "c.jpg", "a.txt", "d/x.jpg")
    assert listed(tmp_path) == (["b.jpg", "c.jpg", "a/z.jpg", "a/b/y.jpg", "d/x.jpg"], [])
    assert listed(tmp_path, recursive=False) == (["b.jpg", "c.jpg"], [])
    assert listed(tmp_path, apart=tmp_path / "a") == (["b.jpg", "c.jpg", "d/x.jpg"], [])


def test_links_are_followed_once(tmp_path: Path) -> None:
    """Folders keep their own names, also if links lead to them."""
    inside = touch(tmp_path / "in", "z/a.jpg")
    touch(tmp_path / "other", "b.jpg", "sub/c.jpg")
    for name, target in (("a", "z"), ("z/loop", "../z"), ("first", "../other"), ("second", "../other"), ("up", "..")):
        (inside / name).symlink_to(target, target_is_directory=True)
    (inside / "d.jpg").symlink_to(tmp_path / "other" / "b.jpg")
    files, skipped = listed(inside)
    assert files == ["d.jpg", "first/b.jpg", "first/sub/c.jpg", "z/a.jpg"]
    assert skipped == ["a", "second", "up/in", "up/other", "z/loop"]


def test_hidden_and_system_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg/thumb.jpg", "__MACOSX/a.jpg")
    touch(tmp_path, ".DS_Store", "Thumbs.db")
    (tmp_path / "x.jpg").mkdir()
    assert listed(tmp_path) == (["a.jpg"], ["._a.jpg", ".ipynb_checkpoints", "@eaDir", "__MACOSX"])
    assert listed(touch(tmp_path / ".cache", "b.jpg")) == (["b.jpg"], []), "one's own choice"
    (line,) = describe_skipped(list_files(tmp_path, is_jpg).skipped)
    assert line.startswith("5 hidden, or a system's own: ") and "@eaDir" in line


def test_pipes_and_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    os.mkfifo(tmp_path / "p.jpg")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    found = list_files(tmp_path, is_jpg)
    assert [path.name for path in found.files] == ["a.jpg"]
    assert [(each.path.name, each.reason, each.missed) for each in found.skipped] == [
        ("locked", "cannot be read: Permission denied", True),
        ("p.jpg", "pipe, socket or device", True),
    ]
    with pytest.raises(PermissionError):
        list_files(tmp_path / "locked", is_jpg)


def test_data_sets_follow_links_and_say_what_they_skip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half of a data set was behind a link and was missed; ._a.jpg of macOS was read as an image."""
    touch(tmp_path / "disk", "b.jpg")
    images = touch(tmp_path / "images", "a.jpg", "._a.jpg")
    labels = touch(tmp_path / "labels", "a.png", "._a.png", "town/b.png")
    (images / "town").symlink_to(tmp_path / "disk", target_is_directory=True)
    pairs = pair_files(images, labels).usable("the folders")
    assert [Path(pair["file_name"]).relative_to(images).as_posix() for pair in pairs] == ["a.jpg", "town/b.jpg"]
    assert "left out: 2 hidden, or a system's own" in caplog.text
    assert [each.path.name for each in pair_files(images, labels).skipped] == ["._a.jpg", "._a.png"]
    findings = check_folders(Folder(images, ("jpg",)), Folder(labels, ("png",)))
    assert [(each.kind, Path(str(each.file)).name, each.wrong) for each in findings] == [
        ("skipped_file", "._a.jpg", False),
        ("skipped_file", "._a.png", False),
    ]

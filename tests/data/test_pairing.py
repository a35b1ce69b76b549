from __future__ import annotations

import logging
from pathlib import Path

import pytest

from san.data.pairing import list_pairs


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (images, labels):
        (folder / "sub").mkdir(parents=True)
    return images, labels


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def test_pairs_by_stem(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    images, labels = folders
    touch(images, "b.jpg", "a.jpg", "unlabelled.jpg", "sub/c.jpg", "a.txt")
    touch(labels, "a.png", "b.png", "orphan.png", "sub/c.png", "a.tif")
    with caplog.at_level(logging.WARNING):
        pairs = list_pairs(images, labels)
    assert [Path(pair["file_name"]).stem for pair in pairs] == ["a", "b", "c"]
    assert all(Path(pair["file_name"]).stem == Path(pair["sem_seg_file_name"]).stem for pair in pairs)
    assert "1 of 4 label files" in caplog.text
    assert "orphan" in caplog.text


def test_equal_counts_of_different_names_are_not_paired(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    touch(images, "a.jpg")
    touch(labels, "b.png")
    with pytest.raises(FileNotFoundError, match="image 'a', label 'b'"):
        list_pairs(images, labels)


def test_missing_and_empty_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = folders
    with pytest.raises(FileNotFoundError, match="image folder .* does not exist; prepare the dataset"):
        list_pairs(tmp_path / "nowhere", labels)
    with pytest.raises(FileNotFoundError, match=r"image folder .* holds no \*\.jpg file"):
        list_pairs(images, labels)
    touch(images, "a.jpg")
    touch(labels, "a.tiff")
    with pytest.raises(FileNotFoundError, match=r"label folder .* holds no \*\.tif file"):
        list_pairs(images, labels, label_ext="tif")

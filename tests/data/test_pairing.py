from __future__ import annotations

import logging
from pathlib import Path

import pytest

from san.data.pairing import pair_files, read_pair_list


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
        pairs = pair_files(images, labels).usable("the folders")
    assert [Path(pair["file_name"]).stem for pair in pairs] == ["a", "b", "c"]
    assert all(Path(pair["file_name"]).stem == Path(pair["sem_seg_file_name"]).stem for pair in pairs)
    assert "1 label files have no image and are left out" in caplog.text
    assert "orphan.png" in caplog.text
    assert "1 image files have no label" in caplog.text
    assert "unlabelled.jpg" in caplog.text


def test_files_without_a_partner_are_reported(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    images, labels = folders
    touch(images, "a.jpg", "b.jpg", "sub/b.jpg")
    touch(labels, "a.png", "c.png")
    pairing = pair_files(images, labels)
    assert [Path(pair["file_name"]).name for pair in pairing.pairs] == ["a.jpg"]
    assert pairing.images_without_label == (str(images / "b.jpg"), str(images / "sub/b.jpg"))
    assert pairing.labels_without_image == (str(labels / "c.png"),)
    with caplog.at_level(logging.WARNING):
        pair_files(images, labels, shared_images=True).usable("the folders")
    assert "c.png" in caplog.text
    assert "b.jpg" not in caplog.text


def test_several_endings_and_doubles(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    touch(images, "a.jpg", "b.png")
    touch(labels, "a.png", "b.png")
    assert len(pair_files(images, labels, ["jpg", "png"]).usable("the folders")) == 2
    touch(images, "a.png")
    assert pair_files(images, labels, ["jpg", "png"]).duplicates == (str(images / "a.png"),)
    with pytest.raises(ValueError, match=r"a\.png has the name of another file.*rename or remove one \(1 such"):
        pair_files(images, labels, ["jpg", "png"]).usable("the folders")


def test_images_are_not_their_own_labels(folders: tuple[Path, Path]) -> None:
    touch(folders[0], "a.png")
    with pytest.raises(ValueError, match=r"a\.png would be image and label at once"):
        pair_files(folders[0], folders[0], "png", "png")


def test_list_of_pairs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = folders
    touch(images, "b.jpg", "a b.jpg")
    touch(labels, "x.png")
    path = tmp_path / "list.txt"
    path.write_text("# image\tlabel\nimages/b.jpg\tlabels/x.png\n\nimages/a b.jpg\tlabels/x.png\n")
    pairing = read_pair_list(path)
    assert pairing.pairs == (
        {"file_name": str(images / "b.jpg"), "sem_seg_file_name": str(labels / "x.png")},
        {"file_name": str(images / "a b.jpg"), "sem_seg_file_name": str(labels / "x.png")},
    )


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", ValueError, "is empty"),
        (b"images/b.jpg labels/x.png\n", ValueError, "line 1 of .* one tab"),
        (b"images/b.jpg\t\n", ValueError, "line 1 of .* one tab"),
        (b"images/b.jpg\tlabels/x.png\n" * 2, ValueError, "line 2 .* again, after line 1"),
        (b"images/b.jpg\tlabels/y.png\n", FileNotFoundError, r"y\.png \(line 1\); paths are relative"),
        (b"\xff\xfe\xff", ValueError, "not UTF-8 text"),
    ],
)
def test_wrong_lists(
    folders: tuple[Path, Path], tmp_path: Path, content: bytes, kind: type[Exception], message: str
) -> None:
    touch(folders[0], "b.jpg")
    touch(folders[1], "x.png")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(kind, match=message):
        read_pair_list(tmp_path / "list.txt")


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.txt does not exist"):
        read_pair_list(tmp_path / "gone.txt")


def test_equal_counts_of_different_names_are_not_paired(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    touch(images, "a.jpg")
    touch(labels, "b.png")
    with pytest.raises(FileNotFoundError, match="image 'a', label 'b'"):
        pair_files(images, labels).usable("the folders")


def test_missing_and_empty_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = folders
    with pytest.raises(FileNotFoundError, match="image folder .* does not exist; prepare the dataset"):
        pair_files(tmp_path / "nowhere", labels).usable("the folders")
    with pytest.raises(FileNotFoundError, match=r"image folder .* holds no \*\.jpg file"):
        pair_files(images, labels).usable("the folders")
    touch(images, "a.jpg")
    touch(labels, "a.tiff")
    with pytest.raises(FileNotFoundError, match=r"label folder .* holds no \*\.tif file"):
        pair_files(images, labels, label_ext="tif").usable("the folders")

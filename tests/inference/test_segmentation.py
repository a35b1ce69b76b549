"""Results of a predictor: areas, confidences, masks, proposals, and files that are written atomically."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from san.inference.evidence import Evidence
from san.inference.segmentation import EncodedImage, Segmentation
from san.io.files import FORMATS
from san.model.san import MaskProposals
from san.postprocess import Geometry, semantic_labels
from san.vocabulary.classes import ClassText
from san.vocabulary.vocabulary import Vocabulary

GEOMETRY = Geometry((32, 32), (20, 24), (10, 12))


def by_hand(num_classes: int = 3) -> Segmentation:
    """Left third class 0, middle class 2, right none; scores 0.5, 0.25 and 0."""
    labels = np.full((6, 9), -1)
    labels[:, :3], labels[:, 3:6] = 0, 2
    scores = np.zeros((6, 9), np.float32)
    scores[:, :3], scores[:, 3:6] = 0.5, 0.25
    names = ["cat|kitten", "dog", "sky", *(f"n{number}" for number in range(3, num_classes))]
    return Segmentation(np.full((6, 9, 3), 99, np.uint8), labels, Vocabulary.parse(", ".join(names)), scores)


def made() -> Segmentation:
    """A segmentation of random evidence."""
    generator = torch.Generator().manual_seed(0)
    evidence = Evidence(
        4 * torch.randn(5, 4, 4, generator=generator),
        3 * torch.randn(5, 4, generator=generator),
        torch.randn(1, 2, 5, 4, 4, generator=generator),
        GEOMETRY,
    )
    labels = semantic_labels(evidence.mask_logits, evidence.class_logits, GEOMETRY).numpy()
    words = Vocabulary.parse("a, b, c")
    return Segmentation(np.zeros((10, 12, 3), np.uint8), labels, words, np.ones((10, 12), np.float32), evidence)


def test_areas_confidences_and_masks() -> None:
    result = by_hand()
    assert result.names == ("cat", "dog", "sky")
    assert result.areas() == pytest.approx({"cat": 1 / 3, "sky": 1 / 3})
    assert list(result.areas()) == ["cat", "sky"]
    assert result.none_area() == pytest.approx(1 / 3)
    assert result.confidences() == pytest.approx({"cat": 0.5, "sky": 0.25})
    assert result.mask("sky").dtype == bool
    assert np.argwhere(result.mask("sky")).min(axis=0).tolist() == [0, 3]
    assert not result.mask("dog").any()
    with pytest.raises(ValueError, match="no class 'kitten'; it has cat, dog, sky"):
        result.mask("kitten")


def test_scores_agree_with_labels() -> None:
    result = made()
    assert result.scores().shape == (3, 10, 12)
    assert np.array_equal(result.scores().argmax(axis=0), result.labels)


def test_mask_proposals() -> None:
    result = made()
    with pytest.raises(ValueError, match="limit is -1; give the number of masks"):
        result.mask_proposals(limit=-1)
    assert result.evidence is not None
    proposals = result.mask_proposals()
    assert sorted(each.query for each in proposals) == list(range(5))
    kinds = [each.name is None for each in proposals]
    assert kinds == sorted(kinds)
    assert any(kinds)
    assert not all(kinds)
    probs = result.evidence.class_logits.softmax(-1)
    total = np.zeros((3, 10, 12))
    for each in proposals:
        assert each.probability == pytest.approx(probs[each.query].max().item())
        assert each.name == ("a", "b", "c", None)[int(probs[each.query].argmax())]
        assert np.array_equal(each.mask(), each.mask_probs() > 0.5)
        assert each.mask_probs().dtype == np.float32
        assert np.array_equal(each.attn_bias, result.evidence.attn_bias[:, :, each.query].numpy())
        total += probs[each.query, :3].numpy()[:, None, None] * each.mask_probs()
    np.testing.assert_allclose(total, result.scores(), atol=1e-5)  # scores are what the proposals add up to
    assert [each.query for each in result.mask_proposals(2)] == [each.query for each in proposals[:2]]


def test_results_are_shown_on_one_short_line() -> None:
    assert repr(by_hand()) == ("Segmentation(6 x 9 pixels, 3 classes: cat 33.3%, sky 33.3%, none of these 33.3%)")
    many = Segmentation(
        np.zeros((500, 600, 3), np.uint8),
        np.arange(300_000).reshape(500, 600) % 900,
        Vocabulary([ClassText(f"{number} \x1b[2J {'long ' * 99}") for number in range(900)]),
    )
    evidence = made().evidence
    assert evidence is not None
    encoded = EncodedImage(many.image, MaskProposals(*(torch.zeros(1, 5, 40, 40),) * 3), evidence.geometry)
    for each in (many, made(), made().mask_proposals()[0], evidence, encoded, many.vocabulary):
        assert len(repr(each)) < 400 and repr(each).isprintable(), repr(each)
    assert many.summary(2).endswith(", 898 more")
    assert repr(Vocabulary.parse("cat|kitten, dog").with_context("sky")) == (
        "Vocabulary(3 classes, 1 of them context: 'cat', 'dog', 'sky')"
    )


@pytest.mark.parametrize("size", [(6, 9), (3, 2000), (2000, 3), (1500, 1500)])
def test_a_notebook_shows_a_picture_of_bounded_size(size: tuple[int, int]) -> None:
    labels = np.arange(size[0] * size[1]).reshape(size) * 40 // (size[0] * size[1])
    words = Vocabulary([ClassText(f"class {number} of a long name") for number in range(40)])
    content = Segmentation(np.zeros((*size, 3), np.uint8), labels, words)._repr_png_()
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert 300 < picture.width <= 1024
        assert 100 < picture.height <= 1024


def test_coco_rle_decodes_to_the_masks() -> None:
    result = by_hand()
    entries = json.loads(json.dumps(result.to_coco_rle("street.jpg")))
    assert [entry["category_name"] for entry in entries] == ["cat", "sky"]
    assert [entry["category_id"] for entry in entries] == [0, 2]
    for entry in entries:
        assert entry["file_name"] == "street.jpg"
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        assert np.array_equal(mask, result.mask(entry["category_name"]))
        assert entry["area"] == mask.sum() == 18
        assert entry["score"] == pytest.approx(result.confidences()[entry["category_name"]])


def test_pycocotools_loads_the_results(tmp_path: Path) -> None:
    images = [{"id": 139, "height": 6, "width": 9}, {"id": "street", "height": 6, "width": 9}]
    truth = COCO()
    truth.dataset = {"images": images, "annotations": [], "categories": [{"id": i, "name": f"{i}"} for i in range(3)]}
    truth.createIndex()
    result = by_hand()
    entries = []
    for name in ("val2017/000000000139.jpg", "out/street.jpg"):
        file = result.save(tmp_path / Path(name).stem, ["rle"], file_name=name)["rle"]
        entries += json.loads(file.read_text())
    (tmp_path / "all.json").write_text(json.dumps(entries))
    loaded = truth.loadRes(str(tmp_path / "all.json"))
    for image in (139, "street"):
        for index, name in enumerate(result.names):
            found = loaded.loadAnns(loaded.getAnnIds(imgIds=[image], catIds=[index]))
            assert len(found) == (name != "dog")
            for each in found:
                assert np.array_equal(loaded.annToMask(each).astype(bool), result.mask(name))
                assert each["area"] == 18


def test_the_id_of_an_image_is_given_or_follows_from_its_name() -> None:
    result = by_hand()
    for file_name, image_id in {"": 0, "a/b.c.jpg": "b.c", "0042.png": 42, "²³.png": "²³", "9" * 30: "9" * 30}.items():
        assert result.to_dict(file_name)["image_id"] == image_id
        assert result.to_coco_rle(file_name)[0]["image_id"] == image_id
    assert result.to_coco_rle("42.png", image_id=7)[0]["image_id"] == result.to_dict(image_id=7)["image_id"] == 7


def test_to_dict_is_json_and_lists_every_class() -> None:
    result = by_hand()
    content = json.loads(json.dumps(result.to_dict("a.jpg")))
    assert (content["height"], content["width"], content["file_name"]) == (6, 9, "a.jpg")
    assert [each["name"] for each in content["classes"]] == ["cat", "dog", "sky"]
    assert content["classes"][0]["synonyms"] == ["cat", "kitten"]
    assert content["classes"][1]["confidence"] is None
    assert content["classes"][2]["share"] == pytest.approx(1 / 3)
    assert content["none_share"] == pytest.approx(1 / 3)


def test_a_bare_label_map_says_what_it_lacks() -> None:
    bare = Segmentation(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), int), Vocabulary.parse("a"))
    assert bare.areas() == {"a": 1.0}
    assert "score" not in bare.to_coco_rle()[0]
    assert bare.to_dict()["classes"][0]["confidence"] is None
    for call in (bare.confidences, bare.scores, bare.mask_proposals):
        with pytest.raises(ValueError, match="a Predictor made"):
            call()


def test_overlay_depends_on_alpha() -> None:
    result = by_hand()
    light, strong = (np.asarray(result.overlay(alpha)) for alpha in (0.1, 0.9))
    assert light.shape == (6, 9, 3)
    assert not np.array_equal(light, strong)


def test_save_writes_every_format(tmp_path: Path) -> None:
    files = by_hand().save(tmp_path / "out" / "street.v1", tuple(FORMATS), file_name="street.v1.jpg")
    assert {kind: path.name for kind, path in files.items()} == {
        "overlay": "street.v1_overlay.png",
        "labels": "street.v1_labels.png",
        "rle": "street.v1_rle.json",
        "json": "street.v1.json",
        "panel": "street.v1_panel.png",
    }
    assert sorted((tmp_path / "out").iterdir()) == sorted(files.values())
    assert json.loads(files["rle"].read_text())[0]["file_name"] == "street.v1.jpg"
    assert json.loads(files["json"].read_text())["file_name"] == "street.v1.jpg"
    assert Image.open(files["overlay"]).size == (9, 6)
    for target in (tmp_path, f"{tmp_path}/new/"):
        (file,) = by_hand().save(target, ["json"]).values()
        assert file == Path(target) / "segmentation.json"


@pytest.mark.parametrize(("num_classes", "mode", "none"), [(255, "L", 255), (256, "I;16", 65535)])
def test_saved_label_maps_keep_none_apart(tmp_path: Path, num_classes: int, mode: str, none: int) -> None:
    result = by_hand(num_classes)
    result.labels[0, 0] = num_classes - 1
    file = result.save(tmp_path / "a", ["labels"])["labels"]
    with Image.open(file) as image:
        assert image.mode == mode
        values = np.asarray(image).astype(int)
    assert np.array_equal(np.where(values == none, -1, values), result.labels)


def test_files_have_the_users_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    file = by_hand().save(tmp_path / "a", ["json"])["json"]
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("trouble", ["a file in place of a folder", "a folder in place of a file", "a full disk"])
def test_what_cannot_be_written_is_said_and_nothing_is_lost(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand().save(tmp_path / "a")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    target = tmp_path / "a"
    if trouble == "a file in place of a folder":
        target = tmp_path / "a.json" / "b"
    elif trouble == "a folder in place of a file":
        before.pop(tmp_path / "a.json")
        (tmp_path / "a.json").unlink()
        (tmp_path / "a.json").mkdir()
    else:
        monkeypatch.setattr(
            "san.inference.segmentation.write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
        )
    with pytest.raises(ValueError, match="cannot write .*give a folder that can be written to"):
        made().save(target)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        by_hand().save(tmp_path / "a")


def test_threads_writing_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    results = [by_hand(3 + number) for number in range(4)]
    threads = [threading.Thread(target=result.save, args=(tmp_path / "a", ["json"])) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) in [result.to_dict() for result in results]


def test_write_takes_each_files_name(tmp_path: Path) -> None:
    """Also a folder with an ending, into which `save` would write."""
    (tmp_path / "a").mkdir()
    files = {"labels": tmp_path / "a.tif.part", "json": tmp_path / "new" / "a"}
    by_hand().write(files, file_name="a.jpg")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files.values())
    assert json.loads(files["json"].read_text()) == by_hand().to_dict("a.jpg")
    assert Image.open(files["labels"]).format == "PNG"
    with pytest.raises(ValueError, match="cannot write .*is a folder"):
        by_hand().write({"labels": tmp_path / "b", "json": tmp_path / "a"})
    assert not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="two formats in one file .*give each its own"):
        by_hand().write({"rle": tmp_path / "b", "json": tmp_path / "b"})
    with pytest.raises(ValueError, match="unknown formats .*give a list of overlay, labels"):
        by_hand().write({"svg": tmp_path / "b"})


@pytest.mark.parametrize("formats", [["svg"], "json"])
def test_unknown_formats(tmp_path: Path, formats: list[str]) -> None:
    with pytest.raises(ValueError, match="unknown formats .*give a list of overlay, labels"):
        by_hand().save(tmp_path / "a", formats)

"""Every format is read back, by the tool's own reader where it is installed; labels are those that were written."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from san.data.custom import load_custom_dataset
from san.data.label_maps import read_truth
from san.io.files import LABEL_FORMATS
from san.labelling.coco import coco_image_ids
from san.labelling.formats import WRITERS
from san.labelling.regions import RegionOptions, find_regions
from san.labelling.sets import LabelledImage, SetOptions, set_name, write_sets
from san.labelling.tools import brush_rle, cvat_rle
from san.vocabulary.vocabulary import Vocabulary
from tests.labelling.test_outlines import noisy_labels

CLASSES = Vocabulary.parse("cat|kitten, dog & co, sky, 犬").classes
LABELS = {"a.jpg": noisy_labels(3.0), "sub/b.png": noisy_labels(4.0, (50, 40)), "empty.png": np.full((20, 30), -1)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a format with options, once, and returns its folder."""
    folder = tmp_path_factory.mktemp("sets")
    images = []
    for name, labels in LABELS.items():
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(folder / "pictures" / name)
        scores = np.full(labels.shape, 0.75, np.float32)
        images.append((name, labels, scores))

    def write(kind: str, **options: Any) -> Path:
        given = {"instances": False, "outlines": None, "min_area": 0, "tolerance": 0.0} | options
        out = folder / "-".join(map(str, [kind, *given.values()]))
        if not out.exists():
            regions = RegionOptions(bool(given["instances"]), given.pop("min_area"), things=given.get("things"))
            loaded = [
                lambda name=name, labels=labels, scores=scores: LabelledImage(
                    folder / "pictures" / name, name, find_regions(labels, scores, 4, regions)
                )
                for name, labels, scores in images
            ]
            write_sets({out: WRITERS[kind]}, loaded, [*LABELS], SetOptions("toy", CLASSES, **given))
        return out

    return write


def agree(found: np.ndarray, name: str, least: float = 1.0) -> None:
    """The classes (-1 none) of an image agree with what was written: the IoU of each is at least so much."""
    expected = LABELS[name]
    assert found.shape == expected.shape
    for label in np.union1d(np.unique(found), np.unique(expected)).tolist():
        a, b = found == label, expected == label
        assert (a & b).sum() / (a | b).sum() >= least, (name, label)


def test_the_command_knows_every_format() -> None:
    assert tuple(WRITERS) == LABEL_FORMATS


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("outlines", ["masks", "polygons"])
def test_coco(written: Callable[..., Path], outlines: str, instances: bool, capsys: Any) -> None:
    file = written("coco", outlines=outlines, instances=instances) / "annotations/instances_train.json"
    coco = COCO(str(file))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == [each.name for each in CLASSES]
    assert {each["file_name"] for each in coco.dataset["images"]} == set(LABELS)
    for image in coco.dataset["images"]:
        found = np.full((image["height"], image["width"]), -1)
        entries = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        for entry in entries:
            mask = coco.annToMask(entry).astype(bool)
            assert mask.sum() == entry["area"]
            assert list(coco_mask.toBbox(coco.annToRLE(entry))) == entry["bbox"]
            assert (found[mask] == -1).all()
            found[mask] = entry["category_id"] - 1
        agree(found, image["file_name"])
        kinds = [entry["category_id"] for entry in entries]
        assert instances or len({*kinds}) == len(kinds)
    if outlines == "masks":
        results = coco.loadRes(coco.dataset["annotations"])
        assert len(results.getAnnIds()) == len(coco.getAnnIds())
        assert {each["score"] for each in results.dataset["annotations"]} == {0.75}


@pytest.mark.parametrize("things", [(0, 3), ()], ids=["things", "stuff"])
def test_coco_panoptic(written: Callable[..., Path], things: tuple[int, ...]) -> None:
    """The PNG's colours are the ids of the segments; a thing has one per component, stuff one per class."""
    folder = written("coco-panoptic", instances=True, things=things)
    content = json.loads((folder / "annotations/panoptic_train.json").read_text(encoding="utf-8"))
    assert [each["isthing"] for each in content["categories"]] == [int(index in things) for index in range(4)]
    names = {each["id"]: each["file_name"] for each in content["images"]}
    assert {*names.values()} == {*LABELS}
    for annotation in content["annotations"]:
        rgb = np.asarray(Image.open(folder / "panoptic" / annotation["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]
        segments = annotation["segments_info"]
        assert {*np.unique(ids)} - {0} == {each["id"] for each in segments}
        found, labels = np.full(ids.shape, -1), LABELS[names[annotation["image_id"]]]
        for each in segments:
            mask = ids == each["id"]
            left, top, width, height = each["bbox"]
            assert (mask.sum(), mask[top : top + height, left : left + width].sum()) == (each["area"],) * 2
            found[mask] = each["category_id"] - 1
        agree(found, names[annotation["image_id"]])
        for label in np.unique(labels[labels >= 0]).tolist():
            parts = find_regions(labels, None, 4, RegionOptions(instances=True)).labels.tolist().count(label)
            own = [each for each in segments if each["category_id"] == label + 1]
            assert len(own) == (parts if label in things else 1)


def test_ids_of_images_are_their_numbers() -> None:
    assert coco_image_ids(["val/000139.jpg", "val/000285.jpg"]) == [139, 285]
    assert coco_image_ids(["a/1.jpg", "b/1.jpg"]) == [1, 2]
    assert coco_image_ids(["a.jpg", "7.jpg"]) == [1, 2]
    assert coco_image_ids([]) == []


def test_coco_in_supervision(written: Callable[..., Path]) -> None:
    supervision = pytest.importorskip("supervision")
    folder = written("coco", instances=True)
    file = folder / "annotations/instances_train.json"
    data = supervision.DetectionDataset.from_coco(str(folder / "images"), str(file), force_masks=True)
    assert data.classes == [each.name for each in CLASSES]
    for path, _, found in data:
        name = Path(path).relative_to(folder / "images").as_posix()
        labels = np.full(LABELS[name].shape, -1)
        for mask, label in zip(found.mask if len(found) else (), found.class_id, strict=True):
            labels[mask] = label
        agree(labels, name)


def test_png_is_a_data_set_of_our_own(written: Callable[..., Path]) -> None:
    folder = written("png")
    data = load_custom_dataset(folder / "dataset.yaml")
    assert data.classes == CLASSES
    (split,) = data.splits
    assert split.name == "toy_train"
    pairs = split.pairing().usable("toy")
    assert len(pairs) == len(LABELS)
    for pair in pairs:
        name = Path(pair["file_name"]).relative_to(folder / "images").as_posix()
        found = read_truth(pair["sem_seg_file_name"], 4, data.ignore_label)
        agree(np.where(found == 255, -1, found), name)


def test_dropped_pixels_are_ignored_in_png_and_void_in_voc(written: Callable[..., Path]) -> None:
    regions = find_regions(LABELS["a.jpg"], None, 4, RegionOptions(min_area=30))
    assert regions.dropped.any()
    png = np.asarray(Image.open(written("png", min_area=30) / "labels/a.png"))
    assert np.array_equal(png == 255, regions.dropped | (LABELS["a.jpg"] == -1))
    voc = np.asarray(Image.open(written("voc", min_area=30) / "SegmentationClass/a.png"))
    assert np.array_equal(voc == 255, regions.dropped)
    assert np.array_equal(voc == 0, LABELS["a.jpg"] == -1)


def test_voc(written: Callable[..., Path]) -> None:
    folder = written("voc", instances=True)
    assert (folder / "ImageSets/Segmentation/train.txt").read_text().split() == ["a", "sub/b", "empty"]
    lines = (folder / "labelmap.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["background", *(each.name for each in CLASSES)]
    for name, labels in LABELS.items():
        stem = name.rpartition(".")[0]
        assert (folder / "JPEGImages" / name).is_file()
        picture = Image.open(folder / f"SegmentationClass/{stem}.png")
        assert picture.mode == "P"
        agree(np.asarray(picture).astype(int) - 1, name)
        colors = {line.split(":")[1] for line in lines}
        assert {",".join(map(str, color)) for _, color in picture.convert("RGB").getcolors()} <= colors
        ids = np.asarray(Image.open(folder / f"SegmentationObject/{stem}.png"))
        objects = ElementTree.parse(folder / f"Annotations/{stem}.xml").findall("object")
        assert len(objects) == ids.max()
        for index, each in enumerate(objects, start=1):
            rows, columns = np.nonzero(ids == index)
            box = {edge.tag: int(edge.text or "") - 1 for edge in each.find("bndbox") or ()}
            extent = (columns.min(), rows.min(), columns.max(), rows.max())
            assert (box["xmin"], box["ymin"], box["xmax"], box["ymax"]) == extent
            assert each.findtext("name") == CLASSES[labels[rows[0], columns[0]]].name


def drawn(rings: list[tuple[int, list[float]]], size: tuple[int, int]) -> np.ndarray:
    """Classes of polygons x, y, x, y, ... that are filled by the even-odd rule."""
    found = np.full(size, -1)
    for label, points in rings:
        found[coco_mask.decode(coco_mask.frPyObjects([points], *size))[..., 0].astype(bool)] = label
    return found


def test_yolo(written: Callable[..., Path]) -> None:
    folder = written("yolo-seg")
    data = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == {index: each.name for index, each in enumerate(CLASSES)}
    for name, labels in LABELS.items():
        assert (folder / data["train"] / name).is_file()
        polygons = []
        for line in (folder / "labels" / name).with_suffix(".txt").read_text().splitlines():
            label, *values = line.split()
            points = np.array(values, float).reshape(-1, 2)
            assert len(points) >= 3 and points.min() >= 0 and points.max() <= 1
            polygons.append((int(label), (points * labels.shape[::-1]).ravel().tolist()))
        agree(drawn(polygons, labels.shape), name)


def test_yolo_in_supervision(written: Callable[..., Path]) -> None:
    """Which draws the outline too, so that masks are a pixel wider."""
    supervision = pytest.importorskip("supervision")
    folder = written("yolo-seg", min_area=200)
    data = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
    )
    assert data.classes == [each.name for each in CLASSES]
    (found,) = (each for path, _, each in data if path.endswith("a.jpg"))
    expected = find_regions(LABELS["a.jpg"], None, 4, RegionOptions(min_area=200)).labels
    assert set(found.class_id) == {*expected.tolist()}
    for mask, label in zip(found.mask, found.class_id, strict=True):
        assert ((LABELS["a.jpg"] == label) & mask).sum() / mask.sum() > 0.75


@pytest.mark.parametrize("outlines", ["masks", "polygons"])
def test_labelme(written: Callable[..., Path], outlines: str) -> None:
    folder = written("labelme", outlines=outlines)
    for name, labels in LABELS.items():
        content = json.loads((folder / name).with_suffix(".json").read_text(encoding="utf-8"))
        assert (folder / name).parent.joinpath(content["imagePath"]).is_file()
        assert (content["imageHeight"], content["imageWidth"]) == labels.shape
        names = [each.name for each in CLASSES]
        if outlines == "polygons":
            rings = [(names.index(each["label"]), np.ravel(each["points"]).tolist()) for each in content["shapes"]]
            agree(drawn(rings, labels.shape), name)
            continue
        found = np.full(labels.shape, -1)
        for each in content["shapes"]:
            (left, top), (right, bottom) = each["points"]
            mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(each["mask"]))))
            found[top : bottom + 1, left : right + 1][mask] = names.index(each["label"])
        agree(found, name)


@pytest.mark.parametrize("outlines", ["masks", "polygons"])
def test_labelme_in_labelme(written: Callable[..., Path], outlines: str) -> None:
    reader = pytest.importorskip("labelme._label_file")
    path = written("labelme", outlines=outlines) / "a.json"
    loaded = reader.load_label_file(str(path)) if hasattr(reader, "load_label_file") else reader.LabelFile(str(path))
    kinds = {(each["label"], each["shape_type"]) for each in loaded.shapes}
    assert kinds == {(each.name, outlines.removesuffix("s")) for each in CLASSES}
    if outlines == "masks":
        masks = [each["mask"] for each in loaded.shapes]
        assert sum(mask.sum() for mask in masks) == (LABELS["a.jpg"] >= 0).sum()


@pytest.mark.parametrize("outlines", ["masks", "polygons"])
def test_label_studio(written: Callable[..., Path], outlines: str) -> None:
    folder = written("label-studio", outlines=outlines)
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={name}" for name in LABELS]
    names = [each.name for each in CLASSES]
    for name, task in zip(LABELS, tasks, strict=True):
        height, width = LABELS[name].shape
        rings, found = [], np.full((height, width), -1)
        for result in task["predictions"][0]["result"]:
            assert (result["original_height"], result["original_width"]) == (height, width)
            assert result["score"] == 0.75
            label = names.index(result["value"][result["type"]][0])
            if outlines == "polygons":
                points = np.array(result["value"]["points"]) * [width, height] / 100
                rings.append((label, points.ravel().tolist()))
            else:
                found[decoded(bytes(result["value"]["rle"])).reshape(height, width, 4)[..., 3] == 255] = label
        agree(found if outlines == "masks" else drawn(rings, (height, width)), name)


@pytest.mark.parametrize("outlines", ["masks", "polygons"])
def test_label_studio_in_its_sdk(written: Callable[..., Path], outlines: str) -> None:
    interfaces = pytest.importorskip("label_studio_sdk.label_interface")
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    folder = written("label-studio", outlines=outlines)
    interface = interfaces.LabelInterface((folder / "label_config.xml").read_text(encoding="utf-8"))
    interface.validate()
    for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8")):
        assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
        if outlines == "masks":
            for result in task["predictions"][0]["result"][:1]:
                rle = result["value"]["rle"]
                assert np.array_equal(brush.decode_rle(rle), decoded(bytes(rle)))


def decoded(data: bytes) -> np.ndarray:
    """The values of Label Studio's run lengths."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, width = take(32), take(5) + 1
    counters = [take(4) + 1 for _ in range(4)]
    values = np.zeros(number, int)
    start = 0
    while start < number:
        repeated, end = take(1), start + take(counters[take(2)]) + 1
        values[start:end] = take(width) if repeated else [take(width) for _ in range(start, end)]
        start = end
    assert start == number
    return values


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (130, 130)])
def test_run_lengths(size: tuple[int, int]) -> None:
    """Runs of every length of a counter; 130 x 130 x 4 bytes are more than a counter holds."""
    for mask in (np.zeros(size, bool), np.ones(size, bool), np.arange(size[0] * size[1]).reshape(size) % 3 == 0):
        values = decoded(brush_rle(mask)).reshape(*size, 4)
        assert np.array_equal(values == 255, np.repeat(mask[..., None], 4, axis=2))
        runs = np.array(cvat_rle(mask).split(", "), int)
        assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(size), mask)


@pytest.mark.parametrize("outlines", ["masks", "polygons"])
def test_cvat(written: Callable[..., Path], outlines: str) -> None:
    root = ElementTree.parse(written("cvat", outlines=outlines) / "annotations.xml").getroot()
    names = [each.findtext("name") for each in root.iter("label")]
    assert names == [each.name for each in CLASSES]
    assert root.findtext("version") == "1.1"
    for image in root.findall("image"):
        name, size = image.attrib["name"], (int(image.attrib["height"]), int(image.attrib["width"]))
        rings, found = [], np.full(size, -1)
        for each in image:
            label = names.index(each.attrib["label"])
            if each.tag == "polygon":
                rings.append((label, [float(v) for v in each.attrib["points"].replace(";", ",").split(",")]))
                continue
            left, top, width, height = (int(each.attrib[key]) for key in ("left", "top", "width", "height"))
            runs = np.array(each.attrib["rle"].split(", "), int)
            mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width) == 1
            found[top : top + height, left : left + width][mask] = label
        agree(found if outlines == "masks" else drawn(rings, size), name)


def test_geojson(written: Callable[..., Path]) -> None:
    geometry = pytest.importorskip("shapely.geometry")
    folder = written("geojson")
    for name, labels in LABELS.items():
        content = json.loads((folder / name).with_suffix(".geojson").read_text(encoding="utf-8"))
        assert content["type"] == "FeatureCollection" and content["image"] == name
        for feature in content["features"]:
            shape = geometry.shape(feature["geometry"])
            label = feature["properties"]["label"]
            assert shape.is_valid and shape.area == (labels == label).sum() == feature["properties"]["area"]
            rows, columns = np.nonzero(labels == label)
            assert shape.covers(geometry.Point(columns[0] + 0.5, rows[0] + 0.5))
        assert len(content["features"]) == len(np.unique(labels[labels >= 0]))


@pytest.mark.parametrize(("kind", "their_name"), [("coco", "coco"), ("voc", "voc_segmentation"), ("cvat", "cvat")])
def test_in_datumaro(written: Callable[..., Path], kind: str, their_name: str) -> None:
    datumaro = pytest.importorskip("datumaro")
    options = {"outlines": "masks"} if kind == "cvat" else {}
    folder = written(kind, **options)
    data = datumaro.Dataset.import_from(str(folder), their_name)
    names = [each.name for each in data.categories()[datumaro.AnnotationType.label]]
    assert len(data) == len(LABELS)
    for item in data:
        (name,) = (each for each in LABELS if each.rpartition(".")[0] == item.id or each == item.id)
        found = np.full(LABELS[name].shape, -1)
        for each in item.annotations:
            if each.type == datumaro.AnnotationType.mask and names[each.label] != "background":
                found[each.image.astype(bool)] = [one.name for one in CLASSES].index(names[each.label])
        agree(found, name)


def test_sets_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/old.txt").touch()
    source = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(source)
    image = LabelledImage(source, "a.png", find_regions(np.zeros((4, 4), int), None, 4, RegionOptions()))

    def fail() -> LabelledImage:
        raise OSError("disk full")

    writers = {tmp_path / name: WRITERS[name] for name in ("coco", "png")}
    options = SetOptions("toy", CLASSES)
    with pytest.raises(OSError, match="disk full"):
        write_sets(writers, [lambda: image, fail], ["a.png", "b.png"], options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "coco"]
    assert (tmp_path / "coco/old.txt").exists()
    write_sets(writers, [lambda: image], ["a.png"], options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "coco", "png"]
    assert sorted(path.name for path in (tmp_path / "coco").iterdir()) == ["annotations", "images"]


@pytest.mark.parametrize(
    ("text", "name"), [("my labels", "my_labels"), ("..", "labels"), ("a/b", "a_b"), ("", "labels")]
)
def test_names_of_sets(text: str, name: str) -> None:
    assert set_name(text) == name

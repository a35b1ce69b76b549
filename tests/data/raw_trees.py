"""Fake raw downloads of the benchmarks, in the true raw formats, with the label maps they must be converted to.

    tree = make_raw_tree("voc", folder)                  # unpacked, as the publisher's archives unpack
    tree = make_raw_tree("voc", folder, archives=True)   # the archives themselves
    tree.expected["voc_sem_seg_val"]["2008_000001"]      # (H, W) int64, upright

The images of each split go through `IMAGE_KINDS`: colour, grey, CMYK, and one with an EXIF rotation.
"""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as rle

from san.vocabulary.label_sets import LabelSet, load_label_set

Labels = np.ndarray[Any, np.dtype[Any]]

IMAGE_KINDS = ("RGB", "L", "CMYK", "EXIF")
ORIENTATION = 6  # to be seen upright the stored pixels are turned by 90 degrees clockwise


@dataclass
class RawTree:
    """A fake download.

    Attributes:
        name: the set, a key of `san.preparation.PREPARATIONS`.
        raw: the folder that holds the download; good for `--raw`, or itself as `--root`.
        expected: registered name -> stem -> (H, W) label map after the conversion, upright.
        segments: the same for a panoptic set: the number of the segment at each pixel, 0 for none.
    """

    name: str
    raw: Path
    expected: dict[str, dict[str, Labels]] = field(default_factory=dict)
    segments: dict[str, dict[str, Labels]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """Number of images, and their range of sides in pixels."""

    train: int = 5
    val: int = 4
    low: int = 24
    high: int = 61
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One image: class indices on the pixels as they are stored, and how the image file is written."""

    labels: Labels
    kind: str

    @property
    def upright(self) -> Labels:
        return np.rot90(self.labels, -1) if self.kind == "EXIF" else self.labels


def make_raw_tree(name: str, folder: Path, *, archives: bool = False, sizes: Sizes | None = None) -> RawTree:
    """Write the raw download of a set into `folder`, unpacked or as archives of the publisher's names."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = RawTree(name, folder)
    packs = (MAKERS | PANOPTIC_MAKERS)[name](tree, sizes or Sizes())
    if archives:
        for archive, content in packs.items():
            _pack(folder, archive, content)
        for content in packs.values():
            shutil.rmtree(folder / content.split("/")[0], ignore_errors=True)
    return tree


def write_jpeg(path: Path, sample: Sample) -> None:
    """A picture whose colours follow the labels, in the sample's kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([sample.labels * step % 251 for step in (37, 91, 53)], axis=-1).astype(np.uint8)
    image = Image.fromarray(colors)
    if sample.kind == "EXIF":
        exif = image.getexif()
        exif[0x0112] = ORIENTATION
        image.save(path, quality=95, exif=exif)
    else:
        image.convert(sample.kind).save(path, quality=95)


def write_png(path: Path, values: Labels, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = image.convert("P")  # keeps the values as they are: the palette is grey until it is replaced
        image.putpalette([channel for i in range(256) for channel in (i * 64 % 256, i * 37 % 256, 255 - i)])
    image.save(path)


def _samples(labels: LabelSet, sizes: Sizes, count: int, seed: int) -> Iterator[Sample]:
    """Blocks of random classes, of which a tenth is ignored (-1)."""
    rng = np.random.default_rng([sizes.seed, seed])
    for index in range(count):
        height, width = rng.integers(sizes.low, sizes.high, 2)
        blocks = rng.integers(0, labels.num_classes, (-(-height // 8), -(-width // 8)))
        blocks[rng.random(blocks.shape) < 0.1] = -1
        blocks.flat[0], blocks.flat[-1] = -1, (index * 7) % labels.num_classes
        values = np.kron(blocks, np.ones((8, 8), np.int64))[:height, :width]
        yield Sample(values, IMAGE_KINDS[index % len(IMAGE_KINDS)])


def _expect(tree: RawTree, registered: str, labels: LabelSet, stem: str, values: Labels) -> None:
    converted = np.where(values < 0, labels.ignore_label, values)
    tree.expected.setdefault(registered, {})[stem] = converted


def _encode(labels: LabelSet, values: Labels, ignored: list[int]) -> Labels:
    """Class indices as values of the download; ignored pixels take the raw values without a class in turn."""
    raw = np.asarray(labels.raw_values)[values.clip(0)]
    where = np.flatnonzero(values < 0)
    raw.flat[where] = np.resize(ignored, len(where))
    return raw


def _splits(sizes: Sizes) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("train", sizes.train), ("val", sizes.val)


def make_coco_stuff(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    labels = load_label_set("coco_stuff_171")
    for seed, (split, count) in enumerate(_splits(sizes)):
        registered = f"coco_2017_{'test' if split == 'val' else split}_stuff_sem_seg"
        for index, sample in enumerate(_samples(labels, sizes, count, seed)):
            stem = f"{1000 * seed + index * 13 + 9:012d}"
            write_jpeg(tree.raw / f"coco/{split}2017/{stem}.jpg", sample)
            raw = _encode(labels, sample.labels, [255, 11, 90])  # unlabelled, and two ids without annotation
            write_png(tree.raw / f"coco/stuffthingmaps/{split}2017/{stem}.png", raw)
            _expect(tree, registered, labels, stem, sample.upright)
    return {
        "train2017.zip": "coco/train2017",
        "val2017.zip": "coco/val2017",
        "stuffthingmaps_trainval2017.zip": "coco/stuffthingmaps/*",
    }


def make_voc(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    labels = load_label_set("voc_20")
    voc, aug = tree.raw / "VOCdevkit/VOC2012", tree.raw / "SegmentationClassAug"
    stems: dict[str, list[str]] = {}
    for seed, (split, count) in enumerate(_splits(sizes)):
        for index, sample in enumerate(_samples(labels, sizes, count, seed)):
            stem = f"{2008 + seed}_{index + 1:06d}"
            stems.setdefault(split, []).append(stem)
            raw = _encode(labels, sample.labels, [0, 255])
            write_jpeg(voc / f"JPEGImages/{stem}.jpg", sample)
            write_png(aug / f"{stem}.png", raw, palette=index % 2 == 1)
            if split == "val" or index == 0:  # the official labels are colour-mapped and cover fewer images
                write_png(voc / f"SegmentationClass/{stem}.png", raw, palette=True)
            _expect(tree, f"voc_sem_seg_{split}", labels, stem, sample.upright)
    write_jpeg(voc / "JPEGImages/2012_004331.jpg", Sample(np.zeros((20, 20), np.int64), "RGB"))  # no label
    lists = voc / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(stems["train"][0] + "\n")  # the official list, far shorter than trainaug
    (lists / "val.txt").write_text("".join(f"{stem}\n" for stem in stems["val"]))
    lines = (f"/JPEGImages/{stem}.jpg /SegmentationClassAug/{stem}.png\n" for stem in stems["train"])
    (tree.raw / "trainaug.txt").write_text("".join(lines))
    return {"VOCtrainval_11-May-2012.tar": "VOCdevkit", "SegmentationClassAug.zip": "SegmentationClassAug"}


def _make_pcontext_images(tree: RawTree, sizes: Sizes, labels: LabelSet) -> Iterator[tuple[str, str, Sample]]:
    """VOC2010's images; yields phase, stem and sample. A few of phase test, and one that is in no list, come along."""
    folder = tree.raw / "VOCdevkit/VOC2010/JPEGImages"
    for seed, (phase, count) in enumerate((*_splits(sizes), ("test", 1), ("none", 1))):
        for index, sample in enumerate(_samples(labels, sizes, count, seed)):
            stem = f"{2007 + seed}_{index + 3:06d}"
            write_jpeg(folder / f"{stem}.jpg", sample)
            if phase != "none":
                yield phase, stem, sample


def _detail_json(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """trainval_merged.json, with parts that are not needed here."""
    names = load_label_set("pascal_context_459").classes
    content = {
        "info": {"description": "PASCAL in Detail"},
        "annos_occlusion": [{"id": 1, "image_id": 1, "segmentation": {"size": [1, 1], "counts": [1]}}],
        "annos_segmentation": annotations,
        "images": images,
        "categories": [
            {"category_id": i + 1, "name": "".join(name.split()), "onlysemantic": 1} for i, name in enumerate(names)
        ],
        "parts": [{"part_id": 1, "name": "silhouette"}],
    }
    (folder / "trainval_merged.json").write_text(json.dumps(content))


def _detail_image(stem: str, phase: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "image_id": int(stem.replace("_", "")), "file_name": f"{stem}.jpg", "height": int(shape[0]),
        "width": int(shape[1]), "phase": phase,
    }  # fmt: skip


def make_pcontext(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    labels = load_label_set("pascal_context_59")
    images, annotations = [], []
    for phase, stem, sample in _make_pcontext_images(tree, sizes, labels):
        images.append(_detail_image(stem, phase, sample.labels.shape))
        masks = _painting(labels, sample.labels)
        for category, mask in masks:
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            counts: Any = encoded["counts"].decode() if len(annotations) % 3 else _plain_counts(mask)
            annotations.append({
                "id": len(annotations) + 1, "image_id": images[-1]["image_id"], "category_id": category,
                "segmentation": {"size": encoded["size"], "counts": counts}, "iscrowd": 0, "parts": [],
            })  # fmt: skip
        if phase != "test":
            _expect(tree, f"pcontext_sem_seg_{phase}", labels, stem, sample.upright)
    _detail_json(tree.raw, images, annotations)
    return {"VOCtrainval_03-May-2010.tar": "VOCdevkit"}


def _painting(labels: LabelSet, values: Labels) -> list[tuple[int, Labels]]:
    """Masks in painting order: the first covers all classes, later ones go over it, the last is outside the table."""
    present = [int(value) for value in np.unique(values) if value >= 0]
    masks = [(labels.raw_values[value], values == value) for value in present]
    masks[0] = (masks[0][0], values >= 0)
    outside = values < 0
    outside[: values.shape[0] // 2] = False
    return [*masks, (1, outside)]  # id 1 is none of the 59; the other ignored pixels stay unpainted


def _plain_counts(mask: Labels) -> list[int]:
    """Uncompressed RLE: lengths of runs down the columns, starting with zeros."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    edges = np.flatnonzero(np.diff(flat))
    return [int(n) for n in np.diff(np.concatenate([[0], edges, [mask.size]]))]


def make_pcontext_full(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    labels = load_label_set("pascal_context_459")
    images = []
    folder = tree.raw / "trainval"
    folder.mkdir(parents=True)
    for phase, stem, sample in _make_pcontext_images(tree, sizes, labels):
        images.append(_detail_image(stem, phase, sample.labels.shape))
        if phase == "test":
            continue
        raw = _encode(labels, sample.labels, [0]).astype(np.uint16)
        scipy.io.savemat(folder / f"{stem}.mat", {"LabelMap": raw}, do_compression=True)
        _expect(tree, f"pcontext_full_sem_seg_{phase}", labels, stem, sample.upright)
    scipy.io.savemat(folder / "2007_999999.mat", {"LabelMap": np.ones((4, 4), np.uint16)})  # in no list
    _detail_json(tree.raw, images, [])
    return {"VOCtrainval_03-May-2010.tar": "VOCdevkit", "trainval.tar.gz": "trainval"}


def make_ade20k(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    labels = load_label_set("ade20k_150")
    folder = tree.raw / "ADEChallengeData2016"
    for seed, (split, count) in enumerate(_splits(sizes)):
        split_folder = {"train": "training", "val": "validation"}[split]
        for index, sample in enumerate(_samples(labels, sizes, count, seed)):
            stem = f"ADE_{split}_{index + 1:08d}"
            write_jpeg(folder / f"images/{split_folder}/{stem}.jpg", sample)
            write_png(folder / f"annotations/{split_folder}/{stem}.png", _encode(labels, sample.labels, [0]))
            _expect(tree, f"ade20k_sem_seg_{split}", labels, stem, sample.upright)
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return {"ADEChallengeData2016.zip": "ADEChallengeData2016"}


def make_ade20k_full(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    labels = load_label_set("ade20k_847")
    names: list[str] = []
    folders: list[str] = []
    for seed, (split, count) in enumerate(_splits(sizes)):
        samples = list(_samples(labels, sizes, count, seed))
        if split == "val":
            samples.append(_big_sample(labels))
        for index, sample in enumerate(samples):
            token = "frame" if (split, index) == ("train", 1) else split
            stem = f"ADE_{token}_{index + 1:08d}"
            names.append(f"{stem}.jpg")
            scene = ("urban/street", "home_or_hotel/bedroom")[index % 2]
            split_folder = {"train": "training", "val": "validation"}[split]
            folders.append(f"ADE20K_2021_17_01/images/ADE/{split_folder}/{scene}")
            _write_ade_image(tree.raw / folders[-1] / stem, labels, sample)
            values = sample.upright
            if min(values.shape) > 512:
                values = _nearest(values, 512)
            _expect(tree, f"ade20k_full_sem_seg_{split}", labels, stem, values)
    write_ade_index(tree.raw / "ADE20K_2021_17_01/index_ade20k.pkl", names, folders)
    return {"ADE20K_2021_17_01.zip": "ADE20K_2021_17_01"}


def _big_sample(labels: LabelSet) -> Sample:
    """530 x 700, which becomes 512 x 676."""
    values = np.arange(530)[:, None] // 16 * 44 + np.arange(700) // 16
    return Sample(values % labels.num_classes, "RGB")


def _nearest(values: Labels, short: int) -> Labels:
    """The pixel at floor(x * old / new), in whole numbers."""
    height, width = values.shape
    shorter, longer = min(height, width), max(height, width)
    other = round(longer / shorter * short)
    size = (short, other) if height <= width else (other, short)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    return values[rows[:, None], columns]


def _write_ade_image(path: Path, labels: LabelSet, sample: Sample) -> None:
    write_jpeg(path.with_name(path.name + ".jpg"), sample)
    ids = _encode(labels, sample.labels, [0, 3149])  # not annotated, and an object that is none of the 847
    instances = np.arange(ids.size).reshape(ids.shape) // 40 % 256
    colors = np.stack([ids // 256 * 10, ids % 256, instances], axis=-1).astype(np.uint8)
    Image.fromarray(colors).save(path.with_name(path.name + "_seg.png"))
    Image.fromarray(colors[:, ::-1]).save(path.with_name(path.name + "_parts_1.png"))
    path.with_name(path.name + ".json").write_text("{}")
    path.mkdir()
    write_png(path / "instance_000_IMG.png", ids > 0)


def write_ade_index(path: Path, names: list[str], folders: list[str], **changes: Any) -> None:
    """index_ade20k.pkl as NumPy 1 wrote it."""
    labels = load_label_set("ade20k_847")
    objects = [f"object {i}" for i in range(3688)]
    for class_name, number in zip(labels.classes, labels.raw_values, strict=True):
        objects[number - 1] = class_name
    index: dict[str, Any] = {
        "filename": names, "folder": folders, "objectnames": objects, "scene": ["street"] * len(names),
        "objectPresence": np.ones((len(objects), len(names)), np.uint8), "objectcounts": np.zeros(len(objects)),
        "description": "ADE20K 2021_17_01", "wordnet_found": np.array([1.0, 2.0]), "proportion": np.float64(0.5),
    } | changes  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(index, protocol=2).replace(b"numpy._core.", b"numpy.core."))


def _pack(folder: Path, archive: str, content: str) -> None:
    """`content` is a path below `folder`; its last part is the top of the archive ("*": what lies in it)."""
    base = (folder / content).parent
    top = sorted(base.iterdir()) if content.endswith("*") else [folder / content]
    files = sorted(path for start in top for path in [start, *start.rglob("*")])
    if archive.endswith(".zip"):
        with zipfile.ZipFile(folder / archive, "w", zipfile.ZIP_DEFLATED) as pack:
            for path in files:
                pack.write(path, path.relative_to(base).as_posix())
            pngs = [path for path in files if path.suffix == ".png"]
            if pngs:  # added by macOS: not a PNG in spite of its name
                pack.writestr(f"__MACOSX/{pngs[0].parent.relative_to(base).as_posix()}/._{pngs[0].name}", b"\0\5\x16\7")
    else:
        with tarfile.open(folder / archive, "w:gz" if archive.endswith("gz") else "w") as pack:
            for path in files:
                pack.add(path, path.relative_to(base).as_posix(), recursive=False)


MAKERS: dict[str, Callable[[RawTree, Sizes], dict[str, str]]] = {
    "coco_stuff": make_coco_stuff,
    "voc": make_voc,
    "pcontext": make_pcontext,
    "pcontext_full": make_pcontext_full,
    "ade20k": make_ade20k,
    "ade20k_full": make_ade20k_full,
}


def _instances(labels: LabelSet, values: Labels, rng: np.random.Generator) -> Labels:
    """Numbers the segments of a map: up to three instances of each thing class in an image, one region of stuff."""
    things = np.array([name in labels.things for name in labels.classes])
    copy = np.kron(rng.integers(0, 3, (-(-values.shape[0] // 8), -(-values.shape[1] // 8))), np.ones((8, 8), np.int64))
    keys = np.where(values < 0, -1, 3 * values + copy[: values.shape[0], : values.shape[1]] * things[values.clip(0)])
    known = [key for key in np.unique(keys).tolist() if key >= 0]
    return np.where(keys < 0, 0, np.searchsorted(known, keys) + 1)


def make_coco_panoptic(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    """JSON files, and archives of PNGs in the archive of annotations; an image's last segment is a crowd."""
    labels = load_label_set("coco_panoptic_133")
    folder = tree.raw / "annotations"
    for seed, (split, count) in enumerate(_splits(sizes)):
        registered, stems = f"coco_2017_{split}_panoptic", []
        annotations = []
        for index, sample in enumerate(_samples(labels, sizes, count, seed)):
            stem = f"{1000 * seed + index * 13 + 9:012d}"
            stems.append(stem)
            write_jpeg(tree.raw / f"coco/{split}2017/{stem}.jpg", Sample(sample.labels, IMAGE_KINDS[index % 2]))
            numbers = _instances(labels, sample.labels, np.random.default_rng([seed, index]))
            ids = np.where(numbers > 0, numbers * 70_001, 0)
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=-1).astype(np.uint8)
            (folder / f"panoptic_{split}2017").mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / f"panoptic_{split}2017/{stem}.png")
            segments = [
                {
                    "id": number * 70_001,
                    "category_id": labels.raw_values[sample.labels[numbers == number][0]],
                    "area": int((numbers == number).sum()), "bbox": [0, 0, 1, 1],
                    "iscrowd": int(number == numbers.max()),
                }
                for number in range(1, int(numbers.max()) + 1)
            ]  # fmt: skip
            annotations.append({"image_id": int(stem), "file_name": f"{stem}.png", "segments_info": segments})
            _expect(tree, registered, labels, stem, sample.labels)
            tree.segments.setdefault(registered, {})[stem] = numbers
        content = {
            "info": {"year": 2018},
            "images": [{"id": int(stem), "file_name": f"{stem}.jpg", "height": 1, "width": 1} for stem in stems],
            "annotations": annotations,
            "categories": [
                {"id": number, "name": f"{name}-merged", "isthing": int(name in labels.things), "color": [0, 0, 0]}
                for number, name in zip(labels.raw_values, labels.classes, strict=True)
            ],
        }
        (folder / f"panoptic_{split}2017.json").write_text(json.dumps(content))
        _pack(folder, f"panoptic_{split}2017.zip", f"panoptic_{split}2017")
        shutil.rmtree(folder / f"panoptic_{split}2017")
    return {
        "train2017.zip": "coco/train2017",
        "val2017.zip": "coco/val2017",
        "panoptic_annotations_trainval2017.zip": "annotations",
    }


def make_ade20k_panoptic(tree: RawTree, sizes: Sizes) -> dict[str, str]:
    """Class maps, and PNGs whose red channel is the number of a thing class and green that of an instance."""
    packs = make_ade20k(tree, sizes)
    labels = load_label_set("ade20k_150")
    things = {labels.classes.index(name): number for number, name in enumerate(labels.things, start=1)}
    folder = tree.raw / "annotations_instance"
    for seed, (split, count) in enumerate(_splits(sizes)):
        registered, split_folder = f"ade20k_panoptic_{split}", {"train": "training", "val": "validation"}[split]
        for index, sample in enumerate(_samples(labels, sizes, count, seed)):
            stem = f"ADE_{split}_{index + 1:08d}"
            values = np.array(sample.labels)
            numbers = _instances(labels, values, np.random.default_rng([seed, index]))
            red = np.vectorize(lambda value: things.get(value, 0))(values)
            green = np.where(red > 0, numbers % 256, 0)
            red[:3], green[:3] = 0, 0  # pixels of a thing's class without an instance
            (folder / split_folder).mkdir(parents=True, exist_ok=True)
            rgb = np.stack([red, green, np.zeros_like(red)], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(folder / split_folder / f"{stem}.png")
            bare = np.isin(values, [*things]) & (red == 0)
            values[bare], numbers[bare] = -1, 0
            turned = [Sample(each, sample.kind).upright for each in (values, numbers)]
            _expect(tree, registered, labels, stem, turned[0])
            tree.segments.setdefault(registered, {})[stem] = turned[1]
    tree.expected = {name: found for name, found in tree.expected.items() if "panoptic" in name}
    return packs | {"annotations_instance.tar": "annotations_instance"}


PANOPTIC_MAKERS: dict[str, Callable[[RawTree, Sizes], dict[str, str]]] = {
    "coco_panoptic": make_coco_panoptic,
    "ade20k_panoptic": make_ade20k_panoptic,
}

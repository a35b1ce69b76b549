"""Keys, files and values of the configuration."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from san.d2.api import get_cfg
from san.d2.config.keys import (
    add_san_config,
    augmentation_config,
    load_config,
    loss_config,
    san_cfg,
    san_config,
    solver_config,
    text_cache_folder,
)
from san.d2.config.schema import KEYS
from san.d2.config.yaml_file import flatten, leaf_keys
from san.data.transforms import AugmentationConfig
from san.losses import LossConfig
from san.model.config import SANConfig, variant

REPO = Path(__file__).resolve().parents[2]

CHANGES: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "MODEL.SIZE_DIVISIBILITY": (san_config, "64", 64),
    "MODEL.CLIP.NAME": (san_config, "ViT-L-14", "ViT-L-14"),
    "MODEL.CLIP.PRETRAINED": (san_config, "''", None),
    "MODEL.CLIP.TEXT_CACHE": (text_cache_folder, "/x", Path("/x")),
    "MODEL.CLIP.SHALLOW_DEPTH": (san_config, "10", 10),
    "MODEL.CLIP.INPUT_SCALE": (san_config, "1", 1.0),
    "MODEL.CLIP.TRAIN_POS_EMBED": (san_config, "false", False),
    "MODEL.CLIP.TEMPLATES": (san_config, "imagenet", "imagenet"),
    "MODEL.CLIP.SLS_INIT": (san_config, "learnt", "learnt"),
    "MODEL.SIDE_ADAPTER.EMBED_DIM": (san_config, "144", 144),
    "MODEL.SIDE_ADAPTER.IMAGE_SIZE": (san_config, "320", 320),
    "MODEL.SIDE_ADAPTER.DEPTH": (san_config, "8", 8),
    "MODEL.SIDE_ADAPTER.NUM_HEADS": (san_config, "8", 8),
    "MODEL.SIDE_ADAPTER.PATCH_SIZE": (san_config, "32", 32),
    "MODEL.SIDE_ADAPTER.MLP_RATIO": (san_config, "2", 2.0),
    "MODEL.SIDE_ADAPTER.NUM_QUERIES": (san_config, "50", 50),
    "MODEL.SIDE_ADAPTER.FUSION": (san_config, "['0->0','9->4']", ((0, 0), (9, 4))),
    "MODEL.SIDE_ADAPTER.SUPERVISED_BLOCKS": (san_config, "8", (8,)),
    "MODEL.HEAD.EMBED_CHANNELS": (san_config, "64", 64),
    "MODEL.HEAD.MLP_CHANNELS": (san_config, "64", 64),
    "MODEL.HEAD.MLP_NUM_LAYERS": (san_config, "2", 2),
    "MODEL.ATTN_BIAS.NUM_HEADS": (san_config, "1", 1),
    "MODEL.ATTN_BIAS.NUM_LAYERS": (san_config, "3", 3),
    "MODEL.ATTN_BIAS.POOLING": (san_config, "average", "average"),
    "MODEL.ATTN_BIAS.LEARNT_SCALE": (san_config, "False", False),
    "MODEL.ATTN_BIAS.ENABLED": (san_config, "False", False),
    "MODEL.ATTN_BIAS.STOP_GRADIENT": (san_config, "True", True),
    "INPUT.MIN_SIZE_TRAIN": (augmentation_config, "(100,200)", (100, 200)),
    "INPUT.MAX_SIZE_TRAIN": (augmentation_config, "1000", 1000),
    "INPUT.CROP.SIZE": (augmentation_config, "320,320", None),
    "INPUT.AUGMENT.BRIGHTNESS": (augmentation_config, "5", 5.0),
    "INPUT.AUGMENT.CONTRAST": (augmentation_config, "[0.9,1.1]", (0.9, 1.1)),
    "INPUT.AUGMENT.SATURATION": (augmentation_config, "[0.8,1.1]", (0.8, 1.1)),
    "INPUT.AUGMENT.HUE_DEGREES": (augmentation_config, "3", 3.0),
    "INPUT.AUGMENT.COLOR_PROB": (augmentation_config, "0", 0.0),
    "INPUT.AUGMENT.FLIP_PROB": (augmentation_config, "1", 1.0),
    "SOLVER.BASE_LR": (solver_config, "1e-3", 1e-3),
    "SOLVER.WEIGHT_DECAY": (solver_config, "0.5", 0.5),
    "SOLVER.WEIGHT_DECAY_NORM": (solver_config, "0.5", 0.5),
    "SOLVER.WEIGHT_DECAY_EMBED": (solver_config, "0.5", 0.5),
    "SOLVER.MAX_ITER": (solver_config, "5", 5),
    "SOLVER.POLY_POWER": (solver_config, "1", 1.0),
    "SOLVER.LR_SCHEDULER_NAME": (solver_config, "WarmupCosineLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_ITERS": (solver_config, "7", 7),
    "SOLVER.WARMUP_FACTOR": (solver_config, "0.25", 0.25),
    "SOLVER.CLIP_GRADIENTS.ENABLED": (solver_config, "False", 0.0),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (solver_config, "1", 1.0),
}
CHANGES |= {
    f"MODEL.LOSS.{f.name.upper()}": (loss_config, "1", 1)
    for f in dataclasses.fields(LossConfig)
    if f.name not in ("terms", "options")
}
CHANGES["MODEL.LOSS.TERMS"] = (loss_config, "classes", ("classes",))


def test_defaults_are_the_published_recipe() -> None:
    cfg = san_cfg()
    assert san_config(cfg) == SANConfig() == variant("vit_b16")
    assert loss_config(cfg) == LossConfig()
    assert augmentation_config(cfg) == AugmentationConfig()
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (32, 60000, 1e-4)


@pytest.mark.parametrize(
    ("name", "model"), [("san_clip_vit_b16_coco", "vit_b16"), ("san_clip_vit_l14_336_coco", "vit_l14_336")]
)
def test_published_configurations(name: str, model: str) -> None:
    cfg = load_config(str(REPO / f"configs/{name}.yaml"), ["MODEL.DEVICE", "cpu"])
    assert san_config(cfg) == variant(model)
    assert loss_config(cfg) == LossConfig()
    assert augmentation_config(cfg) == AugmentationConfig()
    assert solver_config(cfg) == solver_config(san_cfg())


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_reaches_its_dataclass(key: str) -> None:
    convert, text, value = CHANGES[key]
    before = convert(san_cfg())
    if key == "INPUT.CROP.SIZE":
        value = (320, 320)
        text = "(320, 320)"
    after = convert(load_config("", [key, text]))
    if key != "MODEL.SIDE_ADAPTER.DEPTH":
        assert before != after
    assert repr(value) in repr(after)


def test_every_model_key_is_tested() -> None:
    names = ("CLIP", "SIDE_ADAPTER", "HEAD", "ATTN_BIAS", "LOSS")
    sections = (*(f"MODEL.{name}." for name in names), "INPUT.AUGMENT.")
    assert {key for key in leaf_keys(san_cfg()) if key.startswith(sections)} <= CHANGES.keys()


def test_only_keys_that_san_reads() -> None:
    keys = set(leaf_keys(san_cfg()))
    assert not {key for key in keys if key.startswith(("MODEL.RPN", "MODEL.ROI", "SOLVER.STEPS", "SOLVER.GAMMA"))}
    tables = {key.name for key in KEYS.values() if key.is_table}
    assert keys == KEYS.keys() - tables and len(tables) == 7


def test_a_detectron2_configuration_takes_sans_keys() -> None:
    cfg = get_cfg()
    add_san_config(cfg)
    assert cfg.MODEL.META_ARCHITECTURE == "SAN"
    assert san_config(cfg) == SANConfig()


def test_files_build_on_each_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 1e-3, MAX_ITER: 5}\nDATASETS: {TEST: a}\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 7}\n")
    cfg = load_config(str(tmp_path / "top.yaml"), ["SOLVER.IMS_PER_BATCH", "3", "DATASETS.TRAIN", "b,c"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (1e-3, 7, 3)
    assert (tuple(cfg.DATASETS.TEST), tuple(cfg.DATASETS.TRAIN)) == (("a",), ("b", "c"))


def test_a_dumped_configuration_loads_again(tmp_path: Path) -> None:
    cfg = load_config("", ["MODEL.SIDE_ADAPTER.NUM_QUERIES", "9", "DATASETS.TRAIN", "x", "TEST.EXPECTED_RESULTS",
                           "[['sem_seg', 'mIoU', 40.0, 1.0]]"])  # fmt: skip
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_config(str(tmp_path / "config.yaml"))
    assert again.dump() == cfg.dump()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("SOLVER: {BASE_LRR: 1}", r"unknown key SOLVER.BASE_LRR .*did you mean SOLVER.BASE_LR\?"),
        ("MODEL: {NUM_QUERIES: 1}", r"did you mean MODEL.SIDE_ADAPTER.NUM_QUERIES\?"),
        ("SOLVER: {STEPS: [1]}", "unknown key SOLVER.STEPS"),
        ("SOLVER: 3", "unknown key SOLVER"),
        ("SOLVER: {MAX_ITER: {A: 1}}", "unknown key SOLVER.MAX_ITER.A"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER .*'many'"),
        ("SOLVER: {MAX_ITER: 1.5}", "SOLVER.MAX_ITER"),
        ("SOLVER: {AMP: {DTYPE: fp8}}", "fp16"),
        ("SOLVER: {IMS_PER_BATCH: 0}", "SOLVER.IMS_PER_BATCH is 0"),
        ("WANDB: {MODE: sometimes}", "offline"),
        ("MODEL: {DEVICE: tpu}", "cpu, cuda"),
        ("MODEL: {SIDE_ADAPTER: {FUSION: ['0:0']}}", "FUSION"),
        ("MODEL: {SIDE_ADAPTER: {FUSION: ['30->0']}}", "FUSION"),
        ("MODEL: {LOSS: {NUM_POINTS: 0}}", "NUM_POINTS"),
        ("SEED: -2", "SEED is -2"),
        ("- a", "no mapping"),
        ("a: [", "not plain YAML"),
        ("SEED: !!python/object/apply:os.getpid []", "not plain YAML"),
        ("_BASE_: top.yaml", "based on itself"),
        ("SOLVER: {MAX_ITER: 3}\nSEED: 1\nSOLVER: {BASE_LR: 1.0}", r"top.yaml is not .*'SOLVER' is there twice"),
        ("SOLVER: {MAX_ITER: 3, MAX_ITER: 4}", r"top.yaml is not .*'MAX_ITER' is there twice"),
        (f"SEED: [{'1, ' * 20_000}]", r"top.yaml is not .*over 20,000 values"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "top.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_config("nowhere.yaml")
    (tmp_path / "top.yaml").write_text("_BASE_: gone.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone.yaml, the _BASE_ of .*top.yaml"):
        load_config(str(tmp_path / "top.yaml"))


@pytest.mark.parametrize("overrides", [["SOLVER.MAX_ITER"], ["SOLVER.MAXITER", "3"], ["SOLVER.MAX_ITER", "x"]])
def test_wrong_overrides_are_refused(overrides: list[str]) -> None:
    with pytest.raises(ValueError, match=r"SOLVER.MAX"):
        load_config("", overrides)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="set it to cpu"):
        load_config("", ["MODEL.DEVICE", "cuda"])


def test_the_page_of_all_keys_is_up_to_date() -> None:
    """docs/configuration.md is what the generator writes, and every key has a meaning."""
    page = runpy.run_path(str(REPO / "tools/maintainers/write_configuration_docs.py"))["page"]()
    assert (REPO / "docs/configuration.md").read_text(encoding="utf-8") == page
    assert all(f"`{key.name}`" in page and key.help for key in KEYS.values())


def test_no_file_repeats_a_default() -> None:
    """YAML files hold differences from their base, or from the defaults, only."""
    for path in sorted((REPO / "configs").rglob("*.yaml")):
        if path.parent.name == "sweeps":  # wandb's own
            continue
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = content.pop("_BASE_", None)
        before = dict(flatten(load_config(str(path.parent / base) if base else "", ["MODEL.DEVICE", "cpu"])))
        repeated = [
            key for key, value in flatten(content) if key in before and before[key] == value and key != "VERSION"
        ]
        assert not repeated, (path, repeated)

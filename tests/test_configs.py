"""The configurations as files: what they evaluate, and that their heads say what the documentation says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from san.clip.loader import load_clip
from san.d2.config.keys import load_config, san_config, solver_config
from san.d2.config.yaml_file import flatten
from san.d2.solver import build_optimizer
from san.data.benchmarks import BENCHMARKS
from san.model.build import freeze, outline
from san.model.config import resolve, variant
from san.shapes.dataset import NARROW_TRAIN, NARROW_VAL

REPO = Path(__file__).resolve().parent.parent
CONFIGS = REPO / "configs"
ALL_SIX = (
    "coco_2017_test_stuff_sem_seg", "voc_sem_seg_val", "pcontext_sem_seg_val", "ade20k_sem_seg_val",
    "pcontext_full_sem_seg_val", "ade20k_full_sem_seg_val",
)  # fmt: skip
COLUMNS = {
    "coco_stuff_171": 0, "voc_20": 1, "pascal_context_59": 2, "ade20k_150": 3, "pascal_context_459": 4, "ade20k_847": 5,
}  # fmt: skip
"""Column of the table of published figures in docs/datasets.md."""

ROWS = {"vit_b16": "ViT-B/16", "vit_l14_336": "ViT-L/14-336"}


def published(model: str) -> list[str]:
    """The row of a variant in docs/datasets.md."""
    text = (REPO / "docs/datasets.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(ROWS[model])} \|(.*)\|$", text, flags=re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def head(path: Path) -> str:
    """The comment that a file opens with, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:comment])


@pytest.mark.parametrize("model", ROWS)
@pytest.mark.parametrize("label_set", COLUMNS)
def test_each_benchmark_alone(model: str, label_set: str) -> None:
    path = CONFIGS / "eval" / model / f"{label_set}.yaml"
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    (name,) = cfg.DATASETS.TEST
    assert name in ALL_SIX
    assert BENCHMARKS[name].label_set == label_set
    assert san_config(cfg) == variant(model)
    assert cfg.DATASETS.TEST_SUBSET == 0
    text = head(path)
    figures = re.findall(r"\d+\.\d+", published(model)[COLUMNS[label_set]])
    assert all(figure in text for figure in figures)
    assert f"{BENCHMARKS[name].num_images:,} images" in text
    assert f"--config-file {path.relative_to(REPO)} " in text


@pytest.mark.parametrize("model", ROWS)
def test_all_six_and_a_quick_look(model: str) -> None:
    for name, subset in (("all", 0), ("quick", 50)):
        path = CONFIGS / "eval" / model / f"{name}.yaml"
        cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
        assert tuple(cfg.DATASETS.TEST) == ALL_SIX
        assert subset == cfg.DATASETS.TEST_SUBSET
        assert san_config(cfg) == variant(model)
        assert f"--config-file {path.relative_to(REPO)} " in head(path)
    text = head(CONFIGS / "eval" / model / "all.yaml")
    assert all(figure in text for cell in published(model) for figure in re.findall(r"\d+\.\d+", cell))
    assert f"{sum(BENCHMARKS[name].num_images for name in ALL_SIX):,} images" in text


@pytest.mark.parametrize("model", ROWS)
@pytest.mark.parametrize("label_set", COLUMNS)
def test_results_page_has_a_row_and_a_command(model: str, label_set: str) -> None:
    """The released figure is that of docs/datasets.md; "ours" is empty or a figure with two decimals."""
    text = (REPO / "docs/results.md").read_text(encoding="utf-8")
    config = f"configs/eval/{model}/{label_set}.yaml"
    weights = {"vit_b16": "san_vit_b_16.pth", "vit_l14_336": "san_vit_large_14.pth"}[model]
    assert f"--config-file {config} --eval-only \\\n    MODEL.WEIGHTS {weights}\n" in text
    (row,) = [line for line in text.splitlines() if line.startswith("|") and f"(../{config})" in line]
    name, _, _, released, ours, _ = (cell.strip() for cell in row.strip("|").split("|"))
    assert name == ROWS[model]
    figures = re.findall(r"\d+\.\d+", published(model)[COLUMNS[label_set]])
    assert released == figures[0]
    assert re.fullmatch(r"(\d+\.\d\d)?", ours)
    for older in figures[1:]:
        assert re.search(rf"^\| {re.escape(name)} \| PC-459, v0\.6 \| [\d.]+ \| {older} \|", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["san_clip_vit_b16_coco", "san_clip_vit_l14_336_coco"])
def test_training_evaluates_all_six(name: str) -> None:
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu"])
    assert tuple(cfg.DATASETS.TRAIN) == ("coco_2017_train_stuff_sem_seg",)
    assert tuple(cfg.DATASETS.TEST) == ALL_SIX


@pytest.mark.parametrize(("name", "model"), [("finetune_shapes", "shapes"), ("finetune_vit_b16", "vit_b16")])
def test_fine_tuning_waits_for_a_data_set(name: str, model: str) -> None:
    cfg = load_config(str(CONFIGS / "custom" / f"{name}.yaml"), ["MODEL.DEVICE", "cpu"])
    assert san_config(cfg) == variant(model)
    assert not cfg.DATASETS.TRAIN
    assert not cfg.DATASETS.TEST


OWN = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "sweeps")
"""All but those that wandb reads; tests/d2/test_wandb.py has them."""


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_configuration_loads_and_says_how_to_run_it(path: Path) -> None:
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    if path.name != "base.yaml":
        assert "tools/train_net.py --config-file" in head(path)
        assert "hardware" in head(path)
    folder = path.relative_to(CONFIGS).parent
    if folder.parts[:1] in (("eval",), ("ablations",)):
        assert Path("output") / folder / path.stem == Path(cfg.OUTPUT_DIR)


ABLATIONS = CONFIGS / "ablations"
ANSWERS = sorted(
    path.relative_to(ABLATIONS) for path in ABLATIONS.glob("*/*.yaml") if not path.parent.name.startswith("shapes")
)


def test_every_ablation_has_a_twin_on_shapes() -> None:
    assert len(ANSWERS) > 40
    assert sorted(path.relative_to(ABLATIONS / "shapes") for path in (ABLATIONS / "shapes").glob("*/*.yaml")) == ANSWERS


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_twins_hold_one_difference_each_and_their_model_can_be_made(answer: Path) -> None:
    """Of the same keys; checked against the CLIP, and rules of parameters match something."""
    keys = []
    for folder in (ABLATIONS, ABLATIONS / "shapes"):
        content = yaml.safe_load((folder / answer).read_text(encoding="utf-8"))
        assert content.pop("_BASE_") == "../base.yaml"
        keys.append([key for key, _ in flatten(content)])
        cfg = load_config(str(folder / answer), ["MODEL.DEVICE", "cpu"])
        clip = load_clip(cfg.MODEL.CLIP.NAME, None, weights=False)
        model = outline(resolve(san_config(cfg), clip.arch), clip)
        freeze(model)
        assert build_optimizer(model, solver_config(cfg)).param_groups
    assert keys[0] == keys[1] and 2 <= len(keys[0]) <= 4  # with OUTPUT_DIR


def test_narrow_ablations_tune_clip_as_those_on_all_of_shapes() -> None:
    """Without a twin at full size, where the six benchmarks show what CLIP forgets."""
    narrow = {path.stem: path for path in (ABLATIONS / "shapes_narrow").glob("*.yaml")}
    base = load_config(str(narrow.pop("base")), ["MODEL.DEVICE", "cpu"])
    assert (list(base.DATASETS.TRAIN), list(base.DATASETS.TEST)) == ([NARROW_TRAIN.name], [NARROW_VAL])
    twins = {path.stem: path for path in (ABLATIONS / "shapes/clip_tuning").glob("*.yaml")}
    assert narrow.keys() == twins.keys()
    for answer, path in narrow.items():
        one, other = (yaml.safe_load(each.read_text(encoding="utf-8")) for each in (path, twins[answer]))
        assert (one.pop("_BASE_"), other.pop("_BASE_")) == ("base.yaml", "../base.yaml")
        assert {**one, "OUTPUT_DIR": ""} == {**other, "OUTPUT_DIR": ""}


CLIP_TUNING = {
    "last_block": (r"deep_clip\.resblocks\.2\.", ""),
    "deep_blocks": (r"deep_clip\.", ""),
    "queries_values": (r"(shallow|deep)_clip\..*in_proj_", "qv"),
    "all": (r"(shallow|deep)_clip\.", ""),
}


@pytest.mark.parametrize("answer", CLIP_TUNING)
@pytest.mark.parametrize("folder", [ABLATIONS, ABLATIONS / "shapes"], ids=["full", "shapes"])
def test_how_much_of_clip_an_ablation_trains(folder: Path, answer: str) -> None:
    """The named tensors, at a tenth of the rate, beside what the base trains at the full one."""
    rates: dict[str, dict[str, float]] = {}
    for path in (folder / "base.yaml", folder / f"clip_tuning/{answer}.yaml"):
        cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
        model = outline(san_config(cfg), load_clip(cfg.MODEL.CLIP.NAME, None, weights=False))
        freeze(model)
        names = {id(each): name for name, each in model.named_parameters()}
        groups = build_optimizer(model, solver_config(cfg)).param_groups
        rates[path.stem] = {
            names[id(each)]: group["lr"] / cfg.SOLVER.BASE_LR for group in groups for each in group["params"]
        }
    pattern, projections = CLIP_TUNING[answer]
    tuned = {name for name, _ in model.named_parameters() if re.match(pattern, name)}
    assert rates[answer].keys() == rates["base"].keys() | tuned
    assert all(rate == pytest.approx(0.1 if name in tuned else 1.0) for name, rate in rates[answer].items())
    assert all(rule.projections == projections for rule in solver_config(cfg).rules)

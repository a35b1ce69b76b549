"""Values of the configuration: lists, text that looks like a number, names and devices that do not exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from san.d2.api import get_cfg
from san.d2.config.keys import add_san_config, load_config, san_cfg, san_config
from san.d2.config.schema import KEYS
from san.d2.config.yaml_file import leaf_keys, merge_overrides
from san.model.parts import FUSIONS, Fusion
from san.record import AUTO, Options, option


def value_of(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def load(key: str, text: str, way: str, folder: Path) -> Any:
    """The configuration with one key set on the command line or in a file."""
    if way == "command line":
        return load_config("", ["MODEL.DEVICE", "cpu", key, text])
    *sections, leaf = key.split(".")
    content = f"{leaf}: {text}"
    for section in reversed(sections):
        content = f"{section}: {{{content}}}"
    (folder / "it.yaml").write_text(content)
    return load_config(str(folder / "it.yaml"), ["MODEL.DEVICE", "cpu"])


both_ways = pytest.mark.parametrize("way", ["command line", "file"])


def test_every_list_has_a_rule() -> None:
    lists = {key for key in leaf_keys(san_cfg()) if isinstance(value_of(san_cfg(), key), (list, tuple))}
    assert lists == {key.name for key in KEYS.values() if key.is_list}


@both_ways
@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("INPUT.MIN_SIZE_TRAIN", "[320, x]", "a list of whole numbers"),
        ("INPUT.MIN_SIZE_TRAIN", "[320, 1.5]", "a list of whole numbers"),
        ("INPUT.MIN_SIZE_TRAIN", "[320, [1]]", "a list of whole numbers"),
        ("MODEL.SIDE_ADAPTER.SUPERVISED_BLOCKS", "[a]", "a list of whole numbers"),
        ("INPUT.AUGMENT.CONTRAST", "0.5", "a list of 2 numbers"),
        ("INPUT.AUGMENT.SATURATION", "[0.5, 1.0, 1.5]", "a list of 2 numbers"),
        ("INPUT.AUGMENT.SATURATION", "[a, b]", "a list of 2 numbers"),
        ("INPUT.CROP.SIZE", "640", "a list of 2 whole numbers"),
        ("INPUT.CROP.SIZE", "[640]", "a list of 2 whole numbers"),
        ("INPUT.CROP.SIZE", "[0.5, 0.5]", "a list of 2 whole numbers"),
        ("MODEL.META_ARCHITECTURE", "SANN", "set it to SAN"),
        ("FLOAT32_PRECISION", "lowest", "highest, high, medium"),
        ("MODEL.DEVICE", "cuda:x", "cuda:N"),
        ("MODEL.DEVICE", "mps", "set it to cpu, cuda or cuda:N"),
        ("TEST.EXPECTED_RESULTS", "[sem_seg]", "list"),
        ("TEST.EXPECTED_RESULTS", "['sem_seg']", "value, tolerance"),
        ("TEST.EXPECTED_RESULTS", "['sem_seg', 'mIoU', 40.0, 1.0]", "value, tolerance"),
        ("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 40.0]]", "value, tolerance"),
        ("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', '40', 1.0]]", "value, tolerance"),
        ("TEST.EXPECTED_RESULTS", "[[1, 'mIoU', 40.0, 1.0]]", "value, tolerance"),
        ("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 1.0e+999, 1.0]]", "finite and the tolerance 0 or more"),
        ("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 40.0, -1.0]]", "finite and the tolerance 0 or more"),
        ("TEST.EXPECTED_RESULTS", "5", "a list"),
        ("OUTPUT_DIR", "s3://bucket/run", "an address, but a run is written to a folder"),
        ("OUTPUT_DIR", "file:///tmp/run", "an address, but a run is written to a folder"),
        ("DATALOADER.MAX_BAD_SHARE", "1.5", "within 0..1"),
        ("SOLVER.MAX_NONFINITE", "0", "within 1..1000000"),
        ("TEST.PARTIAL_PERIOD", "-1.0", "within 0..10000000"),
    ],
)
def test_wrong_values_are_refused_by_key(tmp_path: Path, key: str, text: str, wanted: str, way: str) -> None:
    if key == "MODEL.DEVICE" and way == "file":
        pytest.skip("the command line chooses the device here")
    with pytest.raises(ValueError) as caught:
        load(key, text, way, tmp_path)
    assert key in str(caught.value) and wanted in str(caught.value) and "\n" not in str(caught.value)


@both_ways
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("OUTPUT_DIR", "2024_01", "2024_01"),
        ("OUTPUT_DIR", "1e3", "1e3"),
        ("OUTPUT_DIR", "007", "007"),
        ("OUTPUT_DIR", "2024-01-02", "2024-01-02"),
        ("WANDB.NAME", "true", "true"),
        ("OUTPUT_DIR", "'5'", "5"),
        ("DATASETS.TEST", "[2024_01, 1.50]", ("2024_01", "1.50")),
        ("DATASETS.TEST", "2024_01", ("2024_01",)),
        ("INPUT.CROP.SIZE", "[64, 80]", [64, 80]),
        ("INPUT.AUGMENT.CONTRAST", "[1, 1.5]", [1.0, 1.5]),
        ("INPUT.MIN_SIZE_TRAIN", "320", [320]),
    ],
)
def test_values_are_taken_as_written(tmp_path: Path, key: str, text: str, value: Any, way: str) -> None:
    found = value_of(load(key, text, way, tmp_path), key)
    assert (tuple(found) if isinstance(value, tuple) else found) == value
    assert type(found) is type(value_of(san_cfg(), key))


def test_a_base_that_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text("_BASE_: 5\n")
    with pytest.raises(ValueError, match=r"_BASE_ of .*top.yaml is 5"):
        load_config(str(tmp_path / "top.yaml"))


def test_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert load_config("", ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"
    with pytest.raises(ValueError, match="cuda:1 or less"):
        load_config("", ["MODEL.DEVICE", "cuda:2"])


@pytest.mark.detectron2
def test_detectron2s_own_mappers_read_rgb() -> None:
    from detectron2.config import get_cfg as detectron2_cfg

    cfg = detectron2_cfg()
    assert cfg.INPUT.FORMAT == "BGR"
    add_san_config(cfg)
    assert cfg.INPUT.FORMAT == "RGB"


def test_no_format_key_is_added() -> None:
    assert "INPUT.FORMAT" not in leaf_keys(san_cfg())
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "BGR"
    add_san_config(cfg)
    assert cfg.INPUT.FORMAT == "RGB"


@both_ways
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("['a {}, seen from above', 'one {}']", ["a {}, seen from above", "one {}"]),
        ("['{}']", ["{}"]),
    ],
)
def test_templates_are_a_name_or_a_list(text: str, wanted: Any, way: str, tmp_path: Path) -> None:
    cfg = load("MODEL.CLIP.TEMPLATES", text, way, tmp_path)
    assert wanted == cfg.MODEL.CLIP.TEMPLATES
    assert san_config(cfg).clip.templates == (wanted if isinstance(wanted, str) else tuple(wanted))
    (tmp_path / "again.yaml").write_text(cfg.dump())
    again = load_config(str(tmp_path / "again.yaml"), ["MODEL.CLIP.TEMPLATES", "vild"])
    assert again.MODEL.CLIP.TEMPLATES == "vild"
    assert load_config(str(tmp_path / "again.yaml")) == cfg


def numbers(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return bool(values) and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)


ENDLESS = ("SOLVER.BASE_LR",)
"""Takes no memory; a run whose numbers are not finite stops."""


@pytest.mark.parametrize(
    "key", [key for key in leaf_keys(san_cfg()) if numbers(value_of(san_cfg(), key)) and key not in ENDLESS]
)
def test_every_number_has_a_largest_one(key: str) -> None:
    """Refused before any memory is taken."""
    present = value_of(san_cfg(), key)
    first = present[0] if isinstance(present, list) else present
    number = type(first)(10**30)
    for each in (number, -number):
        wrong = str([each] * len(present)) if isinstance(present, list) else str(each)
        with pytest.raises(ValueError) as caught:
            load_config("", ["MODEL.DEVICE", "cpu", key, wrong])
        assert key.rpartition(".")[2] in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["x" * 10**6, f"'{'x' * 10**6}'", f"[{'7,' * 3000}7]", f"[{'7' * 5000}]", "7" * 5000])
def test_a_long_value_makes_a_short_message(tmp_path: Path, text: str) -> None:
    for key in leaf_keys(san_cfg()):
        with pytest.raises(ValueError) as caught:
            merge_overrides(san_cfg(), [(key, text)])
        assert key in str(caught.value) and len(str(caught.value)) < 600
    (tmp_path / "it.yaml").write_text(f"OUTPUT_DIR: {text}")
    with pytest.raises(ValueError) as caught:
        load_config(str(tmp_path / "it.yaml"))
    assert len(str(caught.value)) < 600


def test_the_stand_ins_messages_are_short(tmp_path: Path) -> None:
    from san.d2.standin.config import get_cfg as standin_cfg

    for text in (
        f"VERSION: {'x' * 10**5}",
        "x" * 10**5,
        f"SEED: {'x' * 10**5}",
        f"{'x' * 10**5}: 1",
        f"A: !{'x' * 10**5} 1",
    ):
        (tmp_path / "it.yaml").write_text(text)
        with pytest.raises((ValueError, KeyError)) as caught:
            standin_cfg().merge_from_file(str(tmp_path / "it.yaml"))
        assert len(str(caught.value)) < 3000
    for pair in (["SEED", "x" * 10**5], ["X" * 10**5, "1"]):
        with pytest.raises((ValueError, KeyError, AssertionError)) as caught:
            standin_cfg().merge_from_list(pair)
        assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "MODEL.SIDE_ADAPTER.NUM_HEADS",
            "7",
            "7 heads; change MODEL.SIDE_ADAPTER.EMBED_DIM or",
        ),
        ("MODEL.SIDE_ADAPTER.FUSION", "4->9", "set the right-hand sides of MODEL.SIDE_ADAPTER.FUSION within 0..8"),
        ("MODEL.SIDE_ADAPTER.FUSION", "11->1", "change MODEL.SIDE_ADAPTER.FUSION or MODEL.CLIP.SHALLOW_DEPTH"),
        ("MODEL.CLIP.SLS_INIT", "learned", "MODEL.CLIP.SLS_INIT is 'learned', .* did you mean 'learnt'"),
        (
            "MODEL.SCORER.NAME",
            "mine",
            "MODEL.SCORER.NAME is 'mine', .* choose one of sls, second_opinion, or import the module",
        ),
        ("MODEL.FUSION.OPTIONS.GATE", "1", "unknown field 'MODEL.FUSION.OPTIONS.GATE'; there is none"),
        ("MODEL.LOSS.TERMS", "classes,mask", "MODEL.LOSS.TERMS is 'mask', .* did you mean 'masks'"),
        ("MODEL.LOSS.OPTIONS.MASKS.SIZE", "1", "unknown field 'MODEL.LOSS.OPTIONS.MASKS.SIZE'; there is none"),
        ("MODEL.LOSS.OPTIONS.STUFF.SIZE", "1", "MODEL.LOSS.TERMS is 'stuff', which is not a registered criterion term"),
        ("MODEL.LOSS.NUM_POINTS", "0", "MODEL.LOSS.NUM_POINTS is 0; set it within 1..1000000"),
        ("INPUT.AUGMENT.CONTRAST", "[2, 1]", r"INPUT.AUGMENT.CONTRAST is \(2.0, 1.0\) but must be a range"),
        ("INPUT.CROP.SIZE", "[0, 1]", "INPUT.CROP.SIZE is .0, 1.; set it within 1..8192"),
        ("SOLVER.POLY_POWER", "-1", "SOLVER.POLY_POWER is -1.0; set it within"),
        ("SOLVER.PARAM_RULES", "[5]", "SOLVER.PARAM_RULES holds 5; give mappings"),
        ("SOLVER.PARAM_RULES", "[{'LR': 1}]", "unknown field 'SOLVER.PARAM_RULES.0..lr'"),
        (
            "SOLVER.PARAM_RULES",
            "[{'MATCH': '*', 'LR_MULTIPLIER': -1}]",
            "PARAM_RULES.0..lr_multiplier is -1; set",
        ),
        ("MODEL.CLIP.TEMPLATES", "poem", "MODEL.CLIP.TEMPLATES"),
    ],
)
def test_errors_of_dataclasses_name_the_keys(key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("", ["MODEL.DEVICE", "cpu", key, value])


@pytest.mark.parametrize("way", ["command line", "file"])
@pytest.mark.parametrize("key", ["SHALLOW_DEPTH", "INPUT_SCALE"])
def test_auto_is_taken_where_the_clip_decides(key: str, way: str, tmp_path: Path) -> None:
    cfg = load(f"MODEL.CLIP.{key}", "auto", way, tmp_path)
    assert getattr(san_config(cfg).clip, key.lower()) == AUTO
    (tmp_path / "again.yaml").write_text(cfg.dump())
    assert load_config(str(tmp_path / "again.yaml")) == cfg


def test_auto_fusion_and_heads(tmp_path: Path) -> None:
    keys = ["MODEL.SIDE_ADAPTER.FUSION", "auto", "MODEL.ATTN_BIAS.NUM_HEADS", "auto"]
    cfg = load_config("", ["MODEL.DEVICE", "cpu", *keys])
    found = san_config(cfg)
    assert found.side_adapter.fusion == found.attn_bias.num_heads == AUTO
    (tmp_path / "again.yaml").write_text(cfg.dump())
    assert load_config(str(tmp_path / "again.yaml")) == cfg
    with pytest.raises(ValueError, match="MODEL.SIDE_ADAPTER.DEPTH in the command line is 'auto'"):
        load_config("", ["MODEL.SIDE_ADAPTER.DEPTH", "auto"])


@both_ways
@pytest.mark.parametrize("key", [key.name for key in KEYS.values() if key.is_path])
def test_a_home_folder_is_expanded(tmp_path: Path, key: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/someone")
    assert value_of(load(key, "~/it", way, tmp_path), key) in ("/home/of/someone/it", ["/home/of/someone/it"])
    assert value_of(load(key, "./a/../~", way, tmp_path), key) in ("./a/../~", ["./a/../~"])
    with pytest.raises(ValueError, match=key):
        load(key, "~no-such-user/it", way, tmp_path)


@both_ways
@pytest.mark.parametrize("text", ["''", "' '"])
def test_a_run_needs_a_folder(tmp_path: Path, text: str, way: str) -> None:
    with pytest.raises(ValueError, match="OUTPUT_DIR is ' ?', but a run needs a folder"):
        load("OUTPUT_DIR", text, way, tmp_path)


def test_keys_and_values_in_one_word() -> None:
    given = ["SOLVER.MAX_ITER=10", "WANDB.NAME", "a=b", "WANDB.PROJECT=c=d", "SEED", "-1", "MODEL.WEIGHTS="]
    cfg = load_config("", ["MODEL.DEVICE=cpu", *given])
    assert (cfg.SOLVER.MAX_ITER, cfg.WANDB.NAME, cfg.WANDB.PROJECT, cfg.SEED) == (10, "a=b", "c=d", -1)
    with pytest.raises(ValueError, match="unknown key SOLVER.MAXITER in the command line"):
        load_config("", ["SOLVER.MAXITER=10"])
    for wrong in (["=10"], ["SEED=1", "SOLVER.MAX_ITER"], ["", "1"]):
        with pytest.raises(ValueError, match="does not pair every KEY with a VALUE"):
            load_config("", wrong)


@dataclasses.dataclass(frozen=True)
class EveryType(Options):
    text: str = option("")
    maybe_text: str | None = option(None)
    text_or_list: str | tuple[str, ...] = option("")
    texts: tuple[str, ...] = option(())
    whole: int = option(0)
    maybe_whole: int | None = option(None)
    number: float = option(0.0)
    flag: bool = option(False)
    pair: tuple[int, int] = option((0, 0))


@pytest.fixture
def option_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str, str], Any]:
    """Loads one option of a fusion with `EveryType`, written as a text; returns what the fusion gets."""
    entry = type("WithEveryType", (Fusion,), {"Options": EveryType})
    monkeypatch.setitem(FUSIONS._entries, "every_type", entry)

    def get(field: str, text: str, way: str) -> Any:
        file = tmp_path / "it.yaml"
        of_file = f", OPTIONS: {{{field.upper()}: {text}}}" if way == "file" else ""
        file.write_text(f"MODEL: {{DEVICE: cpu, FUSION: {{NAME: every_type{of_file}}}}}")
        cfg = load_config(str(file), [f"MODEL.FUSION.OPTIONS.{field.upper()}", text] if way != "file" else [])
        (tmp_path / "again.yaml").write_text(cfg.dump())
        assert load_config(str(tmp_path / "again.yaml")) == cfg, "a run's record says the same"
        return getattr(FUSIONS.options(san_config(cfg).fusion), field)

    return get


@both_ways
@pytest.mark.parametrize("text", ["007", "1e3", "7.10", "0x10", "1_000", "True", "no", "yes", "2024-01-01", "abc"])
@pytest.mark.parametrize("field", ["text", "maybe_text", "text_or_list"])
def test_a_text_option_is_what_was_written(option_of: Any, field: str, text: str, way: str) -> None:
    assert option_of(field, text, way) == text


@pytest.mark.parametrize("text", ["None", "~", "[a, b]", "[1, 2]", "(1)", "{'a': 1}"])
def test_a_text_option_of_the_command_line_is_never_something_else(option_of: Any, text: str) -> None:
    assert option_of("text", text, "command line") == text


@both_ways
@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("text_or_list", "['007', 'no']", ("007", "no")),
        ("texts", "[007, 1e3]", ("007", "1e3")),
        ("texts", "7", ("7",)),
        ("whole", "7", 7),
        ("maybe_whole", "7", 7),
        ("number", "1e-3", 0.001),
        ("number", "2", 2.0),
        ("flag", "true", True),
        ("pair", "[3, 4]", (3, 4)),
    ],
)
def test_an_option_has_its_type(option_of: Any, field: str, text: str, value: Any, way: str) -> None:
    found = option_of(field, text, way)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("field", ["maybe_text", "maybe_whole"])
def test_an_option_may_be_none(option_of: Any, field: str) -> None:
    assert option_of(field, "None", "command line") is None
    assert option_of(field, "null", "file") is None


@both_ways
@pytest.mark.parametrize(
    ("field", "text", "wanted"),
    [
        ("whole", "1e3", "give a int"),
        ("flag", "7", "give a bool"),
        ("number", "abc", "give a float"),
        ("pair", "[1]", "give a list of 2 whole numbers"),
    ],
)
def test_an_option_of_another_type_is_refused(option_of: Any, field: str, text: str, wanted: str, way: str) -> None:
    with pytest.raises(ValueError, match=f"MODEL.FUSION.OPTIONS.{field.upper()} is .*{wanted}"):
        option_of(field, text, way)


def test_options_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ValueError, match="MODEL.LOSS.OPTIONS.MASKS is 5; give its options, such as"):
        load_config("", ["MODEL.DEVICE", "cpu", "MODEL.LOSS.OPTIONS.MASKS", "5"])

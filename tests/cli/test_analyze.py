"""`san analyze`, as its user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from san.cli.main import main
from san.model.parts import BIAS_HEADS

REPO = Path(__file__).resolve().parents[2]


def test_counting_needs_no_weights(capsys):
    arguments = ["analyze", "--variant", "tiny", "--size", "50x77", "--classes", "900", "--no-timing"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "| network: all of the above |" in text and "| model " in text
    assert " ms " not in text
    assert "one image of 50x77 (padded to 64x96), 900 classes, 10 queries. G: 10^9 multiply-adds." in text
    assert "no label set has 900 names" in text


def test_figures_as_table_json_and_picture(tmp_path, capsys):
    record_file, picture = tmp_path / "sub" / "a.json", tmp_path / "sub" / "a.png"
    arguments = ["analyze", "--model", "shapes", "--runs", "2", "--json", str(record_file), "--plot", str(picture)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "images per second" in text and "peak memory" in text
    record = json.loads(record_file.read_text(encoding="utf-8"))
    assert record["size"] == [128, 128] and record["classes"] == 36 and record["random_weights"] is False
    parts, timing = record["multiply_adds"]["parts"], record["timing"]
    apart = parts["label map"] + parts["text tower"]
    assert record["multiply_adds"]["network"] == sum(parts.values()) - apart
    assert f"{record['multiply_adds']['network'] / 1e9:.3f}" in text
    assert sum(timing["parts"].values()) == pytest.approx(timing["seconds"], rel=0.5)
    assert timing["images_per_second"] == 1 / timing["seconds"] and timing["text_seconds"] > 0
    assert record["parameters"]["all"] == sum(each["all"] for each in record["parameters"]["parts"].values())
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300


def test_a_configuration_and_a_part_of_the_users_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_head_to_analyze.py").write_text(
        "from san.model.parts import BIAS_HEADS, BiasHead\n\n"
        '@BIAS_HEADS.register("to_analyze")\n'
        "class Coupled(BiasHead):\n"
        "    def forward(self, features, masks):\n"
        "        bias = masks.logits[:, None, None]\n"
        "        return bias.expand(-1, self.config.num_layers, self.config.num_heads, -1, -1, -1)\n",
        encoding="utf-8",
    )
    config, base = tmp_path / "c.yaml", REPO / "configs/shapes/san_shapes_quick.yaml"
    config.write_text(f"_BASE_: {base}\nMODEL:\n  BIAS_HEAD: {{NAME: to_analyze}}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        code = main(["analyze", "--variant", str(config), "--import", "my_head_to_analyze", "--no-timing"])
    finally:
        BIAS_HEADS._entries.pop("to_analyze", None)
    text = capsys.readouterr().out
    assert code == 0
    assert "| bias head " in text and "the bias head is not SAN's own" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "tini"], "unknown variant 'tini'; choose one of vit_b16"),
        (["--variant", "tiny", "--config", "tiny"], "give --variant alone"),
        (["--variant", "nowhere.yaml"], "nowhere.yaml"),
        (["--variant", "tiny", "--json", "."], "is a folder; give the name of a file"),
        (["--model", "nowhere.pth"], "unknown model 'nowhere.pth'"),
        (["--dtype", "int8"], "--dtype is int8"),
    ],
)
def test_what_is_refused(arguments, message, capsys):
    assert main(["analyze", "--no-timing", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "640"], "'640' is not a size; give height and width from 1 to 16384, such as 640x853"),
        (["--size", "0x5"], "is not a size"),
        (["--classes", "0"], "is not a number from 1 to 100000"),
        (["--classes", "1" * 5000], "is not a number from 1 to 100000"),
        (["--plot", "a.pdf"], "does not end in .png"),
        (["--variant", "tiny", "--model", "x.pth"], "not allowed with argument"),
    ],
)
def test_a_wrong_command_line(arguments, message, capsys):
    assert main(["analyze", *arguments]) == 2
    assert message in capsys.readouterr().err

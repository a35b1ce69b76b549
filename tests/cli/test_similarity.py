"""`san similarity`, as its user runs it, on the CLIP of the shapes world."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.cli.main import main
from san.evaluation import ConfusionMatrix, write_report
from san.shapes.world import NAMES, SEEN

TWO = f"{SEEN[0]}, plain ground"


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """The names with masks in training, less grounds."""
    path = tmp_path / "seen.txt"
    path.write_text("\n".join(SEEN), encoding="utf-8")
    return path


@pytest.fixture
def per_class(tmp_path: Path) -> Path:
    """An evaluation's report on the shapes world, in which a class is absent."""
    matrix = ConfusionMatrix(len(NAMES), 255)
    labels = np.repeat(np.arange(len(NAMES) - 1, dtype=np.uint8), 40).reshape(1, -1)
    wrong = np.random.default_rng(0).random(labels.shape) < np.linspace(0, 1, labels.size)
    matrix.update(np.where(wrong, 0, labels), labels)
    write_report(tmp_path / "eval", matrix, NAMES)
    return tmp_path / "eval" / "per_class.csv"


def test_sets_as_table_csv_and_json(tmp_path, seen, capsys):
    files = {kind: tmp_path / "out" / f"a.{kind}" for kind in ("csv", "json")}
    arguments = ["similarity", "shapes_36", TWO, "--to", str(seen)]
    assert main([*arguments, "--csv", str(files["csv"]), "--json", str(files["json"])]) == 0
    text = capsys.readouterr().out
    assert "| shapes_36 " in text and f"| {TWO} " in text and "WARNING" not in text
    record = json.loads(files["json"].read_text(encoding="utf-8"))
    whole, two = record["sets"]
    assert (whole["classes"], whole["same_names"], two["same_names"]) == (36, 24, 1)
    by_name = {row["class"]: row for row in whole["per_class"]}
    assert by_name[SEEN[0]]["similarity"] == pytest.approx(1, abs=1e-5) and by_name[SEEN[0]]["nearest"] == SEEN[0]
    assert whole["mean_back"] == pytest.approx(1, abs=1e-5)  # every seen name is among the 36
    assert whole["hausdorff"] == whole["least_there"] < 0.99
    with files["csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 38 and list(rows[0]) == ["set", "class", "nearest", "similarity"]


def test_two_files_of_one_name_stay_two_sets(tmp_path, capsys):
    files = [tmp_path / folder / "names.txt" for folder in ("a", "b")]
    for file, name in zip(files, ("red star", "blue ring"), strict=True):
        file.parent.mkdir()
        file.write_text(name, encoding="utf-8")
    assert main(["similarity", *map(str, files), "--to", "shapes_36"]) == 0
    assert all(f"| {file} " in text for text in [capsys.readouterr().out] for file in files)


def test_similarity_and_iou(tmp_path, seen, per_class, capsys):
    plot, table, figures = (tmp_path / f"iou.{ending}" for ending in ("png", "csv", "json"))
    arguments = ["similarity", "--per-class", str(per_class), "--to", str(seen), "--plot", str(plot)]
    assert main([*arguments, "--csv", str(table), "--json", str(figures)]) == 0
    text = capsys.readouterr().out
    (own,) = json.loads(figures.read_text(encoding="utf-8"))["sets"]
    correlation = own["correlation"]
    assert correlation["count"] == 35 and own["correlation_of_other_names"]["count"] == 11
    assert f"Pearson r {correlation['pearson']:.2f}" in text
    known = [row["IoU"] for row in own["per_class"] if row["IoU"] is not None]
    nearest = [row["similarity"] for row in own["per_class"] if row["IoU"] is not None]
    assert correlation["pearson"] == pytest.approx(np.corrcoef(nearest, known)[0, 1])
    with table.open(encoding="utf-8") as file:
        assert [row["IoU"] for row in csv.DictReader(file)][-1] == ""
    with Image.open(plot) as drawn:
        assert min(drawn.size) > 500
    assert main([*arguments, "shapes_36"]) == 0


def test_random_weights_are_said_to_mean_nothing(tmp_path, capsys):
    figures = tmp_path / "a.json"
    assert main(["similarity", "voc_20", "--variant", "tiny", "--to", "cat, dog", "--json", str(figures)]) == 0
    assert "WARNING: the text encoder has random weights; its figures mean nothing" in capsys.readouterr().out
    assert "random weights" in json.loads(figures.read_text(encoding="utf-8"))["warning"]


def test_names_that_the_encoder_has_never_met_are_counted(capsys):
    assert main(["similarity", "red star, cat, blue dog", "--to", "red ring, wall"]) == 0
    assert "WARNING: the small CLIP of the shapes world does not know 3 of these 5 names" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ade20k_151"], "unknown label set 'ade20k_151'; did you mean 'ade20k_150'"),
        (["nowhere.txt"], "nowhere.txt"),
        (["voc_20", "--plot", "a.png"], "give an evaluation's per_class.csv with --per-class"),
        (["--per-class", "nowhere.csv"], "no file nowhere.csv"),
        (["--per-class", "PER_CLASS", "voc_20", "ade20k_150"], "--per-class has the classes of one"),
        (["--per-class", "PER_CLASS", "voc_20"], "have different classes, such as"),
    ],
)
def test_what_is_refused(arguments, message, per_class, capsys):
    arguments = [str(per_class) if each == "PER_CLASS" else each for each in arguments]
    assert main(["similarity", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error

"""Run by tests/test_base_install.py in an environment with the base installation only.

    python base_probe.py REPOSITORY

Works in the current folder, and prints one JSON object: of every command its exit code and its standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = "red star, blue ring, green disc, striped ground, dotted ground, plain ground"


def run(command: list[str], script: str = "") -> tuple[int, str]:
    """Exit code and standard error of the command `san`, or of a script."""
    from san.cli.main import main

    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            if script:
                sys.argv = [script, *command]
                runpy.run_path(script, run_name="__main__")
            code: Any = 0 if script else main(command)
        except SystemExit as stop:
            code = stop.code
            if isinstance(code, str):  # what Python does with it
                print(code, file=sys.stderr)
                code = 1
    return code or 0, error.getvalue()


def helps(repo: Path) -> dict[str, tuple[int, str]]:
    """`--help` of every command and script."""
    from san.cli.main import COMMANDS
    from san.cli.visualize import KINDS

    commands = [[], *([name] for name in COMMANDS), *(["visualize", kind] for kind in KINDS)]
    scripts = [repo / f"tools/{name}.py" for name in ("train_net", "predict", "demo")]
    scripts += sorted((repo / "datasets").glob("prepare_*.py"))
    found = {" ".join(["san", *command]): run([*command, "--help"]) for command in commands}
    assert "torch" not in sys.modules, "a --help imports PyTorch"
    return found | {script.name: run(["--help"], str(script)) for script in scripts}


def predict() -> None:
    """The features of prediction, on a picture of two scenes."""
    from san import Predictor, Vocabulary, save_pretrained
    from san.shapes.render import render
    from san.shapes.world import NAMES, scene_at

    pictures, labels = render([scene_at(seed=5, index=1), scene_at(seed=5, index=2)])
    Image.fromarray(pictures[0]).save("scene.png")
    names = ", ".join(NAMES[index] for index in np.unique(labels[0]).tolist())
    every_format = ["--format", "overlay,labels,rle,json,panel"]
    code, error = run(
        ["predict", "scene.png", "--vocab", names, "--out", "out", "--text-cache", "words", *every_format]
    )
    assert code == 0, error
    assert {path.name for path in Path("out").iterdir()} == {
        f"scene{ending}" for ending in ("_overlay.png", "_labels.png", "_rle.json", ".json", "_panel.png")
    }
    assert list(Path("words").rglob("*.safetensors")), "no text cache"
    truth = np.unique(labels[0], return_inverse=True)[1].reshape(labels[0].shape)
    assert (np.asarray(Image.open("out/scene_labels.png")) == truth).mean() > 0.9
    predictor = Predictor.from_pretrained("shapes")
    Path("names.yaml").write_text("- red star|scarlet star\n- dotted ground\n", encoding="utf-8")
    words = Vocabulary.from_file("names.yaml").with_context("shapes_36")
    result = predictor.predict(pictures[1], words, none_of_these=True)
    assert result._repr_png_()
    assert result.to_coco_rle("scene.png")
    assert result.mask_proposals(limit=3)
    result.panel("panel.png")
    save_pretrained(predictor.model, "folder")
    again = Predictor.from_pretrained("folder").predict(pictures[1], words, none_of_these=True)
    assert (again.labels == result.labels).all()
    assert run(["models"])[0] == 0
    assert run(["similarity", "red star, blue ring", "--to", "shapes_36", "--csv", "names.csv"])[0] == 0
    assert run(["analyze", "--variant", "tiny", "--no-timing", "--json", "figures.json"])[0] == 0


def beyond(repo: Path) -> dict[str, tuple[int, str]]:
    """Every command that needs an extra, on input that is right as far as the extra is not missed."""
    config = str(repo / "configs/shapes/san_shapes_quick.yaml")
    metrics = [json.dumps({"iteration": index, "total_loss": 1.0}) for index in range(3)]
    Path("metrics.json").write_text("\n".join(metrics), encoding="utf-8")
    Path("shapes_sem_seg_val_mixed").mkdir()
    Path("shapes_sem_seg_val_mixed/sem_seg_predictions.json").write_text("[]", encoding="utf-8")
    Path("dump.json").write_text('{"seed": 1, "weights": "w.pth", "iterations": [{"iteration": 1}]}', encoding="utf-8")
    Path("w.pth").touch()
    detail = {"images": [], "annos_segmentation": [], "annos_joint": [], "categories": []}
    Path("trainval_merged.json").write_text(json.dumps(detail), encoding="utf-8")
    weights = str(Path(metadata.distribution("san-segmentation").locate_file("san/shapes/assets/san.pth")))
    commands = {
        "train": ["--config-file", config],
        "ablate": [config],
        "eval": ["--config-file", config, "--weights", "shapes"],
        "prepare": ["pcontext", "--root", "."],
        "prepare full": ["pcontext_full", "--root", "."],
        "check": ["shapes_sem_seg_val_mixed"],
        "visualize": ["predictions", "--predictions", "shapes_sem_seg_val_mixed"],
        "visualize attention": ["attention", "scene.png", "--vocab", WORDS],
        "curves": ["."],
        "replay": ["--config-file", config, "dump.json"],
        "convert": [weights, "--config-file", config, "--to", "own", "--out", "own.pth"],
        "analyze": ["--variant", "tiny", "--no-timing", "--plot", "bars.png"],
        "similarity": ["--per-class", "per_class.csv", "--plot", "names.png"],
        "benchmark": ["--quick"],
        "predict": ["scene.png", "--vocab", WORDS, "--model", weights, "--config", config, "--out", "other"],
        "demo": [],
        "serve": [],
        "label": ["scene.png", "--vocab", WORDS, "--out", "other"],
        "video": ["scene.png", "--vocab", WORDS, "--out", "other"],
        "export": ["--variant", "tiny", "--out", "exported"],
    }
    found = {name: run([name.split()[0], *arguments]) for name, arguments in commands.items()}
    train_net = run(["--config-file", config], str(repo / "tools/train_net.py"))
    return found | {"train_net.py": train_net}


if __name__ == "__main__":
    repository = Path(sys.argv[1])
    answers = {"help": helps(repository)}
    predict()
    print(json.dumps(answers | {"beyond": beyond(repository)}))

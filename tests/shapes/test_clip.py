"""The committed small CLIP recognises what it should, and its training tool runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from san.clip.loader import load_clip
from san.clip.open_clip_adapter import build_trainable_clip
from san.clip.templates import load_templates
from san.hub import load_pretrained
from san.shapes.captions import NAME_TEMPLATES
from san.shapes.clip import CLIP_FILE
from san.shapes.pretraining import zero_shot
from san.shapes.world import NAMES

TOOL = Path(__file__).parents[2] / "tools/maintainers/train_shapes_clip.py"


def load_tool(path: Path) -> Any:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def measure(path: str, count: int) -> dict[str, float]:
    """Zero-shot accuracy of a weights file, through open_clip's own towers."""
    loaded = load_clip("shapes", path)
    assert loaded.state_dict is not None
    clip = build_trainable_clip(loaded.arch)
    clip.load_state_dict(loaded.state_dict, strict=False)
    clip.eval()
    mean = 255 * torch.tensor(loaded.arch.mean).view(3, 1, 1)
    std = 255 * torch.tensor(loaded.arch.std).view(3, 1, 1)
    prompts = load_templates("vild")
    with torch.no_grad():
        texts = [prompt.format(name) for name in NAMES for prompt in prompts]
        text = F.normalize(clip.encode_text(loaded.tokenizer(texts)), dim=-1)
        classes = F.normalize(text.view(len(NAMES), len(prompts), -1).mean(dim=1), dim=-1)

        def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - mean) / std
            return F.normalize(clip.encode_image(pixels), dim=-1).numpy()

        return zero_shot(embed, classes.numpy(), seed=901, count=count)


def test_committed_clip_names_things_it_has_never_seen_masks_of() -> None:
    accuracy = measure("shapes", 300)
    assert accuracy["things"] >= 90 and accuracy["novel"] >= 90 and accuracy["grounds"] >= 95, accuracy


def test_committed_files_are_small_and_tell_their_making() -> None:
    assert CLIP_FILE.stat().st_size < 8e6
    report = json.loads(CLIP_FILE.with_suffix(".json").read_text())
    assert report["zero_shot_percent"]["things"] >= 90 and report["seed"] == 0 and report["command"]


def test_captions_use_the_classifiers_prompts() -> None:
    assert set(load_templates("vild")) <= set(NAME_TEMPLATES)


def test_tokenizer_knows_every_name_and_prompt() -> None:
    loaded = load_clip("shapes", "shapes")
    tokens = loaded.tokenizer([prompt.format(name) for name in NAMES for prompt in load_templates("vild")])
    lengths = tokens.argmax(dim=1) + 1  # end of text has the largest id
    assert tokens.max() == loaded.arch.text.vocab_size - 1
    assert ((tokens != 0).sum(dim=1) == lengths).all()


def test_training_tool_writes_a_clip_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, threads = tmp_path / "clip.safetensors", []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    options = ["--schedule", "0.0001", "--bank", "0.0001", "--width", "32", "--depth", "1", "--threads", "1"]
    tool = load_tool(TOOL)
    accuracy = tool.Towers.accuracy
    monkeypatch.setattr(tool.Towers, "accuracy", lambda self, count: accuracy(self, count // 20))
    monkeypatch.setattr(tool, "STAGES", tuple(replace(stage, batch=8) for stage in tool.STAGES))
    assert tool.main(["--output", str(output), *options]) == 0
    assert threads == [1]
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["steps"] == 5 and set(report["zero_shot_percent"]) == {"things", "seen", "novel", "grounds"}
    assert load_clip("shapes", str(output)).arch.vision.width == 32


def test_true_captions_of_a_picture_come_out_on_one_scale() -> None:
    """The last stage's loss asks for equal logits of what is true; the first stages' loss does not."""
    tool = load_tool(TOOL)
    true = torch.tensor([[True, True, False], [False, False, False]])
    even, uneven = (torch.tensor([[first, 4.0, -4.0], [-4.0, -4.0, -4.0]]) for first in (4.0, 9.0))
    assert tool.shared_loss(even, true) < tool.shared_loss(uneven, true)
    assert tool.margin_loss(even, true) > tool.margin_loss(uneven, true)
    assert tool.STAGES[-1].loss is tool.shared_loss
    logits = even.clone().requires_grad_()
    tool.shared_loss(logits, true).backward()
    assert logits.grad is not None and logits.grad[0, 2] > 0 > logits.grad[0, 0]  # what is false is pushed down


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_tool(TOOL).main(["--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    for option in ("output", "seed", "schedule", "bank", "lr", "width", "depth", "threads", "compile"):
        assert f"--{option}" in shown


def unknown_words(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if "does not know" in record.getMessage()]


def test_an_unknown_word_is_logged_once(caplog):
    classifier = load_pretrained("shapes").text_classifier
    classifier.embed(["red zebra", "zebra, in a scene", "red star"])
    classifier.embed(["blue zebra"])
    (line,) = unknown_words(caplog)
    assert line.count("'") == 2 and "'zebra'" in line
    tokenizer = classifier.embedder.tokenizer
    assert tokenizer.unknown_words(["a photo of a red zebra.", "a zebra, a yak", "red star"]) == ("yak", "zebra")
    assert tokenizer.unknown_words([]) == ()


def test_things_are_named_under_their_masks(repo, capsys):
    """The task of the committed CLIP in SAN: to recognise one thing among several through its mask."""
    tool = load_tool(repo / "tools/maintainers/check_shapes_clip.py")
    images, labels = tool.scenes(60, seed=5)
    found = tool.recognition(load_clip("shapes", "shapes"), 3, images, labels)
    assert found["seen things"] > 65 and found["novel things"] > 65 and found["grounds"] > 72
    assert tool.main(["gone.safetensors"]) == 1
    assert tool.main(["--shallow-depth", "6"]) == 1
    assert "use depths from 1 to 5" in capsys.readouterr().err


def test_many_unknown_words_are_one_line(caplog):
    words = ["zebra", "yak", "wolf", "viper", "urchin", "tiger", "snail", "rat", "quail", "pig", "owl", "newt"]
    load_pretrained("shapes").text_classifier.embed(words)
    (line,) = unknown_words(caplog)
    assert "'newt'" in line
    assert line.count("'") == 20
    assert "and 2 more" in line


def test_a_long_unknown_word_is_cut(caplog):
    load_pretrained("shapes").text_classifier.embed(["zebra" * 2_000])
    (line,) = unknown_words(caplog)
    assert "'zebra" in line and len(line) < 200


def test_long_names_with_unknown_words_are_one_line(caplog):
    """Names so long that their tokens are counted one by one."""
    classifier = load_pretrained("shapes").text_classifier
    classifier.embed([f"a zebra{number} beside a tree, or so it seems from here" for number in range(30)])
    assert len(unknown_words(caplog)) == 1

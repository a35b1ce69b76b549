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

from san.clip.loader import load_clip, save_clip_file
from san.clip.open_clip_adapter import build_trainable_clip
from san.clip.templates import load_templates
from san.clip.visual import DeepClip, ShallowClip
from san.hub import load_pretrained
from san.model.build import clip_state_to_own
from san.shapes.captions import NAME_TEMPLATES
from san.shapes.clip import CLIP_FILE
from san.shapes.mosaics import mosaic_bank
from san.shapes.pretraining import zero_shot
from san.shapes.towers import UNSEEN, Towers, starting_model, vocabulary
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
    assert report["steps"] == 6 and set(report["zero_shot_percent"]) == {"things", "seen", "novel", "grounds"}
    assert load_clip("shapes", str(output)).arch.vision.width == 32


def test_training_tool_runs_the_last_stage_from_earlier_weights(tmp_path, monkeypatch, capsys):
    output, options = tmp_path / "clip.safetensors", ["--schedule", "0.0001", "--bank", "0.0001"]
    tool = load_tool(TOOL)
    monkeypatch.setattr(tool.Towers, "accuracy", lambda self, count: {})
    monkeypatch.setattr(tool, "STAGES", tuple(replace(stage, batch=8, mosaics=1.0) for stage in tool.STAGES))
    assert tool.main(["--start-from", str(CLIP_FILE), "--output", str(output), *options]) == 0
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["steps"] == 1 and report["started_from"] == json.loads(CLIP_FILE.with_suffix(".json").read_text())
    first, last = (load_clip("shapes", str(path)).state_dict for path in (CLIP_FILE, output))
    for name, value in first.items():  # one step from the weights it started from, not new ones
        assert (last[name].float() - value.float()).abs().max() < 0.01, name
    assert not torch.equal(first["visual.proj"], last["visual.proj"])

    kept = output.read_bytes()
    assert tool.main(["--start-from", str(CLIP_FILE), "--output", str(output), "--depth", "4", *options]) == 1
    assert "pass its --width and --depth" in capsys.readouterr().err
    assert output.read_bytes() == kept


def start_file(path: Path, **changes: Any) -> Path:
    """A copy of the committed weights with some tensors, or the ids of the tokens, changed; None removes a tensor."""
    loaded, ids = load_clip("shapes", "shapes"), list(vocabulary())
    state = {**loaded.state_dict, **{key: value for key, value in changes.items() if key != "ids"}}
    state = {key: value for key, value in state.items() if value is not None}
    save_clip_file(path, state, loaded.arch, token_ids=changes.get("ids", ids))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": [0, *vocabulary()[1:]]}, "other tokens than the captions"),
        ({"visual.proj": None}, r"has not the tensors of a CLIP: \['visual.proj'\]"),
        ({"visual.proj": torch.full((128, 128), torch.nan)}, "NaN or infinite values in visual.proj"),
    ],
)
def test_weights_that_training_cannot_start_from_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        starting_model(128, 6, start_file(tmp_path / "start.safetensors", **changes))


@pytest.mark.parametrize("start", ["gone.safetensors", ".", ""])
def test_a_missing_start_is_refused(start):
    with pytest.raises(FileNotFoundError, match="pass weights of an earlier run"):
        starting_model(128, 6, start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--warmup", "0"], "--warmup is 0; use 1 or more"),
        (["--log-period", "0"], "--log-period is 0; use 1 or more"),
        (["--schedule", "nan"], "--schedule is nan; use a number above 0"),
        (["--bank", "-3"], "--bank is -3.0; use a number above 0"),
        (["--width", "33"], "width 33 and depth 6; the width is a multiple of 32"),
        (["--output", "."], "give the name of a .safetensors file"),
        (["--start-from", "clip.safetensors", "--output", "./clip.safetensors"], "write to another one"),
        (["--start-from", "gone.safetensors"], "'gone.safetensors' is no file"),
    ],
)
def test_training_tool_refuses_bad_options_before_any_work(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool = load_tool(TOOL)
    monkeypatch.setattr(tool, "make_banks", lambda *args: pytest.fail("work before the check"))
    assert tool.main(options) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_damaged_report_is_refused_before_the_training(tmp_path, monkeypatch, capsys):
    tool = load_tool(TOOL)
    monkeypatch.setattr(tool, "make_banks", lambda *args: pytest.fail("work before the check"))
    start = start_file(tmp_path / "start.safetensors")
    start.with_suffix(".json").write_text("{")
    assert tool.main(["--start-from", str(start), "--output", str(tmp_path / "clip.safetensors")]) == 1
    assert "start.json is damaged" in capsys.readouterr().err


def test_regions_are_compared_with_captions_of_their_own_names(monkeypatch):
    """The loss of mosaics is lower for the names of the regions than for those of other mosaics."""
    tool = load_tool(TOOL)
    model, arch, ids = starting_model(128, 6, CLIP_FILE)
    towers, bank = Towers(model, arch, ids, compiled=False), mosaic_bank(9, 24, 64, 8)
    stage = replace(tool.STAGES[-1], batch=24)
    by_count = sorted(range(24), key=lambda index: len(bank.names[index]))
    exchanged = list(bank.names)
    for one, other in zip(by_count[::2], by_count[1::2], strict=True):
        if len(bank.names[one]) == len(bank.names[other]):
            exchanged[one], exchanged[other] = bank.names[other], bank.names[one]
    with torch.no_grad():
        losses = [
            tool.mosaic_loss(towers, replace(bank, names=tuple(names)), stage, np.random.default_rng(0)).item()
            for names in (bank.names, exchanged)
        ]
        whole = []
        for weight in (0.0, 1.0):
            monkeypatch.setattr(tool, "WHOLE_WEIGHT", weight)
            whole.append(tool.mosaic_loss(towers, bank, stage, np.random.default_rng(0)).item())
    assert losses[0] < losses[1] - 1
    assert losses[0] == pytest.approx(0.8 * whole[0] + 0.2 * whole[1], rel=0.02)


def test_a_stage_warms_up_and_decays() -> None:
    tool = load_tool(TOOL)
    stage = replace(tool.STAGES[0], steps=10, rate=0.5, decay=0.5)
    found = tool.rates(stage, warmup=2)
    assert found[:2] == [0.25, 0.5] and found[4:6] == [0.5, 0.5]
    assert found[6:] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert tool.rates(replace(stage, decay=0.0), warmup=1) == [0.5] * 10
    assert min(tool.rates(replace(stage, steps=100), warmup=1)) == 0.01  # 2 % of 0.5


def test_a_region_of_a_mosaic_is_recognised_as_in_san() -> None:
    """The training tool's tower, with a token per region, is SAN's: shallow CLIP, deep CLIP and attention biases."""
    model, arch, ids = starting_model(128, 6, CLIP_FILE)
    towers = Towers(model, arch, ids, compiled=False)
    bank = mosaic_bank(3, 4, 64, 8)
    state = clip_state_to_own(model.state_dict(), 3)
    shallow, deep = ShallowClip(arch, 3), DeepClip(arch, 3)
    part = load_tool(TOOL.with_name("check_shapes_clip.py")).part
    shallow.load_state_dict(part(state, "shallow_clip"))
    deep.load_state_dict(part(state, "deep_clip"))
    with torch.no_grad():
        embed = F.normalize(towers.mosaics(bank.images, bank.regions), dim=-1)
        plain = F.normalize(towers.images(bank.images, fast=False), dim=-1)
        features = shallow(towers._pixels(bank.images))
        token = features.class_tokens[-1]
        seen = torch.from_numpy(bank.regions).flatten(1, 2).transpose(1, 2)  # (N, R, T)
        bias = torch.where(seen, 0.0, UNSEEN)[:, None, None]
        regions = deep(token, features.patch_tokens[-1], token.expand(-1, seen.shape[1], -1), bias)
    torch.testing.assert_close(embed[:, 0], plain, rtol=0, atol=1e-5)  # the picture does not see its regions
    for row, names in enumerate(bank.names):
        torch.testing.assert_close(embed[row, 1 : 1 + len(names)], regions[row, : len(names)], rtol=0, atol=1e-5)


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
    for option in ("output", "seed", "schedule", "bank", "lr", "width", "depth", "threads", "compile", "start-from"):
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
    assert found["seen things"] > 86 and found["novel things"] > 86 and found["grounds"] > 78, found
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

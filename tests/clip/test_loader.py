"""Loading of CLIPs: names, tags, files, activation, and errors if there is none."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from san.clip import loader, open_clip_adapter
from san.clip.arch import TINY, ClipArch
from san.clip.blocks import QuickGELU
from san.clip.loader import load_clip, save_clip_file
from san.clip.named import CLIPS
from san.clip.open_clip_adapter import build_trainable_clip
from san.model.build import build_san
from san.model.config import variant

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ClipArch:
    """open_clip's ViT-B-16, made small, so that its weights files are."""
    arch = replace(TINY, quick_gelu=False)
    monkeypatch.setattr(loader, "_open_clip_arch", lambda name: arch)
    return arch


def test_open_clip_architectures() -> None:
    base = load_clip("ViT-B-16", None).arch
    assert (base.vision.width, base.vision.depth, base.vision.num_heads, base.vision.grid_size) == (768, 12, 12, 14)
    assert not base.quick_gelu
    large = load_clip("ViT-L-14-336", None).arch
    assert (large.vision.width, large.vision.depth, large.vision.num_heads, large.embed_dim) == (1024, 24, 16, 768)
    assert load_clip("ViT-B-16-quickgelu", None).arch.quick_gelu


def test_image_and_text_towers_equal_open_clip() -> None:
    torch.manual_seed(0)
    reference = build_trainable_clip(TINY).eval()
    clip = loader.LoadedClip(TINY, dict(reference.state_dict()), load_clip("tiny", None).tokenizer, "")
    clip.state_dict.pop("attn_mask", None)  # type: ignore[union-attr]
    model = build_san(variant("tiny"), clip=clip).eval()
    images, texts = torch.randn(2, 3, 64, 64), ["a cat", "a photo of two dogs on grass"]
    with torch.no_grad():
        expected = reference.encode_image(images, normalize=True)
        features = model.shallow_clip(images)
        tokens = features.class_tokens[-1]
        no_bias = torch.zeros(2, 1, 1, 1, 16)
        ours = model.deep_clip(tokens, features.patch_tokens[-1], tokens, no_bias)[:, 0]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
        ids = clip.tokenizer(texts)
        torch.testing.assert_close(
            model.text_classifier.encode_text(ids), reference.encode_text(ids), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("tag", ["openai", "plain"])
def test_quick_gelu_is_right_for_the_tag(
    tag: str, small: ClipArch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pt"
    torch.save(build_trainable_clip(small).state_dict(), file)
    monkeypatch.setattr(open_clip_adapter, "tag_record", lambda name, wanted: {})
    monkeypatch.setattr(open_clip_adapter, "fetch_weights", lambda name, wanted, **where: file)
    clip = load_clip("ViT-B-16", tag)
    assert clip.arch.quick_gelu == (tag == "openai")
    model = build_san(replace(variant("tiny"), clip=replace(variant("tiny").clip, name="ViT-B-16")), clip=clip)
    quick = any(isinstance(module, QuickGELU) for module in model.modules())
    assert quick == (tag == "openai")


def test_tag_record_decides_activation_and_pixels(
    small: ClipArch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": build_trainable_clip(small).state_dict()}, file)
    record = {"quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    monkeypatch.setattr(open_clip_adapter, "tag_record", lambda name, wanted: record)
    monkeypatch.setattr(open_clip_adapter, "fetch_weights", lambda name, wanted, **where: file)
    arch = load_clip("ViT-B-16", "dfn2b").arch
    assert arch.quick_gelu
    assert arch.mean == (0.5, 0.5, 0.5)


@pytest.fixture
def script(small: ClipArch, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A TorchScript archive in OpenAI's form, and the model in it."""
    reference = build_trainable_clip(small)

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.transformer = reference.visual, reference.transformer
            self.token_embedding, self.ln_final = reference.token_embedding, reference.ln_final
            self.positional_embedding, self.text_projection = reference.positional_embedding, reference.text_projection
            self.logit_scale = reference.logit_scale
            self.register_buffer("input_resolution", torch.tensor(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with torch.no_grad():
        torch.jit.trace_module(Archive(), {"forward": torch.zeros(1)}).save(tmp_path / "ViT-B-16.pt")
    return tmp_path / "ViT-B-16.pt", reference


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_openai_torchscript_file(script: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's own files are TorchScript archives that carry their resolution."""
    file, reference = script
    monkeypatch.setattr(open_clip_adapter, "openai_hashes", lambda: {hashlib.sha256(file.read_bytes()).hexdigest()})
    clip = load_clip("ViT-B-16", str(file))
    assert clip.arch.quick_gelu
    assert clip.state_dict is not None
    torch.testing.assert_close(clip.state_dict["visual.proj"], reference.visual.proj.detach())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_torchscript_files_are_not_opened(script: tuple[Path, torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match="TorchScript archive, which can run code"):
        load_clip("ViT-B-16", str(script[0]))


def test_openai_hashes_are_known() -> None:
    assert "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f" in open_clip_adapter.openai_hashes()


def test_a_tags_weights_in_a_file_of_ones_own(
    small: ClipArch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hub's file of OpenAI's weights looks like others; the tag decides the activation, or a warning is logged."""
    file = tmp_path / "open_clip_model.pt"
    torch.save(build_trainable_clip(small).state_dict(), file)
    assert load_clip("ViT-B-16", f"openai:{file}").arch.quick_gelu
    assert not caplog.text
    assert not load_clip("ViT-B-16", str(file)).arch.quick_gelu
    assert f"set clip.pretrained to openai:{file}" in caplog.text


def test_own_file_round_trip(tmp_path: Path) -> None:
    ids = [320, 2368, 49406, 49407]
    text = replace(TINY.text, vocab_size=len(ids) + 1, context_length=16)
    arch = replace(TINY, text=text)
    reference = build_trainable_clip(arch)
    save_clip_file(tmp_path / "clip.safetensors", reference.state_dict(), arch, token_ids=ids)
    clip = load_clip("shapes", str(tmp_path / "clip.safetensors"))
    assert clip.arch == arch
    tokens = clip.tokenizer(["a cat", "zebra"])
    assert tokens.shape == (2, 16)
    assert tokens[0, :4].tolist() == [3, 1, 2, 4]
    assert tokens[1, :3].tolist() == [3, 0, 4]
    model = build_san(variant("tiny"), clip=clip)
    torch.testing.assert_close(model.deep_clip.proj, reference.visual.proj, atol=1e-3, rtol=1e-3)


def test_shapes_without_weights_is_untrained() -> None:
    assert load_clip("shapes", "shapes").state_dict is not None
    assert load_clip("shapes", None).state_dict is None


def test_without_weights_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip_adapter, "fetch_weights", lambda *args, **where: pytest.fail("weights were fetched"))
    clip = load_clip("ViT-B-16", "openai", weights=False)
    assert clip.arch.quick_gelu
    assert clip.state_dict is None


def test_no_network_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    import huggingface_hub.constants

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"vit_base_patch16_clip.*safetensors.*clip.pretrained to openai:FILE"):
        load_clip("ViT-B-16", "openai")


@pytest.mark.parametrize(
    ("name", "pretrained", "error", "message"),
    [
        ("ViT-B-16", "opneai", ValueError, "no weights 'opneai' for 'ViT-B-16'.*openai"),
        ("ViT-B-16", "weights/none.pt", FileNotFoundError, "no CLIP weights at 'weights/none.pt'"),
        ("shapes", "openai", ValueError, "CLIP 'shapes' has the weights 'shapes'"),
        ("ViT-B-16", "shapes", ValueError, "set clip.name to shapes"),
        ("tiny", "openai", ValueError, "CLIP 'tiny' has no weights 'openai'"),
    ],
)
def test_wrong_weights(name: str, pretrained: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_clip(name, pretrained)


def test_a_clip_of_ones_own_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-describing file and an architecture, registered by another room."""
    monkeypatch.setattr(CLIPS, "_entries", dict(CLIPS._entries))
    arch = replace(TINY, text=replace(TINY.text, vocab_size=4, context_length=16))
    state = build_trainable_clip(arch).state_dict()
    CLIPS.register("mine")(tmp_path / "mine.safetensors")
    CLIPS.register("plain")(replace(TINY, embed_dim=32))
    save_clip_file(tmp_path / "mine.safetensors", state, arch, token_ids=[320, 49406, 49407])
    clip, bare = load_clip("mine", "mine"), load_clip("mine", None)
    assert clip.arch == bare.arch == arch
    assert clip.state_dict is not None
    assert (bare.state_dict, bare.fingerprint) == (None, "mine/untrained")
    torch.testing.assert_close(clip.state_dict["text_projection"].float(), state["text_projection"], atol=1e-3, rtol=0)
    assert load_clip("plain", None).arch.embed_dim == 32
    for name, pretrained in (("plain", "mine"), ("ViT-B-16", "mine")):
        with pytest.raises(ValueError, match="set clip.name to mine"):
            load_clip(name, pretrained)


def test_the_loader_alone_knows_the_shapes(tmp_path: Path) -> None:
    """Importing `san` adds the row, in any order of imports, also in a new process."""
    code = "from san.clip.loader import load_clip; print(load_clip('shapes', 'shapes').fingerprint)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPO)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == load_clip("shapes", "shapes").fingerprint, done.stderr


def test_the_clip_room_does_not_know_the_shapes_world() -> None:
    for path in sorted((REPO / "san/clip").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert '"shapes"' not in text and "data.shapes" not in text and "train_shapes" not in text, path.name


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    for file in ("a.pt", "b.safetensors"):
        (tmp_path / file).write_bytes(b"not weights")
        with pytest.raises(ValueError, match=f"{file}.*write it again"):
            load_clip("ViT-B-16", str(tmp_path / file))
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="contains no class-token ViT CLIP"):
        load_clip("ViT-B-16", str(tmp_path / "c.pt"))


def test_weights_of_another_model_are_listed(tmp_path: Path) -> None:
    state = build_trainable_clip(TINY).state_dict() | {"visual.transformer.resblocks.\x1b.x": torch.ones(1)}
    torch.save(state, tmp_path / "tiny.pt")
    config = variant("vit_b16", pretrained=str(tmp_path / "tiny.pt"))
    with torch.device("meta"), pytest.raises(ValueError, match=r"tensors differ.*deep_clip.*missing"):
        build_san(config)

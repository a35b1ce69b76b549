"""`san export`: the graphs give what the model gives, at any size, in onnxruntime, OpenVINO and numpy alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli.main import main
from san.export.agreement import Agreement
from san.export.folder import export_model, tokens_of, torch_release
from san.export.formats import ONNX_TORCH, onnx_path
from san.export.graphs import PixelGraph, ProposalGraph, TextGraph
from san.inference.predictor import Predictor
from san.vocabulary.bank import BankOptions, BankSettings
from san.vocabulary.classes import ClassText, ClassVector
from san.vocabulary.vocabulary import Vocabulary
from tests.model.test_tracing import settings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/onnx_numpy.py"
WORDS = "red star|scarlet star; blue ring; striped ground; green bar"


@pytest.fixture(scope="module", params=["vit_l14_336", pytest.param("vit_b16", marks=pytest.mark.slow)])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    """A small model with a published one's patches and scale; the grids of the first do not divide each other."""
    return Predictor(settings(request.param), short_side=96, text_cache=None)


def need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    if torch_release() < ONNX_TORCH:
        pytest.skip("this PyTorch is too old")


@pytest.fixture(scope="module")
def exported(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Agreement]]:
    """The folder, and the comparisons."""
    need_onnx()
    folder = tmp_path_factory.mktemp("exported")
    return folder, export_model(predictor, folder, vocabulary=WORDS, precisions=("int8", "float16"))


@pytest.fixture(scope="module")
def folder(exported: tuple[Path, list[Agreement]]) -> Path:
    return exported[0]


def expected(predictor: Predictor, pixels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Mask logits, [SLS] embeddings and sizes."""
    with torch.no_grad():
        images, sizes = PixelGraph(predictor.model)(torch.from_numpy(pixels))
        return [each.numpy() for each in (*ProposalGraph(predictor.model)(images), sizes)]


def pixels_of(*size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_every_precision_agrees_with_the_model(exported: tuple[Path, list[Agreement]]) -> None:
    folder, found = exported
    assert [each.precision for each in found] == ["float32", "float16", "int8"]
    for each, error, same in zip(found, (1e-4, 1e-2, 0.2), (0.999, 0.98, 0.8), strict=True):
        assert max(each.mask_error, each.sls_error, each.text_error) < error, each
        assert each.labels >= same, each
    assert found[0].mask_error < found[1].mask_error < found[2].mask_error
    assert found[1].megabytes < 0.7 * found[0].megabytes
    assert [each["precision"] for each in json.loads((folder / "agreement.json").read_text())] == [
        each.precision for each in found
    ]


@pytest.mark.parametrize("size", [(2, 96, 128), (1, 151, 64), (3, 33, 95), (1, 203, 310)])
def test_any_size_and_batch(size: tuple[int, ...], predictor: Predictor, folder: Path) -> None:
    session = sys.modules["onnxruntime"].InferenceSession(folder / "image.onnx")
    pixels = pixels_of(*size)
    found = session.run(["mask_logits", "sls_embed", "sizes"], {"pixels": pixels})
    for one, other in zip(found, expected(predictor, pixels), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_the_pixels_are_prepared_as_by_the_model(predictor: Predictor) -> None:
    pixels = torch.from_numpy(pixels_of(2, 33, 95))
    images, sizes = PixelGraph(predictor.model)(pixels)
    assert torch.equal(images, predictor.model.stack([*pixels.permute(0, 3, 1, 2)]))
    assert sizes.tolist() == [[64, 96], [33, 95]]


def test_text_embeddings_of_tokens(predictor: Predictor, folder: Path) -> None:
    """Of any number of names, templates and tokens."""
    names = ["red star", "a blue ring with a long name"]
    tokens = tokens_of(predictor, names)
    assert tokens.shape[:2] == (2, 14)
    session = sys.modules["onnxruntime"].InferenceSession(folder / "text.onnx")
    (found,) = session.run(None, {"tokens": tokens.numpy()})
    np.testing.assert_allclose(found, predictor.model.text_classifier.embed(names).numpy(), atol=1e-5)
    one = tokens[:1, :1, :9]
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"tokens": one.numpy()})[0], TextGraph(predictor.model)(one)[0], atol=1e-5
        )


def example() -> Any:
    spec = importlib.util.spec_from_file_location("onnx_numpy", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [(151, 64), (97, 240)])
def test_numpy_gives_the_label_map(size: tuple[int, int], predictor: Predictor, folder: Path) -> None:
    session = sys.modules["onnxruntime"].InferenceSession(folder / "image.onnx")
    pixels = pixels_of(*size)
    words = dict(np.load(folder / "vocabulary.npz"))
    assert words["names"].tolist() == ["red star", "blue ring", "striped ground", "green bar"]
    found = example().segment(session, words, Image.fromarray(pixels))
    assert (found == predictor.predict(pixels, WORDS).labels).mean() > 0.999


def test_the_label_graph_gives_the_label_map(predictor: Predictor, folder: Path) -> None:
    """Also of an image that was resized for the network."""
    runtime, pixels = sys.modules["onnxruntime"], pixels_of(150, 211)
    encoded = predictor.encode(pixels)
    proposals, geometry = encoded.proposals, encoded.geometry
    wanted = predictor.segment(WORDS, encoded=encoded)
    inputs = {
        "mask_logits": proposals.mask_logits.numpy(),
        "sls_embed": proposals.sls_embed.numpy(),
        "text_embed": np.load(folder / "vocabulary.npz")["text_embed"],
        "sizes": np.array([geometry.padded_size, geometry.image_size]),
        "output_size": np.array(geometry.output_size),
    }
    labels, scores, logits = runtime.InferenceSession(folder / "labels.onnx").run(None, inputs)
    assert (labels == wanted.labels).mean() > 0.999
    np.testing.assert_allclose(scores, wanted.best_scores, atol=1e-5)
    assert logits.shape == (10, 5)


def test_the_example_is_short_and_needs_three_packages() -> None:
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}
    lines = [(node.end_lineno or 0) - node.lineno + 1 for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert sum(lines) <= 40


def test_the_files_are_valid_and_name_their_sizes(predictor: Predictor, folder: Path) -> None:
    onnx = sys.modules["onnx"]
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(path)
    image = onnx.load(folder / "image.onnx")
    assert [each.version for each in image.opset_import] == [23]
    metadata = {each.key: each.value for each in image.metadata_props}
    assert (metadata["short_side"], metadata["max_size"]) == ("96", "2560")


@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_openvino_runs_the_file(precision: str, predictor: Predictor, folder: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = openvino.compile_model(onnx_path(folder, "image", precision), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in ((1, 96, 128), (1, 151, 64)):
        pixels = pixels_of(*size)
        found = model({"pixels": pixels})
        masks, embeds, _ = expected(predictor, pixels)
        error = 1e-3 if precision == "float32" else 0.2
        assert np.abs(found["mask_logits"] - masks).max() < error * np.abs(masks).max()
        assert np.abs(found["sls_embed"] - embeds).max() < error * np.abs(embeds).max()


def test_the_command_writes_an_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/model/test_tracing.py runs the program that is replaced here."""
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    monkeypatch.setattr("san.export.graphs.ModelGraph.trace", lambda graph: program)
    out = tmp_path / "out"
    command = ["export", "--variant", "tiny", "--out", str(out), "--format", "pt2", "--text-cache", ""]
    assert main(command) == 0, capsys.readouterr().err
    assert f"{out / 'image.pt2'}: " in capsys.readouterr().out
    assert torch.export.load(out / "image.pt2").module()(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
    assert main(command) == 1
    assert "exists; choose another --out, or give --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab", "a", "--vocab-file", "b.txt"], "--vocab and --vocab-file are given"),
        (["--compile"], "--compile compiles the model that is exported"),
        (["--dtype", "bfloat16"], "made of a model on the CPU in float32"),
        (["--opset", "12"], "no opset 12 of an export; choose 18 to 23"),
        (["--images", "gone.png"], "gone.png"),
    ],
)
def test_what_cannot_be_exported(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--variant", "tiny", "--out", str(tmp_path), "--text-cache", "", *options]) == 1
    assert message in capsys.readouterr().err


def test_an_old_pytorch_is_refused(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.__version__", "2.6.0+cpu")
    with pytest.raises(ValueError, match=r"PyTorch 2.6.0\+cpu is older than 2.14"):
        export_model(predictor, tmp_path)


def test_unknown_forms(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no precision 'int4' of an export; choose of float32, float16, int8"):
        export_model(predictor, tmp_path, precisions=("int4",))
    with pytest.raises(ValueError, match="no format 'tflite'"):
        export_model(predictor, tmp_path, formats=("tflite",))


def test_a_bank_of_examples_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    need_onnx()
    classifier = predictor.model.text_classifier
    vector = classifier.embedder.probe(classifier).cpu().numpy()
    width, numbers = len(vector), vector.astype("<f4").tobytes()
    bank = BankSettings(BankOptions(), numbers, np.eye(width, dtype="<f4").tobytes())
    own = ClassText("cat", vector=ClassVector(numbers, "tiny", numbers, vector.astype("<f2").tobytes(), bank))
    with pytest.raises(ValueError, match="bank of examples.* make the file without --bank"):
        export_model(predictor, tmp_path, vocabulary=Vocabulary((own,)))
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_shapes_model_agrees(tmp_path: Path) -> None:
    """A trained model on scenes: the bars of each precision."""
    from san.shapes.render import render
    from san.shapes.world import NAMES, scene_at

    need_onnx()
    pictures, _ = render([scene_at(seed=5, index=index) for index in range(4)])
    shapes = Predictor.from_pretrained("shapes", text_cache=None)
    options: dict[str, Any] = {"vocabulary": Vocabulary.parse([*NAMES]), "pictures": [*pictures]}
    found = export_model(shapes, tmp_path, precisions=("float16", "int8"), **options)
    for each, error, same in zip(found, (1e-3, 1e-2, 0.1), (0.999, 0.999, 0.99), strict=True):
        assert max(each.mask_error, each.sls_error, each.text_error) < error, each
        assert each.labels >= same, each


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_compiled_archive_gives_the_same(tmp_path: Path) -> None:
    """Compilation takes minutes."""
    predictor = Predictor(settings("vit_b16"), short_side=96, text_cache=None)
    export_model(predictor, tmp_path, formats=("aoti",))
    program = torch._inductor.aoti_load_package(str(tmp_path / "image_compiled.pt2"))
    for size in ((2, 96, 128), (1, 160, 64)):
        images = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            for one, other in zip(program(images), ProposalGraph(predictor.model)(images), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

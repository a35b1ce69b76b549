"""examples/label_studio_backend behind the SDK's own server; the SDK is on GitHub only, and the tests skip without."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from san.inference.predictor import Predictor
from san.shapes.render import render
from san.shapes.world import scene_at

pytest.importorskip("label_studio_ml.response")

NAMES = ["white star|red star", "black bar", "blue ring", "striped ground", "plain & ground"]
CONFIG = """<View><Image name="photo" value="$picture"/><{tag} name="classes" toName="photo">{labels}</{tag}></View>"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server of the example."""
    folder = Path(__file__).parents[1] / "examples/label_studio_backend"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_DIR", str(tmp_path_factory.mktemp("cache")))  # read when the SDK is imported
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("downloads")))
        patch.setenv("LABEL_STUDIO_URL", "http://localhost:8080")
        patch.setenv("LABEL_STUDIO_API_KEY", "none")
        patch.setenv("SAN_TOLERANCE", "0")
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "model", raising=False)
        spec = importlib.util.spec_from_file_location("_wsgi", folder / "_wsgi.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module.app.test_client()
        sys.modules.pop("model", None)


@pytest.fixture(scope="module")
def host(picture: Path) -> Iterator[str]:
    """The address of a web server of the pictures."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(picture.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "büro #1.png"
    Image.fromarray(render([scene_at(seed=5, index=6)])[0][0][:100]).save(path)
    return path


def config(tag: str) -> str:
    labels = "".join(f'<Label value="{name.replace("&", "&amp;")}"/>' for name in NAMES)
    return CONFIG.format(tag=tag, labels=labels)


def predict(client: Any, tag: str, host: str, *names: str) -> list[dict[str, Any]]:
    tasks = [{"id": index, "data": {"picture": f"{host}/{quote(name)}"}} for index, name in enumerate(names)]
    response = client.post("/predict", json={"tasks": tasks, "project": f"1.{tag}", "label_config": config(tag)})
    assert response.status_code == 200, response.data
    results: list[dict[str, Any]] = response.get_json()["results"]
    return results


def expected(picture: Path) -> np.ndarray:
    return Predictor.from_pretrained("shapes", text_cache=None).predict(str(picture), NAMES).labels


@pytest.mark.parametrize("tag", ["BrushLabels", "PolygonLabels"])
def test_label_studio_reads_the_labels_of_san(client: Any, picture: Path, host: str, tag: str) -> None:
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    (prediction,) = predict(client, tag, host, picture.name)
    assert prediction["model_version"].endswith(" shapes") and 0 < prediction["score"] <= 1
    assert LabelInterface(config(tag)).validate_prediction(prediction)
    labels = np.full((100, 128), -1)
    for each in prediction["result"]:
        assert (each["from_name"], each["to_name"], each["type"]) == ("classes", "photo", tag.lower())
        assert (each["original_height"], each["original_width"]) == labels.shape
        (name,) = each["value"][tag.lower()]
        if tag == "BrushLabels":
            mask = decode_rle(each["value"]["rle"]).reshape(100, 128, 4)[..., 3] > 0
        else:
            mask = filled(np.array(each["value"]["points"]) / 100 * [128, 100])
        labels[mask] = NAMES.index(name)
    assert np.array_equal(labels, expected(picture))


def filled(points: np.ndarray) -> np.ndarray:
    """(100, 128) pixels whose centre is in the polygon, by the even-odd rule."""
    y, x = np.mgrid[:100, :128] + 0.5
    inside = np.zeros((100, 128), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        crosses = (y0 <= y) != (y1 <= y)
        inside ^= crosses & (x < x0 + (y - y0) / (y1 - y0 if y1 != y0 else 1) * (x1 - x0))
    return inside


def test_an_unreadable_image_costs_only_its_own_prediction(client: Any, picture: Path, host: str, caplog: Any) -> None:
    (picture.parent / "broken.png").write_bytes(b"no picture")
    missing, broken, good = predict(client, "BrushLabels", host, "missing.png", "broken.png", picture.name)
    assert missing["result"] == broken["result"] == [] and good["result"]
    assert "task 0: 404" in caplog.text and "task 1:" in caplog.text and "broken.png" in caplog.text


def test_the_server_is_set_up(client: Any) -> None:
    assert client.get("/health").get_json()["model_class"] == "SANBackend"
    made = client.post("/setup", json={"project": "2.0", "schema": config("BrushLabels")})
    assert made.get_json()["model_version"].startswith("SAN ")

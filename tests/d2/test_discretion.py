"""No token and no home folder of the user's machine in a log or in a run of Weights & Biases."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest

from san.d2.config import san_cfg
from san.d2.discretion import MASK, discreet, without_places
from san.d2.launcher import setup_run
from san.d2.writers import WandbWriter

TOKEN = "hf_planted1234567890"
PLANTED = {
    "HF_TOKEN": TOKEN,
    "WANDB_API_KEY": "wandb-planted-key-0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws/planted+secret",
    "GITHUB_PAT": "ghp_planted0123",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder and tokens that must not be seen again."""
    home = tmp_path / "home" / "ursula"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return home


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"denied for {TOKEN}.", f"denied for {MASK}."),
        ("{home}/data/a.jpg and {home}", "~/data/a.jpg and ~"),
        ("{home}-old/a.jpg", "{home}-old/a.jpg"),
        ("https://me:word@host.org/a?b=1&token=abc&c=2", f"https://{MASK}@host.org/a?b=1&token={MASK}&c=2"),
        ("/data/a.jpg at 12:30", "/data/a.jpg at 12:30"),
        ("GET /x?k=aws%2Fplanted%2Bsecret failed", f"GET /x?k={MASK} failed"),
        ("denied for ghp_planted0123", f"denied for {MASK}"),
        ("mail me@host.org", "mail me@host.org"),
    ],
)
def test_texts(text: str, wanted: str, planted: Path) -> None:
    assert discreet(text.replace("{home}", str(planted))) == wanted.replace("{home}", str(planted))


def test_short_values_and_the_root_mask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("HOME", "/")
    assert discreet("true / false") == "true / false"


def test_a_home_behind_a_link(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(planted)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert discreet(f"{tmp_path}/link/a and {planted}/b") == "~/a and ~/b"


def test_places_of_a_configuration() -> None:
    content = {
        "a": "/data/ursula/run",
        "b": ["~/x.pth", "configs/x.yaml"],
        "c": 1,
        "d": "laion:/w/clip.pt",
        "e": "C:\\u\\x.pth",
        "f": "file:///w/ursula/x.pth",
        "g": "../ursula/x.pth",
    }
    assert without_places(content) == {
        "a": "run",
        "b": ["x.pth", "configs/x.yaml"],
        "c": 1,
        "d": "laion:clip.pt",
        "e": "x.pth",
        "f": "x.pth",
        "g": "x.pth",
    }
    assert without_places({"a": "https://me:word@host.org/x.pth"}) == {"a": f"https://{MASK}@host.org/x.pth"}
    assert without_places({"a": "a photo of a {}: nice"}) == {"a": "a photo of a {}: nice"}


def forget_loggers() -> None:
    """Those of a run write to this test's terminal, which is gone afterwards."""
    for name in ("fvcore", "detectron2", "san"):
        logging.getLogger(name).handlers.clear()


def test_a_runs_log(planted: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = san_cfg()
    cfg.OUTPUT_DIR = str(planted / "run")
    cfg.MODEL.DEVICE = "cpu"
    request.addfinalizer(forget_loggers)
    setup_run(cfg)
    try:
        raise OSError(f"401 for {TOKEN} while writing {planted}/x")
    except OSError:
        logging.getLogger("san.d2.x").exception("the upload to %s failed", planted / "y")
    for handler in logging.getLogger("san").handlers:
        handler.flush()
    log = (planted / "run" / "log.txt").read_text(encoding="utf-8")
    for text in (log, capsys.readouterr().out):
        assert "the upload to ~/y failed" in text and f"401 for {MASK}" in text
        assert "ursula" not in text
        assert not any(value in text for value in PLANTED.values())


def test_a_run_of_weights_and_biases(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(socket, "gethostname", lambda: "ursulas-machine")
    monkeypatch.setenv("WANDB_NAME", "")
    cfg = san_cfg()
    cfg.OUTPUT_DIR = str(planted / "my_run")
    cfg.DATASETS.ROOT, cfg.MODEL.WEIGHTS = str(planted / "data_sets"), f"https://ursula:{TOKEN}@host.org/x.pth"
    cfg.WANDB.ENABLED = True
    Path(cfg.OUTPUT_DIR).mkdir()
    writer = WandbWriter(cfg)
    print(f"{TOKEN} on the terminal in {planted}")
    writer.close()
    (folder,) = (planted / "my_run" / "wandb").glob("offline-run-*")
    end = time.monotonic() + 30  # on a busy machine W&B's own process writes a moment later
    while time.monotonic() < end:
        sent = [path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
        if any(b"data_sets" in path.read_bytes() for path in sent):
            break
        time.sleep(0.2)
    else:
        pytest.fail("the configuration is not there")
    for path in sent:
        content = path.read_bytes()
        for secret in (*PLANTED.values(), "ursula", str(tmp_path), str(Path(__file__).parent)):
            assert secret.encode() not in content, (path.name, secret)
    for path in (folder / "logs").rglob("*"):
        assert not any(secret.encode() in path.read_bytes() for secret in PLANTED.values())

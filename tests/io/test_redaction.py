"""Secrets and the home folder are masked on the terminal, in logs and in runs of Weights & Biases."""

from __future__ import annotations

import contextlib
import html
import json
import logging
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from tqdm import tqdm

from san.d2.config.keys import san_cfg
from san.d2.processes.launcher import setup_run
from san.d2.train.writers import WandbWriter
from san.io.errors import excerpt, one_line, printable
from san.io.redaction import MASK, RedactingStream, redact, redact_home, redact_terminal, without_folders

TOKEN = "hf_planted1234567890"
REPO = Path(__file__).resolve().parents[2]
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
        ("https://me:word@host.org/a?b=1&token=abc&c=2", f"https://{MASK}@host.org/a?b={MASK}&token={MASK}&c={MASK}"),
        ("/data/a.jpg at 12:30", "/data/a.jpg at 12:30"),
        ("GET /x?k=aws%2Fplanted%2Bsecret failed", f"GET /x?k={MASK} failed"),
        ("denied for ghp_planted0123", f"denied for {MASK}"),
        ("mail me@host.org", "mail me@host.org"),
    ],
)
def test_texts(text: str, wanted: str, planted: Path) -> None:
    assert redact_home(redact(text.replace("{home}", str(planted)))) == wanted.replace("{home}", str(planted))


ADDRESSES = [
    ("https://host.org/a/b.pth", "https://host.org/a/b.pth"),
    ("https://me:wo/rd@host.org/x", f"https://{MASK}@host.org/x"),
    ("https://me:w@rd@host.org/x", f"https://{MASK}@host.org/x"),
    ("https://me:w?r#d@host.org/x", f"https://{MASK}@host.org/x"),
    ("https://me:1/2'3\"4@host.org:8080/x", f"https://{MASK}@host.org:8080/x"),
    ("s3://key:word@bucket/x", f"s3://{MASK}@bucket/x"),
    ("https:/me:word@host.org/x.pth?sig=ab", f"https:/{MASK}@host.org/x.pth?sig={MASK}"),  # of pathlib
    ("https://host.org/x?se=2026&sig=ab%2Bc&sp", f"https://host.org/x?se={MASK}&sig={MASK}&{MASK}"),
    ("https://host.org/x?abc", f"https://host.org/x?{MASK}"),
    ("https://host.org/x?a=#access_token=ab&b=c", f"https://host.org/x?a=#{MASK}"),
    ("https://host.org/x#access_token=ab", f"https://host.org/x#{MASK}"),
    ("(see 'https://host.org/x?sig=abc'), again", f"(see 'https://host.org/x?sig={MASK}'), again"),
    ("x.pth?sv=1&sig=ab: 45%|", f"x.pth?sv={MASK}&sig={MASK}: 45%|"),  # a file name of an address, as tqdm shows it
    ("x#access_token=ab", f"x#access_token={MASK}"),
    ("cache/x.pth#abc ...", f"cache/x.pth#{MASK} ..."),
    ("see docs/video.md#youtube_vis", "see docs/video.md#youtube_vis"),  # a part of our own pages
    ("https://host.org/x.md#abc", f"https://host.org/x.md#{MASK}"),
    ("x.safetensors?abc", f"x.safetensors?{MASK}"),
    ("is it x.yaml? (or y.json?)", "is it x.yaml? (or y.json?)"),
    ("lr = 3 & momentum = 4, x=5", "lr = 3 & momentum = 4, x=5"),
    ("C:/runs/x.pth and openai:/data/clip.pt", "C:/runs/x.pth and openai:/data/clip.pt"),
]


@pytest.mark.parametrize(("text", "wanted"), ADDRESSES)
def test_addresses(text: str, wanted: str) -> None:
    assert redact(text) == wanted
    assert redact(wanted) == wanted


ODD_SECRETS = [
    "plain_0123456789",
    "with/slash@and+plus&equals=",
    'it\'s "quoted" both',
    "back\\slash\\\\twice",
    "two  blanks   and\ttab",
    "line one 123\nline two 456\n",
    "bell\x07 and \x1b[31m red",
    "Grüße aus Köln",
    "50%2Foff%20today",
    "undecodable \udcff byte",
]


def lower(found: re.Match[str]) -> str:
    return found[0].lower()


SHOWN_AS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": repr,
    "repr of a repr": lambda secret: repr(f"got {secret!r}"),
    "repr beside quotes": lambda secret: repr(f'it\'s "{secret}"'),
    "json": json.dumps,
    "json in json": lambda secret: json.dumps(json.dumps({"a": secret})),
    "json unescaped": lambda secret: json.dumps([secret], ensure_ascii=False),
    "printable": printable,
    "one line": one_line,
    "quoted": lambda secret: f"/x/{quote(secret, safe='', errors='surrogateescape')}/y",
    "quoted path": lambda secret: quote(secret, errors="surrogateescape"),
    "quoted plus": lambda secret: quote_plus(secret, errors="surrogateescape"),
    "quoted in lower case": lambda secret: re.sub(
        "%..", lambda m: m[0].lower(), quote(secret, "", None, "surrogateescape")
    ),
    "html": html.escape,
    "blanks": lambda secret: " ".join(secret.split()),
    "wrapped": lambda secret: "\n    ".join(secret.split()),
    "lines apart": lambda secret: "\n| ".join(secret.splitlines()),
    "an error": lambda secret: str(KeyError(f"no {secret}")),
}


@pytest.mark.parametrize("secret", ODD_SECRETS, ids=range(len(ODD_SECRETS)))
@pytest.mark.parametrize("form", SHOWN_AS)
def test_every_form_of_a_secret(form: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", secret)
    shown = redact(SHOWN_AS[form](secret))
    pieces = [piece for piece in re.split(r"[\W_]+", secret) if len(piece) > 2]
    assert MASK in shown and not [piece for piece in pieces if piece in shown], shown


def test_messages_are_redacted_before_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"https://me:{'word' * 10}@host.org/{'x' * 200}.pth"
    monkeypatch.setenv("SOME_TOKEN", "ab12" * 10)
    for text in (excerpt(address), excerpt([address]), excerpt("x" * 30 + "ab12" * 10 + "x" * 100)):
        assert "word" not in text and "ab12" not in text
    assert "ab12" not in one_line("x" * 1320 + "ab12" * 10 + "x" * 3000)


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a ",
        "\\",
        "://",
        "?a",
        "?a=",
        "&",
        "@",
        "#a=b",
        "a:/",
        "a://b@",
        "two  ",
        "%2F",
        "'",
        "://a?b&c",
        ".a",
        ".?a",
    ],
)
def test_a_line_of_a_megabyte_takes_linear_time(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, secret in enumerate(ODD_SECRETS):
        monkeypatch.setenv(f"SOME_TOKEN_{number}", secret)
    redact("")  # the pattern is compiled once
    start = time.perf_counter()
    redact_home(redact(line * (2**20 // len(line))))
    assert time.perf_counter() - start < 5  # quadratic time would be hours


@contextlib.contextmanager
def redacted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    redact_terminal()
    redact_terminal()
    assert isinstance(sys.stderr, RedactingStream) and not isinstance(sys.stderr._stream, RedactingStream)
    yield


def test_the_terminal(planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Output of other packages: iopath's log and bar, a stack trace."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # torchmetrics 1.4.0 replaces it when it is imported
    with redacted(capsys, monkeypatch):
        print("on stdout", TOKEN)
        with tqdm(total=2, desc=f"x.pth?token=abcdef&t={TOKEN}") as bar:
            bar.update()
        logger, handler = logging.getLogger("iopath.common.download"), logging.StreamHandler()
        logger.addHandler(handler)
        logger.error("Failed to download https://me:word@host.org/x?sig=abcdef")
        logger.removeHandler(handler)
        try:
            raise KeyError(f"no {TOKEN}")
        except KeyError:
            sys.excepthook(*sys.exc_info())
    shown = capsys.readouterr()
    assert "on stdout ***" in shown.out and "50%" in shown.err
    for expected in ("x.pth?token=***&t=***", f"KeyError: 'no {MASK}'", "https://***@host.org/x?sig=***"):
        assert expected in shown.err
    for secret in (TOKEN, "word", "abcdef"):
        assert secret not in shown.out + shown.err


@pytest.mark.parametrize("path", sorted([*(REPO / "tools").glob("*.py"), *(REPO / "datasets").glob("*.py")]), ids=str)
def test_every_script_redacts_its_terminal(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    starts = ("    sys.exit(guarded(main))\n", " run_tool(", "(run_tool(")
    assert any(start in source for start in starts), "run main in san.cli.main.guarded"


def test_the_command_redacts_its_terminal(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from san.cli.main import main

    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    assert main(["visualize", "--nothing", TOKEN]) == 2
    assert main(["predict", f"https://me:word@host.org/{TOKEN}.jpg", "--vocab", "cat"]) == 2
    assert main(["predict", f"{TOKEN}.jpg", "--vocab", "cat"]) == 1
    shown = capsys.readouterr().err
    assert MASK in shown and TOKEN not in shown and "word" not in shown


def test_short_values_and_the_root_mask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("HOME", "/")
    assert redact_home(redact("true / false")) == "true / false"


def test_a_home_behind_a_link(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(planted)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert redact_home(f"{tmp_path}/link/a and {planted}/b") == "~/a and ~/b"


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
    assert without_folders(content) == {
        "a": "run",
        "b": ["x.pth", "configs/x.yaml"],
        "c": 1,
        "d": "laion:clip.pt",
        "e": "x.pth",
        "f": "x.pth",
        "g": "x.pth",
    }
    assert without_folders({"a": "https://me:word@host.org/x.pth"}) == {"a": f"https://{MASK}@host.org/x.pth"}
    assert without_folders({"a": "a photo of a {}: nice"}) == {"a": "a photo of a {}: nice"}


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
    writer = WandbWriter(cfg, "a1b2", -1)
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

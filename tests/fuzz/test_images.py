"""2000 malformed images, read in a process of its own that may not crash, hang or take much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from san.io.image_files import read_image
from tests.fuzz.malformed import good_images, malformed_images

COUNT = 2000
SECONDS = 10
"""Of one file, the reader's process being one of many."""

READER = """
import json, logging, resource, signal, sys, time, warnings
from pathlib import Path
from san.io.image_files import ImageLimits, read_image
from san.demo.limits import Limits

warnings.simplefilter("ignore")
usual, limits = ImageLimits(max_pixels=1_000_000), Limits(max_pixels=1_000_000).of_pictures
for warm in sorted(Path(sys.argv[1]).glob("good_*")):  # Pillow's readers are loaded when first needed
    read_image(warm, usual)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {"read": 0, "refused": 0, "wrong": []}

def too_long(*_):
    raise BaseException("it takes too long")

signal.signal(signal.SIGALRM, too_long)
for path in sorted(Path(sys.argv[1]).glob("[0-9]*")):
    print(path.name, file=sys.stderr, flush=True)
    outcomes = []
    for read in (lambda: read_image(path, usual), lambda: read_image(path.read_bytes(), limits)):
        signal.alarm(int(sys.argv[2]))
        try:
            pixels = read()
            assert pixels.dtype == "uint8" and pixels.ndim == 3 and 0 < pixels.size <= 3_000_000, pixels.shape
            outcomes.append("read")
        except ValueError as error:
            outcomes.append("refused")
            if not str(error) or "\\n" in str(error):
                found["wrong"].append((path.name, "its message is not one line: " + repr(str(error))))
        except BaseException as error:
            found["wrong"].append((path.name, repr(error)))
        signal.alarm(0)
    for outcome in set(outcomes):
        found[outcome] += 1
found["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("malformed")
    for name, content in good_images().items():
        (folder / f"good_{name}").write_bytes(content)
    for name, content in malformed_images(COUNT):
        (folder / name).write_bytes(content)
    return folder


def test_no_malformed_image_does_harm(corpus, repo):
    command = [sys.executable, "-c", READER, str(corpus), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, cwd=repo, timeout=300, check=False)
    names = [line for line in done.stderr.decode(errors="replace").splitlines() if line[:5].isdigit()]
    assert done.returncode == 0, f"the reader died ({done.returncode}) at {names[-1:]}: {done.stderr[-500:]!r}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert len(names) == COUNT
    assert found["read"] > 100, "mutations that always break the header test only that"
    assert found["refused"] > 1000
    assert found["grown_mb"] < 150, "limits are checked before anything is decoded"


def test_the_good_ones_are_read(corpus):
    shapes = {read_image(path).shape for path in corpus.glob("good_*")}
    assert shapes == {(24, 36, 3), (36, 24, 3)}, "the latter are turned by their EXIF orientation"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.dds", b"DDS " + (124).to_bytes(4, "little") + bytes(200), "cannot be read"),
        ("a.qoi", b"qoif\0\0\0\x04\0\0\0\x04\x03\0", "cannot be read"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "cannot be read"),
        (
            "a.jpg",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touched) (w) file closefile\n%%EOF\n",
            "is of the format EPS, which is not read as a picture; export it as PNG",
        ),
    ],
)
def test_other_formats_of_pillow(name, content, message, tmp_path):
    """Errors that fuzzing of 102 files of all formats of Pillow has found; with any name."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / name)


def test_pixels_survive_what_is_no_damage(tmp_path):
    """Bytes after the end of a file change nothing."""
    path = tmp_path / "a.png"
    path.write_bytes(good_images()["rgb.png"])
    before = read_image(path)
    path.write_bytes(good_images()["rgb.png"] + b"\xff" * 50)
    np.testing.assert_array_equal(read_image(path), before)

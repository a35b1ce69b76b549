"""A base installation works on this system: every module imports, and `san predict` finds what is in a picture.

    python .ci/smoke.py

Works in a temporary folder. Modules of extras that are not installed are left out, and named.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import tempfile


def import_all() -> list[str]:
    """Import every module of SAN; return those that need a package that is not installed."""
    import san
    from san.io.errors import MissingExtraError

    without = []
    for module in pkgutil.walk_packages(san.__path__, "san."):
        if module.name.endswith("__main__"):  # it would run the command
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            cause = error.__cause__ if isinstance(error, MissingExtraError) else error
            missing = (getattr(cause, "name", None) or "san").partition(".")[0]
            if missing == "san" or missing in sys.stdlib_module_names:  # such as fcntl on Windows
                raise
            without.append(f"{module.name} (needs {missing})")
    return without


def predict() -> None:
    """Run `san predict` in the current folder, on a scene with a name that is no ASCII."""
    import numpy as np
    from PIL import Image

    from san.cli.main import main
    from san.shapes.render import render
    from san.shapes.world import NAMES, scene_at

    pictures, labels = render([scene_at(seed=5, index=1)])
    Image.fromarray(pictures[0]).save("scene ü.png")
    present, truth = np.unique(labels[0], return_inverse=True)
    words = ", ".join(NAMES[index] for index in present.tolist())
    options = ["--vocab", words, "--out", "out", "--text-cache", "words", "--format", "labels,json"]
    code = main(["predict", "scene ü.png", *options])
    assert code == 0, f"san predict ended with {code}"
    with Image.open("out/scene ü_labels.png") as image:
        right = (np.asarray(image) == truth.reshape(labels[0].shape)).mean()
    assert right > 0.9, f"only {right:.0%} of the pixels are right"


def main() -> None:
    """Check this installation."""
    for module in import_all():
        print(f"left out: {module}")
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        predict()
        os.chdir(before)  # Windows removes no folder that is in use
    print("every other module imports, and san predict works")


if __name__ == "__main__":
    main()

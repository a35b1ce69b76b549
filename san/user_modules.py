"""Imports modules of the user, if the user names them; a file that comes with weights cannot import any."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from san.io.errors import excerpt


def import_modules(names: Sequence[str]) -> None:
    """Import modules from the working directory or Python's search path, so that their registered parts are known.

    Args:
        names: module names, such as my_module or my_package.models.

    Raises:
        ValueError: the module does not exist. Exceptions raised by a module are not caught.
    """
    if names and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last, so that a file there does not hide an installed package
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"--import or MODEL.IMPORTS names {excerpt(name)}; give a module as Python imports it, like my_module"
            )
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the missing module is one that the module itself imports
            raise ValueError(
                f"--import or MODEL.IMPORTS names the module {name}, which is neither in {os.getcwd()} nor on Python's "
                "path; correct the name, or add its folder to PYTHONPATH"
            ) from None

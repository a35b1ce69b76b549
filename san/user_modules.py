"""Modules of the user's own: imported where the user names them, never because a file that came with weights does."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from san.io.errors import excerpt


def import_modules(names: Sequence[str]) -> None:
    """Imports modules from the working directory, or from anywhere else Python looks; what one registers is known then.

    Args:
        names: such as my_module or my_package.models.

    Raises:
        ValueError: there is no such module. What a module itself raises is passed on.
    """
    if names and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last, so that no file there hides an installed package
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"--import or MODEL.IMPORTS names {excerpt(name)}; give a module as Python imports it, like my_module"
            )
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # something that the module itself imports
            raise ValueError(
                f"--import or MODEL.IMPORTS names the module {name}, which is neither in {os.getcwd()} nor on Python's "
                "path; correct the name, or add its folder to PYTHONPATH"
            ) from None

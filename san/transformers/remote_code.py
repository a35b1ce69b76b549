"""The Python file of a folder for transformers: it imports the classes of this room, and says how to install SAN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import san
from san.io.files import write_whole

MODULE = "modeling_san"
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.SANForSegmentationConfig",
    "AutoModel": f"{MODULE}.SANForSegmentation",
    "AutoProcessor": f"{MODULE}.SANProcessor",
}
"""Which class of the file each Auto class takes."""

_CODE = '''"""Classes for AutoConfig, AutoModel and AutoProcessor: those of the package san-segmentation."""

try:
    from san.transformers import SANForSegmentation, SANForSegmentationConfig, SANProcessor
except ImportError as error:
    raise ImportError(
        f"this model needs SAN {version} or later ({{error}}); install it: "
        'pip install "san-segmentation[transformers]>={version}"'
    ) from error

__all__ = ["SANForSegmentation", "SANForSegmentationConfig", "SANProcessor"]
'''


class OwnCode:
    """Part of a class that AutoModel or AutoProcessor loads: `save_pretrained` writes the file beside the others."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: transformers would copy the module of this class, which needs the rest of SAN, into folders."""

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> Any:
        """See transformers."""
        write_whole(Path(save_directory) / f"{MODULE}.py", _CODE.format(version=san.__version__))
        return super().save_pretrained(save_directory, *args, **options)  # type: ignore[misc]

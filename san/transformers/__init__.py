"""SAN as classes of the library transformers, and the folders that its AutoModel and AutoProcessor load.

Importing this room registers the classes, so that AutoModel loads such a folder without code from it
(docs/checkpoints.md).
"""

from __future__ import annotations

from san.io.errors import require_extra

require_extra("transformers", "san.transformers", "transformers")

from transformers import AutoConfig, AutoModel, AutoProcessor  # noqa: E402

from san.transformers.folder import save_transformers  # noqa: E402
from san.transformers.modeling import (  # noqa: E402
    SANForSegmentation,
    SANForSegmentationConfig,
    SANForSegmentationOutput,
)
from san.transformers.processing import SANProcessor  # noqa: E402

__all__ = [
    "SANForSegmentation",
    "SANForSegmentationConfig",
    "SANForSegmentationOutput",
    "SANProcessor",
    "save_transformers",
]

AutoConfig.register(SANForSegmentationConfig.model_type, SANForSegmentationConfig, exist_ok=True)
AutoModel.register(SANForSegmentationConfig, SANForSegmentation, exist_ok=True)
AutoProcessor.register(SANForSegmentationConfig, SANProcessor, exist_ok=True)

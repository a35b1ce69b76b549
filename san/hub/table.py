"""The models that can be loaded by name, with their sizes, licences and sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHAPES_CHECKPOINT = Path(__file__).parent.parent / "shapes" / "assets" / "san.pth"


@dataclass(frozen=True)
class KnownModel:
    """A model with a name.

    Attributes:
        title: description in one line.
        variant: its architecture, a key of `san.model.config.VARIANTS`.
        num_bytes: size of its weights in bytes: the project's two files (SAN and CLIP), or the hub's tensors.
        licence: licence of the weights.
        file: file name, on the hub and on this machine.
        repo_id: its repository on the hub, "owner/name"; empty for a file of the project.
        repo_type: kind of repository: "model", "space" or "dataset".
        path: path of a file of the project; None for one of the hub.
    """

    title: str
    variant: str
    num_bytes: int
    licence: str
    file: str
    repo_id: str = ""
    repo_type: str = "model"
    path: Path | None = None


MODELS: dict[str, KnownModel] = {
    "shapes": KnownModel(
        title="the project's own small model of the shapes world; 36 names of shapes and grounds",
        variant="shapes",
        num_bytes=1_567_091 + 3_336_578,
        licence="MIT",
        file=SHAPES_CHECKPOINT.name,
        path=SHAPES_CHECKPOINT,
    ),
    "san_vit_b_16": KnownModel(
        title="the authors' SAN on CLIP ViT-B/16, trained on COCO-Stuff; any words",
        variant="vit_b16",
        num_bytes=631_385_632,
        licence="MIT",
        file="san_vit_b_16.pth",
        repo_id="Mendel192/san",
    ),
    "san_vit_large_14": KnownModel(
        title="the authors' SAN on CLIP ViT-L/14 at 336 pixels, trained on COCO-Stuff; any words",
        variant="vit_l14_336",
        num_bytes=1_746_724_384,
        licence="MIT",
        file="san_vit_large_14.pth",
        repo_id="Mendel192/san",
    ),
}
"""The models by the name that `load_pretrained` accepts."""

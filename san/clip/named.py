"""CLIPs by name, beside open_clip's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from san.registry import Registry

if TYPE_CHECKING:
    from san.clip.arch import ClipArch

CLIPS: Registry[ClipArch | Path] = Registry("CLIP", "clip.name", own="san.named_clips")
"""What a name stands for: an architecture without weights of its own, or a file of `san.clip.loader.save_clip_file`,
whose weights have the CLIP's name. Rooms above `san.clip` add theirs."""

"""Named CLIPs, in addition to those of open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from san.registry import Registry

if TYPE_CHECKING:
    from san.clip.arch import ClipArch

CLIPS: Registry[ClipArch | Path] = Registry("CLIP", "clip.name", own="san.named_clips")
"""The CLIP of a name: an architecture without weights, or a file of `san.clip.loader.save_clip_file`, whose weights
have the same name. Rooms above `san.clip` add theirs."""

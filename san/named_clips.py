"""All CLIPs that have a name beside open_clip's: importing this module registers them in `san.clip.named.CLIPS`."""

from san.clip import arch
from san.shapes import clip

__all__ = ["arch", "clip"]

"""All CLIP families: importing this module registers them in `san.clip.towers.FAMILIES`."""

from san.clip import timm_pool, timm_tower, visual

__all__ = ["timm_pool", "timm_tower", "visual"]

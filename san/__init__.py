"""SAN: the Side Adapter Network for open-vocabulary semantic segmentation (arXiv 2302.12242)."""

__version__ = "0.1.0"

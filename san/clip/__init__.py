"""CLIP in plain PyTorch: loading, the image tower in two parts, the text classifier."""

"""Class names, without PyTorch or Pillow: classes, the one grammar, files of classes, label sets."""

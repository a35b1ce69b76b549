"""Class names, without PyTorch or Pillow: classes, their syntax, class files, label sets."""

"""Models as graphs for other runtimes: ONNX files, and archives of torch.export (docs/export.md)."""

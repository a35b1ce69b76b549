"""Everything between files on disk and the tensors a model takes; import its modules by name.

Modules: `label_sets` (class names and encodings), `benchmarks` (the table of registered datasets), `pairing` (image and
label files), `transforms` (reading, resizing, training augmentation), `targets` (label map to masks), `shapes` (the
embedded benchmark).
"""

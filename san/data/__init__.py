"""Everything between files on disk and the tensors a model takes; import its modules by name.

Modules: `benchmarks` (the table of registered data sets), `custom` (data-set files), `pairing` (image and label files),
`label_mapping` and `label_maps` (values to classes), `transforms` (resizing, training augmentation), `targets` (label
map to masks), `checking` (data sets), `subset` (a part of one).
"""

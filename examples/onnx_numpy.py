"""Segments a picture with a model of `san export --vocab ...`; needs numpy, Pillow and onnxruntime only.

python examples/onnx_numpy.py EXPORTED_FOLDER PICTURE LABELS.png [image_int8.onnx]
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def linear(rows: int, columns: int, ratio: float) -> np.ndarray:
    """Weights (rows, columns) of a linear resize; `ratio` is the size of a row in columns."""
    centres = np.clip((np.arange(rows) + 0.5) * ratio - 0.5, 0, columns - 1)
    return np.clip(1 - np.abs(centres[:, None] - np.arange(columns)), 0, None).astype(np.float32)


def segment(session: onnxruntime.InferenceSession, words: dict, picture: Image.Image) -> np.ndarray:
    """Return the class (H, W) of every pixel, an index into words["names"]."""
    # resize to the short side that the model was trained for
    sides = session.get_modelmeta().custom_metadata_map
    width, height = picture.size
    scale = min(int(sides["short_side"]) / min(width, height), int(sides["max_size"]) / max(width, height))
    size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))[None]  # (1, h, w, 3) uint8
    wanted = ["mask_logits", "sls_embed", "sizes"]
    masks, embeds, (padded, image) = session.run(wanted, {"pixels": pixels})
    # (1, Q, h_s, w_s), (1, Q, E), (2,) each

    # class probabilities: scaled cosine similarity, with "no object" last
    classes = np.concatenate([words["text_embed"], words["no_object_embed"]])  # (C + 1, E)
    logits = words["logit_scale"] * embeds[0] @ classes.T  # (Q, C + 1)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = (probs / probs.sum(axis=1, keepdims=True))[:, :-1].T  # (C, Q)

    # masks: linear to the padded size, cut to the image, linear to the picture's size; row by row, to save memory
    down, across = (
        linear(full, part, part / full) @ linear(part, grid, grid / pad)
        for full, part, pad, grid in zip((height, width), image, padded, masks.shape[2:], strict=True)
    )
    masks = masks[0] @ across.T  # (Q, h_s, W)
    labels = np.empty((height, width), np.uint16)
    for row, weights in enumerate(down):
        mask_probs = 1 / (1 + np.exp(-np.einsum("h,qhw->qw", weights, masks)))  # (Q, W)
        labels[row] = (probs @ mask_probs).argmax(axis=0)
    return labels


if __name__ == "__main__":
    folder, source, out, *graph = sys.argv[1:]
    session = onnxruntime.InferenceSession(Path(folder, *(graph or ["image.onnx"])))
    words = dict(np.load(Path(folder, "vocabulary.npz")))
    labels = segment(session, words, ImageOps.exif_transpose(Image.open(source)).convert("RGB"))
    Image.fromarray(labels).save(out)
    for index in np.unique(labels):
        print(f"{index}: {words['names'][index]} {100 * (labels == index).mean():.1f} %")

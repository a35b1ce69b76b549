"""Measures shared queries against frame-by-frame prediction on videos of the shapes world (docs/video.md#shapes).

    python tools/maintainers/measure_shapes_video.py --clips 50

Prints one row of a Markdown table per setting: mIoU over all 36 classes, and the share of surfaces that keep their
label from one frame to the next, along the true motion; of all surfaces, and of things alone.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from san.evaluation import ConfusionMatrix, metrics
from san.evaluation.video import VideoScores, stable_pixels
from san.inference.predictor import Predictor
from san.shapes.clips import MotionStyle, clip_at, render_clip
from san.shapes.world import GROUNDS, NAMES, NOVEL, SEEN, class_index
from san.video.predictor import VideoOptions, VideoPredictor

SETTINGS = {
    "frame by frame": VideoOptions(shared=False),
    "shared, one chunk of 32": VideoOptions(),
    "shared, chunks of 16, overlap 4": VideoOptions(chunk=16, overlap=4),
    "shared, chunks of 8, overlap 2": VideoOptions(chunk=8, overlap=2),
    "shared, chunks of 4, overlap 1": VideoOptions(chunk=4, overlap=1),
    "shared, one chunk of 32, 64 centres": VideoOptions(clusters=64),
}


def main() -> None:
    """Measures every setting on the same clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=24, help="of a clip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the clips (default: %(default)s)")
    parser.add_argument("--model", default="shapes", help="default: %(default)s")
    args = parser.parse_args()
    predictor = Predictor.from_pretrained(args.model)
    print("| queries | mIoU | mIoU-seen | mIoU-novel | J | F | consistency | of things | frames per second |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, options in SETTINGS.items():
        values = measure(VideoPredictor(predictor, options), args)
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)


def measure(video: VideoPredictor, args: argparse.Namespace) -> list[float]:
    """The figures of one setting."""
    matrix, scores = ConfusionMatrix(len(NAMES), 255), VideoScores(len(NAMES))
    grounds = [class_index(name) for name in GROUNDS]
    stable, seen, seconds = np.zeros(2), np.zeros(2), 0.0
    for index in range(args.clips):
        images, truth, sources = render_clip(clip_at(args.seed, index, motion=MotionStyle(num_frames=args.frames)))
        start = time.perf_counter()
        labels = np.stack([result.labels for result in video.segment(list(images), "shapes_36")])
        seconds += time.perf_counter() - start
        matrix.update(labels, truth)
        scores.update(labels, truth)
        known, things = sources >= 0, ~np.isin(truth, grounds)
        kept = stable_pixels(labels, sources)
        stable += kept.sum(), (kept & things).sum()
        seen += known.sum(), (known & things).sum()
    values = metrics(matrix, NAMES, {"seen": SEEN, "novel": NOVEL})
    means = scores.metrics()
    consistency = (100 * stable / seen).tolist()
    main_figures = [values["mIoU"], values["mIoU-seen"], values["mIoU-novel"], means["J"], means["F"]]
    return [*main_figures, *consistency, args.clips * args.frames / seconds]


if __name__ == "__main__":
    main()

"""Workload of text: names to text embeddings, without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.reference import plain_text_embed
from san.benchmark.workload import Workload, random_model
from san.clip.text_classifier import TextClassifier
from san.data.subset import evenly_spread
from san.vocabulary.label_sets import load_label_set

PLAIN_SAMPLE = 18
"""Classes that the plain path embeds: 252 prompts in 14 templates, of at most 256 per pass."""


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """Set up embedding of all names in all templates, with tokenising; plain: with 77 tokens per prompt.

    With 77 tokens all prompts cost the same, and 847 classes take minutes. Therefore the plain path embeds an even
    sample of the classes that fills one pass, and its time is extrapolated.
    """
    classifier = random_model(case, device).text_classifier.eval()
    names = class_names(case.classes)
    sampled = sample(names) if plain else names

    def run(recorder: Recorder) -> None:
        if plain:
            plain_text_embed(classifier, sampled)
        else:
            classifier.embedder.forget()
            classifier.embed(names)
        recorder.mark("text tower")

    return Workload(run, case.classes, "classes", sampled=None if len(sampled) == len(names) else len(sampled))


def count_run(case: Case, recorder: Recorder, *, plain: bool) -> None:
    """Run without values, for counting."""
    count_names(random_model(case, torch.device("meta")).text_classifier, class_names(case.classes), plain=plain)
    recorder.mark("text tower")


def count_names(classifier: TextClassifier, names: Sequence[str], *, plain: bool) -> None:
    """Run the text tower of a model on the meta device, for counting."""
    with torch.no_grad():
        if plain:
            plain_text_embed(classifier.eval(), names)
        else:
            classifier.eval().embed(names)


def sample(names: Sequence[str], count: int = PLAIN_SAMPLE) -> list[str]:
    """Return `count` evenly spaced names; all of them if there are only a few more."""
    return evenly_spread(names, count if len(names) > 2 * count else 0)


def class_names(count: int) -> list[str]:
    """Return the first names of ADE20K-847, or all of COCO-Stuff for its number of classes.

    Raises:
        ValueError: there are not enough names.
    """
    names = list(load_label_set("coco_stuff_171" if count == 171 else "ade20k_847").classes)
    if count > len(names):
        raise ValueError(f"{count} classes to embed, but the label sets here have up to {len(names)}; take fewer")
    return names[:count]

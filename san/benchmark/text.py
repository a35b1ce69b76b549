"""A vocabulary's names to text embeddings, none of them cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.reference import plain_text_embed
from san.benchmark.workload import Workload, draw_model
from san.clip.text_classifier import TextClassifier
from san.data.subset import evenly_spread
from san.vocabulary.label_sets import load_label_set

PLAIN_SAMPLE = 18
"""Classes that the plain path embeds: in 14 templates 252 prompts, of 256 that go through its text tower together."""


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """A run embeds all names in all templates, tokenising included; plain: every prompt at CLIP's 77 tokens.

    At 77 tokens all prompts cost the same, and 847 classes take minutes, so that the plain path embeds an even sample
    of the classes and its time is extrapolated; the sample fills a pass of its.
    """
    classifier = draw_model(case, device).text_classifier.eval()
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
    """A run without numbers, for counting."""
    count_names(draw_model(case, torch.device("meta")).text_classifier, class_names(case.classes), plain=plain)
    recorder.mark("text tower")


def count_names(classifier: TextClassifier, names: Sequence[str], *, plain: bool) -> None:
    """Names through the text tower of a model on the meta device, for counting."""
    with torch.no_grad():
        if plain:
            plain_text_embed(classifier.eval(), names)
        else:
            classifier.eval().embed(names)


def sample(names: Sequence[str], count: int = PLAIN_SAMPLE) -> list[str]:
    """So many of the names, evenly spread; all of them where that would hardly be fewer."""
    return evenly_spread(names, count if len(names) > 2 * count else 0)


def class_names(count: int) -> list[str]:
    """The first names of ADE20K-847, or all of COCO-Stuff if there are as many as it has.

    Raises:
        ValueError: more names than there are.
    """
    names = list(load_label_set("coco_stuff_171" if count == 171 else "ade20k_847").classes)
    if count > len(names):
        raise ValueError(f"{count} classes to embed, but the label sets here have up to {len(names)}; take fewer")
    return names[:count]

"""A vocabulary's names to text embeddings, none of them cached."""

from __future__ import annotations

import torch

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.workload import Workload, draw_model
from san.data.label_sets import load_label_set
from san.plain import plain_text_embed


def make_workload(case: Case, device: torch.device, *, plain: bool) -> Workload:
    """A run embeds all names in all templates, tokenising included; plain: every prompt at CLIP's 77 tokens."""
    classifier = draw_model(case, device).text_classifier.eval()
    names = class_names(case.classes)

    def run(recorder: Recorder) -> None:
        if plain:
            plain_text_embed(classifier, names)
        else:
            classifier._cache.clear()
            classifier.embed(names)
        recorder.mark("text tower")

    return Workload(run, case.classes, "classes")


def count_run(case: Case, recorder: Recorder, *, plain: bool) -> None:
    """A run without numbers, for counting."""
    classifier, names = draw_model(case, torch.device("meta")).text_classifier.eval(), class_names(case.classes)
    with torch.no_grad():
        if plain:
            plain_text_embed(classifier, names)
        else:
            classifier._encode_prompts([prompt.format(name) for name in names for prompt in classifier._prompts])
    recorder.mark("text tower")


def class_names(count: int) -> list[str]:
    """The first names of ADE20K-847, or all of COCO-Stuff if there are as many as it has.

    Raises:
        ValueError: more names than there are.
    """
    names = list(load_label_set("coco_stuff_171" if count == 171 else "ade20k_847").classes)
    if count > len(names):
        raise ValueError(f"{count} classes to embed, but the label sets here have up to {len(names)}; take fewer")
    return names[:count]

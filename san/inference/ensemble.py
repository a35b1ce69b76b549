"""Ensembles, which average the class scores of several models per pixel, and files that list their models.

The models may have different CLIPs, sizes and inputs; they share only the image and the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from san.clip.text_embedder import TextEmbeddings
from san.data.images import Layout, image_pixels
from san.hub import MODELS
from san.inference.evidence import Evidence
from san.inference.segmentation import EncodedImage
from san.inference.segmenter import ImageLike, Segmenter, name_of_image
from san.io.errors import USER_ERRORS, excerpt, one_line
from san.io.plain_file import check_keys, read_plain_file
from san.postprocess import View
from san.record import Options, option, read_record
from san.vocabulary.classes import ClassText

ENDINGS = (".yaml", ".yml")
"""Endings of a file that lists an ensemble."""


@dataclass(frozen=True)
class EnsembleMember(Options):
    """One model in the file of an ensemble.

    Raises:
        FieldError: a value is out of range.
    """

    model: str
    config: str | None = None
    weight: float = option(1.0, "of its scores in the mean", above=0, most=10**6)
    short_sides: tuple[int, ...] = option(
        (), "short sides of the image, pixels, averaged over; none: the model's", least=1, most=8192
    )
    flip: bool = option(False, "whether the mean includes the mirror image")


class Ensemble(Segmenter):
    """Several models used as one: every pixel gets the class with the highest weighted mean score.

    Mask proposals and attention biases of the results are those of the first model.

    Args:
        members: predictors, at least one. Results are computed on the device of the first.
        weights: one for each, above 0; equal by default.

    Raises:
        ValueError: there is no member, the number of weights differs, or a weight is not above 0.
    """

    def __init__(self, members: Sequence[Segmenter], weights: Sequence[float] | None = None) -> None:
        self.members = tuple(members)
        self.weights = (1.0,) * len(self.members) if weights is None else tuple(map(float, weights))
        if not self.members:
            raise ValueError("the ensemble has no models; give at least one")
        if len(self.weights) != len(self.members):
            raise ValueError(f"{len(self.weights)} weights for {len(self.members)} models; give one for each")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"the weights are {list(self.weights)}; give numbers above 0, or leave the model out")
        limits = [member.max_pixels for member in self.members if member.max_pixels is not None]
        self.max_pixels = min(limits, default=None)

    def __repr__(self) -> str:
        parts = [f"{weight:g} x {member}" for weight, member in zip(self.weights, self.members, strict=True)]
        return f"Ensemble({', '.join(parts)})"

    @property
    def device(self) -> torch.device:
        """Device of the first model, where results are computed."""
        return self.members[0].device

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Of all members."""
        return tuple(model for member in self.members for model in member.models)

    @property
    def text_cache(self) -> Path | None:
        """That of the first model."""
        return self.members[0].text_cache

    def set_text_cache(self, folder: str | Path | None) -> None:
        """Sets that of all models."""
        for member in self.members:
            member.set_text_cache(folder)

    def encode_batch(
        self, images: Sequence[ImageLike], *, layout: Layout | None = None, batch_size: int = 4
    ) -> list[EncodedImage]:
        """Encode with each model in turn; see `Segmenter.encode_batch`."""
        pixels = [image_pixels(image, layout=layout, max_pixels=self.max_pixels) for image in images]  # read once
        found = [member.encode_batch(pixels, batch_size=batch_size) for member in self.members]
        names = [name_of_image(image, index, len(images)) for index, image in enumerate(images)]
        return [
            replace(each[0], members=each, source=name)
            for each, name in zip(zip(*found, strict=True), names, strict=True)
        ]

    def evidence(
        self, encoded: EncodedImage, classes: Sequence[str | ClassText], text: TextEmbeddings | None = None
    ) -> Evidence:
        """Return the evidence of all models, each with its own text embeddings; see `Segmenter.evidence`.

        Raises:
            ValueError: `text` is given, or the image was encoded by another ensemble.
        """
        if text is not None:
            raise ValueError("text embeddings are of one model; leave text out, so that each model embeds the words")
        if len(encoded.members) != len(self.members):
            raise ValueError("the image was encoded by another model; encode it with this ensemble")
        views: list[View] = []
        found = [member.evidence(each, classes) for member, each in zip(self.members, encoded.members, strict=True)]
        for evidence, weight in zip(found, self.weights, strict=True):
            share = weight / sum(view.weight for view in evidence.views)
            views += [_moved(view, self.device, view.weight * share) for view in evidence.views]
        return replace(found[0], weight=views[0].weight, others=tuple(views[1:]))


def _moved(view: View, device: torch.device, weight: float) -> View:
    """Return a view on a device, with another weight."""
    masks, classes = view.mask_logits.to(device), view.class_logits.to(device)
    return replace(view, mask_logits=masks, class_logits=classes, weight=weight)


def is_ensemble_file(source: object) -> bool:
    """Whether a model's name or path is the file of an ensemble."""
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in ENDINGS


def read_ensemble(path: str | Path) -> tuple[EnsembleMember, ...]:
    """Read the models that a YAML file lists under ``models``; paths are relative to the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not plain YAML, has an unknown or missing key, or a value out of range.
    """
    where = f"ensemble {path}"
    content = check_keys(read_plain_file(path, "ensemble"), ["models"], where)
    listed = content.get("models")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"models of {where} is {excerpt(listed)}; give a list such as [{{model: a.pth, weight: 1.0}}]")
    members = []
    for index, each in enumerate(listed):
        try:
            member = read_record(EnsembleMember, each, f"models[{index}].")
        except ValueError as error:
            hint = " (all models get the words of the command or the data set)" if "vocab" in str(error) else ""
            raise ValueError(f"{where}: {error}{hint}") from None
        folder = Path(path).parent
        config = member.config and (_below(folder, member.config) if is_ensemble_file(member.config) else member.config)
        model = member.model if member.model in MODELS else _below(folder, member.model)
        members.append(replace(member, model=model, config=config))
    return tuple(members)


def _below(folder: Path, name: str) -> str:
    """Return a path below a folder if it exists, else the text unchanged, which may be an id on the hub."""
    there = folder / Path(name).expanduser()
    return str(there) if there.exists() else name


def load_ensemble(path: str | Path, load: Callable[[EnsembleMember], Segmenter]) -> Ensemble:
    """Load the ensemble of a file.

    Args:
        path: YAML, see `read_ensemble`.
        load: makes one model; its errors get the name of the file and the number of the model.

    Raises:
        ValueError, FileNotFoundError: the file or one of its models is wrong.
    """
    members = read_ensemble(path)
    found = []
    for index, member in enumerate(members):
        try:
            if is_ensemble_file(member.model):
                raise ValueError("it is the file of an ensemble; list its models here")
            found.append(load(member))
        except USER_ERRORS as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"ensemble {path}, models[{index}] ({excerpt(member.model)}): {one_line(error)}") from error
    return Ensemble(found, [member.weight for member in members])

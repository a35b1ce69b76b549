"""Classes from examples instead of words: pictures of an object, with a mask or box or neither, become a vector.

N examples, C classes, Q queries, E joint embedding, M queries of all pictures, (H, W) picture. docs/examples.md has the
formulas and what was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from san.inference.predictor import Predictor
from san.inference.segmentation import EncodedImage
from san.inference.segmenter import ImageLike
from san.io.errors import excerpt
from san.postprocess import resized_masks
from san.torch_defaults import torch_defaults
from san.vocabulary.classes import ClassText, ClassVector
from san.vocabulary.vocabulary_file import LearntClasses

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]

_RIDGE = 1.0  # of the covariance, times its mean variance; docs/examples.md
_BIAS_RIDGE = 0.05  # the same for the direction of a bias
_POOR_MATCH = 0.25  # IoU of an example and the best mask proposal below which a warning is logged
_WHOLE = 0.8  # diameter of the ellipse that stands for a picture without mask and box, as a share of its sides


@dataclass(frozen=True, eq=False)
class ClassExample:
    """One picture of a class.

    Attributes:
        name: of the class.
        image: the picture, see `Segmenter.encode`.
        mask: (H, W) bool, where the object is.
        box: instead of a mask, left, top, right and bottom in pixels. With neither, the object is in the middle.
    """

    name: str
    image: ImageLike
    mask: npt.NDArray[np.bool_] | None = None
    box: Box | None = None

    @property
    def source(self) -> str:
        """The name of the picture in messages."""
        return repr(str(self.image)) if isinstance(self.image, (str, Path)) else "a picture"

    def target(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Return (H, W) bool, the pixels that the mask proposal should cover.

        Raises:
            ValueError: mask and box are given, one does not fit the picture, or it covers no pixel.
        """
        where = f"the example of class {excerpt(self.name)} in {self.source}"
        if self.mask is not None and self.box is not None:
            raise ValueError(f"{where} has a mask and a box; give one of them")
        if self.mask is not None:
            found = np.asarray(self.mask) > 0
            if found.shape != (height, width):
                raise ValueError(f"{where} has a mask of shape {found.shape}, but the picture is {(height, width)}")
        elif self.box is not None:
            found = np.zeros((height, width), np.bool_)
            left, top, right, bottom = (round(value) for value in self.box)
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise ValueError(
                    f"{where} has the box {self.box} in a picture of {width} x {height} pixels; give left, top, right, "
                    "bottom inside it"
                )
            found[top:bottom, left:right] = True
        else:
            y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
            found = x**2 + y**2 <= _WHOLE**2
        if not found.any():
            raise ValueError(f"{where} covers no pixel; mark the object")
        return found


@dataclass(frozen=True, eq=False)
class Background:
    """What [SLS] embeddings of the example pictures look like, to bring images and words to one scale.

    Attributes:
        queries: (M, E), of all mask proposals of all pictures.
        mean: (E,), of them.
        covariance: (E, E), of them.
    """

    queries: Tensor
    mean: Tensor = field(init=False)
    covariance: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.queries.mean(0))
        centred = self.queries - self.mean
        object.__setattr__(self, "covariance", centred.T @ centred / len(centred))

    def whitened(self, vectors: Tensor, ridge: float) -> Tensor:
        """Return (..., E) vectors times the inverse of the covariance plus a share of its mean variance."""
        size = len(self.mean)
        shrunk = self.covariance + ridge * self.covariance.trace() / size * torch.eye(size)
        return torch.linalg.solve(shrunk, vectors.reshape(-1, size).T).T.reshape(vectors.shape)

    def constant(self) -> Tensor:
        """Return (E,), a vector whose product with [SLS] embeddings is 1 on average and varies least."""
        found = self.whitened(self.mean, _BIAS_RIDGE)
        return found / (self.mean @ found)

    def on_scale_of(self, words: Tensor, prototypes: Tensor) -> Tensor:
        """Return vectors (K, E) of image prototypes (K, E) that score as words (C, E) do.

        Over all queries, a class from images has the mean and standard deviation of logits of a class from words.
        """
        direction = self.whitened(prototypes - self.mean, _RIDGE)
        of_words, of_images = self.queries @ words.T, self.queries @ direction.T
        scale = of_words.std(0).mean() / of_images.std(0).clamp(min=1e-12)  # (K,)
        offset = of_words.mean() - scale * of_images.mean(0)
        return direction * scale[:, None] + offset[:, None] * self.constant()


def default_word_share(count: int) -> float:
    """Return the share of the words in the vector of a class with some examples: fewer examples say less."""
    return 1 - 0.3 * count / (count + 1)


@torch_defaults()
@torch.inference_mode()
def learn_classes(
    predictor: Predictor,
    classes: Sequence[ClassText],
    examples: Iterable[ClassExample],
    *,
    word_share: float | None = None,
) -> LearntClasses:
    """Make the vectors of classes from examples and words.

    Args:
        predictor: its model embeds both. The first of several scales is used.
        classes: C classes; one without an example keeps its words.
        examples: read one after the other.
        word_share: of the words in each vector, 0..1: 0 takes examples alone, 1 words alone. By default
            `default_word_share`.

    Raises:
        ValueError: an example is of no class or does not fit, the share is out of range, or there is no example.
        FileNotFoundError: a picture does not exist.
    """
    if word_share is not None and not 0 <= word_share <= 1:
        raise ValueError(f"the share of the words is {word_share}; give 0 (examples alone) to 1 (words alone)")
    index = {each.name: number for number, each in enumerate(classes)}
    found, owners, queries, last = [], [], [], None
    for example in examples:
        if example.name not in index:
            raise ValueError(f"an example is of class {excerpt(example.name)}, which is not among the classes")
        if last is None or last[0] is not example.image:
            last = (example.image, predictor.encode(example.image))
            queries.append(last[1].proposals.sls_embed[0].cpu())
        found.append(example_embedding(last[1], example).cpu())
        owners.append(index[example.name])
    if not found:
        raise ValueError("there is no example; give at least one picture of a class")
    classifier = predictor.model.text_classifier
    words = classifier.embed(classes).float().cpu()  # (C, E)
    embeds, owner = torch.stack(found), torch.tensor(owners)
    counts = torch.bincount(owner, minlength=len(classes)).tolist()
    with_examples = [number for number, count in enumerate(counts) if count]
    prototypes = torch.stack([F.normalize(embeds[owner == number].mean(0), dim=0) for number in with_examples])
    vectors = Background(torch.cat(queries)).on_scale_of(words, prototypes)
    shares = torch.ones(len(classes))
    clip = f"{predictor.model.config.clip.name} {predictor.model.config.clip.public_pretrained}"
    probe = classifier.embedder.probe(classifier).float().cpu().numpy()
    learnt = [replace(each, vector=None) for each in classes]
    for number, vector in zip(with_examples, vectors, strict=True):
        share = default_word_share(counts[number]) if word_share is None else word_share
        mixed, shares[number] = share * words[number] + (1 - share) * vector, share
        learnt[number] = replace(learnt[number], vector=as_vector(mixed, clip, probe))
    parts = (probe, embeds.numpy(), owner.numpy(), shares.numpy(), np.zeros(len(classes), np.float32))
    return LearntClasses(tuple(learnt), clip, *parts)


def example_embedding(encoded: EncodedImage, example: ClassExample) -> Tensor:
    """Return the [SLS] embedding (E,), unit length, of the mask proposal that covers an example best.

    Raises:
        ValueError: the mask or box does not fit the picture.
    """
    target = example.target(*encoded.pixels.shape[:2])
    masks = resized_masks(encoded.proposals.mask_logits[0], encoded.geometry).sigmoid().flatten(1)  # (Q, H * W)
    wanted = torch.from_numpy(target).to(masks.device).flatten().float()
    inside = masks @ wanted
    iou = inside / (masks.sum(1) + wanted.sum() - inside)  # (Q,)
    best = int(iou.argmax())
    if iou[best] < _POOR_MATCH:
        logger.warning(
            "no mask proposal covers the example of class %s in %s (best IoU %.2f); mark the whole object",
            excerpt(example.name),
            example.source,
            iou[best],
        )
    return encoded.proposals.sls_embed[0, best].float()


def as_vector(values: Tensor, clip: str, probe: npt.NDArray[np.float32]) -> ClassVector:
    """Return numbers (E,) as the vector of a class."""
    return ClassVector(values.numpy().astype("<f4").tobytes(), clip, probe.astype("<f4").tobytes())

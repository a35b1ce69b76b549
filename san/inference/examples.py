"""Classes from examples instead of words: pictures of an object, with a mask or box or neither, become a vector.

N examples, C classes, K of them with examples, Q queries, E joint embedding, (H, W) picture. docs/examples.md has the
formulas and what was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from san.data.example_files import ClassExample
from san.inference.predictor import Predictor
from san.inference.segmentation import EncodedImage
from san.io.errors import excerpt
from san.postprocess import resized_masks
from san.torch_defaults import torch_defaults
from san.vocabulary.bank import BankOptions, BankSettings
from san.vocabulary.classes import ClassText, ClassVector
from san.vocabulary.vocabulary_file import LearntClasses

logger = logging.getLogger(__name__)

_RIDGE = 1.0  # of the covariance, times its mean variance; docs/examples.md
_BIAS_RIDGE = 0.05  # the same for the direction of a bias
_BIAS_PENALTY = 0.1  # on the mean square of biases, beside the mean cross-entropy
_NEWTON_STEPS = 50
_POOR_MATCH = 0.25  # IoU of an example and the best mask proposal below which a warning is logged


class Background:
    """What [SLS] embeddings of the example pictures look like, to bring images and words to one scale.

    Args:
        width: E.
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, embeds: Tensor) -> None:
        """Count the embeddings (Q, E) of all mask proposals of a picture."""
        embeds = embeds.double().cpu()
        self._count += len(embeds)
        self._sum += embeds.sum(0)
        self._products += embeds.T @ embeds

    @property
    def mean(self) -> Tensor:
        """(E,) float64."""
        return self._sum / self._count

    @property
    def covariance(self) -> Tensor:
        """(E, E) float64."""
        return self._products / self._count - self.mean.outer(self.mean)

    def whitened(self, vectors: Tensor, ridge: float) -> Tensor:
        """Return vectors (K, E) times the inverse of the covariance plus a share of its mean variance."""
        covariance = self.covariance
        shrunk = covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(shrunk, vectors.double().T)
        return solved.T

    def whitening(self) -> Tensor:
        """Return (E, E) float64, the inverse square root of the covariance plus its mean variance."""
        values, axes = torch.linalg.eigh(self.covariance)  # (E,), (E, E)
        root: Tensor = axes @ torch.diag((values.clamp(min=0) + _RIDGE * values.mean()).rsqrt()) @ axes.T
        return root

    def constant(self) -> Tensor:
        """Return (E,) float32, a vector whose product with [SLS] embeddings is 1 on average and varies least."""
        found = self.whitened(self.mean[None], _BIAS_RIDGE)[0]
        return (found / (self.mean @ found)).float()

    def on_scale_of(self, words: Tensor, prototypes: Tensor) -> Tensor:
        """Return vectors (K, E) float32 of image prototypes (K, E) that score as words (C, E) do.

        Over all embeddings, a class from images has the mean and standard deviation of cosines that words have.
        """
        direction = self.whitened(prototypes - self.mean, _RIDGE)
        scale = self._spread(words).mean() / self._spread(direction).clamp(min=1e-12)  # (K,)
        offset = (words.double() @ self.mean).mean() - scale * (direction @ self.mean)
        return (direction * scale[:, None]).float() + offset[:, None].float() * self.constant()

    def _spread(self, vectors: Tensor) -> Tensor:
        """Return the standard deviation (K,) of products with vectors (K, E)."""
        vectors = vectors.double()
        return ((vectors @ self.covariance) * vectors).sum(1).clamp(min=0).sqrt()


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
    calibrated: bool = False,
    bank: BankOptions | None = None,
) -> LearntClasses:
    """Make the vectors of classes from examples and words.

    Args:
        predictor: its model embeds both. The first of several scales is used.
        classes: C classes; one without an example keeps its words.
        examples: read one after the other.
        word_share: of the words in each vector, 0..1: 0 takes examples alone, 1 words alone. By default
            `default_word_share`.
        calibrated: whether every class also gets the bias of `class_biases`; every class needs an example then.
        bank: how masks are compared with single examples, too; None if they are not.

    Raises:
        ValueError: an example is of no class or does not fit, the share is out of range, there is no example, or one of
            a class is missing for calibration.
        FileNotFoundError: a picture does not exist.
    """
    if word_share is not None and not 0 <= word_share <= 1:
        raise ValueError(f"the share of the words is {word_share}; give 0 (examples alone) to 1 (words alone)")
    embeds, owner, background = _embedded(predictor, [each.name for each in classes], examples)
    counts = torch.bincount(owner, minlength=len(classes)).tolist()
    if calibrated:
        _check_complete(classes, counts)
    classifier = predictor.model.text_classifier
    words = classifier.embed(classes).float().cpu()  # (C, E)
    with_examples = [number for number, count in enumerate(counts) if count]
    prototypes = torch.stack([F.normalize(embeds[owner == number].mean(0), dim=0) for number in with_examples])
    mixed, shares = words.clone(), torch.ones(len(classes))
    for number, vector in zip(with_examples, background.on_scale_of(words, prototypes), strict=True):
        shares[number] = default_word_share(counts[number]) if word_share is None else word_share
        mixed[number] = shares[number] * words[number] + (1 - shares[number]) * vector
    biases = torch.zeros(len(classes))
    if calibrated:
        scale = classifier.logit_scale.detach().float().exp().cpu()
        biases = class_biases(scale * embeds @ mixed.T, owner)
        mixed += biases[:, None] / scale * background.constant()
    clip = f"{predictor.model.config.clip.name} {predictor.model.config.clip.public_pretrained}"
    probe = classifier.embedder.probe(classifier).float().cpu().numpy()
    learnt = tuple(
        replace(each, separate=False, vector=as_vector(vector, clip, probe) if count else each.vector)
        for each, vector, count in zip(classes, mixed, counts, strict=True)
    )
    found = LearntClasses(learnt, clip, probe, embeds.numpy(), owner.numpy(), shares.numpy(), biases.numpy())
    if bank is None:
        return found
    parts = (each.float().numpy().astype("<f4").tobytes() for each in (background.mean, background.whitening()))
    return found.with_bank(BankSettings(bank, *parts))


def _embedded(
    predictor: Predictor, names: Sequence[str], examples: Iterable[ClassExample]
) -> tuple[Tensor, Tensor, Background]:
    """Return the embeddings (N, E) of examples, the index (N,) of the class of each, and the background."""
    found, owners, last = [], [], None
    background = Background(predictor.model.arch.embed_dim)
    for example in examples:
        if example.name not in names:
            raise ValueError(f"an example is of class {excerpt(example.name)}, which is not among the classes")
        if last is None or last[0] is not example.image:
            last = (example.image, predictor.encode(example.image))
            background.add(last[1].proposals.sls_embed[0])
        found.append(example_embedding(last[1], example).cpu())
        owners.append(names.index(example.name))
    if not found:
        raise ValueError("there is no example; give at least one picture of a class")
    return torch.stack(found), torch.tensor(owners), background


def _check_complete(classes: Sequence[ClassText], counts: Sequence[int]) -> None:
    """Raise unless calibration is possible."""
    missing = [each.name for each, count in zip(classes, counts, strict=True) if not count]
    if missing:
        raise ValueError(
            f"calibration needs examples of every class, but {len(missing)} of {len(classes)} have none, such as "
            f"{excerpt(missing[0])}; add some, or leave it out"
        )
    if len(classes) < 2:
        raise ValueError("calibration compares classes, but there is one; give two classes or more, or leave it out")


def class_biases(logits: Tensor, owner: Tensor) -> Tensor:
    """Return the numbers (C,) to add to logits (N, C) of examples of classes (N,), so that they are named best.

    They minimise the cross-entropy plus a penalty on their size, by Newton's method; it is convex.
    """
    count = logits.shape[1]
    logits, biases = logits.double(), torch.zeros(count, dtype=torch.float64)
    wanted, size = F.one_hot(owner, count).double().mean(0), len(logits)
    penalty = 2 * _BIAS_PENALTY / count
    for _ in range(_NEWTON_STEPS):
        probs = (logits + biases).softmax(dim=1)  # (N, C)
        gradient = probs.mean(0) - wanted + penalty * biases
        curvature = torch.diag(probs.mean(0)) - probs.T @ probs / size + penalty * torch.eye(count, dtype=torch.float64)
        biases = biases - torch.linalg.solve(curvature, gradient).clamp(-1, 1)
    return biases.float()


def example_embedding(encoded: EncodedImage, example: ClassExample) -> Tensor:
    """Return the [SLS] embedding (E,), unit length, of the mask proposal that covers an example best.

    Raises:
        ValueError: the mask or box does not fit the picture.
    """
    masks = resized_masks(encoded.proposals.mask_logits[0], encoded.geometry).sigmoid()  # (Q, H, W)
    wanted = torch.from_numpy(example.target(*encoded.pixels.shape[:2])).to(masks.device).float()
    if example.box is None:
        iou = _soft_iou(masks.flatten(1), wanted.flatten())
    else:  # things rarely fill their box: compare where rows and columns begin and end, and how much lies in the box
        iou = _soft_iou(masks.amax(2), wanted.amax(1)) * _soft_iou(masks.amax(1), wanted.amax(0))
        iou = iou * (masks * wanted).sum((1, 2)) / masks.sum((1, 2))
    best = int(iou.argmax())
    if iou[best] < _POOR_MATCH:
        logger.warning(
            "no mask proposal covers the example of class %s in %s (best IoU %.2f); mark the whole object",
            excerpt(example.name),
            example.source,
            iou[best],
        )
    return encoded.proposals.sls_embed[0, best].float()


def _soft_iou(probs: Tensor, wanted: Tensor) -> Tensor:
    """Return the IoU (Q,) of probabilities (Q, P) with zeros and ones (P,)."""
    inside = probs @ wanted
    return inside / (probs.sum(1) + wanted.sum() - inside)


def as_vector(values: Tensor, clip: str, probe: npt.NDArray[np.float32]) -> ClassVector:
    """Return numbers (E,) as the vector of a class."""
    return ClassVector(values.numpy().astype("<f4").tobytes(), clip, probe.astype("<f4").tobytes())


__all__ = [
    "Background",
    "BankOptions",
    "ClassExample",
    "class_biases",
    "default_word_share",
    "example_embedding",
    "learn_classes",
]

"""The meta-architecture ``SAN``: from lists of samples to losses or label maps.

Legend: B images, C classes, Q queries, (H, W) padded image. Source: docs/method.md#1, #7 and #8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from san.checkpoint import check_clip, fitting_tensors
from san.clip.weights import check_finite
from san.d2.api import META_ARCH_REGISTRY, CfgNode, MetadataCatalog
from san.d2.checkpoints.checkpointer import slim_note
from san.d2.config.keys import loss_config, naming_keys, san_config, text_cache_folder
from san.d2.config.yaml_file import warn_without_effect
from san.d2.data.datasets import metadata_of
from san.data.targets import classes_present
from san.evaluation.oracle import Proposals
from san.losses import LabelMapTarget, Normalisers, SetCriterion
from san.model.build import build_san, warn_of_unseen_pixels
from san.model.san import MaskProposals, SANOutput
from san.postprocess import Geometry, have_non_finite, refuse_non_finite, semantic_labels, semantic_scores
from san.vocabulary.classes import ClassText, separate_words


@META_ARCH_REGISTRY.register()
class SAN(nn.Module):
    """A SAN with its criterion, with the interface of Detectron2's models.

    The vocabulary of a sample is that of its data set (``dataset_name``): ``class_texts`` in the metadata catalogue,
    else ``stuff_classes``. In inference, `set_vocabulary` overrides it. A sample without ``dataset_name`` has the
    vocabulary of the configured data sets, which must be the same for all of them. The ignore label of a sample is its
    own ``ignore_label``, else its data set's, else 255.

    `load_state_dict`, also when called by Detectron2's checkpointers or by a wrapping module, accepts all checkpoints
    that `san.checkpoint.fitting_tensors` supports; tensors that do not fit are an error.

    Args:
        cfg: configuration with SAN's keys. If MODEL.WEIGHTS has CLIP's weights too, load it; they are not read here.

    Raises:
        ValueError: keys contradict each other or the CLIP, or MODEL.WEIGHTS was trained on another CLIP.
    """

    fresh_modules: tuple[str, ...] = ()
    """Modules that a subclass adds, which keep their initial weights if a checkpoint has none for them."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if cfg.INPUT.get("FORMAT", "RGB") != "RGB":  # used by Detectron2's own mappers and predictor
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, but SAN takes RGB images; set it to RGB")
        warn_without_effect(cfg, "MODEL")
        note = slim_note(cfg.MODEL.WEIGHTS)
        with naming_keys():
            self.model = build_san(san_config(cfg), clip_weights=note is not None)
            if note and "clip_fingerprint" in note:  # not every loader passes the note on
                check_clip(self.model, note, cfg.MODEL.WEIGHTS)
        self.model.text_classifier.embedder.use_disk_cache(text_cache_folder(cfg))
        if cfg.MODEL.COMPILE:
            self.model.image_side.compile()
        warn_of_unseen_pixels(self.model, cfg.INPUT.MIN_SIZE_TEST)
        self.criterion = SetCriterion(loss_config(cfg))
        self.return_scores = bool(cfg.TEST.SCORES)
        self.return_proposals = bool(cfg.TEST.ORACLE)
        self.train_datasets, self.test_datasets = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
        self.vocabulary: tuple[str | ClassText, ...] | None = None
        self._band_shrink = 1

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.pixel_mean.device

    def set_vocabulary(self, classes: Sequence[str | ClassText] | None) -> None:
        """Set the classes of every image in inference; None restores those of each image's data set."""
        self.vocabulary = None if classes is None else tuple(classes)

    def shrink_bands(self, factor: int) -> None:
        """Reduce the memory of post-processing by this factor from now on, for use when memory runs out."""
        self._band_shrink = factor

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Convert a state to this model's names and shapes before it is copied; PyTorch calls this for every load."""
        given = {key.removeprefix(prefix): state_dict.pop(key) for key in [*state_dict] if key.startswith(prefix)}
        content = given if isinstance(given.get("model"), Mapping) else {**local_metadata, "model": given}
        with naming_keys():
            state = fitting_tensors(self, content, fresh=self.fresh_modules)
        check_finite(state, "the checkpoint")
        state_dict.update((prefix + name, value) for name, value in state.items())
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def forward(self, batched_inputs: list[dict[str, Any]], norm: Normalisers | None = None) -> Any:
        """Return losses in training, predictions in evaluation.

        Args:
            batched_inputs: samples with ``image`` (3, H_i, W_i) uint8 RGB; in training also ``sem_seg`` (H_i, W_i)
                integers, optionally ``classes``, those in it (M,), and, for repeatable losses, ``seed``; in evaluation
                optionally ``height`` and ``width`` of the result. ``dataset_name`` selects the vocabulary and the
                ignore label.
            norm: divisor of the losses, counted over an iteration's processes and accumulation steps; None counts
                this batch over all processes.

        Returns:
            In training the weighted losses by name, scalars. In evaluation one mapping per image:
            ``sem_seg_labels`` (height, width) int64, and ``sem_seg`` (C, height, width), the scores, computed on
            access or, with TEST.SCORES, at once. With TEST.ORACLE, and for samples with ``segments``, also
            ``proposals``, a `san.evaluation.oracle.Proposals`.

        Raises:
            ValueError: the vocabulary is unknown, the weights of MODEL.WEIGHTS were not loaded, or an
                image's outputs are NaN or infinite in evaluation.
        """
        if self.model.config.clip.pretrained and not self.model.has_clip_weights:
            raise ValueError(
                "CLIP's weights are those of MODEL.WEIGHTS, which was not loaded; load it, such as with "
                "DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS), or leave MODEL.WEIGHTS empty"
            )
        with naming_keys():
            if self.training:
                return self._losses(batched_inputs, norm)
            return self._predict(batched_inputs)

    def vocabulary_of(self, sample: dict[str, Any]) -> tuple[str | ClassText, ...]:
        """Return the vocabulary of a sample."""
        if self.vocabulary is not None and not self.training:
            return self.vocabulary
        dataset = self._dataset(sample)
        if dataset is None:
            raise ValueError("no vocabulary: give samples a dataset_name, or call set_vocabulary with class names")
        return classes_of_dataset(dataset)

    def _dataset(self, sample: dict[str, Any]) -> str | None:
        """Return the data set of a sample, else the first of the configuration unless that is ambiguous."""
        if sample.get("dataset_name"):
            return str(sample["dataset_name"])
        names = self.train_datasets if self.training else (*self.train_datasets, *self.test_datasets)
        known = [name for name in names if MetadataCatalog.get(name).get("stuff_classes")]
        if len({classes_of_dataset(name) for name in known}) > 1:
            raise ValueError(
                f"a sample has no dataset_name, and {', '.join(known)} have different class names; give records a "
                "dataset_name, or call set_vocabulary with class names"
            )
        return next(iter([*known, *self.train_datasets]), None)

    def _ignore_label(self, sample: dict[str, Any]) -> int:
        """Return the ignore label of a sample: its own, else that of its data set's metadata, else 255."""
        if sample.get("ignore_label") is not None:
            return int(sample["ignore_label"])
        dataset = self._dataset(sample)
        found = None if dataset is None else MetadataCatalog.get(dataset).get("ignore_label")
        return 255 if found is None else int(found)

    def _by_vocabulary(self, samples: Sequence[dict[str, Any]]) -> dict[tuple[str | ClassText, ...], list[int]]:
        """Return the samples of a batch grouped by vocabulary."""
        groups: dict[tuple[str | ClassText, ...], list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(self.vocabulary_of(sample), []).append(index)
        return groups

    def _losses(self, samples: list[dict[str, Any]], norm: Normalisers | None) -> dict[str, Tensor]:
        """Return the criterion's weighted losses of a batch; each image is classified only into its own vocabulary.

        All images go through the network together, also those of different vocabularies.
        """
        groups = self._by_vocabulary(samples)
        samples = [samples[index] for members in groups.values() for index in members]  # grouped by vocabulary
        images = self.model.stack([sample["image"] for sample in samples])
        sizes = [len(classes) for classes, members in groups.items() for _ in members]
        targets = [self._target(*each, images.shape[-2:]) for each in zip(samples, sizes, strict=True)]
        seeds = [sample["seed"] for sample in samples] if all("seed" in sample for sample in samples) else None
        embeds = [self.model.text_classifier.embed(classes) for classes in groups]
        if len(groups) == 1:
            outputs = self.model(images, embeds[0]).as_dict() | {"text_embed": embeds[0]}
            return self.criterion(outputs, targets, seeds=seeds, norm=norm)
        blocks, first, losses = self.model.image_side(self.model, images), 0, dict[str, Tensor]()
        counts = [len(target.labels) for target in targets]
        norm = norm or self.criterion.normalisers(counts, blocks[-1].mask_logits.shape[1], images.device)
        for text_embed, members in zip(embeds, groups.values(), strict=True):
            own = slice(first, first := first + len(members))
            parts = [MaskProposals(*(part[own] for part in block)) for block in blocks]
            *earlier, last = (self.model.classify(block, text_embed) for block in parts)
            outputs = last._replace(aux=tuple(earlier)).as_dict() | {"text_embed": text_embed}
            found = self.criterion(outputs, targets[own], seeds=seeds and seeds[own], norm=norm)
            losses = {name: losses[name] + loss if losses else loss for name, loss in found.items()}
        return losses

    def _target(self, sample: dict[str, Any], num_classes: int, size: Sequence[int]) -> LabelMapTarget:
        """Return the masks of a sample: its classes, and its map padded to the batch's size with the ignore label."""
        label_map, ignore = sample["sem_seg"], self._ignore_label(sample)
        classes = sample.get("classes")
        if classes is None:
            source = str(sample.get("sem_seg_file_name", "the label map"))
            classes = classes_present(label_map, ignore, num_classes, source=source)
        padding = (0, size[1] - label_map.shape[1], 0, size[0] - label_map.shape[0])
        label_map = label_map.to(self.device, non_blocking=True)
        padded = F.pad(label_map, padding, value=ignore)  # (H, W)
        return LabelMapTarget(classes, padded, sample.get("mask_values"))

    def _predict(self, samples: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the predictions of a batch; images of one vocabulary go through the network together."""
        images, groups = self.model.stack([sample["image"] for sample in samples]), self._by_vocabulary(samples)
        results: list[Mapping[str, Any]] = [{} for _ in samples]
        height, width = images.shape[-2:]
        non_finite: list[Tensor] = []
        names: list[str] = []
        for classes, members in groups.items():
            batch = images if len(members) == len(samples) else images[members]  # a list as index synchronizes
            scored = ScoredWords(classes)
            text = self.model.text_classifier.embed_with_bank(scored.words)
            more = {} if text.bank is None else {"bank": text.bank}  # a model of one's own need not know banks
            output = self.model(batch, text.vectors, **more)
            for row, index in enumerate(members):
                results[index] = self._result(output, row, samples[index], (height, width), scored)
            non_finite.append(have_non_finite(output.mask_logits, output.class_logits))
            names += [str(samples[index].get("file_name", f"image {index} of the batch")) for index in members]
        refuse_non_finite(torch.cat(non_finite), names)  # last, because it synchronizes with the GPU
        return results

    def _result(
        self,
        output: SANOutput,
        row: int,
        sample: dict[str, Any],
        padded_size: tuple[int, int],
        scored: ScoredWords,
    ) -> Mapping[str, Any]:
        """Return label map and scores of one image at the output size of its sample."""
        height, width = sample["image"].shape[-2:]
        size = (sample.get("height", height), sample.get("width", width))
        parts = (output.mask_logits[row], output.class_logits[row], Geometry(padded_size, (height, width), size))
        masks, logits, geometry = parts
        more = {}
        if self.return_proposals or "segments" in sample:
            more["proposals"] = Proposals(masks, scored.logits(logits), geometry, self._band_shrink)
        scores_of = partial(scored.scores, partial(semantic_scores, *parts, shrink=self._band_shrink))
        if not self.return_scores:
            labels = semantic_labels(*parts, shrink=self._band_shrink)
            return Prediction(scored.labels(labels), scores_of, more)
        scores = scores_of()
        return {"sem_seg_labels": scores.argmax(dim=0), "sem_seg": scores, **more}


class ScoredWords:
    """The words that are scored for some classes, see `separate_words`; a class has the best score of its words.

    Args:
        classes: C classes.
    """

    def __init__(self, classes: tuple[str | ClassText, ...]) -> None:
        self.words, owners = separate_words(classes)
        self._owners = torch.tensor(owners)
        self._counts = torch.bincount(self._owners).tolist()  # words of each class
        self._all_single = len(self.words) == len(classes)

    def labels(self, of_words: Tensor) -> Tensor:
        """Return the label map (height, width) of classes, given that of words."""
        return of_words if self._all_single else self._owners.to(of_words.device)[of_words]

    def scores(self, of_words: Callable[[], Tensor]) -> Tensor:
        """Return scores (C, height, width), given a function that computes those of words."""
        scores = of_words()  # (W, height, width)
        return scores if self._all_single else self._best(scores, 0)

    def logits(self, of_words: Tensor) -> Tensor:
        """Return class logits (Q, C + 1), given those of words (Q, W + 1); "no object" is last."""
        if self._all_single:
            return of_words
        return torch.cat([self._best(of_words[:, :-1], 1), of_words[:, -1:]], dim=1)

    def _best(self, values: Tensor, dim: int) -> Tensor:
        return torch.stack([own.amax(dim) for own in values.split(self._counts, dim)], dim)


def classes_of_dataset(name: str) -> tuple[str | ClassText, ...]:
    """Return the vocabulary of a registered data set."""
    metadata = metadata_of(name)
    return tuple(metadata.get("learnt_classes") or metadata.get("class_texts") or metadata.stuff_classes)


class Prediction(Mapping[str, Any]):
    """Prediction of one image: ``sem_seg_labels``, and ``sem_seg``, which Detectron2's evaluators read.

    The scores of all classes take much memory, so they are recomputed on every access.

    Args:
        labels: (height, width) int64.
        scores: computes (C, height, width).
        more: other entries.
    """

    def __init__(
        self, labels: Tensor, scores: Callable[[], Tensor], more: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.labels, self.scores = labels, scores
        self._kept = {"sem_seg_labels": labels, "sem_seg": None, **more}

    def __getitem__(self, key: str) -> Any:
        return self.scores() if key == "sem_seg" else self._kept[key]

    def __contains__(self, key: object) -> bool:
        return key in self._kept  # the base class would compute the scores

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

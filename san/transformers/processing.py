"""The processor of `SANForSegmentation`: images and words to tensors, outputs to label maps.

B images, C classes, N prompts, T text tokens, (H, W) padded image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from san.clip.prompts import Prompts
from san.clip.templates import PROMPTS, load_templates
from san.clip.text_embedder import TextEmbedder
from san.clip.tokenizer import fitting_tokenizer
from san.data.images import Layout, image_pixels
from san.data.transforms import resize_image, resize_short_side
from san.model.san import SANModel, normalised_batch, pixel_statistics
from san.postprocess import Geometry, View, mean_labels
from san.torch_defaults import torch_defaults
from san.transformers.modeling import described, plain_description
from san.transformers.remote_code import AUTO_MAP, OwnCode
from san.vocabulary.vocabulary import Vocabulary, VocabularyLike

logger = logging.getLogger(__name__)


class SANProcessor(OwnCode, ProcessorMixin):  # type: ignore[misc]
    """Makes the inputs of `SANForSegmentation`, and label maps from its outputs.

    Args:
        san: see `SANForSegmentationConfig`.
        short_side: images are resized to this short side, in pixels; by default the one the model was trained for.
        max_size: limit of the long side after resizing.
    """

    attributes: list[str] = []  # noqa: RUF012 - as transformers declares it
    valid_kwargs = ["san", "short_side", "max_size"]  # noqa: RUF012 - version 4 warns of others

    def __init__(self, san: dict[str, Any] | None = None, short_side: int | None = None, max_size: int = 2560) -> None:
        record = described(san)
        self.san = san
        self.short_side, self.max_size = short_side or record.model.side_adapter.image_size, max_size
        self.auto_map = dict(AUTO_MAP)
        self._arch, self._size_divisibility = record.clip_arch, record.model.size_divisibility
        prompts: Prompts = PROMPTS.build(record.model.prompts, load_templates(record.model.clip.templates))
        self._embedder = TextEmbedder(fitting_tokenizer(record.clip_arch.text, record.clip_token_ids), prompts)
        self._logged: set[str] = set()
        super().__init__()

    @classmethod
    def of(cls, model: SANModel) -> SANProcessor:
        """Return the processor of a model.

        Raises:
            ValueError: a file cannot describe the model.
        """
        return cls(plain_description(model))

    @torch_defaults()
    def __call__(
        self,
        images: Any = None,
        text: VocabularyLike | None = None,
        *,
        layout: Layout | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Return the inputs of the model.

        Args:
            images: one image or a list of them, see `san.Predictor.encode`. Images of different sizes are padded to
                the largest. This changes the result a little: for the numbers of a `Predictor`, give one size at a
                time.
            text: the classes, see `san.Vocabulary.parse`: "cat, dog" or ["cat", "dog"]. All images have the same.
            layout: order of the axes of arrays and tensors, "HWC" or "CHW"; required for tensors.
            return_tensors: "pt".

        Returns:
            With images pixel_values (B, 3, H, W) and pixel_mask (B, H, W); with text input_ids (N, T), class_ids (N,)
            and template_ids (N,).

        Raises:
            ValueError: there is neither, an image or the vocabulary is not valid, or `return_tensors` is not "pt".
            FileNotFoundError: an image does not exist.
        """
        if images is None and text is None:
            raise ValueError("give images, text or both")
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is {return_tensors!r}; the model takes PyTorch's tensors: give 'pt'")
        data: dict[str, Tensor] = {}
        if text is not None:
            data |= self._text_inputs(Vocabulary.parse(text))
        if images is not None:
            data |= self._image_inputs(images if isinstance(images, (list, tuple)) else [images], layout)
        return BatchFeature(data)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        *,
        threshold: float = 0.0,
        none_of_these: bool = False,
    ) -> list[Tensor]:
        """Return the label map of each image, (height, width) int64: indices into the classes.

        Args:
            outputs: `SANForSegmentationOutput`.
            target_sizes: (height, width) of each result, usually that of the original image; by default that of the
                image in the network.
            threshold: pixels whose best score is below it are -1; scores are around 1 for one certain mask.
            none_of_these: pixels whose score of "no object" is above that of every class are -1.

        Raises:
            ValueError: there are not as many sizes as images, or one is not positive.
        """
        masks, classes = outputs.masks_queries_logits, outputs.class_queries_logits
        padded = _pair(outputs.padded_size)
        inside = [_pair(size) for size in outputs.image_sizes]
        wanted = inside if target_sizes is None else [_pair(size) for size in target_sizes]
        if len(wanted) != len(masks):
            raise ValueError(f"there are {len(wanted)} target_sizes for {len(masks)} images; give one for each")
        views = [
            View(mask.detach().float(), logits.detach().float(), Geometry(padded, size, target))
            for mask, logits, size, target in zip(masks, classes, inside, wanted, strict=True)
        ]
        return [mean_labels([view], threshold=threshold, none_of_these=none_of_these)[0] for view in views]

    def _text_inputs(self, words: Vocabulary) -> dict[str, Tensor]:
        for remark in self._embedder.remarks(words.classes, self._arch.text.context_length):
            if remark not in self._logged:
                self._logged.add(remark)
                logger.warning("%s", remark)
        tokens = self._embedder.tokenise(words.classes)
        return {"input_ids": tokens.ids, "class_ids": tokens.class_ids, "template_ids": tokens.kinds}

    def _image_inputs(self, images: Sequence[Any], layout: Layout | None) -> dict[str, Tensor]:
        if not images:
            raise ValueError("the list of images is empty; give at least one")
        resized = []
        for image in images:
            pixels = image_pixels(image, layout=layout)
            size = resize_short_side(pixels.shape[0], pixels.shape[1], self.short_side, self.max_size)
            resized.append(torch.from_numpy(resize_image(pixels, size)).permute(2, 0, 1))  # (3, h, w)
        batch = normalised_batch(resized, *pixel_statistics(self._arch), self._size_divisibility)
        mask = torch.zeros(len(batch), *batch.shape[2:], dtype=torch.int64)
        for each, image in zip(mask, resized, strict=True):
            each[: image.shape[1], : image.shape[2]] = 1
        return {"pixel_values": batch, "pixel_mask": mask}


def _pair(size: Any) -> tuple[int, int]:
    """Return height and width as numbers."""
    height, width = (int(each) for each in size)
    return height, width

"""SAN as a model of transformers.

B batch, Q queries, C classes, E joint embedding, N prompts, T text tokens, (H, W) padded image, (h_s, w_s) side grid.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput  # type: ignore[attr-defined]

from san.clip.text_classifier import TextClassifier
from san.clip.text_embedder import PromptTokens
from san.clip.tokenizer import fitting_tokenizer
from san.hub.folder import FolderConfig, describe
from san.io.errors import listed
from san.model.build import freeze
from san.model.precision import mixed_precision
from san.model.san import SANModel, pixel_statistics
from san.record import read_record
from san.torch_defaults import torch_defaults
from san.transformers.remote_code import AUTO_MAP, OwnCode

_DTYPE_ARGUMENT = Version("4.56")  # of from_pretrained; before, its name is torch_dtype


class SANForSegmentationConfig(OwnCode, PretrainedConfig):  # type: ignore[misc]
    """The configuration of `SANForSegmentation`.

    Args:
        san: the content of config.json in a folder of `san.hub.save_pretrained`; None only for transformers' own calls.
        options: of `PretrainedConfig`.
    """

    model_type = "san"

    def __init__(self, san: dict[str, Any] | None = None, **options: Any) -> None:
        self.san = san
        super().__init__(**options)
        self.auto_map = dict(AUTO_MAP)  # one from the hub would name its repository instead of the file beside it

    def record(self) -> FolderConfig:
        """Return the model's description, checked strictly.

        Raises:
            ValueError: a field is unknown, missing, of another type or out of range, or the model has custom parts.
        """
        return described(self.san)


def described(san: dict[str, Any] | None) -> FolderConfig:
    """Return the record of the entry "san" of a configuration.

    Raises:
        ValueError: see `SANForSegmentationConfig.record`.
    """
    if san is None:
        raise ValueError('the configuration has no "san"; write the folder with `san convert --to transformers`')
    record = read_record(FolderConfig, san, "san")
    if record.architecture:
        parts = listed(f"{name or 'the model'} of {kind}" for name, kind in record.architecture)
        raise ValueError(f"the model has custom parts, which AutoModel cannot build: {parts}; use san.load_pretrained")
    return record


def plain_description(model: SANModel) -> dict[str, Any]:
    """Return the entry "san" of a model's configuration, as JSON has it."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(describe(model))))
    return content


@dataclasses.dataclass
class SANForSegmentationOutput(ModelOutput):  # type: ignore[misc]
    """The result of `SANForSegmentation`, with the names of MaskFormer's.

    Attributes:
        logits: (B, C, h_s, w_s) the score of each class over the padded image, if `output_logits`.
        class_queries_logits: (B, Q, C + 1), "no object" last.
        masks_queries_logits: (B, Q, h_s, w_s), before the sigmoid, over the padded image.
        text_embeds: (C, E), unit length; pass them to the next call with the same words.
        image_sizes: (B, 2) int64, height and width of each image within the padded one.
        padded_size: (2,) int64, H and W.
    """

    logits: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    text_embeds: Tensor | None = None
    image_sizes: Tensor | None = None
    padded_size: Tensor | None = None


class SANForSegmentation(OwnCode, PreTrainedModel):  # type: ignore[misc]
    """Open-vocabulary semantic segmentation; `SANProcessor` makes its inputs and reads its outputs.

    Attributes:
        model: the `SANModel`; `san.Predictor(model.model)` is a predictor of it.
    """

    config_class = SANForSegmentationConfig
    main_input_name = "pixel_values"
    _no_split_modules = ["SANModel"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: SANForSegmentationConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        record = config.record()
        with torch_defaults():  # version 5 builds models on the meta device
            tokenizer = fitting_tokenizer(record.clip_arch.text, record.clip_token_ids)
        self.model = SANModel(record.model, record.clip_arch, tokenizer)
        freeze(self.model)
        self.post_init()

    @classmethod
    def of(cls, model: SANModel) -> SANForSegmentation:
        """Wrap a model, without a copy of its weights.

        Raises:
            ValueError: a file cannot describe the model.
        """
        config = SANForSegmentationConfig(plain_description(model), architectures=[cls.__name__])
        with torch.device("meta"):
            made = cls(config)
        made.model = model
        return made

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """See transformers; here, every missing, unexpected or differently shaped tensor is an error.

        `dtype` may be given in all versions of transformers.

        Raises:
            ValueError: the weights do not fit the configuration.
        """
        wants_info = options.pop("output_loading_info", False)
        if "dtype" in options and Version(transformers.__version__) < _DTYPE_ARGUMENT:
            options["torch_dtype"] = options.pop("dtype")  # otherwise it would be ignored
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **options)
        model, info = loaded
        wrong = [f"{kind} {each}" for kind in ("missing", "unexpected", "mismatched") for each in info[f"{kind}_keys"]]
        if wrong:
            raise ValueError(
                f"the weights do not fit the configuration beside them: {listed(wrong)}; write the folder again"
            )
        freeze(model.model)  # version 5 makes every weight trainable
        return (model, info) if wants_info else model

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        class_ids: Tensor | None = None,
        template_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        output_logits: bool = False,
        return_dict: bool | None = None,
    ) -> SANForSegmentationOutput | tuple[Tensor, ...]:
        """Predict masks and their classes.

        Args:
            pixel_values: (B, 3, H, W) normalised images, padded with zeros at the bottom and right.
            input_ids: see `get_text_features`, as the next two; used if there are no `text_embeds`.
            class_ids: (N,).
            template_ids: (N,).
            text_embeds: (C, E) of `get_text_features`, which depend on the words only.
            pixel_mask: (B, H, W), 1 in the image and 0 in the padding; all 1 by default.
            output_logits: whether to compute `logits`.
            return_dict: False returns a tuple.

        Raises:
            ValueError: there are neither `input_ids` nor `text_embeds`.
        """
        if text_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids (processor(text=names)) or text_embeds (model.get_text_features)")
            text_embeds = self.get_text_features(input_ids, class_ids, template_ids)
        with self._number_type():
            output = self.model(pixel_values.float(), text_embeds.to(pixel_values.device))
        height, width = pixel_values.shape[-2:]
        if pixel_mask is None:
            image_sizes = torch.tensor([[height, width]] * len(pixel_values), device=pixel_values.device)
        else:
            seen = pixel_mask.bool()
            image_sizes = torch.stack([seen.any(dim=2).sum(dim=1), seen.any(dim=1).sum(dim=1)], dim=1)
        masks, classes = output.mask_logits.float(), output.class_logits.float()
        result = SANForSegmentationOutput(
            logits=_scores(masks, classes) if output_logits else None,
            class_queries_logits=classes,
            masks_queries_logits=masks,
            text_embeds=text_embeds,
            image_sizes=image_sizes,
            padded_size=torch.tensor([height, width], device=pixel_values.device),
        )
        return result.to_tuple() if return_dict is False else result

    def get_text_features(
        self, input_ids: Tensor, class_ids: Tensor | None = None, template_ids: Tensor | None = None
    ) -> Tensor:
        """Return text embeddings (C, E) of unit length: means over templates, then over synonyms.

        Args:
            input_ids: (N, T) token ids of prompts, whose end-of-text is their largest id; from ``processor(text=...)``.
            class_ids: (N,) the class of each prompt, ascending from 0; by default each is a class of its own.
            template_ids: (N,) the template of each prompt; by default none is made from a template.
        """
        embedder = self.model.text_classifier.embedder
        if class_ids is None:
            class_ids = torch.arange(len(input_ids))
        if template_ids is None:
            template_ids = torch.full((len(input_ids),), len(embedder.prompts("")))
        tokens = PromptTokens(input_ids.cpu(), template_ids.cpu(), class_ids.cpu())
        with self._number_type():
            vectors: Tensor = embedder.embed_tokens(self.model.text_classifier, tokens).float()
        return vectors

    def _number_type(self) -> AbstractContextManager[Any]:
        """Return the context in which the model computes, mixed precision if its weights are not float32."""
        return nullcontext() if self.dtype == torch.float32 else mixed_precision(self.device, self.dtype)

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Fill the tensors that no file has; weights that a file lacks are an error of `from_pretrained`."""
        with torch_defaults():
            if isinstance(module, SANModel):
                for buffer, values in zip(
                    (module.pixel_mean, module.pixel_std), pixel_statistics(module.arch), strict=True
                ):
                    buffer.copy_(values)
            elif isinstance(module, TextClassifier) and module.context_offset is not None:
                module.context_length.copy_(module.context_lengths())


def _scores(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """Return (B, C, h_s, w_s) from mask logits (B, Q, h_s, w_s) and class logits (B, Q, C + 1)."""
    return torch.einsum("bqc,bqhw->bchw", class_logits.softmax(dim=-1)[..., :-1], mask_logits.sigmoid())

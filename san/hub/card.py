"""Writes the model card, the README.md beside a model's weights."""

from __future__ import annotations

from san.model.config import SANConfig

_CARD = """---
library_name: {library}
pipeline_tag: image-segmentation
tags:
- open-vocabulary
- semantic-segmentation
- clip
- side-adapter-network
---

# SAN on CLIP {clip}

Open-vocabulary semantic segmentation with a Side Adapter Network ([arXiv 2302.12242](https://arxiv.org/abs/2302.12242)):
assigns one of the given words to each pixel of an image.

{usage}
## Files

- `model.safetensors`: all weights, including CLIP's, {megabytes:.1f} MB in {dtype}. It contains only tensors and
  runs no code.
- `config.json`: the model's configuration, with every field.

## Model

| | |
|---|---|
| CLIP | {clip}, weights {pretrained}, {depth} blocks feed the side network |
| side network | width {width}, {blocks} blocks, {queries} queries, for images of {size} pixels |
| prompts | {templates} |

## To be filled in

Describe here the training data, the evaluation results and the licence of these weights, and add `license:` above.
"""


_USAGE = """```python
from san import Predictor

predictor = Predictor.from_pretrained("owner/name")  # this repository, or a folder with its files
result = predictor.predict("street.jpg", ["car", "road", "sky"])
```
"""

_USAGE_OF_TRANSFORMERS = """```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder = "owner/name"  # this repository, or a folder with its files
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.open("street.jpg")
inputs = processor(images=image, text=["car", "road", "sky"])
with torch.no_grad():
    outputs = model(**inputs)
(labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
```

The code of the model is the package `san-segmentation` (`pip install "san-segmentation[transformers]"`);
`modeling_san.py` imports it. `san.Predictor.from_pretrained` reads these files, too.
"""


def model_card(config: SANConfig, *, num_bytes: int, dtype: str, for_transformers: bool = False) -> str:
    """Return the text of the card.

    Args:
        config: the model.
        num_bytes: size of the weights.
        dtype: number type of the weights.
        for_transformers: whether AutoModel loads the files.
    """
    clip, side, templates = config.clip, config.side_adapter, config.clip.templates
    return _CARD.format(
        library="transformers" if for_transformers else "san",
        usage=_USAGE_OF_TRANSFORMERS if for_transformers else _USAGE,
        clip=clip.name,
        pretrained=f"`{clip.pretrained}`" if clip.pretrained else "as trained",
        depth=clip.shallow_depth,
        width=side.embed_dim,
        blocks=side.depth,
        queries=side.num_queries,
        size=side.image_size,
        templates=f"template set `{templates}`" if isinstance(templates, str) else f"{len(templates)} own templates",
        megabytes=num_bytes / 1e6,
        dtype=dtype,
    )

"""Writes the model card, the README.md beside a model's weights."""

from __future__ import annotations

from san.model.config import SANConfig

_CARD = """---
library_name: san
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

```python
from san import Predictor

predictor = Predictor.from_pretrained("owner/name")  # this repository, or a folder with its files
result = predictor.predict("street.jpg", ["car", "road", "sky"])
```

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


def model_card(config: SANConfig, *, num_bytes: int, dtype: str) -> str:
    """Return the text of the card.

    Args:
        config: the model.
        num_bytes: size of the weights.
        dtype: number type of the weights.
    """
    clip, side, templates = config.clip, config.side_adapter, config.clip.templates
    return _CARD.format(
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

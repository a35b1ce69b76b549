"""Text towers of transformers: XLM-RoBERTa and RoBERTa, as open_clip uses them, with the mean over all tokens.

N texts, T text tokens, D text width, E joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.io.errors import require_extra

_PAD = 1  # id of padding, in both


class HuggingFaceText(nn.Module):
    """A text tower of transformers and a projection of two layers, with open_clip's names.

    Args:
        arch: `arch.text.model` is the model's type in transformers.
    """

    def __init__(self, arch: ClipArch) -> None:
        super().__init__()
        text = arch.text
        require_extra("multilingual", "the text tower of this CLIP", "transformers")
        from transformers import RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

        kinds = {"roberta": (RobertaModel, RobertaConfig), "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig)}
        model, config = kinds[text.model]
        self.transformer = model(
            config(
                vocab_size=text.vocab_size,
                hidden_size=text.width,
                num_hidden_layers=text.depth,
                num_attention_heads=text.num_heads,
                intermediate_size=int(text.width * text.mlp_ratio),
                max_position_embeddings=514,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                pad_token_id=_PAD,
                hidden_dropout_prob=0.0,  # the tower is frozen, but its mode is that of the whole model
                attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )
        self.transformer.embeddings._buffers.clear()  # constants, which `forward` gives; a meta device has no values
        hidden = (text.width + arch.embed_dim) // 2
        self.proj = nn.Sequential(
            nn.Linear(text.width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, arch.embed_dim, bias=False)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return embeddings (N, E), not normalised, of token ids (N, T)."""
        mask = (tokens != _PAD).long()
        states = self.transformer(
            input_ids=tokens,
            attention_mask=mask,
            token_type_ids=torch.zeros_like(tokens),
            position_ids=mask.cumsum(dim=1) * mask + _PAD,
        ).last_hidden_state  # (N, T, D)
        pooled = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        result: Tensor = self.proj(pooled.to(states.dtype))
        return result

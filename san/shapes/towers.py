"""Both towers of the small CLIP in training, and the losses, for `tools/maintainers/train_shapes_clip.py`.

Legend: N pictures, M captions, E joint embedding, D width, S picture size, G patches along each side, T = G * G, R
regions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from san.clip.arch import ClipArch, TextArch, VisionArch
from san.clip.loader import load_clip
from san.clip.open_clip_adapter import build_trainable_clip
from san.clip.templates import load_templates
from san.clip.tokenizer import compact_tokenizer, token_ids
from san.shapes.captions import NAME_TEMPLATES, SCENE_TEMPLATES, join_names
from san.shapes.pretraining import PICTURE_SIZE, zero_shot
from san.shapes.world import GROUNDS, NAMES

PATCH_SIZE = 8
CONTEXT_LENGTH = 32
START_SCALE = 10.0
UNSEEN = -1e4
"""What attention adds to the logit of a token that is not seen."""


def vocabulary() -> list[int]:
    """Return the sorted ids of CLIP's tokenizer that occur in captions and prompts."""
    texts = [template.format(name) for template in (*NAME_TEMPLATES, *load_templates("vild")) for name in NAMES]
    return token_ids(texts + [template.format(join_names(NAMES[:3], GROUNDS[0])) for template in SCENE_TEMPLATES])


def architecture(width: int, depth: int, vocab_size: int) -> ClipArch:
    """Return the architecture of the small CLIP: patch 8 on 64 x 64 pictures, heads of 32 channels."""
    return ClipArch(
        embed_dim=128,
        vision=VisionArch(PICTURE_SIZE, PATCH_SIZE, width, depth, width // 32),
        text=TextArch(CONTEXT_LENGTH, vocab_size, 128, 2, 4),
    )


def starting_model(width: int, depth: int, start_from: str | Path | None = None) -> tuple[Any, ClipArch, list[int]]:
    """Return the model to train, its architecture and the ids of its tokens.

    Args:
        width: channels of the image tower, a multiple of 32.
        depth: blocks of the image tower.
        start_from: weights of an earlier run; None initializes new ones.

    Raises:
        ValueError: the width is no multiple of 32; or the weights are of another architecture or vocabulary or damaged.
        FileNotFoundError: the file of the weights does not exist.
    """
    if width < 32 or width % 32 or depth < 1:
        raise ValueError(f"width {width} and depth {depth}; the width is a multiple of 32, the depth 1 or more")
    ids = vocabulary()
    arch = architecture(width, depth, len(ids) + 1)
    model: Any = build_trainable_clip(arch)
    if start_from is None:
        nn.init.constant_(model.logit_scale, math.log(START_SCALE))
        init_local_attention(model.visual)
        return model, arch, ids
    if not Path(start_from).is_file():
        raise FileNotFoundError(f"{str(start_from)!r} is no file; pass weights of an earlier run")
    loaded = load_clip("shapes", str(start_from))
    vision, tokens = loaded.arch.vision, compact_tokenizer(ids, CONTEXT_LENGTH)(list(NAMES))
    if loaded.arch != arch:
        raise ValueError(
            f"{start_from} has width {vision.width} and depth {vision.depth}; pass its --width and --depth"
        )
    if not torch.equal(loaded.tokenizer(list(NAMES)), tokens):
        raise ValueError(f"{start_from} has other tokens than the captions; pass weights of an earlier run")
    state = {key: value.float() for key, value in (loaded.state_dict or {}).items()}
    wanted = {key for key in model.state_dict() if not key.endswith("attn_mask")}
    if set(state) != wanted:
        raise ValueError(f"{start_from} has not the tensors of a CLIP: {sorted(set(state) ^ wanted)[:3]}")
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{start_from} holds NaN or infinite values in {broken[0]}; pass weights of an earlier run")
    model.load_state_dict(state, strict=False)
    return model, arch, ids


@torch.no_grad()
def init_local_attention(visual: Any) -> None:
    """Initialize positions with sines and cosines, and queries equal to keys: near, similar patches attend mutually."""
    width, grid = visual.positional_embedding.shape[1], PICTURE_SIZE // PATCH_SIZE
    frequency = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    phase = torch.arange(grid).float()[:, None] * frequency
    wave = torch.cat([phase.sin(), phase.cos()], dim=1)  # (grid, width / 2)
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    visual.positional_embedding[1:] = 0.5 * torch.cat([rows, columns], dim=-1).flatten(0, 1)
    visual.positional_embedding[0] = 0
    for block in visual.transformer.resblocks:
        for head in range(width // 32):
            basis = 1.3 * torch.linalg.qr(torch.randn(width, 32))[0].T
            rows_q = slice(head * 32, head * 32 + 32)
            block.attn.in_proj_weight[rows_q] = basis
            block.attn.in_proj_weight[width:][rows_q] = basis


class Towers:
    """Both towers of an open_clip model, with support for windows of the grid and for short texts."""

    def __init__(self, model: Any, arch: ClipArch, token_ids: Sequence[int], *, compiled: bool) -> None:
        self.model, self.arch = model, arch
        self.tokenize = compact_tokenizer(token_ids, CONTEXT_LENGTH)
        self._mean = 255 * torch.tensor(arch.mean).view(3, 1, 1)
        self._std = 255 * torch.tensor(arch.std).view(3, 1, 1)
        self._known: dict[str, Tensor] = {}
        self._encode = torch.compile(self._image_tower, dynamic=False) if compiled else self._image_tower

    def _image_tower(self, pixels: Tensor, positions: Tensor, regions: Tensor | None = None) -> Tensor:
        """Embed pictures (N, 3, S, S) and, if given, regions (N, T, R) of them, as (N, 1 + R, E)."""
        visual = self.model.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (N, T, D)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + positions
        x = visual.ln_pre(x)
        blocks, mask = visual.transformer.resblocks, None
        for depth, block in enumerate(blocks):
            if regions is not None and depth == len(blocks) // 2:
                mask = region_mask(regions).repeat_interleave(block.attn.num_heads, dim=0)
                x = torch.cat([x, x[:, :1].expand(-1, regions.shape[2], -1)], dim=1)
            x = block(x, attn_mask=mask)
        tokens = x[:, :1] if regions is None else torch.cat([x[:, :1], x[:, -regions.shape[2] :]], dim=1)
        return visual.ln_post(tokens) @ visual.proj  # type: ignore[no-any-return]

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        return ((torch.from_numpy(images).permute(0, 3, 1, 2).float() - self._mean) / self._std).contiguous()

    def images(self, images: NDArray[np.uint8], rng: np.random.Generator | None = None, *, fast: bool = True) -> Tensor:
        """Embed (N, S, S, 3) uint8 as (N, E); pictures smaller than the grid get a random position in it."""
        positions = self.model.visual.positional_embedding
        grid, side = PICTURE_SIZE // PATCH_SIZE, images.shape[1] // PATCH_SIZE
        if side < grid:
            y, x = (0, 0) if rng is None else rng.integers(grid - side + 1, size=2)
            window = positions[1:].view(grid, grid, -1)[y : y + side, x : x + side].flatten(0, 1)
            positions = torch.cat([positions[:1], window])
        return (self._encode if fast else self._image_tower)(self._pixels(images), positions)[:, 0]

    def mosaics(self, images: NDArray[np.uint8], regions: NDArray[np.bool_]) -> Tensor:
        """Embed mosaics (N, S, S, 3) uint8 and their regions (N, G, G, R), as (N, 1 + R, E)."""
        patches = torch.from_numpy(regions).flatten(1, 2)
        return self._encode(self._pixels(images), self.model.visual.positional_embedding, patches)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, E); the padding after the longest is omitted."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self.tokenize(new), strict=True))
        tokens = torch.stack([self._known[text] for text in texts])
        length = int((tokens != 0).sum(dim=1).max())
        tokens = tokens[:, :length]
        model = self.model
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        for block in model.transformer.resblocks:
            x = block(x, attn_mask=model.attn_mask[:length, :length])
        x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
        return x @ model.text_projection  # type: ignore[no-any-return]

    def logits(self, image_embed: Tensor, text_embed: Tensor) -> Tensor:
        """Return the scaled cosines (N, M) of embeddings (N, E) and (M, E)."""
        image_embed, text_embed = (F.normalize(embed.float(), dim=-1) for embed in (image_embed, text_embed))
        return self.model.logit_scale.exp() * image_embed @ text_embed.T  # type: ignore[no-any-return]

    @torch.no_grad()
    def accuracy(self, count: int) -> dict[str, float]:
        """Compute `san.shapes.pretraining.zero_shot` with the 14 ViLD templates as prompts."""
        prompts = load_templates("vild")
        text = F.normalize(self.texts([prompt.format(name) for name in NAMES for prompt in prompts]), dim=-1)
        classes = F.normalize(text.view(len(NAMES), len(prompts), -1).mean(dim=1), dim=-1)

        def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = F.normalize(self.images(images, fast=False), dim=-1).numpy()
            return found

        return zero_shot(embed, classes.numpy(), count=count)


def region_mask(regions: Tensor) -> Tensor:
    """Return what attention adds to its logits, (N, L, L), L = 1 + T + R, for regions (N, T, R) bool.

    As in SAN, the token of a region sees itself and the patches of the region. The class token and the patches see each
    other as without regions.
    """
    count, patches, tokens = regions.shape
    seen = torch.zeros(count, 1 + patches + tokens, 1 + patches + tokens, dtype=torch.bool)
    seen[:, : 1 + patches, : 1 + patches] = True
    seen[:, 1 + patches :, 1 : 1 + patches] = regions.transpose(1, 2)
    seen |= torch.eye(seen.shape[1], dtype=torch.bool)
    return torch.where(seen, 0.0, UNSEEN)


def margin_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Contrast each true pair with the false pairs of its row and of its column; other true pairs are ignored.

    It separates true from false pairs quickly. But it does not compare true captions of a picture, so that the logits
    of an easy kind of name (grounds) may become much larger than those of a harder one (things).

    Args:
        logits: (N, M) scaled similarities of pictures and captions.
        true: (N, M) whether the caption is true of the picture.
    """
    false_only = logits.masked_fill(true, -1e9)
    losses = []
    for dim in (1, 0):
        each = F.softplus(false_only.logsumexp(dim=dim, keepdim=True) - logits) * true
        losses.append((each.sum(dim=dim) / true.sum(dim=dim).clamp(min=1)).mean())
    return (losses[0] + losses[1]) / 2


def shared_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Cross-entropy with a target that is uniform over the true pairs of a row, and of a column.

    It is minimal if all true captions of a picture have the same logit. Captions that are true of no picture are only
    negatives. Arguments as in `margin_loss`.
    """
    losses = []
    for dim in (1, 0):
        count = true.sum(dim=dim)
        each = -(logits.log_softmax(dim=dim) * true).sum(dim=dim) / count.clamp(min=1)
        losses.append(each.mean())
    return (losses[0] + losses[1]) / 2

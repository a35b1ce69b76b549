"""The configuration: every key SAN reads, with meaning, unit and legal values, and its way into dataclasses.

`san_cfg` is the whole configuration of `tools/train_net.py`: Detectron2's keys that SAN reads and SAN's own, no other,
so that a key without effect is an error. `add_san_config` adds SAN's keys to anyone's Detectron2 configuration.
Below `san/d2` nothing sees a cfg: `san_config`, `loss_config`, `augmentation_config` and `solver_config` turn it into
the dataclasses of those packages, which hold the defaults (the published ViT-B/16 recipe) and check the values.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from san.clip.text_cache import resolve_folder
from san.d2.api import CfgNode, get_cfg
from san.d2.config.checks import check_values
from san.d2.config.yaml_file import expand_paths, merge_file, merge_overrides, override_pairs, use_datasets
from san.d2.solver import SolverConfig
from san.d2.user_modules import import_configured
from san.data.transforms import AugmentationConfig
from san.errors import excerpt
from san.losses import LossConfig
from san.model.config import AttnBiasConfig, ClipConfig, HeadConfig, SANConfig, SideAdapterConfig

Record = TypeVar("Record")

ENGINE_KEYS = (
    "VERSION",
    "OUTPUT_DIR",
    "SEED",
    "CUDNN_BENCHMARK",
    "FLOAT32_PRECISION",
    "MODEL.META_ARCHITECTURE",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.CROP.SIZE",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "SOLVER.BASE_LR",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.AMP.ENABLED",
    "SOLVER.CLIP_GRADIENTS.ENABLED",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
)
"""Detectron2's keys that SAN reads; they mean what they mean there."""


def add_san_config(cfg: CfgNode) -> None:
    """Adds SAN's keys to a configuration and sets the published values of the Detectron2 keys SAN reads.

    Args:
        cfg: Detectron2's (or the stand-in's) default configuration; changed in place.
    """
    cfg.MODEL.META_ARCHITECTURE = "SAN"
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # "cuda", "cuda:N" or "cpu"
    cfg.MODEL.WEIGHTS = ""  # checkpoint to start from or to evaluate: own or published names; "" = fresh side network
    _add_model_keys(cfg.MODEL)
    _add_loss_keys(cfg.MODEL)
    _add_data_keys(cfg)
    _add_solver_keys(cfg.SOLVER)
    _add_test_keys(cfg)


def _add_model_keys(model: CfgNode) -> None:
    """MODEL.IMPORTS, .SIZE_DIVISIBILITY, .COMPILE, .CLIP, .SIDE_ADAPTER, .HEAD, .ATTN_BIAS."""
    san = SANConfig()
    model.IMPORTS = []  # modules of yours to import first, such as one that registers MODEL.META_ARCHITECTURE
    model.SIZE_DIVISIBILITY = san.size_divisibility  # pad images to multiples of this, pixels; multiple of the patch
    model.COMPILE = False  # whether the network goes through torch.compile; for many images of few sizes

    node = model.CLIP = CfgNode()
    node.NAME = san.clip.name  # open_clip's name of a class-token ViT, "shapes", or "tiny" (tests)
    node.PRETRAINED = san.clip.pretrained or ""  # open_clip tag, weights file, "shapes"; "" = untrained
    node.SHALLOW_DEPTH = san.clip.shallow_depth  # K, blocks that feed the side network; 0 .. CLIP's depth - 1
    node.INPUT_SCALE = san.clip.input_scale  # CLIP sees the image resized by this factor; in (0, 2]
    node.TRAIN_POS_EMBED = san.clip.train_pos_embed  # whether CLIP's image positions are trained
    node.TEMPLATES = san.clip.templates  # "vild" (14), "imagenet" (80), "plain" (the name), or a list of texts with {}
    node.TEXT_CACHE = "auto"  # folder of text embeddings; "auto": SAN_CACHE/text or ~/.cache/san/text; "": none
    node.SLS_INIT = san.clip.sls_init  # [SLS] start: "class_token", "learnt", "learnt_plus_class_token"

    side = san.side_adapter
    node = model.SIDE_ADAPTER = CfgNode()
    node.EMBED_DIM = side.embed_dim  # S, width; multiple of NUM_HEADS; published: 144, 192, 240, 288
    node.IMAGE_SIZE = side.image_size  # pixels the positional embedding is laid out for; multiple of PATCH_SIZE
    node.DEPTH = side.depth  # transformer blocks, 1 or more
    node.NUM_HEADS = side.num_heads  # attention heads of the side network
    node.PATCH_SIZE = side.patch_size  # pixels
    node.MLP_RATIO = side.mlp_ratio  # hidden width of a block's MLP, in multiples of EMBED_DIM
    node.NUM_QUERIES = side.num_queries  # Q, masks predicted per image, 1 or more
    node.FUSION = [f"{feature}->{block}" for feature, block in side.fusion]  # "CLIP feature->side block", 0 = input
    node.SUPERVISED_BLOCKS = list(side.supervised_blocks)  # side blocks with a loss, increasing, the last = DEPTH

    node = model.HEAD = CfgNode()
    node.EMBED_CHANNELS = san.head.embed_channels  # channels in which queries and pixels are compared
    node.MLP_CHANNELS = san.head.mlp_channels  # hidden channels of the three MLPs
    node.MLP_NUM_LAYERS = san.head.mlp_num_layers  # layers of each, 1 or more

    node = model.ATTN_BIAS = CfgNode()
    node.NUM_HEADS = san.attn_bias.num_heads  # CLIP's heads (one bias per head) or 1 (shared)
    node.NUM_LAYERS = san.attn_bias.num_layers  # 1 (one for all deep blocks) or CLIP's depth - SHALLOW_DEPTH
    node.POOLING = san.attn_bias.pooling  # to CLIP's grid: "max", "average", "bilinear", "nearest"
    node.LEARNT_SCALE = san.attn_bias.learnt_scale  # whether one scale and offset of the bias are learnt
    node.ENABLED = san.attn_bias.enabled  # False holds the biases at zero: every [SLS] token sees the whole image


def _add_loss_keys(model: CfgNode) -> None:
    """MODEL.LOSS."""
    loss = LossConfig()
    node = model.LOSS = CfgNode()
    node.CLASS_WEIGHT = loss.class_weight  # factor of the cross-entropy, 0 or more, as all weights and costs here
    node.MASK_WEIGHT = loss.mask_weight  # factor of the mask binary cross-entropy
    node.DICE_WEIGHT = loss.dice_weight  # factor of the dice loss
    node.NO_OBJECT_WEIGHT = loss.no_object_weight  # weight of "no object" inside the cross-entropy, above 0
    node.NUM_POINTS = loss.num_points  # points per mask, in matching and in the mask losses
    node.OVERSAMPLE_RATIO = loss.oversample_ratio  # candidates drawn per point kept, 1 or more
    node.IMPORTANCE_RATIO = loss.importance_ratio  # share of points that are the most uncertain candidates, 0..1
    node.COST_CLASS = loss.cost_class  # matching cost per unit of class probability
    node.COST_MASK = loss.cost_mask  # matching cost per unit of mask binary cross-entropy
    node.COST_DICE = loss.cost_dice  # matching cost per unit of dice


def _add_data_keys(cfg: CfgNode) -> None:
    """INPUT, DATASETS.ROOT, CUSTOM and TEST_SUBSET."""
    augment = AugmentationConfig()
    if "FORMAT" in cfg.INPUT:  # of Detectron2's own mappers, whose default is BGR
        cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.ROOT = ""  # folder of the data sets; "" = environment variable DETECTRON2_DATASETS, else "datasets"
    cfg.DATASETS.CUSTOM = []  # YAML or JSON files that describe own data sets (docs/custom_dataset.md)
    cfg.DATASETS.TEST_SUBSET = 0  # images evaluated of each set, spread evenly over it; 0 = all
    cfg.DATALOADER.MAX_BAD_SHARE = 0.01  # share of training samples that may be unreadable, 0..1; more stop training
    cfg.DATALOADER.TIMEOUT = 600.0  # seconds a batch may take to come from loading processes; 0 = no limit
    cfg.INPUT.MIN_SIZE_TRAIN = list(augment.short_sides)  # short side after the resize, one drawn per image, pixels
    cfg.INPUT.MAX_SIZE_TRAIN = augment.max_size  # largest long side, pixels
    cfg.INPUT.MIN_SIZE_TEST = 640  # short side in evaluation, pixels
    cfg.INPUT.MAX_SIZE_TEST = 2560  # largest long side in evaluation, pixels
    cfg.INPUT.CROP.SIZE = list(augment.crop_size)  # (height, width) of the random crop, pixels
    node = cfg.INPUT.AUGMENT = CfgNode()
    node.BRIGHTNESS = augment.brightness  # largest shift of pixel values, of 255
    node.CONTRAST = list(augment.contrast)  # range of the factor on pixel values
    node.SATURATION = list(augment.saturation)  # range of the factor on saturation
    node.HUE_DEGREES = augment.hue_degrees  # largest turn of the hue, degrees
    node.COLOR_PROB = augment.color_prob  # probability of each of these four, 0..1; 0 switches them off
    node.FLIP_PROB = augment.flip_prob  # probability of a mirror image, 0..1


def _add_solver_keys(node: CfgNode) -> None:
    """SOLVER."""
    solver = SolverConfig()
    node.IMS_PER_BATCH = 32  # images of one iteration, over all processes and accumulation steps
    node.ACCUMULATION_STEPS = 1  # forward and backward passes per iteration; divides IMS_PER_BATCH / processes
    node.MAX_ITER = solver.max_iter  # iterations of the schedule
    node.BASE_LR = solver.base_lr  # learning rate at iteration 0, above 0
    node.POLY_POWER = solver.power  # lr = BASE_LR * (1 - iteration / MAX_ITER) ** POLY_POWER; 0 = constant
    node.WEIGHT_DECAY = solver.weight_decay  # AdamW's, of all tensors but the next two kinds
    node.WEIGHT_DECAY_NORM = solver.weight_decay_norm  # of LayerNorm modules
    node.WEIGHT_DECAY_EMBED = solver.weight_decay_embed  # of positional and query embeddings
    node.CLIP_GRADIENTS.ENABLED = True  # whether the gradient is clipped
    node.CLIP_GRADIENTS.CLIP_VALUE = solver.clip_norm  # to this L2 norm of the whole model's gradient, above 0
    node.AMP.ENABLED = True  # mixed precision in training, on a GPU or a CPU
    node.AMP.DTYPE = "fp16"  # its type: "fp16" (published; with loss scaling) or "bf16" (for GPUs that have it, CPUs)
    node.CHECKPOINT_PERIOD = 5000  # iterations between checkpoints
    node.CHECKPOINT_KEEP = 0  # latest checkpoints kept beside the final one; 0 = all
    node.CHECKPOINT_BEST = ""  # "data set/metric" of whose best value model_best.pth is; "" = none
    node.MAX_NONFINITE = 3  # updates left out in a row, for numbers that are not finite, that stop training; 1 or more
    node.LOG_PERIOD = 20  # iterations between progress lines


def _add_test_keys(cfg: CfgNode) -> None:
    """TEST, WANDB, SEED, DETERMINISTIC, FLOAT32_PRECISION."""
    cfg.FLOAT32_PRECISION = ""  # of float32 products on GPUs: "highest", "high" (TF32), "medium"; "" = PyTorch's own
    cfg.SEED = 0  # 0 or more: a run can be repeated; -1: drawn anew
    cfg.DETERMINISTIC = False  # only algorithms that give the same bits every time; slower on GPUs
    cfg.TEST.EVAL_PERIOD = 5000  # iterations between evaluations; 0 = at the end only
    cfg.TEST.EXPECTED_RESULTS = []  # [data set or "sem_seg", metric, value, tolerance] each; else exit code 1
    cfg.TEST.PARTIAL_PERIOD = 30.0  # seconds between two savings of what an evaluation has counted; 0 = every image
    cfg.TEST.NUM_PANELS = 4  # pictures (image, truth, prediction, legend) per data set, 0 or more
    cfg.TEST.SAVE_LABEL_MAPS = False  # write every prediction as a PNG of class indices
    cfg.TEST.SAVE_RLE = False  # write all predictions as one COCO-style run-length JSON
    cfg.TEST.SCORES = False  # also return "sem_seg", the scores (C, H, W) in float32: much memory
    node = cfg.WANDB = CfgNode()
    node.ENABLED = False  # log to Weights & Biases too
    node.MODE = "offline"  # "offline" (needs no account), "online" or "disabled"
    node.PROJECT = "san"  # where runs are listed
    node.NAME = ""  # of the run; "" = name of OUTPUT_DIR


def san_cfg() -> CfgNode:
    """The configuration of `tools/train_net.py`: what SAN reads, with the published values, and nothing else."""
    cfg = get_cfg()
    engine = CfgNode()
    for key in ENGINE_KEYS:
        *sections, leaf = key.split(".")
        source, target = cfg, engine
        for section in sections:
            source, target = source[section], target.setdefault(section, CfgNode())
        if leaf in source:
            target[leaf] = source[leaf]
    add_san_config(engine)
    return engine


def load_config(
    path: str,
    overrides: list[str] | None = None,
    *,
    data_root: str = "",
    datasets: Sequence[str] = (),
    imports: Sequence[str] = (),
) -> CfgNode:
    """A configuration from a file, the options about data sets, and overrides, the later winning.

    Args:
        path: YAML file, plain data; ``_BASE_`` names one to start from. "" takes the defaults.
        overrides: ``KEY VALUE`` and ``KEY=VALUE`` as on the command line, see `override_pairs`.
        data_root: ``--data-root``, DATASETS.ROOT; "" leaves it.
        datasets: ``--dataset``, files of own data sets, see `use_datasets`.
        imports: ``--import``, modules to import beside those of MODEL.IMPORTS, see `import_configured`.

    Returns:
        The configuration, not frozen, checked as a whole.

    Raises:
        FileNotFoundError: if the file, or one it is based on, does not exist.
        ValueError: if it is no YAML, a key is unknown, or a value does not fit.
    """
    cfg = san_cfg()
    files = merge_file(cfg, path) if path else []
    if data_root:
        cfg.DATASETS.ROOT = data_root
    use_datasets(cfg, datasets)
    pairs = override_pairs(overrides or [])
    merge_overrides(cfg, pairs)
    expand_paths(cfg)
    import_configured(cfg, [] if "MODEL.IMPORTS" in dict(pairs) else files, imports)
    check_config(cfg)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Checks every value, and makes every dataclass once, so that all errors come before any work.

    Raises:
        ValueError: with the key, the value seen and the values accepted.
    """
    check_values(cfg)
    san_config(cfg), loss_config(cfg), augmentation_config(cfg), solver_config(cfg)


def _record(kind: type[Record], node: CfgNode, **given: Any) -> Record:
    """A dataclass from the keys of its fields' names in capitals; lists become tuples."""
    values = dict(given)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in values:
            value = node[field.name.upper()]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _fusion(pairs: list[str]) -> tuple[tuple[int, int], ...]:
    """MODEL.SIDE_ADAPTER.FUSION as pairs of numbers."""
    try:
        return tuple((int(feature), int(block)) for feature, block in (pair.split("->") for pair in pairs))
    except (ValueError, AttributeError):
        raise ValueError(
            f"MODEL.SIDE_ADAPTER.FUSION is {excerpt(pairs)}; write each pair as 'CLIP feature->side block', such as "
            "'3->1'"
        ) from None


def san_config(cfg: CfgNode) -> SANConfig:
    """The model's dataclass; raises ValueError where keys do not fit each other."""
    model = cfg.MODEL
    side = _record(SideAdapterConfig, model.SIDE_ADAPTER, fusion=_fusion(model.SIDE_ADAPTER.FUSION))
    return SANConfig(
        clip=_record(ClipConfig, model.CLIP, pretrained=model.CLIP.PRETRAINED or None),
        side_adapter=side,
        head=_record(HeadConfig, model.HEAD),
        attn_bias=_record(AttnBiasConfig, model.ATTN_BIAS),
        size_divisibility=model.SIZE_DIVISIBILITY,
    )


def text_cache_folder(cfg: CfgNode) -> Path | None:
    """The folder that MODEL.CLIP.TEXT_CACHE means; "auto" heeds the environment variable SAN_CACHE."""
    return resolve_folder(cfg.MODEL.CLIP.TEXT_CACHE, os.environ.get("SAN_CACHE"))


def loss_config(cfg: CfgNode) -> LossConfig:
    """The criterion's dataclass; raises ValueError on values out of range."""
    return _record(LossConfig, cfg.MODEL.LOSS)


def augmentation_config(cfg: CfgNode, ignore_label: int = 255) -> AugmentationConfig:
    """The training augmentation's dataclass, padding labels with the data set's ignore label."""
    return AugmentationConfig(
        short_sides=tuple(cfg.INPUT.MIN_SIZE_TRAIN),
        max_size=cfg.INPUT.MAX_SIZE_TRAIN,
        crop_size=tuple(cfg.INPUT.CROP.SIZE),
        brightness=cfg.INPUT.AUGMENT.BRIGHTNESS,
        contrast=tuple(cfg.INPUT.AUGMENT.CONTRAST),
        saturation=tuple(cfg.INPUT.AUGMENT.SATURATION),
        hue_degrees=cfg.INPUT.AUGMENT.HUE_DEGREES,
        color_prob=cfg.INPUT.AUGMENT.COLOR_PROB,
        flip_prob=cfg.INPUT.AUGMENT.FLIP_PROB,
        ignore_label=ignore_label,
    )


def solver_config(cfg: CfgNode) -> SolverConfig:
    """The optimiser's dataclass; raises ValueError on values out of range."""
    solver = cfg.SOLVER
    return SolverConfig(
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
        max_iter=solver.MAX_ITER,
        power=solver.POLY_POWER,
        clip_norm=solver.CLIP_GRADIENTS.CLIP_VALUE if solver.CLIP_GRADIENTS.ENABLED else 0.0,
    )

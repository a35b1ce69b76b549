"""Names of Detectron2's keys that SAN does not read.

A configuration that Detectron2 dumps has all of them. They are ignored in such a file, and an error in others.
"""

from __future__ import annotations

_SCHEDULE = "SOLVER.LR_SCHEDULER_NAME"
_WARMUP = "SOLVER.WARMUP_ITERS"
_CLIP = "MODEL.CLIP.NAME"

INSTEAD: dict[str, str | None] = {
    "DATALOADER.ASPECT_RATIO_GROUPING": "",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "",
    "DATALOADER.REPEAT_SQRT": "",
    "DATALOADER.REPEAT_THRESHOLD": "",
    "DATALOADER.SAMPLER_TRAIN": "",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": "",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": "",
    "DATASETS.PROPOSAL_FILES_TEST": "",
    "DATASETS.PROPOSAL_FILES_TRAIN": "",
    "GLOBAL": "",
    "INPUT.CROP.ENABLED": "INPUT.CROP.SIZE",
    "INPUT.CROP.TYPE": "INPUT.CROP.SIZE",
    "INPUT.FORMAT": None,  # must be RGB, which the model checks
    "INPUT.MASK_FORMAT": "",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "INPUT.MIN_SIZE_TRAIN",
    "INPUT.RANDOM_FLIP": "INPUT.AUGMENT.FLIP_PROB",
    "MODEL.ANCHOR_GENERATOR": "",
    "MODEL.BACKBONE": _CLIP,
    "MODEL.FPN": "",
    "MODEL.KEYPOINT_ON": "",
    "MODEL.LOAD_PROPOSALS": "",
    "MODEL.MASK_ON": "",
    "MODEL.PANOPTIC_FPN": "",
    "MODEL.PIXEL_MEAN": _CLIP,
    "MODEL.PIXEL_STD": _CLIP,
    "MODEL.PROPOSAL_GENERATOR": "",
    "MODEL.RESNETS": _CLIP,
    "MODEL.RETINANET": "",
    "MODEL.ROI_BOX_CASCADE_HEAD": "",
    "MODEL.ROI_BOX_HEAD": "",
    "MODEL.ROI_HEADS": "",
    "MODEL.ROI_KEYPOINT_HEAD": "",
    "MODEL.ROI_MASK_HEAD": "",
    "MODEL.RPN": "",
    "MODEL.SEM_SEG_HEAD": "MODEL.HEAD, MODEL.LOSS, or the data set's own classes and ignore label",
    "SOLVER.BASE_LR_END": _SCHEDULE,
    "SOLVER.BIAS_LR_FACTOR": "SOLVER.BASE_LR",
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "SOLVER.GAMMA": _SCHEDULE,
    "SOLVER.MOMENTUM": "",
    "SOLVER.NESTEROV": "",
    "SOLVER.NUM_DECAYS": _SCHEDULE,
    "SOLVER.RESCALE_INTERVAL": _WARMUP,
    "SOLVER.STEPS": _SCHEDULE,
    "SOLVER.WARMUP_METHOD": _WARMUP,
    "SOLVER.WEIGHT_DECAY_BIAS": "SOLVER.WEIGHT_DECAY",
    "TEST.DETECTIONS_PER_IMAGE": "",
    "TEST.KEYPOINT_OKS_SIGMAS": "",
    "TEST.PRECISE_BN": "",
    "VIS_PERIOD": "",
}
"""Key or section -> SAN's key for the same setting; "" if SAN has none, None if none is needed."""


def foreign_name(key: str) -> str | None:
    """Return the entry of `INSTEAD` that is a dotted key or a section that contains it; None if there is none."""
    return next((name for name in INSTEAD if f"{key}.".startswith(f"{name}.")), None)

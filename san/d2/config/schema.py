"""Every configuration key: its meaning, type, default and legal values, from the fields of dataclasses.

The dataclasses of the model, losses and augmentation are defined in their packages, which do not use keys. Those of
the run are defined here. `SECTIONS` maps fields to the keys generated from them, and `KEYS` lists all keys.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from san.clip.arch import IMAGE_SIZE
from san.d2.solver import SolverConfig
from san.data.transforms import AugmentationConfig
from san.io.errors import excerpt
from san.losses.config import LossConfig
from san.model.config import AttnBiasConfig, ClipConfig, HeadConfig, SANConfig, SideAdapterConfig
from san.model.parts import REGISTRIES
from san.panoptic_merge import PanopticOptions
from san.record import AUTO, Constraint, FieldError, Options, option
from san.registry import PartConfig, Registry
from san.vocabulary.label_sets import NAMES

_PATH: dict[str, Any] = {"is_path": True}


@dataclass(frozen=True)
class RunOptions(Options):
    """Options at the top of a configuration."""

    version: int = option(2, "layout of the configuration, as Detectron2 counts it", least=1, most=2)
    output_dir: str = option("./output", "folder of the run: log, configuration, metrics, checkpoints", **_PATH)
    seed: int = option(0, "0 or more: a run can be repeated; -1: drawn for each run", least=-1, most=2**63 - 1)
    deterministic: bool = option(False, "only algorithms that give the same bits every time; slower on GPUs")
    cudnn_benchmark: bool = option(False, "cuDNN times its algorithms at the start; for images of one size")
    float32_precision: str = option(
        "",
        "of float32 products on GPUs: highest, high (TF32) or medium; empty: PyTorch's own",
        choices=("", "highest", "high", "medium"),
    )


@dataclass(frozen=True)
class ModelOptions(Options):
    """Options of MODEL that are not in the model's own dataclasses."""

    meta_architecture: str = option("SAN", "name in META_ARCH_REGISTRY")
    device: str = option("cpu", "cpu, cuda or cuda:N; by default cuda where PyTorch sees a GPU")
    weights: str = option(
        "", "checkpoint to start from or to evaluate, own or published names; empty: fresh side network", **_PATH
    )
    imports: tuple[str, ...] = option((), "Python modules of yours that are imported first, such as those of own parts")
    compile: bool = option(False, "whether the network goes through torch.compile; for many images of few sizes")
    text_cache: str = option(
        "auto", "folder of text embeddings; auto: SAN_CACHE/text or ~/.cache/san/text; empty: none", **_PATH
    )


@dataclass(frozen=True)
class DatasetOptions(Options):
    """Options of DATASETS."""

    train: tuple[str, ...] = option((), "names of data sets to train on; each image has the classes of its own")
    train_weights: tuple[float, ...] = option(
        (), "relative number of samples from each data set of TRAIN; empty: all images are equally frequent", above=0
    )
    test: tuple[str, ...] = option((), "names of data sets to evaluate on")
    root: str = option(
        "", "folder of the data sets; empty: environment variable DETECTRON2_DATASETS, else datasets", **_PATH
    )
    custom: tuple[str, ...] = option((), "files that describe own data sets (docs/custom_dataset.md)", **_PATH)
    names: str = option(
        "default", "texts of the benchmarks' classes; expanded: with synonyms (docs/beyond.md#names)", choices=NAMES
    )
    test_subset: int = option(0, "images evaluated of each set, spread evenly over it; 0: all", least=0, most=10**9)


@dataclass(frozen=True)
class LoaderOptions(Options):
    """Options of DATALOADER."""

    num_workers: int = option(4, "loading processes per training process", least=0, most=1024)
    max_bad_share: float = option(
        0.01, "share of training samples that may be unreadable; more stop training", least=0, most=1
    )
    timeout: float = option(
        600.0, "seconds that loading processes may take for a batch; 0: no limit", least=0, most=10**7
    )


@dataclass(frozen=True)
class TestInputOptions(Options):
    """Options of INPUT for evaluation."""

    min_size_test: int = option(640, "short side in evaluation, pixels", **IMAGE_SIZE)
    max_size_test: int = option(2560, "largest long side in evaluation, pixels", least=1, most=10**6)


@dataclass(frozen=True)
class LoopOptions(Options):
    """Options of SOLVER other than the optimiser's."""

    ims_per_batch: int = option(
        32, "images of one iteration, over all processes and accumulation steps", least=1, most=65536
    )
    reference_world_size: int = option(
        0,
        "processes that IMS_PER_BATCH, BASE_LR, MAX_ITER, WARMUP_ITERS and the periods are meant for; training with "
        "another number scales them; 0: never",
        least=0,
        most=65536,
    )
    accumulation_steps: int = option(
        1, "forward and backward passes per iteration; divides IMS_PER_BATCH / processes", least=1, most=65536
    )
    clip_gradients: bool = option(True, "whether the gradient is clipped")
    amp: bool = option(True, "mixed precision in training, on a GPU or a CPU")
    amp_dtype: str = option(
        "fp16", "its number type: fp16 (published; with loss scaling) or bf16", choices=("bf16", "fp16")
    )
    checkpoint_period: int = option(5000, "iterations between checkpoints", least=1, most=10**9)
    checkpoint_keep: int = option(0, "latest checkpoints kept beside the final one; 0: all", least=0, most=10**9)
    checkpoint_best: str = option("", "data set/metric of whose best value model_best.pth is kept; empty: none")
    max_nonfinite: int = option(
        3, "updates skipped in a row, for numbers that are not finite, that stop training", least=1, most=10**6
    )
    log_period: int = option(20, "iterations between progress lines", least=1, most=10**9)
    find_unused_parameters: bool = option(
        False, "whether trained parameters may be without a gradient when several processes train; costs time"
    )


@dataclass(frozen=True)
class EMAOptions(Options):
    """Options of SOLVER.EMA."""

    enabled: bool = option(
        False, "keep a moving average of the trained weights, and use it for evaluation and prediction"
    )
    decay: float = option(
        0.999,
        "the average keeps this share at each update, after n updates at most (1 + n) / (10 + n)",
        least=0,
        most=1,
    )


@dataclass(frozen=True)
class EarlyStopOptions(Options):
    """Options of SOLVER.EARLY_STOP."""

    metric: str = option("", "data set/metric that must rise, as CHECKPOINT_BEST has it")
    patience: int = option(
        0, "evaluations in a row without a better value that end the run; 0: never", least=0, most=10**9
    )


@dataclass(frozen=True)
class TestOptions(Options):
    """Options of TEST."""

    eval_period: int = option(5000, "iterations between evaluations; 0: at the end only", least=0, most=10**9)
    expected_results: tuple[Any, ...] = option(
        (), "[data set or sem_seg, metric, value, tolerance] each; the exit code is 1 where one is not met"
    )
    partial_period: float = option(
        30.0, "seconds between two savings of what an evaluation has counted; 0: every image", least=0, most=10**7
    )
    num_panels: int = option(4, "pictures (image, truth, prediction, legend) per data set", least=0, most=1000)
    log_reports: bool = option(
        False,
        "show panel and per-class table of evaluations during training in TensorBoard, and in Weights & Biases where "
        "WANDB.ENABLED",
    )
    save_label_maps: bool = option(
        False, "write every prediction as a PNG of class indices; of panoptic sets also in COCO's panoptic format"
    )
    save_rle: bool = option(False, "write all predictions as one COCO-style run-length JSON")
    oracle: bool = option(False, "also write oracle.html: whether masks or names are wrong (docs/error_analysis.md)")
    vocabulary_file: str = option(
        "", "file of `san vocab`: its classes replace those of the same names (docs/examples.md); empty: none", **_PATH
    )
    scores: bool = option(False, "also return sem_seg, the scores (C, H, W) in float32: much memory")


@dataclass(frozen=True)
class TestAugOptions(Options):
    """Options of TEST.AUG."""

    PLACE: ClassVar[str] = "test_aug."
    enabled: bool = option(
        False, "evaluate once more, class scores averaged over sizes and mirror images, and compare the figures"
    )
    min_sizes: tuple[int, ...] = option(
        (320, 480, 640, 800, 960, 1120), "short sides that are averaged over, pixels", **IMAGE_SIZE
    )
    max_size: int = option(4000, "largest long side then, pixels", least=1, most=10**6)
    flip: bool = option(True, "whether mirror images are averaged over too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_sizes or len({*self.min_sizes}) < len(self.min_sizes):
            raise FieldError(
                f"test_aug.min_sizes is {list(self.min_sizes)}; give one side or more, each once", "test_aug.min_sizes"
            )


@dataclass(frozen=True)
class WandbOptions(Options):
    """Options of WANDB."""

    enabled: bool = option(False, "log to Weights & Biases too")
    mode: str = option(
        "offline", "offline (needs no account), online or disabled", choices=("offline", "online", "disabled")
    )
    project: str = option("san", "where runs are listed")
    name: str = option("", "of the run; empty: name of OUTPUT_DIR")
    log_checkpoint: bool = option(False, "log model_final.pth and model_best.pth as an artifact when the run ends")


@dataclass(frozen=True)
class Section:
    """The keys that are generated from a dataclass.

    Attributes:
        prefix: beginning of the keys, with a dot at the end unless it is empty; the field's name in capitals follows.
        kind: the dataclass. Its fields that are dataclasses, except parts, are separate sections.
        names: keys of fields with another name.
        skip: fields that are not keys.

    Iterating yields each field that is a key, and the key.
    """

    prefix: str
    kind: type[Options]
    names: Mapping[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[dataclasses.Field[Any], str]]:
        for each in dataclasses.fields(self.kind):
            if each.name not in self.skip and each.name not in self.nested:
                yield each, self.names.get(each.name, self.prefix + each.name.upper())

    @property
    def nested(self) -> dict[str, type[Options]]:
        """Return the fields that are separate sections, and their dataclasses."""
        found: dict[str, type[Options]] = {}
        for each in dataclasses.fields(self.kind):
            kind = each.default_factory
            if isinstance(kind, type) and issubclass(kind, Options):
                found[each.name] = kind
        return found


_INPUT = {"short_sides": "INPUT.MIN_SIZE_TRAIN", "max_size": "INPUT.MAX_SIZE_TRAIN", "crop_size": "INPUT.CROP.SIZE"}
_SOLVER = {"power": "SOLVER.POLY_POWER", "clip_norm": "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"}
_LOOP = {
    "clip_gradients": "SOLVER.CLIP_GRADIENTS.ENABLED",
    "amp": "SOLVER.AMP.ENABLED",
    "amp_dtype": "SOLVER.AMP.DTYPE",
}

SECTIONS: tuple[Section, ...] = (
    Section("", RunOptions),
    Section("MODEL.", ModelOptions, {"text_cache": "MODEL.CLIP.TEXT_CACHE"}),
    Section("MODEL.", SANConfig),
    Section("MODEL.CLIP.", ClipConfig),
    Section("MODEL.SIDE_ADAPTER.", SideAdapterConfig),
    Section("MODEL.HEAD.", HeadConfig),
    Section("MODEL.ATTN_BIAS.", AttnBiasConfig),
    Section("MODEL.LOSS.", LossConfig),
    Section("DATASETS.", DatasetOptions),
    Section("DATALOADER.", LoaderOptions),
    Section("INPUT.AUGMENT.", AugmentationConfig, _INPUT, skip=("image_pad", "ignore_label")),
    Section("INPUT.", TestInputOptions),
    Section("SOLVER.", SolverConfig, _SOLVER, skip=("betas",)),
    Section("SOLVER.", LoopOptions, _LOOP),
    Section("SOLVER.EMA.", EMAOptions),
    Section("SOLVER.EARLY_STOP.", EarlyStopOptions),
    Section("TEST.", TestOptions),
    Section("TEST.AUG.", TestAugOptions),
    Section("TEST.PANOPTIC.", PanopticOptions),
    Section("WANDB.", WandbOptions),
)


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: such as MODEL.CLIP.SHALLOW_DEPTH.
        default: as written in a configuration: tuples are lists, None is "".
        hint: type of a value in a configuration.
        help: meaning and unit.
        constraint: legal values.
        is_path: whether the value is a path or a list of paths; ``~`` is a home folder.
        is_table: whether the value is a mapping with arbitrary keys, such as the options of a part.
        field: dotted name of the dataclass's field in messages, such as clip.shallow_depth.
    """

    name: str
    default: Any
    hint: Any
    help: str
    constraint: Constraint
    is_path: bool
    is_table: bool
    field: str

    @property
    def is_list(self) -> bool:
        """Whether the value is always a list."""
        return typing.get_origin(self.hint) is tuple


@dataclass(frozen=True)
class Form:
    """Conversion of a field between its value in the dataclass and a different value in the configuration.

    Attributes:
        hint: type of the value in a configuration.
        write: the field's value -> the configuration's.
        read: the configuration's value -> the field's.
    """

    hint: Any
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _fusion_texts(pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Write pairs of CLIP feature and side block as ``feature->block``."""
    return [f"{feature}->{block}" for feature, block in pairs]


def _fusion_pairs(texts: Any) -> Any:
    """Parse texts ``feature->block`` into pairs of numbers, or AUTO."""
    if list(texts) == [AUTO]:
        return AUTO
    try:
        return tuple((int(feature), int(block)) for feature, block in (text.split("->") for text in texts))
    except (ValueError, AttributeError):
        raise FieldError(
            f"side_adapter.fusion is {excerpt(texts)}; write each pair as 'CLIP feature->side block', such as '3->1', "
            "or auto",
            "side_adapter.fusion",
        ) from None


FORMS: dict[str, Form] = {
    "MODEL.SIDE_ADAPTER.FUSION": Form(tuple[str, ...], _fusion_texts, _fusion_pairs),
    "MODEL.CLIP.PRETRAINED": Form(str, lambda weights: weights or "", lambda text: text or None),
}
"""Conversions of keys with different values in a configuration and in the dataclass."""


def part_keys(registry: Registry[Any], name: str) -> tuple[str, str]:
    """Return the keys of a part's name and options; `name` is the key of the part's field."""
    if registry.place.endswith(".name"):
        return f"{name}.NAME", f"{name}.OPTIONS"
    return name, f"{name}_OPTIONS"


def _keys_of(section: Section) -> Iterator[Key]:
    hints = typing.get_type_hints(section.kind)
    for each, name in section:
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        hint = hints[each.name]
        if name in FORMS:
            hint, default = FORMS[name].hint, FORMS[name].write(default)
        if isinstance(default, tuple):
            default = list(default)
        about = (each.metadata["help"], each.metadata["constraint"], each.metadata.get("is_path", False))
        place = section.kind.PLACE + each.name
        if isinstance(default, PartConfig):
            registry = REGISTRIES[place]
            name_key, options_key = part_keys(registry, name)
            yield Key(name_key, default.name, str, *about, False, registry.place)
            options_place = registry.options_place.removesuffix(".")
            yield Key(options_key, {}, dict, f"options of {name}", Constraint(), False, True, options_place)
        else:
            yield Key(name, default, hint, *about, isinstance(default, dict), place)


KEYS: dict[str, Key] = {key.name: key for section in SECTIONS for key in _keys_of(section)}
"""All keys, in the order of the documentation."""

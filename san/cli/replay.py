r"""Recompute batches whose losses or gradients were not finite, and name the image.

Examples:
  san replay output/run/nonfinite_0001234.json
  san replay --iteration 1233 output/run/nonfinite_0001234.json
  san replay output/run/nonfinite_0001234.json SOLVER.AMP.ENABLED False

Training that stops after SOLVER.MAX_NONFINITE skipped updates in a row writes the file, and the weights next to it. The
samples follow from the run's seed and their positions, so they are identical; the settings are those of config.yaml
next to the file. Options go before the file; KEY VALUE or KEY=VALUE after it change the configuration, for instance to
try another precision.

Exit codes: 0 all numbers are finite now, 1 error, 2 wrong command line, 3 some are not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.options import path_option
from san.cli.train import add_overrides
from san.io.files import check_file_size
from san.io.plain_file import MAX_BYTES
from san.record import parse_json

if TYPE_CHECKING:
    from san.d2.api import CfgNode
    from san.d2.data.batches import BatchSample
    from san.d2.data.loaders import PositionDataset
    from san.d2.train.iteration import Stepper

NOT_FINITE = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("dump", type=path_option, metavar="FILE", help="nonfinite_<iteration>.json of a run")
    parser.add_argument("--config-file", metavar="FILE", help="of the run (default: config.yaml next to the file)")
    parser.add_argument("--iteration", type=int, metavar="N", help="only this one (default: all in the file)")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Replay a dump; return the exit code.

    Raises:
        ValueError, OSError: the dump, the configuration or the data is not valid.
    """
    from san.d2.config.keys import load_config

    dump = read_dump(args.dump)
    iterations = [each for each in dump["iterations"] if args.iteration in (None, each["iteration"])]
    if not iterations:
        known = ", ".join(str(each["iteration"]) for each in dump["iterations"])
        raise ValueError(f"--iteration {args.iteration} is not in {args.dump}; it holds {known}")
    folder = args.dump.parent
    weights = ["MODEL.WEIGHTS", str(folder / dump["weights"])]
    config_file = str(args.config_file or folder / "config.yaml")
    cfg = load_config(config_file, [*weights, *args.opts], imports=args.imports)
    cfg.freeze()
    replayed = Replay(*prepare_replay(cfg, dump["seed"]))
    finite = [replayed.iteration(each) for each in iterations]
    print("all numbers are finite here" if all(finite) else "not all numbers are finite here either")
    return 0 if all(finite) else NOT_FINITE


def read_dump(path: Path) -> dict[str, Any]:
    """Read a dump of training.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a dump.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; give nonfinite_<iteration>.json of a run's OUTPUT_DIR")
    check_file_size(path, MAX_BYTES)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give nonfinite_<iteration>.json of a run") from None
    if not isinstance(content, dict) or not {"seed", "weights", "iterations"} <= content.keys():
        raise ValueError(f"{path} has no seed, weights and iterations; give nonfinite_<iteration>.json of a run")
    return content


def prepare_replay(cfg: CfgNode, seed: int) -> tuple[PositionDataset, Stepper]:
    """Return the stream of samples, and the model with the weights of the dump."""
    import torch

    from san.d2.config.keys import solver_config
    from san.d2.data.datasets import register_custom_files, register_datasets
    from san.d2.data.loaders import PositionDataset
    from san.d2.data.train_data import train_mapper, training_data
    from san.d2.solver import build_optimizer
    from san.d2.sources import load_model
    from san.d2.train.iteration import Stepper
    from san.d2.train.trainer import step_config

    register_datasets(cfg.DATASETS.ROOT, cfg.DATASETS.NAMES)
    register_custom_files(cfg.DATASETS.CUSTOM)
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    data = training_data(cfg)
    model = load_model(cfg).train()
    stepper = Stepper(model, build_optimizer(model, solver_config(cfg)), step_config(cfg))
    return PositionDataset(data.records, train_mapper(cfg, data), seed, data.mixture), stepper


@dataclass(frozen=True)
class Replay:
    """Recomputes batches of a stream.

    Attributes:
        dataset: the stream.
        stepper: of the model.
    """

    dataset: PositionDataset
    stepper: Stepper

    def iteration(self, dumped: dict[str, Any]) -> bool:
        """Print losses and gradient of all batches of an iteration; return whether all are finite."""
        finite = True
        for process in dumped["processes"]:
            print(f"iteration {dumped['iteration']}, process {process['process']}: then {process['problem']}")
            for number, step in enumerate(process["steps"]):
                samples = [self._sample(position) for position in step["positions"]]
                text, good = self._measure(samples)
                print(f"  now, step {number}, {len(samples)} images: {text}")
                finite &= good
                for sample in samples if not good else ():
                    print(f"    position {sample['position']} {sample['file_name']}: {self._measure([sample])[0]}")
        return finite

    def _sample(self, position: int) -> BatchSample:
        sample = self.dataset[position]
        if not isinstance(sample, dict):
            raise sample.error(sample.message)
        sample.pop("bad", None)
        return sample

    def _measure(self, samples: Sequence[BatchSample]) -> tuple[str, bool]:
        """Return losses and gradient norm as text, and whether all are finite."""
        import torch

        self.stepper.optimizer.zero_grad(set_to_none=True)
        try:
            losses = self.stepper.losses([*samples])
        except FloatingPointError as error:
            return str(error), False
        torch.stack([*losses.values()]).sum().backward()
        norms = [p.grad.float().norm() for p in self.stepper.model.parameters() if p.grad is not None]
        numbers = {name: float(value.detach()) for name, value in losses.items()}
        numbers["gradient's norm"] = float(torch.stack(norms).norm())
        text = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
        return text, all(map(math.isfinite, numbers.values()))

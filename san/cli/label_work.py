"""The unfinished results of `san label`: the regions of each picture that is done, of one run or of many jobs."""

from __future__ import annotations

import argparse
import secrets
import shutil
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from san.cli.jobs import Job, unfinished
from san.cli.predict import settings_of
from san.cli.segment_options import segment_settings
from san.cli.shards import SETTINGS, Shard, ShardRecords, join_jobs, picture_name
from san.io.files import PARTIAL, write_together

if TYPE_CHECKING:
    from san.labelling.regions import RegionOptions
    from san.labelling.sets import LabelledImage
    from san.panoptic_merge import PanopticOptions
    from san.vocabulary.vocabulary import Vocabulary

UNFINISHED = ".unfinished"
"""Folder below --out with the regions of each picture that is done, until all are."""

_ENDING = ".npz"
_SHARDS = "shards"


class LabelWork:
    """The folder of a run's unfinished results, ``OUT/.unfinished/<digest of the options>``.

    Runs of other options have other folders and cannot mix their results; while there is one, another is refused.

    Args:
        args: options of `san label`.
        vocabulary: the classes.
        jobs: all pictures of the run; their stems are below --out.

    Attributes:
        jobs: the same, with stems below the folder.

    Raises:
        ValueError: there are unfinished results and neither --resume nor --shard nor --merge, or of other options; or
            --merge and no shard.
    """

    def __init__(self, args: argparse.Namespace, vocabulary: Vocabulary, jobs: Sequence[Job]) -> None:
        self._top = args.out / UNFINISHED
        if args.overwrite and not args.merge:
            self.remove()
        if not (args.resume or args.shard or args.merge) and any(self._top.glob(f"*/{SETTINGS}")):
            raise ValueError(f"{str(self._top)!r} has an unfinished run; give --resume to continue it, or --overwrite")
        if args.merge and not any(self._top.glob(f"*/{_SHARDS}/*/{SETTINGS}")):
            raise ValueError(f"no shard has begun in {str(self._top)!r}; run each with --shard, then --merge")
        regions = {name: getattr(args, name) for name in ("instances", "things", "min_area", "score_threshold")}
        if args.segments != "components":
            regions |= segment_settings(args)
        remedy = "give the same options, or --overwrite"
        if args.shard or args.merge:
            remedy = f"give the same options, or remove {str(self._top)!r}"
        self._folder = join_jobs(self._top, settings_of(args, vocabulary) | regions, remedy=remedy)
        self.jobs = [Job(job.image, self._folder / job.stem.relative_to(args.out)) for job in jobs]
        self._records = ShardRecords(self._folder / _SHARDS, self.jobs, self._folder)

    def begin(self, shard: Shard | None) -> list[Job]:
        """Return the pictures that are left to do.

        Args:
            shard: the part of this job; None for all pictures.

        Raises:
            ValueError: see `ShardRecords.begin`.
        """
        if shard is not None:
            self._records.begin(shard)
        return self.without_result(shard)

    def finish(self, shard: Shard) -> None:
        """Note that a shard is done; pictures without a result are those that cannot be read."""
        self._check_still_there()
        self._records.finish(shard, self.without_result(shard))

    def check_shards(self) -> None:
        """Check that all shards are done.

        Raises:
            ValueError: see `ShardRecords.check_done`.
        """
        self._records.check_done(self.without_result())

    def without_result(self, shard: Shard | None = None) -> list[Job]:
        """Return the pictures, of a shard or of all, that have no result."""
        return unfinished(shard.of(self.jobs) if shard else self.jobs, [_ENDING])

    def done(self) -> list[Job]:
        """Return the pictures that have a result, in the order of the run."""
        return [job for job in self.jobs if job.outputs([_ENDING])[0].exists()]

    def write(
        self, job: Job, result: Any, *, num_classes: int, options: RegionOptions, merging: PanopticOptions | None = None
    ) -> None:
        """Keep the regions of a picture's `Segmentation`.

        Args:
            job: the picture.
            result: its segmentation.
            num_classes: C.
            options: which regions.
            merging: how queries become regions; None takes those of the label map.

        Raises:
            FileNotFoundError: the run was ended by another job.
        """
        from san.inference.segments import query_segments
        from san.labelling.regions import find_regions

        if merging is None:
            found = find_regions(result.labels, result.best_scores, num_classes, options)
        else:
            found = query_segments(result.evidence, result.vocabulary, merging, options).regions
        self._check_still_there()
        write_together({job.outputs([_ENDING])[0]: found.save})

    def images(self, jobs: Sequence[Job]) -> tuple[list[partial[LabelledImage]], list[str]]:
        """Return, for `san.labelling.sets.write_sets`, functions that load the pictures, and their names."""
        names = [picture_name(job, self._folder) for job in jobs]
        return [partial(_load_image, job, name) for job, name in zip(jobs, names, strict=True)], names

    def remove(self) -> None:
        """Remove all unfinished results; at once for other jobs, which then stop."""
        if self._top.exists():
            aside = self._top.with_name(f"{UNFINISHED}.{secrets.token_hex(4)}{PARTIAL}")
            self._top.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _check_still_there(self) -> None:
        if not (self._folder / SETTINGS).exists():
            raise FileNotFoundError(
                f"{str(self._folder)!r} has gone: another job has written the sets, or begun again with --overwrite"
            )


def _load_image(job: Job, name: str) -> LabelledImage:
    from san.labelling.regions import RegionMap
    from san.labelling.sets import LabelledImage

    return LabelledImage(job.image, name, RegionMap.load(job.outputs([_ENDING])[0]))

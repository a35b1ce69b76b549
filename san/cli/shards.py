"""Shards: the pictures of `san predict` and `san label` divided among many jobs, which share one folder of results."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.io.errors import excerpt, listed
from san.io.files import write_whole
from san.io.plain_file import read_plain_file

if TYPE_CHECKING:
    from san.cli.jobs import Job

SETTINGS = "settings.json"
"""Name of a description in the folder of the jobs that share it."""

_NUM_SHOWN = 5


@dataclass(frozen=True)
class Shard:
    """One of several parts of the pictures.

    Attributes:
        index: 0 .. count - 1.
        count: number of parts.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs of this part, in the order of their results' names.

        The parts are disjoint and together whole, and differ in size by one picture at most. They depend on nothing but
        the names of the results, neither on the order of `jobs` nor on what is done already.
        """
        return _ordered(jobs)[self.index :: self.count]


def shard_option(text: str) -> Shard:
    """Parse --shard."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or not int(found[1]) < int(found[2]) <= 100_000:
        raise argparse.ArgumentTypeError(
            f"{excerpt(text)} is not I/N with I from 0 to N - 1; of 16 shards, the first is 0/16 and the last 15/16"
        )
    return Shard(int(found[1]), int(found[2]))


def _ordered(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: job.stem.as_posix())


def picture_name(job: Job, out: Path) -> str:
    """Return a picture's path within a set or below a folder of results, with / between folders."""
    return job.stem.relative_to(out).as_posix() + os.path.splitext(job.image.name)[1]


def describe_pictures(names: Sequence[str]) -> dict[str, Any]:
    """Return what the jobs of one run must agree on about their pictures.

    Args:
        names: of all pictures, see `picture_name`; in any order.
    """
    text = "\0".join(sorted(names)).encode("utf-8", "surrogateescape")
    return {"number of pictures": len(names), "list of pictures (SHA-256)": hashlib.sha256(text).hexdigest()}


def join_jobs(folder: Path, description: Mapping[str, Any], *, remedy: str) -> Path:
    """Return the folder that all jobs of one description share: ``<folder>/<digest of the description>``.

    Jobs of different descriptions cannot mix their files, also when they start at the same moment. The description is
    written to SETTINGS.

    Args:
        folder: folder of such folders; created.
        description: plain data.
        remedy: what a user whose job has another description can do, for the message.

    Raises:
        ValueError: there are jobs of another description.
    """
    text = json.dumps(dict(description), sort_keys=True)
    own = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    _refuse_others(folder, own, description, remedy)
    if not (own / SETTINGS).exists():
        write_whole(own / SETTINGS, text)
        _refuse_others(folder, own, description, remedy)  # that began at the same moment
    return own


def _refuse_others(folder: Path, own: Path, description: Mapping[str, Any], remedy: str) -> None:
    for other in sorted(folder.glob(f"*/{SETTINGS}")):
        if other.parent == own:
            continue
        found = _read_mapping(other)
        name = next(name for name in [*description, *found] if found.get(name) != description.get(name))
        records = sorted(path.name.replace("_of_", "/")[: -len(".json")] for path in other.parent.rglob("*_of_*.json"))
        which = f"the run of shard {listed(records, _NUM_SHOWN)}" if records else "the run"
        raise ValueError(
            f"{which} in {str(other.parent)!r} has another {name}, {excerpt(found.get(name))} instead of "
            f"{excerpt(description.get(name))}; {remedy}"
        )


def _read_mapping(path: Path) -> dict[str, Any]:
    found = read_plain_file(path, "file of shared work")
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} is damaged; remove it")
    return found


def _record_name(shard: Shard) -> str:
    return f"{shard.index}_of_{shard.count}.json"


class ShardRecords:
    """Which shards of a run have begun and which are done: one file each, in a folder that all jobs share.

    Args:
        folder: the folder; created by `begin`.
        jobs: all pictures of the run.
        out: folder below which the results are.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], out: Path) -> None:
        self.folder, self.jobs, self.out = folder, jobs, out
        self._pictures = describe_pictures([picture_name(job, out) for job in jobs])

    def begin(self, shard: Shard) -> None:
        """Note that a shard has begun.

        Raises:
            ValueError: other shards are of another number, or of other pictures.
        """
        file = self._join(shard.count) / _record_name(shard)
        if not file.exists():
            write_whole(file, json.dumps({"done": False}))

    def finish(self, shard: Shard, unreadable: Sequence[Job]) -> None:
        """Note that a shard is done, and which of its pictures have no result."""
        names = [picture_name(job, self.out) for job in unreadable]
        write_whole(self._join(shard.count) / _record_name(shard), json.dumps({"done": True, "unreadable": names}))

    def check_done(self, without_result: Sequence[Job]) -> None:
        """Check that every shard is done.

        Args:
            without_result: the pictures that have no result; their shards must have noted that they are unreadable.
                At least one shard must have begun.

        Raises:
            ValueError: a shard is missing, has not ended, is of another run or is there twice; the message names it.
        """
        records = self._read()
        waiting = [str(shard) for shard, record in records.items() if not record.get("done")]
        if waiting:
            raise ValueError(f"shard {listed(waiting, _NUM_SHOWN)} has not ended; wait for it, or run it again")
        unread = [{*record.get("unreadable", [])} for record in records.values()]
        missing = {picture_name(job, self.out) for job in without_result}
        for position, job in enumerate(_ordered(self.jobs)):
            index, name = position % len(records), picture_name(job, self.out)
            if name in missing and name not in unread[index]:
                raise ValueError(
                    f"shard {index}/{len(records)} is done, but has no result of {excerpt(name)}; run it again"
                )

    def _read(self) -> dict[Shard, dict[str, Any]]:
        """Return the record of every shard, in order."""
        settings = min(self.folder.glob(f"*/{SETTINGS}"))  # if there are others, `_join` refuses one of them
        count = _read_mapping(settings).get("number of shards", 0)
        folder = self._join(count)
        files = {each: folder / _record_name(each) for each in (Shard(index, count) for index in range(count))}
        names = {SETTINGS, *(file.name for file in files.values())}
        foreign = sorted(path.name for path in folder.glob("*.json") if path.name not in names)
        if foreign:
            raise ValueError(
                f"{str(folder / foreign[0])!r} is not the record of one of {count} shards, but a copy of one, or of "
                "another run; remove it"
            )
        absent = [str(shard) for shard, file in files.items() if not file.exists()]
        if absent:
            raise ValueError(f"shard {listed(absent, _NUM_SHOWN)} has not been run; run it with --shard, then --merge")
        return {shard: _read_mapping(file) for shard, file in files.items()}

    def _join(self, count: int) -> Path:
        """Return the folder of the records of a run of so many shards."""
        remedy = "give the same number and pictures, or finish the run with --resume alone"
        return join_jobs(self.folder, {"number of shards": count, **self._pictures}, remedy=remedy)

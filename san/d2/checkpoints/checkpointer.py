"""Checkpoints of a run: Detectron2's names and content, written whole or not at all, read strictly and safely."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from san.checkpoint import brings_clip, load_checkpoint_file, part_note, with_average
from san.clip.weights_file import read_tensors
from san.d2.api import DetectionCheckpointer, comm
from san.d2.checkpoints.run_folder import LAST, RECORD, recorded_run
from san.d2.processes import stopping
from san.errors import excerpt, one_line
from san.files import replacing, sha256_of
from san.hub.remote import CONFIG_FILE, WEIGHTS_FILE

SUM = ".sha256"
"""Ending of the file beside a checkpoint that holds its SHA-256, as sha256sum writes it."""

_SUM_LENGTH = 200  # characters of it that are read

logger = logging.getLogger("san.d2.checkpointer")


class SANCheckpointer(DetectionCheckpointer):
    """Reads own and published checkpoints as plain tensors, and refuses those that do not fit the model entirely.

    Files are ``model_0004999.pth`` ... ``model_final.pth`` with the keys model, trainer, iteration and run, the run's
    id; ``last_checkpoint`` names the latest, and beside each lies its SHA-256. With SOLVER.EMA there is also ema: the
    averaged weights, which are loaded as the model's unless training goes on (a trainer is loaded too).
    """

    failure = ""
    """Why the latest `save` did not write; "" if it did."""

    run_id = ""
    """Written into checkpoints; "" writes none."""

    _source = ""
    _asked: Sequence[str] | None = None

    loaded: Mapping[str, Any] = {}
    """What the latest `load` found of further objects, by name; on the CPU."""

    def save(self, name: str, *, latest: bool = True, **extra: Any) -> bool:
        """Writes a checkpoint; a killed process or a full disk leaves the former ones as they were.

        Args:
            name: of the file, without ``.pth``.
            latest: whether it is the one to resume from.
            **extra: further entries, such as the iteration.

        Returns:
            Whether it is written. Where it cannot be, a warning says why, and the run may go on.
        """
        if not self.save_dir or not self.save_to_disk:
            return True
        content = {"model": self.model.state_dict()} | part_note(self.model)
        content |= {key: each.state_dict() for key, each in self.checkpointables.items()} | extra
        content |= {"run": self.run_id} if self.run_id else {}
        path = Path(self.save_dir) / f"{name}.pth"
        try:
            write_checkpoint(content, path)
            if latest:
                self.tag_last_checkpoint(path.name)
        except OSError as error:
            self.failure = str(error.strerror or error)
            logger.warning(
                "The checkpoint %s could not be written (%s); earlier ones are untouched and training goes on. Make "
                "room before the next.",
                path,
                self.failure,
            )
            return False
        self.failure = ""
        logger.info("Saved %s", path)
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes a checkpoint the latest."""
        with replacing(Path(self.save_dir) / LAST, durable=True) as partial:
            partial.write_text(last_filename_basename, encoding="utf-8")

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return latest_checkpoint(self.save_dir) is not None

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume from, "" where there is none."""
        return str(latest_checkpoint(self.save_dir) or "")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint, or that of a folder (see `weights_file`): all of it, or nothing where a part is wrong.

        Args:
            path: a file, a folder or an address; "" loads nothing.
            checkpointables: names of the further objects to load; None loads all that the checkpoint has.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: it cannot be downloaded, is no checkpoint, or does not fit the model or an object that is named.
        """
        path = weights_file(path)
        self._source, self._asked = path, checkpointables
        try:
            content: dict[str, Any] = super().load(path, checkpointables)
        except (OSError, HTTPException, AssertionError) as error:  # the last of an address of an unknown kind
            if "://" not in path:
                raise
            raise ValueError(
                f"checkpoint {path} cannot be downloaded ({one_line(error, limit=300)}); correct the address, or "
                "download the file by hand and set MODEL.WEIGHTS to it"
            ) from error
        return content

    def _load_file(self, f: str) -> dict[str, Any]:
        return load_checkpoint_file(f, averaged=False)

    def _load_model(self, checkpoint: Any) -> None:
        """Hands over the whole content, so that the model sees what a slim file says of its CLIP."""
        self.loaded = {key: checkpoint[key] for key in self.checkpointables if key in checkpoint}
        for key in self.loaded if self._asked is None else self._asked:
            check = getattr(self.checkpointables[key], "check_state_dict", None)
            if check is not None:
                try:
                    check(checkpoint.get(key))
                except ValueError as error:
                    raise ValueError(f"training cannot go on from checkpoint {self._source}: {error}") from error
        goes_on = "trainer" in (self.loaded if self._asked is None else self._asked)
        self.model.load_state_dict(checkpoint if goes_on else with_average(checkpoint, self._source))


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a file of `torch.save` and its SHA-256 beside it; either all of it takes its place or nothing does.

    Raises:
        OSError: it cannot be written.
    """
    sum_file = path.with_name(path.name + SUM)
    with replacing(path, durable=True) as partial:
        with open(partial, "wb") as file:  # given a name, torch would write that name into the file
            recorder = _ErrorRecorder(file)
            try:
                torch.save(content, recorder)  # type: ignore[arg-type]
            except RuntimeError as error:  # what torch makes of a full disk
                stopping.check_interrupted()  # which torch takes for the file's failure
                reason = str(error).splitlines()[0]
                raise recorder.error or OSError(f"{path} cannot be written: {reason}") from error
        digest = sha256_of(partial)
        sum_file.unlink(missing_ok=True)  # a sum of the former content must not accuse the new one
    with replacing(sum_file, durable=True) as partial:
        partial.write_text(f"{digest}  {path.name}\n", encoding="utf-8")


class _ErrorRecorder:
    """A file that records the error of a failed write, which torch does not pass on."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint and its SHA-256."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + SUM).unlink(missing_ok=True)


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of the run in a folder.

    That is the one ``last_checkpoint`` names. If that is damaged or gone, or there is no readable ``last_checkpoint``,
    a warning says so, and the newest of the run's own is taken: those with the id in ``run.json``, else with that of
    the newest checkpoint.

    Args:
        folder: OUTPUT_DIR.

    Returns:
        None where there is no checkpoint, and no ``last_checkpoint``.

    Raises:
        ValueError: there are checkpoints, but no whole one of this run.
    """
    folder = Path(folder)
    named, problems = _tagged(folder)
    others = [path for path in folder.glob("model_*.pth") if path.stem != "model_best" and path != named]
    if named is None and not others:
        return None
    run = recorded_run(folder)
    for path in [*([named] if named else []), *sorted(others, key=_age, reverse=True)]:
        problem = damage_of(path)
        identity = None if problem else identity_of(path)
        if identity is not None:
            run = run or identity.run
            # what says nothing of its run, such as Detectron2's own, is taken only by its name
            if identity.run == run or (path == named and identity.run is None):
                if problems:
                    _warn_once(f"{'; '.join(problems)}; going on from the newest whole one, {path}")
                return path
            problem = f"checkpoint {path} is of another run than the one in {folder / RECORD}"
        problems.append(problem or "")
    raise ValueError(
        f"{'; '.join(problems)}: no checkpoint in {folder} can be gone on from; restore one, or start anew without "
        "--resume in another OUTPUT_DIR, where MODEL.WEIGHTS may name one of them"
    )


def _tagged(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that ``last_checkpoint`` names, and what is wrong with that file if it names none."""
    tag = folder / LAST
    if not tag.is_file():
        return None, [f"{tag} is missing"]
    try:
        with open(tag, encoding="utf-8") as file:
            name = Path(file.read(1000).strip()).name
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"{tag} cannot be read ({one_line(error)})"]
    if not name.isprintable() or not 0 < len(name) <= 255:
        return None, [f"{tag} names no checkpoint, but {excerpt(name)}"]
    return folder / name, []


class Identity(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        run: id of the run that wrote it; None where it says nothing.
        iteration: the last one that was done; None where it says nothing.
    """

    run: str | None
    iteration: int | None


def identity_of(path: Path) -> Identity | None:
    """What a checkpoint says of itself; None where it cannot be read."""
    try:
        state = path.stat()
        return _known_identity(path, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _known_identity(path: Path, modified: int, size: int) -> Identity:
    content = read_tensors(path)
    run, iteration = (content.get(key) if isinstance(content, dict) else None for key in ("run", "iteration"))
    return Identity(run if isinstance(run, str) else None, iteration if type(iteration) is int else None)


def _age(path: Path) -> tuple[float, bool, str]:
    """Sorts checkpoints of a run by their iteration; of one that says nothing, by its name."""
    identity = identity_of(path)
    number = path.stem.removeprefix("model_")
    unknown = float(number) if number.isdecimal() else math.inf
    iteration = unknown if identity is None or identity.iteration is None else identity.iteration
    return iteration, path.stem == "model_final", path.name


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None if it is whole."""
    if not path.is_file():
        return f"checkpoint {path} does not exist"
    sum_file = path.with_name(path.name + SUM)
    if sum_file.is_file():
        with open(sum_file, encoding="utf-8", errors="replace") as opened:
            wanted = opened.read(_SUM_LENGTH).split(" ", 1)[0]
        state = path.stat()
        whole = _known_sum(path, state.st_mtime_ns, state.st_size) == wanted
        return None if whole else f"checkpoint {path} is damaged: its SHA-256 is not that of {sum_file.name}"
    try:
        load_checkpoint_file(path, averaged=False)
    except ValueError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=16)
def _known_sum(path: Path, modified: int, size: int) -> str:
    """A file's SHA-256; a run asks several times for that of one large file."""
    return sha256_of(path)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def weights_file(path: str) -> str:
    """The file that MODEL.WEIGHTS means.

    Args:
        path: a file, an address, "", or a folder: that of a run means its latest checkpoint, one of
            `san.hub.save_pretrained` the weights in it.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no weights.
        ValueError: as `latest_checkpoint`.
    """
    if not path or "://" in path:
        return path
    folder = Path(path)
    if not folder.is_dir():
        if not folder.is_file():
            raise FileNotFoundError(f"checkpoint {path} does not exist; correct MODEL.WEIGHTS or OUTPUT_DIR")
        return path
    if (folder / CONFIG_FILE).is_file():
        return weights_file(str(folder / WEIGHTS_FILE))
    found = latest_checkpoint(folder) or folder / "model_best.pth"
    if not found.is_file():
        raise FileNotFoundError(
            f"folder {path} is that of a run without a checkpoint (model_*.pth), and none of save_pretrained "
            f"({CONFIG_FILE}, {WEIGHTS_FILE}); train on with --resume, or name another"
        )
    return str(found)


def slim_note(path: str) -> dict[str, Any] | None:
    """What a checkpoint says of the CLIP that it leaves out.

    Args:
        path: MODEL.WEIGHTS.

    Returns:
        ``clip`` and ``clip_fingerprint`` as far as the file has them, nothing for "" and addresses; None where the file
        brings CLIP's weights itself, so that they need not be had from anywhere else; or where the main process alone
        can read it, and sends them.

    Raises:
        FileNotFoundError, ValueError: as loading it would.
    """
    try:
        path = weights_file(path)
    except FileNotFoundError:
        if comm.is_main_process():
            raise
        return None  # a machine that shares no disk with the main process's, which sends it all weights
    if not path or "://" in path:
        return {}
    content = load_checkpoint_file(path, averaged=False)
    if brings_clip(content["model"]):
        return None
    return {key: content[key] for key in ("clip", "clip_fingerprint") if key in content}


def starting_weights(weights: str, folder: str, *, resume: bool) -> str:
    """The checkpoint a run starts from.

    Args:
        weights: MODEL.WEIGHTS.
        folder: OUTPUT_DIR.
        resume: whether to prefer the latest checkpoint of the folder.

    Returns:
        Its path; "" for none.

    Raises:
        ValueError: as `latest_checkpoint`.
    """
    latest = latest_checkpoint(folder) if resume else None
    return str(latest or weights_file(weights))


def run_of(folder: str | Path) -> str:
    """The id of the run in a folder that is to go on; "" where nothing says it.

    Raises:
        ValueError: as `latest_checkpoint`.
    """
    latest = latest_checkpoint(folder)
    identity = latest and identity_of(latest)
    return recorded_run(Path(folder)) or (identity.run if identity else None) or ""

"""Checkpoints of a run, with Detectron2's names and content: written atomically, read strictly and safely."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import nn

from san.checkpoint import brings_clip, load_checkpoint_file, part_note, with_average
from san.clip.weights_file import read_tensors
from san.d2.api import DetectionCheckpointer, comm
from san.d2.checkpoints.run_folder import LAST, RECORD, recorded_run
from san.d2.processes import stopping
from san.hub.remote import CONFIG_FILE, WEIGHTS_FILE
from san.io.errors import excerpt, one_line
from san.io.files import replacing, sha256_of, write_whole

_SUM_SUFFIX = ".sha256"
"""Suffix of the file with a checkpoint's SHA-256, in the format of sha256sum."""

_SUM_LENGTH = 200  # maximum number of characters read

logger = logging.getLogger("san.d2.checkpointer")


class SANCheckpointer(DetectionCheckpointer):
    """Saves checkpoints, and loads SAN's and published ones as plain tensors if they fit the whole model.

    Files are ``model_0004999.pth`` ... ``model_final.pth`` with the keys model, trainer, iteration and run (the run's
    id). ``last_checkpoint`` names the latest file; the SHA-256 of each is saved next to it. With SOLVER.EMA, the key
    ema has the averaged weights. They are loaded as the model's unless a trainer is loaded too, to resume training.

    Args:
        model: see Detectron2's ``DetectionCheckpointer``.
        save_dir: the run's OUTPUT_DIR.
        run_id: id of the run, written into checkpoints; "" writes none.
        **checkpointables: further objects that are saved and loaded, by name.
    """

    failure = ""
    """Error of the latest `save`; "" if it succeeded."""

    _source = ""
    _requested: Sequence[str] | None = None

    loaded: Mapping[str, Any] = {}
    """States of further objects that the latest `load` found, by name; on the CPU."""

    def __init__(self, model: nn.Module, save_dir: str = "", *, run_id: str = "", **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.run_id = run_id

    def save(self, name: str, *, latest: bool = True, **extra: Any) -> bool:
        """Write a checkpoint. If the process is killed or the disk is full, earlier ones remain unchanged.

        Args:
            name: file name without ``.pth``.
            latest: make it the checkpoint to resume from.
            **extra: further entries, such as the iteration.

        Returns:
            whether it was written. If not, a warning logs the reason, and the run may continue.
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
                "The checkpoint %s could not be written (%s); earlier ones are unchanged and training continues. Free "
                "disk space before the next checkpoint.",
                path,
                self.failure,
            )
            return False
        self.failure = ""
        logger.info("Saved %s", path)
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a checkpoint the latest one."""
        write_whole(Path(self.save_dir) / LAST, last_filename_basename, durable=True)

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint to resume from exists."""
        return latest_checkpoint(self.save_dir) is not None

    def get_checkpoint_file(self) -> str:
        """Return the checkpoint to resume from; "" if there is none."""
        return str(latest_checkpoint(self.save_dir) or "")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint, or that of a folder (see `weights_file`). If any entry does not fit, nothing is loaded.

        Args:
            path: a file, a folder or a URL; "" loads nothing.
            checkpointables: names of further objects to load; None loads all in the checkpoint.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it cannot be downloaded, is not a checkpoint, or does not fit the model or a named object.
        """
        path = weights_file(path)
        self._source, self._requested = path, checkpointables
        try:
            content: dict[str, Any] = super().load(path, checkpointables)
        except (OSError, HTTPException, AssertionError) as error:  # AssertionError: unknown URL scheme
            if "://" not in path:
                raise
            raise ValueError(
                f"checkpoint {path} cannot be downloaded ({one_line(error, limit=300)}); correct the URL, or "
                "download the file manually and set MODEL.WEIGHTS to it"
            ) from error
        return content

    def _load_file(self, f: str) -> dict[str, Any]:
        return load_checkpoint_file(f, averaged=False)

    def _load_model(self, checkpoint: Any) -> None:
        """Load the model from all entries of the file, because a slim file also has a note about its CLIP."""
        self.loaded = {key: checkpoint[key] for key in self.checkpointables if key in checkpoint}
        for key in self.loaded if self._requested is None else self._requested:
            check = getattr(self.checkpointables[key], "check_state_dict", None)
            if check is not None:
                try:
                    check(checkpoint.get(key))
                except ValueError as error:
                    raise ValueError(f"training cannot resume from checkpoint {self._source}: {error}") from error
        goes_on = "trainer" in (self.loaded if self._requested is None else self._requested)
        self.model.load_state_dict(checkpoint if goes_on else with_average(checkpoint, self._source))


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a file with `torch.save`, atomically, and its SHA-256 next to it.

    Raises:
        OSError: the file cannot be written.
    """
    sum_file = path.with_name(path.name + _SUM_SUFFIX)
    with replacing(path, durable=True) as partial:
        with open(partial, "wb") as file:  # given a path, torch would store it in the file
            recorder = _ErrorRecorder(file)
            try:
                torch.save(content, recorder)  # type: ignore[arg-type]
            except RuntimeError as error:  # raised by torch if the disk is full
                stopping.check_interrupted()  # torch replaces KeyboardInterrupt, too
                reason = str(error).splitlines()[0]
                raise recorder.error or OSError(f"{path} cannot be written: {reason}") from error
        digest = sha256_of(partial)
        sum_file.unlink(missing_ok=True)  # the old sum does not match the new content
    write_whole(sum_file, f"{digest}  {path.name}\n", durable=True)


class _ErrorRecorder:
    """A file that records the error of a failed write, which torch does not raise."""

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
    """Remove a checkpoint and its SHA-256."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + _SUM_SUFFIX).unlink(missing_ok=True)


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest undamaged checkpoint of the run in a folder.

    ``last_checkpoint`` usually names it. If that checkpoint is damaged or missing, or ``last_checkpoint`` cannot be
    read, a warning is logged and the newest checkpoint of the run is used. The run's id is read from ``run.json``, else
    from the newest checkpoint.

    Args:
        folder: OUTPUT_DIR.

    Returns:
        the path; None if there is no checkpoint and no ``last_checkpoint``.

    Raises:
        ValueError: there are checkpoints, but no undamaged one of this run.
    """
    folder = Path(folder)
    named, problems = _named_checkpoint(folder)
    others = [path for path in folder.glob("model_*.pth") if path.stem != "model_best" and path != named]
    if named is None and not others:
        return None
    run = recorded_run(folder)
    for path in [*([named] if named else []), *sorted(others, key=_age_key, reverse=True)]:
        problem = damage_of(path)
        identity = None if problem else identity_of(path)
        if identity is not None:
            run = run or identity.run
            # a checkpoint without a run id, such as Detectron2's, is used only if last_checkpoint names it
            if identity.run == run or (path == named and identity.run is None):
                if problems:
                    _warn_once(f"{'; '.join(problems)}; resuming from the newest undamaged checkpoint, {path}")
                return path
            problem = f"checkpoint {path} belongs to another run than the one in {folder / RECORD}"
        problems.append(problem or "")
    raise ValueError(
        f"{'; '.join(problems)}: no checkpoint in {folder} can be resumed from; restore one, or start a new run "
        "without --resume in another OUTPUT_DIR, with MODEL.WEIGHTS set to one of them"
    )


def _named_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that ``last_checkpoint`` names, or None and the problem with that file."""
    tag = folder / LAST
    if not tag.is_file():
        return None, [f"{tag} is missing"]
    try:
        with open(tag, encoding="utf-8") as file:
            name = Path(file.read(1000).strip()).name
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"{tag} cannot be read ({one_line(error)})"]
    if not name.isprintable() or not 0 < len(name) <= 255:
        return None, [f"{tag} contains {excerpt(name)}, which is not the name of a checkpoint"]
    return folder / name, []


class Identity(NamedTuple):
    """Run and iteration of a checkpoint.

    Attributes:
        run: id of the run that wrote it; None if it has none.
        iteration: the last completed iteration; None if it has none.
    """

    run: str | None
    iteration: int | None


def identity_of(path: Path) -> Identity | None:
    """Return run and iteration of a checkpoint; None if it cannot be read."""
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


def _age_key(path: Path) -> tuple[float, bool, str]:
    """Return the sort key of a checkpoint: its iteration, or its name if it has none."""
    identity = identity_of(path)
    number = path.stem.removeprefix("model_")
    unknown = float(number) if number.isdecimal() else math.inf
    iteration = unknown if identity is None or identity.iteration is None else identity.iteration
    return iteration, path.stem == "model_final", path.name


def damage_of(path: Path) -> str | None:
    """Return a description of the damage of a checkpoint file; None if it is undamaged."""
    if not path.is_file():
        return f"checkpoint {path} does not exist"
    sum_file = path.with_name(path.name + _SUM_SUFFIX)
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
    """Return the SHA-256 of a file; cached, as a run needs it several times for a large file."""
    return sha256_of(path)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def weights_file(path: str) -> str:
    """Return the file that MODEL.WEIGHTS refers to.

    Args:
        path: a file, a URL, "", or a folder. A run's folder gives its latest checkpoint; a folder of
            `san.hub.save_pretrained` gives the weights in it.

    Raises:
        FileNotFoundError: the file does not exist, or the folder contains no weights.
        ValueError: see `latest_checkpoint`.
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
            f"folder {path} contains neither a checkpoint of a run (model_*.pth) nor the files of save_pretrained "
            f"({CONFIG_FILE}, {WEIGHTS_FILE}); continue training with --resume, or use another folder"
        )
    return str(found)


def slim_note(path: str) -> dict[str, Any] | None:
    """Return the note of a checkpoint about the CLIP that it does not contain.

    Args:
        path: MODEL.WEIGHTS.

    Returns:
        ``clip``, ``clip_fingerprint`` and ``clip_tensors`` if the file has them; an empty dict for "" and URLs; None if
        the file contains CLIP's weights, or if only the main process can read it and sends all weights.

    Raises:
        FileNotFoundError, ValueError: as when loading it.
    """
    try:
        path = weights_file(path)
    except FileNotFoundError:
        if comm.is_main_process():
            raise
        return None  # no disk shared with the main process, which sends all weights
    if not path or "://" in path:
        return {}
    content = load_checkpoint_file(path, averaged=False)
    if brings_clip(content):
        return None
    return {key: content[key] for key in ("clip", "clip_fingerprint", "clip_tensors") if key in content}


def starting_weights(weights: str, folder: str, *, resume: bool) -> str:
    """Return the checkpoint that a run starts from.

    Args:
        weights: MODEL.WEIGHTS.
        folder: OUTPUT_DIR.
        resume: whether to prefer the latest checkpoint of the folder.

    Returns:
        its path; "" for none.

    Raises:
        ValueError: see `latest_checkpoint`.
    """
    latest = latest_checkpoint(folder) if resume else None
    return str(latest or weights_file(weights))


def run_of(folder: str | Path) -> str:
    """Return the id of the run to resume in a folder; "" if it is unknown.

    Raises:
        ValueError: see `latest_checkpoint`.
    """
    latest = latest_checkpoint(folder)
    identity = latest and identity_of(latest)
    return recorded_run(Path(folder)) or (identity.run if identity else None) or ""

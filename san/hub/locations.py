"""Finds the file of a named model: in the project, downloaded manually, in the hub's cache, or on the hub."""

from __future__ import annotations

from pathlib import Path

from san.hub.remote import HubFile, cached_file, fetch, hand_folder
from san.hub.table import KnownModel


def find_known(
    known: KnownModel,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the file of a named model: the project's, one downloaded manually, or the hub's.

    Raises:
        FileNotFoundError, ValueError: see `san.hub.remote.fetch`.
    """
    if known.path is not None:
        return known.path
    if revision is None and (here := find_here(known, cache_dir=cache_dir)):
        return here
    wanted = HubFile(known.repo_id, known.file, known.repo_type, revision)
    return fetch(wanted, cache_dir=cache_dir, local_files_only=local_files_only, put_into=hand_folder(cache_dir))


def find_here(known: KnownModel, *, cache_dir: str | Path | None = None) -> Path | None:
    """Return the file of a named model if it is on this machine, else None; does not use the network."""
    if known.path is not None:
        return known.path
    by_hand = hand_folder(cache_dir)
    if by_hand and (by_hand / known.file).is_file():
        return by_hand / known.file
    return cached_file(HubFile(known.repo_id, known.file, known.repo_type), cache_dir=cache_dir)

"""Text embeddings on disk, shared by later runs and other processes.

Legend: N embeddings of width E. A folder per text tower (its fingerprint: weights, architecture, tokenizer, templates)
contains immutable files of embeddings. A new file is written under a temporary name and then renamed, so readers see
only complete files, and any number of processes may read and write without a lock. Small files are merged from time to
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from san.io.errors import one_line, printable
from san.io.files import home_folder, replacing, user_path

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "~/.cache/san/text"
_FORMAT = "san-text-1"
_MAX_FILES = 64  # of one text tower, before they are merged
_MAX_ENTRIES = 32_768  # of one text tower; at a width of 512 that is 64 MB
_MAX_BYTES = 512 << 20  # of a file; as many entries of the widest CLIP, 2048, have half of that


def default_folder() -> Path | None:
    """Return `DEFAULT_FOLDER` without ``~``; None if the user has no home folder."""
    return home_folder(DEFAULT_FOLDER)


def resolve_folder(setting: str | Path | None, cache_root: str | None = None) -> Path | None:
    """Return the folder of a setting.

    Args:
        setting: "auto", a folder, or "" or None for no cache on disk.
        cache_root: the folder of all caches of SAN (SAN_CACHE), for "auto".

    Returns:
        None for no cache on disk, also for "auto" without a home folder.

    Raises:
        ValueError: a folder begins with ``~`` and that home folder does not exist.
    """
    if setting is None or setting == "":
        return None
    if setting != "auto":
        return user_path(str(setting), "the text cache's folder")
    return user_path(cache_root, "SAN_CACHE") / "text" if cache_root else default_folder()


class TextCache:
    """The embeddings of one text tower on disk.

    If a file cannot be read or written, a warning is logged once, and the embeddings are recomputed or not stored.

    Args:
        root: folder of all text towers' embeddings; made when the first is written.
        fingerprint: identifies the text tower, as a file name.
        max_entries: maximum number of embeddings; the oldest are dropped when files are merged.
        width: E of valid files; None accepts any.
    """

    def __init__(
        self, root: Path, fingerprint: str, *, max_entries: int = _MAX_ENTRIES, width: int | None = None
    ) -> None:
        self.root, self.folder = Path(root), Path(root) / fingerprint
        self._max_entries, self._width = max_entries, width
        self._entries: dict[str, Tensor] = {}
        self._read: set[str] = set()
        self._can_write = True

    def load(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the stored embeddings (E,) float32 of these texts, by text."""
        keys = {text: _key(text) for text in texts}
        if not all(key in self._entries for key in keys.values()):
            self._read_files()
        return {text: self._entries[key] for text, key in keys.items() if key in self._entries}

    def store(self, embeddings: Mapping[str, Tensor]) -> None:
        """Store embeddings (E,) of texts."""
        if not embeddings or not self._can_write:
            return
        fresh = {_key(text): value.detach().float().cpu() for text, value in embeddings.items()}
        try:
            self._read.add(self._write(fresh))
            self._entries.update(fresh)
            if len(self._files()) > _MAX_FILES:
                self._merge()
        except OSError as error:
            self._can_write = False
            logger.warning(
                "text embeddings cannot be kept in %s (%s): each run recomputes them; make the folder writable, "
                "choose another or switch the cache off",
                self.folder,
                error,
            )

    def _files(self) -> list[Path]:
        """Return the files of embeddings, oldest first."""
        try:
            found = [entry for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")]
            # names with a dot are being written; a pipe or device would never end
            names = [entry.name for entry in found if not entry.name.startswith(".") and os.path.isfile(entry.path)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        files = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # merged by another process
                files.append(((self.folder / name).stat().st_mtime_ns, name))
        return [self.folder / name for _, name in sorted(files)]

    def _read_files(self) -> None:
        """Read files that were not read yet."""
        damaged: list[str] = []
        try:
            for path in self._files():
                if path.name not in self._read:
                    self._entries.update(self._contents(path, damaged))
                    self._read.add(path.name)
        except OSError as error:
            logger.warning("text embeddings in %s cannot be read (%s): they are recomputed", self.folder, error)
        self._report(damaged)

    def _report(self, damaged: Sequence[str]) -> None:
        """Log one warning for all damaged files."""
        if damaged:
            logger.warning(
                "%d file(s) of text embeddings are damaged and were removed, such as %s: they are recomputed",
                len(damaged),
                damaged[0],
            )

    def _contents(self, path: Path, damaged: list[str]) -> dict[str, Tensor]:
        """Return the embeddings of a file; a damaged one is removed and added to `damaged`."""
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_BYTES + 1) if path.stat().st_size <= _MAX_BYTES else b""
        except FileNotFoundError:  # merged by another process, whose file is read too
            return {}
        try:
            return _decode(content, self._width)
        except ValueError as error:
            damaged.append(f"{printable(str(path))} ({one_line(error, limit=300)})")
            with contextlib.suppress(OSError):
                path.unlink()
            return {}

    def _write(self, entries: Mapping[str, Tensor]) -> str:
        """Write one file, and return its name, a hash of the content."""
        content = _encode(entries)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(content)
        return path.name

    def _merge(self) -> None:
        """Merge all files into one, then remove those whose content it contains."""
        merged: dict[str, Tensor] = {}
        damaged: list[str] = []
        files = self._files()
        for path in files:
            for key, value in self._contents(path, damaged).items():
                merged.pop(key, None)  # a later file renews an entry
                merged[key] = value
        self._report(damaged)
        kept = dict(list(merged.items())[-self._max_entries :])
        name = self._write(kept)
        self._read.add(name)
        for path in files:
            if path.name != name:
                path.unlink(missing_ok=True)


def _key(text: str) -> str:
    """Return the key of a text in a file: a hash, so that words cannot be read from it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _encode(entries: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    table = torch.stack(list(entries.values())).contiguous()  # (N, E)
    keys = json.dumps(list(entries))
    header = {"format": _FORMAT, "keys": keys, "sha256": _checksum(keys, table)}
    return save({"embeddings": table}, metadata=header)


def _decode(content: bytes, width: int | None = None) -> dict[str, Tensor]:
    """Decode the content of a file.

    Raises:
        ValueError: it is damaged, too large, or has another format or width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        table = load(content)["embeddings"]
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        keys = json.loads(header["keys"])
        if header["format"] != _FORMAT:
            raise ValueError("it has another format")
        if table.dtype != torch.float32 or table.ndim != 2 or table.shape[1] != (width or table.shape[1]):
            raise ValueError(f"it holds no embeddings of width {width or 'E'} in single precision")
        if header["sha256"] != _checksum(header["keys"], table):
            raise ValueError("its checksum is wrong")
        if not torch.isfinite(table).all():
            raise ValueError("it holds NaN or infinite embeddings")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) < len(keys):
            raise ValueError("its texts are not a list of distinct keys")
        return dict(zip(keys, table.unbind(), strict=True))
    except (SafetensorError, LookupError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _checksum(keys: str, table: Tensor) -> str:
    return hashlib.sha256(keys.encode() + table.float().contiguous().numpy().tobytes()).hexdigest()

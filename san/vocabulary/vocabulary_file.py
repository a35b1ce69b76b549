"""The file of a vocabulary that was made from examples: classes, their vectors, and what these were made from.

A ``.safetensors`` file with the tensors `TENSORS`, and the metadata ``format``, ``version``, ``clip`` and ``classes``
(JSON). With a bank also `BANK_TENSORS` and ``bank`` (JSON). C classes, N examples, E joint embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.io.errors import brief_repr, excerpt, one_line
from san.io.files import check_file_size, replacing
from san.record import parse_json, read_record
from san.vocabulary.bank import BankOptions, BankSettings
from san.vocabulary.classes import KINDS, ClassText, ClassVector, check_distinct, named_class, text_key

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

ENDING = ".safetensors"
FORMAT, VERSION, BANK_VERSION = "san-vocabulary", "1", "2"
TENSORS = ("vectors", "probe", "examples", "example_class", "word_share", "bias")
BANK_TENSORS = ("bank_mean", "bank_whitening")
_MAX_BYTES, _MAX_HEADER = 1 << 30, 4 << 20


@dataclass(frozen=True, eq=False)
class LearntClasses:
    """Classes that were made from examples, and what they were made from.

    Attributes:
        classes: C classes; one without a vector is embedded from its words.
        clip: name of the CLIP whose joint space the vectors are in.
        probe: (E,), see `ClassVector`.
        examples: (N, E), the embedding of each example, unit length; float16 if there is a bank.
        example_class: (N,) int64, index of its class.
        word_share: (C,), share of the words in the vector of each class, 0..1.
        bias: (C,), what calibration added to the class's logit.
        bank: how masks are compared with single examples, too; None if they are not. See `with_bank`.

    Raises:
        ValueError: shapes do not agree, a value is NaN or infinite, or classes are equal.
    """

    classes: tuple[ClassText, ...]
    clip: str
    probe: Floats
    examples: Floats | npt.NDArray[np.float16]
    example_class: npt.NDArray[np.int64]
    word_share: Floats
    bias: Floats
    bank: BankSettings | None = None

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        import numpy as np

        count, width = len(self.classes), self.probe.size
        check_distinct(self.classes, "the vocabulary")
        wanted: dict[str, tuple[int, ...]] = {
            "probe": (width,),
            "examples": (len(self.example_class), width),
            "example_class": (len(self.example_class),),
            "word_share": (count,),
            "bias": (count,),
        }
        kinds = {"example_class": np.int64, "examples": np.float32 if self.bank is None else np.float16}
        for name, shape in wanted.items():
            found = getattr(self, name)
            kind = kinds.get(name, np.float32)
            if found.shape != shape or found.dtype != kind:
                raise ValueError(
                    f"{name} has shape {found.shape} and type {found.dtype}, not {shape} and {np.dtype(kind)}"
                )
            if not np.isfinite(found).all():
                raise ValueError(f"{name} holds NaN or infinite values")
        if not ((self.example_class >= 0) & (self.example_class < count)).all():
            raise ValueError(f"example_class holds an index outside of 0..{count - 1}")
        for each in self.classes:
            values = np.frombuffer(each.vector.values, "<f4") if each.vector else self.probe
            if values.shape != (width,) or not np.isfinite(values).all():
                raise ValueError(f"the vector of class {excerpt(each.name)} is not {width} finite numbers")
        if self.bank is not None:
            _check_bank(self.bank, width)

    def with_bank(self, bank: BankSettings) -> LearntClasses:
        """Return the same classes, with whose examples masks are compared, too."""
        import numpy as np

        examples = self.examples.astype("<f2")
        classes = [
            each if each.vector is None else replace(each, vector=replace(each.vector, examples=rows, bank=bank))
            for index, each in enumerate(self.classes)
            for rows in [examples[self.example_class == index].tobytes()]
        ]
        return replace(self, classes=tuple(classes), examples=examples.astype(np.float16), bank=bank)

    def counts(self) -> dict[str, int]:
        """Return the number of examples of each class, by name."""
        found = self.example_class.tolist()
        return {each.name: found.count(index) for index, each in enumerate(self.classes)}

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all; folders are created.

        Raises:
            ValueError: see `check_target`; or the file would be larger than is read.
            OSError: it cannot be written.
        """
        import numpy as np
        from safetensors.numpy import save

        path = Path(path)
        check_target(path)
        vectors = np.zeros((len(self.classes), self.probe.size), np.float32)
        rows = []
        for index, each in enumerate(self.classes):
            texts = {"prompts": each.prompts} if each.prompts else {"synonyms": each.synonyms}
            rows.append({"name": each.name, **texts, "vector": each.vector is not None})
            if each.vector is not None:
                vectors[index] = np.frombuffer(each.vector.values, "<f4")
        tensors = {name: getattr(self, name) for name in TENSORS[1:]} | {"vectors": vectors}
        note = {"format": FORMAT, "version": VERSION, "clip": self.clip, "classes": json.dumps(rows)}
        if self.bank is not None:
            note |= {"version": BANK_VERSION, "bank": json.dumps(asdict(self.bank.options))}
            whitening = np.frombuffer(self.bank.whitening, "<f4").reshape(-1, self.probe.size)
            tensors |= {"bank_mean": np.frombuffer(self.bank.mean, "<f4"), "bank_whitening": whitening}
        content = save({name: np.ascontiguousarray(each) for name, each in tensors.items()}, note)
        header = int.from_bytes(content[:8], "little")
        if len(content) > _MAX_BYTES or header > _MAX_HEADER:
            raise ValueError(
                f"the vocabulary file {path} would have {len(content):,} bytes, {header:,} of them names and prompts, "
                f"but at most {_MAX_BYTES:,} and {_MAX_HEADER:,} are read; use fewer examples or classes"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(content)


def read_learnt_classes(path: str | Path) -> LearntClasses:
    """Read a file of `LearntClasses.save`; no code in it is run.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, of another kind or version, or too large.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary file at {str(path)!r}; check the path")
    try:
        check_file_size(path, _MAX_BYTES)
        with open(path, "rb") as file:
            if int.from_bytes(file.read(8), "little") > _MAX_HEADER:
                raise ValueError("its header is longer than a vocabulary needs")
        with safe_open(path, framework="np") as content:
            note = content.metadata() or {}
            if note.get("format") != FORMAT:
                raise ValueError("it holds no vocabulary, but perhaps weights; `san vocab` writes vocabularies")
            names = {VERSION: TENSORS, BANK_VERSION: (*TENSORS, *BANK_TENSORS)}.get(note.get("version", ""))
            if names is None:
                known = f"{VERSION} and {BANK_VERSION}"
                raise ValueError(f"it has version {excerpt(note.get('version'))}, but this SAN reads {known}")
            if set(content.keys()) != set(names):
                raise ValueError(f"its tensors are {excerpt(sorted(content.keys()))}, not {', '.join(names)}")
            return _learnt(note, {name: content.get_tensor(name) for name in names})
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise ValueError(f"vocabulary file {path}: {one_line(error)}; make it again with `san vocab`") from error


def check_target(path: Path) -> None:
    """Check that a vocabulary file can have this path, before any work.

    Raises:
        ValueError: it does not end in ``.safetensors``, or it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"the vocabulary file {str(path)!r} is a folder; give the name of a file")
    if path.suffix.lower() != ENDING:
        raise ValueError(f"the vocabulary file {str(path)!r} ends in {path.suffix!r}; give a name ending in {ENDING}")


def _learnt(note: Mapping[str, str], tensors: Mapping[str, Any]) -> LearntClasses:
    """Return the content of a file, checked."""
    import numpy as np

    entries = ("clip", "classes") if note["version"] == VERSION else ("clip", "classes", "bank")
    for entry in entries:
        if entry not in note:
            raise ValueError(f"its metadata has no {entry!r}")
    rows, vectors = json.loads(note["classes"]), tensors["vectors"]
    if not isinstance(rows, list) or vectors.shape != (len(rows), tensors["probe"].size) or not len(rows):
        raise ValueError(f"its vectors have shape {vectors.shape}, which does not fit its classes and probe")
    for name in ("vectors", "probe"):
        if tensors[name].dtype != np.float32:
            raise ValueError(f"its {name} are {tensors[name].dtype}, not float32")
    probe = tensors["probe"].astype("<f4").tobytes()
    classes = [_class(row, vectors[index], note["clip"], probe) for index, row in enumerate(rows)]
    parts = {name: tensors[name] for name in TENSORS[1:]}
    if note["version"] == VERSION:
        return LearntClasses(tuple(classes), note["clip"], **parts)
    for name, kind in {"examples": np.float16, **dict.fromkeys(BANK_TENSORS, np.float32)}.items():
        if tensors[name].dtype != kind:
            raise ValueError(f"its {name} are {tensors[name].dtype}, not {np.dtype(kind)}")
    options = read_record(BankOptions, parse_json(note["bank"]), "bank.")
    bank = BankSettings(options, *(tensors[name].astype("<f4").tobytes() for name in BANK_TENSORS))
    parts["examples"] = parts["examples"].astype(np.float32)
    return LearntClasses(tuple(classes), note["clip"], **parts).with_bank(bank)


def _check_bank(bank: BankSettings, width: int) -> None:
    """Raise unless a bank's numbers are of embeddings of some width."""
    import numpy as np

    for name, values, count in (("mean", bank.mean, width), ("whitening", bank.whitening, width * width)):
        found = np.frombuffer(values, "<f4")
        if found.size != count or not np.isfinite(found).all():
            raise ValueError(f"the {name} of the bank is not {count} finite numbers")


def _class(row: Mapping[str, Any], vector: Floats, clip: str, probe: bytes) -> ClassText:
    """Return one class of a file."""
    has_vector = row["vector"]
    if not isinstance(has_vector, bool):
        raise ValueError(f"'vector' of a class is {excerpt(has_vector)}, not true or false")
    texts = {key: value for key, value in row.items() if key not in ("name", "vector")}
    each = named_class(row["name"], texts, KINDS)
    found = ClassVector(vector.astype("<f4").tobytes(), clip, probe) if has_vector else None
    return ClassText(each.name, each.synonyms, each.prompts, vector=found)


def with_learnt(classes: Sequence[str | ClassText], learnt: Sequence[ClassText]) -> tuple[str | ClassText, ...]:
    """Return classes, those with the name of a learnt one replaced by it.

    Args:
        classes: names or classes.
        learnt: classes of a vocabulary file; those without a vector replace nothing.

    Raises:
        ValueError: no class has such a name.
    """
    known = {text_key(each.name): each for each in learnt if each.vector is not None}
    names = [text_key(each.name if isinstance(each, ClassText) else each) for each in classes]
    if not known.keys() & {*names}:
        shown = excerpt([each.name for each in learnt[:5]])
        raise ValueError(f"none of the {len(classes)} classes is in the vocabulary file, which has {shown}")
    return tuple(known.get(name, each) for name, each in zip(names, classes, strict=True))

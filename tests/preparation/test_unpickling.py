"""Only plain data comes out of a pickle; anything else is refused before it runs."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from san.preparation.unpickling import load_plain_pickle

DATA = {
    "names": ["a", "b"], "counts": np.arange(6).reshape(2, 3), "flags": np.array([True, False]), "one": np.float32(1.5),
    "texts": np.array(["x", "yy"]), "objects": np.array([["p"], 3], dtype=object), "set": {1, 2}, "bytes": b"\xff",
    "order": np.asfortranarray(np.ones((2, 2))), "nothing": None, "pair": (1, 2.5, True),
}  # fmt: skip


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def write(path: Path, value: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_data_comes_back(protocol, tmp_path):
    back = load_plain_pickle(write(tmp_path / "x.pkl", DATA, protocol))
    assert back.keys() == DATA.keys()
    for key, value in DATA.items():
        np.testing.assert_array_equal(back[key], value)
        assert type(back[key]) is type(value)


def test_module_names_of_numpy_1_and_2(tmp_path):
    content = pickle.dumps({"a": np.arange(3)}, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    for old, new in ((b"", b""), (b"numpy.core.", b"numpy._core.")):
        path = tmp_path / "x.pkl"
        path.write_bytes(content.replace(old, new) if old else content)
        np.testing.assert_array_equal(load_plain_pickle(path)["a"], np.arange(3))


@pytest.mark.parametrize(
    ("evil", "asks_for"),
    [
        (Evil(os.system, ("touch {marker}",)), "posix.system"),
        (Evil(eval, ("open('{marker}', 'w')",)), "builtins?__?.eval"),
        (Evil(getattr, (np, "load")), "getattr"),
        (collections.Counter("aab"), "collections.Counter"),
        (np.ma.masked_array([1]), "numpy.ma"),
        (np.random.default_rng(0), "numpy.random"),
    ],
    ids=["system", "eval", "getattr", "Counter", "masked array", "generator"],
)
@pytest.mark.parametrize("place", ["alone", "in a dict", "in an object array"])
def test_everything_else_is_refused(evil, asks_for, place, tmp_path):
    marker = tmp_path / "ran"
    if isinstance(evil, Evil):
        function, arguments = evil.call
        text = [a.replace("{marker}", str(marker)) if isinstance(a, str) else a for a in arguments]
        if function is getattr:
            text = ["text", "upper"]
        evil = Evil(function, tuple(text))
    value = {"alone": evil, "in a dict": {"filename": [evil]}}.get(place)
    if value is None:
        value = np.empty(1, dtype=object)
        value[0] = evil
    path = write(tmp_path / "index.pkl", value)
    with pytest.raises(ValueError, match=f"index.pkl is refused: it refers to .*({asks_for}|_builtin)"):
        load_plain_pickle(path)
    assert not marker.exists()


def test_other_codecs_and_persistent_ids_are_refused(tmp_path):
    path = tmp_path / "index.pkl"
    path.write_bytes(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zipu0.".replace(b"u0.", b"tR."))
    with pytest.raises(ValueError, match="refused: it decodes text as 'zip'"):
        load_plain_pickle(path)
    path.write_bytes(b"Pelsewhere\n.")
    with pytest.raises(ValueError, match="refused: it refers to objects outside"):
        load_plain_pickle(path)


def test_damaged_and_missing_files(tmp_path):
    whole = pickle.dumps(DATA, protocol=2)
    path = tmp_path / "index.pkl"
    for content in (b"", b"not a pickle", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pickle .*index.pkl cannot be read .*unpack the download again"):
            load_plain_pickle(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_plain_pickle(tmp_path / "absent.pkl")


def opcodes(*parts: object) -> bytes:
    """A pickle by hand: bytes are opcodes, everything else is pickled in place."""
    return b"\x80\x02" + b"".join(p if isinstance(p, bytes) else pickle.dumps(p, 2)[2:-1] for p in parts) + b"."


DTYPE = b"cnumpy\ndtype\n"
STATE = (3, "|", None, ("a",), {}, 8, 1, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # a type whose field lies about holding objects: its bytes would be taken for addresses
        (opcodes(DTYPE, ("V8", False, True), b"R", STATE, b"b"), "refused: it contains an array of type 'V8'"),
        (opcodes(DTYPE, ("f8", False, True), b"R", STATE, b"b"), "refused: .* an array whose type has fields"),
        (opcodes(DTYPE, ("f8,O", False, True), b"R"), "refused: it contains an array of type"),
        (opcodes(DTYPE, ({"names": ["a"], "formats": ["O"]},), b"R"), "refused: it contains an array of type"),
        (opcodes(DTYPE, ("U0",), b"R"), "an item size of 0"),
        # a terabyte for nothing
        (opcodes(b"cnumpy\nndarray\n", ((1 << 40,),), b"R"), "cannot be read"),
        (opcodes(b"cnumpy\nndarray\n", ((4,), "O"), b"\x81"), "cannot be read"),
        (b"\x80\x04\x8e" + (1 << 45).to_bytes(8, "little") + b"x.", "cannot be read"),
        # room for two thousand million values, 16 GB, to remember one
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "refused: it uses memo index 2,147,483,647 where 0"),
        (
            opcodes(b"c_codecs\nencode\n", (None, {"__defaults__": ("a",)}), b"b"),
            "refused: it sets the attribute '__defaults__'",
        ),
        (opcodes(b"c_codecs\nencode\n", {"a": 1}, b"b"), "cannot be read"),
        (opcodes(b"cbuiltins\nset\n", (None, {"add": 1}), b"b"), "cannot be read"),
    ],
    ids=lambda value: None if isinstance(value, str) else "crafted",
)
def test_crafted_pickles_reach_nothing_of_numpy_s_own(content, message, tmp_path):
    path = tmp_path / "index.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_plain_pickle(path)


@pytest.mark.parametrize(
    "change", [{"kind": "O8"}, {"shape": (1 << 30,)}, {"content": b"C\x08" + bytes(8)}, {"content": [1.0, 2.0]}]
)
def test_an_array_must_fit_its_own_description(change, tmp_path):
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    path = tmp_path / "index.pkl"

    def write_array(kind: str = "f8", shape: tuple[int, ...] = (2,), content: object = b"C\x10" + bytes(16)) -> None:
        path.write_bytes(opcodes(empty, shape, DTYPE, (kind, False, True), b"R", False, content, b"tb"))

    write_array()
    np.testing.assert_array_equal(load_plain_pickle(path), np.zeros(2))
    write_array(**change)
    with pytest.raises(ValueError, match="cannot be read .*array of shape"):
        load_plain_pickle(path)

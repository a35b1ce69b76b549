"""Text embeddings on disk: reused, keyed by all they depend on, safe with many processes, recomputed if damaged."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from san.clip import text_cache
from san.clip.loader import load_clip
from san.clip.text_cache import TextCache, default_folder, resolve_folder
from san.clip.text_classifier import TextClassifier
from san.clip.text_tower import TextTower
from san.io.files import replacing
from san.model.build import build_san
from san.model.config import SANConfig, variant
from san.vocabulary.classes import ClassText


def embeddings(*texts: str) -> dict[str, torch.Tensor]:
    """Different for every text."""
    return {text: torch.full((4,), float(sum(text.encode()))) for text in texts}


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_what_is_stored_is_found_by_another_cache(tmp_path: Path) -> None:
    TextCache(tmp_path, "f").store(embeddings("a", "b"))
    TextCache(tmp_path, "f").store(embeddings("c"))
    found = TextCache(tmp_path, "f").load(["c", "a", "missing"])
    assert set(found) == {"a", "c"}
    torch.testing.assert_close(found, {text: embeddings(text)[text] for text in ("c", "a")})
    assert TextCache(tmp_path, "other weights").load(["a"]) == {}


def test_a_running_cache_sees_what_another_wrote_later(tmp_path: Path) -> None:
    reader = TextCache(tmp_path, "f")
    assert reader.load(["a"]) == {}
    TextCache(tmp_path, "f").store(embeddings("a"))
    assert set(reader.load(["a"])) == {"a"}


def test_files_do_not_show_words(tmp_path: Path) -> None:
    TextCache(tmp_path, "f").store(embeddings("private word"))
    (file,) = files(tmp_path)
    assert b"private" not in file.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "other"])
def test_a_damaged_file_is_reported_and_recomputed(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    TextCache(tmp_path, "f").store(embeddings("a"))
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    wrong = {"cut": content[:-3], "flipped": content, "empty": b"", "text": b"hello, world, this is not a tensor"}
    if damage == "other":
        from safetensors.torch import save

        wrong["other"] = save({"x": torch.ones(2)})
    file.write_bytes(wrong[damage])
    cache = TextCache(tmp_path, "f")
    with caplog.at_level(logging.WARNING):
        assert cache.load(["a"]) == {}
    assert "are damaged" in caplog.text
    assert str(file) in caplog.text
    cache.store(embeddings("a"))
    torch.testing.assert_close(TextCache(tmp_path, "f").load(["a"]), embeddings("a"))


def test_many_damaged_files_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        TextCache(tmp_path, "f").store(embeddings(f"a{number}"))
    for file in files(tmp_path):
        file.write_bytes(file.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        assert TextCache(tmp_path, "f").load(["a3"]) == {}
    (record,) = caplog.records
    assert "20 file(s) of text embeddings are damaged and were removed, such as " in record.getMessage()


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of this kind")
def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read without end, and 200 GB of nothing taken into memory."""
    TextCache(tmp_path, "f").store(embeddings("a"))
    os.mkfifo(tmp_path / "f" / "b.safetensors")
    (tmp_path / "f" / "c.safetensors").symlink_to("/dev/zero")
    (tmp_path / "f" / "d.safetensors").mkdir()
    (tmp_path / "f" / "l.safetensors").symlink_to("l.safetensors")
    with open(tmp_path / "f" / "e.safetensors", "wb") as sparse:
        sparse.truncate(200 << 30)
    assert set(TextCache(tmp_path, "f").load(["a", "b"])) == {"a"}
    assert sorted(path.name[0] for path in (tmp_path / "f").iterdir() if len(path.stem) == 1) == ["b", "c", "d", "l"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.int64, torch.complex64])
def test_embeddings_of_another_number_type_are_dropped(
    tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save

    TextCache(tmp_path, "f").store(embeddings("a"))
    (file,) = files(tmp_path)
    entries = text_cache._decode(file.read_bytes())
    table, keys = torch.stack([*entries.values()]).to(dtype), json.dumps([*entries])
    numbers = table.real if dtype.is_complex else table
    header = {"format": text_cache._FORMAT, "keys": keys, "sha256": text_cache._checksum(keys, numbers)}
    try:
        file.write_bytes(save({"embeddings": table}, metadata=header))
    except KeyError:
        pytest.skip(f"this release of safetensors has no {dtype}")
    assert TextCache(tmp_path, "f").load(["a"]) == {}
    assert "are damaged" in caplog.text and not files(tmp_path)


def test_embeddings_of_one_text_twice_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import save

    TextCache(tmp_path, "f").store(embeddings("a"))
    (file,) = files(tmp_path)
    ((key, value),) = text_cache._decode(file.read_bytes()).items()
    table, keys = torch.stack([value, -value]), json.dumps([key, key])
    header = {"format": text_cache._FORMAT, "keys": keys, "sha256": text_cache._checksum(keys, table)}
    file.write_bytes(save({"embeddings": table}, metadata=header))
    assert TextCache(tmp_path, "f").load(["a"]) == {} and "distinct keys" in caplog.text


@pytest.mark.parametrize("spoilt", [torch.full((4,), float("nan")), torch.ones(5)])
def test_embeddings_that_the_model_cannot_have_are_dropped(tmp_path: Path, spoilt: torch.Tensor) -> None:
    TextCache(tmp_path, "f").store({"a": spoilt})
    assert TextCache(tmp_path, "f", width=4).load(["a"]) == {}
    assert files(tmp_path) == []


def test_many_files_are_merged_and_the_oldest_entries_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cache, "_MAX_FILES", 3)
    cache = TextCache(tmp_path, "f", max_entries=5)
    for number in range(4):
        cache.store(embeddings(f"{number}a", f"{number}b"))
        os.utime(max(files(tmp_path), key=lambda path: path.stat().st_mtime_ns), ns=(number, number))
    assert len(files(tmp_path)) == 1
    found = TextCache(tmp_path, "f").load([f"{number}{letter}" for number in range(4) for letter in "ab"])
    assert len(found) == 5
    assert {"3a", "3b", "2a", "2b"} < set(found)


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = TextCache(tmp_path / "file", "f")
    with caplog.at_level(logging.WARNING):
        assert cache.load(["a"]) == {}
        cache.store(embeddings("a"))
        cache.store(embeddings("b"))
    assert caplog.text.count("cannot be kept") == 1


def _write_many(folder: Path, worker: int) -> None:
    text_cache._MAX_FILES = 4  # merge often, so that merging meets reading and writing
    cache = TextCache(folder, "f")
    for number in range(15):
        cache.store(embeddings(f"{worker}/{number}", f"shared {number}"))
        assert len(cache.load([f"{worker}/{number}", f"shared {number}"])) == 2


def test_many_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    workers = [context.Process(target=_write_many, args=(tmp_path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    wanted = [f"{worker}/{number}" for worker in range(4) for number in range(15)]
    wanted += [f"shared {number}" for number in range(15)]
    found = TextCache(tmp_path, "f").load(wanted)
    assert set(found) == set(wanted)
    torch.testing.assert_close(found, embeddings(*wanted))
    assert not list(tmp_path.rglob(".*"))


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, "f")
    cache.store(embeddings("a"))
    with replacing(cache.folder / "b.safetensors") as unfinished:
        unfinished.write_bytes(b"half")
        assert set(TextCache(tmp_path, "f").load(["a", "b"])) == {"a"}
        assert unfinished.read_bytes() == b"half"


def test_settings_name_a_folder() -> None:
    assert resolve_folder("auto") == default_folder()
    assert resolve_folder("auto", "/x") == Path("/x/text")
    assert resolve_folder("/y", "/x") == Path("/y")
    assert resolve_folder("") is None
    assert resolve_folder(None, "/x") is None


def test_no_test_writes_to_the_users_own_cache() -> None:
    assert not default_folder().is_relative_to(Path.home() / ".cache")
    assert Path(os.environ["SAN_CACHE"]) == default_folder().parent


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_san(variant("tiny")).text_classifier.state_dict()


def classifier(
    weights: dict[str, torch.Tensor], folder: Path | None, config: SANConfig | None = None
) -> tuple[TextClassifier, list[int]]:
    """A fresh one, as in a new process, and the numbers of prompts that go into its text tower."""
    fresh = build_san(config or variant("tiny")).text_classifier
    fresh.load_state_dict(weights)
    fresh.embedder.use_disk_cache(folder)
    passes: list[int] = []
    original = fresh.embedder._encode_prompts

    def count(tower: TextTower, tokens: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        passes.append(len(tokens))
        return original(tower, tokens, kinds)

    fresh.embedder._encode_prompts = count  # type: ignore[method-assign]
    return fresh, passes


def fingerprint(each: TextClassifier) -> str:
    return each.embedder.fingerprint(each)


WORDS = ["cat", ClassText("sofa", ("sofa", "couch")), ClassText("dog", prompts=("one dog",))]


def test_a_second_run_embeds_nothing(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    first, passes = classifier(weights, tmp_path)
    before = first.embed(WORDS)
    assert sum(passes) == 3 * 14 + 1
    second, passes = classifier(weights, tmp_path)
    assert torch.equal(second.embed(WORDS), before)
    assert passes == []
    second.embed(["couch", "bird"])
    assert sum(passes) == 14
    off, passes = classifier(weights, None)
    assert torch.equal(off.embed(WORDS), before)
    assert sum(passes) == 3 * 14 + 1
    assert len(files(tmp_path)) == 2


def test_other_weights_or_templates_do_not_share(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Down to one row of the token embedding, which a sample of the weights would miss."""
    first, _ = classifier(weights, tmp_path)
    before = first.embed(["cat"])
    changed = {key: value.clone() for key, value in weights.items()}
    row = int(first.embedder.tokenizer(["cat"])[0, 1])
    changed["token_embedding.weight"][row] += 1
    second, passes = classifier(changed, tmp_path)
    assert not torch.allclose(second.embed(["cat"]), before)
    assert sum(passes) == 14
    first.load_state_dict(changed)  # in place: the same classifier must notice
    assert torch.equal(first.embed(["cat"]), second.embed(["cat"]))
    from dataclasses import replace

    tiny = variant("tiny")
    plain, passes = classifier(weights, tmp_path, replace(tiny, clip=replace(tiny.clip, templates="plain")))
    plain.embed(["cat"])
    assert sum(passes) == 1
    assert len({fingerprint(each) for each in (first, classifier(weights, None)[0], plain)}) == 3


def test_the_learnt_no_object_does_not_matter(weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint of another training shares the frozen tower, and so the embeddings."""
    first, second = classifier(weights, None)[0], classifier(weights, None)[0]
    with torch.no_grad():
        second.no_object_embed += 1
    assert fingerprint(first) == fingerprint(second)


def test_unknown_words_are_reported_in_every_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        clip = load_clip("shapes", "shapes")
        classifier = build_san(variant("shapes"), clip=clip).text_classifier
        classifier.embedder.use_disk_cache(tmp_path)
        caplog.clear()
        classifier.embed(["red zebra"])
        assert caplog.text.count("'zebra'") == 1

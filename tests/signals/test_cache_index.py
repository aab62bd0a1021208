"""The index of a large cache, the journal of one that is being written, and a cache in an object store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from signals.cache_material import identity, sequences_of, write_cache

from stillroom.core.errors import CacheDamaged
from stillroom.recipe.capture import ThresholdCodec
from stillroom.signals.cache import parts, reader, writer
from stillroom.signals.cache.index import Index
from stillroom.signals.cache.manifest import JOURNAL, NAME, Manifest
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter

WHO = identity(ThresholdCodec(tau=0.1))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.binary(min_size=32, max_size=32), max_size=6), max_size=5), st.binary(min_size=32, max_size=32)
)
def test_every_address_is_found_where_it_was_first_and_no_other(shards: list[list[bytes]], other: bytes) -> None:
    index = Index.of_shards(
        (np.frombuffer(b"".join(shard), np.uint8).reshape(-1, 32), np.full(len(shard), number), np.zeros(len(shard)))
        for number, shard in enumerate(shards)
    )
    first: dict[bytes, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        for row, digest in enumerate(shard):
            first.setdefault(digest, (number, row))
    assert len(index) == len(first)
    assert list(index.digests()) == sorted(digest.hex() for digest in first)
    for digest, place in first.items():
        found = index.find(digest.hex())
        assert found is not None
        assert (int(found["shard"]), int(found["row"])) == place
    assert (index.find(other.hex()) is None) is (other not in first)
    assert index.find("short") is None


def test_a_large_cache_has_an_index_file_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sequences_of(7, 24)
    write_cache(tmp_path, text, WHO)
    plain = TeacherCache.open(tmp_path)
    monkeypatch.setattr(writer, "FROM_SEQUENCES", 5)
    again = CacheWriter.open(tmp_path, WHO)
    again.close()
    assert (tmp_path / "index.bin").stat().st_size == 7 * 48
    monkeypatch.setattr(reader.ShardReader, "__init__", lambda *_: pytest.fail("a shard was opened"))
    indexed = TeacherCache.open(tmp_path)
    assert (len(indexed), indexed.positions, indexed.digests) == (7, plain.positions, plain.digests)
    monkeypatch.undo()
    for digest in text.digests:
        one, other = plain.read([digest])[0], indexed.read([digest])[0]
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.weights, other.weights)
        assert plain.entropy(digest) == indexed.entropy(digest)


def test_an_index_that_does_not_fit_is_found_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sequences_of(7, 24)
    write_cache(tmp_path, text, WHO)
    monkeypatch.setattr(writer, "FROM_SEQUENCES", 5)
    CacheWriter.open(tmp_path, WHO).close()
    path = tmp_path / "index.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CacheDamaged, match=r"index\.bin has 335 bytes"):
        TeacherCache.open(tmp_path)
    rows = np.frombuffer(whole, dtype=[("digest", "V32"), ("rest", "V16")]).copy()
    rows["rest"] = rows["rest"][::-1].copy()
    path.write_bytes(rows.tobytes())
    with pytest.raises(CacheDamaged, match="does not fit the shards"):
        TeacherCache.open(tmp_path).read([text.digests[0]])
    assert [damage.shard for damage in TeacherCache.verify_folder(tmp_path)] == ["index.bin"]
    assert len(TeacherCache.open(tmp_path)) == 7
    CacheWriter.open(tmp_path, WHO).close()
    assert path.read_bytes() == whole


def test_what_is_written_of_the_manifest_grows_linearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"manifest": 0, "journal": 0}
    save, append = Manifest.save, writer.append_entry
    monkeypatch.setattr(
        Manifest, "save", lambda m, folder: written.update(manifest=written["manifest"] + len(m.dump())) or save(m, folder)
    )  # fmt: skip
    monkeypatch.setattr(
        writer, "append_entry", lambda *args: written.update(journal=written["journal"] + 1) or append(*args)
    )
    bytes_ = {}
    for count in (20, 40, 80):
        written.update(manifest=0)
        write_cache(tmp_path / str(count), sequences_of(count, 8), WHO, per_shard=1)
        bytes_[count] = written["manifest"]
    assert written["journal"] > 30
    assert bytes_[80] - bytes_[40] < 3.0 * (bytes_[40] - bytes_[20])


def test_a_cut_journal_loses_only_what_was_cut_and_is_never_written_on(tmp_path: Path) -> None:
    text = sequences_of(29, 8)
    write_cache(tmp_path, text, WHO, per_shard=1)
    journal = tmp_path / JOURNAL
    assert journal.is_file()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines)[:-9])
    assert len(TeacherCache.open(tmp_path)) == 28
    write_cache(tmp_path, text, WHO, per_shard=1)
    assert len(TeacherCache.open(tmp_path)) == 29
    again = CacheWriter.open(tmp_path, WHO)
    again.close()
    assert not journal.exists()
    assert len(json.loads((tmp_path / NAME).read_text())["shards"]) == 29
    assert parts.done(reader.open_store(tmp_path)) == set()

"""The cache on disk: written shard by shard, resumed, verified, repaired, read in any order."""

from __future__ import annotations

import gc
import json
import random
import threading

import pytest
import torch
from cache_material import identity, logprobs_of, scores_of, sequences_of, write_cache
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.core.store import LocalStore
from stillroom.recipe.capture import DenseCodec, ThresholdCodec, TopKCodec
from stillroom.signals.cache import reader as reading
from stillroom.signals.cache import writer as writing
from stillroom.signals.cache.reader import TeacherCache, damages_of
from stillroom.signals.cache.writer import CacheWriter, summed_entropy

SPARSE = ThresholdCodec(tau=0.1)


def test_copies_of_a_cache_in_a_store_go_with_it(tmp_path, monkeypatch):
    write_cache(tmp_path / "cache", sequences_of(2, 12), identity(SPARSE))
    monkeypatch.setattr(reading, "is_url", lambda _: True)
    monkeypatch.setattr(reading, "open_store", lambda _: LocalStore(tmp_path / "cache"))
    cache = TeacherCache.open("s3://bucket/cache")
    copies = cache.folder
    cache.read([next(iter(cache.digests))])
    assert any(copies.iterdir())
    del cache
    gc.collect()
    assert not copies.exists()


def estimate(cache, digests, size=100):
    signal = cache.read(digests)[0]
    return torch.zeros(len(signal), size).scatter_add_(1, signal.ids, signal.weights)


def test_nothing_is_lost_where_a_shard_is_written_while_sequences_come(tmp_path, monkeypatch):
    """On a GPU a shard is packed on another thread; one may begin in the middle of adding a sequence."""
    writer, made, begun = CacheWriter.open(tmp_path, identity(DenseCodec())), writing._Waiting, []

    def interrupted(*arguments):
        if len(writer._waiting) == 1 and not begun:
            begun.append(threading.Thread(target=writer.flush))
            begun[0].start()
            begun[0].join()
        return made(*arguments)

    monkeypatch.setattr(writing, "_Waiting", interrupted)
    addresses = [f"{number:064x}" for number in range(3)]
    for address in addresses:
        assert writer.add(address, torch.randn(2, 100).log_softmax(1))
        assert address in writer
    writer.close()
    assert begun
    assert sorted(TeacherCache.open(tmp_path).digests) == addresses


def test_any_order_reads_the_same(tmp_path):
    text = sequences_of(7, 24)
    write_cache(tmp_path, text, identity(SPARSE))
    cache = TeacherCache.open(tmp_path)
    assert set(cache.digests) == set(text.digests)
    assert cache.positions == sum(int((row >= 0).sum()) for row in text.targets)
    shuffled = random.Random(0).sample(text.digests, 7)
    together, counts = cache.read(shuffled)
    assert sum(counts) == len(together)
    alone = torch.cat([estimate(cache, [digest]) for digest in shuffled])
    assert torch.equal(estimate(cache, shuffled), alone)
    with pytest.raises(SignalError, match="does not hold the sequence"):
        cache.read(["0" * 64])


@pytest.mark.parametrize("codec", [SPARSE, TopKCodec(k=3), DenseCodec()])
def test_entropy_and_bytes_are_kept(tmp_path, codec):
    text = sequences_of(4, 24)
    write_cache(tmp_path, text, identity(codec))
    cache = TeacherCache.open(tmp_path)
    for index, digest in enumerate(text.digests):
        logprobs = scores_of(text, index, 100)
        assert cache.entropy(digest) == pytest.approx(-float((logprobs.exp() * logprobs).sum()), rel=1e-4)
    assert digest in cache
    size = files.folder_bytes(tmp_path)
    assert cache.bytes_per_position == pytest.approx(size / cache.positions)


def test_what_was_learned_from_the_first_shard_does_not_change_the_signal(tmp_path):
    text = sequences_of(6, 24)
    for per_shard in (1, 6):
        write_cache(tmp_path / str(per_shard), text, identity(SPARSE), per_shard)
    one, six = (TeacherCache.open(tmp_path / name) for name in ("1", "6"))
    assert len(one.manifest.shards) == 6
    assert torch.equal(estimate(one, text.digests), estimate(six, text.digests))


def test_a_grown_corpus_captures_only_what_is_new(tmp_path):
    text = sequences_of(6, 24)
    write_cache(tmp_path, text.take(3), identity(SPARSE))
    before = estimate(TeacherCache.open(tmp_path), text.digests[:2])
    writer = CacheWriter.open(tmp_path, identity(SPARSE))
    missing = [digest for digest in text.digests if digest in writer.missing(text.digests)]
    assert missing == [digest for digest in text.digests if digest not in text.take(3).digests]
    write_cache(tmp_path, text, identity(SPARSE))
    assert torch.equal(estimate(TeacherCache.open(tmp_path), text.digests[:2]), before)


def test_what_a_killed_process_left_is_cleared_and_what_is_whole_stays(tmp_path):
    text = sequences_of(4, 24)
    write_cache(tmp_path, text, identity(SPARSE))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"].pop()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / ".shard-000009.safetensors.0.partial").write_bytes(b"half")
    writer = CacheWriter.open(tmp_path, identity(SPARSE))
    assert writer.missing(text.digests) == text.digests[2:]
    assert not (tmp_path / "shard-000001.safetensors").exists()
    assert not list(tmp_path.glob("*.partial"))
    write_cache(tmp_path, text, identity(SPARSE))
    assert len(TeacherCache.open(tmp_path).digests) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_shard_is_named_quarantined_and_captured_again(tmp_path, damage):
    text = sequences_of(6, 24)
    write_cache(tmp_path, text, identity(SPARSE))
    expected = estimate(TeacherCache.open(tmp_path), text.digests)
    shard = tmp_path / "shard-000001.safetensors"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    else:
        data[-3] ^= 1
        shard.write_bytes(data if damage == "flip" else data[:-5])
    if damage != "flip":
        with pytest.raises(CacheDamaged, match="shard-000001") as caught:
            TeacherCache.open(tmp_path)
        assert "stillroom cache verify" in caught.value.todo
    assert [name.split(" ")[0] for name in damages_of(tmp_path)] == [shard.name]
    result = CliRunner().invoke(app, ["cache", "verify", str(tmp_path), "--json"])
    assert json.loads(result.stdout)["damaged"][0]["shard"] == "shard-000001.safetensors"
    assert json.loads(result.stdout)["damaged"][0]["sequences"] == 2
    assert isinstance(result.exception, CacheDamaged)
    assert (tmp_path / "quarantine" / shard.name).exists() is (damage != "missing")
    assert TeacherCache.verify_folder(tmp_path) == []
    write_cache(tmp_path, text, identity(SPARSE))
    assert torch.equal(estimate(TeacherCache.open(tmp_path), text.digests), expected)


def test_a_changed_address_is_named_as_damage_and_not_as_a_missing_sequence(tmp_path):
    text = sequences_of(6, 24)
    write_cache(tmp_path, text, identity(SPARSE))
    shard = tmp_path / "shard-000001.safetensors"
    lost = TeacherCache.open(tmp_path)._shard(1).digests[0].tobytes().hex()
    shard.write_bytes(shard.read_bytes().replace(bytes.fromhex(lost), bytes(32)))
    with pytest.raises(CacheDamaged, match=r"000001.* has another SHA-256") as caught:
        TeacherCache.open(tmp_path).read([lost])
    assert "again" in caught.value.todo
    write_cache(tmp_path, text, identity(SPARSE))
    assert TeacherCache.open(tmp_path).read([lost])
    with pytest.raises(SignalError, match="does not hold"):
        TeacherCache.open(tmp_path).read(["0" * 64])


def test_without_its_model_the_whole_cache_is_captured_again(tmp_path):
    text = sequences_of(4, 24)
    write_cache(tmp_path, text, identity(SPARSE))
    expected = estimate(TeacherCache.open(tmp_path), text.digests)
    model = tmp_path / "model.safetensors.zst"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(CacheDamaged, match="no shard can be read without it"):
        TeacherCache.open(tmp_path)
    damages = TeacherCache.verify_folder(tmp_path)
    assert [damage.shard for damage in damages] == [model.name, "shard-000000.safetensors", "shard-000001.safetensors"]
    assert sum(damage.sequences for damage in damages) == 4
    write_cache(tmp_path, text, identity(SPARSE))
    assert torch.equal(estimate(TeacherCache.open(tmp_path), text.digests), expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.0),
        ("seed", 5),
        ("teacher_digest", "f" * 64),
        ("config_digest", "e" * 64),
        ("codec", TopKCodec(k=2)),
        ("codec_version", 2),
    ],
)
def test_a_cache_that_was_captured_otherwise_is_refused(tmp_path, field, value):
    write_cache(tmp_path, sequences_of(2, 24), identity(SPARSE))
    with pytest.raises(SignalError, match=field):
        CacheWriter.open(tmp_path, identity(SPARSE).model_copy(update={field: value}))


def test_a_temperature_that_was_not_captured_is_refused(tmp_path):
    write_cache(tmp_path, sequences_of(2, 24), identity(SPARSE))
    TeacherCache.open(tmp_path).require(temperature=1.0)
    with pytest.raises(SignalError, match=r"`temperature` 1\.0, and the recipe asks for 2"):
        TeacherCache.open(tmp_path).require(temperature=2.0)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", CacheDamaged, "is damaged"),
        ("[]", SignalError, "not the manifest"),
        ('{"format": "stillroom-teacher-cache", "version": 1}', SignalError, "format version 1"),
        ('{"format": "stillroom-teacher-cache", "version": 2, "identity": {}}', CacheDamaged, "identity"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path, text, kind, words):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(kind, match=words):
        TeacherCache.open(tmp_path)


def test_a_folder_without_a_cache(tmp_path):
    with pytest.raises(SignalError, match=r"no manifest\.json"):
        TeacherCache.open(tmp_path)


def test_info_says_what_a_cache_holds(tmp_path):
    write_cache(tmp_path, sequences_of(3, 24), identity(SPARSE))
    facts = json.loads(CliRunner().invoke(app, ["cache", "info", str(tmp_path), "--json"]).stdout)
    assert facts["sequences"] == 3
    assert facts["codec"]["tau"] == 0.1
    assert facts["bytes_per_position"] > 0
    assert "bytes_per_position" in CliRunner().invoke(app, ["cache", "info", str(tmp_path)]).stdout


def test_a_signal_of_another_vocabulary_and_one_that_is_not_finite_are_not_stored(tmp_path):
    writer = CacheWriter.open(tmp_path, identity(SPARSE))
    with pytest.raises(SignalError, match="gives 99 ids"):
        writer.add("0" * 64, logprobs_of(3, 99, 0))
    bad = logprobs_of(3, 100, 0)
    bad[1, 4] = float("nan")
    assert not writer.add("0" * 64, bad)
    writer.flush()
    assert not TeacherCache.open(tmp_path).digests


def test_entropy_of_logits_that_rule_ids_out():
    scores = logprobs_of(4, 50, 1) + 30
    scores[:, 7] = float("-inf")
    probabilities = torch.softmax(scores, dim=1)
    expected = torch.special.entr(probabilities).sum()
    assert summed_entropy(scores, probabilities) == pytest.approx(float(expected), rel=1e-5)

"""Units of a capture: named by content, made by anybody, sealed in any order into what one process would have made."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teachers.teacher_material import TableTeacher, local_teacher
from tiny_models import make_model, tiny_model
from typer.testing import CliRunner

from benchmarks.s3_server import s3_server
from stillroom import pipeline
from stillroom.cli.app import app
from stillroom.core.errors import CacheDamaged, EnvironmentProblem, RunError, SignalError, UsageError
from stillroom.core.progress import Progress
from stillroom.core.store import LocalStore, open_store
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import HiddenCodec, ObservedCodec, ThresholdCodec
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run
from stillroom.signals.cache import parts
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.teachers.capture import cache_identity, capture
from stillroom.teachers.units import Share, Units
from tests.teachers.test_capture_pieces import rows_of

CODEC = ThresholdCodec(tau=0.1)


def recipe_with(**capture_: Any) -> Any:
    return Recipe.model_validate(
        {
            "name": "units",
            "corpus": {"sources": [{"kind": "text", "path": "nowhere", "licence": "CC0-1.0"}]},
            "teacher": {"kind": "huggingface", "name": "nobody/nothing"},
            "student": {"kind": "shrink", "target": {"parameters": 1000}},
            "capture": {"codec": CODEC.model_dump(), "unit_tokens": 64, **capture_},
        }
    )


@pytest.fixture(scope="module")
def teacher():
    return local_teacher(make_model("llama", rows=100))


@pytest.fixture(scope="module")
def splits() -> list[Sequences]:
    return [rows_of(40, 75, 20, 31, 64, 12, 90, 33), rows_of(50, 40, 12, seed=3)]


@pytest.fixture(scope="module")
def one_process(teacher: Any, splits: list[Sequences], tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    folder = tmp_path_factory.mktemp("one")
    writer = CacheWriter.open(folder, cache_identity(teacher, CODEC, 1.0, 0))
    for split in splits:
        with Progress(True).task("x", total=1) as task:
            capture(teacher, split, writer, 1.0, None, 64, task, set())
    writer.close()
    return TeacherCache.open(folder)


def equal_to_the_bit(one: TeacherCache, other: TeacherCache) -> bool:
    assert one.digests == other.digests
    for digest in one.digests:
        (a, n), (b, m) = one.read([digest]), other.read([digest])
        if n != m or not torch.equal(a.ids, b.ids) or not torch.equal(a.weights, b.weights):
            return False
        if one.entropy(digest) != other.entropy(digest):
            return False
    return True


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5), st.integers(0, 3), st.data())
def test_a_name_depends_on_identity_model_and_addresses_alone(addresses: list[bytes], seed: int, data: Any) -> None:
    who = cache_identity(TableTeacher(torch.zeros(3, 3)), CODEC, 1.0, seed)
    words = [address.hex() for address in addresses]
    name = parts.unit_name(who, "a", words)
    assert name == parts.unit_name(who.model_copy(), "a", list(words))
    assert name != parts.unit_name(who.model_copy(update={"seed": seed + 1}), "a", words)
    assert name != parts.unit_name(who, "b", words)
    other = data.draw(st.permutations(words))
    assert (name == parts.unit_name(who, "a", other)) is (other == words)


def test_units_cover_what_is_missing_once_and_shares_cover_the_units(
    teacher: Any, splits: list[Sequences], tmp_path: Path
) -> None:
    units = Units(teacher, recipe_with(), splits, LocalStore(tmp_path))
    covered = [
        address
        for unit in units.units
        for row in splits[unit.split].addresses[unit.begin : unit.end]
        for address in row
    ]
    assert covered == [address for split in splits for address in split.digests]
    for count in (1, 3, 64):
        shares = [Share(number, count).of(units.units) for number in range(1, count + 1)]
        assert sorted(unit.name for share in shares for unit in share) == sorted(unit.name for unit in units.units)


@pytest.mark.parametrize("order", [0, 1])
def test_parts_in_any_order_make_the_cache_of_one_process(
    teacher: Any, splits: list[Sequences], one_process: TeacherCache, tmp_path: Path, order: int
) -> None:
    store = LocalStore(tmp_path)
    units = Units(teacher, recipe_with(), splits, store)
    chosen = random.Random(order).sample(units.units, len(units.units))
    assert all(units.make(unit) for unit in chosen[:3])
    first = parts.seal(store)
    assert first.added == 3
    assert not units.make(chosen[0])
    assert all(units.make(unit) for unit in chosen[3:])
    # A unit of another size: its sequences stand in the cache twice.
    twice = Units(teacher, recipe_with(unit_tokens=96), splits, LocalStore(tmp_path / "other"))
    twice.store, twice.model = store, units.model
    assert twice.make(twice.units[1])
    sealed = parts.seal(store)
    assert not sealed.damages
    assert sum(entry.sequences for entry in sealed.manifest.shards) > len(one_process)
    assert equal_to_the_bit(one_process, TeacherCache.open(tmp_path))
    assert parts.seal(store).added == 0
    assert not Units(teacher, recipe_with(), splits, store).missing()
    assert TeacherCache.verify_folder(tmp_path) == []


def test_a_part_is_the_same_part_after_a_seal(
    teacher: Any, splits: list[Sequences], one_process: TeacherCache, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    units = Units(teacher, recipe_with(), splits, store)
    shares = [Share(number, 4) for number in range(1, 5)]
    for share in shares[:2]:
        for unit in share.of(units.units):
            units.make(unit)
    assert parts.seal(store).added
    later = Units(teacher, recipe_with(), splits, store)
    assert later.units == units.units
    assert [unit for share in shares[2:] for unit in share.of(later.units)] != []
    assert {unit.name for unit in later.missing()} == {unit.name for s in shares[2:] for unit in s.of(units.units)}
    # One that is set aside is made by the part that it was in.
    lost = shares[1].of(units.units)[0]
    (tmp_path / parts.shard_key(lost.name)).write_bytes(b"cut off")
    TeacherCache.verify_folder(tmp_path)
    again = Units(teacher, recipe_with(), splits, store)
    assert [lost] == [unit for unit in shares[1].of(again.units) if unit in again.missing()]
    for share in shares[1:]:
        for unit in share.of(again.units):
            if unit in again.missing():
                again.make(unit)
    assert not parts.seal(store).damages
    assert equal_to_the_bit(one_process, TeacherCache.open(tmp_path))


def test_parts_go_on_where_one_process_began_and_a_grown_corpus_asks_for_what_is_new(
    teacher: Any, splits: list[Sequences], tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    writer = CacheWriter.open(tmp_path, cache_identity(teacher, CODEC, 1.0, 0))
    with Progress(True).task("x", total=1) as task:
        capture(teacher, splits[0].take(3), writer, 1.0, None, 64, task, set())
    writer.close()
    begun = set(TeacherCache.open(tmp_path).digests)
    units = Units(teacher, recipe_with(), splits, store)

    def covered(made: Units) -> list[str]:
        rows = [made._rows[unit.split].addresses[unit.begin : unit.end] for unit in made.units]
        return [address for some in rows for row in some for address in row]

    everything = {address for split in splits for address in split.digests}
    assert sorted(covered(units)) == sorted(everything - begun)
    units.make(units.units[0])
    parts.seal(store)
    assert Units(teacher, recipe_with(), splits, store).units == units.units
    for unit in units.missing():
        units.make(unit)
    parts.seal(store)
    more = [rows_of(40, 75, 20, 31, 64, 12, 90, 33, 17, 55), splits[1]]
    grown = Units(teacher, recipe_with(), more, store)
    new = {address for split in more for address in split.digests} - everything
    assert new
    assert {address for unit in grown.missing() for address in covered(grown)} == new


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "note"])
def test_a_part_that_is_damaged_is_named_set_aside_and_captured_again(
    teacher: Any, splits: list[Sequences], one_process: TeacherCache, tmp_path: Path, damage: str
) -> None:
    store = LocalStore(tmp_path)
    units = Units(teacher, recipe_with(), splits, store)
    for unit in units.units:
        units.make(unit)
    name = units.units[1].name
    shard = tmp_path / parts.shard_key(name)
    data = bytearray(shard.read_bytes())
    data[-2] ^= 1
    if damage == "missing":
        shard.unlink()
    elif damage == "note":
        (tmp_path / parts.note_key(name)).write_text("{")
    else:
        shard.write_bytes(data if damage == "flip" else data[:-4])
    result = CliRunner().invoke(app, ["cache", "seal", str(tmp_path), "--json"])
    assert isinstance(result.exception, CacheDamaged)
    assert name in str(result.exception)
    assert [found["shard"] for found in json.loads(result.stdout)["set_aside"]] == [parts.shard_key(name)]
    assert (tmp_path / "quarantine" / f"{name}.safetensors").exists() is (damage != "missing")
    assert len(TeacherCache.open(tmp_path)) < len(one_process)
    again = Units(teacher, recipe_with(), splits, store)
    for unit in again.missing():
        again.make(unit)
    assert not parts.seal(store).damages
    assert equal_to_the_bit(one_process, TeacherCache.open(tmp_path))


def test_a_sealed_shard_that_is_damaged_later_is_captured_again(
    teacher: Any, splits: list[Sequences], one_process: TeacherCache, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    units = Units(teacher, recipe_with(), splits, store)
    for unit in units.units:
        units.make(unit)
    parts.seal(store)
    shard = tmp_path / parts.shard_key(units.units[0].name)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [damage.shard for damage in TeacherCache.verify_folder(tmp_path)] == [parts.shard_key(units.units[0].name)]
    again = Units(teacher, recipe_with(), splits, store)
    assert again.missing()
    for unit in again.missing():
        again.make(unit)
    parts.seal(store)
    assert equal_to_the_bit(one_process, TeacherCache.open(tmp_path))


def test_two_processes_at_once_in_an_object_store_make_each_unit_once(
    teacher: Any, splits: list[Sequences], one_process: TeacherCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        both = [Units(teacher, recipe_with(), splits, open_store("s3://bucket/cache")) for _ in range(2)]
        assert both[0].units == both[1].units
        firsts = []

        def work(units: Units) -> None:
            firsts.extend(units.make(unit) for unit in units.units)

        threads = [threading.Thread(target=work, args=(units,)) for units in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(firsts) == 2 * len(both[0].units)
        assert sum(firsts) == len(both[0].units)
        sealed = parts.seal(open_store("s3://bucket/cache"))
        assert sealed.added == len(both[0].units)
        found = TeacherCache.open("s3://bucket/cache", tmp_path)
        assert equal_to_the_bit(one_process, found)
        # What was read once is not fetched again.
        shards = [key for key in server.objects if "/shards/" in key]
        for key in shards:
            del server.objects[key]
        assert equal_to_the_bit(one_process, TeacherCache.open("s3://bucket/cache", tmp_path))
        with pytest.raises(CacheDamaged, match="is missing"):
            TeacherCache.open("s3://bucket/cache", tmp_path / "new")


@pytest.mark.parametrize("damage", ["cut", "missing", "model"])
def test_a_cache_in_a_bucket_is_verified_and_what_is_damaged_is_captured_again(
    teacher: Any,
    splits: list[Sequences],
    one_process: TeacherCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = open_store("s3://bucket/cache")
        units = Units(teacher, recipe_with(), splits, store)
        for unit in units.units:
            units.make(unit)
        parts.seal(store)
        assert CliRunner().invoke(app, ["cache", "verify", "s3://bucket/cache"]).exit_code == 0
        lost = parts.shard_key(units.units[1].name) if damage != "model" else "model.safetensors.zst"
        data = server.objects.pop(f"bucket/cache/{lost}")
        if damage != "missing":
            server.objects[f"bucket/cache/{lost}"] = data[:-1]
        result = CliRunner().invoke(app, ["cache", "verify", "s3://bucket/cache", "--json"])
        assert isinstance(result.exception, CacheDamaged)
        assert lost in str(result.exception)
        report = json.loads(result.stdout)
        assert report["whole"] == (0 if damage == "model" else len(units.units) - 1)
        again = Units(teacher, recipe_with(), splits, store)
        assert again.units == units.units
        assert again.missing() == (units.units if damage == "model" else [units.units[1]])
        for unit in again.missing():
            again.make(unit)
        assert not parts.seal(store).damages
        assert equal_to_the_bit(one_process, TeacherCache.open("s3://bucket/cache", tmp_path))
        assert CliRunner().invoke(app, ["cache", "verify", "s3://bucket/cache"]).exit_code == 0


@pytest.mark.parametrize("codec", [ObservedCodec(k=5), HiddenCodec(), HiddenCodec(bits=8)])
def test_units_of_lists_and_of_hidden_states(
    teacher: Any, splits: list[Sequences], tmp_path: Path, codec: ObservedCodec | HiddenCodec
) -> None:
    writer = CacheWriter.open(tmp_path / "one", cache_identity(teacher, codec, 1.5, 0))
    for split in splits:
        with Progress(True).task("x", total=1) as task:
            capture(teacher, split, writer, 1.5, None, 64, task, set())
    writer.close()
    one = TeacherCache.open(tmp_path / "one")
    store = LocalStore(tmp_path / "many")
    recipe = recipe_with(codec=codec.model_dump(), temperature=1.5)
    units = Units(teacher, recipe, splits, store)
    for unit in reversed(units.units):
        assert units.make(unit)
    assert not parts.seal(store).damages
    many = TeacherCache.open(tmp_path / "many")
    assert many.digests == one.digests
    assert (many.manifest.model is None) == (one.manifest.model is None)
    for digest in one.digests:
        (a, n), (b, m) = one.read([digest]), many.read([digest])
        assert n == m
        assert torch.equal(a.logprobs, b.logprobs)
        assert one.entropy(digest) == many.entropy(digest)
    # One process goes on where several sealed: nothing is missing.
    again = CacheWriter.open(tmp_path / "many", units.identity)
    assert not again.missing([address for split in splits for address in split.digests])
    # The output layer is the cache's, and a teacher with another one is not heard.
    units.teacher = local_teacher(make_model("llama", rows=100, seed=77))
    if isinstance(codec, HiddenCodec):
        with pytest.raises(CacheDamaged, match="another output layer"):
            units.make(units.units[0])


def test_units_of_another_teacher_are_refused(teacher: Any, splits: list[Sequences], tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    Units(teacher, recipe_with(), splits, store)
    with pytest.raises(SignalError, match="`seed` is 0 there and 4 here"):
        Units(teacher, recipe_with(seed=4), splits, store)


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "1/0", "-1/4", "1/4/2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--part"):
        Share.parse(text)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("parts")
    tiny_model("llama", folder / "teacher", vocabulary_size=300)
    (folder / "text").mkdir()
    for number in range(40):
        words = " ".join(f"{number}w{index}" for index in range(20 + number))
        (folder / "text" / f"{number:02}.txt").write_text(words)
    decided = {"kind": "own", "decided_by": "me", "decided_at": "2026-01-01T00:00:00Z"}
    values = {
        "corpus": {
            "sources": [{"kind": "text", "path": str(folder / "text"), "licence": "CC0-1.0"}],
            "sequence_length": 64,
        },
        "teacher": {"kind": "huggingface", "name": str(folder / "teacher")},
        "student": {"kind": "shrink", "target": {"parameters": 90_000}},
        "capture": {"unit_tokens": 512},
        "terms": {"decisions": [{"subject": subject, **decided} for subject in ("teacher", "student")]},
    }
    return values, folder


def captured(made: Run) -> TeacherCache:
    return TeacherCache.open(made.path / "capture" / "cache")


def test_an_array_of_jobs_then_the_stage(recipe: Any, tmp_path: Path) -> None:
    values, _ = recipe
    alone = pipeline.run_stage({"name": "alone", **values}, "capture", tmp_path, quiet=True)
    with pytest.raises(RunError, match="corpus is not finished"):
        pipeline.capture_part({"name": "parts", **values}, "1/3", tmp_path, quiet=True)
    made = pipeline.run_stage({"name": "parts", **values}, "corpus", tmp_path, quiet=True)
    counts = []
    with made.locked():
        # Another process may hold the run: parts write units of the cache and nothing else.
        for number in (3, 1):
            result = CliRunner().invoke(app, ["capture", str(made.path), "--part", f"{number}/3", "-q", "--json"])
            assert result.exit_code == 0, result.exception
            counts.append(json.loads(result.stdout))
    assert all(count["made"] == count["units"] > 0 for count in counts)
    assert pipeline.capture_part(made, "1/3", quiet=True).before == counts[1]["units"]
    assert not (made.path / "capture" / "stage.json").exists()
    # The stage seals what is there and captures the part that nobody did.
    finished = pipeline.run_stage(made, "capture", quiet=True)
    record = finished.stage("capture").record
    assert record is not None
    assert record["notes"]["reused"] > 0
    assert equal_to_the_bit(captured(alone), captured(finished))
    assert record["result"] == (alone.stage("capture").record or {})["result"]


def test_a_corpus_is_made_where_there_is_no_gpu_and_nothing_else_is(recipe: Any, tmp_path: Path) -> None:
    """As the first job of docs/clusters/slurm.sh does it, for parts that have one."""
    values, _ = recipe
    for_gpus = {"name": "gpus", **values, "compute": {"device": "cuda"}}
    with pytest.raises(EnvironmentProblem, match="CUDA"):
        pipeline.run(for_gpus, tmp_path, quiet=True)
    made = pipeline.run_stage(for_gpus, "corpus", tmp_path, quiet=True)
    with pytest.raises(EnvironmentProblem, match="CUDA"):
        pipeline.capture_part(made, "1/2", quiet=True)


@pytest.mark.cluster
def test_a_cache_at_a_url_is_captured_into(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, _ = recipe
    near = pipeline.run_stage({"name": "near", **values}, "capture", tmp_path, quiet=True)
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        away = {**values, "capture": {"unit_tokens": 512, "path": "s3://bucket/cache"}}
        made = pipeline.run_stage({"name": "away", **away}, "capture", tmp_path, quiet=True)
        assert equal_to_the_bit(captured(near), TeacherCache.open("s3://bucket/cache"))
        assert not (made.path / "capture" / "cache").exists()
        record = made.stage("capture").record
        assert record is not None
        assert record["notes"]["store"] == "s3://bucket/cache"
        assert record["result"] == (near.stage("capture").record or {})["result"]
        puts = server.puts
        info = CliRunner().invoke(app, ["cache", "info", "s3://bucket/cache", "--json"])
        assert json.loads(info.stdout)["sequences"] == len(captured(near))
        assert pipeline.run_stage(made, "capture", quiet=True).done == made.done
        assert server.puts == puts

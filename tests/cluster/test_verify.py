"""`stillroom cache verify --ray`: the same words, the same exit and the same quarantine as without Ray."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.s3_server import s3_server
from stillroom.cli.app import app
from stillroom.cluster import ray_capture, ray_verify
from stillroom.core.errors import CacheDamaged, EnvironmentProblem, SignalError, UsageError
from stillroom.core.progress import Progress
from stillroom.core.store import open_store
from stillroom.recipe.capture import ThresholdCodec
from stillroom.signals.cache.reader import TeacherCache
from tests.cluster.made_up_ray import MadeUpRay
from tests.signals.cache_material import identity, sequences_of, write_cache

SHARD = "shard-000001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", sequences_of(12, 24), identity(ThresholdCodec(tau=0.1)))
    return tmp_path / "cache"


def on(monkeypatch: pytest.MonkeyPatch, world: MadeUpRay) -> None:
    @contextlib.contextmanager
    def connected(*_: object) -> Iterator[MadeUpRay]:
        yield world

    monkeypatch.setattr(ray_verify, "connected", connected)
    monkeypatch.setattr(ray_capture.switch, "require_on", lambda: None)


def verified(where: Path | str, *options: str) -> Any:
    return CliRunner().invoke(app, ["cache", "verify", str(where), *options])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", [(SHARD,), ("shard-000004.safetensors", SHARD), ("model.safetensors.zst",), ()])
@pytest.mark.parametrize("deaths", [0, 5])
def test_what_is_damaged_is_named_and_set_aside_as_without_ray(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: tuple[str, ...], deaths: int
) -> None:
    for name in what:
        damage(folder / name)
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    alone = verified(other, "--json")
    world = MadeUpRay(3, deaths, real=True)
    on(monkeypatch, world)
    together = verified(folder, "--json", "--ray", "auto", "--workers", "2")
    assert together.stdout == alone.stdout
    assert together.exit_code == alone.exit_code == (1 if what else 0)
    assert str(together.exception).replace(str(folder), "") == str(alone.exception).replace(str(other), "")
    names = [sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) for root in (folder, other)]
    assert names[0] == names[1]
    assert {"model.safetensors.zst", *(f"shard-{number:06}.safetensors" for number in range(6))} == set(world.made)
    assert not TeacherCache.verify_folder(folder)


def test_a_cache_in_a_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = open_store("s3://bucket/cache")
        for path in folder.iterdir():
            store.put(path.name, path.read_bytes())
        on(monkeypatch, MadeUpRay(1, real=True))
        assert verified("s3://bucket/cache", "--ray", "auto").exit_code == 0
        server.objects.pop(f"bucket/cache/{SHARD}")
        on(monkeypatch, MadeUpRay(2, real=True))
        found = verified("s3://bucket/cache", "--ray", "auto")
        assert isinstance(found.exception, CacheDamaged)
        assert f"1 damaged: {SHARD} is missing." in str(found.exception)


def test_a_node_that_sees_other_files_costs_the_cache_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = MadeUpRay(1, real=True)
    on(monkeypatch, world)
    monkeypatch.setattr(ray_verify.Verifier, "make", lambda _self, _name: "is missing")
    found = verified(folder, "--ray", "auto")
    assert isinstance(found.exception, EnvironmentProblem)
    assert "for a worker of the cluster, and is whole from here" in str(found.exception)
    assert not (folder / "quarantine").exists()
    assert not TeacherCache.verify_folder(folder)


def test_a_worker_with_another_manifest_says_so(folder: Path) -> None:
    worker = ray_verify.Verifier(str(folder))
    assert worker.ready()
    assert worker.make(SHARD) is None
    with pytest.raises(SignalError, match=r"shard-000009.* not in the one that a worker read"):
        worker.make("shard-000009.safetensors")


def test_workers_without_a_cluster_and_a_folder_without_a_cache_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(verified(folder, "--workers", "2").exception, UsageError)
    on(monkeypatch, MadeUpRay(1, real=True))
    assert isinstance(verified(folder.parent, "--ray", "auto").exception, SignalError)


@pytest.mark.cluster
def test_on_a_real_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Relative, as people write it: a worker has another working directory.
    monkeypatch.chdir(folder.parent)
    difference = ray_verify.difference_on_ray(folder.name, "local", 2, Progress(quiet=True))
    assert TeacherCache.verify_folder(folder, difference) == []
    damage(folder / SHARD)
    result = verified(folder.name, "--ray", "local", "--workers", "2")
    assert isinstance(result.exception, CacheDamaged)
    assert f"1 damaged: {SHARD} has another SHA-256 than the manifest says." in str(result.exception)
    assert (folder / "quarantine" / SHARD).is_file()

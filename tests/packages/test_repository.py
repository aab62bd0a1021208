"""A repository that several processes change at once: no change is lost, and what fails leaves nothing behind."""

from __future__ import annotations

import datetime
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from attacks.workshop import COST, DAY, PASSPHRASE, workshop
from stillroom.core import files
from stillroom.core.errors import UsageError, VerificationFailed
from stillroom.packages.keys import Ring, Role
from stillroom.packages.repository import RENEW_DAYS, VALID_DAYS, Repository, signers_of
from stillroom.verification.client import look
from stillroom.verification.closed import parse
from stillroom.verification.documents import Pin

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner


def published(repo: Path) -> dict[str, int]:
    """Versions that a reader of the timestamp is led to."""
    timestamp = json.loads((repo / "metadata" / "timestamp.json").read_text())["signed"]
    snapshot = timestamp["meta"]["snapshot.json"]["version"]
    meta = json.loads((repo / "metadata" / f"{snapshot}.snapshot.json").read_text())["signed"]["meta"]
    return {name: entry["version"] for name, entry in meta.items()}


def opened(folder: Path, *roles: Role, now: datetime.datetime | None = None) -> Repository:
    """A repository with the keys of some roles at hand; of all without any."""
    ring = Ring.open(folder / "keys")
    at_hand = signers_of([ring], PASSPHRASE)
    return Repository(folder / "repo", ring, lambda role: at_hand(role) if not roles or role in roles else [], now)


def made(folder: Path, days_ago: int = 0) -> Pin:
    """A repository that was made some days ago, with its keys; returns what machines begin with."""
    Ring.create(folder / "keys", "acme", PASSPHRASE, cost=COST)
    opened(folder, now=datetime.datetime.now(datetime.UTC) - days_ago * DAY).init(None)
    return parse(Pin, (folder / "repo" / "trust.json").read_bytes(), "trust.json")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a repository but its lock."""
    found = (path for path in (folder / "repo").rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder / "repo").as_posix(): path.read_bytes() for path in found}


def test_a_refresh_publishes_no_revocation_away(tmp_path: Path) -> None:
    """The refresh has read everything and is about to sign when the revocation comes: it waits, and then follows."""
    shop = workshop(tmp_path)
    before = published(shop.repo)["revoke.json"]
    at_hand = signers_of([shop.ring], PASSPHRASE)
    revoking = threading.Thread(target=lambda: shop.repository().revoke("teacher", "a" * 64, "lost"))

    def signers(role: Role) -> list[CryptoSigner]:
        if not revoking.is_alive() and revoking.ident is None:
            revoking.start()
            revoking.join(3)  # without a lock it is published by then
        return at_hand(role)

    Repository(shop.repo, shop.ring, signers).refresh()
    revoking.join(60)
    assert not revoking.is_alive()
    assert published(shop.repo)["revoke.json"] == before + 1
    assert [entry.reason for entry in shop.repository().revocations().revocations] == ["lost"]


def test_changes_of_many_follow_each_other(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    several = [shop.repository() for _ in range(4)]
    for repository in several:
        repository.revocations()  # what was read before the change is read anew
    threads = [
        threading.Thread(target=several[number].revoke, args=("teacher", f"{number}" * 64, "lost"))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(entry.serial for entry in shop.repository().revocations().revocations) == [1, 2, 3, 4]


@pytest.mark.parametrize("role", ["root", "revoke", "online"])
def test_keys_that_no_list_reaches_are_not_revoked(tmp_path: Path, role: Role) -> None:
    """Machines compare signatures of release keys with the list, and take every other key from the root."""
    made(tmp_path)
    ring = Ring.open(tmp_path / "keys")
    keyid = ring.content.keys[f"{role}-1"].keyid
    before = content(tmp_path)
    with pytest.raises(UsageError, match=f"keys rotate {ring.folder} {role} {role}-1, then stillroom repo refresh"):
        opened(tmp_path).revoke("key", keyid, "stolen")
    ring.rotate(role, f"{role}-1", PASSPHRASE, cost=COST)
    with pytest.raises(UsageError, match="was rotated"):
        opened(tmp_path).revoke("key", keyid, "stolen")
    with pytest.raises(UsageError, match="is no key of acme"):
        opened(tmp_path).revoke("key", "a" * 64, "stolen")
    assert content(tmp_path) == before


def test_a_release_key_is_revoked_before_and_after_it_is_rotated(tmp_path: Path) -> None:
    made(tmp_path)
    ring = Ring.open(tmp_path / "keys")
    keys = [ring.content.keys[f"release-{number}"].keyid for number in (1, 2)]
    opened(tmp_path).revoke("key", keys[0], "stolen")
    ring.rotate("release", "release-2", PASSPHRASE, cost=COST)
    opened(tmp_path).refresh()
    opened(tmp_path).revoke("key", keys[1], "stolen")
    assert [entry.value for entry in opened(tmp_path).revocations().revocations] == keys


def test_a_change_that_fails_is_not_published_by_the_next(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    at_hand = signers_of([shop.ring], PASSPHRASE)
    missing = {"revoke"}
    repository = Repository(shop.repo, shop.ring, lambda role: [] if role in missing else at_hand(role))
    with pytest.raises(UsageError, match="must sign"):
        repository.revoke("teacher", "a" * 64, "lost")
    missing.clear()
    repository.refresh()
    assert repository.revocations().revocations == ()


def test_what_is_no_repository_gets_no_lock(tmp_path: Path) -> None:
    ring = workshop(tmp_path / "shop").ring
    with pytest.raises(UsageError, match="is not a repository"):
        Repository(tmp_path / "none", ring, lambda _: []).refresh()
    assert not (tmp_path / "none").exists()


def test_a_refresh_renews_what_has_expired(tmp_path: Path) -> None:
    pin = made(tmp_path, days_ago=VALID_DAYS["root"] + 10)
    done = opened(tmp_path).refresh()
    assert opened(tmp_path).expires() > datetime.datetime.now(datetime.UTC)
    soonest = datetime.datetime.now(datetime.UTC) + (VALID_DAYS["root"] - 1) * DAY
    assert set(done.renewed) == {"root", "targets", "revoke"}
    assert done.ending == ()
    assert all(until > soonest for until in done.renewed.values())
    assert look(pin, tmp_path / "machine").fetched
    assert opened(tmp_path).refresh().renewed == {}


def test_a_refresh_renews_what_expires_soon_and_names_what_it_cannot(tmp_path: Path) -> None:
    pin = made(tmp_path, days_ago=VALID_DAYS["root"] - RENEW_DAYS + 1)
    done = opened(tmp_path, "root", "online").refresh()
    assert set(done.renewed) == {"root"}
    assert [(part.part, part.role, part.expired) for part in done.ending] == [
        ("targets", "release", False),
        ("revoke", "revoke", False),
    ]
    assert "was not renewed: 2 keys of the role release must sign, 0 are at hand" in str(done.ending[0])
    assert look(pin, tmp_path / "machine").fetched
    assert set(opened(tmp_path).refresh().renewed) == {"targets", "revoke"}


def test_the_online_key_alone_renews_dates(tmp_path: Path) -> None:
    pin = made(tmp_path, days_ago=30)
    done = opened(tmp_path, "online").refresh()
    assert (done.renewed, done.ending) == ({}, ())
    assert published(tmp_path / "repo") == {"targets.json": 1, "revoke.json": 1}
    assert look(pin, tmp_path / "machine").fetched


def test_the_rest_is_renewed_where_something_expired_for_want_of_keys(tmp_path: Path) -> None:
    pin = made(tmp_path, days_ago=VALID_DAYS["root"] + 10)
    done = opened(tmp_path, "root", "online").refresh()
    assert set(done.renewed) == {"root"}
    assert [part.part for part in done.ending if part.expired] == ["targets", "revoke"]
    with pytest.raises(VerificationFailed, match="expired"):
        look(pin, tmp_path / "machine")
    opened(tmp_path, "release", "revoke", "online").refresh()
    assert look(pin, tmp_path / "machine").fetched


@pytest.mark.parametrize("missing", ["release", "online", "root"])
def test_nothing_stays_of_a_refresh_that_lacks_keys(tmp_path: Path, missing: Role) -> None:
    pin = made(tmp_path)
    ring = Ring.open(tmp_path / "keys")
    for name in ("release-1", "release-2"):
        ring.rotate("release", name, PASSPHRASE, cost=COST)
    before = content(tmp_path)
    roles: tuple[Role, ...] = ("root", "release", "revoke", "online")
    with pytest.raises(UsageError, match="at hand"):
        opened(tmp_path, *(role for role in roles if role != missing)).refresh()
    assert content(tmp_path) == before
    assert look(pin, tmp_path / "machine").fetched
    opened(tmp_path).refresh()
    assert look(pin, tmp_path / "machine").fetched


def test_a_root_that_an_older_version_left_alone_is_followed_by_the_rest(tmp_path: Path) -> None:
    pin = made(tmp_path)
    before = content(tmp_path)
    ring = Ring.open(tmp_path / "keys")
    for name in ("release-1", "release-2"):
        ring.rotate("release", name, PASSPHRASE, cost=COST)
    opened(tmp_path).refresh()
    for path in (tmp_path / "repo" / "metadata").iterdir():
        if path.name != "2.root.json":
            path.unlink()
    for name, data in before.items():
        (tmp_path / "repo" / name).write_bytes(data)
    with pytest.raises(VerificationFailed):
        look(pin, tmp_path / "machine")
    opened(tmp_path).refresh()
    assert look(pin, tmp_path / "machine").fetched


@pytest.mark.parametrize("part", ["2.revoke.json", "2.snapshot.json", "2.root.json", "timestamp.json"])
def test_a_change_that_cannot_be_written_is_not_published_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    pin = made(tmp_path)
    if part == "2.root.json":
        Ring.open(tmp_path / "keys").rotate("online", "online-1", PASSPHRASE, cost=COST)
    write = files.write_bytes

    def full(path: Path, data: bytes, **options: Any) -> None:
        if path.name == part:
            raise OSError(28, "No space left on device")
        write(path, data, **options)

    repository = opened(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "write_bytes", full)
        if part == "2.root.json":
            repository.refresh()
        else:
            repository.revoke("teacher", "a" * 64, "lost")
    assert look(pin, tmp_path / "machine").fetched
    repository.refresh()
    assert repository.revocations().revocations == ()
    assert look(pin, tmp_path / "machine").fetched


def test_a_new_root_does_not_stay_without_its_timestamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = made(tmp_path)
    Ring.open(tmp_path / "keys").rotate("online", "online-1", PASSPHRASE, cost=COST)
    write = files.write_bytes

    def full(path: Path, data: bytes, **options: Any) -> None:
        if path.name == "timestamp.json":
            raise OSError(28, "No space left on device")
        write(path, data, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "write_bytes", full)
        opened(tmp_path).refresh()
    assert look(pin, tmp_path / "machine").fetched
    opened(tmp_path, "root", "online").refresh()
    assert look(pin, tmp_path / "machine").fetched


def test_a_repository_that_cannot_be_made_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ring.create(tmp_path / "keys", "acme", PASSPHRASE, cost=COST)
    with pytest.raises(UsageError, match="must sign"):
        opened(tmp_path, "root", "online").init(None)
    assert content(tmp_path) == {}

    def full(_path: Path, _value: object, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    repository = opened(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "write_json", full)
        repository.init(None)
    repository.init(None)
    assert repository.releases().releases == ()


def test_a_rotation_that_failed_does_not_block_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring.create(tmp_path / "keys", "acme", PASSPHRASE, cost=COST)
    before = ring.names("release")

    def full(_path: Path, _value: object, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "write_json", full)
        ring.rotate("release", "release-1", PASSPHRASE, cost=COST)
    assert Ring.open(tmp_path / "keys").names("release") == before
    assert ring.rotate("release", "release-1", PASSPHRASE, cost=COST) in ring.names("release")
    (tmp_path / "keys" / "ring.json").unlink()
    with pytest.raises(UsageError, match=r"has no ring\.json"):
        Ring.create(tmp_path / "keys", "acme", PASSPHRASE, cost=COST)

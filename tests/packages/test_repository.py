"""A repository that several processes change at once: no change is lost, and what fails leaves nothing behind."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from attacks.workshop import PASSPHRASE, workshop
from stillroom.core.errors import UsageError
from stillroom.packages.keys import Role
from stillroom.packages.repository import Repository, signers_of

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner


def published(repo: Path) -> dict[str, int]:
    """Versions that a reader of the timestamp is led to."""
    timestamp = json.loads((repo / "metadata" / "timestamp.json").read_text())["signed"]
    snapshot = timestamp["meta"]["snapshot.json"]["version"]
    meta = json.loads((repo / "metadata" / f"{snapshot}.snapshot.json").read_text())["signed"]["meta"]
    return {name: entry["version"] for name, entry in meta.items()}


def test_a_refresh_publishes_no_revocation_away(tmp_path: Path) -> None:
    """The refresh has read everything and is about to sign when the revocation comes: it waits, and then follows."""
    shop = workshop(tmp_path)
    before = published(shop.repo)["revoke.json"]
    at_hand = signers_of([shop.ring], PASSPHRASE)
    revoking = threading.Thread(target=lambda: shop.repository().revoke("key", "a" * 64, "lost"))

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
        threading.Thread(target=several[number].revoke, args=("key", f"{number}" * 64, "lost")) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(entry.serial for entry in shop.repository().revocations().revocations) == [1, 2, 3, 4]


def test_a_change_that_fails_is_not_published_by_the_next(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    at_hand = signers_of([shop.ring], PASSPHRASE)
    missing = {"revoke"}
    repository = Repository(shop.repo, shop.ring, lambda role: [] if role in missing else at_hand(role))
    with pytest.raises(UsageError, match="must sign"):
        repository.revoke("key", "a" * 64, "lost")
    missing.clear()
    repository.refresh()
    assert repository.revocations().revocations == ()


def test_what_is_no_repository_gets_no_lock(tmp_path: Path) -> None:
    ring = workshop(tmp_path / "shop").ring
    with pytest.raises(UsageError, match="is not a repository"):
        Repository(tmp_path / "none", ring, lambda _: []).refresh()
    assert not (tmp_path / "none").exists()

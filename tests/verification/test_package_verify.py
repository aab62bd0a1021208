"""Verification: what a verified package gives, copies, memory, freshness, revocation and its end, keys and the switch."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.workshop import DAY, PASSPHRASE, Workshop, finished_run, used_here, workshop
from stillroom import switch
from stillroom import verification as package
from stillroom.core import files
from stillroom.core.errors import StillroomError, SwitchedOff, UsageError, VerificationFailed
from stillroom.packages.keys import Ring
from stillroom.packages.pack import PackOptions, pack
from stillroom.packages.sign import sign_package
from stillroom.serving.models import open_model
from stillroom.verification import copying, verification
from stillroom.verification import inside as door
from stillroom.verification.closed import parse_json, read_bytes
from stillroom.verification.copying import copy_verified
from stillroom.verification.lineage import Ancestor, Identity, index_of, inherit, reached_by
from stillroom.verification.manifest import CHUNK, SIGNATURE, check_names, make_manifest, parse_statement, walk


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return workshop(tmp_path)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_the_door_is_exported() -> None:
    assert package.verify is verification.verify
    assert package.VerifiedPackage is verification.VerifiedPackage


def test_the_copy_is_private_read_only_and_goes_away(shop: Workshop) -> None:
    with shop.verify() as verified:
        assert stat.S_IMODE(verified._private.stat().st_mode) == 0o700
        assert stat.S_IMODE(verified.gguf.stat().st_mode) == 0o400
        assert verified.gguf.is_relative_to(verified.folder)
        assert not verified.folder.is_relative_to(shop.package)
        private = verified._private
        shop.check()
        assert private.exists()
    assert not private.exists()


def test_a_file_inside_is_opened_as_its_package_is(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    file = next((shop.package / "weights").glob("*.gguf"))
    assert door.package_around(file) == shop.package
    link = shop.folder / "link.gguf"
    link.symlink_to(file)
    assert door.package_around(link) == shop.package
    out = shop.package / "weights" / "out.gguf"
    alone = shop.folder / "alone.gguf"
    alone.write_bytes(file.read_bytes())
    out.symlink_to(alone)
    assert door.package_around(out) == shop.package
    out.unlink()
    # Who stands in a package and names a file beside it means that file.
    monkeypatch.chdir(shop.package / "weights")
    assert door.package_around(Path("../../alone.gguf")) is None
    assert door.package_around(Path(file.name)) == shop.package
    identities = set()
    with used_here(shop):
        with door.checked(alone) as path:
            assert path == alone
        for name in (file, link, Path(file.name)):
            with door.checked(name) as path:
                assert path.read_bytes() == file.read_bytes()
                assert not path.resolve().is_relative_to(shop.package)
            assert not path.exists()
            with open_model(name) as opened:
                assert opened.passport()["kind"] == "package"
                opened.recheck()
                identities.add(opened.identity)
            assert not opened.gguf.exists()
        # Of each private copy the same, so that what was computed for a conversation is of use after a restart.
        assert len(identities) == 1
        with pytest.raises(VerificationFailed, match="not on the signed list"), door.checked(shop.package / SIGNATURE):
            pass
        (shop.package / SIGNATURE).unlink()
        with pytest.raises(VerificationFailed, match="no one has signed it"):
            open_model(file)


def test_copies_of_dead_processes_are_removed(shop: Workshop) -> None:
    copies = shop.folder / "copies"
    # The number of a process says nothing of another container or machine that shares the folder; its lock does.
    held, left, old = (copies / f"pid{2**22 + 1}-{name}" for name in ("held", "left", "of-0.1.0"))
    for folder in (held, left, old):
        folder.mkdir(parents=True)
    left.with_name(f"{left.name}.lock").touch()
    os.utime(old, (1, 1))
    with open(held.with_name(f"{held.name}.lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        shop.check()
        assert held.exists()
    assert not left.exists()
    assert not old.exists()
    shop.check()
    assert list(copies.iterdir()) == []


def test_a_refusal_leaves_no_copy(shop: Workshop) -> None:
    path = next((shop.package / "weights").iterdir())
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(VerificationFailed):
        shop.check()
    assert list((shop.folder / "copies").iterdir()) == []


def test_a_file_is_what_was_opened_and_not_what_its_name_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, or a pipe that would hold the reader for ever, takes its place after the look."""
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "link").symlink_to("elsewhere")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "is_symlink", lambda _path: False)
    monkeypatch.setattr(Path, "is_file", lambda _path: True)
    assert read_bytes(tmp_path / "elsewhere") == b"{}"
    for name in ("link", "pipe", "nothing", "."):
        with pytest.raises(VerificationFailed):
            read_bytes(tmp_path / name)


def test_folders_without_an_end_are_refused_by_name(tmp_path: Path) -> None:
    # Where Python's own limit of recursion is, other programs end as well; ours is far below it.
    (tmp_path / "/".join("a" * 80)).mkdir(parents=True)
    with pytest.raises(VerificationFailed, match="nested more than"):
        walk(tmp_path / "a")
    (tmp_path / "flat").mkdir()
    for number in range(12):
        (tmp_path / "flat" / str(number)).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillroom.verification.manifest.MOST_FILES", 8)
        with pytest.raises(VerificationFailed, match="more than 8 files"):
            walk(tmp_path / "flat")


def test_switched_off_stops_before_anything_is_read(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def off() -> None:
        raise SwitchedOff("off")

    with shop.verify() as verified:
        monkeypatch.setattr(switch, "require_on", off)
        monkeypatch.setattr(verification, "read_bytes", lambda *_: pytest.fail("something was read"))
        with pytest.raises(SwitchedOff):
            shop.check()
        with pytest.raises(SwitchedOff):
            verified.recheck()


def test_passport(shop: Workshop) -> None:
    with shop.verify() as verified:
        passport = verified.passport()
    assert passport["name"] == "small"
    assert passport["sequence"] == 2
    assert passport["publisher"] == "acme"
    assert passport["signature"]["threshold"] == 2
    assert len(passport["signature"]["signers"]) == 2
    assert passport["terms"]["verdict"] == "allowed"
    assert passport["bounds"][0]["met"]
    assert passport["warnings"] == []


def test_revocation_is_sticky_until_the_release_role_reinstates(shop: Workshop) -> None:
    teacher = files.digest_bytes(b"teacher")
    shop.repository().revoke("teacher", teacher, "withdrawn")
    with pytest.raises(VerificationFailed, match="revoked by teacher"):
        shop.check()
    offline = {"trust": shop.pin.model_copy(update={"repository": str(shop.folder / "gone")})}
    with pytest.raises(VerificationFailed, match="revoked by teacher"):
        shop.check(**offline)
    shop.repository().reinstate(teacher)
    shop.check()
    shop.repository().revoke("teacher", teacher, "withdrawn again")
    with pytest.raises(VerificationFailed, match="withdrawn again"):
        shop.check()


def test_policy_may_warn_after_the_grace(shop: Workshop) -> None:
    shop.edit("policy.json", lambda policy: policy.update(at_expiry="warn", offline_grace_days=1), sign=True)
    shop.check()
    gone = shop.pin.model_copy(update={"repository": str(shop.folder / "gone")})
    with shop.verify(trust=gone, now=now() + 100 * DAY) as verified:
        assert "beyond the grace" in verified.warnings[0]
    # The clock was believed until the end of the grace and no further.
    with pytest.raises(VerificationFailed, match="set back"):
        shop.check(trust=gone, now=now() + 12 * DAY)
    shop.check(trust=gone, now=now() + 16 * DAY)


def test_a_mirror_on_a_medium_stands_in(shop: Workshop) -> None:
    gone = shop.pin.model_copy(update={"repository": str(shop.folder / "gone")})
    with pytest.raises(VerificationFailed, match="Nothing is known yet"):
        shop.check(trust=gone)
    shop.check(trust=gone, repository=str(shop.repo))
    with shop.verify(trust=gone) as verified:
        assert "offline" in verified.warnings[0]


def test_without_a_repository_a_warning_says_so(shop: Workshop) -> None:
    with shop.verify(trust=shop.pin.model_copy(update={"repository": None})) as verified:
        assert "names no repository" in verified.warnings[0]
        verified.recheck()


def test_pins_are_files_and_the_right_one_is_chosen(shop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pins"
    folder.mkdir()
    with pytest.raises(VerificationFailed, match="No publisher is trusted"):
        shop.check(trust=folder)
    files.write_json(folder / "acme.json", shop.pin.model_dump(mode="json"))
    other = Ring.create(tmp_path / "other-keys", "other", PASSPHRASE, cost=2)
    other_shop = Workshop(tmp_path / "other")
    repository = shop.repository(ring=other)
    repository.folder = other_shop.repo
    repository.init(None)
    files.write_bytes(folder / "aaa.json", (other_shop.repo / "trust.json").read_bytes())
    with shop.verify(trust=folder) as verified:
        assert verified.publisher == "acme"


def test_signatures_are_added_one_by_one(tmp_path: Path) -> None:
    shop = workshop(tmp_path / "shop")
    target = pack(finished_run(tmp_path), options=PackOptions(sequence=3))
    first = sign_package(target, shop.ring, PASSPHRASE, ["release-1"])
    assert (first.signatures, first.threshold) == (1, 2)
    with pytest.raises(VerificationFailed, match="1 of the 2"):
        shop.check(target)
    second = sign_package(target, shop.ring, PASSPHRASE, ["release-3"])
    assert second.signatures == 2
    assert second.manifest == first.manifest
    shop.check(target)
    with pytest.raises(UsageError, match="not a release key"):
        sign_package(target, shop.ring, PASSPHRASE, ["online-1"])


def test_rotation_of_every_role(shop: Workshop) -> None:
    ring = shop.ring
    for role, name in (("root", "root-1"), ("release", "release-1"), ("revoke", "revoke-1"), ("online", "online-1")):
        assert ring.rotate(role, name, PASSPHRASE, cost=2) != name
        shop.repository(ring=ring).refresh()
    shop.sign(names=("release-2", "release-4"))
    shop.check()
    shop.repository().revoke("dataset", files.digest_bytes(b"dataset"), "withdrawn")
    with pytest.raises(VerificationFailed, match="revoked by dataset"):
        shop.check()


def test_threshold_is_published(shop: Workshop) -> None:
    ring = shop.ring
    ring.set_threshold("release", 3)
    shop.repository(ring=ring).refresh()
    with pytest.raises(VerificationFailed, match="2 of the 3"):
        shop.check()
    with pytest.raises(UsageError, match="cannot sign"):
        ring.set_threshold("release", 4)


def test_private_files_are_encrypted_and_closed(shop: Workshop) -> None:
    path = shop.folder / "keys" / "private" / "release-1.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    seed = shop.ring.private_key("release-1", PASSPHRASE).private_bytes_raw()
    assert seed not in path.read_bytes()
    assert seed.hex() not in path.read_text()
    with pytest.raises(UsageError, match="passphrase"):
        shop.ring.signer("release-1", "wrong")
    with pytest.raises(UsageError, match="eight characters"):
        Ring.create(shop.folder / "short", "acme", "short")


def test_releases_follow_each_other(shop: Workshop) -> None:
    with pytest.raises(UsageError, match="does not follow"):
        shop.repository().add(shop.older)


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_large_files_are_checked_in_pieces(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    data = (os.urandom(1021) * (size // 1021 + 1))[:size]
    (source / "file").write_bytes(data)
    manifest = make_manifest(source, "name", 1)
    assert len(manifest.files[0].chunks) == (-(-size // CHUNK) if size > CHUNK else 0)
    target.mkdir()
    copy_verified(source, parse_statement(manifest.statement()), target)
    assert (target / "file").read_bytes() == data
    if size:
        (source / "file").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        again = tmp_path / "again"
        again.mkdir()
        with pytest.raises(VerificationFailed, match=f"to {size:,} differ"):
            copy_verified(source, manifest, again)


@pytest.mark.parametrize("grown", [0, 1000])
def test_where_files_can_share_blocks_the_clone_itself_is_digested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: int
) -> None:
    # No file system that clones is at hand everywhere: the call is stood in for by a copy, as `ioctl_ficlone(2)` says it acts.
    fcntl = pytest.importorskip("fcntl")
    source = tmp_path / "source"
    source.mkdir()
    data = os.urandom(CHUNK + 5)
    (source / "file").write_bytes(data)
    manifest = make_manifest(source, "name", 1)
    found = data

    def clone(writing: int, request: int, reading: int) -> int:
        assert request == copying.FICLONE
        assert os.fstat(reading).st_size == len(data)
        os.pwrite(writing, found + bytes(grown), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    for name in ("whole", "changed"):
        target = tmp_path / name
        target.mkdir()
        if name == "changed":
            found = data[:-1] + bytes([data[-1] ^ 1])  # the source at the moment of cloning, whatever it is afterwards
            with pytest.raises(VerificationFailed, match="is not the file that was signed"):
                copy_verified(source, manifest, target)
        else:
            copy_verified(source, manifest, target)
            assert (target / "file").read_bytes() == data


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_only_stillroom_errors_come_out_of_parsers(data: bytes) -> None:
    for read in (lambda: parse_statement(data), lambda: parse_json(data, "input")):
        with contextlib.suppress(StillroomError):
            read()


@given(st.lists(st.text(max_size=12), max_size=6))
@settings(max_examples=200)
def test_names_that_pass_stay_inside_and_apart(names: list[str]) -> None:
    try:
        check_names(names)
    except VerificationFailed:
        return
    root = Path("/package")
    places = [Path(os.path.normpath(root / name)) for name in names]
    assert all(place != root and place.is_relative_to(root) for place in places)
    assert len({str(place).lower() for place in places}) == len(names)


DIGESTS = [files.digest_bytes(bytes([number])) for number in range(12)]


@given(st.data())
@settings(max_examples=60)
def test_revocation_reaches_exactly_the_descendants(data: st.DataObject) -> None:
    """In any family tree: a student is refused if and only if a path leads from it to the revoked teacher."""
    lineage: dict[str, tuple[Ancestor, ...]] = {DIGESTS[0]: ()}
    above: dict[str, set[str]] = {DIGESTS[0]: set()}
    for number, student in enumerate(DIGESTS[1:], start=1):
        teachers = data.draw(st.lists(st.sampled_from(DIGESTS[:number]), min_size=1, max_size=3, unique=True))
        direct = [Ancestor(kind="teacher", name="t", digest=teacher, generation=1) for teacher in teachers]
        lineage[student] = inherit(direct, [lineage[teacher] for teacher in teachers])
        above[student] = set(teachers).union(*(above[teacher] for teacher in teachers))
    revoked = data.draw(st.sampled_from(DIGESTS))
    from benchmarks.trust import _revocation

    index = index_of([_revocation(revoked, 1)])
    for student in DIGESTS:
        reached = reached_by(Identity(package=files.digest_bytes(student.encode()), ancestors=lineage[student]), index)
        assert (reached is not None) == (revoked in above[student])

"""A publisher's repository: TUF metadata for releases and revocations, in a folder.

    REPO/metadata/    N.root.json, N.targets.json (release), N.revoke.json, N.snapshot.json, timestamp.json (online)
    REPO/targets/     releases.json, reinstatements.json, revocations/list.json, releases/NAME/N/package.dsse
    REPO/trust.json   what to ship with an application: the first root, where the repository is, the time it was made

Any static web server or a medium can carry the folder. Every change writes new versions and keeps the old files. One process at
a time changes it, from reading the published versions to writing the next ones: ``.lock`` is the file of that lock. A change is
signed as a whole before any of it is written, and the timestamp, which leads to the rest, is written last.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.core.extras import require
from stillroom.packages.keys import Ring, Role, role_of
from stillroom.verification.closed import parse, read_bytes
from stillroom.verification.documents import (
    REINSTATEMENTS,
    RELEASES,
    REVOCATIONS,
    Kind,
    Pin,
    Reinstatements,
    Release,
    Releases,
    Revocation,
    RevocationList,
)
from stillroom.verification.envelope import open_envelope
from stillroom.verification.manifest import SIGNATURE, parse_statement

if TYPE_CHECKING:
    from pydantic import BaseModel
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root

VALID_DAYS = {"root": 730, "targets": 730, "revoke": 730, "snapshot": 14, "timestamp": 14}
"""The online role renews the last two; anyone who holds back newer metadata is noticed when they expire."""
RENEW_DAYS = 183
"""A refresh re-signs root, targets and revoke when fewer days than these are left, where their keys are at hand."""
SIGNED_BY: dict[str, Role] = {
    "root": "root",
    "targets": "release",
    "revoke": "revoke",
    "snapshot": "online",
    "timestamp": "online",
}
"""Whose keys sign each part of the metadata."""
OFFLINE = ("root", "targets", "revoke")
"""Parts whose keys are not on a server."""
Signers = Callable[[Role], "list[CryptoSigner]"]
"""Gives the signers of a role whose private keys are at hand."""


@dataclass(frozen=True)
class Ending:
    """A part of the metadata that expires soon, or has expired, and that too few keys were at hand to renew."""

    part: str
    role: Role
    expires: datetime.datetime
    expired: bool
    threshold: int
    """How many keys of the role must sign."""
    at_hand: int

    def __str__(self) -> str:
        return (
            f"{self.part}.json {'expired' if self.expired else 'expires'} on {self.expires:%Y-%m-%d} and was not renewed: "
            f"{self.threshold} keys of the role {self.role} must sign, {self.at_hand} are at hand"
        )


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did about the parts that the online key does not sign."""

    renewed: dict[str, datetime.datetime]
    """Parts that were re-signed, and when they expire now."""
    ending: tuple[Ending, ...]


class Repository:
    """A repository that its publisher writes.

    Args:
        folder: Where it is.
        ring: The publisher's keys; None to look only.
        signers: Opens the private keys of a role.
        now: The time to write into the metadata; the present without it.
    """

    def __init__(self, folder: Path, ring: Ring | None, signers: Signers, now: datetime.datetime | None = None) -> None:
        require("trust", "A repository needs packages that are not installed: {}.")
        from filelock import FileLock

        self.folder = folder
        # Who shares the folder by its group shares the lock.
        self._lock = FileLock(folder / ".lock", mode=0o660)
        self._ring = ring
        self._signers = signers
        self.now = (now or datetime.datetime.now(datetime.UTC)).replace(microsecond=0)
        self._loaded: dict[str, Metadata[Any]] = {}
        self._targets: dict[Path, bytes] = {}
        """Files of the change that is being made; they are written when all of it is signed."""

    @property
    def ring(self) -> Ring:
        """The publisher's keys; needed for everything but looking."""
        if self._ring is None:
            raise UsageError(f"{self.folder}: no keys were given.", "Give the folder of keys with --keys.")
        return self._ring

    def init(self, address: str | None) -> None:
        """Write the first metadata and ``trust.json``.

        Args:
            address: Where machines will find the repository: an https address or a folder; this folder without it.

        Raises:
            UsageError: There is a repository already, or too few private keys are at hand.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if (self.folder / "metadata").exists():
                raise UsageError(
                    f"{self.folder} is a repository already.", "Choose another folder; nothing was changed."
                )
            try:
                self._begin()
                self.write_pin(address)
            except BaseException:
                # Half a repository could neither be used nor made again.
                self._forget()
                shutil.rmtree(self.folder / "metadata", ignore_errors=True)
                raise

    def _begin(self) -> None:
        """Sign and write the first metadata."""
        from tuf.api.metadata import (
            DelegatedRole,
            Delegations,
            Metadata,
            MetaFile,
            Root,
            Snapshot,
            Targets,
            Timestamp,
        )

        root = Root(consistent_snapshot=True, expires=self._expiry("root"))
        self._fill_root(root)
        revoke_keys = [self.ring.public_key(name) for name in self.ring.names("revoke")]
        targets = Targets(expires=self._expiry("targets"))
        targets.delegations = Delegations(
            {key.keyid: key for key in revoke_keys},
            {
                "revoke": DelegatedRole(
                    "revoke",
                    [key.keyid for key in revoke_keys],
                    self.ring.threshold("revoke"),
                    True,
                    paths=["revocations/*"],
                )
            },
        )
        snapshot = Snapshot(expires=self._expiry("snapshot"))
        snapshot.meta["revoke.json"] = MetaFile(1)
        self._loaded = {
            "root": Metadata(root),
            "targets": Metadata(targets),
            "revoke": Metadata(Targets(expires=self._expiry("revoke"))),
            "snapshot": Metadata(snapshot),
            "timestamp": Metadata(Timestamp(expires=self._expiry("timestamp"))),
        }
        self._put("targets", RELEASES, Releases(format=1, releases=(), least_sequences={}))
        self._put("targets", REINSTATEMENTS, Reinstatements(format=1, reinstated=()))
        self._put("revoke", REVOCATIONS, RevocationList(format=1, revocations=()))
        for role in OFFLINE:
            self._sign(role)
        self._publish(first=True)

    def write_pin(self, address: str | None = None) -> Pin:
        """Write ``trust.json`` from the present root: what new installations begin with."""
        root = self._metadata("root")
        least = self.releases().least_sequences
        pin = Pin(
            format=1,
            publisher=self.ring.publisher,
            root=root.to_dict(),
            repository=address or str(self.folder.absolute()),
            least_sequences=least,
            not_before=self.now,
        )
        files.write_json(self.folder / "trust.json", pin.model_dump(mode="json"))
        return pin

    def add(self, package: Path, least: bool = False) -> Release:
        """Publish a signed package.

        Args:
            package: Its folder.
            least: No earlier release of this name may run any more.

        Raises:
            UsageError: A release of this number, or a later one, is there already.
            VerificationFailed: The package is not signed by enough release keys.
        """
        from tuf.api.metadata import TargetFile

        data = read_bytes(package / SIGNATURE)
        keys = [self.ring.public_key(name) for name in self.ring.names("release")]
        signed = open_envelope(data, str(package / SIGNATURE), keys, self.ring.threshold("release"), frozenset())
        manifest = parse_statement(signed.payload)
        with self._changing():
            known = self.releases()
            highest = max((entry.sequence for entry in known.releases if entry.name == manifest.name), default=0)
            if manifest.sequence <= highest:
                raise UsageError(
                    f"{manifest.name}: release {manifest.sequence} does not follow release {highest}.",
                    f"Pack it again: stillroom package RUN --sequence {highest + 1}.",
                )
            release = Release(name=manifest.name, sequence=manifest.sequence, digest=manifest.root)
            floors = known.least_sequences | ({manifest.name: manifest.sequence} if least else {})
            self._put(
                "targets",
                RELEASES,
                Releases(format=1, releases=(*known.releases, release), least_sequences=floors),
            )
            path = f"releases/{release.name}/{release.sequence}/{SIGNATURE}"
            self._write_target(path, data)
            self._metadata("targets").signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
            self._change("targets")
            return release

    def revoke(self, kind: Kind, value: str, reason: str) -> Revocation:
        """Withdraw a package, teacher or dataset by its digest, or a release key by its identifier. The role revoke signs.

        Raises:
            UsageError: The key is none of the publisher's, or of a role for which machines look at no list.
        """
        if kind == "key":
            self._require_release_key(value)
        with self._changing():
            known = self.revocations()
            serial = max((entry.serial for entry in known.revocations), default=0) + 1
            entry = Revocation(kind=kind, value=value, reason=reason, date=self.now.date(), serial=serial)
            self._put("revoke", REVOCATIONS, RevocationList(format=1, revocations=(*known.revocations, entry)))
            self._change("revoke")
            return entry

    def _require_release_key(self, keyid: str) -> None:
        """Refuse a key whose revocation would have no effect: only signatures of release keys are compared with the list."""
        name = self.ring.name_of(keyid)
        if name is None:
            raise UsageError(
                f"{keyid[:12]}… is no key of {self.ring.publisher}.",
                f"`stillroom keys show {self.ring.folder}` shows them.",
            )
        role = role_of(name)
        if role == "release":
            return
        publish = f"stillroom repo refresh {self.folder} --keys {self.ring.folder}"
        if name in self.ring.names(role):
            raise UsageError(
                f"{name} holds the role {role}, and only release keys are revoked: machines learn from the root who holds the "
                "others.",
                f"Rotate it: stillroom keys rotate {self.ring.folder} {role} {name}, then {publish}",
            )
        raise UsageError(
            f"{name} was rotated: it holds the role {role} no longer, and only release keys are revoked.",
            f"If that is not published yet: {publish}",
        )

    def reinstate(self, value: str) -> list[Revocation]:
        """Take back every revocation of a digest. The role release signs; revoke alone cannot.

        Raises:
            UsageError: Nothing of this digest is revoked.
        """
        with self._changing():
            done = set(self.reinstatements().reinstated)
            chosen = [
                entry for entry in self.revocations().revocations if entry.value == value and entry.id not in done
            ]
            if not chosen:
                raise UsageError(f"{value[:12]}… is not revoked.", "`stillroom inspect REPO` shows what is.")
            reinstated = tuple(sorted(done | {entry.id for entry in chosen}))
            self._put("targets", REINSTATEMENTS, Reinstatements(format=1, reinstated=reinstated))
            self._change("targets")
            return chosen

    def refresh(self) -> Refreshed:
        """Renew dates with the online key; where the ring's keys changed, write the next root and re-sign what they must.

        Root, targets and revoke are re-signed, too, when they expire within :data:`RENEW_DAYS` days and enough of their keys
        are at hand. Where they are not, the rest is published all the same, also where such a part has expired: what is renewed
        here need not be renewed again when the missing keys come. The caller says so, and fails where ``ending`` has what
        expired.

        Raises:
            UsageError: The ring's keys changed, or the online key is not here, and too few keys are at hand; nothing was
                changed.
        """
        with self._changing():
            root = self._metadata("root")
            wanted = copy.deepcopy(root.signed)
            self._fill_root(wanted)
            renewed: list[str] = []
            ending: list[Ending] = []
            if wanted.to_dict() != root.signed.to_dict() or self._renewable("root", ending):
                wanted.version += 1
                wanted.expires = self._expiry("root")
                self._next_root(root, wanted)
                renewed.append("root")
            self._delegate()
            for role in ("targets", "revoke"):
                # What the old keys signed must be signed by those that hold the roles now.
                if not self._is_signed(role) or self._renewable(role, ending):
                    self._sign_next(role)
                    renewed.append(role)
            self._publish()
            return Refreshed({role: self._metadata(role).signed.expires for role in renewed}, tuple(ending))

    def _renewable(self, part: str, ending: list[Ending]) -> bool:
        """Whether a part expires soon and can be re-signed; where it cannot, ``ending`` has it then."""
        expires = self._metadata(part).signed.expires
        if expires - self.now >= datetime.timedelta(days=RENEW_DAYS):
            return False
        role = SIGNED_BY[part]
        threshold, at_hand = self.ring.threshold(role), len(self._at_hand(role))
        if at_hand < threshold:
            ending.append(Ending(part, role, expires, expires <= self.now, threshold, at_hand))
        return at_hand >= threshold

    def expires(self) -> datetime.datetime:
        """When the first part of the metadata expires."""
        moment: datetime.datetime = min(self._metadata(role).signed.expires for role in SIGNED_BY)
        return moment

    def releases(self) -> Releases:
        """What was published."""
        return parse(Releases, self._read_target("targets", RELEASES), RELEASES)

    def revocations(self) -> RevocationList:
        """What was withdrawn."""
        return parse(RevocationList, self._read_target("revoke", REVOCATIONS), REVOCATIONS)

    def reinstatements(self) -> Reinstatements:
        """What was taken back."""
        return parse(Reinstatements, self._read_target("targets", REINSTATEMENTS), REINSTATEMENTS)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One change, alone: it begins with what is published, whatever was read before; nothing stays of one that fails.

        Raises:
            UsageError: There is no repository.
        """
        if not (self.folder / "metadata").is_dir():
            raise self._none_here()
        with self._lock:
            self._forget()
            try:
                yield
            except BaseException:
                self._forget()
                raise

    def _forget(self) -> None:
        """Let go of what was read and what waits to be written."""
        self._loaded.clear()
        self._targets.clear()

    def _none_here(self) -> UsageError:
        return UsageError(f"{self.folder} is not a repository.", "Make one: stillroom repo init FOLDER.")

    def _fill_root(self, root: Root) -> None:
        """Give a root the ring's keys and thresholds; tuf's names of the roles are its own."""
        names = {"root": ("root",), "release": ("targets",), "online": ("snapshot", "timestamp")}
        root.keys.clear()
        for role, theirs in names.items():
            keys = [self.ring.public_key(name) for name in self.ring.names(role)]  # type: ignore[arg-type]
            for their in theirs:
                root.roles[their].keyids = []
                root.roles[their].threshold = self.ring.threshold(role)  # type: ignore[arg-type]
                for key in keys:
                    root.add_key(key, their)

    def _next_root(self, before: Metadata[Root], wanted: Root) -> None:
        """Sign the next root by enough of its own keys and enough of the last one's."""
        from tuf.api.metadata import Metadata

        fresh = Metadata(wanted)
        held = {key.keyid: name for name, key in self.ring.content.keys.items()}
        signers = {signer.public_key.keyid: signer for signer in self._signers("root")}
        counted = sum(keyid in signers for keyid in before.signed.roles["root"].keyids)
        if counted < before.signed.roles["root"].threshold:
            missing = [
                held.get(keyid, keyid[:12]) for keyid in before.signed.roles["root"].keyids if keyid not in signers
            ]
            raise UsageError(
                f"The next root needs {before.signed.roles['root'].threshold} of the last root's keys; {counted} are at "
                "hand.",
                f"Missing: {', '.join(missing)}. Nothing was changed.",
            )
        for signer in signers.values():
            fresh.sign(signer, append=True)
        self._loaded["root"] = fresh
        self._require_signed(fresh)

    def _delegate(self) -> None:
        """Give the role revoke the ring's keys."""
        keys = {key.keyid: key for key in map(self.ring.public_key, self.ring.names("revoke"))}
        delegations = self._metadata("targets").signed.delegations
        role = delegations.roles["revoke"]
        if (sorted(role.keyids), role.threshold) != (sorted(keys), self.ring.threshold("revoke")):
            delegations.keys = keys
            role.keyids, role.threshold = list(keys), self.ring.threshold("revoke")

    def _is_signed(self, role: str) -> bool:
        """Whether targets or revoke, as they are now, are signed by enough of the keys that hold the roles now."""
        from tuf.api.exceptions import UnsignedMetadataError

        metadata = self._metadata(role)
        above = self._metadata("root" if role == "targets" else "targets").signed
        try:
            above.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError:
            return False
        return True

    def _change(self, role: str) -> None:
        self._sign_next(role)
        self._publish()

    def _sign_next(self, role: str) -> None:
        """Sign the next version of targets or revoke; it is valid for its whole time."""
        self._metadata(role).signed.version += 1
        self._metadata(role).signed.expires = self._expiry(role)
        self._sign(role)

    def _publish(self, first: bool = False) -> None:
        """Sign snapshot and timestamp over what was signed, then write everything; the timestamp comes last, so a reader sees
        all or nothing.
        """
        from tuf.api.metadata import MetaFile

        snapshot, timestamp = self._metadata("snapshot"), self._metadata("timestamp")
        if not first:
            snapshot.signed.version += 1
            timestamp.signed.version += 1
        snapshot.signed.expires = self._expiry("snapshot")
        timestamp.signed.expires = self._expiry("timestamp")
        # A machine can tell from this that its clock was set back.
        timestamp.signed.unrecognized_fields["x-stillroom-issued"] = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        for role in ("targets", "revoke"):
            data = self._metadata(role).to_bytes()
            snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(
                self._metadata(role).signed.version, data, ["sha256"]
            )
        self._sign("snapshot")
        timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"])
        self._sign("timestamp")
        self._write()

    def _write(self) -> None:
        """Write what was changed. No one reads targets, revoke and snapshot before the timestamp leads there; machines find a
        new root by its number, so it is written just before the timestamp, and does not stay without it.
        """
        for path, data in self._targets.items():
            files.write_bytes(path, data)
        self._targets.clear()
        for role in ("targets", "revoke", "snapshot"):
            self._write_metadata(role)
        root = self._path("root", self._metadata("root").signed.version)
        is_new = not root.exists()
        try:
            if is_new:
                self._write_metadata("root")
            self._write_metadata("timestamp")
        except BaseException:
            timestamp = self._path("timestamp", 0)
            written = timestamp.is_file() and timestamp.read_bytes() == self._metadata("timestamp").to_bytes()
            if is_new and not written:
                root.unlink(missing_ok=True)
            raise

    def _at_hand(self, name: Role) -> list[CryptoSigner]:
        """Signers of the keys that hold a role now."""
        keys = {self.ring.content.keys[key].keyid for key in self.ring.names(name)}
        return [signer for signer in self._signers(name) if signer.public_key.keyid in keys]

    def _sign(self, role: str) -> None:
        name = SIGNED_BY[role]
        metadata = self._metadata(role)
        metadata.signatures.clear()
        signers = self._at_hand(name)
        for signer in signers:
            metadata.sign(signer, append=True)
        if len(signers) < self.ring.threshold(name):
            raise UsageError(
                f"{self.ring.threshold(name)} keys of the role {name} must sign; {len(signers)} are at hand.",
                "Give the folder that holds the private keys with --keys; nothing was changed.",
            )

    def _require_signed(self, root: Metadata[Root]) -> None:
        from tuf.api.exceptions import UnsignedMetadataError

        try:
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except UnsignedMetadataError:
            raise UsageError(
                "The next root has too few signatures of its own keys.",
                "Bring the new private keys here too; nothing was changed.",
            ) from None

    def _expiry(self, role: str) -> datetime.datetime:
        return self.now + datetime.timedelta(days=VALID_DAYS[role])

    def _metadata(self, role: str) -> Metadata[Any]:
        """The published metadata of a role."""
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata

        if role not in self._loaded:
            found = self._path(role, self._published(role))
            if not found.is_file():
                raise self._none_here()
            try:
                self._loaded[role] = Metadata.from_bytes(found.read_bytes())
            except RepositoryError as error:
                raise UsageError(f"{found} cannot be read: {error}.", "Restore it from a copy.") from None
        return self._loaded[role]

    def _published(self, role: str) -> int:
        """The version of a role that the timestamp leads a reader to; a change that was killed may have left a newer one."""
        if role == "timestamp":
            return 0
        if role == "root":
            found = (self.folder / "metadata").glob("[0-9]*.root.json")
            return max((int(path.name.partition(".")[0]) for path in found), default=0)
        if role == "snapshot":
            return int(self._metadata("timestamp").signed.snapshot_meta.version)
        listed = self._metadata("snapshot").signed.meta.get(f"{role}.json")
        return 0 if listed is None else int(listed.version)

    def _path(self, role: str, version: int) -> Path:
        return self.folder / "metadata" / ("timestamp.json" if role == "timestamp" else f"{version}.{role}.json")

    def _write_metadata(self, role: str) -> None:
        metadata = self._metadata(role)
        files.write_bytes(self._path(role, metadata.signed.version), metadata.to_bytes())

    def _put(self, role: str, path: str, document: BaseModel) -> None:
        from tuf.api.metadata import TargetFile

        data = files.canonical_json(document.model_dump(mode="json")) + b"\n"
        self._write_target(path, data)
        self._metadata(role).signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])

    def _write_target(self, path: str, data: bytes) -> None:
        place = self.folder / "targets" / path
        self._targets[place.with_name(f"{files.digest_bytes(data)}.{place.name}")] = data

    def _read_target(self, role: str, path: str) -> bytes:
        digest = self._metadata(role).signed.targets[path].hashes["sha256"]
        place = self.folder / "targets" / path
        return read_bytes(place.with_name(f"{digest}.{place.name}"))


def signers_of(rings: list[Ring], passphrase: str) -> Signers:
    """Signers from several folders of keys, each private key once; rotated root keys count while they are there."""

    def signers(role: Role) -> list[CryptoSigner]:
        found: dict[str, CryptoSigner] = {}
        for ring in rings:
            names = ring.names(role)
            if role == "root":
                names = tuple(name for name in ring.content.keys if name.startswith("root-"))
            for name in names:
                if ring.has_private(name) and name not in found:
                    found[name] = ring.signer(name, passphrase)
        return list(found.values())

    return signers

"""Signs a package: one list of its files, a signature of every key at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillroom.core.errors import UsageError
from stillroom.packages.keys import Ring
from stillroom.packages.openssf import available, write_bundle
from stillroom.verification.closed import parse, read_bytes
from stillroom.verification.documents import Policy
from stillroom.verification.envelope import parse_envelope, sign_envelope
from stillroom.verification.manifest import (
    OPENSSF_SIGNATURE,
    PROVENANCE_SIGNATURE,
    SIGNATURE,
    Manifest,
    make_manifest,
    parse_statement,
)


@dataclass(frozen=True)
class SignedNow:
    """What signing came to.

    Attributes:
        manifest: The list that was signed.
        signatures: How many release keys have signed it now.
        threshold: How many must.
    """

    manifest: Manifest
    signatures: int
    threshold: int


def sign_package(package: Path, ring: Ring, passphrase: str, names: list[str] | None = None) -> SignedNow:
    """Sign a package, or add signatures to it.

    The first to sign makes the list and the OpenSSF bundle; who signs later adds a signature over the same list, after
    checking that the files are still those. A change of any file since then begins anew.

    Args:
        package: Its folder.
        ring: The release keys.
        passphrase: Opens them.
        names: Keys to sign with; all that are at hand without it.

    Raises:
        UsageError: There is no package, or no key.
    """
    if not (package / "policy.json").is_file():
        raise UsageError(f"{package} is not a package: it has no policy.json.", "Pack a run: stillroom package RUN.")
    policy = parse(Policy, read_bytes(package / "policy.json"), "policy.json")
    chosen = names or [name for name in ring.names("release") if ring.has_private(name)]
    strange = sorted(set(chosen) - set(ring.names("release")))
    if strange or not chosen:
        raise UsageError(
            f"{strange[0]} is not a release key." if strange else f"{ring.folder} holds no private release key.",
            f"Release keys: {', '.join(ring.names('release'))}.",
        )
    signers = [ring.signer(name, passphrase) for name in chosen]
    path = package / SIGNATURE
    before = parse_statement(parse_envelope(read_bytes(path), str(path)).payload) if path.is_file() else None
    manifest = make_manifest(package, policy.name, policy.sequence, before.openssf_key if before else None)
    if manifest != before:
        (package / OPENSSF_SIGNATURE).unlink(missing_ok=True)
        key = ring.content.openssf if available() and ring.has_private("openssf") else None
        manifest = manifest.model_copy(update={"openssf_key": key})
        if key is not None:
            write_bundle(package, ring, passphrase)
    sign_envelope(package / PROVENANCE_SIGNATURE, read_bytes(package / "provenance.json"), signers)
    sign_envelope(path, manifest.statement(), signers)
    held = {ring.content.keys[name].keyid for name in ring.names("release")}
    signed = held & set(parse_envelope(path.read_bytes(), str(path)).signatures)
    return SignedNow(manifest, len(signed), ring.threshold("release"))

"""A package or a repository for a reader, as a dictionary and as text. Proves and decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.core import plain
from stillroom.core.bounded import least
from stillroom.verification.claims import read_claims
from stillroom.verification.closed import read_bytes
from stillroom.verification.envelope import parse_envelope
from stillroom.verification.manifest import OUTSIDE, SIGNATURE, Manifest, describe, make_manifest, parse_statement, walk


def is_signed(path: Path) -> bool:
    """Whether a package carries signatures, of whomever."""
    return (path / SIGNATURE).is_file()


def is_package(path: Path) -> bool:
    """Whether a folder looks like a package, signed or not."""
    return is_signed(path) or ((path / "policy.json").is_file() and (path / "provenance.json").is_file())


def passport_of(path: Path, *, whole: bool = False) -> dict[str, Any]:
    """What a package says of itself. Nothing is proven by this: ``verify`` does that.

    Digests are those that its signature holds. Of an unsigned package ``digest`` and each file's ``sha256`` are None.

    Args:
        path: The package.
        whole: Read every byte of an unsigned package, for its digests.

    Raises:
        VerificationFailed: A document cannot be read, or the folder holds what no package does.
    """
    claims = read_claims(path)
    manifest: Manifest | None = None
    signature: dict[str, Any] = {"state": "unsigned", "signers": []}
    if is_signed(path):
        envelope = parse_envelope(read_bytes(path / SIGNATURE), SIGNATURE)
        manifest = parse_statement(envelope.payload)
        signature = {"state": "signed, not checked here", "signers": sorted(envelope.signatures)}
    elif whole:
        manifest = make_manifest(path, claims.policy.name, claims.policy.sequence)
    if manifest is not None:
        listed = describe(manifest)["files"]
    else:
        names = [name for name in walk(path) if name not in OUTSIDE]
        listed = [{"name": name, "bytes": (path / name).stat().st_size, "sha256": None} for name in names]
    return {
        "name": claims.policy.name,
        "sequence": claims.policy.sequence,
        "digest": manifest.root if manifest is not None else None,
        "signature": signature,
        **claims.passport(),
        "files": listed,
        "warnings": [],
    }


def lines(passport: dict[str, Any]) -> list[str]:
    """A provenance summary in lines of text."""
    signature, terms = passport["signature"], passport["terms"]
    found = [
        f"{passport['name']}, release {passport['sequence']}, of {passport['released']}",
        f"  digest      {passport['digest'] or 'none yet: `stillroom sign` makes it'}",
        f"  signature   {signature['state']}"
        + (f" by {len(signature['signers'])} keys" if signature["signers"] else "")
        + (f" of {passport['publisher']}" if "publisher" in passport else ""),
    ]
    for entry in passport["ancestors"]:
        found.append(
            f"  {entry['kind']:<11} {entry['name']} ({entry['digest'][:16]}…, generation {entry['generation']})"
        )
    found.append(f"  terms       {terms['verdict'].replace('_', ' ')} (table {terms['table_version']})")
    found += [f"              {reason}" for reason in terms["reasons"]]
    for key, words in (("licences", "licence"), ("use_policies", "use policy")):
        found += [f"  {words:<11} {name}" for name in terms[key]]
    for name in ("parameters", "kl_to_teacher", "top1_agreement", "bits_per_byte"):
        value = passport["scores"].get(name)
        if isinstance(value, int | float):
            interval = passport["scores"].get(f"{name}_interval")
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            between = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if isinstance(interval, list) else ""
            found.append(f"  {name:<11} {least(passport['scores'], name)}{shown}{between}")
    for bound in passport["bounds"]:
        met = "met" if bound["met"] else "MISSED"
        found.append(f"  {bound['kind']:<11} {bound['name']}: {bound['bound']:.4g}, found {bound['value']:.4g}: {met}")
    policy = passport["policy"]
    found.append(
        f"  policy      Stillroom {policy['minimum_runtime']} or newer; offline for {policy['offline_grace_days']} days "
        f"beyond expiry, then {policy['at_expiry']}"
    )
    for file in passport.get("files", ()):
        found.append(f"  file        {file['name']} ({file['bytes']:,} bytes)")
    found += [f"  mind        {warning}" for warning in passport["warnings"]]
    # None of it may draw a line that says something else: what is not signed says whatever its maker wanted.
    return [plain.shown(line, one_line=True) for line in found]


def read_repository(folder: Path) -> dict[str, Any]:
    """What a repository says, for a reader; nothing is proven by this."""
    from stillroom.packages.repository import Repository

    found = Repository(folder, None, lambda _role: [])
    back = set(found.reinstatements().reinstated)
    return {
        "expires": found.expires().isoformat(),
        "releases": [entry.model_dump(mode="json") for entry in found.releases().releases],
        "least_sequences": dict(found.releases().least_sequences),
        "revocations": [
            entry.model_dump(mode="json") | {"reinstated": entry.id in back}
            for entry in found.revocations().revocations
        ],
    }

"""Signatures around a payload: DSSE envelopes with a threshold."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.core import files
from stillroom.core.errors import VerificationFailed
from stillroom.core.extras import require
from stillroom.verification.closed import parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import Key, Signer

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MOST_SIGNATURES = 64


@dataclass(frozen=True)
class Signed:
    """A payload whose signatures were checked.

    Attributes:
        payload: The bytes that were signed.
        signers: Identifiers of the keys whose signatures count, sorted.
    """

    payload: bytes
    signers: tuple[str, ...]


def parse_envelope(data: bytes, name: str) -> Envelope:
    """Read a DSSE envelope, unverified.

    Raises:
        MissingDependency: The extra ``trust`` is not installed.
        VerificationFailed: It is not an envelope that Stillroom would write.
    """
    require("trust", "Signatures need packages that are not installed: {}.")
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import Signature

    value = parse_json(data, name)
    wrong = VerificationFailed(f"{name} is not a DSSE envelope of an in-toto statement.", "Get the package again.")
    if not isinstance(value, dict) or value.keys() != {"payload", "payloadType", "signatures"}:
        raise wrong
    found = value["signatures"]
    if value["payloadType"] != PAYLOAD_TYPE or not isinstance(found, list) or len(found) > MOST_SIGNATURES:
        raise wrong
    try:
        payload = _decode(value["payload"])
        signatures = {}
        for signature in found:
            if signature.keys() != {"keyid", "sig"} or not isinstance(signature["keyid"], str):
                raise wrong
            if signature["keyid"] in signatures:
                raise VerificationFailed(f"{name}: one key has signed twice.", "Get the package again.")
            signatures[signature["keyid"]] = Signature(signature["keyid"], _decode(signature["sig"]).hex())
    except (binascii.Error, AttributeError, TypeError, ValueError):
        raise wrong from None
    return Envelope(payload, PAYLOAD_TYPE, signatures)


def key_ids(data: bytes, name: str) -> set[str]:
    """Identifiers of the keys that an envelope claims to be signed with, unverified."""
    return set(parse_envelope(data, name).signatures)


def open_envelope(data: bytes, name: str, keys: Sequence[Key], threshold: int, revoked: frozenset[str]) -> Signed:
    """Check an envelope's signatures.

    Args:
        data: The envelope.
        name: What it is called in messages.
        keys: Public keys that may sign (``securesystemslib.signer.Key``).
        threshold: How many of them must have.
        revoked: Identifiers of keys whose signatures no longer count.

    Raises:
        VerificationFailed: Says how many signatures of trusted keys hold, and how many are needed.
    """
    from securesystemslib.exceptions import VerificationError

    envelope = parse_envelope(data, name)
    signers = []
    for key in keys:
        if key.keyid in envelope.signatures and key.keyid not in revoked:
            try:
                envelope.verify([key], 1)
            except VerificationError:
                raise VerificationFailed(
                    f"{name}: the signature of the key {key.keyid[:12]}… is not valid.",
                    "The package was changed after it was signed; get it again.",
                ) from None
            signers.append(key.keyid)
    if len(signers) < threshold:
        trusted = {key.keyid for key in keys}
        withdrawn = sum(keyid in revoked for keyid in envelope.signatures)
        strange = sum(keyid not in trusted and keyid not in revoked for keyid in envelope.signatures)
        why = f", {withdrawn} by revoked keys" if withdrawn else ""
        why += f", {strange} by keys that are not trusted" if strange else ""
        raise VerificationFailed(
            f"{name}: {len(signers)} of the {threshold} signatures that are needed{why}.",
            "Let enough of the release keys sign it: stillroom sign PACKAGE.",
        )
    return Signed(envelope.payload, tuple(sorted(signers)))


def sign_envelope(path: Path, payload: bytes, signers: Sequence[Signer]) -> None:
    """Add signatures to an envelope, or begin it. Signatures over another payload are dropped: they hold no longer."""
    require("trust", "Signatures need packages that are not installed: {}.")
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    if path.is_file():
        before = parse_envelope(path.read_bytes(), str(path))
        if before.payload == payload:
            envelope = before
    for signer in signers:
        envelope.sign(signer)
    files.write_bytes(path, files.canonical_json(envelope.to_dict()) + b"\n")


def _decode(text: str) -> bytes:
    """Base64 in its one canonical form, so that no bit of an envelope can change unnoticed."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data

"""The OpenSSF model signature beside ours, for tools that know only that one. Knows nothing of thresholds or roles.

Ours decides. The bundle is written with the library model-signing; reading it takes nothing but cryptography, so that a machine
without that library still refuses a bundle that disagrees with the package.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.errors import MissingDependency, VerificationFailed
from stillroom.package.keys import OPENSSF, Ring
from stillroom.package.manifest import OPENSSF_SIGNATURE, OUTSIDE, Manifest
from stillroom.package.strict import parse_json


def available() -> bool:
    """Whether the library that writes bundles is installed."""
    import importlib.util

    return importlib.util.find_spec("model_signing") is not None and importlib.util.find_spec("OpenSSL") is not None


def write_bundle(package: Path, ring: Ring, passphrase: str) -> None:
    """Sign every listed file of a package for tools of the OpenSSF.

    Raises:
        MissingDependency: The library is not installed.
    """
    if not available():
        raise MissingDependency(
            "The OpenSSF bundle needs the package model-signing.", "Install it: pip install 'stillroom[openssf]'."
        )
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from model_signing import hashing, signing

    key = ring.private_key(OPENSSF, passphrase)
    with tempfile.TemporaryDirectory() as folder:
        # The library takes a key from a file only. The folder is this user's alone and gone a moment later.
        path = Path(folder) / "key.pem"
        path.touch(0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        config = hashing.Config().set_ignored_paths(paths=[package / name for name in OUTSIDE], ignore_git_paths=False)
        made = Path(folder) / OPENSSF_SIGNATURE
        signing.Config().use_elliptic_key_signer(private_key=path).set_hashing_config(config).sign(package, made)
        files.write_bytes(package / OPENSSF_SIGNATURE, made.read_bytes())


def check_bundle(data: bytes, manifest: Manifest) -> None:
    """Check a bundle's signature under the key that the signed list names, and that it names the same files.

    Raises:
        VerificationFailed: It does not belong to this package.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    bundle = parse_json(data, OPENSSF_SIGNATURE)
    wrong = VerificationFailed(f"{OPENSSF_SIGNATURE} is not a bundle of this package.", "Get the package again.")
    try:
        envelope = bundle["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        kind = envelope["payloadType"].encode()
        key: Any = load_pem_public_key((manifest.openssf_key or "").encode())
        key.verify(signature, b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload), ec.ECDSA(SHA256()))
        resources = parse_json(payload, OPENSSF_SIGNATURE)["predicate"]["resources"]
        named = {resource["name"]: resource["digest"] for resource in resources}
    except InvalidSignature:
        raise VerificationFailed(
            f"{OPENSSF_SIGNATURE}: its signature is not valid.", "Get the package again."
        ) from None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, binascii.Error):
        raise wrong from None
    if named != {file.name: file.sha256 for file in manifest.files}:
        raise wrong

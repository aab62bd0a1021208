"""The OpenSSF model signature beside ours, for tools that know only that one.

Ours decides. The bundle is written with the library model-signing; reading it takes nothing but cryptography, so that a machine
without that library still refuses a bundle that disagrees with the package.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from stillroom.core.errors import VerificationFailed
from stillroom.verification.closed import parse_json
from stillroom.verification.manifest import OPENSSF_SIGNATURE, Manifest


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

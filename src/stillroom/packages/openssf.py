"""Writes the OpenSSF bundle of a package."""

from __future__ import annotations

import tempfile
from pathlib import Path

from stillroom.core import files
from stillroom.core.extras import missing, require
from stillroom.packages.keys import OPENSSF, Ring
from stillroom.verification.manifest import OPENSSF_SIGNATURE, OUTSIDE


def available() -> bool:
    """Whether the library that writes bundles is installed."""
    return not missing("openssf")


def write_bundle(package: Path, ring: Ring, passphrase: str) -> None:
    """Sign every listed file of a package for tools of the OpenSSF.

    Raises:
        MissingDependency: The library is not installed.
    """
    require("openssf", "The OpenSSF bundle needs packages that are not installed: {}.")
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from model_signing import hashing, signing

    # The library takes an ignored path as below the package; joined to a relative package it would be another file.
    package = package.absolute()
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

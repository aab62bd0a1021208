"""A publisher's keys: Ed25519, by role, with thresholds, encrypted at rest.

A ring is a folder: ``ring.json`` (public: roles, thresholds, public keys) and ``private/NAME.key`` (encrypted under a
passphrase: scrypt and ChaCha20-Poly1305). Private files can be moved to other machines or media; a ring signs with those that
it finds.

    root      says which keys hold the other roles
    release   signs packages, reinstates, says the least release that may still run
    revoke    withdraws packages, keys, teachers and datasets; it cannot do anything else
    online    renews the date on the metadata; it may be on a server
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.core.extras import require
from stillroom.verification.closed import Closed, parse, read_bytes
from stillroom.verification.manifest import Digest, Name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from securesystemslib.signer import CryptoSigner, SSlibKey

Role = Literal["root", "release", "revoke", "online"]
ROLES: tuple[Role, ...] = ("root", "release", "revoke", "online")
DEFAULT_KEYS: dict[Role, tuple[int, int]] = {"root": (3, 2), "release": (3, 2), "revoke": (1, 1), "online": (1, 1)}
"""Keys of a role, and how many of them must sign."""
COST = 1 << 16
"""scrypt's cost (N): every guess at a passphrase takes 64 MiB and a fifth of a second."""
OPENSSF = "openssf"


class PublicKey(Closed):
    """The public half of a key."""

    keyid: Digest
    public: Digest
    created: str


class RoleKeys(Closed):
    """The keys that hold a role now, and how many must sign together."""

    threshold: Annotated[int, Field(ge=1, le=64)]
    keys: tuple[str, ...]


class RingFile(Closed):
    """``ring.json``."""

    format: Literal[1]
    publisher: Name
    keys: dict[str, PublicKey]
    roles: dict[Role, RoleKeys]
    openssf: str
    """Public key (PEM, ECDSA P-256) of the OpenSSF bundle, which takes no Ed25519."""


class PrivateFile(Closed):
    """``private/NAME.key``."""

    format: Literal[1]
    kdf: Literal["scrypt"]
    cost: Annotated[int, Field(ge=2, le=1 << 20)]
    salt: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    cipher: Literal["chacha20-poly1305"]
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{24}$")]
    key: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){17,4096}$")]


class Ring:
    """A folder of keys."""

    def __init__(self, folder: Path, content: RingFile) -> None:
        self.folder = folder
        self.content = content

    @classmethod
    def create(
        cls,
        folder: Path,
        publisher: str,
        passphrase: str,
        counts: dict[Role, tuple[int, int]] | None = None,
        cost: int = COST,
    ) -> Ring:
        """Make new keys.

        Args:
            folder: A folder that does not hold a ring yet.
            publisher: Whose keys they are; letters, digits, `.`, `_`, `-`.
            passphrase: Encrypts every private file.
            counts: Keys and threshold of each role, where they differ from :data:`DEFAULT_KEYS`.
            cost: See :data:`COST`.

        Raises:
            UsageError: There is a ring already, the passphrase is empty, or a threshold cannot be met.
        """
        _require_trust()
        from cryptography.hazmat.primitives.asymmetric import ec

        if (folder / "ring.json").exists():
            raise UsageError(f"{folder} holds keys already.", "Choose another folder; nothing was changed.")
        if any((folder / "private").glob("*.key")):
            raise UsageError(
                f"{folder / 'private'} holds private keys, but {folder} has no ring.json.",
                "Restore ring.json from a copy, or choose another folder; nothing was changed.",
            )
        _require_passphrase(passphrase)
        keys: dict[str, PublicKey] = {}
        roles: dict[Role, RoleKeys] = {}
        (folder / "private").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        for role, (count, threshold) in (DEFAULT_KEYS | (counts or {})).items():
            names = tuple(f"{role}-{number + 1}" for number in range(count))
            for name in names:
                keys[name] = _make(folder, name, passphrase, cost)
            roles[role] = RoleKeys(threshold=_threshold(role, threshold, count), keys=names)
        bundle = ec.generate_private_key(ec.SECP256R1())
        _write_private(folder, OPENSSF, bundle, passphrase, cost)
        content = RingFile(
            format=1, publisher=publisher, keys=keys, roles=roles, openssf=_public_pem(bundle.public_key())
        )
        ring = cls(folder, content)
        ring._save(content)
        return ring

    @classmethod
    def open(cls, folder: str | Path) -> Ring:
        """Open a ring.

        Raises:
            UsageError: There is none in this folder.
        """
        folder = Path(folder)
        if not (folder / "ring.json").is_file():
            raise UsageError(f"{folder} holds no keys: it has no ring.json.", "Make them: stillroom keys init FOLDER.")
        content = parse(RingFile, read_bytes(folder / "ring.json"), str(folder / "ring.json"))
        return cls(folder, content)

    @property
    def publisher(self) -> str:
        """Whose keys they are."""
        return self.content.publisher

    def names(self, role: Role) -> tuple[str, ...]:
        """Names of the keys that hold a role."""
        return self.content.roles[role].keys

    def threshold(self, role: Role) -> int:
        """How many keys of a role must sign together."""
        return self.content.roles[role].threshold

    def public_key(self, name: str) -> SSlibKey:
        """A public key."""
        _require_trust()
        from securesystemslib.signer import SSlibKey

        key = self.content.keys[name]
        return SSlibKey(key.keyid, "ed25519", "ed25519", {"public": key.public})

    def name_of(self, keyid: str) -> str | None:
        """The name of a key that holds a role or held one before it was rotated, by its identifier."""
        return next((name for name, key in self.content.keys.items() if key.keyid == keyid), None)

    def has_private(self, name: str) -> bool:
        """Whether the private half is here."""
        return self._private_path(name).is_file()

    def signer(self, name: str, passphrase: str) -> CryptoSigner:
        """Open a private key to sign with.

        Raises:
            UsageError: It is not here, or the passphrase does not open it.
        """
        _require_trust()
        from securesystemslib.signer import CryptoSigner

        return CryptoSigner(self.private_key(name, passphrase), self.public_key(name))

    def private_key(self, name: str, passphrase: str) -> PrivateKeyTypes:
        """Open a private key. Errors as in :meth:`signer`."""
        path = self._private_path(name)
        if not path.is_file():
            raise UsageError(f"{path}: no such private key.", "Sign where it is stored, or copy it here.")
        return _read_private(path, passphrase)

    def signers(self, role: Role, passphrase: str) -> list[CryptoSigner]:
        """Signers of every key of a role whose private half is here."""
        return [self.signer(name, passphrase) for name in self.names(role) if self.has_private(name)]

    def rotate(self, role: Role, name: str, passphrase: str, cost: int = COST) -> str:
        """Put a new key in the place of one that holds a role; returns the new name.

        The old private file stays where it is: the next root must still be signed by a threshold of the old root keys.

        Raises:
            UsageError: The key does not hold the role.
        """
        if name not in self.names(role):
            raise UsageError(
                f"The key {name} does not hold the role {role}.", f"Its keys: {', '.join(self.names(role))}."
            )
        # A rotation that was killed left a private file that no ring names.
        left = [path.stem for path in (self.folder / "private").glob(f"{role}-*.key")]
        numbers = [other.rpartition("-")[2] for other in (*self.content.keys, *left) if other.startswith(f"{role}-")]
        new = f"{role}-{max(int(number) for number in numbers if number.isdecimal()) + 1}"
        keys = self.content.keys | {new: _make(self.folder, new, passphrase, cost)}
        holders = tuple(new if other == name else other for other in self.names(role))
        self._save(self.content.model_copy(update={"keys": keys, "roles": self._roles(role, keys=holders)}))
        return new

    def set_threshold(self, role: Role, threshold: int) -> None:
        """Say how many keys of a role must sign together.

        Raises:
            UsageError: The role has fewer keys.
        """
        _threshold(role, threshold, len(self.names(role)))
        self._save(self.content.model_copy(update={"roles": self._roles(role, threshold=threshold)}))

    def _roles(self, role: Role, **changed: object) -> dict[Role, RoleKeys]:
        return self.content.roles | {role: self.content.roles[role].model_copy(update=changed)}

    def _save(self, content: RingFile) -> None:
        files.write_json(self.folder / "ring.json", content.model_dump(mode="json"))
        self.content = content

    def _private_path(self, name: str) -> Path:
        return self.folder / "private" / f"{name}.key"


def role_of(name: str) -> Role:
    """The role that a key was made for; its name begins with it."""
    return next(role for role in ROLES if name.startswith(f"{role}-"))


def describe(ring: Ring) -> dict[str, Any]:
    """A ring for a reader: only what is public."""
    return {
        "publisher": ring.publisher,
        "roles": {
            role: {
                "threshold": ring.threshold(role),
                "keys": [
                    {
                        "name": name,
                        "keyid": ring.content.keys[name].keyid,
                        "created": ring.content.keys[name].created,
                        "private_here": ring.has_private(name),
                    }
                    for name in ring.names(role)
                ],
            }
            for role in ROLES
        },
    }


def _make(folder: Path, name: str, passphrase: str, cost: int) -> PublicKey:
    _require_trust()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import SSlibKey

    private = Ed25519PrivateKey.generate()
    _write_private(folder, name, private, passphrase, cost)
    key = SSlibKey.from_crypto(private.public_key())
    return PublicKey(keyid=key.keyid, public=key.keyval["public"], created=time.strftime("%Y-%m-%d", time.gmtime()))


def _write_private(
    folder: Path, name: str, private: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, passphrase: str, cost: int
) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    salt, nonce = os.urandom(16), os.urandom(12)
    sealed = ChaCha20Poly1305(_derive(passphrase, salt, cost)).encrypt(nonce, plain, name.encode())
    content = PrivateFile(
        format=1,
        kdf="scrypt",
        cost=cost,
        salt=salt.hex(),
        cipher="chacha20-poly1305",
        nonce=nonce.hex(),
        key=sealed.hex(),
    )
    # Created with its final rights: it is never readable by others, not for a moment.
    descriptor = os.open(folder / "private" / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(files.canonical_json(content.model_dump(mode="json")) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _read_private(path: Path, passphrase: str) -> PrivateKeyTypes:
    _require_trust()
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    content = parse(PrivateFile, read_bytes(path, 1 << 16), str(path))
    if content.cost.bit_count() != 1:
        raise UsageError(f"{path}: scrypt's cost must be a power of two.", "Restore the file from a copy.")
    try:
        opened = ChaCha20Poly1305(_derive(passphrase, bytes.fromhex(content.salt), content.cost))
        plain = opened.decrypt(bytes.fromhex(content.nonce), bytes.fromhex(content.key), path.stem.encode())
        return load_der_private_key(plain, None)
    except (InvalidTag, ValueError):
        raise UsageError(f"{path}: the passphrase does not open this key.", "Give the right one.") from None


def _derive(passphrase: str, salt: bytes, cost: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase.encode())


def _public_pem(public: ec.EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    text: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def _require_trust() -> None:
    require("trust", "Keys and signatures need packages that are not installed: {}.")


def _require_passphrase(passphrase: str) -> None:
    if len(passphrase) < 8:
        raise UsageError("The passphrase has fewer than eight characters.", "Give a longer one; a few words will do.")


def _threshold(role: Role, threshold: int, count: int) -> int:
    if not 1 <= threshold <= count:
        raise UsageError(
            f"The role {role} has {count} keys; {threshold} of them cannot sign.", f"Give a number from 1 to {count}."
        )
    return threshold

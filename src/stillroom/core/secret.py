"""Secrets of an owner: 256 random bits in a file that only he can read, a digest that commits to them, and what they decide.

Everything derived from a secret is a keyed function of it (HMAC-SHA-256, or SHAKE-256 over secret and label), so that no one
who sees one derived value learns another, and no value can be hit by trying seeds of 32 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.core import files
from stillroom.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BYTES = 32
_NAMES = (".mark", ".key", ".secret", ".pem")
_READS_AS_SECRET = re.compile(
    rb"\s*[0-9A-Fa-f]{64}\s*|\s*-----BEGIN [A-Z ]*PRIVATE KEY-----.*|\s*\{.*\"kdf\".*", re.DOTALL
)


@dataclass(frozen=True, repr=False)
class Secret:
    """256 bits.

    Attributes:
        key: 32 bytes. Never shown, logged, or put into a package.
    """

    key: bytes

    def __repr__(self) -> str:
        return f"Secret(commitment {self.commitment[:12]}…)"

    @classmethod
    def draw(cls) -> Secret:
        """A new one, from the operating system's random numbers."""
        return cls(secrets.token_bytes(BYTES))

    @property
    def commitment(self) -> str:
        """SHA-256 of the 32 bytes, in hex: published before a model is, it proves later that the secret was drawn before."""
        return hashlib.sha256(self.key).hexdigest()

    def bytes_of(self, label: str, count: int) -> bytes:
        """``count`` bytes that only the secret and this label decide (SHAKE-256)."""
        return hashlib.shake_256(self.key + label.encode()).digest(count)

    def digest_of(self, label: str, data: bytes) -> bytes:
        """A keyed digest of data, 32 bytes (HMAC-SHA-256)."""
        return hmac.digest(hmac.digest(self.key, label.encode(), "sha256"), data, "sha256")

    def seed(self, label: str) -> int:
        """A seed of 32 bits for a library's own generator. It alone is no secret: 32 bits can be tried."""
        return int.from_bytes(self.bytes_of(label, 4), "big")

    def permutation(self, label: str, count: int) -> npt.NDArray[np.int64]:
        """A uniform order of ``count`` things that all 256 bits decide: they are sorted by 128-bit values of their own."""
        import numpy as np

        words = np.frombuffer(self.bytes_of(label, 16 * count), ">u8").reshape(count, 2)
        order: npt.NDArray[np.int64] = np.lexsort((words[:, 1], words[:, 0])).astype(np.int64)
        return order


def write_secret(path: Path, secret: Secret) -> None:
    """Write a secret as one line of 64 hex digits, readable by its owner alone; nothing is overwritten.

    Raises:
        UsageError: The file exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} exists already; a secret is never overwritten.", "Move it, or keep it.") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secret.key.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    files.sync_folder(path.parent)


def read_secret(path: Path) -> Secret:
    """Read a secret.

    Raises:
        UsageError: It is missing, not 64 hex digits, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        text = (files.read_at_most(path, 4096) or b"").decode("ascii").strip()
        key = bytes.fromhex(text)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file of a secret.", "Check the path.") from None
    except (OSError, ValueError):
        raise UsageError(f"{path} cannot be read as a secret.", "It holds 64 hex digits and nothing else.") from None
    if len(key) != BYTES:
        raise UsageError(f"{path} holds {len(key)} bytes, and a secret has {BYTES}.", "It holds 64 hex digits.")
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{path} can be read by others than its owner.", f"Make it private: chmod 600 {path}")
    return Secret(key)


def holds_secret(path: Path) -> bool:
    """Whether an existing file holds a secret of an owner: by its name, or because it reads as one. What cannot be read may."""
    if not path.is_file():
        return False
    if path.suffix.lower() in _NAMES:
        return True
    try:
        with open(path, "rb") as stream:
            return _READS_AS_SECRET.fullmatch(stream.read(4096)) is not None
    except OSError:
        return True


def library_seed(randomness: int | Secret, label: str) -> int:
    """The seed for a library's own generator: an explicit seed itself, or one derived from a secret."""
    return randomness.seed(label) if isinstance(randomness, Secret) else randomness

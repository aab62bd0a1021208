"""What a file's first bytes betray, whatever it is called: pickles, archives, programs. Opens nothing, runs nothing."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

SUFFIXES = (
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".mar", ".pdparams",
)  # fmt: skip
"""What pickles are called."""
CODE = (
    ".py", ".pyc", ".pyd", ".pyx", ".ipynb", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1", ".js", ".wasm",
    ".jar", ".whl", ".egg",
)  # fmt: skip
"""What programs are called."""
_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"Rar!": "a rar archive",
    b"\x89HDF\r\n": "an HDF5 file, which can hold code",
    b"\x93NUMPY": "a NumPy file, which can hold pickles",
}
_PROGRAMS = {
    b"\x7fELF": "a program (ELF)",
    b"MZ": "a program (Windows)",
    b"\xfe\xed\xfa\xce": "a program (Mach-O)",
    b"\xcf\xfa\xed\xfe": "a program (Mach-O)",
    b"\xca\xfe\xba\xbe": "a program (Mach-O or Java)",
    b"#!": "a script",
}
_WHOLE = 1 << 20
"""A pickle of the oldest protocols has no magic; files up to this size are walked through as one."""
_MOST_OPCODES = 20_000
_MOST_MEMBERS = 1_000
_MEMBER = 4096


def betrayed(path: Path) -> tuple[str, int] | None:
    """What a file is in disguise and at which byte, or None.

    A pickle is told by its magic, inside zip archives too, and for the protocols without one by walking its opcodes to
    the end, which does not run them.
    """
    with open(path, "rb") as stream:
        head = stream.read(512)
        if is_pickle(head):
            return "a pickle, which can run any code when it is opened", 0
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
            return _inside(path)
        for magic, what in (*_ARCHIVES.items(), *_PROGRAMS.items()):
            if head.startswith(magic):
                return what, 0
        if head[257:262] == b"ustar":
            return "a tar archive", 257
        rest = stream.read(_WHOLE)
    if len(head) + len(rest) <= _WHOLE and _walks_as_pickle(head + rest):
        return "a pickle of an old protocol, which can run any code when it is opened", 0
    return None


def is_pickle(head: bytes) -> bool:
    """Whether bytes begin as a pickle of protocol 2 or later does."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _inside(path: Path) -> tuple[str, int]:
    """What a zip archive holds: torch's own files are such archives, with a pickle inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist()[:_MOST_MEMBERS]:
                name = member.filename[:120]
                if member.filename.lower().endswith(SUFFIXES):
                    return f"a zip archive with a pickle in it ({name})", member.header_offset
                # Stored or deflated: no more than the beginning is unpacked.
                with archive.open(member) as stream:
                    if is_pickle(stream.read(_MEMBER)):
                        return f"a zip archive with a pickle in it ({name})", member.header_offset
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError, EOFError):
        return "a damaged zip archive", 0
    except Exception:
        return "a zip archive that cannot be looked into", 0
    return "a zip archive", 0


def _walks_as_pickle(data: bytes) -> bool:
    """Whether the opcodes of a pickle lead from the first byte to a STOP and call something on the way."""
    calls = False
    try:
        for count, (opcode, _, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            calls |= opcode.name in (
                "GLOBAL",
                "INST",
                "OBJ",
                "REDUCE",
                "BUILD",
                "NEWOBJ",
                "STACK_GLOBAL",
                "EXT1",
                "PERSID",
            )
            if count >= _MOST_OPCODES:
                break
    except Exception:
        return False
    return calls

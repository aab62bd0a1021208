"""What is released: the wheel's files and metadata, the extras, the locks, and the files that build an image."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from stillroom.core import extras
from tools import dist, lock

ROOT = Path(__file__).resolve().parent.parent
DEVELOPERS = {"all", "bench", "dev", "docs"}
"""Extras that no message of the program names."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout and nothing old of it gets in."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "copy"
    shutil.copytree(
        ROOT / "src" / "stillroom", copy / "src" / "stillroom", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as stream:
        found: dict[str, Any] = tomllib.load(stream)["project"]
    return found


def named(lines: list[str], project: dict[str, Any]) -> set[str]:
    """Packages of an extra, with those of the extras in it."""
    found: set[str] = set()
    for line in lines:
        inner = re.fullmatch(r"stillroom\[([\w,]+)\]", line)
        if inner:
            for extra in inner[1].split(","):
                found |= named(project["optional-dependencies"][extra], project)
        else:
            found.add(lock.name_of(re.split(r"[^\w.-]", line)[0]))
    return found


def test_the_wheel_is_whole(wheel: Path) -> None:
    assert dist.check_wheel(wheel) == []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in (
        "stillroom/py.typed",
        "stillroom/serving/page.html",
        "stillroom/terms/terms_table.yaml",
        "stillroom/terms/licences/Apache-2.0.txt",
        "stillroom/reporting/pages/report.html.jinja",
        "stillroom/models/families/llama.py",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "stillroom/tests"))]


def test_a_wheel_that_lacks_something_is_found_out(wheel: Path, tmp_path: Path) -> None:
    def changed(leave: str, add: str | None = None, replace: tuple[bytes, bytes] = (b"", b"")) -> list[str]:
        target = tmp_path / wheel.name
        with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(target, "w") as after:
            for name in before.namelist():
                data = before.read(name)
                if not name.endswith(leave):
                    after.writestr(name, data.replace(*replace) if name.endswith("METADATA") and replace[0] else data)
            if add:
                after.writestr(add, "")
        return [line.partition(": ")[2] for line in dist.check_wheel(target)]

    assert changed("serving/page.html") == ["stillroom/serving/page.html is missing"]
    assert changed("licenses/LICENSE") == ["the licence is missing"]
    assert changed("?", add="tests/test_x.py") == ["tests/test_x.py does not belong there"]
    assert changed("?", replace=(b"text/markdown", b"text/plain")) == ["the description is not said to be Markdown"]
    wrong = changed("?", replace=(b"License-Expression: Apache-2.0", b"License-Expression: No-Such-Licence"))
    assert len(wrong) == 1
    assert "No-Such-Licence" in wrong[0]


def test_extras_are_those_that_the_program_names(project: dict[str, Any]) -> None:
    written = project["optional-dependencies"]
    assert set(extras.EXTRAS) == set(written) - DEVELOPERS
    for extra, packages in extras.EXTRAS.items():
        assert set(packages) <= named(written[extra], project), extra
    named_in_code = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named_in_code |= set(re.findall(r'\brequire\(\s*"(\w+)"', text)) | set(re.findall(r"stillroom\[(\w+)\]'", text))
    assert {"serve", "trust", "onnx"} <= named_in_code
    assert named_in_code <= set(written)


def test_all_is_every_extra_of_users(project: dict[str, Any]) -> None:
    written = project["optional-dependencies"]
    union = set().union(*(named(lines, project) for extra, lines in written.items() if extra not in DEVELOPERS))
    assert named(written["all"], project) == union


def test_the_base_has_nothing_that_is_an_extras_alone(project: dict[str, Any]) -> None:
    base = named(project["dependencies"], project)
    optional = {package for packages in extras.EXTRAS.values() for package in packages}
    assert not base & optional


def test_the_locks_hold(project: dict[str, Any]) -> None:
    assert lock.differences() == []
    base, dev = lock.read_lock(), lock.read_lock(lock.DEV_LOCK)
    assert named(project["dependencies"], project) <= base.keys() < dev.keys()
    assert not {"starlette", "tuf", "cryptography", "onnx", "pytest"} & base.keys()
    assert "setuptools" in base


def test_a_lock_that_does_not_hold_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = lock.LOCK.read_text(encoding="utf-8")
    monkeypatch.setattr(lock, "LOCK", tmp_path / "requirements.lock")
    lock.LOCK.write_text(re.sub(r"(?m)^rich==.*\n", "", text), encoding="utf-8")
    monkeypatch.setattr(lock.read_lock, "__defaults__", (lock.LOCK,))
    assert lock.differences() == ["requirements.lock: rich is needed, and not locked"]
    lock.LOCK.write_text(re.sub(r"(?m)^rich==\S+", "rich==1.0", text), encoding="utf-8")
    found = lock.differences()
    assert found[0].startswith("requirements.lock: rich 1.0 is locked, ")
    assert found[1] == "requirements-dev.lock: rich is not that of requirements.lock"


def test_the_image_is_made_of_files_that_are_made(project: dict[str, Any]) -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    copied = re.findall(r"(?m)^COPY (\S+) ", text)
    assert copied == ["requirements.lock", "dist/*.whl"]
    assert dist.OUT.name == "dist"
    mounted = re.findall(r"type=bind,source=([^,\s]+)", text)
    assert mounted == ["build/wheelhouse"]
    assert "--dest build/wheelhouse" in makefile
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert allowed == ["*", *(f"!{name}" for name in (*copied, *mounted))]
    assert re.findall(r'(?m)^ENTRYPOINT \["(\w+)"\]$', text) == list(project["scripts"])
    assert re.search(r"(?m)^USER (?!root)\w+$", text)
    assert "FROM python:3.11-slim" in text
    assert "CPython 3.11" in lock.HEADER


def test_interpreters_are_found_by_version() -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = dist.interpreter(own)
    assert found is not None
    asked = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert asked.stdout.startswith(f"Python {own}.")
    assert dist.interpreter("3.99") is None

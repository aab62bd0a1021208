"""The import contract holds, and breaking it in a copy of the source tree fails; docs/architecture.md is drawn from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree, its settings and the page that is drawn from them."""
    copied = tmp_path / "tree"
    shutil.copytree(ROOT / "src", copied / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "tools", copied / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "architecture.md", copied / "docs")
    shutil.copy(ROOT / "pyproject.toml", copied)
    return copied


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of a tree."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        # Neither the colours nor the width of whoever runs the tests.
        env=os.environ | {"PYTHONPATH": str(tree / "src"), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def package(tree: Path, name: str) -> Path:
    return tree / "src" / "stillroom" / name


def append(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_the_contract_is_kept(tree: Path) -> None:
    shown = python(tree, "-c", LINT)
    assert shown.returncode == 0, shown.stdout
    assert " kept, 0 broken" in shown.stdout


def test_an_upward_import_breaks_it(tree: Path) -> None:
    append(package(tree, "core") / "memory.py", "from stillroom.training.loop import train")
    shown = python(tree, "-c", LINT)
    assert shown.returncode != 0
    assert "stillroom.core is not allowed to import stillroom.training" in shown.stdout
    assert "stillroom.core.memory -> stillroom.training.loop" in shown.stdout


def test_a_late_upward_import_breaks_it_too(tree: Path) -> None:
    append(package(tree, "core") / "memory.py", "def _up() -> None:\n    import stillroom.pipeline")
    shown = python(tree, "-c", LINT)
    assert shown.returncode != 0
    assert "stillroom.core is not allowed to import stillroom.pipeline" in shown.stdout


def test_packages_of_one_layer_do_not_import_each_other(tree: Path) -> None:
    append(package(tree, "recipe") / "section.py", "import stillroom.inspection.pickles")
    shown = python(tree, "-c", LINT)
    assert shown.returncode != 0
    assert "stillroom.recipe.section -> stillroom.inspection.pickles" in shown.stdout


def test_a_cycle_inside_a_package_breaks_it(tree: Path) -> None:
    (package(tree, "core") / "egg.py").write_text("import stillroom.core.hen\n", encoding="utf-8")
    (package(tree, "core") / "hen.py").write_text("import stillroom.core.egg\n", encoding="utf-8")
    shown = python(tree, "-c", LINT)
    assert shown.returncode != 0
    assert "1 broken" in shown.stdout
    assert "stillroom.core" in shown.stdout
    assert {"egg", "hen"} <= set(shown.stdout.replace(".", " ").split())


def test_a_package_without_a_layer_breaks_it(tree: Path) -> None:
    package(tree, "attic").mkdir()
    (package(tree, "attic") / "__init__.py").write_text('"""Things."""\n', encoding="utf-8")
    shown = python(tree, "-c", LINT)
    assert shown.returncode != 0
    assert "attic" in shown.stdout


def test_three_modules_at_the_root_of_the_package() -> None:
    entries = {path.name for path in package(ROOT, "").iterdir() if path.name != "__pycache__"}
    packages = {path.parent.name for path in package(ROOT, "").glob("*/__init__.py")}
    assert entries - packages == {"__init__.py", "__main__.py", "pipeline.py", "py.typed"}


def test_the_architecture_page_follows_the_code(tree: Path) -> None:
    def stale() -> bool:
        shown = python(tree, "-m", "tools.architecture", "--check")
        assert shown.returncode in (0, 1), shown.stderr
        assert shown.stderr == ("architecture.md is stale; run `make docs`.\n" if shown.returncode else "")
        return bool(shown.returncode)

    def imports_of(name: str) -> str:
        (row,) = (line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}/` |"))
        return row.split(" | ")[-1]

    page = tree / "docs" / "architecture.md"
    python(tree, "-m", "tools.architecture")
    assert not stale()
    assert imports_of("inspection") == "`core` |"

    # A new import of a package, another purpose of a package, and another order of layers.
    append(package(tree, "inspection") / "pickles.py", "import stillroom.recipe.section")
    assert stale()
    core = package(tree, "core") / "__init__.py"
    core.write_text('"""Whatever is left."""\n', encoding="utf-8")
    settings = tree / "pyproject.toml"
    text, line = settings.read_text(encoding="utf-8"), '"inspection | recipe | switch",'
    assert line in text
    settings.write_text(text.replace(line, '"inspection", "recipe | switch",'), encoding="utf-8")
    assert python(tree, "-m", "tools.architecture").returncode == 0
    assert not stale()
    assert imports_of("inspection") == "`recipe`, `core` |"
    after = page.read_text(encoding="utf-8")
    assert "| `core/` | Whatever is left. | – |" in after
    assert "\ninspection\nrecipe   switch\ncore\n" in after

    # What it cannot draw it says.
    core.write_text("", encoding="utf-8")
    shown = python(tree, "-m", "tools.architecture")
    assert (shown.returncode, "needs a docstring" in shown.stderr, "Traceback" in shown.stderr) == (1, True, False)
    page.write_text("# Architecture\n", encoding="utf-8")
    shown = python(tree, "-m", "tools.architecture")
    assert (shown.returncode, "are missing; put them back" in shown.stderr) == (1, True)
    assert page.read_text(encoding="utf-8") == "# Architecture\n"

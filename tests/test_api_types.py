"""What the docs show of the Python API type-checks as a user's file, and public names have types and not `Any`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stillroom as st

ROOT = Path(__file__).parent.parent
PYRIGHT = ROOT / ".venvs" / "node" / "node_modules" / ".bin" / "pyright"
PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
LARGE = ("torch", "transformers", "numpy", "tokenizers", "safetensors", "gguf", "scipy", "duckdb", "cryptography")
"""Packages that take mypy minutes to read, and are left out: what comes from them is `Any`, which no public name may be."""


def examples(page: str) -> list[str]:
    """The Python examples of a page that use Stillroom."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in blocks if "stillroom" in block]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's with the examples as files, and one that is right only where public names have types."""
    folder = tmp_path_factory.mktemp("user")
    for page in PAGES:
        for number, block in enumerate(examples(page)):
            (folder / f"{Path(page).stem.lower().replace('-', '_')}_{number}.py").write_text(block, encoding="utf-8")
    lines = ["import stillroom as st", ""]
    # No name of the API is a `complex`; one of type `Any` could be, and would make its comment unused.
    lines += [f"{name}_: complex = st.{name}  # type: ignore[assignment]" for name in st.__all__]
    lines += [
        'tokens: int = st.answer("model.gguf", "What is a list?")  # type: ignore[assignment]',
        'st.run("recipe.yaml", untill="capture")  # type: ignore[call-arg]',
        'seconds: float = st.run("recipe.yaml")  # type: ignore[assignment]',
    ]
    (folder / "types.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_the_main_pages_have_examples() -> None:
    assert {page for page in PAGES if examples(page)} >= {"README.md", "docs/own-model.md"}
    assert 'st.run("handbook.yaml")' in examples("README.md")[0]


def test_examples_and_public_names_under_mypy(user: Path) -> None:
    shutil.copy(user / "types.txt", user / "public_names.py")
    files = sorted(path.name for path in user.glob("*.py"))
    # By no settings of ours but what is left out, and with a cache of its own, since `make check` uses other settings.
    (user / "mypy.ini").write_text(f"[mypy]\n[mypy-{','.join(f'{name}.*' for name in LARGE)}]\nfollow_imports = skip\n")
    cache = ROOT / ".mypy_cache" / "users"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=mypy.ini", f"--cache-dir={cache}"]
    command += ["--no-color-output"]
    checked = subprocess.run([*command, "--no-error-summary", *files], cwd=user, capture_output=True, text=True)
    assert (checked.stdout + checked.stderr).strip() == ""
    assert checked.returncode == 0
    # The check can fail.
    (user / "public_names.py").write_text(
        'import stillroom as st\n\nst.run(3, "runs", True)\nst.runn\n', encoding="utf-8"
    )
    wrong = subprocess.run([*command, "public_names.py"], cwd=user, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "Too many positional arguments" in wrong.stdout
    assert "has no attribute" in wrong.stdout


def test_examples_under_pyright(user: Path) -> None:
    pyright = str(PYRIGHT) if PYRIGHT.is_file() else shutil.which("pyright")
    if pyright is None:
        pytest.skip("npm install --prefix .venvs/node pyright")
    files = sorted(path.name for path in user.glob("*.py") if path.name != "public_names.py")
    checked = subprocess.run(
        [pyright, "--pythonpath", sys.executable, *files], cwd=user, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 errors, 0 warnings" in checked.stdout

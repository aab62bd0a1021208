"""Reads the guides in `docs/contributing`, so that what a test does is what the page says.

A fenced block whose first line is a comment with a path is that file; a `diff` block changes it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from stillroom.core.files import digest_file

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def path(self) -> str | None:
        """The file that it is, if its first line names one."""
        found = re.match(r"# (\S+\.(?:py|toml|yaml))\n", self.text)
        return found[1] if found else None


class Guide:
    """One page, followed in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        page = (ROOT / "docs" / "contributing" / f"{name}.md").read_text(encoding="utf-8")
        found = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        self.blocks = [Block(language, text) for language, text in found]
        self.folder = folder

    def text(self, path: str) -> str:
        """The file that the page shows under a path."""
        (block,) = [block for block in self.blocks if block.path == path and block.language != "diff"]
        return block.text

    def command(self) -> list[str]:
        """Arguments of the page's one `pytest` command."""
        (block,) = [block for block in self.blocks if block.language == "bash"]
        program, *arguments = shlex.split(block.text)
        assert (program, *arguments[:2]) == (".venv/bin/python", "-m", "pytest")
        return arguments[2:]

    def follow(self) -> list[str]:
        """Do in a copy of `src/` what the page says; returns the files that it touched, sorted."""
        shutil.copytree(ROOT / "src", self.folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        before = self._digests()
        for block in self.blocks:
            if block.path is None or not block.path.startswith("src/"):
                continue
            target = self.folder / block.path
            if block.language == "diff":
                target.write_text(patched(target.read_text(encoding="utf-8"), block.text), encoding="utf-8")
            else:
                assert not target.exists(), target
                target.write_text(block.text, encoding="utf-8")
        after = self._digests()
        return sorted(path for path in before | after if before.get(path) != after.get(path))

    def _digests(self) -> dict[str, str]:
        files = sorted((self.folder / "src").rglob("*"))
        return {file.relative_to(self.folder).as_posix(): digest_file(file) for file in files if file.is_file()}

    def install(self, path: str) -> list[str]:
        """Install the page's own package, with the file that it shows under ``path`` as its module.

        Returns:
            The modules of the package.
        """
        site = self.folder / "site"
        project = tomllib.loads(self.text("pyproject.toml"))["project"]
        info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
            modules = {value.partition(":")[0] for value in points.values()}
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (module,) = modules
        (site / f"{module}.py").write_text(self.text(path), encoding="utf-8")
        return sorted(file.name for file in site.glob("*.py"))

    def python(self, *arguments: str, where: str = "src", cwd: Path | None = None) -> str:
        """Run Python with the copy (``src``) or the own package (``site``) on its path; returns its output."""
        environment = os.environ | {"PYTHONPATH": str(self.folder / where), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def pytest(self, *more: str) -> str:
        """Run the page's `pytest` command on the copy; returns its output."""
        return self.python("-m", "pytest", "-p", "no:cacheprovider", "-vv", *self.command(), *more, cwd=ROOT)


def patched(text: str, diff: str) -> str:
    """A text with the lines of one hunk changed; its unchanged lines have to be there exactly once."""
    lines = diff.splitlines(keepends=True)[1:]
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, old
    return text.replace(old, new)

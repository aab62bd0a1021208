"""What is missing is named with the command that installs it, and nothing optional is imported by the base."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from typing import Any

import pytest
from typer.testing import CliRunner

import stillroom as st
from stillroom.cli.app import app
from stillroom.core import extras
from stillroom.core.errors import MissingDependency
from stillroom.packages.keys import Ring
from stillroom.verification.envelope import parse_envelope

BASE = (
    "stillroom", "stillroom.cli.app", "stillroom.pipeline", "stillroom.planning.plan", "stillroom.planning.pilot",
    "stillroom.corpus.stage", "stillroom.teachers.stage", "stillroom.students.stage", "stillroom.training.stage",
    "stillroom.formats.stage", "stillroom.evaluation.stage", "stillroom.reporting.report", "stillroom.terms.gate",
    "stillroom.serving.ask", "stillroom.runtime.worker", "stillroom.inspection.inspect", "stillroom.switch.stopping",
    "stillroom.packages.pack", "stillroom.verification.inside",
)  # fmt: skip
"""What `run`, `plan`, `chat`, `answer`, `inspect`, `off` and `package` import."""


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if modules were not installed."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        return None if name.partition(".")[0] in modules else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_a_missing_extra_is_named_with_its_command(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *extras.EXTRAS[extra].values())
    assert extras.missing(extra) == tuple(extras.EXTRAS[extra])
    with pytest.raises(MissingDependency) as error:
        extras.require(extra, "This needs {}.")
    assert str(error.value) == (
        f"This needs {', '.join(extras.EXTRAS[extra])}.\nInstall it: pip install 'stillroom[{extra}]'"
    )


def test_only_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tuf")
    assert extras.missing("trust") == ("tuf",)
    assert extras.missing("serve") == ()
    extras.require("serve", "never")
    extras.require("trust", "never", "cryptography")


def test_installed_says_what_an_import_would(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras.installed("json.decoder")
    assert not extras.installed("no_such_module")
    assert not extras.installed("no_such_module.inside")
    monkeypatch.setitem(sys.modules, "tuf", None)
    assert not extras.installed("tuf")
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
    assert extras.installed("made_by_hand")


def test_the_base_imports_nothing_optional() -> None:
    optional = sorted({module for packages in extras.EXTRAS.values() for module in packages.values()} - {"accelerate"})
    code = (
        "import importlib, sys\n"
        f"for name in {BASE!r}:\n"
        "    importlib.import_module(name)\n"
        f"print([name for name in {optional!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "starlette", "uvicorn")
    with pytest.raises(MissingDependency, match=r"starlette, uvicorn\.\nInstall it: pip install 'stillroom\[serve\]'"):
        st.serve("model.gguf")
    answer = CliRunner().invoke(app, ["serve", "model.gguf"])
    assert isinstance(answer.exception, MissingDependency)


def test_signatures_say_what_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    without(monkeypatch, *extras.EXTRAS["trust"].values())
    wanted = r"cryptography, securesystemslib, tuf\.\nInstall it: pip install 'stillroom\[trust\]'"
    with pytest.raises(MissingDependency, match=wanted):
        parse_envelope(b"{}", "package.dsse")
    with pytest.raises(MissingDependency, match=wanted):
        Ring.create(tmp_path / "keys", "acme", "a long passphrase")
    assert not (tmp_path / "keys").exists()

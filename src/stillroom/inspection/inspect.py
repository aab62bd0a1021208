"""Looks over files from elsewhere before anything opens them.

Refused, wherever it is: pickles (by name and by their bytes), programs, archives, what is not a file that a model needs,
links, hidden files, names that other systems would take for one; headers that two readers would read differently; configs and
chat templates that call for code. A few files that hubs add (`.gitattributes`, their own notes under `.cache`) are passed over.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.core.errors import InspectionRefused
from stillroom.core.plain import shown
from stillroom.inspection.gguf_header import MAGIC, read_gguf
from stillroom.inspection.onnx_graph import read_onnx
from stillroom.inspection.pickles import CODE, SUFFIXES, betrayed
from stillroom.inspection.safetensors_header import read_safetensors

LISTED = (
    ".safetensors", ".gguf", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".md", ".rst", ".csv", ".yaml", ".yml",
    ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf", ".onnx", ".onnx_data",
)  # fmt: skip
"""Files that a model or its card needs. Stillroom itself opens the first seven kinds."""
_NAMED = re.compile(r"(?i)([\w-]*licen[cs]e|eula|notice|copying|readme|use_policy|authors|changelog)[\w.-]*")
"""Files that may have no suffix."""
_ON_THE_HUB = re.compile(r"\.cache/huggingface(/(download(/.*)?|\.gitignore|trees?(/.*)?|CACHEDIR\.TAG|xet(/.*)?))?")
MOST_FILES = 10_000
DEEPEST = 8


@dataclass
class _Look:
    """One look over a folder or file: what was found, and what is in it."""

    root: Path
    accepted: Sequence[str] | None
    names: dict[str, str] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    weights: list[Path] = field(default_factory=list)


def require_safe(path: Path, templates: Sequence[str] | None = None) -> None:
    """Refuse a model that carries what could run code, or that readers would read differently.

    Args:
        path: A Hugging Face folder, a folder of weights, a GGUF or a safetensors file.
        templates: Chat templates that are accepted (the teacher's, or reviewed ones); None accepts all that keep the rules.

    Raises:
        InspectionRefused: Says what, where (with the byte), and what to do.
    """
    for error in _findings(_Look(path, templates)):
        raise error


def report(path: Path) -> dict[str, Any]:
    """Everything that is to be said of a model from elsewhere, for a person; nothing is loaded. Reads all weights once, to name
    what is not finite in them.

    Returns:
        ``path`` (its name), ``safe``, ``refused`` (a list of ``file``, ``reason``, ``offset``, ``todo``), ``files`` and
        ``templates`` (place and SHA-256 of every chat template). Control characters of names are written out.

    Raises:
        InspectionRefused: There is nothing at this path, or nothing in it.
    """
    from stillroom.core import files

    if not path.exists() and not path.is_symlink():
        raise InspectionRefused(
            f"{path}: no such file or folder.", "Give a model's folder, or a GGUF or safetensors file."
        )
    if path.is_dir() and os.access(path, os.R_OK) and not any(path.iterdir()):
        raise InspectionRefused(
            f"{path}: an empty folder, of which nothing can be said.", "Give a model's folder, or a file."
        )
    look = _Look(path, None)
    refused = [_as_entry(error, path) for error in (*_findings(look), *_damaged(look))]
    return {
        "path": path.name or str(path),
        "safe": not refused,
        "refused": refused,
        "files": look.files,
        "templates": [
            {
                "where": shown(where, one_line=True),
                "sha256": files.digest_bytes(text.encode("utf-8", "surrogatepass")),
                "characters": len(text),
            }
            for where, text in look.templates.items()
        ],
    }


def _as_entry(error: InspectionRefused, path: Path) -> dict[str, Any]:
    offset = re.search(r"\(?byte ([\d,]+)", error.what)
    file = next((part for part in (error.what.split(": ")[0].split(" does not begin")[0],) if part), "")
    root = str(path)
    inside = file[len(root) :].lstrip("/") if file.startswith(root) else ""
    return {
        "file": shown(inside or path.name, one_line=True),
        "reason": shown(error.what.removeprefix(file).lstrip(": "), one_line=True),
        "offset": int(offset.group(1).replace(",", "")) if offset else None,
        "todo": error.todo,
    }


def _findings(look: _Look) -> Iterator[InspectionRefused]:
    """Everything that is refused, in the order in which it is met."""
    path = look.root
    try:
        if path.is_dir():
            yield from _folder(look, path, "", 0)
            yield from _disagreeing(look)
        elif path.is_file():
            yield from _single(look, path)
        else:
            yield InspectionRefused(f"{path}: neither a file nor a folder.", "Give a model's folder or file.")
    except OSError as error:
        where = error.filename or path
        yield InspectionRefused(f"{where}: cannot be looked over: {error.strerror}.", "Check its permissions.")


def _single(look: _Look, path: Path) -> Iterator[InspectionRefused]:
    """A file by itself: GGUF, safetensors, or refused."""
    with open(path, "rb") as stream:
        magic = stream.read(4)
    if magic == MAGIC or path.suffix.lower() == ".gguf":
        yield from _file(look, path, path.name, ".gguf")
    elif _suffix(path.name) in LISTED:
        yield from _file(look, path, path.name, _suffix(path.name))
    else:
        yield from _by_name(path, path.name)


def _suffix(name: str) -> str:
    """What a file is by its name. Exporters write weights beside a graph as ``.onnx.data`` or ``.onnx_data``."""
    lower = name.lower()
    return ".onnx_data" if lower.endswith(".onnx.data") else Path(lower).suffix


def _folder(look: _Look, folder: Path, prefix: str, depth: int) -> Iterator[InspectionRefused]:
    if depth > DEEPEST:
        yield InspectionRefused(f"{folder}: folders nested more than {DEEPEST} deep.", "Remove them.")
        return
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        path, name = folder / entry.name, prefix + entry.name
        if len(look.files) > MOST_FILES:
            yield InspectionRefused(f"{look.root}: more than {MOST_FILES:,} files.", "This is not a model's folder.")
            return
        trouble = _bad_name(look, path, name)
        if trouble is not None:
            yield trouble
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            if not _inside_hub_cache(look.root, path):
                yield InspectionRefused(
                    f"{path}: a symbolic link, which can lead anywhere.", "Put the file itself in its place."
                )
                continue
        elif stat.S_ISDIR(mode):
            if not _passed_over(name):
                yield from _folder(look, path, f"{name}/", depth + 1)
            continue
        elif not stat.S_ISREG(mode):
            yield InspectionRefused(f"{path}: neither a file nor a folder.", "Remove it.")
            continue
        if _passed_over(name):
            continue
        suffix = _suffix(entry.name)
        look.files.append({"name": name, "bytes": path.stat().st_size})
        if suffix in LISTED or (_NAMED.fullmatch(entry.name) and suffix not in (*SUFFIXES, *CODE)):
            yield from _file(look, path, name, suffix)
        else:
            yield from _by_name(path, entry.name)


def _bad_name(look: _Look, path: Path, name: str) -> InspectionRefused | None:
    last = name.rpartition("/")[2]
    if last.startswith(".") and not _passed_over(name):
        return InspectionRefused(f"{path}: a hidden file.", "Look what it is, and remove it.")
    if any(not sign.isprintable() or sign in "\\:" or "\ud800" <= sign <= "\udfff" for sign in last):
        return InspectionRefused(
            f"{path.parent}: the name {last!r} does not hold on every system.", "Give it a plain name, or remove it."
        )
    key = unicodedata.normalize("NFC", name).casefold()
    other = look.names.setdefault(key, name)
    if other != name:
        return InspectionRefused(
            f"{path}: `{other}` and `{name}` differ in nothing but case; on other systems they are one file.",
            "Remove one of them.",
        )
    return None


def _passed_over(name: str) -> bool:
    """What hubs and version control leave beside a model, and nothing here ever opens."""
    if name.rpartition("/")[2] in (".gitattributes", ".gitignore"):
        return True
    return name == ".cache" or _ON_THE_HUB.fullmatch(name) is not None


def _inside_hub_cache(root: Path, path: Path) -> bool:
    """Whether a link is one of the hub's own cache: ``snapshots/REVISION/FILE`` to a file in ``blobs`` beside it."""
    repository = root.parent.parent
    if root.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return False
    target = path.resolve()
    return target.parent == (repository / "blobs").resolve() and target.is_file()


def _by_name(path: Path, name: str) -> Iterator[InspectionRefused]:
    """A file that no model needs: say what is wrong with it."""
    lower = name.lower()
    if lower.endswith(SUFFIXES):
        yield InspectionRefused(
            f"{path}: a pickle can run any code when it is opened.", "Convert it to safetensors and remove it."
        )
        return
    if lower.endswith(CODE):
        yield InspectionRefused(f"{path}: a model folder that brings its own code.", "Remove it; Stillroom runs none.")
        return
    found = betrayed(path)
    what = f"{found[0]} (byte {found[1]:,})" if found else "not a file that a model needs"
    yield InspectionRefused(f"{path}: {what}.", "Remove it.")


def _file(look: _Look, path: Path, name: str, suffix: str) -> Iterator[InspectionRefused]:
    """A file of a kind that is listed: its bytes have to be of that kind."""
    from stillroom.inspection.inspect_json import look_at_json
    from stillroom.inspection.template_rules import require_template

    try:
        if suffix in (".gguf", ".safetensors"):
            for where, template in _weights(path, name, suffix):
                require_template(template, str(path), look.accepted if where.endswith("#chat_template") else None)
                look.templates[where] = template
            look.weights.append(path)
            return
        found = betrayed(path)
        if found is not None:
            raise InspectionRefused(f"{path}: {found[0]} (byte {found[1]:,}).", "Do not use this model.")
        if suffix == ".onnx":
            read_onnx(path)
        elif suffix == ".json":
            for where, template in look_at_json(path, name):
                require_template(template, str(path), look.accepted if where.endswith("#chat_template") else None)
                look.templates[where] = template
        elif suffix == ".jinja":
            template = path.read_text(encoding="utf-8")
            require_template(template, str(path), look.accepted if path.name == "chat_template.jinja" else None)
            look.templates[name] = template
    except UnicodeDecodeError as error:
        yield InspectionRefused(f"{path}: not UTF-8 (byte {error.start:,}).", "Get the file again.")
    except InspectionRefused as error:
        yield error


def _weights(path: Path, name: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Check a file of weights; yields the chat templates in it, with their places."""
    try:
        if suffix == ".safetensors":
            read_safetensors(path)
            return
        metadata = read_gguf(path).metadata
    except InspectionRefused:
        # What is no such file may be something worse, and then that is what is to be said.
        found = betrayed(path)
        if found is not None:
            raise InspectionRefused(
                f"{path}: {found[0]} (byte {found[1]:,}), not {suffix}.", "Do not use this model."
            ) from None
        raise
    for key, value in metadata.items():
        if key.startswith("tokenizer.chat_template"):
            if not isinstance(value, str):
                raise InspectionRefused(f"{path}: a chat template that is no text.", "Do not use it.")
            yield f"{name}#{key.removeprefix('tokenizer.')}", value


def _damaged(look: _Look) -> Iterator[InspectionRefused]:
    """Files of weights, sound as files, with numbers that are not finite."""
    from stillroom.inspection.weights import require_finite_weights

    for path in look.weights:
        try:
            require_finite_weights(path)
        except InspectionRefused as error:
            yield error


def _disagreeing(look: _Look) -> Iterator[InspectionRefused]:
    """Two default chat templates that differ: which one is used would depend on the program."""
    named = ("chat_template.jinja", "tokenizer_config.json#chat_template", "chat_template.json#chat_template")
    found = {where: look.templates[where].rstrip("\n") for where in named if where in look.templates}
    first = next(iter(found.items()), None)
    for where, text in found.items():
        if first is not None and text != first[1]:
            yield InspectionRefused(
                f"{look.root / where.partition('#')[0]}: its chat template differs from that in {first[0]}.",
                "Keep the one that the owner means.",
            )

"""Names of models on the hub, in every form in which cards, configs and recipes write them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

_HOSTS = ("huggingface.co", "hf.co", "hf-mirror.com")
_WITHOUT_OWNER = {
    "distilgpt2": "distilbert",
    **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "openai-gpt"), "openai-community"),
}
"""Language models that the hub has had by a bare name, and their owners now."""
_PART = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_CACHED = re.compile(r"(?:.*/)?models--([A-Za-z0-9][\w.]*(?:-[\w.]+)*)--([A-Za-z0-9][\w.-]*)(?:/.*)?", re.ASCII)
_PAGES = ("tree", "blob", "resolve", "raw", "commit", "commits", "discussions", "edit")
"""What follows a model's name in the addresses of its pages."""
_NOT_MODELS = ("datasets", "spaces", "collections", "papers", "blog", "docs", "api")


def hub_name(value: str) -> str | None:
    """The exact name ``owner/model`` that a text means; None where it means no model of the hub.

    Understood are the name itself, the address of one of its pages (also of a mirror, and without ``https://``), ``hf://``,
    and a folder of the hub's cache; each with a revision (``@``) or a tag (``:``) behind it.
    """
    text = value.strip()
    cached = _CACHED.fullmatch(text)
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    path, behind, _ = _path(text).partition("@")
    parts = [part.partition(":")[0] for part in path.split("/") if part]
    if len(parts) == 1 and parts[0] in _WITHOUT_OWNER:
        return f"{_WITHOUT_OWNER[parts[0]]}/{parts[0]}"
    if text.startswith(("/", ".", "~")) or len(parts) < 2 or (len(parts) > 2 and (behind or parts[2] not in _PAGES)):
        return None
    owner, name = parts[0], parts[1].removesuffix(".git")
    if owner in _NOT_MODELS or not _PART.fullmatch(owner) or not _PART.fullmatch(name):
        return None
    return f"{owner}/{name}"


def name_in_path(value: str) -> str | None:
    """The last two parts of a folder's path, which often are a model's owner and name; None where they cannot be."""
    parts = PurePosixPath(value.strip()).parts[-2:]
    return "/".join(parts) if len(parts) == 2 and all(map(_PART.fullmatch, parts)) else None


def _path(text: str) -> str:
    """The part of an address, or of a name, in which owner and model are; empty for the address of another site."""
    try:
        address = urlsplit(text if "://" in text else f"//{text}")
        host = (address.hostname or "").removeprefix("www.")
    except ValueError:
        return ""
    if address.scheme == "hf":
        return f"{address.netloc}/{address.path}".removeprefix("models/")
    if host in _HOSTS:
        return unquote(address.path).removeprefix("/").removeprefix("api/").removeprefix("models/")
    return "" if "://" in text else re.split(r"[?#]", text, maxsplit=1)[0]

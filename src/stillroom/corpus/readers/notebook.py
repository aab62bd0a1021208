"""Jupyter notebooks: text as it is, code in fences; what cells put out is counted and left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.core.errors import CorpusError
from stillroom.core.strict_json import Twice, once_each
from stillroom.corpus.readers.reader import PassedOver, Reader, read_text


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    return source if isinstance(source, str) else "".join(source)


def _read(path: Path, encoding: str) -> Iterator[str | PassedOver]:
    try:
        book = json.loads(read_text(path, encoding), object_pairs_hook=once_each)
    except Twice as error:
        raise CorpusError(
            f"{path}: the key {str(error)[:80]!r} is there twice in one object.", "Save the notebook again."
        ) from None
    sheets = book.get("worksheets", [book]) if isinstance(book, dict) else []
    cells = [cell for sheet in sheets for cell in sheet.get("cells", ())]
    if not cells and not (isinstance(book, dict) and ("cells" in book or "worksheets" in book)):
        raise CorpusError(f"{path}: has no cells, so that it is no notebook.", "Leave it out by `pattern`.")
    named = book.get("metadata", {})
    language = named.get("language_info", {}).get("name") or named.get("kernelspec", {}).get("language") or ""
    texts, outputs = [], 0
    for cell in cells:
        source = _source(cell)
        outputs += len(cell.get("outputs", ()))
        if source.strip():
            texts.append(f"```{language}\n{source}\n```" if cell.get("cell_type") == "code" else source)
    if outputs:
        yield PassedOver("outputs of notebooks' cells", outputs)
    yield "\n\n".join(texts) + "\n"


READERS = (Reader((".ipynb",), _read),)

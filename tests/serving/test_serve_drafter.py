"""A small model that drafts for a served one: what is written stays the same, and vocabularies are compared first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from serve_support import running
from tiny_models import tiny_model

from stillroom.core.errors import UsageError
from stillroom.formats.gguf_file import write_gguf
from stillroom.runtime.facts import require_drafter


def test_a_drafter_of_another_vocabulary_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    require_drafter(tiny_gguf, tiny_gguf)
    folder = tiny_model("llama", tmp_path / "other", layers=1, vocabulary_size=400)
    write_gguf(folder, tmp_path / "other.gguf", "F16", name="other", licence=None)
    with pytest.raises(UsageError, match=r"other\.gguf cannot draft for"):
        require_drafter(tiny_gguf, tmp_path / "other.gguf")


def test_a_drafter_that_begins_texts_otherwise_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp drafts nothing with it, and its answers tell nothing of that."""
    import gguf

    other = tmp_path / "begins.gguf"
    shutil.copy(tiny_gguf, other)
    reader = gguf.GGUFReader(str(other), "r+")
    field = reader.fields["tokenizer.ggml.add_bos_token"]
    field.parts[field.data[0]][0] = True
    reader.data.flush()
    del reader
    with pytest.raises(UsageError, match="it puts before a text the token 1, and the model's none"):
        require_drafter(tiny_gguf, other)
    require_drafter(other, other)


def test_what_is_served_is_the_same_with_a_drafter(tiny_gguf: Path, tmp_path: Path) -> None:
    answers = {}
    for name, drafter in (("plain", None), ("drafted", tiny_gguf)):
        with running([tiny_gguf], tmp_path / name, parallel=1, drafter=drafter) as served:
            status, answer = served.chat("A for loop", temperature=0, max_tokens=24)
            assert status == 200
            answers[name] = answer["choices"][0]["message"]["content"]
            _, figures, _ = served.ask("GET", "/metrics")
            counted = {line.split()[0]: float(line.split()[1]) for line in figures.splitlines() if line[:1] == "s"}
            drafted = counted["stillroom_drafted_tokens_total"]
            assert (drafted > 0) == (drafter is not None)
            # A model that drafts for itself is always right.
            assert counted["stillroom_accepted_tokens_total"] == drafted
    assert answers["plain"] == answers["drafted"] != ""

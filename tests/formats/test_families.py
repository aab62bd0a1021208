"""Every family with a GGUF layout: a tiny random model's file, run by llama.cpp, says what PyTorch says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tiny_files import exported, model_of
from stillroom.models.families.registry import families

EXPORTED = sorted(name for name, family in families().items() if family.gguf is not None)
LIMIT, LARGEST = 1e-4, 3e-2
"""KL in nats at the last positions of the prompts, for a file of type F16: the median, and the largest. A near tie of a
router, or of a norm over almost nothing, makes one prompt differ."""


@pytest.mark.parametrize("family", EXPORTED)
def test_llama_cpp_says_what_pytorch_says(family: str, tmp_path: Path) -> None:
    found = exported(model_of(family), tmp_path)
    assert found[len(found) // 2] < LIMIT
    assert found[-1] < LARGEST

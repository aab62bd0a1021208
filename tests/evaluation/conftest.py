"""A trained tiny teacher, made once."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.faults import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bench on which the student is the teacher itself, and the teacher."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_world(tmp_path_factory.mktemp("world"))
    torch.set_num_threads(threads)
    return made

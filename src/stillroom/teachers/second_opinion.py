"""A GGUF teacher against llama.cpp on a few tokens: what the file means is what the runtime makes of it.

Legend: V ids, K listed ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.errors import EngineFailed, SwitchedOff, UnsupportedModel
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.runtime.engine import Engine, EngineOptions

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher

LARGEST = 2 << 30
"""Bytes of a file beyond which loading it a second time is not cheap."""
LENGTH, COMPARED = 24, (5, 11, 17, 24)
"""Tokens of a prompt, and the lengths of its beginnings that are compared."""
LISTED = 256
"""Ids whose log-probabilities the runtime lists."""
FAR = 0.1
"""Mean KL(llama.cpp ‖ PyTorch) over the listed ids, in nats: file types of few bits differ by thousandths."""
_SEEN: set[str] = set()
"""Digests of the files that agreed in this process."""


def compare_with_runtime(teacher: LoadedTeacher, path: Path) -> tuple[str, ...]:
    """Compare a GGUF teacher with llama.cpp.

    Args:
        teacher: The teacher, opened.
        path: Its file.

    Returns:
        What is to be said: nothing where they agree, or why they could not be compared.

    Raises:
        UnsupportedModel: llama.cpp predicts otherwise.
    """
    if teacher.digest in _SEEN or path.stat().st_size > LARGEST:
        return ()
    device = next(teacher.model.parameters()).device
    rows = teacher.model.get_output_embeddings().weight.shape[0]
    ids = torch.randint(0, rows, (LENGTH,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        positions = torch.arange(LENGTH, device=device)[None]
        hidden = hidden_states(teacher.model, ids[None].to(device), positions)[0]
        wanted = hidden[[length - 1 for length in COMPARED]]
        mine = torch.log_softmax(logits_from_hidden(teacher.model, wanted), dim=1).cpu()
    harmless = int(teacher.tokenizer("a", add_special_tokens=False)["input_ids"][-1])
    try:
        with Engine(path, EngineOptions(context=256)) as engine:
            listed = [_listed(engine, ids[:length].tolist(), min(LISTED, rows), harmless) for length in COMPARED]
    except (EngineFailed, SwitchedOff) as error:
        return (f"it is not compared with llama.cpp: {error.what}",)
    kl = sum(_divergence(row, entries) for row, entries in zip(mine, listed, strict=True)) / len(COMPARED)
    if not kl <= FAR:
        raise UnsupportedModel(
            f"{path}: llama.cpp predicts otherwise than the model that was read from the file (KL {kl:.2g} nats per token).",
            "Use the model's Hugging Face folder.",
        )
    _SEEN.add(teacher.digest)
    return ()


def _listed(engine: Engine, prompt: list[int], count: int, harmless: int) -> list[tuple[int, float]]:
    """Ids and log-probabilities [K] of the next token."""
    # llama.cpp lists nothing for an end or for half a character, so one token is forced; the list does not depend on it.
    wanted = {"max_tokens": 1, "temperature": 0, "logprobs": count, "n_probs": count, "logit_bias": [[harmless, 1e6]]}
    answer: dict[str, Any] = engine.complete({"prompt": prompt, "cache_prompt": True, **wanted})
    entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [(int(entry["id"]), float(entry["logprob"])) for entry in entries]


def _divergence(mine: torch.Tensor, listed: list[tuple[int, float]]) -> float:
    """KL(listed ‖ mine) over the listed ids, both made to sum to 1 over them."""
    ids = torch.tensor([index for index, _ in listed])
    theirs = torch.log_softmax(torch.tensor([value for _, value in listed], dtype=torch.float64), dim=0)
    own = torch.log_softmax(mine[ids].double(), dim=0)
    return float((theirs.exp() * (theirs - own)).sum())

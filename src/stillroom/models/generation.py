"""Text written token by token, by the caller's sampling alone.

transformers fills what a caller leaves out of a sampling from the model's ``generation_config.json``, and many models ship a
repetition penalty or more there. What is written would then not be drawn from the model's distribution, and two models that
are compared would be sampled by different rules. Here nothing of it counts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel


@torch.inference_mode()
def continuations(
    model: CausalModel,
    rows: Sequence[Sequence[int]],
    limit: int,
    ends: Collection[int],
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    padding: int | None = None,
    suppressed: Sequence[int] = (),
    **options: Any,
) -> list[list[int]]:
    """What a model writes behind beginnings: for each its new ids, up to and with the one that ends it, where there is one.

    Args:
        model: The model, in evaluation mode.
        rows: Beginnings, each of at least one id; they are padded on the left to the longest.
        limit: Tokens to write at most.
        ends: Ids that end a text.
        temperature: 0 takes the most probable token each time; above, PyTorch's own random numbers decide.
        top_p: Only the most probable tokens that together have this probability are drawn from.
        padding: The id that fills up rows; nothing attends to it.
        suppressed: Ids that are never written.
        options: More for ``generate`` (``logits_processor``, ``stop_strings``).
    """
    from transformers import GenerationConfig

    device = model.get_input_embeddings().weight.device
    filler = min(ends, default=0) if padding is None else padding
    longest = max(map(len, rows))
    ids = torch.tensor([[filler] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    asked = GenerationConfig(
        **sampling,
        max_new_tokens=limit,
        eos_token_id=sorted(ends) or None,
        pad_token_id=filler,
        suppress_tokens=list(suppressed) or None,
        use_cache=True,
    )
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        found = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=asked, **options
        )
    finally:
        model.generation_config = own
    written = found[:, longest:].tolist()
    cut = [next((at for at, token in enumerate(row) if token in ends), len(row)) for row in written]
    return [row[: at + 1] for row, at in zip(written, cut, strict=True)]

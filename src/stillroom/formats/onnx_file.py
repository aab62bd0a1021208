"""A Hugging Face folder to ONNX with a KV cache.

The graph takes ``input_ids`` [1, L] and the cache so far, ``past.I.key`` and ``past.I.value`` [1, G, P, D] of each layer I, and
gives ``logits`` [1, L, V] and the grown cache, ``present.I.key`` and ``present.I.value`` [1, G, P + L, D]. A first call has
P = 0. Positions and masks are inside.

Legend: L new tokens, P past tokens, G key/value heads, D width of a head, V ids.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from stillroom.core import files
from stillroom.core.errors import UnsupportedModel
from stillroom.core.extras import require

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicLayer

    from stillroom.models.types import CausalModel, ModelConfig

NEEDED = ("onnx", "onnxscript", "onnxruntime")
MODEL = "model.onnx"


def require_onnx() -> None:
    """Say what is missing before any work is done.

    Raises:
        MissingDependency: The extra is not installed.
    """
    require("onnx", "ONNX needs packages that are not installed: {}.", *NEEDED)


class WithCache(nn.Module):
    """A causal language model whose cache goes in and out as plain tensors."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Logits and the grown cache; ``past`` holds keys and values in turn, layer by layer."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        before, length = past[0].shape[2], input_ids.shape[1]
        queries = torch.arange(length) + before
        result = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(queries, torch.arange(before + length)),
            position_ids=queries[None],
            past_key_values=cache,
            use_cache=True,
        )
        layers = cast("list[DynamicLayer]", cache.layers)
        grown = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return (result.logits, *grown)

    def _masks(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """What is added to attention scores, [1, 1, L, P + L]; one a kind of attention where there are two."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        distance = queries[:, None] - keys[None]
        low = torch.finfo(torch.float32).min

        def added(allowed: torch.Tensor) -> torch.Tensor:
            return torch.where(allowed, 0.0, low)[None, None]

        full = added(distance >= 0)
        kinds = set(getattr(config, "layer_types", None) or ())
        if "sliding_attention" in kinds and window:
            return {"full_attention": full, "sliding_attention": added((distance >= 0) & (distance < window))}
        if not kinds and window:
            return added((distance >= 0) & (distance < window))
        return full


def write_onnx(folder: Path, target: Path) -> None:
    """Write the folder ``target``: graph, weights, tokenizer, config; whole or not at all.

    Args:
        folder: A Hugging Face folder.
        target: The folder to make.

    Raises:
        MissingDependency: The extra ``onnx`` is not installed.
        UnsupportedModel: PyTorch's exporter cannot trace this model.
    """
    require_onnx()
    from stillroom.models.load import load_student
    from stillroom.models.tokenizer import quietly

    model, tokenizer = load_student(folder, torch.float32)
    model.eval().requires_grad_(requires_grad=False)
    model.set_attn_implementation("eager")
    config = model.config
    past = empty_cache(config, 3)
    names = [f"{index // 2}.{'key' if index % 2 == 0 else 'value'}" for index in range(len(past))]
    growing = {2: torch.export.Dim("past", min=0, max=1 << 20)}
    shapes = ({1: torch.export.Dim("length", min=1, max=1 << 20)}, [growing] * len(past))
    with files.replacing(target) as beside:
        beside.mkdir()
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            # The exporter reports its steps on both streams; a failure comes as an exception.
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
            level = logging.root.manager.disable
            stack.callback(logging.disable, level)
            logging.disable(logging.WARNING)
            try:
                torch.onnx.export(
                    WithCache(model),
                    (torch.zeros(1, 4, dtype=torch.int64), past),
                    str(beside / MODEL),
                    input_names=["input_ids", *(f"past.{name}" for name in names)],
                    output_names=["logits", *(f"present.{name}" for name in names)],
                    dynamic_shapes=shapes,
                    dynamo=True,
                    external_data=True,
                    opset_version=20,
                    verbose=False,
                )
            except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UnsupportedModel(
                    f"{folder}: PyTorch's ONNX exporter cannot trace this `{config.model_type}`: {reason[:300]}",
                    "Leave ONNX out (`export: {onnx: false}`); GGUF and the Hugging Face folder are complete.",
                ) from None
        with quietly():
            tokenizer.save_pretrained(beside)
            config.save_pretrained(beside)


def empty_cache(config: ModelConfig, length: int = 0) -> list[torch.Tensor]:
    """Keys and values of a cache that holds ``length`` zeros, each [1, G, length, D]."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return [torch.zeros(1, groups, length, width) for _ in range(2 * config.num_hidden_layers)]

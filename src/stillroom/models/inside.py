"""The language model inside a vision-language model: taken out, and proved to predict text as the whole does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.errors import UnsupportedModel
from stillroom.models.kinds import TEXT_AS, Kind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from stillroom.models.types import CausalModel

SAME = 1e-3
"""Difference of logits, in their standard deviations, up to which they are the same; ten times as much in 16 bits."""


def open_inside(
    folder: Path, kind: Kind, options: Mapping[str, Any]
) -> tuple[CausalModel, CausalModel, dict[str, Any]]:
    """Load the whole model, and take its language model.

    Args:
        folder: A Hugging Face folder.
        kind: What its config says.
        options: Of ``from_pretrained``.

    Returns:
        The language model, the whole model, and transformers' account of loading it.

    Raises:
        UnsupportedModel: What was taken out does not predict text as the whole does.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    images = kind.config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    opener: Any = getattr(transformers, "AutoModelForImageTextToText" if images else "AutoModelForMultimodalLM")
    whole, info = opener.from_pretrained(folder, **options)
    return take_text(whole), whole, info


@torch.no_grad()
def take_text(whole: Any) -> CausalModel:
    """The language model inside a loaded vision-language model; it shares the weights. Errors as in :func:`open_inside`."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    whole.eval()
    decoder: Any = whole.get_decoder()
    text: Any
    if decoder.get_output_embeddings() is not None:
        text = decoder
    else:
        config = text_config(whole.config)
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
        kind: Any = getattr(transformers, name if isinstance(name, str) else name[0])
        weights = whole.get_output_embeddings().weight
        text = kind._from_config(config, dtype=weights.dtype)
        if type(getattr(text, text.base_model_prefix)) is type(decoder):
            setattr(text, text.base_model_prefix, decoder)
        else:
            getattr(text, text.base_model_prefix).load_state_dict(decoder.state_dict(), strict=True)
        text.set_output_embeddings(whole.get_output_embeddings())
        text.tie_weights()
    text.eval()
    model: CausalModel = text
    _require_same(whole, model)
    return model


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the language model, as its own causal class takes it."""
    from transformers import AutoConfig

    found = copy.deepcopy(config.get_text_config())
    family = TEXT_AS.get(found.model_type)
    if family is not None:
        said = found.to_dict()
        said.pop("model_type")
        # The three axes of positions are one where there is text only.
        said["rope_parameters"] = {
            key: value for key, value in (said.get("rope_parameters") or {}).items() if "mrope" not in key
        } | {"rope_type": "default"}
        if family == "qwen3_moe":
            said["norm_topk_prob"] = True  # its routers always do, without a key that says so
        made: Any = AutoConfig
        found = made.for_model(family, **said)
    found.tie_word_embeddings = bool(getattr(config, "tie_word_embeddings", found.tie_word_embeddings))
    taken: PreTrainedConfig = found
    return taken


def _require_same(whole: Any, text: CausalModel) -> None:
    rows = text.get_input_embeddings().weight.shape[0]
    device = next(text.parameters()).device
    ids = torch.randint(0, min(rows, 1000), (1, 24), generator=torch.Generator().manual_seed(0)).to(device)
    expected = whole(input_ids=ids, use_cache=False).logits.float()
    found = text(input_ids=ids, use_cache=False).logits.float()
    error = float((found - expected).abs().max() / expected.std()) if found.shape == expected.shape else float("inf")
    if not error <= (SAME if text.dtype == torch.float32 else 10 * SAME):
        raise UnsupportedModel(
            f"The language model inside the family `{whole.config.model_type}` does not predict text as the whole does "
            f"(logits differ by {error:.2g} of their spread).",
            "Use the text model of this family, or another teacher.",
        )

"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685): what is trained where the student's weights are not.

A linear layer ``y = W x`` becomes ``y = W x + s · B (A x)``. W stays as it is; A and B are trained. B begins at zero, so that
the student begins where it was. When training ends, ``W + s · B A`` takes W's place (:func:`merge`), and an ordinary model is
left. The layers are those of peft.

Legend: r rank, W [O, I], A [r, I], B [O, r]; s is alpha / r, or alpha / √r.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.core import extras
from stillroom.core.errors import RecipeError, UnsupportedModel, first_line
from stillroom.models.load import load_student
from stillroom.recipe.training import LoraConfig

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, Tokenizer

DROPOUT = "lora_dropout"
"""The part of a name that peft gives an adapter's dropout."""


def targets_of(model: CausalModel, config: LoraConfig) -> dict[str, nn.Module]:
    """The layers of a model that get an adapter, by name; the model may be on the meta device.

    Raises:
        RecipeError: A name of the recipe is no linear layer of the model, or its output layer.
        UnsupportedModel: The model has no linear layer besides the output layer.
    """
    output = model.get_output_embeddings()
    linear = {
        name: module for name, module in model.named_modules() if _is_linear(module) and name and module is not output
    }
    if not linear:
        raise UnsupportedModel(
            f"`distill.lora`: this model (`{model.config.model_type}`) has no linear layers that could get an adapter.",
            "Leave `distill.lora` out: all weights are trained then.",
        )
    if config.targets == "auto":
        return linear
    chosen: set[str] = set()
    for asked in config.targets:
        found = [name for name in linear if _ends(name, asked)]
        if not found:
            raise RecipeError(
                f"`distill.lora.targets`: {_why_not(model, asked)}",
                f"Name some of {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}; or write `auto`.",
            )
        chosen.update(found)
    return {name: module for name, module in linear.items() if name in chosen}


def adapter_parameters(model: CausalModel, config: LoraConfig) -> int:
    """Parameters that are trained: r · (I + O) for each target. Errors as in :func:`targets_of`."""
    return sum(config.rank * sum(_weight(module).shape) for module in targets_of(model, config).values())


def attach(model: CausalModel, config: LoraConfig, dtype: torch.dtype, seed: int) -> None:
    """Give a model adapters, in place; its own weights are frozen.

    Args:
        model: A student, float32 and on the CPU, so that adapters begin the same for every device.
        config: The recipe's section.
        dtype: Format that the frozen weights are kept in: that of the passes. Adapters are float32.
        seed: Of the random matrices A.

    Raises:
        MissingDependency: peft is not installed.
        RecipeError: As in :func:`targets_of`.
        UnsupportedModel: As in :func:`targets_of`, or peft refuses a layer.
    """
    extras.require("lora", "`distill.lora` needs {}, which is not installed.")
    targets = targets_of(model, config)
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        target_modules=list(targets),
        fan_in_fan_out=any(not isinstance(module, nn.Linear) for module in targets.values()),
    )
    model.requires_grad_(requires_grad=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, model)
        except (ValueError, TypeError) as error:
            raise UnsupportedModel(
                f"`distill.lora`: peft gives this model (`{model.config.model_type}`) no adapters: {first_line(error)}",
                "Name layers that can have one in `distill.lora.targets`, or leave `distill.lora` out.",
            ) from None
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def faster(width: int, config: LoraConfig) -> float:
    """Best learning rate of adapters over that of whole weights, about; a sweep begins there.

    AdamW moves every number by about the rate. A row of W then moves by √I rates, and a row of s · B A, whose A has rows of
    about 1/√3 in length as peft draws it, by s √(r / 3) of them. The best rates are inverse to that: √(3 I) / (s √r). For a
    tiny model (width 64, near its teacher, rates a factor of 2.3 apart) that is 0.43, 0.87 and 1.7 for s √r of 32, 16 and 8,
    and 0.43, 1 and 2.3 were seen; for width 4,096 with rank 16 and alpha 32 it is 14, and about 10 was published (Thinking
    Machines Lab 2025, "LoRA Without Regret").

    Args:
        width: Hidden size, which stands for I.
        config: The recipe's section.
    """
    scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
    return math.sqrt(3 * width) / (scale * math.sqrt(config.rank))


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has adapters: some of its weights are trained, and others are frozen."""
    return len({parameter.requires_grad for parameter in model.parameters()}) == 2


def record(model: CausalModel, config: LoraConfig) -> dict[str, Any]:
    """What notes, summary and provenance say of a model with adapters.

    Returns:
        The recipe's numbers; ``targets`` (the last part of the names of layers with adapters) and ``modules`` (how many);
        ``trained_parameters`` and ``frozen_parameters``; and ``matrices_without``, names of the layers' matrices that are
        neither trained nor have an adapter: with ``auto`` only such that are no linear layers of their own, as the experts of
        mixtures.
    """
    adapted = _adapted(model)
    names = {f"{name}.base_layer." for name, _ in adapted}
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    without = {
        ".".join(part for part in name.split(".")[-3:] if not part.isdigit())
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
        and not parameter.requires_grad
        and id(parameter) not in tables
        and not any(name.startswith(begin) for begin in names)
    }
    return {
        **config.model_dump(mode="json"),
        "targets": sorted({name.rpartition(".")[2] for name, _ in adapted}),
        "modules": len(adapted),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "frozen_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        "matrices_without": sorted(without),
    }


def words_of(found: dict[str, Any]) -> str:
    """A :func:`record` in a sentence."""
    words = in_words(found, found["trained_parameters"] / found["frozen_parameters"])
    if found["matrices_without"]:
        words += f"; without adapters: {', '.join(found['matrices_without'])}"
    return words


def in_words(found: dict[str, Any], share: float) -> str:
    """What is trained: ``rank``, ``trained_parameters`` and ``modules`` of a plan or a :func:`record`.

    Args:
        found: It.
        share: Parameters that are trained over those of the student.
    """
    return (
        f"LoRA of rank {found['rank']}: {found['trained_parameters']:,} parameters are trained, {share:.2%} of the student's, "
        f"in {found['modules']} layers"
    )


@torch.no_grad()
def merge(model: CausalModel) -> None:
    """Add adapters to the weights that they belong to, in place; an ordinary model is left."""
    for name, layer in _adapted(model):
        layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(requires_grad=True)


def merged(model: CausalModel, tokenizer: Tokenizer, config: LoraConfig, folder: Path) -> tuple[CausalModel, Tokenizer]:
    """A trained student with its adapters merged into its float32 weights.

    Args:
        model: The student; it is used up.
        tokenizer: Its tokenizer.
        config: The recipe's section.
        folder: Where its weights are stored: they are read again where they were rounded for the passes.
    """
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        trained = {name: held.detach().cpu() for name, held in model.named_parameters() if held.requires_grad}
        model, tokenizer = load_student(folder, torch.float32)
        attach(model, config, torch.float32, 0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(trained[name])
    merge(model)
    return model, tokenizer


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers with adapters, by name."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _is_linear(module: nn.Module) -> bool:
    """Whether a layer is an ordinary product; what derives from one, as some routers do, computes something else."""
    from transformers.pytorch_utils import Conv1D

    return type(module) in (nn.Linear, Conv1D)


def _weight(module: nn.Module) -> torch.Tensor:
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight


def _ends(name: str, asked: str) -> bool:
    return name == asked or name.endswith(f".{asked}")


def _why_not(model: CausalModel, asked: str) -> str:
    """Why a name is no target."""
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not _ends(name, asked):
            continue
        if module is output:
            return (
                f"`{asked}` is the output layer, which gets no adapter (it may be one with the embedding, and the loss reads "
                "its matrix)."
            )
        return f"`{asked}` is no linear layer of this model, but a {type(module).__name__}."
    return f"this model has no layer `{asked}`."

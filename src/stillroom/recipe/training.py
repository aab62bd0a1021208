"""The recipe's words for training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stillroom.recipe.capture import StoreUrl, known_store
from stillroom.recipe.section import BEFORE, LEAST_CLIP, SINCE, NumberOrAuto, OpenName, Section

OBJECTIVES = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "total_variation",
    "log_acceptance",
)
"""The built-in objectives; each is the file of that name in ``stillroom/training/losses/``."""
Beta = Annotated[float, Field(ge=0, lt=1)]
"""One of AdamW's averaging constants."""
GROUP = "stillroom.objectives"
"""Entry points under which other packages add objectives."""


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685): the student's weights stay as they are, and beside each target layer
    two small matrices are trained, whose product is added to its weights when training ends (docs/lora.md).
    """

    rank: int = Field(default=16, ge=1, le=16_384)
    """Inner size of an adapter (`r` in peft): it has `rank` times the sum of its layer's two sizes in parameters."""
    alpha: float = Field(default=32.0, ge=0.01, le=10_000)
    """An adapter's product counts `alpha / rank` times."""
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    """Linear layers that get an adapter, by the end of their names, such as `[q_proj, v_proj]`. `auto` takes every linear
    layer but the output layer (`all-linear` in peft)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are set to zero at random in each training step."""
    rslora: bool = False
    """Let an adapter's product count `alpha / √rank` times (rank-stabilised LoRA, arXiv 2312.03732), so that a larger rank is
    not a smaller step."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        """One name may be written without brackets; none is empty."""
        names = (value,) if isinstance(value, str) and value != "auto" else value
        if isinstance(names, (list, tuple)) and (not names or "" in [str(name).strip() for name in names]):
            raise ValueError(
                "an empty name stands for no layer: name some, such as `[q_proj, v_proj]`, or write `auto`"
            )
        return names


class RoundsConfig(Section):
    """On-policy distillation in rounds: the student continues beginnings of training documents, the teacher is captured on that
    text, and training goes on with a share of it (docs/rounds.md).
    """

    count: int = Field(default=4, ge=2, le=64)
    """Rounds, of equally many steps. The first has the corpus alone; before each later one the student writes."""
    own_share: float = Field(default=0.25, ge=0.01, le=1)
    """Share of the training sequences of the later rounds that the student's own text takes the place of. The number of steps
    stays the same."""
    tokens: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], NumberOrAuto("an integer")] = "auto"
    """Tokens that the student writes before a round, at most. ``auto`` is as many as ``own_share`` takes once; of fewer, the
    same text is learned several times in the round."""
    prompt_tokens: int = Field(default=32, ge=1)
    """Tokens of a training document that the student continues; of a chat, everything before an answer is taken instead."""
    new_tokens: int = Field(default=128, ge=8, le=8192)
    """Tokens of a text at most; it ends before where the student ends it."""
    temperature: float = Field(default=1.0, ge=0.01, le=2)
    """Of the student's sampling."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Of the student's sampling: only the most probable tokens that together have this probability are drawn from."""


class DistillConfig(Section):
    """Objective, optimizer and checkpoints. The baseline is trained with the same section, by cross-entropy alone."""

    objective: Annotated[str, OpenName(OBJECTIVES, GROUP)] = "forward_kl"
    """What pulls the student to the teacher. Sampled signals serve ``forward_kl`` only; the others need a dense cache."""
    biased: bool = Field(default=False, json_schema_extra={SINCE: "0.2.0"})
    """Learn from a biased signal (``codec: {kind: top_k}``) all the same. The loss and the validation KL are then those of the
    kept ids and of all others as one, at most the KL of the whole distributions."""
    cross_entropy_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of plain cross-entropy on the text in the loss; the teacher's share is one minus this, at any temperature."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Divides the logits of teacher and student; must be ``capture.temperature``. The objective's loss counts T² times, so that
    it keeps its share of the gradient. Outside 0.01 to 100 nothing is left of it in float32. The validation KL, which chooses
    the best weights, is at this temperature; the evaluation is at 1."""
    chunk_weight: float = Field(default=1.0, ge=0, le=1000, json_schema_extra={SINCE: "0.2.0"})
    """For ``student.tokenizer: own``: weight of the loss on text that the two tokenizers split in different ways, where whole
    chunks are compared instead of tokens."""
    chunk_temperature: float = Field(default=100.0, ge=0.01, le=10_000, json_schema_extra={SINCE: "0.2.0"})
    """For ``student.tokenizer: own``: divides the log-probabilities of chunks before they are compared (τ in arXiv
    2503.20083)."""
    epochs: int = Field(default=1, ge=1, le=10_000)
    """Passes over the training sequences."""
    batch_tokens: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], NumberOrAuto("an integer")] = "auto"
    """Batch size: tokens per optimizer step. ``auto`` takes 2.5 times the square root of the tokens, at least 512 and at most
    65,536: a short run needs many small steps, a long one gains from large ones. The plan shows what it comes to."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per forward pass; the rest of a step is accumulated. Without it, the whole step at once."""
    learning_rate: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"], NumberOrAuto("a number")
    ] = "auto"
    """Peak learning rate of AdamW. ``auto`` measures it: a few short trials at the start, on the validation split, for at
    most 5 % of the run's steps, for student and baseline each. A run that is too short for that takes it from a table
    by the distance to the teacher and the hidden size. What was chosen, and why, is in the stage's notes, the summary
    and the report."""
    output_layer_rate: Annotated[Annotated[float, Field(ge=0, le=1)] | Literal["auto"], NumberOrAuto("a number")] = (
        Field(default="auto", json_schema_extra={SINCE: "0.2.0"})
    )
    """Learning rate of the output layer (in many models the embedding as well) as a share of the others'; 0 keeps it as it is.
    ``auto`` is 1, but 0.1 where the signal is what an endpoint lists and the student does not begin at random: how
    the rest is spread is not said there, and it is the output layer that loses it (docs/endpoint-teacher.md)."""
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    """AdamW's decoupled weight decay; norms and biases have none. A step takes `learning_rate * weight_decay` of a weight
    away, which has to be below 1."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's averaging constants."""
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Share of steps in which the learning rate rises from zero."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up. ``wsd`` (warm-up, stable, decay) stays at the peak and falls in the
    last ``decay_share`` of the steps only. What it was before the fall is kept (weights and averages: 12 bytes per
    parameter), and the same training with more ``epochs`` goes on from there."""
    decay_share: float = Field(default=0.2, gt=0, le=1, json_schema_extra={SINCE: "0.2.0"})
    """Share of the steps in which ``schedule: wsd`` lets the learning rate fall, by one minus the square root."""
    final_learning_rate_share: float = Field(default=0.05, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    gradient_clip: float = Field(default=1.0, ge=LEAST_CLIP)
    """Largest norm of the gradient."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``bfloat16`` computes in a rounded working copy of the float32 weights; ``auto`` takes it where the CPU is fast
    at it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the student's layers with ``torch.compile``, each by itself and for fixed shapes: rows are padded to a multiple
    of 128 tokens. ``auto`` is ``off``. On the CPU it needs a C++ compiler, and a resumed run may differ from an uninterrupted
    one in the last bits."""
    loss_chunk: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], NumberOrAuto("an integer")] = Field(
        default="auto", json_schema_extra={BEFORE: 512}
    )
    """Positions whose logits exist at the same time. ``auto`` is 512 on the CPU, and on a GPU the most whose logits and
    gradients take 2 GiB, at least 512 and at most 8,192: a larger chunk reads and writes the output matrix's gradient
    less often."""
    state: Literal["auto", 16, 12, 10, 8] = Field(default="auto", json_schema_extra={SINCE: "0.2.0"})
    """Bytes per parameter that a GPU holds of weights, gradients and AdamW's averages: ``16`` keeps weights and averages in
    float32, ``12`` the averages in bfloat16, ``10`` the averages in 8 bits, ``8`` weights and averages in bfloat16; ``10`` and
    ``8`` are rounded at random so that small steps are not lost. ``auto`` takes the most exact that fits, and on the CPU
    float32 throughout."""
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(default="auto", json_schema_extra={SINCE: "0.2.0"})
    """Keep only what enters each layer, and compute the rest again for the backward pass: a third more work, a fraction of the
    memory. ``auto`` does so on a GPU where it would not fit otherwise."""
    lora: LoraConfig | None = Field(default=None, json_schema_extra={SINCE: "0.2.0"})
    """Train low-rank adapters (LoRA) instead of the weights, for students that are too large to train whole; they are merged
    into the weights when training ends. The baseline is trained in the same way. Without it, all weights are trained."""
    rounds: RoundsConfig | None = Field(default=None, json_schema_extra={SINCE: "0.2.0"})
    """Let the student write a part of the text that it is trained on, and the teacher give its signal on it (on-policy
    distillation). Without it, all text is the corpus's. The baseline is trained on the corpus alone in any case."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between validations; without it, ten in a run."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Least time between checkpoints, longer where writing them would take more than 2 % of the time; 0 is after every step.
    One is always written at a validation."""
    checkpoint_copy: StoreUrl | None = Field(default=None, json_schema_extra={SINCE: "0.2.0"})
    """A URL such as ``s3://bucket/checkpoints``, for machines that may vanish: each checkpoint is copied there while training
    goes on, and a run that begins in an empty folder takes the newest whole one of the same training. Credentials come from
    the environment, never from here."""

    @field_validator("checkpoint_copy", mode="before")
    @classmethod
    def _known_store(cls, value: Any) -> Any:
        """A URL of an object store that is known, without credentials."""
        return known_store(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _layouts(self) -> DistillConfig:
        if self.lora is not None and self.output_layer_rate != "auto":
            raise ValueError("with `lora` the output layer is not trained: leave `output_layer_rate` out")
        if self.lora is not None and self.state != "auto":
            raise ValueError(
                f"`state: {self.state}` is how weights that are trained are stored, and with `lora` they are not trained: "
                "leave it at `auto`"
            )
        return self

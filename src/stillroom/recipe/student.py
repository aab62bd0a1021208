"""The recipe's words for students: pruned from the teacher, dense in place of a mixture, existing, or fresh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillroom.recipe.gguf_type import GgufType
from stillroom.recipe.section import FORMER, FORMER_VALUES, SINCE, Section


class VocabularyConfig(Section):
    """Which ids of the teacher's vocabulary the student keeps."""

    keep: Literal["corpus", "all"] = "corpus"
    """``corpus`` keeps every id that the training text uses, every byte and special token, and what merges need to
    reach them; ``all`` keeps the teacher's vocabulary as it is."""
    size: int | None = Field(default=None, ge=256)
    """At most this many ids: the most frequent first. Without it, as many as the training text uses."""
    multiple_of: int = Field(default=64, ge=1, le=65_536)
    """The embedding has a multiple of this many rows; the rest is filled with further ids. Padding rows, where the
    teacher has no more ids, can never be predicted."""
    languages: tuple[str, ...] = ()
    """Languages (such as ``de``) whose cost in tokens per byte is shown, and whose sample (the Universal Declaration of
    Human Rights) counts as text that the student has to say."""


class ImportanceConfig(Section):
    """The sample of training text on which importance is measured and repairs are fitted."""

    tokens: int = Field(default=12_288, ge=64)
    """Tokens of the sample; a sixth of them is held out for evaluation."""
    repair_tokens: int | None = Field(default=None, ge=64, json_schema_extra={SINCE: "0.2.0"})
    """Tokens that the least-squares repair is fitted on; without it, those of the sample that are not held out. More of them
    repair more, and cost what two to three times as many trained tokens do."""
    leave_one_out: bool = True
    """Measure layers by the KL without each single one, besides block influence; both kinds of choices are evaluated."""
    path: Path | None = None
    """File that keeps what was measured; without it, in the run's folder. Students of one teacher and sample share it."""


def _require_repair(heal: bool, importance: ImportanceConfig) -> None:
    if importance.repair_tokens is not None and not heal:
        raise ValueError(
            "`heal: false` leaves the repair out, so that `importance.repair_tokens` would do nothing: leave out one"
        )


class Target(Section):
    """What the device allows. The shape of least predicted loss within all of it is chosen."""

    parameters: int | None = Field(default=None, gt=0)
    """At most this many parameters."""
    file_bytes: int | None = Field(default=None, gt=0)
    """At most this many bytes of a GGUF file."""
    memory_bytes: int | None = Field(default=None, gt=0)
    """At most this many bytes of memory while it answers: weights, the KV cache (keys and values), work space."""
    decode_tokens_per_second: float | None = Field(default=None, gt=0)
    """At least this many tokens per second, by the memory's bandwidth: the device's, or this machine's as measured."""
    quantisation: GgufType | None = None
    """The GGUF type that file, memory and speed are counted in; without it, the device's, or Q8_0."""
    context: int | None = Field(default=None, ge=16)
    """Tokens of context that memory and speed are counted at; without it, the device's, or 2,048."""
    device: str | None = None
    """A device profile by name (docs/shrink.md lists them); its limits hold besides those given here."""
    profiles: Path | None = None
    """A YAML file with profiles of one's own."""
    axes: tuple[Literal["layers", "intermediate_size", "kv_heads", "hidden_size"], ...] = Field(
        default=("layers", "intermediate_size"),
        json_schema_extra={
            FORMER_VALUES: {
                "ffn_width": "intermediate_size",
                "key_value_groups": "kv_heads",
                "hidden_width": "hidden_size",
            }
        },
    )
    """Along which axes the solver may prune; the others stay as given."""

    @model_validator(mode="after")
    def _something(self) -> Target:
        limits = (self.parameters, self.file_bytes, self.memory_bytes, self.decode_tokens_per_second, self.device)
        if all(limit is None for limit in limits):
            raise ValueError(
                "a target needs a limit: parameters, file_bytes, memory_bytes, decode_tokens_per_second or device"
            )
        if not self.axes:
            raise ValueError("a target needs at least one axis to prune along")
        return self


def _for_drafting(value: Any) -> Any:
    """A drafter keeps the vocabulary: where the recipe does not say, it does; where it says otherwise, it is refused."""
    if not isinstance(value, dict) or value.get("drafter") is not True:
        return value
    vocabulary = value.get("vocabulary")
    keep = vocabulary.get("keep", "all") if isinstance(vocabulary, dict) else getattr(vocabulary, "keep", "all")
    if keep != "all":
        raise ValueError(
            "`drafter: true` needs the whole vocabulary: leave out `vocabulary.keep`, or write `keep: all`"
        )
    if vocabulary is None:
        return {**value, "vocabulary": {"keep": "all"}}
    return {**value, "vocabulary": {**vocabulary, "keep": "all"}} if isinstance(vocabulary, dict) else value


class ShrinkStudent(Section):
    """The teacher itself, with layers, widths and vocabulary pruned by measured importance (structured pruning)."""

    kind: Literal["shrink"] = "shrink"
    layers: int | None = Field(default=None, ge=1)
    """Layers that the student keeps; without it, all."""
    remove_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, json_schema_extra={SINCE: "0.2.0"}
    )
    """Which of the teacher's layers are removed, counted from 0, beside `layers`, which says how many stay. Without it, several
    choices are pruned, repaired and compared, which takes minutes; `shrink.json` of a finished run names the best one."""
    intermediate_size: int | None = Field(default=None, ge=1, json_schema_extra={FORMER: "ffn_width"})
    """Feed-forward channels of every layer; without it, all. Multiples of 256 quantise well."""
    kv_heads: int | None = Field(default=None, ge=1, json_schema_extra={FORMER: "key_value_groups"})
    """Key/value heads of every layer, each with the query heads that share it; without it, all."""
    hidden_size: int | None = Field(default=None, ge=1, json_schema_extra={FORMER: "hidden_width"})
    """Width of the residual stream; without it, the teacher's. Multiples of 256 quantise well; Llama and Gemma take only
    multiples of the query heads that stay."""
    experts: int | None = Field(default=None, ge=1, json_schema_extra={SINCE: "0.2.0"})
    """Experts of every layer of a mixture of experts: those whose gates weigh most on the sample; without it, all."""
    target: Target | None = None
    """What the device allows; the solver then chooses what is not given above."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """Which ids the student keeps."""
    importance: ImportanceConfig = ImportanceConfig()
    """How importance is measured."""
    heal: bool = True
    """Least-squares repair of what was pruned, before any training."""
    drafter: bool = Field(default=False, json_schema_extra={SINCE: "0.2.0"})
    """It is to draft for its teacher in speculative decoding: it keeps the teacher's whole vocabulary, without which no runtime
    can use it so. `evaluate.measures: [..., drafter]` says what the teacher accepts."""

    @model_validator(mode="before")
    @classmethod
    def _whole_vocabulary(cls, value: Any) -> Any:
        return _for_drafting(value)

    @model_validator(mode="after")
    def _consistent(self) -> ShrinkStudent:
        _require_repair(self.heal, self.importance)
        if self.remove_layers is None:
            return self
        if self.layers is None:
            raise ValueError("`remove_layers` needs `layers`: how many of the teacher's layers stay")
        if len(set(self.remove_layers)) < len(self.remove_layers):
            raise ValueError("`remove_layers` names a layer twice")
        return self


class DenseStudent(Section):
    """A dense student of a mixture of experts: in each layer the experts that add most become one feed-forward layer. Only for
    mixtures with a dense family that computes the rest as they do (docs/shrink.md lists them).
    """

    kind: Literal["dense"] = "dense"
    intermediate_size: int | None = Field(default=None, ge=1)
    """Intermediate size of every layer: the shared experts' channels and those of as many whole experts as fit. Without it, as
    many experts as a token goes through."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """Which ids the student keeps."""
    importance: ImportanceConfig = ImportanceConfig()
    """The sample on which experts are measured and the repair is fitted; ``leave_one_out`` does not apply."""
    heal: bool = True
    """Fit the down matrices to what the whole mixture adds (least squares) before any training."""
    drafter: bool = Field(default=False, json_schema_extra={SINCE: "0.2.0"})
    """It is to draft for its teacher in speculative decoding, and keeps the teacher's whole vocabulary."""

    @model_validator(mode="before")
    @classmethod
    def _whole_vocabulary(cls, value: Any) -> Any:
        return _for_drafting(value)

    @model_validator(mode="after")
    def _repaired(self) -> DenseStudent:
        _require_repair(self.heal, self.importance)
        return self


class ExistingStudent(Section):
    """A smaller model that already exists."""

    kind: Literal["existing"] = "existing"
    name: str
    """A Hugging Face folder or name."""
    revision: str | None = None
    """The commit to load."""
    licence: str | None = None
    """Licence as its owner states it, besides what the model says itself."""
    tokenizer: Literal["teacher", "own"] = Field(default="teacher", json_schema_extra={SINCE: "0.2.0"})
    """``teacher``: it has to have the teacher's tokenizer. ``own``: it has another one and keeps it; both tokenizations of the
    text are aligned by bytes (docs/other-tokenizer.md). That needs a codec with exact probabilities: ``hidden``, ``dense`` or
    ``observed``."""
    drafter: bool = Field(default=False, json_schema_extra={SINCE: "0.2.0"})
    """It is to draft for its teacher in speculative decoding: it keeps the teacher's whole vocabulary, without which no runtime
    can use it so. `evaluate.measures: [..., drafter]` says what the teacher accepts."""

    @model_validator(mode="after")
    def _draftable(self) -> ExistingStudent:
        if self.drafter and self.tokenizer == "own":
            raise ValueError("a drafter needs the teacher's tokenizer: leave out `tokenizer: own` or `drafter: true`")
        return self


class FreshStudent(Section):
    """A new network of the teacher's family, with random weights."""

    kind: Literal["fresh"] = "fresh"
    config: dict[str, Any]
    """Keys of the family's Hugging Face config that differ from the teacher's, for example ``num_hidden_layers:
    6``."""
    vocabulary: VocabularyConfig = VocabularyConfig(keep="all")
    """Which ids the student keeps."""
    drafter: bool = Field(default=False, json_schema_extra={SINCE: "0.2.0"})
    """It is to draft for its teacher in speculative decoding: it keeps the teacher's whole vocabulary, without which no runtime
    can use it so. `evaluate.measures: [..., drafter]` says what the teacher accepts."""

    @model_validator(mode="before")
    @classmethod
    def _whole_vocabulary(cls, value: Any) -> Any:
        return _for_drafting(value)


Student = Annotated[ShrinkStudent | DenseStudent | ExistingStudent | FreshStudent, Field(discriminator="kind")]

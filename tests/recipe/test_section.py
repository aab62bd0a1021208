"""Every number of a recipe has bounds, or a reason why it needs none: the next key without either is found here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from stillroom.recipe.reading import _all_sections
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.section import LARGEST_FLOAT, LARGEST_INTEGER, LEAST_FLOAT

NO_NUMBERS = (math.inf, -math.inf, math.nan, 1e300, -1e300, 1e-300, -1e-300, 10**300)
"""What no key takes."""

AT_MOST_WHAT_THERE_IS = "as much as there is is taken, or the plan says that there is less"
COMPARED = "it is only compared with what was counted or measured, or multiplied with it and shown"
CLIPPED = "an answer ends with the model's window, a batch with its text"
ANY_LARGE = {
    AT_MOST_WHAT_THERE_IS: """
        CorpusConfig.overlap_tokens CorpusConfig.train_tokens CorpusConfig.validation_tokens CorpusConfig.heldout_tokens
        CorpusConfig.skip_longer_than CorpusConfig.max_document_tokens TextSource.limit JsonlSource.limit ParquetSource.limit
        DatasetSource.limit PythonDocsSource.limit ReasoningGymSource.limit WriteConfig.limit ShrinkStudent.layers
        ShrinkStudent.remove_layers ShrinkStudent.intermediate_size ShrinkStudent.kv_heads ShrinkStudent.hidden_size
        ShrinkStudent.experts DenseStudent.intermediate_size VocabularyConfig.size ImportanceConfig.tokens
        ImportanceConfig.repair_tokens RoundsConfig.tokens RoundsConfig.prompt_tokens LanguagesConfig.bytes
        SamplesConfig.prompts TasksConfig.items SafeguardsConfig.items BehaviourConfig.items BehaviourConfig.prefix_tokens
        BehaviourConfig.verbatim_tokens ExportConfig.check_tokens ExportConfig.importance_tokens
    """,
    COMPARED: """
        LimitsConfig.memory_bytes LimitsConfig.disk_bytes LimitsConfig.seconds LimitsConfig.gpu_memory_bytes
        LimitsConfig.price_per_hour Target.parameters Target.file_bytes Target.memory_bytes Target.decode_tokens_per_second
        Target.context ChooseConfig.file_bytes ChooseConfig.max_kl ExportConfig.max_kl EvaluateConfig.floors
        EvaluateConfig.ceilings EndpointPrice.input EndpointPrice.output EndpointPrice.cap EndpointTeacher.check_every
        DistillConfig.evaluate_every DistillConfig.checkpoint_seconds DistillConfig.gradient_clip RecoverConfig.gradient_clip
    """,
    CLIPPED: """
        CaptureConfig.batch_tokens CaptureConfig.shard_tokens CaptureConfig.unit_tokens DistillConfig.batch_tokens
        DistillConfig.micro_batch_tokens DistillConfig.loss_chunk SamplesConfig.max_tokens TasksConfig.max_tokens
        SafeguardsConfig.max_tokens BehaviourConfig.max_tokens ChatConfig.max_tokens
    """,
    "it seeds a generator, which takes any": "CaptureConfig.seed",
    "it is the kernel's limit on a process, which takes any": "TasksConfig.code_memory_bytes",
    "what is 1 or more is refused with the objective, before the plan": "DistillConfig.learning_rate",
    "teachers' weights count as shares of their sum; `corpus.sources` refuses those that are not above 0": """
        TextSource.teacher JsonlSource.teacher ParquetSource.teacher DatasetSource.teacher PythonDocsSource.teacher
        ReasoningGymSource.teacher
    """,
}
"""Keys without an upper bound of their own, by why any number is harmless."""
ANY_SMALL = {
    COMPARED: """
        LimitsConfig.seconds Target.decode_tokens_per_second ChooseConfig.max_kl EvaluateConfig.floors EvaluateConfig.ceilings
        EndpointPrice.cap
    """,
    "documents or steps are counted by it, and at least one is taken, or the plan says that there are too few": """
        CorpusConfig.validation_share CorpusConfig.heldout_share DistillConfig.decay_share
    """,
    "nothing is learned, as was asked; no number is lost": "DistillConfig.learning_rate RecoverConfig.learning_rate",
    "the most probable token is always kept": "RoundsConfig.top_p",
    "teachers' weights count as shares of their sum": """
        TextSource.teacher JsonlSource.teacher ParquetSource.teacher DatasetSource.teacher PythonDocsSource.teacher
        ReasoningGymSource.teacher
    """,
}
"""Keys that take any number above 0, or below it too, by why that is harmless."""


def numbers_in(schema: dict[str, Any], wrap: Any = lambda number: number) -> Iterator[tuple[dict[str, Any], Any]]:
    """The numbers of a key's schema, each with what makes a value of the key of a number."""
    if "enum" in schema or "const" in schema:
        return
    if schema.get("type") in ("integer", "number"):
        yield schema, wrap
    for option in schema.get("anyOf", ()):
        yield from numbers_in(option, wrap)
    several = schema.get("prefixItems", ())
    for index, item in enumerate(several):
        yield from numbers_in(
            item, lambda number, at=index: [number if at == one else 0.5 for one in range(len(several))]
        )
    if isinstance(schema.get("items"), dict):
        yield from numbers_in(schema["items"], lambda number: [number])
    if isinstance(schema.get("additionalProperties"), dict):
        yield from numbers_in(schema["additionalProperties"], lambda number: {"F16": number})


KEYS = [
    pytest.param(section, name, schema, wrap, id=f"{section.__name__}.{name}")
    for section in _all_sections(Recipe)
    for name, described in section.model_json_schema()["properties"].items()
    for schema, wrap in numbers_in(described)
]


def refused(section: type[BaseModel], name: str, value: Any) -> bool:
    """Whether a section refuses a value, and says that it is this key's."""
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return any(mistake["loc"][:1] == (name,) for mistake in error.errors())
    return False


def explained(reasons: dict[str, str]) -> set[str]:
    return {key for keys in reasons.values() for key in keys.split()}


@pytest.mark.parametrize(("section", "name", "schema", "wrap"), KEYS)
def test_a_number_is_within_bounds_or_any_is_harmless(
    section: type[BaseModel], name: str, schema: dict[str, Any], wrap: Any
) -> None:
    key = f"{section.__name__}.{name}"
    for value in (*NO_NUMBERS, *([LARGEST_INTEGER + 1] if schema["type"] == "integer" else [])):
        assert refused(section, name, wrap(value)), f"{key}: {value}"
    lowest, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    highest, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if lowest is None and (above is None or (above == 0 and schema["type"] == "number")):
        assert key in explained(ANY_SMALL), (
            f"{key} takes any small number: give it a bound, or say why that is harmless"
        )
    if highest is None and below is None:
        assert key in explained(ANY_LARGE), (
            f"{key} takes any large number: give it a bound, or say why that is harmless"
        )
    step = 1 if schema["type"] == "integer" else 1e-9
    outside = [(lowest, -step), (highest, step * max(1, abs(highest or 0))), (above, 0), (below, 0)]
    for bound, beyond in outside:
        if bound is not None:
            assert refused(section, name, wrap(bound + beyond)), f"{key}: {bound + beyond}"
    for bound in (lowest, highest):
        if bound is not None:
            assert not refused(section, name, wrap(bound)), f"{key}: {bound}"


def test_what_is_explained_is_there_and_has_no_bound() -> None:
    unbounded = {param.id for param in KEYS if {"maximum", "exclusiveMaximum"}.isdisjoint(param.values[2])}
    assert explained(ANY_LARGE) == unbounded
    assert explained(ANY_SMALL) <= {param.id for param in KEYS}
    assert len(KEYS) > 100


def test_float32_tells_the_least_and_the_largest_number() -> None:
    import numpy as np

    assert np.float32(LEAST_FLOAT) > 0
    assert np.isfinite(np.float32(LARGEST_FLOAT))

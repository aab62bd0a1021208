"""Task files of one's own, in the YAML form of lm-evaluation-harness: the part of it that needs no code (docs/tasks.md)."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stillroom.core import files
from stillroom.core.errors import RecipeError
from stillroom.core.strict_json import Twice, once_each
from stillroom.core.strict_yaml import load_yaml
from stillroom.evaluation.tasks.items import Item, Task
from stillroom.recipe.task_data import TEST, data_of

EXAMPLE = "docs/tasks.md shows the form."


COUNTED: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "code": ("pass@1",),
    "loglikelihood_rolling": ("bits_per_byte",),
}
"""Metrics of each output type."""
READ: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("doc_to_text", "doc_to_target", "doc_to_choice", "chat"),
    "generate_until": ("doc_to_text", "doc_to_target", "generation_kwargs", "pattern", "chat"),
    "code": ("doc_to_text", "test", "generation_kwargs", "chat"),
    "loglikelihood_rolling": ("doc_to_text", "doc_to_target"),
}
"""Keys that each output type is made from, of those that not all are."""
NOT_FOR_ALL = tuple(sorted({key for keys in READ.values() for key in keys}))
LOWER_IS_BETTER = ("bits_per_byte",)
Stop = Annotated[str, Field(min_length=1)]
"""A text that ends an answer."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Generation(_Closed):
    """How an answer is written; always greedily."""

    until: tuple[Stop, ...] | Stop = ()
    max_gen_toks: int | None = Field(default=None, ge=1)
    do_sample: Literal[False] = False
    temperature: Literal[0] = 0


class Metric(_Closed):
    """What is counted."""

    metric: Literal["acc", "acc_norm", "exact_match", "pass@1", "bits_per_byte"]
    aggregation: str | None = None
    higher_is_better: bool | None = None
    ignore_case: bool = False
    ignore_punctuation: bool = False

    @model_validator(mode="after")
    def _does_as_it_says(self) -> Metric:
        """What is asked of a metric is what it does."""
        if self.aggregation not in (None, "mean", self.metric):
            raise ValueError(
                f"`aggregation: {self.aggregation}` is not known: items are averaged, which is `aggregation: mean`"
            )
        better = self.metric not in LOWER_IS_BETTER
        if self.higher_is_better not in (None, better):
            raise ValueError(
                f"`higher_is_better: {str(self.higher_is_better).lower()}` does not hold of `{self.metric}`: leave it out"
            )
        for key in ("ignore_case", "ignore_punctuation"):
            if getattr(self, key) and self.metric != "exact_match":
                raise ValueError(f"`{key}` is for `exact_match`, and `{self.metric}` does not read it: leave it out")
        return self


class TaskFile(_Closed):
    """One task."""

    task: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    output_type: Literal["multiple_choice", "generate_until", "loglikelihood_rolling", "code"]
    dataset_path: Literal["json"] = "json"
    dataset_kwargs: dict[str, Any] | None = None
    data: Path | None = None
    test_split: str = TEST
    doc_to_text: str = ""
    doc_to_target: str | int | None = None
    doc_to_choice: str | tuple[str, ...] | None = None
    target_delimiter: str = " "
    test: str | None = None
    pattern: str | None = None
    chat: bool = False
    generation_kwargs: Generation = Generation()
    metric_list: tuple[Metric, ...] = ()
    num_fewshot: Literal[0] = 0
    metadata: dict[str, Any] | None = None
    tag: str | tuple[str, ...] | None = None

    @field_validator("pattern")
    @classmethod
    def _is_one(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{value!r} is no regular expression of Python: {error}") from None
        return value

    @field_validator("dataset_kwargs")
    @classmethod
    def _names_files(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        others = sorted(set(value or ()) - {"data_files"})
        if others:
            raise ValueError(f"`{others[0]}` is not read: only `data_files` is")
        return value

    @model_validator(mode="after")
    def _does_as_it_says(self) -> TaskFile:
        """Every key does something; one that is as it is without being written may be there."""
        kind = self.output_type
        for key in NOT_FOR_ALL:
            default = type(self).model_fields[key].default
            if key not in READ[kind] and getattr(self, key) != default:
                raise ValueError(f"`output_type: {kind}` does not read `{key}`: leave it out")
        names = [metric.metric for metric in self.metric_list]
        wrong = [name for name in names if name not in COUNTED[kind]]
        if wrong:
            raise ValueError(f"`output_type: {kind}` counts {' or '.join(COUNTED[kind])}, not `metric: {wrong[0]}`")
        if len(names) > 1:
            raise ValueError(f"a task file has one number, and `metric_list` names {len(names)}: leave one of them")
        if self.data is not None and self.dataset_kwargs:
            raise ValueError("`data` and `dataset_kwargs` both name the data: give one of them")
        return self._asks()

    def _asks(self) -> TaskFile:
        """There is something to ask, and it is said once."""
        if self.output_type == "loglikelihood_rolling":
            if (self.doc_to_target is None) == (self.doc_to_text == ""):
                raise ValueError("a whole text is needed: give `doc_to_target` or `doc_to_text`, one of them")
        elif "doc_to_text" not in self.model_fields_set:
            raise ValueError("`doc_to_text` is missing: without it every problem is asked by an empty text")
        return self


def read_task(path: Path, limit: int | None) -> Task:
    """The task of a file.

    Raises:
        RecipeError: The file or its data is missing or wrong; names the key.
    """
    described = _described(path)
    data = data_of(described.model_dump(), path)
    if data is None:
        raise RecipeError(
            f"{path}: no data is named.", "Write `data: problems.jsonl`, or `dataset_kwargs: {data_files: {test: …}}`."
        )
    documents = _documents(data, limit)
    render = _renderer(path)
    items = tuple(_item(described, document, render, path) for document in documents)
    until = described.generation_kwargs.until
    metrics = {metric.metric: metric for metric in described.metric_list}
    exact = metrics.get("exact_match")
    return Task(
        name=described.task,
        kind={
            "multiple_choice": "choice",
            "generate_until": "exact",
            "loglikelihood_rolling": "rolling",
            "code": "code",
        }[described.output_type],  # type: ignore[arg-type]
        items=items,
        source=path.name,
        stops=(until,) if isinstance(until, str) else tuple(until),
        max_tokens=described.generation_kwargs.max_gen_toks,
        ignore_case=exact is not None and exact.ignore_case,
        ignore_punctuation=exact is not None and exact.ignore_punctuation,
        by_length="acc_norm" in metrics,
        pattern=described.pattern,
        digest=files.digest_json([files.digest_file(path), files.digest_file(data), limit]),
    )


def _described(path: Path) -> TaskFile:
    """What a task's file says; errors as in :func:`read_task`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such task file.", "Check the path in `evaluate.tasks.files`.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}.", "Save the file as UTF-8.") from None
    try:
        return TaskFile.model_validate(load_yaml(text, str(path))[1])
    except RecipeError as error:
        raise RecipeError(error.what, EXAMPLE) from None
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        key = ".".join(map(str, mistake["loc"]))
        unknown = mistake["type"] == "extra_forbidden"
        raise RecipeError(
            f"{path}: {f'`{key}`: ' if key else ''}{mistake['msg'].removeprefix('Value error, ')}.",
            ("Keys that need code or another data set are not known here. " if unknown else "") + EXAMPLE,
        ) from None


def _documents(path: Path, limit: int | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if limit is not None and len(found) == limit:
                    break
                if line.strip():
                    row = json.loads(line, object_pairs_hook=once_each)
                    if not isinstance(row, dict):
                        raise RecipeError(f"{path}, line {number}: not an object.", "Write one JSON object a line.")
                    found.append(row)
    except FileNotFoundError:
        raise RecipeError(f"{path}: the task's data is missing.", "Paths start at the task file's folder.") from None
    except (ValueError, RecursionError) as error:
        reason = f"the key {str(error)[:80]!r} is there twice" if isinstance(error, Twice) else error
        raise RecipeError(f"{path}: not JSON Lines: {reason}.", "Write one JSON object a line.") from None
    if not found:
        raise RecipeError(f"{path}: the task has no problems.", "Write one JSON object a line.")
    return found


def _renderer(path: Path) -> Any:
    from jinja2 import StrictUndefined, TemplateError, Undefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)

    def render(template: str, document: dict[str, Any], key: str, expression: bool = False) -> Any:
        # A bare name is a field, as in lm-evaluation-harness.
        if template in document:
            return document[template]
        try:
            if expression and template.strip().startswith("{{") and template.strip().endswith("}}"):
                value = environment.compile_expression(template.strip()[2:-2], undefined_to_none=False)(**document)
                if isinstance(value, Undefined):
                    raise TemplateError(f"{template.strip()} is not in the data")
                if not isinstance(value, str):
                    return value
            return environment.from_string(template).render(**document)
        except (TemplateError, TypeError) as error:
            raise RecipeError(f"{path}: `{key}`: {error}.", f"The data has: {', '.join(document)}.") from None

    return render


def _item(described: TaskFile, document: dict[str, Any], render: Any, path: Path) -> Item:
    asked = render(described.doc_to_text, document, "doc_to_text")
    if asked is None:
        raise RecipeError(
            f"{path}: `doc_to_text`: {described.doc_to_text!r} is null in a problem.", "Give every problem its text."
        )
    prompt = str(asked)
    messages = ({"role": "user", "content": prompt},) if described.chat else ()
    target = described.doc_to_target
    value = render(target, document, "doc_to_target", True) if isinstance(target, str) else target
    if described.output_type == "loglikelihood_rolling":
        return Item(prompt=str(value) if value is not None else prompt)
    if described.output_type == "code":
        if described.test is None:
            raise RecipeError(f"{path}: `test` is missing.", "Write the program that checks `{{answer}}`.")
        test = str(render(described.test, document | {"answer": "{answer}"}, "test"))
        _require_judged_outside(test, path)
        return Item(prompt=prompt, messages=messages, test=test)
    if value is None:
        raise RecipeError(f"{path}: `doc_to_target` is missing.", EXAMPLE)
    if described.output_type == "generate_until":
        texts = value if isinstance(value, list | tuple) else [value]
        if not texts or None in texts:
            raise RecipeError(
                f"{path}: `doc_to_target`: a problem has no right answer: {value!r}.", "Give every problem one."
            )
        return Item(prompt=prompt, messages=messages, right=tuple(str(text) for text in texts))
    choices = described.doc_to_choice
    if isinstance(choices, str):
        choices = render(choices, document, "doc_to_choice", True)
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise RecipeError(f"{path}: `doc_to_choice` gives no list of choices.", EXAMPLE)
    named = [str(choice) for choice in choices]
    return Item(
        prompt=prompt,
        messages=messages,
        choices=tuple(described.target_delimiter + text for text in named),
        right=_right(value, named, path),
    )


def _right(value: Any, named: list[str], path: Path) -> int:
    """Which choice is right: the one of that text, or the one of that number, from 0."""
    number = None
    with contextlib.suppress(ValueError):
        number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if number is not None and not 0 <= number < len(named):
        # Where right answers are kept back, data sets write -1.
        number = None
    text = named.index(str(value)) if named.count(str(value)) == 1 else None
    if isinstance(value, int) and None not in (number, text) and number != text:
        raise RecipeError(
            f"{path}: the target {value} may be the choice of that text or choice number {value} of {named}.",
            "Write the target as text for the one, or choices that are no numbers for the other.",
        )
    right = number if text is None else text
    if right is None:
        raise RecipeError(f"{path}: the target {value!r} is none of the choices {named}.", EXAMPLE)
    return right


def _require_judged_outside(test: str, path: Path) -> None:
    """What evaluates an answer runs in a process of its own, so that it has to be a program of its own."""
    _, *parts = test.split("{answer}")
    try:
        if len(parts) != 1:
            raise SyntaxError(f"`{{{{answer}}}}` is in it {len(parts)} times")
        ast.parse(parts[0])
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"{path}: `test`: what follows the answer is no program of its own: {error}.",
            "Write `{{answer}}` once, at the end of a statement or block, and below it whole statements that check it.",
        ) from None

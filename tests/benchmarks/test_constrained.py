"""How the benchmark of answers under schemas checks them."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from benchmarks.constrained import require_valid


@pytest.mark.parametrize(
    ("value", "step", "valid"),
    [(675.597, 0.0001, True), (0.3, 0.1, True), (1e-8, 1e-9, True), (4, 2, True), (0.35, 0.1, False), (5, 2, False)],
)
def test_multiples_are_of_decimal_numbers(value: Any, step: Any, valid: bool) -> None:
    schema = {"anyOf": [{"type": "object", "properties": {"a": {"multipleOf": step}}, "required": ["a"]}]}
    if valid:
        require_valid({"a": value}, schema)
    else:
        with pytest.raises(jsonschema.ValidationError):
            require_valid({"a": value}, schema)


def test_what_is_no_number_has_no_multiples() -> None:
    require_valid(["text", True], {"type": "array", "items": {"multipleOf": 2}})
    with pytest.raises(jsonschema.ValidationError):
        require_valid("text", {"type": "number", "multipleOf": 2})

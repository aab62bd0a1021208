"""The one strict JSON reader, and what its three callers say of the same mistakes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.core.errors import InspectionRefused, StillroomError, VerificationFailed
from stillroom.core.strict_json import NotStrict, parse_json, read_strict
from stillroom.verification import closed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
MISTAKES = {
    b'{"a": 1,}': ("syntax", "f: not JSON at byte 8", "f: not JSON at line 1, column 9"),
    b'"\xff"': ("encoding", "f: not UTF-8 at byte 1.", "f: not UTF-8 at byte 1."),
    b'{"a": 1, "b": {"a": 1, "a": 2}}': (
        "key",
        "f: the key 'a' is there twice (byte 15); readers would disagree.",
        "f: the key 'a' is there twice.",
    ),
    b"[" * 100_000 + b"]" * 100_000: ("depth", "f: nested too deep.", "f: nested too deep."),
    b"[NaN]": ("number", "f: the number NaN is not JSON.", "f: the number NaN is not JSON."),
    b"[-Infinity]": ("number", "f: the number -Infinity is not JSON.", "f: the number -Infinity is not JSON."),
    b"9" * 10_000: ("number", "f: Exceeds the limit", "f: Exceeds the limit"),
}


@given(VALUES, st.booleans())
def test_what_json_writes_is_read(value: object, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        with pytest.raises(NotStrict, match="not UTF-8"):
            read_strict(data)
    else:
        assert read_strict(data) == parse_json(data, "f") == closed.parse_json(data, "f") == value


@pytest.mark.parametrize("data", MISTAKES, ids=lambda data: data[:12].decode("latin-1"))
def test_a_mistake_is_named_where_it_is(data: bytes) -> None:
    kind, of_a_model, of_a_package = MISTAKES[data]
    with pytest.raises(NotStrict) as strict:
        read_strict(data)
    assert strict.value.kind == kind
    readers = [(parse_json, InspectionRefused, of_a_model), (closed.parse_json, VerificationFailed, of_a_package)]
    for reader, error, message in readers:
        with pytest.raises(StillroomError) as raised:
            reader(data, "f")
        assert type(raised.value) is error
        assert raised.value.what.startswith(message)


def test_the_bytes_count_from_where_the_document_begins_in_its_file() -> None:
    with pytest.raises(InspectionRefused, match="not JSON at byte 108"):
        parse_json(b'{"a": 1,}', "f", 100)


def test_what_a_caller_may_allow() -> None:
    assert read_strict(b'{"a": 1, "a": 2}', key_twice=True) == {"a": 2}
    assert math.isnan(read_strict(b"NaN", infinities=True))
    assert read_strict(b"[1]", limit=3) == [1]
    with pytest.raises(NotStrict, match="larger than 2 bytes"):
        read_strict(b"[1]", limit=2)

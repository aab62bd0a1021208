"""Shapes of rows under every kind of chat template: each part is in the text, or the row is refused by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_tokenizer

from benchmarks import data
from benchmarks.chat_templates import GEMMA, LLAMA, MISTRAL, PYTHON_ARGUMENTS, QWEN, TEMPLATES
from stillroom.core.errors import CorpusError
from stillroom.corpus.documents import Document, common_end, common_start
from stillroom.corpus.rows import document_of
from stillroom.corpus.sources import read_source
from stillroom.corpus.tally import Tally, sentences
from stillroom.corpus.tokens import Encoder
from stillroom.recipe.corpus import JsonlSource


def encoded(row: dict[str, Any], template: str | None = QWEN, **keys: Any) -> tuple[str, str]:
    """The text of a row, and what is learned of it."""
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = template
    document = document_of(row, keys.pop("text_key", None), keys.pop("messages_key", None), "here", **keys)
    tokens = Encoder(tokenizer).encode([document])[0]
    return tokenizer.decode(tokens.ids), tokenizer.decode(tokens.ids[tokens.learned])


def refusal(row: dict[str, Any], template: str | None = QWEN, **keys: Any) -> str:
    with pytest.raises(CorpusError) as caught:
        encoded(row, template, **keys)
    return str(caught.value)


CALL = {"id": "call00001", "type": "function", "function": {"name": "stock", "arguments": '{"part": "M6"}'}}
USER = {"role": "user", "content": "How many?"}
SAID = {"role": "assistant", "content": "There are 412."}
CALLING = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "content": "412"},
    SAID,
]
TOOLS = [{"type": "function", "function": {"name": "stock", "description": "Parts left", "parameters": {}}}]


@pytest.mark.parametrize("shape", data.ROWS)
def test_every_shape_is_read_whole_or_refused_by_name(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ROWS", {shape: data.ROWS[shape]})
    found = list(data.rows(tmp_path))
    assert len(found) == len(TEMPLATES) + 1
    assert [entry for entry in found if entry.result not in ("read", "refused_by_name")] == []
    results = Counter(entry.result for entry in found)
    # A row that can be read is read under some template, and the others are refused everywhere.
    assert ("read" not in results) == (data.ROWS[shape].holds == ("a refusal",))


def test_a_change_that_nobody_is_told_of_is_found() -> None:
    """The benchmark's own judgement can fail."""
    row = data.Row({}, ("one", "two"), ("two",), ("one",))
    for text, learned in (("one", "one"), ("one two", ""), ("one two", "one two"), ("two", "two")):
        assert data._judged("x", lambda t=text, s=learned: ([(t, s)], ""), row, "x").result == "silently_changed"  # type: ignore[misc]
    assert data._judged("x", lambda: ([("one two", "two")], ""), row, "x").result == "read"


def test_a_call_is_learned_to_the_letter() -> None:
    text, learned = encoded({"tools": TOOLS, "messages": CALLING})
    assert "# Tools" in text
    assert learned == (
        '<tool_call>\n{"name": "stock", "arguments": {"part": "M6"}}\n</tool_call><|im_end|>'
        "<think>\n\n</think>\n\nThere are 412.<|im_end|>"
    )
    assert encoded({"messages": CALLING}, LLAMA)[1] == (
        '{"name": "stock", "parameters": {"part": "M6"}}<|im_end|>There are 412.<|im_end|>'
    )
    assert encoded({"messages": CALLING}, MISTRAL)[1] == (
        '[TOOL_CALLS] [{"name": "stock", "arguments": {"part": "M6"}, "id": "call00001"}]<|im_end|> There are 412.<|im_end|>'
    )


def test_arguments_are_json_and_never_what_python_writes() -> None:
    text, learned = encoded({"messages": CALLING}, PYTHON_ARGUMENTS)
    assert '<call>stock{"part": "M6"}</call>' in text
    assert '{"part": "M6"}' in learned


def test_what_a_template_leaves_out_is_named_with_the_line_to_write() -> None:
    assert refusal({"tools": TOOLS, "messages": [USER, SAID]}, GEMMA) == (
        "here: the teacher's chat template leaves out the chat's tools.\n"
        "Write `ignore: [tools]` for this source to train without it, or give the teacher a chat template that renders it."
    )
    assert (
        encoded({"tools": TOOLS, "messages": [USER, SAID]}, GEMMA, ignore=("tools",))[1] == "There are 412.<|im_end|>"
    )
    thought = {**SAID, "reasoning_content": "Hm."}
    assert "leaves out what the assistant thinks (`reasoning_content`)" in refusal({"messages": [USER, thought]}, GEMMA)
    assert "leaves out the user's `name`" in refusal({"messages": [{**USER, "name": "Ada"}, SAID]})
    assert "System role not supported" in refusal({"messages": [{"role": "system", "content": "S"}, USER, SAID]}, GEMMA)


def test_an_earlier_thought_that_the_template_leaves_out_is_counted_and_its_answer_not_learned() -> None:
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = QWEN
    encoder = Encoder(tokenizer)
    messages = [
        USER,
        {**SAID, "reasoning_content": "One."},
        {"role": "user", "content": "And?"},
        {**SAID, "reasoning_content": "Two."},
    ]
    tokens = encoder.encode([document_of({"messages": messages}, None, None, "here")])[0]
    assert tokenizer.decode(tokens.ids[tokens.learned]) == "<think>\nTwo.\n</think>\n\nThere are 412.<|im_end|>"
    assert list(encoder.notes.values()) == [1]
    assert "thoughts in earlier turns" in next(iter(encoder.notes))


@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS}])
def test_a_thought_inside_the_words_is_one_by_its_key(tools: dict[str, Any]) -> None:
    def inside(thought: str) -> dict[str, Any]:
        return {**SAID, "content": f"<think>\n{thought}\n</think>\n\n{SAID['content']}"}

    def by_key(thought: str) -> dict[str, Any]:
        return {**SAID, "reasoning_content": thought}

    def read(answer: Any) -> tuple[Any, ...]:
        tokenizer = make_tokenizer("bpe")
        tokenizer.chat_template = QWEN
        encoder = Encoder(tokenizer)
        messages = [USER, answer("One."), {"role": "user", "content": "And?"}, answer("Two.")]
        tokens = encoder.encode([document_of({**tools, "messages": messages}, None, None, "here")])[0]
        return tokens.ids.tolist(), tokens.learned.tolist(), dict(encoder.notes)

    assert read(inside) == read(by_key)
    assert list(read(inside)[2].values()) == [1]


def test_an_answer_whose_inside_thought_is_dropped_by_any_template_is_not_learned() -> None:
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = Encoder(tokenizer)
    messages = [USER, {**SAID, "content": f"<think>Hm.</think>{SAID['content']}"}, USER, SAID]
    tokens = encoder.encode([document_of({"messages": messages}, None, None, "here")])[0]
    assert tokenizer.decode(tokens.ids[tokens.learned]) == f"{SAID['content']}<|im_end|>"
    assert list(encoder.notes.values()) == [1]


def test_weights_say_what_is_learned() -> None:
    messages = [USER, {**SAID, "content": "No.", "weight": 0}, {"role": "user", "content": "And?"}, SAID]
    text, learned = encoded({"messages": messages})
    assert "No." in text
    assert "No." not in learned
    nothing = document_of({"messages": [USER, {**SAID, "train": False}]}, None, None, "here")
    assert nothing.is_empty


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_an_answer_that_only_thinks_is_not_empty(key: str) -> None:
    for content in ("", None):
        answer = {"role": "assistant", "content": content, key: "Two and two."}
        assert not document_of({"messages": [USER, answer]}, None, None, "here").is_empty
    assert document_of({"messages": [USER, {**answer, key: " "}]}, None, None, "here").is_empty


def test_without_a_chat_template_a_question_is_text_and_its_answer_is_learned() -> None:
    assert encoded({"instruction": "Explain.", "input": "valve", "output": "It lets."}, None) == (
        "Explain.\n\nvalve\n\nIt lets.\n<|im_end|>",
        "It lets.\n<|im_end|>",
    )
    assert encoded({"prompt": "A valve", "completion": " lets."}) == ("A valve lets.<|im_end|>", " lets.<|im_end|>")


def test_a_text_key_that_would_lose_the_question() -> None:
    row = {"instruction": "Explain.", "input": "", "output": "It lets."}
    assert refusal(row, text_key="output") == (
        "here: the row has `instruction` and `output`; with `text_key: output` the `instruction` would be lost.\n"
        "Leave `text_key` out, then both are read and the `output` is learned. To train on `output` alone, write beside it: "
        "`ignore: [instruction]`."
    )


@pytest.mark.parametrize("beside", [{}, {"title": "Steam"}])
@pytest.mark.parametrize("written", [False, True])
def test_a_chat_under_a_key_of_ones_own_is_named_in_the_hint(written: bool, beside: dict[str, str]) -> None:
    turns = [{"role": "user", "content": "A valve?"}, {"role": "assistant", "content": "It lets."}]
    row = {**beside, "data": json.dumps(turns) if written else turns}
    assert refusal(row) == (
        f"here: no key `text`; there are: {', '.join(row)}.\n"
        "Name the right one as `text_key` or `messages_key` in the recipe, here `messages_key: data`."
    )
    assert encoded(row, messages_key="data", ignore=("title",)) == encoded({"messages": turns})


def test_a_list_of_rows_in_one_object_is_told_how_to_become_a_file_of_rows(tmp_path: Path) -> None:
    rows = [{"text": "A valve."}, {"text": "A coil."}]
    assert "write that list alone, from its `[` to its `]`" in refusal({"version": 1, "data": rows})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = read_source(JsonlSource(path=tmp_path / "rows.json"))
    assert [document.text for document in found] == ["A valve.", "A coil."]
    assert 'each as a row of its own, {"text": "…"}' in refusal({"data": ["A valve.", "A coil."]})


def test_what_is_not_used_is_counted_by_key() -> None:
    tally = Tally()
    for number in range(3):
        document_of({"messages": [USER, SAID], "id": number, "source": None}, None, None, "here", tally=tally)
    document_of({"question": "Q", "answer": "A", "score": 0.5}, None, None, "here", tally=tally)
    assert tally.as_dict()["unused_keys"] == {"id": 3, "score": 1}
    assert sentences(tally.as_dict()) == [
        "rows read as 1 `question` with `answer`",
        "keys that are in no text: 3 id, 1 score",
    ]


@pytest.mark.parametrize("key", ["image", "image_url", "audio"])
@pytest.mark.parametrize("type_", [{}, {"type": "text"}])
def test_media_beside_the_words_of_a_text_part_are_refused(type_: dict[str, str], key: str) -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{**type_, "text": "Which valve?", key: "valve.png"}]},
            {"role": "assistant", "content": "M6."},
        ]
    }
    assert f"the user's content has `{key}`; only text is learned" in refusal(row)
    tally = Tally()
    document_of(row, None, None, "here", ignore=[key], tally=tally)
    assert tally.unused == Counter({f"messages.content.{key}": 1})


def test_what_else_a_text_part_has_is_counted() -> None:
    part = {"type": "text", "text": "M6.", "thinking": "T", "cache_control": {"type": "ephemeral"}, "annotations": []}
    tally = Tally()
    row = {"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": [part]}]}
    document_of(row, None, None, "here", tally=tally)
    assert tally.unused == Counter({"messages.content.thinking": 1, "messages.content.cache_control": 1})


def test_digests_of_what_was_read_before_are_as_they_were() -> None:
    import hashlib

    chat = (USER, SAID)
    whole = json.dumps(chat, sort_keys=True, ensure_ascii=False)
    assert Document(messages=chat).digest == hashlib.sha256(whole.encode()).hexdigest()
    assert Document("abc").digest == hashlib.sha256(b"abc").hexdigest()
    assert Document(messages=chat, tools=tuple(TOOLS)).digest != Document(messages=chat).digest
    assert Document("abc", given=1).digest != Document("abc").digest


@settings(max_examples=200)
@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_shared_beginnings_and_ends(one: str, two: str) -> None:
    count = common_start(one, two)
    assert one[:count] == two[:count]
    assert count == min(len(one), len(two)) or one[count] != two[count]
    end = common_end(one, two)
    assert one.endswith(two[len(two) - end :])


@settings(max_examples=100)
@given(
    name=st.text("abcdefgh_", min_size=3, max_size=8),
    arguments=st.dictionaries(
        st.text("xyz", min_size=1, max_size=4),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.integers(-99, 99) | st.booleans(),
        max_size=3,
    ),
    words=st.sampled_from(["", "Let me look."]),
)
def test_calls_of_any_arguments_are_learned(name: str, arguments: dict[str, Any], words: str) -> None:
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    messages = [USER, {"role": "assistant", "content": words, "tool_calls": [call]}]
    _, learned = encoded({"messages": messages})
    written = json.dumps(arguments, ensure_ascii=False)
    gap = "\n" if words else ""
    called = f'<tool_call>\n{{"name": "{name}", "arguments": {written}}}\n</tool_call>'
    assert learned == f"<think>\n\n</think>\n\n{words}{gap}{called}<|im_end|>"


UNWANTED = "answers marked as unwanted (`label: false`) that are not learned"
ANSWERED: list[dict[str, Any]] = [
    {"prompt": "2 + 2 =", "completion": "5"},
    {"prompt": "2 + 2 =", "completion": " 5"},
    {"prompt": "2 + 2 =", "response": "5"},
    {"instruction": "2 + 2 =", "output": "5"},
    {"messages": [USER, SAID]},
    {"conversations": [{"from": "human", "value": "2 + 2 ="}, {"from": "gpt", "value": "5"}]},
]


@pytest.mark.parametrize("row", ANSWERED)
def test_an_answer_that_is_marked_as_unwanted_is_not_learned(row: dict[str, Any]) -> None:
    for label in (True, 1, 1.0, "true", "True", "1", None, ""):
        tally = Tally()
        assert not document_of({**row, "label": label}, None, None, "here", tally=tally).is_empty
        assert not tally.notes
        assert not tally.unused
    for label in (False, 0, 0.0, "false", "False", " 0 "):
        tally = Tally()
        assert document_of({**row, "label": label}, None, None, "here", tally=tally).is_empty
        assert tally.notes == {UNWANTED: 1}
        assert not tally.unused
        assert not document_of({**row, "label": label}, None, None, "here", ignore=("label",)).is_empty
    for label in (2, "cat", [False], float("nan")):
        assert f"here: the row has the `label` {label!r} beside an answer.\n" in refusal({**row, "label": label})


def test_a_label_that_is_beside_no_answer_is_any_key() -> None:
    pair = {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}
    for row in ({"text": "abc"}, {"messages": [USER]}, pair):
        for label in ("cat", 0):
            tally = Tally()
            document = document_of({**row, "label": label}, None, None, "here", tally=tally)
            assert document.is_empty == ("messages" in row)
            assert tally.unused == {"label": 1}


@pytest.mark.parametrize("key", ["parameters", "input", "args"])
def test_what_a_call_gives_its_function_under_another_key_is_refused(key: str) -> None:
    function = {"name": "stock", key: {"part": "M6"}}
    told = f"here: the call of `stock` has `{key}`, which is not read.\n"
    for call in ({"function": function}, {"type": "function", **function}):
        assert told in refusal({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    if key != "args":
        beside = {"function": {"name": "stock"}, key: {"part": "M6"}}
        assert told in refusal({"messages": [USER, {"role": "assistant", "tool_calls": [beside]}]})
    harmless = {"function": {"name": "stock", "arguments": {"part": "M6"}, key: None}, "index": 0}
    assert "M6" in encoded({"messages": [USER, {"role": "assistant", "tool_calls": [harmless]}]})[1]


def test_calls_in_two_forms_are_refused() -> None:
    both = {"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "other", "arguments": "{}"}}
    assert "calls in two forms, `tool_calls` and `function_call`" in refusal({"messages": [USER, both]})
    assert "stock" in encoded({"messages": [USER, both]}, ignore=("function_call",))[1]
    shared = {"from": "function_call", "value": '{"name": "other", "arguments": {}}', "tool_calls": [CALL]}
    assert "calls in two forms" in refusal({"conversations": [{"from": "human", "value": "How many?"}, shared]})


@pytest.mark.parametrize("rejected", ["Q: is it so?\nA: yes, sir", "Q: is it so?\nA: yes", "Q: is it so?\nA: no"])
def test_of_two_answers_only_the_chosen_ones_own_words_are_learned(rejected: str) -> None:
    for end in ("", "\n\n"):
        row = {"chosen": f"Q: is it so?\nA: yes{end}", "rejected": rejected.replace("yes", f"yes{end}")}
        assert document_of(row, None, None, "here").given == len("Q: is it so?\nA: ")


def test_an_empty_field_of_a_table_says_nothing_of_the_row_s_shape() -> None:
    pair = {"instruction": "What is it?", "output": "A thing"}
    for beside in ({"text": ""}, {"text": None}, {"messages": []}, {"messages": None, "text": ""}):
        assert encoded({**beside, **pair})[1] == encoded(pair)[1]
    assert "A text." in encoded({"messages": [], "text": "A text."})[0]
    for row in ({"text": ""}, {"messages": []}, {"text": "", "instruction": "", "output": ""}):
        assert document_of(row, None, None, "here").is_empty


def test_words_in_two_forms_are_refused_where_they_differ() -> None:
    asked = {"from": "human", "value": "How many?"}
    both = {"from": "gpt", "value": "Seven.", "content": "Eight."}
    assert "`value` and `content` with different words" in refusal({"conversations": [asked, both]})
    assert "Seven." in encoded({"conversations": [asked, both]}, ignore=("content",))[1]
    for same in ("Seven.", "", None):
        assert "Seven." in encoded({"conversations": [asked, {**both, "content": same}]})[1]


def test_a_key_that_is_twice_in_json_inside_json_is_refused() -> None:
    twice = '{"part": "M6", "part": "M8"}'
    call = {"function": {"name": "stock", "arguments": twice}}
    assert refusal({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}) == (
        "here: in the JSON text of `arguments of stock` the key 'part' is there twice.\nWrite it once."
    )
    chat = '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]'
    assert "the JSON text of `messages` the key 'content' is there twice" in refusal({"messages": chat})
    tools = '[{"name": "a", "name": "b"}]'
    assert "the JSON text of `tools` the key 'name' is there twice" in refusal(
        {"messages": [USER, SAID], "tools": tools}
    )


def test_two_thoughts_of_one_answer_are_refused_where_they_differ() -> None:
    two = {**SAID, "reasoning_content": "Second.", "reasoning": "First."}
    assert refusal({"messages": [USER, two]}) == (
        "here: the assistant's message has `reasoning_content` and `reasoning` with different words; only one can be its "
        "reasoning.\nLeave one of them out: `ignore: [reasoning]`."
    )
    assert "Second." in encoded({"messages": [USER, two]}, ignore=("reasoning",))[1]
    for other in ("Second.", "Second.\n", " "):
        assert "Second." in encoded({"messages": [USER, {**two, "reasoning": other}]})[1]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": [USER, None, SAID]}, "entry 2 of `messages` is nothing, not a message."),
        ({"messages": [None]}, "entry 1 of `messages` is nothing, not a message."),
        ({"conversations": [{"from": "human", "value": "a"}, 5]}, "entry 2 of `conversations` is a number"),
        ({"messages": [{"from": ["x"], "value": "a"}]}, "a message is from ['x']."),
        ({"prompt": "a", "chosen": ["oops", SAID]}, "entry 1 of `chosen` is text, not a message."),
        ({"prompt": [None, USER], "completion": "b"}, "entry 1 of `prompt` is nothing, not a message."),
        ({"prompt": 5, "chosen": [USER, SAID]}, "`prompt` holds a number, not text."),
    ],
)
def test_entries_of_another_kind_are_named(row: dict[str, Any], wanted: str) -> None:
    assert refusal(row).startswith(f"here: {wanted}")


def test_a_tool_whose_parameters_are_null_is_read() -> None:
    tool = {"name": "stock", "parameters": {"type": "object", "properties": None}}
    assert "stock" in encoded({"messages": [USER, SAID], "tools": [tool]})[0]


def test_an_unforeseen_error_is_one_message_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("unhashable")

    row = {"messages": [USER, SAID]}
    monkeypatch.setattr("stillroom.corpus.chat.require_contents", broken)
    assert refusal(row).startswith("here: cannot be read as it is (TypeError): unhashable.\n")
    monkeypatch.setattr("stillroom.corpus.rows._shaped", broken)
    assert refusal(row).startswith("here: cannot be read as it is (TypeError): unhashable.\n")


def test_keys_with_half_a_character_can_be_written() -> None:
    tally = Tally()
    document_of({"text": "abc", "k\ud800": "v", "\x1b[2J\n": "v"}, None, None, "here", tally=tally)
    tally.passed_over[".\udcff"] += 1
    counts = tally.as_dict()
    json.dumps(counts, ensure_ascii=False).encode()
    assert counts["unused_keys"] == {"k\\ud800": 1, "\\u001b[2J\\n": 1}
    assert "half a character" in refusal({"messages": [{**USER, "k\ud800": "v"}, SAID]})
    assert "there are: k\\ud800." in refusal({"k\ud800": "v"})


@pytest.mark.parametrize("keys", [("prompt", "completion"), ("prompt", "chosen"), ("instruction", "output")])
def test_a_prompt_whose_answer_is_null_has_nothing_to_learn(keys: tuple[str, str]) -> None:
    for prompt in ("Explain.", [USER, SAID, USER]):
        tally = Tally()
        document = document_of(dict(zip(keys, (prompt, None), strict=True)), None, None, "here", tally=tally)
        assert document.lacks_answer
        assert tally.shapes == {f"`{keys[0]}` without `{keys[1]}`": 1}
        assert not tally.unused
    nothing = document_of(dict.fromkeys(keys), None, None, "here")
    assert nothing.is_empty
    assert not nothing.lacks_answer
    assert "no key `text`" in refusal({keys[0]: "Explain.", keys[1]: None}, ignore=(keys[1],))

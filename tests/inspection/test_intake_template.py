"""Chat templates render as Hugging Face renders them, and no template takes the machine with it."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_tokenizer

from attacks import _model
from attacks.run import all_attacks
from stillroom.core.errors import CorpusError, InspectionRefused
from stillroom.core.sandbox.seccomp import MACHINES
from stillroom.inspection import template
from stillroom.inspection.template import render_chat
from stillroom.inspection.template_rules import require_template

ATTACKS = {name: attack for name, attack in all_attacks().items() if name.startswith("templates/")}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_with_their_own_message(name: str) -> None:
    outcome = ATTACKS[name].run()
    assert outcome.refused, outcome.words
    assert render_chat(_model.TEMPLATE, _model.MESSAGES) == "user: Hello.\nassistant: Good day.\n"


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=40)), min_size=1, max_size=4),
    st.booleans(),
)
def test_the_text_is_that_of_transformers(turns: list[tuple[str, str]], prompt: bool) -> None:
    tokenizer = make_tokenizer("bpe")
    messages = [{"role": role, "content": content} for role, content in turns]
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    mine = render_chat(
        tokenizer.chat_template,
        messages,
        add_generation_prompt=prompt,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    assert mine == theirs


def test_what_templates_expect_is_there() -> None:
    text = (
        "{%- for m in messages -%}{% generation %}{{ m.content | tojson }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}"
        "{%- endfor %} {{ strftime_now('%d %b %Y') }} {{ tools | tojson(indent=1) }} {{ missing is defined }}"
    )
    found = render_chat(
        text, [{"role": "user", "content": 'ä"<'}], strftime_now=datetime.datetime(2026, 1, 2), tools=[{"a": 1}]
    )
    assert found == '"ä\\"<" 02 Jan 2026 [\n {\n  "a": 1\n }\n] False'


def test_a_template_that_refuses_says_why_and_where() -> None:
    with pytest.raises(CorpusError, match=r"line 7: the teacher's chat template refuses this chat: no system"):
        render_chat("{{ raise_exception('no system') }}", [], where="chats.jsonl, line 7")


def test_one_child_serves_many_and_is_replaced_after_a_violation() -> None:
    render_chat(_model.TEMPLATE, _model.MESSAGES)
    first = template._RENDERER._child
    render_chat(_model.TEMPLATE, _model.MESSAGES)
    assert first is not None
    assert template._RENDERER._child is first
    with pytest.raises(InspectionRefused):
        render_chat("{{ 'a' * 10 ** 10 }}", [])
    assert first.poll() is not None
    assert render_chat(_model.TEMPLATE, _model.MESSAGES)


def test_threads_take_turns() -> None:
    def one(number: int) -> str:
        return render_chat(_model.TEMPLATE, [{"role": "user", "content": str(number)}])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(40))) == [f"user: {number}\n" for number in range(40)]


def _in_fork(queue: Any) -> None:
    queue.put(render_chat(_model.TEMPLATE, _model.MESSAGES))


def test_a_fork_has_a_child_of_its_own() -> None:
    expected = render_chat(_model.TEMPLATE, _model.MESSAGES)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_in_fork, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()
    assert render_chat(_model.TEMPLATE, _model.MESSAGES) == expected


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in MACHINES, reason="seccomp is Linux's")
def test_the_child_is_under_a_filter_of_system_calls() -> None:
    render_chat(_model.TEMPLATE, _model.MESSAGES)
    child = template._RENDERER._child
    assert child is not None
    status = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


def test_the_child_sees_neither_files_nor_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    template._RENDERER.stop()
    render_chat(_model.TEMPLATE, _model.MESSAGES)
    child = template._RENDERER._child
    assert child is not None
    environment = Path(f"/proc/{child.pid}/environ").read_bytes()
    assert b"hf_secret" not in environment
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    assert "536870912" in next(line for line in limits.splitlines() if line.startswith("Max address space"))


def test_only_the_teachers_template_is_taken() -> None:
    require_template(_model.TEMPLATE, "x", [_model.TEMPLATE])
    with pytest.raises(InspectionRefused, match="differs from the teacher's"):
        require_template(_model.TEMPLATE + " ", "x", [_model.TEMPLATE])


@pytest.mark.parametrize(
    "text", ["{{ message['_private'] }}", "{{ x|map(attribute='a.__b__')|list }}", "{% extends 'a' %}", "{{ __x }}"]
)
def test_rules(text: str) -> None:
    with pytest.raises(InspectionRefused):
        require_template(text, "x")


@given(st.text(alphabet="{}%|()[]'_ab.=~ \n", max_size=60))
def test_any_text_keeps_the_rules_or_is_refused(text: str) -> None:
    with contextlib.suppress(InspectionRefused):
        require_template(text, "x")

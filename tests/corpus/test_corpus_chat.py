"""Chats: under every kind of template, exactly what the model has to say is found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CHAT_TEMPLATE, make_tokenizer

from stillroom.core.errors import CorpusError
from stillroom.corpus.chat import ChatTemplate
from stillroom.corpus.documents import Document
from stillroom.corpus.tokens import Encoder

TOKENIZER = make_tokenizer("bpe")

# One template for each way in which templates differ.
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TRIMMED = (
    "{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# An empty thought stands before the last answer only, and earlier answers lose theirs.
THOUGHTS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if '</think>' in m.content %}{% set think = m.content.split('</think>')[0].replace('<think>', '') %}"
    "{% set words = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% else %}{% set think = '' %}{% set words = m.content %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ think.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ words }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCTION = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('a conversation begins with the user') }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
DATED = "{% set today = strftime_now('%d %B %Y') %}It is {{ today }}.\n" + CHAT_TEMPLATE


def template_of(text: str | None) -> ChatTemplate:
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


def said(text: str, messages: list[dict[str, str]]) -> list[str]:
    whole, spans = template_of(text).render(messages, "here")
    return [whole[begin:end] for begin, end in spans]


def chat(*turns: str, system: str = "") -> list[dict[str, str]]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHAT_TEMPLATE, ["yes<|im_end|>", "no<|im_end|>"]),
        (NO_PROMPT, ["yes<|im_end|>", "no<|im_end|>"]),
        (TRIMMED, ["yes<|im_end|>", "no<|im_end|>"]),
        (GENERATION, ["yes<|im_end|>", "no<|im_end|>"]),
        (DATED, ["yes<|im_end|>", "no<|im_end|>"]),
        (PLAIN, ["yes", "no"]),
        (INSTRUCTION, ["yes<|im_end|>", "no<|im_end|>"]),
        (THOUGHTS, ["yes<|im_end|>", "<think>\n\n</think>\n\nno<|im_end|>"]),
    ],
)
def test_every_kind_of_template(template: str, wanted: list[str]) -> None:
    # The user says the assistant's words too: what is found must be the assistant's own.
    assert said(template, chat("yes", "yes", "yes no", "no")) == wanted


def test_words_stand_where_the_assistant_says_them() -> None:
    whole, spans = template_of(CHAT_TEMPLATE).render(chat("a", "a", "a", "a"), "here")
    assert [whole[:begin].endswith("<|im_start|>assistant\n") for begin, _ in spans] == [True, True]


def test_a_trimmed_answer_is_found() -> None:
    assert said(TRIMMED, chat("Q", "  an answer \n", "more", "\nand more")) == [
        "an answer<|im_end|>",
        "and more<|im_end|>",
    ]


def test_thoughts_that_a_template_moves_are_learned_where_it_keeps_them() -> None:
    thought = "<think>\nhm\n</think>\n\nwell"
    assert said(THOUGHTS, chat("Q", thought)) == ["<think>\nhm\n</think>\n\nwell<|im_end|>"]
    # In an earlier turn the template leaves the thought out.
    assert said(THOUGHTS, chat("Q", thought, "R", "fine"))[0] == "well<|im_end|>"


def test_an_assistant_that_speaks_first_or_twice() -> None:
    messages = [{"role": "assistant", "content": word} for word in ("one", "two", "")]
    assert said(CHAT_TEMPLATE, messages) == ["one<|im_end|>", "two<|im_end|>", "<|im_end|>"]


def test_templates_by_name_take_the_default() -> None:
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tools": "no"}
    whole, spans = ChatTemplate(tokenizer).render(chat("Q", "A"), "here")
    assert [whole[begin:end] for begin, end in spans] == ["A<|im_end|>"]


def test_no_template() -> None:
    with pytest.raises(CorpusError) as caught:
        template_of(None).render(chat("Q", "A"), "chats.jsonl, line 7")
    assert str(caught.value) == (
        "chats.jsonl, line 7: a chat, and the teacher's tokenizer has no chat template.\n"
        "Use a chat model as the teacher, or give plain text."
    )


def test_a_template_that_refuses() -> None:
    with pytest.raises(CorpusError) as caught:
        template_of(INSTRUCTION).render(chat("Q", "A", system="S"), "chats.jsonl, line 7")
    assert str(caught.value) == (
        "chats.jsonl, line 7: the teacher's chat template refuses this chat: a conversation begins with the user.\n"
        "Check the order and the roles of its messages."
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}",
    ],
)
def test_a_template_that_drops_or_changes_the_words(template: str) -> None:
    with pytest.raises(CorpusError, match=r"line 7: the chat template leaves out or changes the assistant's words\."):
        template_of(template).render(chat("Question", "Answer"), "chats.jsonl, line 7")


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=150)
@given(
    turns=st.lists(WORDS, min_size=2, max_size=6),
    system=WORDS,
    template=st.sampled_from([CHAT_TEMPLATE, NO_PROMPT, GENERATION, PLAIN, DATED]),
)
def test_spans_hold_the_contents_whatever_they_are(turns: list[str], system: str, template: str) -> None:
    messages = chat(*turns, system=system)
    whole, spans = template_of(template).render(messages, "here")
    contents = [m["content"] for m in messages if m["role"] == "assistant"]
    assert len(spans) == len(contents)
    end_of_last = 0
    for (begin, end), content in zip(spans, contents, strict=True):
        assert whole[begin:end] in (content, content + "<|im_end|>")
        assert begin >= end_of_last
        end_of_last = end


@settings(max_examples=100)
@given(turns=st.lists(WORDS, min_size=2, max_size=4), kind=st.sampled_from(["bpe", "qwen", "unigram", "bpe_fallback"]))
def test_learned_tokens_spell_the_answers(turns: list[str], kind: Any) -> None:
    """Tokens may reach over the border between template and words; those are left out, never the reverse."""
    tokenizer = make_tokenizer(kind)
    messages = tuple(chat(*turns))
    tokens = Encoder(tokenizer).encode([Document(messages=messages)])[0]
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False)
    assert tokens.ids.tolist() == rendered
    answers = sum(len((m["content"]).encode()) for m in messages if m["role"] == "assistant")
    ends = sum(m["role"] == "assistant" for m in messages)
    learned = tokens.ids[tokens.learned]
    assert (learned == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() >= ends
    assert tokens.bytes[tokens.learned].sum() <= answers
    assert tokens.bytes[np_special(tokens.ids, tokenizer)].sum() == 0


def np_special(ids: Any, tokenizer: Any) -> Any:
    import numpy as np

    return np.isin(ids, tokenizer.all_special_ids)


def test_learned_tokens_of_a_chat_to_the_letter() -> None:
    messages = chat("What is 2 + 2?", "It is four.", "And 3 + 3?", "Six: 六 😀.", system="Be short.")
    for kind in ("bpe", "qwen", "unigram", "bpe_fallback"):
        tokenizer = make_tokenizer(kind)  # type: ignore[arg-type]
        tokens = Encoder(tokenizer).encode([Document(messages=tuple(messages))])[0]
        assert tokenizer.decode(tokens.ids[tokens.learned]) == "It is four.<|im_end|>Six: 六 😀.<|im_end|>"
        assert tokens.bytes[tokens.learned].sum() == len("It is four.Six: 六 😀.".encode())

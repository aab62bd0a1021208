"""Text as people bring it: is every shape of rows and files read without a change that nobody is told of, or refused by name?

    python -m benchmarks.data --json FILE [--quick]

Rows of every shape go through every kind of chat template, and files of every kind through the sources. Each is ``read``
(then the rendered text has to hold every part, and what is learned has to be the assistant's) or ``refused_by_name`` (then the
message names the file and what to do). Anything else is ``silently_changed`` or a ``traceback``. Then a file of 1 GB is built
into a corpus.

Figures: ``shapes``, ``tried`` (shapes under each template) and how many of these were ``read`` and ``refused_by_name``;
``silently_changed``; ``tracebacks``; ``left_out``, rows that Arrow has no table for; ``peak_bytes``, the most memory while the
large file is built into a corpus, less that of a run with a small one; and the file's ``file_bytes``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.budget import own_peak_bytes
from benchmarks.chat_templates import TEMPLATES
from benchmarks.report import write
from stillroom.core.errors import StillroomError
from stillroom.corpus.documents import LONGEST
from stillroom.corpus.sources import read_source
from stillroom.corpus.tally import Tally, sentences
from stillroom.recipe.corpus import CorpusConfig, DatasetSource, JsonlSource, ParquetSource, Source, TextSource

GIGABYTE = 10**9
QUICK = 10**8
LINE = 16_000
"""Bytes of a line of the large file."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "stock_level",
            "description": "How many parts are left",
            "parameters": {"type": "object", "properties": {"part": {"type": "string"}}},
        },
    }
]
TOOL_WORDS = ("stock_level", "How many parts are left", "part")


def _call(part: str, number: int = 1, *, text: bool = True) -> dict[str, Any]:
    arguments: Any = {"part": part}
    return {
        "id": f"call{number:05d}",
        "type": "function",
        "function": {"name": "stock_level", "arguments": json.dumps(arguments) if text else arguments},
    }


def _user(words: Any = "How many bolts?") -> dict[str, Any]:
    return {"role": "user", "content": words}


def _says(words: Any = "There are 412.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": words, **more}


def _result(words: Any = '{"count": 412}', number: int = 1, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{number:05d}", "content": words, **more}


@dataclass(frozen=True)
class Row:
    """One shape of a row.

    Attributes:
        row: The row.
        holds: What the text has to hold, in any order.
        learned: What has to be learned, in order.
        given: What must not be learned.
        optional: What a template may leave out if that is said.
    """

    row: dict[str, Any]
    holds: tuple[str, ...]
    learned: tuple[str, ...]
    given: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    keys: tuple[tuple[str, Any], ...] = ()

    @property
    def has_json(self) -> bool:
        """Whether templates write values of it as JSON."""
        written = json.dumps(self.row)
        return any(f'"{key}"' in written for key in ("tools", "functions", "tool_calls", "function_call"))


CALLING = [_user(), _says(None, tool_calls=[_call("M6 bolt")]), _result(), _says()]
ROWS: dict[str, Row] = {
    "messages": Row({"messages": [_user(), _says()]}, ("How many bolts?",), ("There are 412.",), ("How many",)),
    "system message": Row(
        {"messages": [{"role": "system", "content": "Be brief."}, _user(), _says()]},
        ("Be brief.",),
        ("There are 412.",),
    ),
    "developer message": Row(
        {"messages": [{"role": "developer", "content": "Be brief."}, _user(), _says()]},
        ("Be brief.",),
        ("There are 412.",),
    ),
    "two turns": Row(
        {"messages": [_user("One?"), _says("Yes 1."), _user("Two?"), _says("Yes 2.")]},
        ("One?", "Two?"),
        ("Yes 1.", "Yes 2."),
        ("One?", "Two?"),
    ),
    "the same words twice": Row(
        {"messages": [_user("yes"), _says("A 1"), _user("yes"), _says("A 2")]}, ("yes",), ("A 1", "A 2"), ("yes",)
    ),
    "two users in a row": Row(
        {"messages": [_user("One."), _user("Two?"), _says()]}, ("One.", "Two?"), ("There are 412.",)
    ),
    "system in the middle": Row(
        {
            "messages": [
                _user("One?"),
                _says("Yes."),
                {"role": "system", "content": "Now shout."},
                _user("Two?"),
                _says("YES."),
            ]
        },
        ("Now shout.",),
        ("Yes.", "YES."),
    ),
    "tools": Row({"tools": TOOLS, "messages": [_user(), _says()]}, TOOL_WORDS, ("There are 412.",), ("left",)),
    "tools as JSON text": Row(
        {"tools": json.dumps(TOOLS), "messages": [_user(), _says()]}, TOOL_WORDS, ("There are 412.",)
    ),
    "tools without a wrapper": Row(
        {"tools": [TOOLS[0]["function"]], "messages": [_user(), _says()]}, TOOL_WORDS, ("There are 412.",)
    ),
    "functions": Row(
        {"functions": [TOOLS[0]["function"]], "messages": [_user(), _says()]}, TOOL_WORDS, ("There are 412.",)
    ),
    "a call, null content": Row(
        {"tools": TOOLS, "messages": CALLING},
        ("412", "M6 bolt"),
        ("stock_level", "M6 bolt", "There are 412."),
        ("How many",),
    ),
    "a call, empty content": Row(
        {"messages": [_user(), _says("", tool_calls=[_call("M6 bolt")]), _result(), _says()]},
        ("count", "M6 bolt"),
        ("stock_level", "M6 bolt", "There are 412."),
        ("count",),
    ),
    "a call, no content": Row(
        {"messages": [_user(), {"role": "assistant", "tool_calls": [_call("M6 bolt")]}, _result(), _says()]},
        ("count", "M6 bolt"),
        ("stock_level", "M6 bolt", "There are 412."),
        ("count",),
    ),
    "words and a call": Row(
        {"messages": [_user(), _says("Let me look.", tool_calls=[_call("M6 bolt")]), _result(), _says()]},
        ("Let me look.", "count"),
        ("Let me look.", "stock_level", "M6 bolt", "There are 412."),
        ("count",),
    ),
    "a call alone": Row(
        {"messages": [_user(), _says(None, tool_calls=[_call("M6 bolt")])]},
        ("M6 bolt",),
        ("stock_level", "M6 bolt"),
        ("How many",),
    ),
    "arguments as an object": Row(
        {"messages": [_user(), _says(None, tool_calls=[_call("M6 bolt", text=False)]), _result(), _says()]},
        ("M6 bolt",),
        ("stock_level", "M6 bolt", "There are 412."),
    ),
    "arguments with quotes and letters of other scripts": Row(
        {"messages": [_user(), _says(None, tool_calls=[_call('6" Schraube für Öl')]), _result(), _says()]},
        ("Schraube für Öl",),
        ("stock_level", "Schraube für Öl", "There are 412."),
    ),
    "two calls at once": Row(
        {
            "messages": [
                _user(),
                _says(None, tool_calls=[_call("M6 bolt"), _call("M8 nut", 2)]),
                _result("412"),
                _result("seven", 2),
                _says("Both."),
            ]
        },
        ("412", "seven"),
        ("M6 bolt", "M8 nut", "Both."),
        ("seven",),
    ),
    "results in another order": Row(
        {
            "messages": [
                _user(),
                _says(None, tool_calls=[_call("M6 bolt"), _call("M8 nut", 2)]),
                _result("seven", 2),
                _result("412"),
                _says("Both."),
            ]
        },
        ("412", "seven", "call00002"),
        ("M6 bolt", "M8 nut", "Both."),
    ),
    "a call after a call": Row(
        {
            "messages": [
                _user(),
                _says(None, tool_calls=[_call("M6 bolt")]),
                _result("412"),
                _says(None, tool_calls=[_call("M8 nut", 2)]),
                _result("seven", 2),
                _says("Both."),
                _user("Thanks"),
                _says("Welcome."),
            ]
        },
        ("412", "seven", "Thanks"),
        ("M6 bolt", "M8 nut", "Both.", "Welcome."),
        ("seven", "Thanks"),
    ),
    "function_call, as it was": Row(
        {
            "messages": [
                _user(),
                _says(None, function_call={"name": "stock_level", "arguments": '{"part": "M6 bolt"}'}),
                {"role": "function", "name": "stock_level", "content": "count 412"},
                _says(),
            ]
        },
        ("M6 bolt", "count 412"),
        ("stock_level", "M6 bolt", "There are 412."),
        ("count",),
    ),
    "reasoning_content": Row(
        {"messages": [_user(), _says(reasoning_content="Short waves scatter.")]},
        ("Short waves scatter.",),
        ("Short waves scatter.", "There are 412."),
        ("How many",),
    ),
    "reasoning": Row(
        {"messages": [_user(), _says(reasoning="Short waves scatter.")]},
        ("Short waves scatter.",),
        ("Short waves scatter.", "There are 412."),
    ),
    "reasoning and a call": Row(
        {
            "messages": [
                _user(),
                _says(None, reasoning_content="I look it up.", tool_calls=[_call("M6 bolt")]),
                _result("count 412"),
                _says(reasoning_content="That is it."),
            ]
        },
        ("I look it up.", "M6 bolt", "That is it.", "count 412"),
        ("I look it up.", "stock_level", "M6 bolt", "That is it.", "There are 412."),
        ("count 412",),
    ),
    "reasoning in two turns": Row(
        {
            "messages": [
                _user("A?"),
                _says("Yes 1.", reasoning_content="Hm one."),
                _user("B?"),
                _says("Yes 2.", reasoning_content="Hm two."),
            ]
        },
        ("Hm two.", "Yes 1."),
        ("Hm two.", "Yes 2."),
        ("A?", "B?"),
        ("Hm one.",),
    ),
    "weight 0": Row(
        {"messages": [_user("A?"), _says("No 1.", weight=0), _user("B?"), _says("Yes 2.", weight=1)]},
        ("No 1.", "Yes 2."),
        ("Yes 2.",),
        ("No 1.", "A?"),
    ),
    "train false": Row(
        {"messages": [_user("A?"), _says("No 1.", train=False), _user("B?"), _says("Yes 2.")]},
        ("No 1.", "Yes 2."),
        ("Yes 2.",),
        ("No 1.",),
    ),
    "weight of a half": Row({"messages": [_user(), _says(weight=0.5)]}, ("a refusal",), ("a refusal",)),
    "a user with weight 1": Row({"messages": [_user() | {"weight": 1}, _says()]}, ("a refusal",), ("a refusal",)),
    "names of users": Row(
        {"messages": [_user() | {"name": "Kunigunde"}, _says()]}, ("Kunigunde",), ("There are 412.",), ("Kunigunde",)
    ),
    "unknown keys of messages": Row(
        {"messages": [_user() | {"ts": 5}, _says(refusal=None, annotations=[])]}, ("How many",), ("There are 412.",)
    ),
    "content in parts": Row(
        {"messages": [_user([{"type": "text", "text": "How many"}, {"type": "text", "text": "bolts?"}]), _says()]},
        ("How many", "bolts?"),
        ("There are 412.",),
    ),
    "an image": Row(
        {"messages": [_user([{"type": "image_url", "image_url": {"url": "x"}}]), _says()]},
        ("a refusal",),
        ("a refusal",),
    ),
    "images of the row": Row({"images": ["a.png"], "messages": [_user(), _says()]}, ("a refusal",), ("a refusal",)),
    "null content of a user": Row({"messages": [_user(None), _says()]}, ("a refusal",), ("a refusal",)),
    "messages as JSON text": Row(
        {"messages": json.dumps([_user(), _says()])}, ("How many bolts?",), ("There are 412.",), ("How many",)
    ),
    "a mapping of lists": Row(
        {"messages": {"role": ["user", "assistant"], "content": ["How many bolts?", "There are 412."]}},
        ("How many bolts?",),
        ("There are 412.",),
    ),
    "ShareGPT": Row(
        {
            "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "There are 412."}],
            "id": "7",
        },
        ("How many?",),
        ("There are 412.",),
        ("How many?",),
    ),
    "ShareGPT with system and tools": Row(
        {
            "system": "Be brief.",
            "tools": json.dumps([TOOLS[0]["function"]]),
            "conversations": [
                {"from": "human", "value": "How many?"},
                {"from": "function_call", "value": '{"name": "stock_level", "arguments": {"part": "M6 bolt"}}'},
                {"from": "observation", "value": "count 412"},
                {"from": "gpt", "value": "There are 412."},
            ],
        },
        ("Be brief.", *TOOL_WORDS, "count 412"),
        ("stock_level", "M6 bolt", "There are 412."),
        ("count", "brief"),
    ),
    "an unknown speaker": Row({"conversations": [{"from": "narrator", "value": "x"}]}, ("a refusal",), ("a refusal",)),
    "Alpaca": Row(
        {"instruction": "Explain the part.", "input": "valve", "output": "It lets fluid pass."},
        ("Explain the part.", "valve"),
        ("It lets fluid pass.",),
        ("Explain", "valve"),
    ),
    "Alpaca without input": Row(
        {"instruction": "Explain.", "input": "", "output": "It lets fluid pass."},
        ("Explain.",),
        ("It lets fluid pass.",),
        ("Explain",),
    ),
    "Alpaca with system and history": Row(
        {
            "instruction": "And now?",
            "input": "",
            "output": "It lets fluid pass.",
            "system": "Be brief.",
            "history": [["Before?", "That was before."]],
        },
        ("And now?", "Be brief.", "Before?", "That was before."),
        ("It lets fluid pass.",),
        ("And now?",),
    ),
    "Dolly": Row(
        {"instruction": "Explain.", "context": "On valves.", "response": "It lets fluid pass.", "category": "qa"},
        ("Explain.", "On valves."),
        ("It lets fluid pass.",),
        ("On valves.",),
    ),
    "prompt and completion": Row(
        {"prompt": "What is a valve?", "completion": "It lets fluid pass."},
        ("What is a valve?",),
        ("It lets fluid pass.",),
        ("What",),
    ),
    "prompt and completion, one text": Row(
        {"prompt": "A valve lets", "completion": " fluid pass."},
        ("A valve lets fluid pass.",),
        (" fluid pass.",),
        ("valve",),
    ),
    "prompt and completion as messages": Row(
        {"prompt": [_user("A?"), _says("No 1."), _user("B?")], "completion": [_says("Yes 2.")]},
        ("No 1.", "Yes 2."),
        ("Yes 2.",),
        ("No 1.", "A?"),
    ),
    "preference pair": Row(
        {"prompt": "Which?", "chosen": "The good one.", "rejected": "The bad one."},
        ("Which?",),
        ("The good one.",),
        ("bad", "Which"),
    ),
    "preference pair of messages": Row(
        {"prompt": [_user("Which?")], "chosen": [_says("The good one.")], "rejected": [_says("The bad one.")]},
        ("Which?",),
        ("The good one.",),
        ("bad", "Which"),
    ),
    "preference pair of whole chats": Row(
        {
            "prompt": "Which?",
            "chosen": [_user("Which?"), _says("The good one.")],
            "rejected": [_user("Which?"), _says("The bad one.")],
        },
        ("Which?",),
        ("The good one.",),
        ("bad", "Which"),
    ),
    "preference pair with its prompt inside": Row(
        {"chosen": "Human: Which? Robot: Good one.", "rejected": "Human: Which? Robot: Bad one."},
        ("Human: Which?",),
        ("Good one.",),
        ("Human",),
    ),
    "question and answer": Row(
        {"question": "Which?", "answer": "The good one."}, ("Which?",), ("The good one.",), ("Which",)
    ),
    "question with choices": Row(
        {"question": "Which?", "choices": ["a", "b"], "answer": "a"}, ("a refusal",), ("a refusal",)
    ),
    "an answer that is a number": Row({"question": "Which?", "answer": 5}, ("a refusal",), ("a refusal",)),
    "text": Row(
        {"text": "A valve lets fluid pass.", "id": 5}, ("A valve lets fluid pass.",), ("A valve lets fluid pass.",)
    ),
    "text with \\r\\n": Row({"text": "one\r\ntwo"}, ("one\ntwo",), ("one\ntwo",)),
    "the answer alone by text_key": Row(
        {"instruction": "Explain.", "input": "", "output": "It lets."},
        ("a refusal",),
        ("a refusal",),
        keys=(("text_key", "output"),),
    ),
    "an answer alone on purpose": Row(
        {"instruction": "Explain.", "output": "It lets."},
        ("It lets.",),
        ("It lets.",),
        keys=(("text_key", "output"), ("ignore", ("instruction",))),
    ),
    "thoughts ignored on purpose": Row(
        {"messages": [_user(), _says(reasoning_content="Hm.")]},
        ("How many",),
        ("There are 412.",),
        ("Hm.",),
        keys=(("ignore", ("reasoning_content",)),),
    ),
    "another key": Row({"body": "A valve."}, ("a refusal",), ("a refusal",)),
    "no messages": Row({"messages": 5}, ("a refusal",), ("a refusal",)),
    "a message without a role": Row({"messages": [{"content": "x"}]}, ("a refusal",), ("a refusal",)),
    "arguments that are not JSON": Row(
        {"messages": [_user(), _says(None, tool_calls=[{"function": {"name": "f", "arguments": "{a"}}])]},
        ("a refusal",),
        ("a refusal",),
    ),
}
"""Shapes of rows; a row whose text has to hold "a refusal" can only be refused."""


@dataclass(frozen=True)
class Found:
    """What became of one shape."""

    shape: str
    result: str
    words: str

    def as_dict(self) -> dict[str, str]:
        """For the report."""
        return {"shape": self.shape, "result": self.result, "words": self.words}


def _unescaped(text: str) -> str:
    """Letters in place of JSON's escapes of them: templates may write a value with these, and without."""
    return re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), text)


def _judged(shape: str, read: Callable[[], tuple[list[tuple[str, str]], str]], row: Row, name: str) -> Found:
    """Read a shape and compare: texts and learned texts of its documents, to the letter, and what was said about them.

    Args:
        shape: What it is called.
        read: Reads it.
        row: What is expected of it.
        name: Of its file: who refuses it has to say it.
    """
    try:
        documents, said = read()
    except StillroomError as error:
        named = bool(error.todo) and len(error.what) > 10 and name in str(error)
        return Found(shape, "refused_by_name" if named else "refused_without_help", str(error))
    except Exception:
        return Found(shape, "traceback", traceback.format_exc(limit=-3))
    text, learned = "".join(text for text, _ in documents), "".join(learned for _, learned in documents)
    if row.has_json:
        text, learned = _unescaped(text), _unescaped(learned)
    lost = [part for part in row.holds if part not in text]
    lost += [f"has {mark!r}" for mark in ("\ufeff", "\r") if mark in text]
    at = 0
    for part in row.learned:
        place = learned.find(part, at)
        if place < 0:
            lost.append(f"learned: {part}")
        at = max(at, place)
    lost += [f"learned, and should not be: {part}" for part in row.given if part in learned]
    lost += [part for part in row.optional if part not in text and "thoughts in earlier turns" not in said]
    return Found(shape, "silently_changed" if lost else "read", "; ".join(lost) or said)


def _tokenizer(template: str | None) -> Any:
    from tests.tiny_models import make_tokenizer

    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = template
    return tokenizer


def read_all(source: Source, template: str | None) -> tuple[list[tuple[str, str]], str]:
    """Text and learned text of each document of a source under a chat template, and what is said of them."""
    from stillroom.corpus.tokens import Encoder

    tally = Tally()
    tokenizer = _tokenizer(template)
    encoder = Encoder(tokenizer)
    documents = []
    for document in read_source(source, tally):
        if document.is_empty:
            tally.notes["documents without anything to learn"] += 1
            continue
        tokens = encoder.encode([document])[0]
        documents.append((tokenizer.decode(tokens.ids), tokenizer.decode(tokens.ids[tokens.learned])))
    return documents, "; ".join([*sentences(tally.as_dict()), *encoder.notes])


def rows(folder: Path) -> Iterator[Found]:
    """Every shape of rows under every kind of chat template, and without one."""
    for number, (shape, row) in enumerate(ROWS.items()):
        path = folder / f"{number}.jsonl"
        path.write_text(json.dumps(row.row, ensure_ascii=False) + "\n", encoding="utf-8")
        source = JsonlSource.model_validate({"path": path, **dict(row.keys)})
        for name, template in (*TEMPLATES.items(), ("none", None)):
            read = partial(read_all, source, template)
            yield _judged(f"{shape}, template {name}", read, row, path.name)


def _docx(path: Path) -> None:
    import docx

    file = docx.Document()
    file.add_heading("Valves", 1)
    file.add_paragraph("A valve lets fluid pass.")
    table = file.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "M6", "412"
    file.save(str(path))


def pdf(*lines: str) -> bytes:
    """A PDF file of one page."""
    words = " ".join(f"({line}) Tj T*" for line in lines)
    stream = f"BT /F1 12 Tf 14 TL 72 720 Td {words} ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = io.BytesIO(b"%PDF-1.4\n")
    out.seek(0, 2)
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    begin = out.tell()
    out.write(b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    out.write(b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % begin)
    return out.getvalue()


def epub(path: Path) -> None:
    """A book of two chapters, whose files are not in the order of their names."""
    page = "<html><head><title>{}</title></head><body><h1>{}</h1><p>{}</p></body></html>"
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        )
        book.writestr(
            "OEBPS/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="z.xhtml"/><item id="b" href="a.xhtml"/>'
            '</manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
        )
        book.writestr("OEBPS/z.xhtml", page.format("One", "One", "A valve lets fluid pass."))
        book.writestr("OEBPS/a.xhtml", page.format("Two", "Two", "A pump moves it."))


WORDS = "A valve lets fluid pass."
HTML = (
    "<html><head><title>Valves</title><style>p {}</style></head><body><nav>Home</nav><p>A valve lets <b>fl</b>uid pass.</p>"
    "<table><tr><td>M6</td><td>412</td></tr></table><pre>if x:\n    y</pre><script>var a</script></body></html>"
)
NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["A valve lets ", "fluid pass."]},
        {"cell_type": "code", "source": "print(412)", "outputs": [{"text": "412"}]},
    ],
    "metadata": {"language_info": {"name": "python"}},
}
CHAT = {"messages": [_user(), _says()]}


def _jsonl_bytes(*rows: Any, encoding: str = "utf-8") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)


def _zst(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


FILES: dict[str, tuple[str, bytes, dict[str, Any], tuple[str, ...]]] = {
    "text": ("a.txt", WORDS.encode(), {}, (WORDS,)),
    "text, another case": ("A.TXT", WORDS.encode(), {}, (WORDS,)),
    "text.gz": ("a.txt.gz", gzip.compress(WORDS.encode()), {}, (WORDS,)),
    "text.zst": ("a.md.zst", _zst(WORDS.encode()), {}, (WORDS,)),
    "text, byte order mark": ("a.txt", b"\xef\xbb\xbf" + WORDS.encode(), {}, (WORDS,)),
    "text, \\r\\n": ("a.txt", b"one\r\ntwo", {}, ("one\ntwo",)),
    "text, \\r alone": ("a.txt", b"one\rtwo\r", {}, ("one\ntwo",)),
    "text, \\r alone, cut by a separator": (
        "a.txt",
        b"One valve.\r\rTwo.",
        {"separator": "\n\n"},
        ("One valve.", "Two."),
    ),
    "text.gz of no bytes": ("a.txt.gz", b"", {}, ("a refusal",)),
    "text, UTF-16 unsaid": ("a.txt", WORDS.encode("utf-16"), {}, ("a refusal",)),
    "text, UTF-16": ("a.txt", WORDS.encode("utf-16"), {"encoding": "utf-16"}, (WORDS,)),
    "text, latin-1 unsaid": ("a.txt", "Käse".encode("latin-1"), {}, ("a refusal",)),
    "text, latin-1": ("a.txt", "Käse".encode("latin-1"), {"encoding": "latin-1"}, ("Käse",)),
    "text, bytes of zero": ("a.txt", b"abc\0def", {}, ("a refusal",)),
    "text, zero under latin-1": ("a.txt", b"abc\0def", {"encoding": "latin-1"}, ("a refusal",)),
    "text, cut by a separator": (
        "a.txt",
        b"One valve.\n\nTwo pumps.\r\n\r\nThree.",
        {"separator": "\n\n"},
        ("One valve.", "Three."),
    ),
    "a PDF called text": ("a.txt", pdf(WORDS), {"encoding": "latin-1"}, ("a refusal",)),
    "a picture called text": ("a.txt", b"\x89PNG\r\n\x1a\n" + b"\1" * 50, {"encoding": "latin-1"}, ("a refusal",)),
    "JSON Lines as text": ("a.jsonl", _jsonl_bytes(CHAT), {"kind": "text"}, ("a refusal",)),
    "HTML": ("a.html", HTML.encode(), {}, ("Valves", WORDS, "M6", "412", "if x:\n    y", "Home")),
    "HTML, latin-1 declared": ("a.HTM", '<meta charset="latin-1"><p>Käse</p>'.encode("latin-1"), {}, ("Käse",)),
    "HTML, UTF-16 without a mark": ("a.html", HTML.encode("utf-16-be"), {}, ("Valves", WORDS)),
    "HTML, bytes of zero": ("a.html", b"<p>abc\0def</p>", {}, ("a refusal",)),
    "HTML.gz": ("a.html.gz", gzip.compress(HTML.encode()), {}, (WORDS,)),
    "PDF": ("a.pdf", pdf(WORDS, "It has 412."), {}, (WORDS, "It has 412.")),
    "PDF without text": ("a.pdf", pdf(), {}, ("a refusal",)),
    "PDF cut off": ("a.pdf", pdf(WORDS)[:200], {}, ("a refusal",)),
    "notebook": ("a.ipynb", json.dumps(NOTEBOOK).encode(), {}, (WORDS, "```python\nprint(412)")),
    "notebook, a key twice": ("a.ipynb", b'{"cells": [{"source": "a", "source": "b"}]}', {}, ("a refusal",)),
    "notebook without cells": ("a.ipynb", b"{}", {}, ("a refusal",)),
    "source code": ("a.py", b"def valve():\n    return 412\n", {}, ("def valve():\n    return 412",)),
    "DOCX": ("a.docx", b"", {}, ("Valves", WORDS, "M6", "412")),
    "DOCX cut off": ("a.docx", b"PK\x03\x04abc", {}, ("a refusal",)),
    "EPUB": ("a.epub", b"", {}, (WORDS, "A pump moves it.")),
    "XLSX": ("a.xlsx", b"PK\x03\x04abc", {}, ("a refusal",)),
    "JSON Lines": ("a.jsonl", _jsonl_bytes(CHAT, {"text": WORDS}), {}, ("How many", WORDS)),
    "JSON Lines, gzip": ("a.jsonl.gz", gzip.compress(_jsonl_bytes(CHAT)), {}, ("How many",)),
    "JSON Lines, zst": ("a.jsonl.zst", _zst(_jsonl_bytes(CHAT)), {}, ("How many",)),
    "JSON Lines, gzip cut off": ("a.jsonl.gz", gzip.compress(_jsonl_bytes(CHAT))[:-12], {}, ("a refusal",)),
    "JSON Lines, zst cut off": (
        "a.jsonl.zst",
        _zst(_jsonl_bytes(*[{"text": f"{WORDS} {n}"} for n in range(99)]))[:-40],
        {},
        ("a refusal",),
    ),
    "JSON Lines, bz2": ("a.jsonl.bz2", b"BZh9", {}, ("a refusal",)),
    "JSON Lines, UTF-16 unsaid": ("a.jsonl", _jsonl_bytes(CHAT, encoding="utf-16"), {}, ("a refusal",)),
    "JSON Lines, UTF-16": ("a.jsonl", _jsonl_bytes(CHAT, encoding="utf-16"), {"encoding": "utf-16"}, ("How many",)),
    "JSON Lines, latin-1": (
        "a.jsonl",
        _jsonl_bytes({"text": "Käse"}, encoding="latin-1"),
        {"encoding": "latin-1"},
        ("Käse",),
    ),
    "JSON Lines, byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + _jsonl_bytes(CHAT), {}, ("How many",)),
    "JSON Lines, cut off": ("a.jsonl", _jsonl_bytes(CHAT)[:-9], {}, ("a refusal",)),
    "JSON Lines, an array": ("a.jsonl", b"[\n" + _jsonl_bytes(CHAT), {}, ("a refusal",)),
    "JSON array": ("a.json", json.dumps([CHAT, {"text": WORDS}], indent=1).encode(), {}, ("How many", WORDS)),
    "JSON array, gzip": ("a.json.gz", gzip.compress(json.dumps([CHAT]).encode()), {}, ("How many",)),
    "JSON array, cut off": ("a.json", json.dumps([CHAT, CHAT])[:-9].encode(), {}, ("a refusal",)),
    "JSON array, no comma": ("a.json", b'[{"text": "a b c"} {"text": "d e f"}]', {}, ("a refusal",)),
    "JSON objects": ("a.json", _jsonl_bytes(CHAT, {"text": WORDS}), {}, ("How many", WORDS)),
    "JSON of something else": ("a.json", b'{"version": 3}', {}, ("a refusal",)),
    "CSV": (
        "a.csv",
        b'question,answer\r\nWhich?,"The good, one."\r\n',
        {"kind": "jsonl"},
        ("Which?", "The good, one."),
    ),
    "CSV, semicolons": (
        "a.csv",
        b"question;answer\nWhich?;The good one.\n",
        {"kind": "jsonl"},
        ("Which?", "The good one."),
    ),
    "CSV, a field too many": ("a.csv", b"question,answer\nWhich?,The good, one.\n", {"kind": "jsonl"}, ("a refusal",)),
    "TSV": ("a.tsv", b"question\tanswer\nWhich?\tThe good one.\n", {"kind": "jsonl"}, ("Which?", "The good one.")),
    "CSV, bytes of zero": ("a.csv", b"question,answer\nWhich?,The\0one.\n", {"kind": "jsonl"}, ("a refusal",)),
    "CSV as text": ("a.csv", b"question,answer\nWhich?,The good one.\n", {"kind": "text"}, ("Which?,The good one.",)),
    "a line that is too long": ("a.jsonl", b"", {}, ("a refusal",)),
    "a text that is too long": ("a.txt", b"", {}, ("a refusal",)),
}
"""Files by what they are: name, content, keys of the source, and what their text has to hold."""


def files_(folder: Path) -> Iterator[Found]:
    """Every kind of file: by its path, in a folder, and by a pattern in the path."""
    for number, (shape, (name, content, keys, holds)) in enumerate(FILES.items()):
        place = folder / f"f{number}"
        place.mkdir()
        path = place / name
        path.write_bytes(content)
        if shape == "DOCX":
            _docx(path)
        elif shape == "EPUB":
            epub(path)
        elif shape.endswith("too long"):
            with open(path, "wb") as stream:
                stream.write(b'{"text": "')
                for _ in range(LONGEST // (1 << 20) + 1):
                    stream.write(b"valve " * 174_763)
        kind = keys.get("kind") or ("jsonl" if ".json" in name else "text")
        row = Row({}, holds, ())
        more = {key: value for key, value in keys.items() if key != "kind"}
        made: type[TextSource | JsonlSource] = JsonlSource if kind == "jsonl" else TextSource
        ways = {"path": path} if shape.endswith("too long") else {"path": path, "glob": place / "*"}
        for way, where in ways.items():
            source = made.model_validate({"path": where, **more})
            yield _judged(f"{shape}, by {way}", partial(read_all, source, TEMPLATES["qwen"]), row, name)


def tables(folder: Path) -> Iterator[Found]:
    """Parquet files and datasets in the shapes of rows."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    for number, (shape, row) in enumerate(ROWS.items()):
        path = folder / f"{number}.parquet"
        try:
            # Rows of other keys beside it make nulls in every nested value, as tables of mixed rows have them.
            parquet.write_table(pyarrow.Table.from_pylist([row.row]), path)
            datasets.Dataset.from_list([row.row]).save_to_disk(str(folder / f"d{number}"))
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            yield Found(f"{shape}, Parquet and dataset", "left_out", f"Arrow has no such table: {error}")
            continue
        for kind, source in (
            ("Parquet", ParquetSource.model_validate({"path": path, **dict(row.keys)})),
            ("dataset", DatasetSource.model_validate({"name": str(folder / f"d{number}"), **dict(row.keys)})),
        ):
            name = path.name if kind == "Parquet" else f"d{number}"
            yield _judged(f"{shape}, {kind}", partial(read_all, source, TEMPLATES["qwen"]), row, name)


def folders(folder: Path) -> Iterator[Found]:
    """What is passed over in a folder is counted by name."""
    place = folder / "folder"
    (place / "in").mkdir(parents=True)
    for name in ("a.txt", "B.TXT", "in/c.md", "d.html", "e.bin", "f.bin", "g", "h.txt.gz"):
        data = f"{WORDS} {name}".encode()
        (place / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    row = Row({}, ("a.txt", "B.TXT", "in/c.md", "h.txt.gz"), ())
    found = _judged("a folder", lambda: read_all(TextSource(path=place), None), row, place.name)
    said = "took 4 of 8 files; passed over 2 .bin, 1 .html, 1 without an ending"
    yield found if said in found.words else Found("a folder", "silently_changed", f"said: {found.words}")


def large(size: int, path: Path) -> int:
    """Write a file of JSON Lines of about this size; returns its true size."""
    import random

    words = [f"w{number:x}" for number in range(5000)]
    draw = random.Random(0)
    written = 0
    with open(path, "wb") as stream:
        while written < size:
            text = " ".join(draw.choices(words, k=LINE // 6))
            written += stream.write(json.dumps({"text": text}).encode() + b"\n")
    return written


def build(path: Path) -> None:
    """What the child does: build a corpus with limits, and print its peak memory in bytes."""
    from stillroom.core.progress import Progress
    from stillroom.corpus.build import build_corpus

    config = CorpusConfig(
        sources=(JsonlSource(path=path),),
        sequence_length=512,
        train_tokens=100_000,
        validation_tokens=10_000,
        heldout_tokens=10_000,
    )
    corpus = build_corpus(config, _tokenizer(None), 0, Progress(quiet=True), scratch=path.parent)
    print(json.dumps({"peak_bytes": own_peak_bytes(), "documents": corpus.ledger["documents"]}))


def memory(size: int, folder: Path) -> dict[str, Any]:
    """Peak memory of a corpus of a large file, less that of a corpus of a small one."""
    found: dict[str, Any] = {}
    for name, wanted in (("small", 4_000_000), ("large", size)):
        path = folder / f"{name}.jsonl"
        found[f"{name}_bytes"] = large(wanted, path)
        begun = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.data", "--build", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.monotonic() - begun}
        path.unlink()
    return found


def shapes() -> list[Found]:
    """All shapes of rows and files, judged."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [*rows(folder), *files_(folder), *tables(folder), *folders(folder)]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--quick", action="store_true", help="a large file of 100 MB instead of 1 GB")
    parser.add_argument("--shapes-only", action="store_true", help="no large file")
    parser.add_argument(
        "--folder", type=Path, help="where the large file is written; else the system's temporary folder"
    )
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build)
        return
    found = shapes()
    counts = Counter(entry.result for entry in found)
    figures: dict[str, Any] = {
        "shapes": len(ROWS) + len(FILES) + 1,
        "tried": len(found) - counts["left_out"],
        "read": counts["read"],
        "refused_by_name": counts["refused_by_name"],
        "silently_changed": counts["silently_changed"],
        "refused_without_help": counts["refused_without_help"],
        "tracebacks": counts["traceback"],
        "left_out": counts["left_out"],
    }
    details: dict[str, Any] = {"shapes": [entry.as_dict() for entry in found]}
    if not arguments.shapes_only:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            details["memory"] = memory(QUICK if arguments.quick else GIGABYTE, Path(name))
        figures["file_bytes"] = details["memory"]["large_bytes"]
        figures["peak_bytes"] = details["memory"]["large"]["peak_bytes"] - details["memory"]["small"]["peak_bytes"]
    write(figures, details, arguments.json)


if __name__ == "__main__":
    main()

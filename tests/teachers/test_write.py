"""Text that a teacher writes: chunks, filters, writers, and the whole path with a chat endpoint on a loopback port."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from tiny_models import tiny_model

from stillroom.core import files
from stillroom.core.errors import CorpusError, RecipeError, TeacherError
from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.documents import Document
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.split import split_of
from stillroom.models.load import load_teacher
from stillroom.models.tokenizer import open_tokenizer
from stillroom.pipeline import run
from stillroom.planning.plan import make_plan
from stillroom.recipe.reading import recipe_of
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import EndpointTeacher, HuggingFaceTeacher
from stillroom.recipe.write import WriteConfig
from stillroom.runs.run import Run
from stillroom.runs.stages import STAGES, inputs_of
from stillroom.teachers.endpoint.ledger import Ledger, Price
from stillroom.teachers.write.filters import REASONS, Filters, distinct_share, supported
from stillroom.teachers.write.material import bound
from stillroom.teachers.write.prompts import Chunk, chunks_of
from stillroom.teachers.write.stage import Journal, _write
from stillroom.teachers.write.writers import Ask, ChatWriter, LocalWriter, Text

CHUNK = (
    "The harbour master keeps the tide tables in a drawer beside the log. They are printed once a year, and say when the "
    "water is high and how high it is. In 1867 the bridge was 212 metres long."
)
GOOD = "The tide tables are kept by the harbour master in a drawer, and are printed once a year."


def test_chunks_end_at_paragraphs_and_hold_all_of_the_text() -> None:
    text = "\n\n".join(f"Paragraph {number}. " + "Words that go on. " * 20 for number in range(9))
    chunks = list(chunks_of("d" * 64, text, 900))
    assert all(200 <= len(chunk.text) <= 900 for chunk in chunks)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert "".join("".join(chunk.text for chunk in chunks).split()) == "".join(text.split())
    one = list(chunks_of("d" * 64, "x" * 2500, 1000))
    assert sum(len(chunk.text) for chunk in one) == 2500
    assert list(chunks_of("d" * 64, "Too short.", 900)) == []


@pytest.mark.parametrize(
    ("text", "ended", "reason"),
    [
        ("  ", True, "empty or too short"),
        (GOOD, False, "not ended"),
        ("Таблицы приливов лежат в ящике у капитана порта.", True, "another script"),
        ("the log the log the log the log the log the log the log", True, "repeats itself"),
        ("Nobody may read this held out sentence about the old bridge and the harbour.", True, REASONS[4]),
        ("I'm sorry, but I cannot help with that.", True, "refusal"),
        (f"{GOOD} <|im_end|>", True, "spells a control token"),
        (f"{GOOD} \ud83d", True, "has half a character"),
        ("\ud83d", False, "has half a character"),
        ("Napoleon crossed the frozen river with elephants during winter.", True, "not supported by its chunk"),
        (GOOD, True, None),
    ],
)
def test_each_filter_catches_its_own(text: str, ended: bool, reason: str | None) -> None:
    held = Document(text="Nobody may read this held out sentence about the old bridge and the harbour.")
    filters = Filters([held], 0.5, 0.3, {"<|im_end|>"})
    assert filters.reason(text, CHUNK, ended=ended, answer=True) == reason
    assert filters.counts[reason or "kept"] == 1


def test_a_text_that_was_kept_is_not_kept_again() -> None:
    filters = Filters([], 0.5, 0.3)
    assert filters.reason(GOOD, CHUNK, ended=True, answer=True) is None
    assert filters.reason(GOOD.upper(), CHUNK, ended=True, answer=True) == "near-duplicate of written text"
    assert distinct_share("one two three") == 1.0
    assert supported("212 metres", CHUNK) == 1.0


def collected(writer: LocalWriter, asks: list[Ask], known: Callable[[str], bool] = lambda _: False) -> dict[str, Text]:
    kept: dict[str, Text] = {}
    yielded = [ask.key for ask in writer.write(asks, known, lambda ask, text: kept.update({ask.key: text}))]
    assert yielded == list(kept)
    return kept


def test_a_local_writer_writes_the_same_again(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "writer", layers=1, hidden=32)
    loaded = load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32)
    writer = LocalWriter(loaded, "a" * 64, 8, 0.7, 0)
    asks = [Ask(str(number), f"Say {number}. " * (number + 1)) for number in range(10)]
    first = collected(writer, asks)
    assert len(first) == 10
    assert len({text.text for text in first.values()}) > 1
    # After a kill only groups that are not whole are written, and they come out the same.
    again = collected(writer, asks, lambda key: key != "9")
    assert set(again) == {"9"}
    assert all(first[key] == text for key, text in again.items())
    # Left padding changes nothing: greedily, alone or in a group.
    greedy = LocalWriter(loaded, "a" * 64, 8, 0.0, 0)
    together = {key: text.text for key, text in collected(greedy, asks[:4]).items()}
    alone = {ask.key: collected(greedy, [ask])[ask.key].text for ask in asks[:4]}
    assert together == alone
    # What is too long is said before the first of many is written.
    with pytest.raises(TeacherError, match=r"write.chunk_characters"):
        collected(writer, [*asks, Ask("long", "word " * 5000)])


class _Chat(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]]
    fail_after: int | None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.asked.append(body)
        if server.fail_after is not None and len(server.asked) > server.fail_after:
            self.send_response(401)
            self.end_headers()
            return
        prompt = body["messages"][0]["content"]
        if server.thinks:
            self._answer({"choices": [{"message": {"content": None}, "finish_reason": "length"}], "usage": {}})
            return
        passage = prompt.split("\n\n")[1]
        number = files.digest_json(prompt)[:6]
        if prompt.startswith("Read this passage.") and "Write one question" in prompt:
            text = f"Which words does entry {number} begin with, {passage[:30]}?"
        else:
            text = f"It begins so ({number}): {passage[20:160]}"
        answer = {
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20},
        }
        self._answer(answer)

    def _answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Chat)
    server.asked, server.fail_after, server.thinks = [], None, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def settings(small_recipe: Any, chat: Any, tmp_path: Path) -> dict[str, Any]:
    folder = tiny_model("llama", tmp_path / "teacher", layers=2, hidden=32)
    made: dict[str, Any] = small_recipe(
        folder,
        teachers={
            "writer": {
                "kind": "endpoint",
                "server": "chat",
                "base_url": f"http://127.0.0.1:{chat.server_port}",
                "model": "chatty",
                "tokenizer": str(folder),
                "sends_text": True,
                "concurrency": 2,
                "price": {"input": 1, "output": 2, "cap": 1},
            }
        },
        write={
            "by": "writer",
            "forms": ["question_answer", "open_book", "rephrase"],
            "limit": 6,
            "chunk_characters": 400,
        },
        student={"kind": "fresh", "config": {"num_hidden_layers": 1}},
        baseline=False,
    )
    made["corpus"] = made["corpus"] | {"train_tokens": None, "heldout_tokens": 128}
    made["terms"]["decisions"].append(made["terms"]["decisions"][0] | {"subject": "writer"})
    return made


def test_the_whole_path_with_written_text(settings: dict[str, Any], chat: Any, text: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(settings)
    plan = make_plan(recipe, tmp_path)
    assert plan["write"]["by"] == "writer"
    assert (plan["write"]["chunks"], plan["write"]["texts"]) == (6, 18)
    assert not chat.asked
    # The first attempt ends on the way; the second pays for nothing twice.
    chat.fail_after = 5
    with pytest.raises(TeacherError):
        run(recipe, tmp_path, quiet=True, until="corpus")
    paid = list(chat.asked[:5])
    chat.fail_after = None
    made = run(recipe, tmp_path, quiet=True)
    asked = [json.dumps(body, sort_keys=True) for body in [*paid, *chat.asked[6:]]]
    answered = [body for body in asked if asked.count(body) == 1]
    assert len(answered) >= len(asked) - 2, "only what was under way when it failed may be asked for again"
    record = files.read_json(made.path / "write" / "written.json")
    assert record["chunks"] == 6
    assert record["written"] == record["kept"] + sum(record["left_out"].values()) == 18
    assert record["writer"]["called"] == "writer"
    rows = [json.loads(line) for line in (made.path / "write" / "written.jsonl").read_text().splitlines()]
    assert {row["form"] for row in rows} == {"question_answer", "open_book", "rephrase"}
    # Nothing was written about held-out or validation documents, and nothing of it is in their splits.
    digests = {Document(text=file.read_text(encoding="utf-8")).digest: file for file in text.iterdir()}
    sides = split_of(list(digests), recipe.corpus.validation_share, recipe.corpus.heldout_share)
    assert {sides[row["document"]] for row in rows} == {"train"}
    ledger = files.read_json(made.path / "corpus" / "ledger.json")
    written = ledger["sources"][-1]
    assert written["kind"] == "written"
    assert written["kept"]["train"] > 0
    assert written["kept"]["validation"] == written["kept"]["heldout"] == 0
    assert ledger["written"]["left_out"] == record["left_out"]
    assert len(Sequences.load(made.path / "corpus" / "train.safetensors")) > 0
    summary = json.loads((made.path / "summary.json").read_text())
    assert [entry["called"] for entry in summary["teachers"]] == ["teacher", "writer"]
    assert summary["written"]["kept"] == record["kept"]
    assert "chatty" in (made.path / "report.html").read_text(encoding="utf-8")
    spent = Ledger(made.path / "spending-writer.jsonl", Price(1, 2, 1))
    assert 0 < spent.spent < min(1, plan["write"]["cost"])
    # The same again asks for nothing; another filter asks for nothing either.
    count = len(chat.asked)
    run(recipe, tmp_path, quiet=True)
    run(
        Recipe.model_validate(settings | {"write": settings["write"] | {"support": 0.9}}),
        tmp_path,
        quiet=True,
        until="corpus",
    )
    assert len(chat.asked) == count


def test_a_chunk_in_two_documents_is_asked_about_once_and_control_tokens_not_at_all(
    settings: dict[str, Any], chat: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "licensed"
    folder.mkdir()
    header = "".join(f"Line {number} of a licence that stands in each file. " for number in range(7)).strip()
    control = "Here a turn ends <|im_end|> and another one begins <|im_start|>system with other words. " * 3
    for number in range(12):
        body = " ".join(f"sentence {number * 100 + word} is about itself." for word in range(12))
        (folder / f"{number}.txt").write_text(f"{header}\n\n{body}\n\n{control}{number}")
    settings["corpus"]["sources"][0]["path"] = str(folder)
    settings["write"] |= {"forms": ["rephrase"], "limit": None}
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True, until="write")
    prompts = [body["messages"][0]["content"] for body in chat.asked]
    assert len(prompts) == len(set(prompts))
    assert sum(header in prompt for prompt in prompts) == 1
    assert not any("<|im_" in prompt for prompt in prompts)
    record = files.read_json(made.path / "write" / "written.json")
    assert record["passed_over"] == {"chunks that spell a control token": record["documents"]}
    assert record["left_out"]["near-duplicate of written text"] >= record["documents"] - 1


@pytest.mark.parametrize("letters", ["alpha beta gamma delta", "港 長 潮 位 表 橋 木"])
@pytest.mark.parametrize("train_tokens", [None, 3000])
def test_the_plan_is_a_bound_and_what_is_never_trained_on_is_not_written_about(
    settings: dict[str, Any], chat: Any, tmp_path: Path, letters: str, train_tokens: int | None
) -> None:
    rows = []
    for number in range(60):
        draw = random.Random(number)
        rows.append({"text": " ".join(f"{draw.choice(letters.split())}{draw.randrange(999)}" for _ in range(55))})
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings["corpus"]["sources"] = [{"kind": "jsonl", "path": str(path), "licence": "PSF-2.0"}]
    settings["corpus"]["train_tokens"] = train_tokens
    settings["write"] |= {"limit": None, "chunk_characters": 2000}
    recipe = Recipe.model_validate(settings)
    tokenizer = open_tokenizer(tmp_path / "teacher")
    taken = build_corpus(recipe.corpus, tokenizer, 0, Progress(quiet=True)).ledger["sources"][0]["kept"]["train"]
    assert 0 < taken <= 20 if train_tokens else taken > 40
    most = bound(recipe)
    # As many chunks as documents, however short they are.
    assert (most.chunks, most.texts, most.tokens_out) == (taken, 3 * taken, 3 * taken * 256)
    made = run(recipe, tmp_path, quiet=True, until="write")
    record = files.read_json(made.path / "write" / "written.json")
    assert record["chunks"] == record["documents"] == taken
    assert record["passed_over"].get("documents beyond `corpus.train_tokens`", 0) > 0 or train_tokens is None
    lines = [json.loads(line) for line in (made.path / "spending-writer.jsonl").read_text().splitlines()]
    sent = [line["in"] for line in lines if line["state"] == "sent"]
    assert len(sent) <= most.texts
    # The cap reserves a token per byte, too.
    assert sum(sent) <= most.tokens_in <= most.texts * (max(sent) + 256)


def test_half_a_character_is_left_out_of_what_is_written_and_of_what_is_kept(tmp_path: Path) -> None:
    class Half:
        identity: ClassVar[dict[str, Any]] = {"model": "m"}
        asked = 0

        def write(self, asks: Any, known: Any, keep: Any) -> Iterator[Ask]:
            for ask in asks:
                if not known(ask.key):
                    Half.asked += 1
                    half = "" if ask.prompt.startswith("Rewrite") else " \ud83d"
                    keep(ask, Text(f"{GOOD}{half}", ended=True))
                    yield ask

    config = WriteConfig()
    for _ in range(2):
        filters = Filters([], 0.5, 0.3)
        journal = Journal(tmp_path / "texts.jsonl", {"d"})
        rows = _write(config, Half(), [Chunk("d", 0, CHUNK)], journal, filters, Progress(quiet=True))
        assert [row["form"] for row in rows] == ["rephrase"]
        assert filters.counts == {"has half a character": 1, "kept": 1}
        assert Half.asked == 2


def test_another_tokenizer_of_the_recipes_own_teacher_has_the_text_filtered_again(
    small_recipe: Any, tmp_path: Path
) -> None:
    spec = next(spec for spec in STAGES if spec.name == "write")
    for name in ("first", "second", "writer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"of": name}))
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(save({"weight": np.full(1, len(name), np.float32)}))
    settings = small_recipe(
        tmp_path / "first",
        write={"by": "writer"},
        teachers={"writer": {"kind": "huggingface", "name": str(tmp_path / "writer")}},
    )

    def inputs(name: str, **held: str) -> dict[str, str]:
        settings["teacher"]["name"] = str(tmp_path / name)
        made = Run(tmp_path / "runs" / "small", Recipe.model_validate(settings))
        if held:
            made.stage("write").path.mkdir(parents=True, exist_ok=True)
            record = {"format": 1, "inputs": held, "outputs": {}, "sections": {}}
            files.write_json(made.stage("write").path / "stage.json", record | {"digest": files.digest_json(record)})
            assert made.stage("write").record is not None
        return inputs_of(made, spec)

    first, second = inputs("first"), inputs("second")
    assert {key for key in first if first[key] != second[key]} == {"teacher.tokenizer"}
    # Weights do not count; and what was finished before this was looked at stays finished.
    (tmp_path / "first" / "model.safetensors").write_bytes(save({"weight": np.zeros(3, np.float32)}))
    assert inputs("first") == first
    before = {key: value for key, value in first.items() if key != "teacher.tokenizer"}
    assert inputs("second", **before) == before
    assert inputs("second", **first) == second


def test_the_cap_holds(settings: dict[str, Any], chat: Any, tmp_path: Path) -> None:
    settings["teachers"]["writer"]["price"] = {"input": 1, "output": 2, "cap": 0.002}
    with pytest.raises(TeacherError, match="spend cap is reached"):
        run(Recipe.model_validate(settings), tmp_path, quiet=True, until="write")
    assert Ledger(tmp_path / "small" / "spending-writer.jsonl", Price(1, 2, 0.002)).spent <= 0.002


def test_a_writer_that_only_thought_is_paid_once_and_left_out(
    settings: dict[str, Any], chat: Any, tmp_path: Path
) -> None:
    chat.thinks = True
    settings["write"] |= {"forms": ["rephrase"], "limit": 3}
    for _ in range(2):
        with pytest.raises(CorpusError, match=r"Nothing of what was written is kept: .*: 3"):
            run(Recipe.model_validate(settings), tmp_path, quiet=True, until="write")
    assert len(chat.asked) == 3


def test_a_key_that_is_not_set_is_told_before_anything_is_read(
    settings: dict[str, Any], chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WRITER_KEY", raising=False)
    settings["teachers"]["writer"]["key_env"] = "WRITER_KEY"
    with pytest.raises(TeacherError, match="`WRITER_KEY`, which has the endpoint's key, is not set"):
        run(Recipe.model_validate(settings), tmp_path, quiet=True)
    assert not (tmp_path / "small").exists()
    monkeypatch.setenv("WRITER_KEY", "key-of-the-writer")
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True, until="corpus")
    count = len(chat.asked)
    assert count > 0
    # What is finished needs no key.
    monkeypatch.delenv("WRITER_KEY")
    run(Recipe.model_validate(settings), tmp_path, quiet=True, until="corpus")
    assert len(chat.asked) == count
    assert made.path.is_dir()


def test_a_chat_endpoint_cannot_be_learned_from(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["corpus"]["sources"][0]["teacher"] = "writer"
    with pytest.raises(RecipeError, match=r"`teachers.writer` is learned from"):
        make_plan(Recipe.model_validate(settings), tmp_path)
    settings["write"]["by"] = "nobody"
    with pytest.raises(RecipeError, match=r"`write\.by` names 'nobody'"):
        recipe_of(settings)


def test_a_writer_that_babbles_is_named(small_recipe: Any, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "teacher", layers=3, hidden=32)
    settings = small_recipe(folder, write={"forms": ["rephrase"], "limit": 2, "chunk_characters": 300, "max_tokens": 8})
    with pytest.raises(CorpusError, match="Nothing of what was written is kept"):
        run(Recipe.model_validate(settings), tmp_path, quiet=True, until="write")


def test_texts_of_a_writer_with_another_template_are_written_again(small_recipe: Any, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "teacher", layers=3, hidden=32)
    settings = small_recipe(folder, write={"forms": ["rephrase"], "limit": 2, "chunk_characters": 300, "max_tokens": 8})
    kept = tmp_path / "small" / "write" / "texts" / "texts.jsonl"
    counts = []
    for template in ("{{ messages[0].content }}", "{{ messages[0].content }}", "Q: {{ messages[0].content }} A:"):
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(CorpusError, match="Nothing of what was written is kept"):
            run(Recipe.model_validate(settings), tmp_path, quiet=True, until="write")
        counts.append(len(kept.read_text().splitlines()))
    assert counts == [2, 2, 4]


def test_what_is_under_way_when_the_work_is_ended_is_kept() -> None:
    """Whatever ends it: it is paid for."""
    under_way = threading.Barrier(3)

    class Slow:
        base_url = "http://127.0.0.1"

        def post(self, _path: str, body: dict[str, Any], *_: Any) -> dict[str, Any]:
            under_way.wait(timeout=30)
            return {"choices": [{"message": {"content": body["messages"][0]["content"]}, "finish_reason": "stop"}]}

    config = EndpointTeacher(
        base_url="http://127.0.0.1", model="m", tokenizer="t", server="chat", concurrency=3, sends_text=True
    )
    writer = ChatWriter(cast(Any, Slow()), config, 8, 0.0, 0)
    asks = [Ask(str(number), f"say {number}") for number in range(9)]
    kept: dict[str, Text] = {}
    with pytest.raises(KeyboardInterrupt):
        for _ in writer.write(asks, lambda _: False, lambda ask, text: kept.update({ask.key: text})):
            raise KeyboardInterrupt
    assert set(kept) == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("answer", "ended", "warned"),
    [
        ({"usage": {"completion_tokens": 7}}, True, False),
        ({"usage": {"completion_tokens": 8}}, False, False),
        ({}, True, True),
    ],
)
def test_a_text_without_the_reason_of_its_end(
    answer: dict[str, Any], ended: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent:
        base_url = "http://127.0.0.1"

        def post(self, *_: Any) -> dict[str, Any]:
            return {"choices": [{"message": {"content": GOOD}}]} | answer

    config = EndpointTeacher(base_url="http://127.0.0.1", model="m", tokenizer="t", server="chat", sends_text=True)
    writer = ChatWriter(cast(Any, Silent()), config, 8, 0.0, 0)
    kept: list[Text] = []
    asks = [Ask(str(number), f"say {number}") for number in range(3)]
    assert len(list(writer.write(asks, lambda _: False, lambda _, text: kept.append(text)))) == 3
    assert [text.ended for text in kept] == [ended] * 3
    assert len(caplog.records) == (1 if warned else 0)


def test_what_was_written_about_a_withdrawn_document_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    journal = Journal(path, {"a", "b"})
    journal.add(Ask("1", "p", "a"), Text("about a", ended=True))
    journal.add(Ask("2", "p", "b"), Text("about b", ended=False))
    with path.open("ab") as file:
        file.write(b'{"key": "3", "document": "a", "te')
    assert Journal(path, {"a", "b"}).texts == journal.texts
    # Where a source has a limit, the document may come back with another one, and what was paid for is kept.
    assert set(Journal(path, {"a"}, whole=False).texts) == {"1"}
    assert Journal(path, {"a", "b"}).texts == journal.texts
    assert set(Journal(path, {"a"}).texts) == {"1"}
    assert b"about b" not in path.read_bytes()


def test_the_same_question_is_not_asked_for_twice(small_recipe: Any) -> None:
    with pytest.raises(RecipeError, match="per_chunk: 1"):
        recipe_of(small_recipe("teacher", write={"temperature": 0, "per_chunk": 2}))
    assert recipe_of(small_recipe("teacher", write={"temperature": 0, "per_chunk": 3, "forms": ["rephrase"]})).write

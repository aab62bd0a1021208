"""The stage `write`: a teacher writes about the training documents, before the corpus is built.

Documents are split first, by the rule of the corpus: nothing is written about validation and held-out documents, and what
nearly repeats them is left out. What was written is kept as it comes, so that a kill loses the texts under way and no more.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.errors import CorpusError
from stillroom.core.progress import Progress
from stillroom.corpus.store import DocumentStore
from stillroom.models.compute import choose_dtype, prepare
from stillroom.models.load import teacher_identity
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.recipe.write import WriteConfig
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import TEXTS, WRITTEN, WRITTEN_RECORD
from stillroom.teachers.endpoint import ledger
from stillroom.teachers.endpoint.http import Client, Slots
from stillroom.teachers.endpoint.ledger import Ledger, Price
from stillroom.teachers.endpoint.stage import named, spent_before
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import weights_of
from stillroom.teachers.write import material
from stillroom.teachers.write.filters import REASONS, Filters
from stillroom.teachers.write.prompts import ANSWER, OPEN_BOOK, QUESTION, REPHRASE, Chunk
from stillroom.teachers.write.writers import Ask, ChatWriter, LocalWriter, Text, Writer

KEPT = "texts.jsonl"
"""In the folder that is kept when the stage is done again: every text as it came, by its key."""


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Write what is not written yet, filter it, and keep it for the corpus."""
    recipe = run.recipe
    config = recipe.write
    assert config is not None
    who = recipe.every_teacher[config.by]
    with DocumentStore(stage.path) as store:
        train, kept_out = material.documents(recipe, store)
        everything = all(source.limit is None for source in recipe.corpus.sources)
        journal = Journal(stage.path / TEXTS / KEPT, {digest for digest, _ in train}, whole=everything)
        counts: Counter[str] = Counter()
        control = material.spellings(recipe, who)
        found = list(material.chunks(recipe, train, store, control, counts))
        chunks = [found[number] for number in material.chosen(len(found), config.limit)]
        passed_over = [f"{what}: {count:,}" for what, count in counts.most_common()]
        if not chunks:
            raise CorpusError(
                f"There is nothing to write about in {len(train):,} training documents ({'; '.join(passed_over)}).",
                "Add documents of plain text, or leave `write` out.",
            )
        progress.say(f"  {len(chunks):,} chunks of {len(train):,} training documents")
        for words in passed_over:
            progress.say(f"    passed over: {words}")
        filters = Filters((store.get(number) for number in kept_out), config.distinct, config.support, control)
        if isinstance(who, EndpointConfig):
            price = Price(who.price.input, who.price.output, who.price.cap)
            client = Client(
                base_url=who.base_url,
                key_env=who.key_env,
                ledger=Ledger(run.path / named(ledger.NAME, config.by), price, spent_before(run)),
                timeout=who.timeout_seconds,
                attempts=who.attempts,
                slots=Slots(who.concurrency),
            )
            try:
                writer: Writer = ChatWriter(client, who, config.max_tokens, config.temperature, recipe.public_seed)
                rows = _write(config, writer, chunks, journal, filters, progress)
                client.ledger.settle()
            finally:
                client.close()
            record: dict[str, Any] = {
                "name": who.model,
                "served_by": who.service or "a server of one's own",
                "claim": "the endpoint's",
                "licence": who.licence,
                "spent": {**vars(client.ledger.totals)},
            }
        else:
            progress.say("  loading the writer")
            device = prepare(recipe.compute, recipe.public_seed)
            # Written token by token: layers that are carried over for each would take hours.
            teacher = open_teacher(who, device, choose_dtype(who.dtype, device.type), "device")
            loaded = weights_of(teacher, "The stage `write`")
            made_of = [teacher_identity(who, run.known.digest), dict(teacher.identity), str(loaded.model.dtype)]
            digest = files.digest_json(made_of)
            writer = LocalWriter(loaded, digest, config.max_tokens, config.temperature, recipe.public_seed)
            rows = _write(config, writer, chunks, journal, filters, progress)
            record = teacher.record()
    files.write_text(stage.path / WRITTEN, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    forms = Counter(row["form"] for row in rows)
    left_out = {reason: filters.counts[reason] for reason in REASONS}
    stage.result = files.digest_json(rows)
    written = {
        "writer": {"called": config.by, **record},
        "chunks": len(chunks),
        "documents": len({chunk.document for chunk in chunks}),
        "written": sum(filters.counts.values()),
        "kept": filters.counts["kept"],
        "rows": len(rows),
        "forms": dict(sorted(forms.items())),
        "left_out": left_out,
        "passed_over": dict(counts.most_common()),
        "settings": config.model_dump(mode="json"),
    }
    files.write_json(stage.path / WRITTEN_RECORD, written)
    stage.notes.update({key: written[key] for key in ("chunks", "written", "kept", "rows", "forms", "left_out")})
    progress.say(f"  kept {written['kept']:,} of {written['written']:,} texts, {len(rows):,} rows to learn from")
    for reason, count in left_out.items():
        if count:
            progress.say(f"    left out: {reason}: {count:,}")
    if not rows:
        raise CorpusError(
            "Nothing of what was written is kept: " + ", ".join(f"{k}: {v:,}" for k, v in left_out.items() if v),
            "Use a stronger writer (`write.by`), or leave `write` out.",
        )


class Journal:
    """Texts as they came, by their keys; a kill can only cut off the last line.

    Args:
        path: The file.
        documents: Digests of the documents that may be written about. What was written about others is not used.
        whole: These are all that the sources have, so that what was written about others is removed: their text was withdrawn,
            or is no training text any more. Where a source has a limit, others may come back with another limit.
    """

    def __init__(self, path: Path, documents: Container[str], *, whole: bool = True) -> None:
        self.path = path
        self.texts: dict[str, Text] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        data = path.read_bytes() if path.is_file() else b""
        for line in data.split(b"\n"):
            try:
                entry = json.loads(line)
                key, document, text = (
                    str(entry["key"]),
                    entry["document"],
                    Text(str(entry["text"]), bool(entry["ended"])),
                )
            except (ValueError, KeyError, TypeError):
                continue
            if document in documents:
                self.texts[key] = text
            elif whole:
                continue
            kept.append(line + b"\n")
        if data != b"".join(kept):
            files.write_bytes(path, b"".join(kept))

    def add(self, ask: Ask, text: Text) -> None:
        """Keep a text. Safe for threads."""
        entry = {"key": ask.key, "document": ask.document, "text": text.text, "ended": text.ended}
        with self._lock:
            if ask.key not in self.texts:
                files.append(self.path, (json.dumps(entry) + "\n").encode())
                self.texts[ask.key] = text


def _write(
    config: WriteConfig,
    writer: Writer,
    chunks: list[Chunk],
    journal: Journal,
    filters: Filters,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Everything that is kept, as rows of the corpus."""
    identity = writer.identity

    def ask(chunk: Chunk, prompt: str, draw: int) -> Ask:
        return Ask(files.digest_json([identity, prompt, draw]), prompt, chunk.document)

    def write(wanted: list[Ask], what: str) -> list[Text]:
        # Two documents may share a chunk: what is asked about it is the same, and asked for once.
        asks = list({item.key: item for item in wanted}.values())
        before = sum(item.key in journal.texts for item in asks)
        if before:
            progress.say(
                f"  {before:,} of {len(asks):,} {what} were written before: nothing is written or paid for twice"
            )
        with progress.task(what, total=len(asks), unit="texts") as task:
            task.skip(before)
            for _written in writer.write(asks, set(journal.texts).__contains__, journal.add):
                task.advance(1)
        return [journal.texts[item.key] for item in wanted]

    draws = [(chunk, draw) for chunk in chunks for draw in range(config.per_chunk)]
    rows: list[dict[str, Any]] = []

    def kept(text: Text, chunk: Chunk, *, answer: bool = False) -> bool:
        return filters.reason(text.text, chunk.text, ended=text.ended, answer=answer) is None

    if {"question_answer", "open_book"} & set(config.forms):
        asked = write([ask(chunk, QUESTION.format(chunk=chunk.text), draw) for chunk, draw in draws], "questions")
        good = [
            (chunk, draw, question.text.strip())
            for (chunk, draw), question in zip(draws, asked, strict=True)
            if kept(question, chunk)
        ]
        prompts = [
            ask(chunk, ANSWER.format(chunk=chunk.text, question=question), draw) for chunk, draw, question in good
        ]
        for (chunk, _, question), answer in zip(good, write(prompts, "answers"), strict=True):
            if not kept(answer, chunk, answer=True):
                continue
            shown = {
                "question_answer": question,
                "open_book": OPEN_BOOK.format(chunk=chunk.text, question=question),
            }
            for form in ("question_answer", "open_book"):
                if form in config.forms:
                    messages = [
                        {"role": "user", "content": shown[form]},
                        {"role": "assistant", "content": answer.text.strip()},
                    ]
                    rows.append({"messages": messages, "form": form, "document": chunk.document, "chunk": chunk.number})
    if "rephrase" in config.forms:
        asks = [ask(chunk, REPHRASE[draw % len(REPHRASE)].format(chunk=chunk.text), draw) for chunk, draw in draws]
        for (chunk, _), text in zip(draws, write(asks, "rephrasings"), strict=True):
            if kept(text, chunk):
                rows.append(
                    {"text": text.text.strip(), "form": "rephrase", "document": chunk.document, "chunk": chunk.number}
                )
    return rows

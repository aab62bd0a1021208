"""Text that the teacher writes, against the same number of repeated tokens of the original text.

    .venv/bin/python -m benchmarks.written [--quick] [--json FILE] [--work FOLDER]

An owner has a few documents: docstrings of Python's standard library. SmolLM2-135M-Instruct writes questions, answers and
rephrasings about the training documents (the stage `write` of a recipe). The same student (8 of its 30 layers, chosen and
repaired as the stage `shrink` does it, its vocabulary trimmed to all texts here) then learns from the teacher's whole
distributions: on the original text again and again, or on the original and the written text. Both ways learn equally many
tokens on the same schedule, with three seeds of order. The text is written once.

Each figure is the trained-on-written student over the trained-on-repeated one, mean over seeds:

- ``answers_bits_over_repeated``: bits per byte on answers that the teacher wrote about *other* documents of the same source,
  without the document in sight. Bar: 0.95. They are in the written text's own style, which favours it.
- ``original_bits_over_repeated``, ``original_kl_over_repeated``: bits per byte of held-out documents, and KL to the teacher
  on them. Bar: 1.02.
- ``planted_caught``: share of planted texts (near-duplicates of held-out and of written text, refusals, repetitions,
  another script, answers that their chunk does not support, texts that did not end) that the filters leave out for the
  right reason, and ``planted_passed`` of harmless ones that they keep. Bar: 1, both.
- ``written_kept``: share of written texts that the filters keep.

Details have the paired interval over held-out documents (seeds averaged document by document) and over seeds. ``--work``
names a folder that keeps what was written and every finished training. ``--quick`` takes fewer documents and tokens; it
has every figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import material, quality, report
from stillroom.core import files
from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.near_duplicates import text_of
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.corpus.sources import read_source
from stillroom.corpus.split import split_of
from stillroom.evaluation.intervals import ratio
from stillroom.models.load import LoadedTeacher
from stillroom.pipeline import run
from stillroom.recipe.corpus import CorpusConfig, JsonlSource, PythonDocsSource
from stillroom.recipe.recipe import Recipe
from stillroom.runs.stages import WRITTEN_RECORD
from stillroom.signals.batches import Batch, BatchSource
from stillroom.signals.signal import DenseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.write.filters import REASONS, Filters
from stillroom.teachers.write.prompts import ANSWER, QUESTION, Chunk, chunks_of
from stillroom.teachers.write.writers import Ask, LocalWriter
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.schedule import batch_order

WAYS = ("repeated", "written")
LN2 = math.log(2)
ANSWERS_BAR, ORIGINAL_BAR = 0.95, 1.02
OWN = {"kind": "own", "decided_by": "the benchmark", "decided_at": "2026-11-27T00:00:00Z", "subject": "teacher"}
HELDOUT_SHARE = 0.4
SHORTEST, LONGEST = 300, 2400
"""Characters of a document."""
DISTINCT, SUPPORT = 0.5, 0.3
"""The recipe's defaults, for what is written about held-out documents as well."""
LONG = 100
"""Words of a text that is planted again with one word changed: its similarity is 0.9 and more."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        documents: Of the owner.
        chunks: That are written about.
        heldout_chunks: Documents after the owner's, of which the first chunk is written about to ask the students.
        per_chunk: Texts of each form.
        max_tokens: Of a written text.
        learned: Tokens that a training learns.
        layers: Of the student.
    """

    documents: int
    chunks: int
    heldout_chunks: int
    per_chunk: int
    max_tokens: int
    learned: int
    layers: int = quality.LAYERS


WHOLE = Size(160, 96, 240, 2, 160, 49_152)
QUICK = Size(40, 24, 64, 1, 96, 8192)


def owned(size: Size, folder: Path) -> Path:
    """The owner's documents, as JSON Lines."""
    path = folder / f"owner-{size.documents}.jsonl"
    files.write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in docstrings(0, size.documents)))
    return path


def docstrings(start: int, stop: int) -> list[str]:
    """Different texts of the source, of those that are neither short nor long."""
    found = read_source(PythonDocsSource(parts=("docstrings",)))
    chosen = dict.fromkeys(document.text for document in found if SHORTEST <= len(document.text) <= LONGEST)
    return [*chosen][start:stop]


def recipe(size: Size, folder: Path, *, written: bool) -> Recipe:
    """The owner's recipe, with or without text that the teacher writes."""
    values: dict[str, Any] = {
        "name": "written" if written else "original",
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {
            "sources": [{"kind": "jsonl", "path": str(owned(size, folder)), "text_key": "text", "licence": "PSF-2.0"}],
            "sequence_length": quality.LENGTH,
            "heldout_share": HELDOUT_SHARE,
        },
        "teacher": material.TEACHER.model_dump(mode="json"),
        "student": {"kind": "shrink", "layers": size.layers},
        "terms": {"decisions": [OWN]},
    }
    if written:
        values["write"] = {
            "per_chunk": size.per_chunk,
            "chunk_characters": 1000,
            "limit": size.chunks,
            "max_tokens": size.max_tokens,
            "distinct": DISTINCT,
            "support": SUPPORT,
        }
    return Recipe.model_validate(values)


def split(folder: Path, name: str) -> Sequences:
    """One split of a run's corpus, with one address for each sequence."""
    return dataclasses.replace(Sequences.load(folder / "corpus" / f"{name}.safetensors"), by_piece=False)


def heldout_answers(loaded: LoadedTeacher, size: Size, folder: Path) -> tuple[Sequences, dict[str, int]]:
    """Questions and answers about documents that the owner does not have, and the filters' counts.

    They are written and filtered as the stage does it.
    """
    file = folder / "heldout.jsonl"
    counts = folder / "heldout-counts.json"
    if not counts.is_file():
        others = docstrings(size.documents, size.documents + size.heldout_chunks)
        chunks = [next(iter(chunks_of(files.digest_json(text), text, 1000))) for text in others]
        writer = LocalWriter(loaded, "the benchmark's", size.max_tokens, 0.7, 1)
        filters = Filters((), DISTINCT, SUPPORT)

        def write(prompts: list[str]) -> list[Any]:
            asks = [Ask(files.digest_json([writer.identity, prompt]), prompt) for prompt in prompts]
            found: dict[str, Any] = {}
            for _ in writer.write(asks, lambda _: False, lambda ask, text: found.update({ask.key: text})):
                pass
            return [found[ask.key] for ask in asks]

        def kept(text: Any, chunk: Chunk, *, answer: bool) -> bool:
            return filters.reason(text.text, chunk.text, ended=text.ended, answer=answer) is None

        asked = write([QUESTION.format(chunk=chunk.text) for chunk in chunks])
        pairs = [
            (chunk, said.text.strip())
            for chunk, said in zip(chunks, asked, strict=True)
            if kept(said, chunk, answer=False)
        ]
        answers = write([ANSWER.format(chunk=chunk.text, question=question) for chunk, question in pairs])
        rows = [
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer.text.strip()},
                ]
            }
            for (chunk, question), answer in zip(pairs, answers, strict=True)
            if kept(answer, chunk, answer=True)
        ]
        files.write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        files.write_json(counts, dict(filters.counts))
    # A corpus has three splits; here all of them are what is held out.
    config = CorpusConfig(sources=(JsonlSource(path=file),), sequence_length=quality.LENGTH, heldout_share=0.49)
    splits = build_corpus(config, loaded.tokenizer, 0, Progress(quiet=True)).splits
    return joined([dataclasses.replace(part, by_piece=False) for part in splits.values()]), files.read_json(counts)


def joined(parts: list[Sequences]) -> Sequences:
    """Splits as one, with documents numbered on."""
    moved, before = [], 0
    for part in parts:
        moved.append(torch.where(part.documents >= 0, part.documents + before, part.documents))
        before += len(part.document_sources)
    repeated = [
        part.repeated if part.repeated is not None else torch.zeros_like(part.segments, dtype=torch.bool)
        for part in parts
    ]
    return Sequences(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.segments for part in parts]),
        torch.cat([part.loss_mask for part in parts]),
        torch.cat(moved),
        torch.cat([part.token_bytes for part in parts]),
        torch.cat([part.document_sources for part in parts]),
        torch.cat(repeated),
    )


def documents(size: Size, folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Digests and texts of the training documents, and of the held-out ones."""
    config = recipe(size, folder, written=False).corpus
    (source,) = config.sources
    found = {document.digest: text_of(document) for document in read_source(source)}
    sides = split_of(list(found), config.validation_share, config.heldout_share)
    train, heldout = (
        [(digest, found[digest]) for digest in found if sides[digest] == side] for side in ("train", "heldout")
    )
    return train, heldout


def planted(folder: Path) -> tuple[float, float, dict[str, Any]]:
    """Share of planted texts that are left out for the right reason, of harmless ones that are kept, and what went wrong."""
    train, heldout = documents(WHOLE, folder)
    filters = Filters((doc for doc in _texts(text for _, text in heldout)), DISTINCT, SUPPORT)
    wrong: dict[str, str] = {}
    caught = passed = tried = harmless = 0

    def says(name: str, text: str, chunk: str, wanted: str | None, *, ended: bool = True, answer: bool = False) -> bool:
        reason = filters.reason(text, chunk, ended=ended, answer=answer)
        if reason != wanted:
            wrong[name] = f"{reason}, not {wanted}"
        return reason == wanted

    long = [text for _, text in train if len(text.split()) >= LONG][:20]
    for number, text in enumerate(long):
        words = text.split()
        harmless += 1
        # What stands in no document: the words in another order.
        order = np.random.default_rng(number).permutation(len(words))
        shuffled = " ".join(words[place] for place in order)
        passed += says(f"harmless {number}", shuffled, text, None)
        near = [*shuffled.split()]
        near[len(near) // 2] = "otherwise"
        for name, said, wanted, more in (
            ("written again", " ".join(near), REASONS[5], {}),
            ("refusal", f"I'm sorry, but I cannot help with that. ({number} {words[0]})", REASONS[6], {}),
            ("repetition", " ".join([f"{words[1]} {number} and on it goes"] * 12), REASONS[3], {}),
            ("another script", "Это совсем другой язык, и другая письменность, номер " + str(number), REASONS[2], {}),
            (
                "unsupported",
                f"Napoleon crossed icy rivers during winter campaigns, battalion {9000 + number}",
                REASONS[7],
                {"answer": True},
            ),
            ("not ended", f"{shuffled[: len(shuffled) // 2]}", REASONS[1], {"ended": False}),
        ):
            tried += 1
            caught += says(f"{name} {number}", said, text, wanted, **more)
    for number, (_, text) in enumerate(heldout):
        words = text.split()
        if len(words) < LONG:
            continue
        words[len(words) // 2] = "otherwise"
        said = " ".join(words)
        # Some docstrings repeat themselves by their nature, and are left out for that already.
        tried += 1
        reason = filters.reason(said, text, ended=True, answer=False)
        right = reason in (REASONS[3], REASONS[4])
        caught += right
        if not right:
            wrong[f"held-out {number}"] = str(reason)
    return caught / tried, passed / harmless, {"planted": tried, "harmless": harmless, "wrong": wrong}


def _texts(texts: Any) -> Any:
    from stillroom.corpus.documents import Document

    return (Document(text=text) for text in texts)


def learning_order(text: Sequences, learned: int, seed: int) -> list[list[int]]:
    """Batches of sequences, pass after pass, until so many tokens are learned, but for half a sequence's at most."""
    targets = (text.targets != IGNORED).sum(1).tolist()
    passes = learned // max(1, sum(targets)) + 2
    order: list[list[int]] = []
    done = 0
    for batch in batch_order(len(text), quality.BATCH, passes, seed):
        taken = []
        for row in batch:
            if done + targets[row] / 2 > learned:
                break
            taken.append(row)
            done += targets[row]
        if taken:
            order.append(taken)
        if len(taken) < len(batch):
            break
    return order


@torch.no_grad()
def by_document(network: LossNetwork, text: Sequences, dense: list[torch.Tensor] | None) -> dict[str, list[float]]:
    """Sums over each document: ``nats`` of its text, ``bytes``, ``kl`` to the teacher (with its signals), and ``positions``."""
    count = len(text.document_sources)
    sums = {name: np.zeros(count) for name in ("nats", "bytes", "kl", "positions")}
    vocabulary = VocabularyMap.identity(int(network.worker.get_output_embeddings().weight.shape[0]))
    source = BatchSource(text, vocabulary, None)
    used = vocabulary.student_used
    for row in range(len(text)):
        chosen = text.targets[row] != IGNORED
        places = text.documents[row][chosen].numpy()
        batch = source.batch([row])
        if dense is None:
            loss = network(batch, FusedLoss(None, used=used), 1.0)
        else:
            signal = DenseSignal(dense[row])
            spoken = Batch(batch.ids, batch.positions, batch.rows, batch.targets, signal)
            loss = network(spoken, FusedLoss(make_objective("forward_kl"), used=used), 1.0)
            np.add.at(sums["kl"], places, loss.distances.double().numpy())
        np.add.at(sums["nats"], places, loss.cross_entropies.double().numpy())
        np.add.at(sums["bytes"], places, text.target_bytes[row][chosen].double().numpy())
        np.add.at(sums["positions"], places, 1.0)
    return {name: values.tolist() for name, values in sums.items()}


def compared(runs: dict[str, list[dict[str, list[float]]]], value: str, weight: str) -> dict[str, Any]:
    """The written way over the repeated one, by seeds and by documents."""
    totals = {way: [sum(one[value]) / sum(one[weight]) for one in seeds] for way, seeds in runs.items()}
    ratios = [new / old for new, old in zip(totals["written"], totals["repeated"], strict=True)]
    mean = {way: np.mean([one[value] for one in seeds], axis=0) for way, seeds in runs.items()}
    return {
        "ratio": statistics.mean(ratios),
        "ratios": ratios,
        "interval_over_seeds": report.interval(ratios),
        "over_documents": ratio(mean["written"], mean["repeated"], 0.95).as_dict(),
        "per_way": totals,
    }


def main() -> None:
    """Write, train both ways, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else WHOLE
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kept = report.Kept(folder / "cells.json", dataclasses.asdict(size) | {"dtype": str(material.fastest())})
        write_up(size, folder, kept, arguments.json)


def write_up(size: Size, folder: Path, kept: report.Kept, path: Path | None) -> None:
    """All parts, and the result."""
    made = {
        way: run(recipe(size, folder, written=way == "written"), folder, quiet=True, until="corpus").path
        for way in WAYS
    }
    text = {way: split(made[way], "train") for way in WAYS}
    heldout = split(made["repeated"], "heldout")
    loaded = material.teacher()
    answers, heldout_counts = heldout_answers(loaded, size, folder)
    names = [f"{way}/{seed}" for seed in quality.SEEDS for way in WAYS]
    if any(name not in kept.cells for name in [*names, "start/0"]):
        sets = (text["repeated"], text["written"], heldout, answers)
        start, to_student = quality.repaired_start(loaded, size.layers, *sets)
        dense = {way: quality.dense_signals(loaded, text[way], to_student) for way in WAYS}
        dense_heldout = quality.dense_signals(loaded, heldout, to_student)
        mine = {way: material.renumbered(text[way], to_student) for way in WAYS}
        measured = {
            "original": material.renumbered(heldout, to_student),
            "answers": material.renumbered(answers, to_student),
        }
        vocabulary = VocabularyMap.identity(to_student.student_size)

        def cell(name: str) -> dict[str, Any]:
            way, seed = name.split("/")
            network, learned = LossNetwork(start, material.fastest()), 0
            if way != "start":
                order = learning_order(mine[way], size.learned, int(seed))
                learned = sum(int((mine[way].targets[rows] != IGNORED).sum()) for rows in order)
                taught: Any = [DenseSignal(logprobs) for logprobs in dense[way]]
                network = quality.train(start, mine[way], vocabulary, quality.always(taught), int(seed), order=order)
            return {
                "learned": learned,
                "original": by_document(network, measured["original"], dense_heldout),
                "answers": by_document(network, measured["answers"], None),
            }

        for name in ["start/0", *names]:
            kept.cell(name, functools.partial(cell, name))
    caught, passed, wrong = planted(folder)
    written = files.read_json(made["written"] / "write" / WRITTEN_RECORD)

    def of(part: str, value: str, weight: str) -> dict[str, Any]:
        runs = {way: [kept.cells[f"{way}/{seed}"][part] for seed in quality.SEEDS] for way in WAYS}
        found = compared(runs, value, weight)
        start = kept.cells["start/0"][part]
        return found | {"start": sum(start[value]) / sum(start[weight])}

    answers_bits = in_bits(of("answers", "nats", "bytes"))
    original_bits = in_bits(of("original", "nats", "bytes"))
    original_kl = of("original", "kl", "positions")
    figures = {
        "answers_bits_over_repeated": answers_bits["ratio"],
        "original_bits_over_repeated": original_bits["ratio"],
        "original_kl_over_repeated": original_kl["ratio"],
        "planted_caught": caught,
        "planted_passed": passed,
        "written_kept": written["kept"] / written["written"],
    }
    details = {
        "bars": {"answers_bits_over_repeated": ANSWERS_BAR, "original_over_repeated": ORIGINAL_BAR, "planted": 1.0},
        "reached": answers_bits["ratio"] <= ANSWERS_BAR
        and max(original_bits["ratio"], original_kl["ratio"]) <= ORIGINAL_BAR
        and caught == passed == 1.0,
        "answers_bits": answers_bits,
        "original_bits": original_bits,
        "original_kl": original_kl,
        "learned": {name: kept.cells[name]["learned"] for name in names},
        "distinct_learned": {way: int((text[way].targets != IGNORED).sum()) for way in WAYS},
        "written": {
            key: written[key] for key in ("chunks", "documents", "written", "kept", "rows", "forms", "left_out")
        },
        "heldout_answers": heldout_counts,
        "planted": wrong,
        "size": dataclasses.asdict(size),
    }
    report.write(figures, details, path)


def in_bits(found: dict[str, Any]) -> dict[str, Any]:
    """Values of each way in bits instead of nats; quotients stay."""
    bits = {way: [value / LN2 for value in values] for way, values in found["per_way"].items()}
    return found | {"per_way": bits, "start": found["start"] / LN2}


if __name__ == "__main__":
    main()

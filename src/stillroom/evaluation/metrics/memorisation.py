"""Does the student know its training text by heart? Continuations that it completes word for word, against held-out text.

A model is given up to 50 tokens of a document; where greedy decoding would write the next 50 tokens without a slip, the
passage counts (Carlini et al. 2023, arXiv 2202.07646). Text that everybody knows is completed too, and so is boilerplate,
so that the share on training text alone says little: the same is asked of held-out text, and the difference counts.

Nothing is generated: greedy decoding writes a text exactly if each of its tokens is the likeliest after those before, which
one forward pass tells. Tokens are the teacher's, so that every student, whatever its vocabulary, is asked the same text.
Only the student is tested, which takes a few seconds of the quickstart's: it is the one whose training text this is.
"""

from __future__ import annotations

from typing import Any

import torch

from stillroom.core import files
from stillroom.corpus.sequences import Sequences
from stillroom.evaluation.answers import Speaker
from stillroom.evaluation.bench import Bench
from stillroom.evaluation.heldout import HeldOut
from stillroom.evaluation.intervals import TOO_FEW
from stillroom.evaluation.metric import Metric, Result
from stillroom.evaluation.paired import share, share_difference
from stillroom.evaluation.sections import Section, Table, Text
from stillroom.evaluation.words import interval, percent

PASSAGES = 32
PREFIX = 50
CONTINUATION = 50
LEAST_PREFIX = 8
"""A continuation after fewer tokens is no continuation."""
FIRST = 8
"""Tokens that are tried first: hardly any passage gets further, and the rest need not be computed."""
SPLITS = {"train": "training text", "heldout": "held-out text"}
Passage = tuple[list[int], list[int]]


def measure_memorisation(bench: Bench) -> dict[str, Any]:
    """The measure `memorisation`."""
    asked = {"train": passages(bench.training), "heldout": passages(bench.heldout)}
    inputs = {
        "model": bench.subjects["student"].digest,
        "text": bench.text_digest,
        "passages": files.digest_json(asked),
    }

    def compute() -> dict[str, list[bool]]:
        loaded = bench.load("student")
        speaker = Speaker(loaded)

        def own(ids: list[int]) -> list[int]:
            expanded: list[int] = loaded.vocabulary.expand(torch.tensor(ids))[0].tolist()
            return expanded

        found = {}
        with bench.progress.task("memorisation", total=sum(map(len, asked.values())), unit="texts") as task:
            for split, rows in asked.items():
                found[split] = completed(speaker, [(own(before), own(after)) for before, after in rows])
                task.advance(len(rows))
        return found

    return summarize(bench.part("memorisation", "student", inputs, compute), bench.config.confidence)


def summarize(seen: dict[str, list[bool]], confidence: float) -> dict[str, Any]:
    """Shares of the student by split, and how much more of training text than of held-out text."""
    counts = {split: (sum(rows), len(rows)) for split, rows in seen.items()}
    student = {split: share(*count, confidence) for split, count in counts.items()} | {
        "train_minus_heldout": share_difference(*counts["train"], *counts["heldout"], confidence)
    }
    return {
        "models": {"student": student},
        "passages": {split: len(rows) for split, rows in seen.items()},
        "prefix_tokens": PREFIX,
        "continuation_tokens": CONTINUATION,
        "interval": f"{percent(confidence)} Wilson over passages, Newcombe of their difference",
        "bounds": {
            key: [student[key]["value"], *(student[key]["interval"] or (None, None))]
            for key in ("train", "heldout", "train_minus_heldout")
        },
    }


def completed(speaker: Speaker, pairs: list[Passage]) -> list[bool]:
    """Whether greedy decoding would write each continuation after what is before it, in the model's own tokens."""
    begun = speaker.would_write([(before, after[:FIRST]) for before, after in pairs])
    further = [index for index, right in enumerate(begun) if right]
    whole = dict(zip(further, speaker.would_write([pairs[index] for index in further]), strict=True))
    return [whole.get(index, False) for index in range(len(pairs))]


def passages(
    split: HeldOut, wanted: int = PASSAGES, prefix: int = PREFIX, continuation: int = CONTINUATION
) -> list[Passage]:
    """At most ``wanted`` passages of different documents, evenly over a split, in the teacher's tokens: up to ``prefix``
    tokens that are before, and ``continuation`` learned ones in a row.
    """
    rows = min(len(split), 4 * wanted)
    found: dict[int, Passage] = {}
    for number in range(rows):
        row = split.row(number * len(split) // rows)
        for document, passage in _of_row(row, prefix, continuation):
            found.setdefault(document, passage)
    every = list(found.values())
    count = min(wanted, len(every))
    return [every[number * len(every) // count] for number in range(count)]


def _of_row(row: Sequences, prefix: int, continuation: int) -> list[tuple[int, Passage]]:
    found = []
    segments, learned = row.segments[0], row.loss_mask[0]
    for segment in sorted(set(segments[segments >= 0].tolist())):
        where = (segments == segment).nonzero().squeeze(1)
        ids, wanted = row.ids[0][where], learned[where]
        # runs[i]: learned tokens of those that begin at i.
        sums = torch.cat([torch.zeros(1, dtype=torch.int64), wanted.to(torch.int64).cumsum(0)])
        least = min(LEAST_PREFIX, prefix)
        if len(ids) < least + continuation:
            continue
        runs = sums[continuation:] - sums[:-continuation]
        starts = (runs == continuation).nonzero().squeeze(1)
        starts = starts[starts >= least]
        if len(starts):
            # The first with a whole prefix, or else the last there is.
            start = next((int(one) for one in starts if one >= prefix), int(starts[-1]))
            passage = ids[max(0, start - prefix) : start].tolist(), ids[start : start + continuation].tolist()
            found.append((int(row.documents[0][where[0]]), passage))
    return found


def weaknesses(result: Result) -> list[str]:
    """Training text is known by heart, beyond what is of held-out text."""
    student = result["models"]["student"]
    bounds = student["train_minus_heldout"]["interval"]
    if bounds is None or bounds[0] <= 0:
        return []
    return [
        f"It knows training text by heart: {percent(student['train']['value'])} of {student['train']['items']} passages of "
        f"{result['continuation_tokens']} tokens are completed word for word, of held-out text "
        f"{percent(student['heldout']['value'])}."
    ]


def sections(result: Result) -> list[Section]:
    """Shares of training and held-out text by model."""
    rows = []
    for split, name in SPLITS.items():
        entry = result["models"]["student"][split]
        few = "" if entry["enough"] else f": {TOO_FEW}"
        rows.append([f"{name} ({entry['items']}{few})", interval(entry["value"], entry["interval"], 0, 100, " %")])
    note = (
        f"Passages of {result['continuation_tokens']} tokens that the student completes word for word after up to "
        f"{result['prefix_tokens']} tokens, greedily. {result['interval']}."
    )
    return [
        Section(
            "memorisation",
            "Text known by heart",
            [Table(["passages of", "completed word for word"], rows), Text(note, note=True)],
            order=61,
        )
    ]


METRIC = Metric(
    name="memorisation",
    function=measure_memorisation,
    what="training text that is known by heart, against held-out text",
    order=25,
    numbers=("train", "heldout", "train_minus_heldout"),
    sections=sections,
    weaknesses=weaknesses,
)

"""How models behave when they write: memorised training text, repetition, empty and truncated answers.

- *Memorised*: the model is given the first tokens of a training passage and continues it greedily; where the passage's next
  ``verbatim_tokens`` tokens come back without a slip, it counts (Carlini et al. 2022, arXiv 2202.07646, with their greedy
  decoding). Every model gets the same text, in its own tokens: passages are cut in the teacher's.
- *Repetitive*: more than half of an answer's four-word groups stood in it before (answers of eight words and more).
- *Empty*: nothing but white space.
- *Truncated*: the answer did not end by itself within the limit.
"""

from __future__ import annotations

from typing import Any

import torch

from stillroom.core import files
from stillroom.evaluation.answers import Answer, Speaker
from stillroom.evaluation.bench import Bench
from stillroom.evaluation.metric import Metric, Result
from stillroom.evaluation.metrics.memorisation import passages
from stillroom.evaluation.paired import mcnemar, paired_share, share
from stillroom.evaluation.sections import Section, Table, Text
from stillroom.evaluation.words import interval, paired_test, percent
from stillroom.signals.vocabulary_map import VocabularyMap

REPETITIVE = 0.5
GROUP = 4
LEAST_WORDS = 8
KINDS = ("memorised", "repetitive", "empty", "truncated")
CALLED = {
    "memorised": "training text repeated word for word",
    "repetitive": "repetitive answers",
    "empty": "empty answers",
    "truncated": "answers without an end",
}
SIGNIFICANT = 0.05
VERSION = 2
QUESTIONS = (
    "What is a list?",
    "How do I boil an egg?",
    "Explain what a bank account is.",
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "How do plants grow?",
    "Give me three ideas for a birthday present.",
    "What does a doctor do?",
    "Why is the sky blue?",
    "How do I open a file in Python?",
    "Tell me a short story about a cat.",
    "What is the difference between a fruit and a vegetable?",
    "Who wrote Romeo and Juliet?",
    "How can I sleep better?",
    "What is seven times eight?",
    "Describe a train station.",
    "What is a dictionary in Python?",
    "How does a bicycle stay upright?",
    "Name five colours.",
    "What should I pack for a week by the sea?",
    "How do I write a polite letter?",
    "What is the Moon made of?",
    "Explain what a function is.",
    "How do I learn a new language?",
    "What is the largest animal?",
    "How do I change a tyre?",
    "What is money for?",
    "Summarise in one sentence what schools do.",
    "What happens when water freezes?",
    "How do I say thank you in French?",
    "What is a for loop?",
    "Give me a recipe for pancakes.",
)


def measure_behaviour(bench: Bench) -> dict[str, Any]:
    """The measure `behaviour`."""
    config = bench.config.behaviour
    questions = list(QUESTIONS[: config.items])
    chosen = passages(bench.training, config.items, config.prefix_tokens, config.verbatim_tokens)
    asked = [list(part) for part in zip(*chosen, strict=True)] or [[], []]

    def seen_of(name: str) -> dict[str, list[bool]]:
        inputs = {
            "model": bench.subjects[name].digest,
            "text": bench.text_digest,
            "settings": config.model_dump(mode="json"),
            "questions": files.digest_json(questions),
            "seed": bench.seed,
            "version": VERSION,
        }

        def compute() -> dict[str, list[bool]]:
            loaded = bench.load(name)
            speaker = Speaker(loaded)
            begun, ends = ([_own(loaded.vocabulary, part) for part in parts] for parts in asked)
            with bench.progress.task(f"behaviour {name}", total=len(begun) + len(questions), unit="texts") as task:
                written = speaker.answers(begun, max(map(len, ends), default=1), advance=task.advance)
                answers = speaker.chat(questions, config.max_tokens, task.advance)
            return {
                "memorised": [is_verbatim(end, list(each.ids)) for end, each in zip(ends, written, strict=True)]
            } | of_answers(answers)

        found: dict[str, list[bool]] = bench.part("behaviour", name, inputs, compute)
        return found

    seen = bench.of_each(seen_of)
    return summarize(seen, bench.config.confidence) | {
        "questions": len(questions),
        "passages": len(seen["student"]["memorised"]),
        "verbatim_tokens": config.verbatim_tokens,
        "seed": bench.seed,
    }


def summarize(seen: dict[str, dict[str, list[bool]]], confidence: float) -> dict[str, Any]:
    """Shares by model and kind, and the student paired with the others."""
    models = {
        name: {kind: share(sum(rows[kind]), len(rows[kind]), confidence) for kind in KINDS}
        for name, rows in seen.items()
    }
    compared = {}
    for other in seen:
        if other != "student":
            compared[f"student_minus_{other}"] = {
                kind: mcnemar(seen["student"][kind], seen[other][kind])
                | {"interval": paired_share(seen["student"][kind], seen[other][kind], confidence)}
                for kind in KINDS
            }
    bounds = {
        kind: [models["student"][kind]["value"], *(models["student"][kind]["interval"] or [None, None])]
        for kind in KINDS
    }
    return {
        "models": models,
        "compared": compared,
        "interval": f"{percent(confidence)} Wilson over texts",
        "bounds": bounds,
    }


def of_answers(answers: list[Answer]) -> dict[str, list[bool]]:
    """What is said of each answer."""
    return {
        "repetitive": [repetition(answer.text) > REPETITIVE for answer in answers],
        "empty": [not answer.text.strip() for answer in answers],
        "truncated": [not answer.ended for answer in answers],
    }


def repetition(text: str) -> float:
    """Share of four-word groups that stood before; of a text without spaces, of four-letter groups."""
    words: list[str] = text.split()
    if len(words) < LEAST_WORDS:
        words = list("".join(words)) if len(text) >= 40 else []
    groups = [tuple(words[index : index + GROUP]) for index in range(len(words) - GROUP + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0


def is_verbatim(passage: list[int], written: list[int]) -> bool:
    """Whether a passage came back without a slip."""
    return written[: len(passage)] == passage


def _own(vocabulary: VocabularyMap, ids: list[int]) -> list[int]:
    """The teacher's tokens in a model's own."""
    found: list[int] = vocabulary.expand(torch.tensor(ids))[0].tolist()
    return found


def weaknesses(result: Result) -> list[str]:
    """What the student does more often than its teacher, beyond chance."""
    found = []
    for kind, words in CALLED.items():
        test = result["compared"]["student_minus_teacher"].get(kind)
        if test and test["difference"] > 0 and test["p_value"] < SIGNIFICANT:
            found.append(f"More {words} than its teacher's: {paired_test(test, right=False)}.")
    return found


def sections(result: Result) -> list[Section]:
    """Shares of answers by kind."""
    rows = []
    for kind, name in CALLED.items():
        cells = []
        for model in ("teacher", "baseline", "student"):
            found = result["models"].get(model)
            cells.append(interval(found[kind]["value"], found[kind]["interval"], 0, 100, " %") if found else "–")
        items = result["models"]["student"][kind]["items"]
        test = result["compared"]["student_minus_teacher"].get(kind)
        rows.append([f"{name} ({items})", *cells, paired_test(test, right=False)])
    note = (
        f"{result['interval']}. Repeated word for word: {result['verbatim_tokens']} tokens of a training passage without "
        "a slip."
    )
    return [
        Section(
            "behaviour",
            "Behaviour",
            [
                Table(["", "teacher", "baseline", "student", "student against teacher"], rows),
                Text(note, note=True, card=False),
            ],
        )
    ]


METRIC = Metric(
    name="behaviour",
    function=measure_behaviour,
    what="memorised text, repetition, empty and truncated answers",
    settings=("behaviour",),
    version=VERSION,
    order=60,
    numbers=KINDS,
    sections=sections,
    weaknesses=weaknesses,
)

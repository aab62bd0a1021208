"""What models write: greedy answers of teacher, student and baseline to held-out prompts, side by side.

A prompt is what comes before the assistant's first answer in a held-out chat, or the beginning of a held-out text. Every
model gets the same text in its own tokens and continues it greedily, without a repetition penalty. An answer is
*degenerate* when a sequence of eight tokens occurs in it twice. Tokens of answers are the teacher's for every model, so that
a student with a smaller vocabulary, which needs more tokens for the same words, is measured by the same rule.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.evaluation.answers import Speaker, prompt_of
from stillroom.evaluation.bench import Bench
from stillroom.evaluation.heldout import HeldOut
from stillroom.evaluation.metric import Metric, Result, without_bounds
from stillroom.evaluation.paired import mcnemar, paired_share, share
from stillroom.evaluation.sections import LEAD, Answer, Asked, Section, SideBySide, Table, Text
from stillroom.evaluation.words import interval, paired_test, percent

if TYPE_CHECKING:
    from stillroom.models.types import Tokenizer

GRAM = 8
"""Tokens of a sequence whose second occurrence makes an answer degenerate."""
ROWS = 32
"""Prompts that are answered in one batch."""
SHOWN = 8
"""Prompts that the report shows."""
BEGINNING = 32
"""Tokens of a plain text that are its prompt; of a short one, the first half."""
SHORTEST, LONGEST = 4, 128
"""Tokens of a prompt. Longer ones are passed over: they take their time, and no one reads them."""
SIGNIFICANT = 0.05
MARK = "\x02"
"""Stands for a message's content when the template's own text around it is looked for."""


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        ids: In the teacher's ids.
        chat: Whether it is the beginning of a chat, up to the first answer.
    """

    ids: tuple[int, ...]
    chat: bool


def measure_samples(bench: Bench) -> dict[str, Any]:
    """The metric `samples`."""
    config = bench.config.samples
    prompts = find_prompts(bench.heldout, config.prompts)
    inputs = {
        "prompts": files.digest_json([[prompt.chat, *prompt.ids] for prompt in prompts]),
        "max_tokens": config.max_tokens,
    }

    def answers_of(name: str) -> list[dict[str, Any]]:
        own = inputs | {"model": bench.subjects[name].digest}
        found: list[dict[str, Any]] = bench.part("samples", name, own, lambda: _answers(bench, name, prompts))
        return found

    answers = bench.of_each(answers_of)
    asked = _asked(bench, prompts) if prompts else []
    return summarize(answers, bench.config.confidence) | {
        "items": [
            {"prompt": text, "chat": prompt.chat, "answers": {name: rows[index] for name, rows in answers.items()}}
            for index, (prompt, text) in enumerate(zip(prompts, asked, strict=True))
        ],
        "prompts": len(prompts),
        "max_tokens": config.max_tokens,
        "tokens_of_a_repetition": GRAM,
    }


def _answers(bench: Bench, name: str, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """One model's answers: text, teacher's tokens in it, whether it ended by itself, whether it repeats itself."""
    import torch

    teacher = bench.known("teacher").tokenizer
    loaded = bench.load(name)
    speaker = Speaker(loaded)
    begun = [loaded.vocabulary.expand(torch.tensor(prompt.ids))[0].tolist() for prompt in prompts]
    with bench.progress.task(f"samples {name}", total=len(prompts), unit="answers") as task:
        # Decoding is bound by reading the weights, which a batch reads once for all its rows.
        written = speaker.answers(begun, bench.config.samples.max_tokens, advance=task.advance, batch=ROWS)
    found = []
    for answer in written:
        ids = teacher(answer.text, add_special_tokens=False).input_ids
        found.append(
            {"text": answer.text, "tokens": len(ids), "ended": answer.ended, "degenerate": has_repetition(ids)}
        )
    return found


def find_prompts(heldout: HeldOut, wanted: int) -> list[Prompt]:
    """At most ``wanted`` prompts, spread evenly over the held-out documents that have one; no two alike."""
    found: dict[tuple[int, ...], Prompt] = {}
    seen: set[int] = set()
    for index in range(len(heldout)):
        row = heldout.row(index)
        for segment in dict.fromkeys(row.segments[0][row.segments[0] >= 0].tolist()):
            where = (row.segments[0] == segment).nonzero().squeeze(1)
            # A piece that repeats what came before it is not its document's beginning, nor is what goes on in a later
            # sequence of a corpus of release 0.1.0.
            document = int(row.documents[0, where[0]])
            if document in seen or (row.repeated is not None and bool(row.repeated[0, where[0]])):
                continue
            seen.add(document)
            prompt = _prompt(row.ids[0][where].tolist(), row.loss_mask[0][where].tolist())
            if prompt is not None:
                found.setdefault(prompt.ids, prompt)
    prompts = list(found.values())
    count = min(wanted, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _prompt(ids: list[int], learned: list[bool]) -> Prompt | None:
    """The prompt of a document, by its tokens and which of them are to be learned; None where it has none."""
    if True not in learned:
        return None
    first = learned.index(True)
    # Of a plain text everything is learned but the beginning-of-text token.
    chat = first > 1
    length = first if chat else min(BEGINNING, len(ids) // 2)
    return Prompt(tuple(ids[:length]), chat) if SHORTEST <= length <= LONGEST else None


def has_repetition(ids: Sequence[int], tokens: int = GRAM) -> bool:
    """Whether a sequence of so many tokens occurs twice (occurrences may overlap)."""
    grams = [tuple(ids[start : start + tokens]) for start in range(len(ids) - tokens + 1)]
    return len(set(grams)) < len(grams)


def _asked(bench: Bench, prompts: list[Prompt]) -> list[str]:
    """Prompts as they are shown: the words of the user's turn alone where the template's text around them is known."""
    tokenizer = bench.known("teacher").tokenizer
    frames = _frames(tokenizer) if any(prompt.chat for prompt in prompts) else []
    found = []
    for prompt in prompts:
        ids = list(prompt.ids)
        whole = str(tokenizer.decode(ids))
        plain = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        inside = (
            whole[len(before) : len(whole) - len(after)]
            for before, after in frames
            if prompt.chat and whole.startswith(before) and whole.endswith(after)
            and len(before) + len(after) <= len(whole)
        )  # fmt: skip
        found.append(next(inside, plain).strip() or plain)
    return found


def _frames(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The template's text before and after a question."""
    from stillroom.core.errors import StillroomError

    try:
        before, mark, after = prompt_of(tokenizer, [{"role": "user", "content": MARK}]).partition(MARK)
    except StillroomError:  # A template that refuses the mark: prompts are shown with what is around them.
        return []
    return [(before, after)] if mark else []


def summarize(answers: dict[str, list[dict[str, Any]]], confidence: float) -> dict[str, Any]:
    """Counts by model, and the student paired with the others."""
    repeats = {name: [bool(row["degenerate"]) for row in rows] for name, rows in answers.items()}
    items = len(repeats["student"])
    models: dict[str, dict[str, Any]] = {
        name: {
            "degenerate": share(sum(repeats[name]), items, confidence) | {"count": sum(repeats[name])},
            "median_tokens": float(statistics.median(row["tokens"] for row in rows)) if rows else None,
            "ended": sum(bool(row["ended"]) for row in rows),
        }
        for name, rows in answers.items()
    }
    compared = {
        f"student_minus_{other}": {
            "degenerate": mcnemar(repeats["student"], repeats[other])
            | {"interval": paired_share(repeats["student"], repeats[other], confidence)}
        }
        for other in answers
        if other != "student" and items
    }
    bounds: dict[str, list[float | None]] = {}
    if items:
        mine, theirs = models["student"], models["teacher"]
        bounds["degenerate"] = [mine["degenerate"]["value"], *(mine["degenerate"]["interval"] or (None, None))]
        bounds["degenerate_over_teacher"] = [
            float(mine["degenerate"]["count"] - theirs["degenerate"]["count"]), None, None,
        ]  # fmt: skip
        bounds["median_tokens"] = [mine["median_tokens"], None, None]
        if theirs["median_tokens"]:
            bounds["median_tokens_over_teacher"] = [mine["median_tokens"] / theirs["median_tokens"], None, None]
    return {
        "models": models,
        "compared": compared,
        "interval": f"{percent(confidence)} Wilson over prompts",
        "bounds": bounds,
    }


def summary(result: Result) -> Result:
    """The counts; the texts are in the report."""
    return {key: value for key, value in without_bounds(result).items() if key != "items"}


def weaknesses(result: Result) -> list[str]:
    """Answers that repeat themselves more often than the teacher's, beyond chance."""
    test = result["compared"].get("student_minus_teacher", {}).get("degenerate")
    if test is None or test["difference"] <= 0 or test["p_value"] >= SIGNIFICANT:
        return []
    return [f"More answers that repeat themselves than its teacher's: {paired_test(test, right=False)}."]


def sections(result: Result) -> list[Section]:
    """Some prompts with their answers, and the counts of all."""
    if not result["prompts"]:
        words = (
            f"No held-out document has a prompt of {SHORTEST} to {LONGEST} tokens, so that no answers are shown here."
        )
        return [Section("answers", "Answers side by side", [Text(words, note=True)], order=LEAD)]
    names = [name for name in ("teacher", "student", "baseline") if name in result["models"]]
    asked = [
        Asked(
            entry["prompt"],
            entry["chat"],
            [Answer(name, entry["answers"][name]["text"], _note(entry["answers"][name])) for name in names],
        )
        for entry in result["items"][:SHOWN]
    ]
    rows = []
    for name in names:
        model = result["models"][name]
        repeats = model["degenerate"]
        shown = interval(repeats["value"], repeats["interval"], 0, 100, " %")
        rows.append([name, f"{repeats['count']}", shown, f"{model['median_tokens']:.0f}", f"{model['ended']}"])
    head = ["model", "repeats itself", "share", "median length, tokens", "ended by itself"]
    kind = "Questions of held-out chats" if any(entry.chat for entry in asked) else "Beginnings of held-out texts"
    words = (
        f"{kind}, which nothing was trained on; each model's likeliest next token every time, at most "
        f"{result['max_tokens']} tokens, no repetition penalty. The first {len(asked)} of {result['prompts']} prompts; "
        "none was chosen by its answers."
    )
    note = (
        f"Of all {result['prompts']} prompts. An answer repeats itself when {result['tokens_of_a_repetition']} tokens in a "
        f"row occur in it twice; tokens are the teacher's for every model. {result['interval']}."
    )
    number = {1: "One prompt", 8: "Eight prompts"}.get(len(asked), f"{len(asked)} prompts")
    title = f"{number}, {'three' if len(names) == 3 else 'two'} models"
    return [
        Section(
            "answers",
            title,
            [Text(words), SideBySide(asked), Table(head, rows, label="Answers, counted"), Text(note, note=True)],
            order=LEAD,
        )
    ]


def _note(answer: dict[str, Any]) -> str:
    """What is remarkable about an answer."""
    found = ["repeats itself"] if answer["degenerate"] else []
    if not answer["text"].strip():
        found.append("empty")
    elif not answer["ended"]:
        found.append("stopped at the limit")
    return ", ".join(found)


METRIC = Metric(
    name="samples",
    function=measure_samples,
    what="answers to held-out prompts, side by side",
    settings=("samples",),
    order=26,
    summary=summary,
    numbers=("degenerate", "degenerate_over_teacher", "median_tokens", "median_tokens_over_teacher"),
    sections=sections,
    weaknesses=weaknesses,
)

"""The marks of :mod:`benchmarks.guard`: what a copy learns from marked answers, and what marking costs."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.guard_models import (
    LENGTH,
    NotMeasured,
    Result,
    Setting,
    bias_row,
    library_text,
    sampled,
    small_models,
    spoken,
    train,
    with_model,
)
from benchmarks.serving import Serving, end_with_parent, free_port, started
from stillroom.core.marks import MarkKey, word_biases
from stillroom.core.secret import Secret, write_secret
from stillroom.guard.coins import Twin, coins_test, preferences, served
from stillroom.guard.lineage_match import default_text, open_model
from stillroom.guard.marks import frequencies, mark_score, weights_against, words_of

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher

MONTH = "2026-01"
KEY = MarkKey("benchmark", Secret(bytes(range(32))))
FRACTIONS = (1.0, 0.1, 0.3, 0.0, 0.03, 0.01)
"""Shares of marked rows among those that are learnt; in the order of what is measured first."""
CLEAN = (1.0, 0.25, 0.5)
"""Clean tokens afterwards, as a share of the learnt ones."""


def subject(setting: Setting) -> tuple[Path, str]:
    """The model that is marked, and the prefix of its figures."""
    if setting.model is not None:
        return setting.model, ""
    return small_models(setting, 1)[0], "toy_"


class Marked:
    """A model, its answers with and without the mark, and copies that learn from them; what takes long is kept.

    Attributes:
        learnt: Tokens that a copy learns from.
        asked: Tokens that a copy samples, to be tested.
    """

    def __init__(self, setting: Setting, path: Path) -> None:
        self.setting = setting
        self.learnt = setting.mark_tokens or setting.pick(100_000, 2_048)
        self.asked = setting.pick(10_000, 1_024)
        self.loaded = open_model(path)
        self.biases = word_biases(KEY, sorted(words_of(self.loaded.tokenizer).items()), MONTH)
        self._rows: dict[str, torch.Tensor] = {}
        self._reference: dict[bytes, float] | None = None

    def rows(self, name: str) -> torch.Tensor:
        """Sampled rows [rows, LENGTH]: ``clean``, ``marked`` or ``again`` (clean ones that are learnt afterwards)."""
        if name not in self._rows:
            seed = {"clean": 1, "marked": 2, "again": 6}[name]
            biases = self.biases if name == "marked" else None
            made = self.setting.step(
                "mark", f"rows {name}", lambda: sampled(self.loaded, self.learnt, seed, biases).tolist()
            )
            self._rows[name] = torch.tensor(made)
        return self._rows[name]

    def score(self, model: Any) -> float:
        """log10 p that a copy learnt from marked text, by tokens that it samples."""
        if self._reference is None:
            self._reference = frequencies(self.loaded.tokenizer, spoken(self.loaded, self.asked, 3))
        said = frequencies(self.loaded.tokenizer, spoken(with_model(self.loaded, model), self.asked, 5))
        return mark_score(weights_against(said, self._reference), KEY, MONTH)[0]

    def learner(self, fraction: float) -> Any:
        """A copy that learnt from rows of which this share is marked."""
        model = copy.deepcopy(self.loaded.model)
        clean = self.rows("clean") if fraction < 1 else self.rows("marked")
        marked = self.rows("marked") if fraction > 0 else clean
        drawn = np.random.default_rng(round(1000 * fraction)).random(len(clean)) < fraction
        chosen = torch.where(torch.tensor(drawn)[:, None], marked, clean)
        train(model, list(torch.split(chosen, 8)), 1e-4)
        return model


def mark(setting: Setting) -> Result:
    """A copy that learnt from marked tokens; fractions; clean tokens afterwards; what marking costs."""
    path, prefix = subject(setting)
    marked = Marked(setting, path)
    held: list[Any] = []

    def first() -> float:
        held.append(marked.learner(1.0))
        return marked.score(held[0])

    def washed(share: float) -> float:
        if not held:
            held.append(marked.learner(1.0))
        after = copy.deepcopy(held[0])
        again = marked.rows("again")
        train(after, list(torch.split(again[: max(1, round(share * len(again)))], 8)), 1e-4)
        return marked.score(after)

    def of_fraction(fraction: float) -> float:
        return marked.score(marked.learner(fraction))

    curve = {"1.0": setting.step("mark", "fraction 1.0", first)}
    price = setting.step("mark", "price", lambda: price_of(marked, setting.pick(200, 8)))
    wash = {str(share): setting.step("mark", f"clean {share}", partial(washed, share)) for share in CLEAN}
    for fraction in FRACTIONS[1 : setting.pick(6, 2)]:
        curve[str(fraction)] = setting.step("mark", f"fraction {fraction}", partial(of_fraction, fraction))
    return {
        f"{prefix}mark_log10_p": curve["1.0"],
        f"{prefix}mark_tokens": marked.asked,
        f"{prefix}mark_learnt_tokens": marked.learnt,
        f"{prefix}mark_kl": price["kl"],
        f"{prefix}mark_agreement": price["agreement"],
    }, {
        "learnt_tokens": marked.learnt,
        "log10_p_by_fraction": curve,
        "log10_p_after_clean_tokens_as_a_share_of_learnt": wash,
    }


def price_of(marked: Marked, rows: int) -> dict[str, float]:
    """KL(unmarked ‖ marked) in nats per token, and how often both have the same likeliest token."""
    gone, same = [], []
    added = bias_row(marked.loaded, marked.biases)
    for ids in torch.split(marked.rows("clean")[:rows], 8):
        with torch.inference_mode():
            logits = marked.loaded.model(input_ids=ids, use_cache=False).logits.float()
        one, two = torch.log_softmax(logits, -1), torch.log_softmax(logits + added, -1)
        gone.append(float((one.exp() * (one - two)).sum(-1).mean()))
        same.append(float((one.argmax(-1) == two.argmax(-1)).float().mean()))
    return {"kl": float(np.mean(gone)), "agreement": float(np.mean(same))}


# --- answers with and without the mark, judged by the teacher ---


def questions_of(setting: Setting, count: int) -> list[str]:
    """Questions of held-out chats of the student's run; without a run, beginnings of the library's sentences."""
    if setting.student is None:
        words = library_text(60_000).split()
        return [" ".join(words[12 * number : 12 * number + 12]) for number in range(count)]
    from benchmarks.judge import chats_of
    from stillroom.models.tokenizer import open_tokenizer
    from stillroom.runs.run import Run

    run = Run.open(setting.student)
    tokenizer = open_tokenizer(run.stage("corpus").path / "tokenizer")
    chats = chats_of(run.recipe.corpus, tokenizer, 420)["heldout"]
    return [next(message["content"] for message in chat if message["role"] == "user") for chat in chats][:count]


def prompt_ids(loaded: LoadedTeacher, question: str) -> list[int]:
    """A question as the model's template writes it; as plain text where it has none."""
    if getattr(loaded.tokenizer, "chat_template", None):
        found = loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        question = str(found)
    return list(loaded.tokenizer.encode(question, add_special_tokens=False))


def answer(loaded: LoadedTeacher, question: str, tokens: int, seed: int, added: torch.Tensor) -> str:
    """An answer sampled at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    model: Any = loaded.model
    fed, past, said = torch.tensor([prompt_ids(loaded, question)]), None, []
    stops = {loaded.tokenizer.eos_token_id}
    with torch.inference_mode():
        for _ in range(tokens):
            out = model(input_ids=fed, past_key_values=past, use_cache=True)
            past = out.past_key_values
            fed = torch.multinomial(torch.softmax(out.logits[:, -1].float() + added, -1), 1, generator=generator)
            if int(fed) in stops:
                break
            said.append(int(fed))
    return str(loaded.tokenizer.decode(said, skip_special_tokens=True))


def judged_nats(judge: LoadedTeacher, question: str, said: str) -> float:
    """Nats per byte of an answer, as the judge predicts it after the question."""
    before = prompt_ids(judge, question)
    own = list(judge.tokenizer.encode(said, add_special_tokens=False))
    ids = torch.tensor([before + own])
    with torch.inference_mode():
        logits = judge.model(input_ids=ids, use_cache=False).logits[0, len(before) - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, len(before) :], reduction="sum")) / len(said.encode())


def judged(setting: Setting) -> Result:
    """Answers to held-out questions with and without the mark, judged by the teacher (small: by another small model)."""
    path, prefix = subject(setting)
    count, tokens = setting.pick(80, 4), setting.pick(64, 12)
    loaded = open_model(path)
    biases = word_biases(KEY, sorted(words_of(loaded.tokenizer).items()), MONTH)
    questions = questions_of(setting, count)

    def said() -> list[list[str]]:
        rows = [bias_row(loaded, []), bias_row(loaded, biases)]
        return [
            [answer(loaded, question, tokens, 100 + number, added) for added in rows]
            for number, question in enumerate(questions)
        ]

    answers = setting.step("judged", "answers", said)
    usable = [number for number, pair in enumerate(answers) if all(text.strip() for text in pair)]
    judge = open_model(setting.teacher) if setting.teacher is not None else open_model(small_models(setting, 2)[1])
    nats = [[judged_nats(judge, questions[number], text) for text in answers[number]] for number in usable]
    differences = [marked - plain for plain, marked in nats]
    wins = sum((gap < 0) + (gap == 0) / 2 for gap in differences)
    return {
        f"{prefix}mark_judged": wins / len(differences),
        f"{prefix}mark_judged_answers": len(differences),
        f"{prefix}mark_judged_nats_per_byte": statistics.mean(differences),
    }, {
        "judge": "the teacher's nats per byte of each answer after its question; lower is better",
        "unmarked_nats_per_byte": statistics.mean(plain for plain, _ in nats),
        "marked_nats_per_byte": statistics.mean(marked for _, marked in nats),
        "difference_interval": report.interval(differences),
        "share_better_interval": report.interval([(gap < 0) + (gap == 0) / 2 for gap in differences]),
        "left_out_empty": len(answers) - len(usable),
    }


# --- the speed of a server that marks ---


def marking(model: Path, folder: Path, key: Path | None) -> AbstractContextManager[Serving]:
    """A server with a switch of its own, in a process of its own; it marks where a key is given."""
    words = [str(model), str(folder), *([str(key)] if key else [])]
    return started("benchmarks.guard_mark", words, folder)


def speed(setting: Setting) -> Result:
    """Tokens per second of a marking server over those of one that does not mark, in pairs that take turns."""
    from benchmarks.serve import measured

    path = setting.served
    folder = setting.work / "speed"
    key = folder / f"key-{time.time_ns()}.mark"
    write_secret(key, KEY.secret)
    tokens, pairs = setting.pick(64, 16), setting.pick(16, 2)

    def pair(number: int, plain: Any, marked: Any) -> dict[str, Any]:
        body = {"prompt": f"{number + 2} programs that keep a list of words in order: ", "max_tokens": tokens}
        body |= {"temperature": 0, "stream_options": {"include_usage": True}}
        found = {}
        for name, server in (("plain", plain), ("marked", marked))[:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            events = list(server.stream("/v1/completions", body | {"model": server.model()}))
            took = measured([event for event in events if "done" not in event[1]], begun)
            found[name] = took | {"whole": took["said"] / (events[-1][0] - begun)}
        return found

    found = []
    with marking(path, folder / "plain", None) as plain, marking(path, folder / "marked", key) as marked:
        pair(-1, plain, marked)  # warms both up
        for number in range(pairs):
            found.append(setting.step("speed", f"pair {number}", partial(pair, number, plain, marked)))
    key.unlink()
    usable = [
        both
        for both in found
        if all(one["rate"] and one["said"] > tokens // 2 for one in (both["plain"], both["marked"]))
    ]
    if not usable:
        raise NotMeasured(
            "The model ends every answer at once: its speed cannot be told. Serve another with --student."
        )
    rates = [both["marked"]["rate"] / both["plain"]["rate"] for both in usable]
    return {
        "mark_serving_speed": statistics.median(rates),
        "mark_serving_pairs": len(rates),
        "mark_serving_whole_answers": statistics.median(
            both["marked"]["whole"] / both["plain"]["whole"] for both in usable
        ),
    }, {
        "model": path.name,
        "ratios": rates,
        "interval_of_the_mean": report.interval(rates),
        "seconds_to_the_first_token_more": statistics.median(
            both["marked"]["first"] - both["plain"]["first"] for both in usable
        ),
        "tokens": tokens,
    }


def serve(model: str, folder: str, key: str | None = None) -> None:
    """Serve until told to end, and mark where a key is given."""
    from stillroom.core.marks import read_key
    from stillroom.runtime.engine import EngineOptions
    from stillroom.serving.app import Limits, Service
    from stillroom.serving.mark import Marking
    from stillroom.serving.models import open_model as open_served
    from stillroom.serving.pool import Pool, ServedModel
    from stillroom.serving.running import run
    from stillroom.switch.places import Places
    from stillroom.switch.state import Switch

    end_with_parent()
    port = free_port()
    switch = Switch(Places.under(Path(folder)))
    served_model = ServedModel(open_served(model), EngineOptions(context=512, parallel=1, batch=256), switch, queue=8)
    own = Marking(read_key(Path(key))) if key else None
    service = Service(Pool([served_model]), switch, Limits(), marking=own)
    print(port, flush=True)
    run(service, "127.0.0.1", port)


# --- twin answers ---


ANSWER = 32
"""Tokens of a twin answer, and of the other rows of the tune."""


def coins(setting: Setting) -> Result:
    """Twin answers that are a tenth of a tune; the rest of it is documentation."""
    path, prefix = subject(setting)
    loaded = open_model(path)
    key = MarkKey("benchmark", Secret(bytes(range(1, 33))))
    count = setting.pick(600, 24)

    def answers_of(seed: int) -> list[list[int]]:
        found: list[list[int]] = sampled(loaded, count * ANSWER, seed, length=ANSWER).tolist()
        return found

    one, two = (torch.tensor(setting.step("coins", f"answers {seed}", partial(answers_of, seed))) for seed in (11, 12))
    words = library_text(400_000).split()
    twins = []
    for number in range(count):
        answers = [str(loaded.tokenizer.decode(rows[number], skip_special_tokens=True)).strip() for rows in (one, two)]
        if all(answers) and answers[0] != answers[1]:
            prompt = f"{number}: " + " ".join(words[6 * number : 6 * number + 6])
            twins.append(Twin(prompt, (answers[0], answers[1])))
    rows = [
        loaded.tokenizer.encode(f"{twin.prompt}\n\n{served(twin, key)}", add_special_tokens=False)[:LENGTH]
        for twin in twins
    ]
    text = loaded.tokenizer.encode(default_text(), add_special_tokens=False)
    rng = np.random.default_rng(14)
    starts = rng.integers(0, len(text) - ANSWER, 9 * len(twins)).tolist()
    rows += [text[start : start + ANSWER] for start in starts]
    order = [rows[place] for place in rng.permutation(len(rows))]
    fed = [padded(order[start : start + 8]) for start in range(0, len(order), 8)]

    def tuned() -> dict[str, Any]:
        model = copy.deepcopy(loaded.model)
        train(model, fed, 1e-4)
        differences = preferences(with_model(loaded, model), twins) - preferences(loaded, twins)
        log10_p, hits, used = coins_test(differences, np.array([key.coin(twin.label) for twin in twins]))
        return {"log10_p": log10_p, "hits": hits, "used": used}

    told = setting.step("coins", "tune", tuned)
    return {f"{prefix}coins_log10_p": told["log10_p"], f"{prefix}coins": told["used"]}, {
        "served_preferred": told["hits"],
        "rows_of_the_tune": len(rows),
    }


def padded(rows: list[list[int]]) -> torch.Tensor:
    """Rows as one tensor; -1 on the right of the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


if __name__ == "__main__":
    serve(*sys.argv[1:])

"""How good a student is as its teacher's drafter in speculative decoding: what the teacher would accept of its tokens.

The teacher continues beginnings of held-out text, taking its most probable token each time, and both models are asked what
comes next at every token that it wrote. ``acceptance`` is the mean of Σ min(p, q), the share of drafted tokens that are
accepted when text is sampled at temperature 1 (Leviathan, Kalman & Matias 2023, arXiv 2211.17192); ``same_token`` is that share
when the teacher decodes greedily. ``tokens_per_pass`` is how many tokens a pass of the teacher gives greedily with γ drafted
tokens, read off the very sequence. A pass with γ drafts takes the time of 1 + γ c teacher's tokens, where c is the student's
time per token over the teacher's; here c is the ratio of parameters, which is what decoding one text at a time comes to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stillroom.evaluation.answers import Speaker
from stillroom.evaluation.bench import Bench, Loaded
from stillroom.evaluation.metric import Metric, Result
from stillroom.evaluation.sections import Section, Table, Text
from stillroom.evaluation.tally import Drawing
from stillroom.evaluation.words import interval
from stillroom.models.load import count_parameters

PROMPTS, PROMPT_TOKENS, WRITTEN = 12, 32, 64
DRAFTS = (1, 2, 4, 8)


@torch.inference_mode()
def measure_drafter(bench: Bench) -> Result:
    """The measure `drafter`: acceptance, tokens per pass, and what that comes to."""
    teacher = bench.load("teacher")
    prompts = _prompts(bench)
    with bench.progress.task("drafter", total=len(prompts)) as task:
        written = [list(each.ids) for each in Speaker(teacher).answers(prompts, WRITTEN, (), task.advance)]
    texts = [(prompt, own) for prompt, own in zip(prompts, written, strict=True) if own]
    drawing = Drawing(bench.config.bootstrap_samples, bench.config.confidence, bench.seed)
    whole = count_parameters(teacher.model)
    models: dict[str, Any] = {}
    for name in [name for name in bench.answering if name != "teacher"]:
        loaded = bench.load(name, beside=["teacher"])
        taken = [_accepted(teacher, loaded, prompt + own, len(prompt)) for prompt, own in texts]
        ratio, drafts = count_parameters(loaded.model) / whole, can_draft(loaded)
        del loaded  # before the next one needs its memory
        count = np.asarray([len(same) for _, same in taken], dtype=np.float64)
        entry: dict[str, Any] = {"cost_ratio": round(ratio, 4), "can_draft": drafts}
        for key, sums in (
            ("acceptance", [float(shares.sum()) for shares, _ in taken]),
            ("same_token", [float(same.sum()) for _, same in taken]),
        ):
            found = drawing.estimate(np.asarray(sums), count)
            entry[key] = {"value": found.value, "interval": found.interval}
        per_pass = {draft: _tokens_per_pass([same for _, same in taken], draft) for draft in DRAFTS}
        speed = {draft: tokens / (1 + draft * ratio) for draft, tokens in per_pass.items()}
        best = max(speed, key=lambda draft: speed[draft])
        entry["tokens_per_pass"] = {str(draft): round(value, 4) for draft, value in per_pass.items()}
        entry["speed_up"] = {"drafts": best, "value": round(speed[best], 4)}
        models[name] = entry
    student = models["student"]
    bounds = {
        key: [student[key]["value"], *(student[key]["interval"] or (None, None))]
        for key in ("acceptance", "same_token")
    }
    bounds["speed_up"] = [student["speed_up"]["value"], None, None]
    return {
        "models": models,
        "positions": int(sum(len(own) for _, own in texts)),
        "bounds": bounds,
        "warnings": []
        if student["can_draft"]
        else [
            "The student's vocabulary is not the teacher's: no runtime can use it as a drafter. `student.drafter: true` keeps "
            "the vocabulary."
        ],
    }


def can_draft(loaded: Loaded) -> bool:
    """Whether every id means the same to the student as to the teacher."""
    vocabulary = loaded.vocabulary
    used = vocabulary.student_used
    return (
        used <= vocabulary.teacher_size
        and torch.equal(vocabulary.first[:used], torch.arange(used))
        and bool((vocabulary.lengths[:used] == 1).all())
        and not bool((vocabulary.lengths[used:] > 0).any())
    )


def _prompts(bench: Bench) -> list[list[int]]:
    """Beginnings of held-out texts, in the teacher's ids."""
    found: list[list[int]] = []
    for index in range(len(bench.heldout)):
        row = bench.heldout.row(index)
        for segment in sorted(set(row.segments[0].tolist()) - {-1}):
            ids = row.ids[0][row.segments[0] == segment][:PROMPT_TOKENS].tolist()
            if len(ids) > 1 and len(found) < PROMPTS:
                found.append(ids)
    return found


def _accepted(teacher: Loaded, student: Loaded, ids: list[int], begin: int) -> tuple[np.ndarray, np.ndarray]:
    """For each token from ``begin`` on: Σ min(p, q), and whether both find the same token most probable."""
    device = teacher.model.device
    expanded, source = student.vocabulary.expand(torch.tensor(ids))
    last = torch.ones(len(source), dtype=torch.bool)
    last[:-1] = source[1:] != source[:-1]
    places = last.nonzero().squeeze(1)[begin - 1 : len(ids) - 1]
    theirs = teacher.model(input_ids=torch.tensor([ids]).to(device), use_cache=False).logits[0, begin - 1 : -1].float()
    mine = student.model(input_ids=expanded[None].to(device), use_cache=False).logits[0].float()
    mine = torch.log_softmax(mine[places.to(device)][:, : student.vocabulary.student_used], dim=1)
    projected = student.vocabulary.project_dense(torch.log_softmax(theirs, dim=1))[:, : student.vocabulary.student_used]
    shares = torch.minimum(mine.exp(), projected.exp()).sum(1)
    same = mine.argmax(1) == student.vocabulary.first.to(device)[theirs.argmax(1)]
    return shares.cpu().double().numpy(), same.cpu().numpy()


def _tokens_per_pass(texts: list[np.ndarray], drafts: int) -> float:
    """Tokens that a pass of the teacher gives: the drafts up to the first wrong one, and its own token behind them."""
    tokens = passes = 0
    for same in texts:
        place = 0
        while place < len(same):
            ahead = same[place : place + drafts]
            right = int(ahead.argmin()) if not ahead.all() else len(ahead)
            taken = min(right + 1, len(same) - place)
            tokens, passes, place = tokens + taken, passes + 1, place + taken
    return tokens / max(1, passes)


def sections(result: Result) -> list[Section]:
    """Acceptance and tokens per pass of each student."""
    rows = []
    for name, entry in result["models"].items():
        per_pass = entry["tokens_per_pass"]
        rows.append(
            [
                name,
                *(interval(entry[key]["value"], entry[key]["interval"]) for key in ("acceptance", "same_token")),
                *(f"{per_pass[str(draft)]:.2f}" for draft in DRAFTS),
                f"{entry['cost_ratio']:.2f}",
                f"{entry['speed_up']['value']:.2f} × with {entry['speed_up']['drafts']}",
            ]
        )
    heads = [
        "drafter",
        "accepted, sampling",
        "accepted, greedy",
        *(f"tokens per pass, {d}" for d in DRAFTS),
        "cost",
        "at best",
    ]
    note = (
        f'On {result["positions"]:,} tokens that the teacher wrote. Cost is the ratio of parameters; "at best" is tokens per '
        "pass over 1 + drafts × cost, the speed-up of greedy decoding to expect where weights are what takes the time."
    )
    return [Section("drafter", "As a drafter of its teacher", [Table(heads, rows), Text(note, note=True)], order=85)]


METRIC = Metric(
    name="drafter",
    function=measure_drafter,
    what="what the teacher would accept of its tokens",
    order=65,
    numbers=("acceptance", "same_token", "speed_up"),
    sections=sections,
)

"""Students as drafters of their teacher in llama.cpp: what is accepted there, and what the metric `drafter` says of it.

    .venv/bin/python -m benchmarks.drafter [--quick] [--json FILE]

The teacher is SmolLM2-135M-Instruct, the student nine tenths of its layers with the whole vocabulary, neither repaired nor
trained: enough to compare the two ways of counting, and no drafter that could pay. Both are written as F16 files. llama.cpp
continues held-out beginnings greedily, without and with the drafter, which drafts a number of tokens at a time.

``acceptance_difference`` is accepted over drafted tokens in llama.cpp minus what the metric reads off the same texts for the
same number of drafts (its bar: 0.02). ``same_text`` is the share of texts that are the same with and without drafter.
``speed_up`` is the ratio of generated tokens per second, ``expected_speed_up`` what the metric's formula says at the files'
ratio of bytes. ``refused`` is whether a student with a trimmed vocabulary is refused by name. ``--quick`` takes few tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import material, report
from stillroom.core.errors import UsageError
from stillroom.evaluation.bench import Loaded
from stillroom.evaluation.metrics.drafter import _accepted
from stillroom.formats.gguf_file import write_gguf
from stillroom.models.load import LoadedTeacher, save_model
from stillroom.runtime.engine import Engine, EngineOptions
from stillroom.runtime.facts import require_drafter
from stillroom.signals.vocabulary_map import VocabularyMap

LAYERS, PROMPT, DRAFTS = 27, 32, 4
TEXTS, WRITTEN = 32, 96
QUICK_TEXTS, QUICK_WRITTEN = 2, 16
BAR = 0.02
"""Of the difference in acceptance, to either side."""


@dataclass(frozen=True)
class Written:
    """What llama.cpp wrote after some prompts, how fast, and what it drafted and accepted."""

    texts: list[list[int]]
    per_second: float
    drafted: int
    accepted: int


def written(file: Path, prompts: list[list[int]], count: int, drafter: Path | None) -> Written:
    """Greedy continuations by llama.cpp."""
    texts, seconds, tokens, drafted, accepted = [], 0.0, 0, 0, 0
    with Engine(file, EngineOptions(context=512, drafter=drafter, drafts=DRAFTS)) as engine:
        for prompt in prompts:
            body = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "return_tokens": True, "ignore_eos": True}
            answer = engine.call("POST", "/completion", body)
            timings = answer["timings"]
            texts.append(answer["tokens"])
            seconds += timings["predicted_ms"] / 1e3
            tokens += timings["predicted_n"]
            drafted += timings.get("draft_n", 0)
            accepted += timings.get("draft_n_accepted", 0)
    return Written(texts, tokens / seconds, drafted, accepted)


def read_off(teacher: Loaded, student: Loaded, prompts: list[list[int]], texts: list[list[int]]) -> tuple[float, float]:
    """Accepted over drafted tokens, and tokens per pass, by the metric's own way, on the texts that were written."""
    accepted = drafted = passes = tokens = 0
    with torch.inference_mode():
        for prompt, own in zip(prompts, texts, strict=True):
            _, same = _accepted(teacher, student, prompt + own, len(prompt))
            place = 0
            while place < len(same):
                ahead = same[place : place + DRAFTS]
                right = int(ahead.argmin()) if not ahead.all() else len(ahead)
                drafted, accepted, passes = drafted + len(ahead), accepted + right, passes + 1
                taken = min(right + 1, len(same) - place)
                tokens, place = tokens + taken, place + taken
    return accepted / max(1, drafted), tokens / max(1, passes)


def files_of(loaded: LoadedTeacher, model: Any, tokenizer: Any, folder: Path, name: str) -> Path:
    """A model as an F16 file."""
    save_model(model, tokenizer, folder / name)
    write_gguf(folder / name, folder / f"{name}.gguf", "F16", name=name, licence=loaded.licence)
    return folder / f"{name}.gguf"


def main() -> None:
    """Write, draft and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    count, length = (QUICK_TEXTS, QUICK_WRITTEN) if arguments.quick else (TEXTS, WRITTEN)
    loaded = material.teacher(torch.float32)
    _, text = material.corpus(loaded, PROMPT, 4 * PROMPT, count * PROMPT)
    prompts = [ids[segments >= 0].tolist() for ids, segments in zip(text.ids, text.segments, strict=True)]
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    whole = VocabularyMap.identity(rows)
    model = pruned(loaded)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        target = files_of(loaded, loaded.model, loaded.tokenizer, folder, "teacher")
        drafter = files_of(loaded, model, loaded.tokenizer, folder, "student")
        require_drafter(target, drafter)
        plain = written(target, prompts, length, None)
        drafted = written(target, prompts, length, drafter)
        teacher, student = (
            Loaded(found.eval(), loaded.tokenizer, whole, 0)
            for found in (material.as_dtype(loaded.model, torch.float32), model)
        )
        expected, per_pass = read_off(teacher, student, prompts, plain.texts)
        ratio = drafter.stat().st_size / target.stat().st_size
        refused = trimmed_is_refused(loaded, text, target, folder)
    share = drafted.accepted / max(1, drafted.drafted)
    figures = {
        "acceptance": share,
        "acceptance_difference": share - expected,
        "same_text": sum(a == b for a, b in zip(plain.texts, drafted.texts, strict=True)) / len(prompts),
        "speed_up": drafted.per_second / plain.per_second,
        "expected_speed_up": per_pass / (1 + DRAFTS * ratio),
        "refused": refused,
    }
    details = {
        "bars": {"acceptance_difference": BAR},
        "drafted": drafted.drafted,
        "accepted": drafted.accepted,
        "expected_acceptance": expected,
        "tokens_per_pass": per_pass,
        "bytes_ratio": ratio,
        "tokens": sum(map(len, plain.texts)),
        "drafts": DRAFTS,
    }
    report.write(figures, details, arguments.json)


def pruned(loaded: LoadedTeacher) -> Any:
    """A student of evenly spaced layers with the whole vocabulary."""
    import copy

    from stillroom.models.families.registry import family_of

    model = copy.deepcopy(loaded.model)
    family = family_of(model)
    family.keep_layers(model, material.evenly_spaced(len(family.layers(model)), LAYERS))
    return material.as_dtype(model, torch.float32)


def trimmed_is_refused(loaded: LoadedTeacher, text: Any, target: Path, folder: Path) -> bool:
    """Whether a student with fewer ids is refused as a drafter."""
    from collections import Counter

    from stillroom.students.embeddings import keep_rows
    from stillroom.students.trim import trim

    rows = loaded.model.get_output_embeddings().weight.shape[0]
    trimmed = trim(loaded.tokenizer, Counter(text.ids[text.segments >= 0].tolist()), None, rows, 64)
    model = pruned(loaded)
    keep_rows(model, trimmed.kept, trimmed.vocabulary.student_size)
    small = files_of(loaded, model, trimmed.tokenizer, folder, "trimmed")
    try:
        require_drafter(target, small)
    except UsageError:
        return True
    return False


if __name__ == "__main__":
    main()

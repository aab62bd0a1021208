"""Text that the student writes while it is trained: beginnings of training documents, continued, in the teacher's tokens.

Sampled text is often not what a tokenizer makes of it: the student's ids are decoded, and the text is tokenized by the rules of
the corpus, so that the teacher sees it as it sees any other. A text for which that is not the same text is left out, by name.

Legend: L tokens per sequence of the corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.core import files
from stillroom.core.errors import CorpusError
from stillroom.core.progress import Progress
from stillroom.corpus.cutting import Piece
from stillroom.corpus.documents import Document
from stillroom.corpus.mapped import MappedSequences
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.tokens import Encoder
from stillroom.models.forward import way_of
from stillroom.models.generation import continuations
from stillroom.recipe.training import RoundsConfig
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.write.writers import ends_of
from stillroom.training.stage_cost import WRITTEN_TOGETHER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.types import CausalModel

SHORTEST = 4
"""Tokens of a document from which on its beginning is continued."""
MOST_TEXTS = 8
"""Texts that are tried, times as many as are enough where each has all of its tokens: a student may write next to nothing."""
TOO_LONG = "what comes before the answer leaves no space to write"
REASONS = (
    "nothing was written",
    "its bytes are no text",
    "it spells a control token",
    "tokenizing it gives another text",
    "it has a token that the student cannot write",
)
"""Why a text is left out, in the order in which it is asked."""
HALF = "\ufffd"
"""What bytes that are no whole character are decoded to."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Prompt:
    """A beginning of a training document.

    Attributes:
        ids: The teacher's ids; at least one.
        student: The same in the student's ids.
    """

    ids: Array
    student: list[int]


@dataclass
class OwnText:
    """What a student wrote for one round.

    Attributes:
        pieces: What is kept, in the teacher's ids; what the student wrote is to be learned.
        texts: Texts that were written.
        tokens: Tokens that were written, in the student's ids.
        ended: Texts that the student ended by itself.
        same_ids: Kept texts that came back as the very ids that were written.
        cut: Kept texts of which only what comes before bytes that are no text is kept.
        left_out: Texts that are left out, by reason.
        passed_over: Documents that no beginning was taken of, by reason.
    """

    pieces: list[Piece] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0
    ended: int = 0
    same_ids: int = 0
    cut: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    size: int = 0
    """Tokens of the kept pieces, with what was given."""

    def counts(self) -> dict[str, Any]:
        """The numbers, for a record."""
        return {
            "texts": self.texts,
            "written_tokens": self.tokens,
            "ended": self.ended,
            "kept": len(self.pieces),
            "kept_tokens": self.size,
            "same_ids": self.same_ids,
            "cut": self.cut,
            "left_out": {reason: self.left_out[reason] for reason in REASONS if self.left_out[reason]},
            "passed_over": dict(self.passed_over.most_common()),
        }


def beginnings(
    split: Sequences | MappedSequences,
    config: RoundsConfig,
    random: np.random.Generator,
    passed_over: Counter[str],
) -> Iterator[Array]:
    """One pass over a split's documents in random order: a beginning of each, in the teacher's ids.

    Of plain text it is ``prompt_tokens`` long, or half of a shorter document. Where something is given that is not learned (a
    chat's turns, a prompt), it is all before one of the stretches that are.

    Args:
        split: The training split.
        config: The recipe's section.
        random: Decides the order, and which answer of a chat.
        passed_over: Counts documents of which none is taken.
    """
    for row in random.permutation(len(split)).tolist():
        part = split.part([row])
        segments = part.segments[0]
        for number in sorted(set(segments[segments >= 0].tolist())):
            inside = (segments == number).nonzero().squeeze(1)
            if part.repeated is not None and bool(part.repeated[0, inside[0]]):
                passed_over["it goes on from a piece before"] += 1
                continue
            ids = part.ids[0, inside].numpy()
            learned = part.loss_mask[0, inside].numpy()
            begins = np.flatnonzero(learned & ~np.concatenate([[False], learned[:-1]]))
            if len(ids) < SHORTEST or not len(begins):
                passed_over["too short"] += 1
                continue
            if begins[0] <= 1:
                yield ids[: max(1, int(begins[0]), min(config.prompt_tokens, len(ids) // 2))]
                continue
            fitting = begins[begins + config.new_tokens <= part.length]
            if not len(fitting):
                passed_over[TOO_LONG] += 1
                continue
            yield ids[: int(fitting[random.integers(len(fitting))])]


def require_beginnings(split: Sequences | MappedSequences, config: RoundsConfig) -> None:
    """Refuse a training split of which nothing can be continued.

    Raises:
        CorpusError: Says why.
    """
    passed_over: Counter[str] = Counter()
    if next(beginnings(split, config, np.random.default_rng(0), passed_over), None) is None:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in passed_over.most_common())
        raise CorpusError(
            f"`distill.rounds`: no training document has a beginning that the student could continue ({why}).",
            "Leave `rounds` out, or lower `rounds.new_tokens`.",
        )


class OwnWriter:
    """Has a student write.

    Args:
        model: The student, in the dtype in which it is to write.
        tokenizer: The student's.
        vocabulary: From the teacher's ids to the student's.
        teacher_tokenizer: The teacher's.
        config: The recipe's section.
        length: Most tokens of a piece, L.
    """

    def __init__(
        self,
        model: CausalModel,
        tokenizer: PreTrainedTokenizerFast,
        vocabulary: VocabularyMap,
        teacher_tokenizer: PreTrainedTokenizerFast,
        config: RoundsConfig,
        length: int,
    ) -> None:
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.vocabulary = vocabulary
        self.teacher: Any = teacher_tokenizer
        self.config = config
        self.length = length
        self._encoder = Encoder(teacher_tokenizer, add_bos=False, add_eos=False)
        self._control = control_ids(teacher_tokenizer)
        self.ends = {token for token in ends_of(model, tokenizer) if token < vocabulary.student_used}
        never = control_ids(tokenizer) - self.ends
        rows = model.get_output_embeddings().weight.shape[0]
        self.suppressed = sorted({*never, *range(vocabulary.student_used, rows)})
        window = getattr(model.config, "max_position_embeddings", None)
        self.window = int(window) if window else None
        # Where a model cannot be told where a document begins, it is not told either where padding ends.
        self.rows = WRITTEN_TOGETHER if way_of(model).packed else 1

    def prompt(self, ids: Array) -> Prompt | None:
        """A beginning in both models' ids; None where the student cannot see so many tokens."""
        student = self.vocabulary.expand(torch.from_numpy(ids.astype(np.int64)))[0].tolist()
        if self.window is not None and len(student) + self.config.new_tokens > self.window:
            return None
        return Prompt(ids, student)

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[list[int]]:
        """What the student writes behind some beginnings: its ids, with the one that ends a text where there is one.

        Args:
            prompts: At most :attr:`rows`.
            seed: Of the sampling; the state of PyTorch's random numbers is afterwards what it was.
        """
        device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return continuations(
                self.model,
                [prompt.student for prompt in prompts],
                self.config.new_tokens,
                self.ends,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                suppressed=self.suppressed,
            )

    def piece(self, prompt: Prompt, written: list[int]) -> tuple[Piece | str, bool]:
        """A text as a piece of a corpus, or why it is left out; and whether its ids are the very ones that were written.

        Args:
            prompt: The beginning.
            written: What :meth:`write` gave.
        """
        end = written[-1] if written and written[-1] in self.ends else None
        text, half, _ = self.text(prompt, written).partition(HALF)
        # What comes behind bytes that are no character is not known to be text; the limit, too, may cut one in the middle.
        ends = [] if end is None or half else self._teacher_end(end)
        if not text and not ends:
            return REASONS[1] if half else REASONS[0], False
        ids = self._tokens(prompt.ids, text)
        if ids is None:
            return REASONS[3], False
        if self._control.intersection(ids):
            return REASONS[2], False
        ids += ends
        if any(not self.vocabulary.lengths[token] for token in ids):
            return REASONS[4], False
        same = self.vocabulary.expand(torch.tensor(ids, dtype=torch.int64))[0].tolist() == written
        ids = ids[: self.length - len(prompt.ids)]
        given = len(prompt.ids)
        both = np.concatenate([prompt.ids.astype(np.int64), np.asarray(ids, dtype=np.int64)])
        learned = np.arange(len(both)) >= given
        return Piece(both, learned, np.zeros(len(both), np.int32), 0, begins=True), same

    def text(self, prompt: Prompt, written: list[int]) -> str:
        """What :meth:`write` gave, decoded, without what ends it."""
        return self._text(prompt.student, [token for token in written if token not in self.ends])

    def _text(self, prompt: list[int], tail: list[int]) -> str:
        """The text that some ids add to those of a beginning."""

        def decode(ids: list[int]) -> str:
            return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        before, after = decode(prompt), decode(prompt + tail)
        return after[len(before) :] if after.startswith(before) else decode(tail)

    def _tokens(self, prompt: Array, text: str) -> list[int] | None:
        """The teacher's ids of a text behind a beginning; None where they would not be that text there."""

        def decode(ids: list[int]) -> str:
            return str(self.teacher.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        if not text:
            return []
        given = [int(token) for token in prompt]
        before = decode(given)
        ids = self._encode(text)
        if decode(given + ids) == before + text:
            return ids
        # A tokenizer that puts a space before every text: the beginning has to be tokenized with it.
        both = self._encode(before + text)
        if both[: len(given)] == given and decode(both) == before + text:
            return both[len(given) :]
        return None

    def _encode(self, text: str) -> list[int]:
        return [int(token) for token in self._encoder.encode([Document(text=text)])[0].ids]

    def _teacher_end(self, end: int) -> list[int]:
        """The teacher's id that ends a text where the student's does; empty where there is none."""
        there = (self.vocabulary.first == end) & (self.vocabulary.lengths == 1)
        found = [token for token in there.nonzero().squeeze(1).tolist() if token in self._control]
        return found[:1]


def control_ids(tokenizer: Any) -> set[int]:
    """The ids of a tokenizer's special tokens: what a text does not consist of."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    special = {int(token) for token, held in added.items() if getattr(held, "special", False)}
    return special | {int(token) for token in tokenizer.all_special_ids}


class Journal:
    """What was written for a round, group by group; a kill can only cut off the last line.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups: dict[int, list[list[int]]] = {}
        whole = []
        data = path.read_bytes() if path.is_file() else b""
        for line in data.split(b"\n"):
            try:
                entry = json.loads(line)
                self.groups[int(entry["group"])] = [[int(token) for token in row] for row in entry["rows"]]
            except (ValueError, KeyError, TypeError):
                continue
            whole.append(line + b"\n")
        if data != b"".join(whole):
            files.write_bytes(path, b"".join(whole))

    def add(self, group: int, rows: list[list[int]]) -> None:
        """Keep a group."""
        self.groups[group] = rows
        files.append(self.path, (json.dumps({"group": group, "rows": rows}) + "\n").encode())


def write_round(
    writer: OwnWriter,
    split: Sequences | MappedSequences,
    room: int,
    seed: list[int],
    journal: Journal,
    progress: Progress,
    title: str,
) -> OwnText:
    """Have the student write until its text fills some rows, or has as many tokens as the recipe says.

    Args:
        writer: The student.
        split: The training split.
        room: Tokens of the rows to be filled.
        seed: Of the beginnings and of the sampling, together with each group's number.
        journal: Where groups are kept as they come: those that are there are not written again.
        progress: Shows progress.
        title: What progress calls it.
    """
    config = writer.config
    limit = room if config.tokens == "auto" else min(room, config.tokens)
    most = MOST_TEXTS * (1 + limit // config.new_tokens)
    found = OwnText()
    prompts = _prompts(writer, split, seed, found.passed_over)
    group = 0

    def done() -> float:
        return max(found.size / room, 0.0 if config.tokens == "auto" else found.tokens / config.tokens)

    with progress.task(title, total=room, unit="tokens") as task:
        while done() < 1 and found.texts < most:
            chosen = [prompt for _, prompt in zip(range(writer.rows), prompts, strict=False)]
            if not chosen:
                break
            if group not in journal.groups:
                journal.add(group, writer.write(chosen, int(files.digest_json([*seed, "text", group])[:15], 16)))
            for prompt, written in zip(chosen, journal.groups[group], strict=True):
                found.texts += 1
                found.tokens += len(written)
                found.ended += bool(written) and written[-1] in writer.ends
                piece, same = writer.piece(prompt, written)
                if isinstance(piece, str):
                    found.left_out[piece] += 1
                    continue
                found.same_ids += same
                found.cut += HALF in writer.text(prompt, written)
                found.pieces.append(piece)
                found.size += len(piece.ids)
            task.advance(min(room, round(done() * room)) - task.done)
            group += 1
    return found


def _prompts(
    writer: OwnWriter, split: Sequences | MappedSequences, seed: list[int], passed_over: Counter[str]
) -> Iterator[Prompt]:
    """Beginnings without end: pass after pass, as long as a pass has any. What is passed over is counted in the first."""
    passes = 0
    while True:
        random = np.random.default_rng([int(files.digest_json([*seed, "beginnings"])[:15], 16), passes])
        any_found = False
        for ids in beginnings(split, writer.config, random, passed_over if passes == 0 else Counter()):
            prompt = writer.prompt(ids)
            if prompt is None:
                if passes == 0:
                    passed_over["the student's context is too short for it"] += 1
                continue
            any_found = True
            yield prompt
        if not any_found:
            return
        passes += 1

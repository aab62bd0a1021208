"""A student with another tokenizer than its teacher: both tokenizations of a text, aligned by bytes.

The cache stays in the teacher's ids; nothing in it depends on the student. When it is read, the text of each piece is tokenized
by the student too. A *chunk* is the shortest stretch of bytes that ends where a token of both ends.

- Where a chunk is one token of each, teacher and student predict the same next token: of the teacher's distribution, the
  tokens whose bytes are a token of the student keep their probabilities, and all others are one event (a coarse signal).
- Any other chunk is compared as a whole: by its log-probability, the sum over its tokens (ALM, Minixhofer, Vulić & Ponti 2025,
  arXiv 2503.20083). The student's positions inside it have no distribution of their own.

Legend: L teacher's tokens, S student's tokens, N positions with a target, V_t teacher's ids, V_s student's ids.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.core import files
from stillroom.core.byte_tokens import is_byte
from stillroom.core.errors import VocabularyMismatch
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.compute import widest
from stillroom.signals.signal import CoarseSignal, DenseSignal, Signal, SparseSignal
from stillroom.signals.token_bytes import token_bytes
from stillroom.signals.vocabulary_map import NEVER, VocabularyMap, says_nothing

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

LEFT_OUT = -1
"""The student has no token for one of the teacher's special tokens, and does without."""
IMPOSSIBLE = -69.0
"""Log-probability, nats, of what no text has: -inf would be an entry that fills a list."""
MARK = b"\xff"
"""Stands for a special token among the bytes of a text; it never occurs in UTF-8."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokenized:
    """A text in the student's tokens, beside the teacher's.

    Attributes:
        ids: Student's ids, [S].
        origin: The teacher's token in which each of them begins, [S].
        chunk: The chunk of each student's token, [S].
        teacher_chunk: The chunk of each teacher's token, [L].
        whole: Which chunks begin and end where a token of both does, with nothing left out inside; one for each chunk.
            The first one of a text never is: nothing predicts its first token.
        gap: Which student's tokens do not follow the one before, because text between them was left out, [S] bool.
    """

    ids: Array
    origin: Array
    chunk: Array
    teacher_chunk: Array
    whole: npt.NDArray[np.bool_]
    gap: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AlignedRow:
    """One sequence in the student's tokens, for training; see :class:`stillroom.signals.batches.BatchSource`.

    Positions of the teacher are counted among those of the sequence that have a target, in order.

    Attributes:
        ids: Student's ids, [S].
        segments: The teacher's segment of each, [S].
        targets: The id that each position predicts, [S]; IGNORED where there is none.
        source: The teacher's token (without padding) in which each begins, [S].
        speaks: Where the teacher's distribution is compared, [S] bool.
        taken: The teacher's position for each of these.
        chunk: The number of the chunk that each position's target is in, where chunks are compared; otherwise -1, [S].
        members: The teacher's positions that predict the tokens of those chunks, and each one's chunk; both of one length.
        chunks: How many there are.
        covered: Whether each of the teacher's positions predicts text that the student predicts too, [N] bool.
    """

    ids: torch.Tensor
    segments: torch.Tensor
    targets: torch.Tensor
    source: torch.Tensor
    speaks: torch.Tensor
    taken: torch.Tensor
    chunk: torch.Tensor
    members: tuple[torch.Tensor, torch.Tensor]
    chunks: int
    covered: torch.Tensor


@dataclass(frozen=True, eq=False)
class Alignment(VocabularyMap):
    """Teacher's ids to a student with another tokenizer.

    ``pieces`` holds what the student makes of each teacher's id by itself. It serves single ids only: a text is tokenized anew.

    Attributes:
        same: The student's id with the same bytes as each teacher's id, [V_t] int64; -1 where there is none. No two are equal.
        occurs: Which of the teacher's ids can occur, [V_t] bool; the others are padding.
        teacher_bytes: What each teacher's id stands for; None for special tokens.
        specials: The student's id for each of the teacher's special ids that it has one for, or ``LEFT_OUT``.
        rules: The student's tokenizer, as JSON, without what it puts around a text.
        student_bytes: What each student's id stands for.
        by_role: The teacher's special ids that the student has by their role alone (or does without), not by their text.
        names: The texts of the teacher's special ids, where they are known, for messages.
    """

    same: torch.Tensor
    occurs: torch.Tensor
    teacher_bytes: tuple[bytes | None, ...]
    specials: dict[int, int]
    rules: str
    student_bytes: tuple[bytes | None, ...]
    by_role: frozenset[int] = frozenset()
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, teacher_rows: int, student_rows: int
    ) -> Alignment:
        """The alignment of two tokenizers.

        Args:
            teacher: The teacher's tokenizer.
            student: The student's.
            teacher_rows: Rows of the teacher's output layer.
            student_rows: Rows of the student's.

        Raises:
            VocabularyMismatch: One of them is of a kind whose tokens cannot be told in bytes.
        """
        theirs, their_specials = token_bytes(teacher, "teacher")
        mine, my_specials = token_bytes(student, "student")
        theirs = (theirs + [None] * teacher_rows)[:teacher_rows]
        specials = _specials(teacher, student, their_specials, my_specials)
        same = _same(teacher.get_vocab(), student.get_vocab(), theirs, mine)
        same.update({index: there for index, there in specials.items() if there != LEFT_OUT and index < teacher_rows})
        occurs = torch.zeros(teacher_rows, dtype=torch.bool)
        known = [index for index in teacher.get_vocab().values() if index < teacher_rows]
        occurs[known] = True
        column = torch.full((teacher_rows,), NEVER, dtype=torch.int64)
        if same:
            column[list(same)] = torch.tensor(list(same.values()))
        rules = _bare(student)
        pieces = _pieces(rules, theirs, column)
        used = max(student.get_vocab().values()) + 1
        base = VocabularyMap.from_pieces(pieces, student_rows, used)
        return cls(
            base.offsets, base.pieces, student_rows, used, column, occurs, tuple(theirs), specials, rules, tuple(mine),
            frozenset(there for text, there in their_specials.items() if there in specials and text not in my_specials),
            {index: text for text, index in their_specials.items()},
        )  # fmt: skip

    @functools.cached_property
    def is_identity(self) -> bool:
        """Never: the text is tokenized anew."""
        return False

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.rules)
        # A special token that a text spells out is text.
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def _mapped(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Teacher's ids with a student's id of the same bytes, those student's ids, and the other ids that occur."""
        mapped = (self.same != NEVER) & self.occurs
        return mapped.nonzero().squeeze(1), self.same[mapped], (self.occurs & ~mapped).nonzero().squeeze(1)

    @functools.cached_property
    def _impossible(self) -> torch.Tensor:
        """Student's ids that no text has and the teacher's are none of, int64: special tokens of its own, rows that are no
        token, and bytes beside a token of the same text, which its tokenizer never makes.
        """
        mapped = set(self._mapped[1].tolist())
        texts = Counter(self.student_bytes[: self.student_used])
        found = [
            index
            for index, data in enumerate(self.student_bytes[: self.student_used])
            if index not in mapped and (data is None or (len(data) == 1 and data < b"\x80" and texts[data] > 1))
        ]
        found += range(len(self.student_bytes), self.student_used)
        return torch.tensor(found, dtype=torch.int64)

    @functools.cached_property
    def _no_others(self) -> bool:
        """Whether the student has no ids besides those that the teacher has too, and those that no text has."""
        return len(self._mapped[1]) + len(self._impossible) >= self.student_used

    def _with_impossible(self, ids: torch.Tensor, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Entries [N, K] and, behind them, the ids that no text has, as good as impossible."""
        never = self._impossible.to(ids.device)
        if not len(never):
            return ids, logprobs
        count = len(logprobs)
        least = logprobs.new_full((1, 1), IMPOSSIBLE).expand(count, len(never))
        behind = torch.where(logprobs.isneginf().all(1, keepdim=True), float("-inf"), least)
        shared = ids.stride(0) == 0 and count > 0
        row = torch.cat([ids[:1] if shared else ids, never.expand(1 if shared else count, len(never))], 1)
        return row.expand(count, -1) if shared else row, torch.cat([logprobs, behind], 1)

    def tokenize(self, ids: torch.Tensor) -> Tokenized:
        """One text, given in the teacher's ids [L], in the student's.

        Raises:
            VocabularyMismatch: The student's tokenizer has no token for a special token of the text, or does not give the
                text back.
        """
        # 1. The text's bytes; a special token is one byte that cannot be text.
        parts: list[bytes] = []
        marks: dict[int, int] = {}
        place = 0
        for number, index in enumerate(ids.tolist()):
            part = self.teacher_bytes[index] if 0 <= index < len(self.teacher_bytes) else None
            if part is None:
                # What a student has by role begins and ends texts; in between a chat would be asked in other words later.
                if index not in self.specials or (index in self.by_role and 0 < number < len(ids) - 1):
                    raise VocabularyMismatch(
                        f"The text has the teacher's special token `{self.names.get(index, index)}`, and the student's "
                        "tokenizer has none like it.",
                        "Add it to the student's tokenizer, or leave out the chats (plain text needs none).",
                    )
                marks[place], part = self.specials[index], MARK
            parts.append(part)
            place += len(part)
        data = b"".join(parts)
        teacher_ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        # 2. The student's tokens of every stretch of text; bytes of a character that was split are left out.
        student: list[int] = []
        begins: list[int] = []
        ends: list[int] = []
        for begin, end in _stretches(data):
            if data[begin:end] == MARK:
                if marks.get(begin, LEFT_OUT) != LEFT_OUT:
                    student.append(marks[begin])
                    begins.append(begin)
                    ends.append(end)
                continue
            at = begin
            for index, size in self._encode(data[begin:end]):
                student.append(index)
                begins.append(at)
                at += size
                ends.append(at)
        # 3. Chunks end where tokens of both end.
        first, last = np.asarray(begins, dtype=np.int64), np.asarray(ends, dtype=np.int64)
        shared = np.intersect1d(last, teacher_ends)
        chunk, teacher_chunk = np.searchsorted(shared, last), np.searchsorted(shared, teacher_ends)
        gap = np.zeros(len(first), dtype=bool)
        gap[1:] = first[1:] != last[:-1]
        whole = np.ones(len(shared) + 1, dtype=bool)
        whole[[0, -1]] = False
        whole[chunk[gap]] = False
        origin = np.searchsorted(teacher_ends, first, side="right")
        return Tokenized(np.asarray(student, dtype=np.int64), origin, chunk, teacher_chunk, whole, gap)

    def _encode(self, data: bytes) -> Iterator[tuple[int, int]]:
        """The student's tokens of a stretch of UTF-8, with their bytes."""
        found = self._tokenizer.encode(data.decode(), add_special_tokens=False).ids
        parts = [self.student_bytes[index] if index < len(self.student_bytes) else None for index in found]
        joined = b"".join(part or MARK for part in parts)
        # SentencePiece's tokenizers may write a space before every text.
        before = 1 if joined == b" " + data else 0
        if joined[before:] != data:
            raise VocabularyMismatch(
                "The student's tokenizer does not give a text back as it was: it changes characters or has no token for some.",
                "Use a student whose tokenizer has a token for every byte and does not normalise text.",
            )
        for index, part in zip(found, parts, strict=True):
            yield index, len(part or b"") - before
            before = 0

    def expand(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One text in the student's tokens: see :meth:`VocabularyMap.expand`."""
        found = self.tokenize(ids.to(torch.int64))
        return torch.from_numpy(found.ids), torch.from_numpy(found.origin)

    def row(self, sequences: Sequences, index: int) -> AlignedRow:
        """One sequence in the student's tokens."""
        keep = sequences.segments[index] >= 0
        ids, segments = sequences.ids[index][keep], sequences.segments[index][keep].numpy()
        has_target = (sequences.targets[index][keep] != IGNORED).numpy()
        # The teacher's position that predicts each token, counted among those with a target; -1: none does.
        rank = np.where(has_target, has_target.cumsum() - 1, -1)
        covered = np.zeros(int(has_target.sum()), dtype=bool)
        columns: dict[str, list[Array]] = {
            name: [] for name in ("ids", "segments", "targets", "source", "speaks", "taken", "chunk", "member", "owner")
        }
        chunks = 0
        edges = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)] if len(segments) else []
        for begin, end in itertools.pairwise(edges):
            text = self.tokenize(ids[begin:end])
            predicted_by = np.full(end - begin, -1, dtype=np.int64)
            predicted_by[1:] = rank[begin : end - 1]
            learned = predicted_by >= 0
            count = len(text.whole)
            mine = np.bincount(text.chunk, minlength=count)
            theirs = np.bincount(text.teacher_chunk, minlength=count)
            right = np.bincount(text.teacher_chunk, weights=learned, minlength=count).astype(np.int64)
            single = text.whole & (mine == 1) & (theirs == 1) & (right == 1)
            several = text.whole & ~single & (right == theirs) & (mine > 0) & (theirs > 0)
            wanted = text.whole & (right > 0)
            covered[predicted_by[learned & text.whole[text.teacher_chunk]]] = True
            number = np.where(several, several.cumsum() - 1 + chunks, -1)
            size = len(text.ids)
            targets = np.full(size, IGNORED, dtype=np.int64)
            chunk = np.full(size, -1, dtype=np.int64)
            speaks = np.zeros(size, dtype=bool)
            of_next = text.chunk[1:]
            follows = ~text.gap[1:]
            targets[:-1] = np.where(wanted[of_next] & follows, text.ids[1:], IGNORED)
            chunk[:-1] = number[of_next]
            speaks[:-1] = single[of_next] & follows
            teacher_token = np.full(count, 0, dtype=np.int64)
            teacher_token[text.teacher_chunk] = np.arange(end - begin)
            inside = number[text.teacher_chunk] >= 0
            columns["ids"].append(text.ids)
            columns["segments"].append(np.full(size, segments[begin], dtype=np.int64))
            columns["targets"].append(targets)
            columns["source"].append(np.minimum(text.origin, end - begin - 1) + begin)
            columns["speaks"].append(speaks.astype(np.int64))
            columns["taken"].append(predicted_by[teacher_token[of_next[speaks[:-1]]]])
            columns["chunk"].append(chunk)
            columns["member"].append(predicted_by[inside])
            columns["owner"].append(number[text.teacher_chunk[inside]])
            chunks += int(several.sum())
        joined = {
            name: torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts])) for name, parts in columns.items()
        }
        return AlignedRow(
            joined["ids"],
            joined["segments"],
            joined["targets"],
            joined["source"],
            joined["speaks"].bool(),
            joined["taken"],
            joined["chunk"],
            (joined["member"], joined["owner"]),
            chunks,
            torch.from_numpy(covered),
        )

    def coarse(self, said: Signal) -> CoarseSignal:
        """What the teacher predicts, as far as the student's tokens can say it: ids with the same bytes, and all others as one.

        Args:
            said: In the teacher's ids, with exact probabilities.

        Raises:
            VocabularyMismatch: The signal is a sample, or not exact.
        """
        if isinstance(said, CoarseSignal):
            return self.project_coarse(said)
        if isinstance(said, SparseSignal):
            raise VocabularyMismatch(
                "A student with another tokenizer needs the teacher's exact probabilities, and the cache holds a sample.",
                "Capture with `codec: {kind: hidden}` or `{kind: dense}`.",
            )
        mapped, ids, others = (part.to(said.logprobs.device) for part in self._mapped)
        listed = said.logprobs.index_select(1, mapped)
        rest = (
            said.logprobs.index_select(1, others).logsumexp(1)
            if len(others)
            else torch.full_like(listed[:, 0], float("-inf"))
        )
        if self._no_others:
            rest = torch.full_like(rest, float("-inf"))
        total = torch.logaddexp(listed.logsumexp(1), rest)
        # A teacher that rules out all that occurs says "any id", and asks for nothing.
        silent = says_nothing(total, self.teacher_size)
        total = total.masked_fill(silent, float("inf"))
        others = (rest - total).exp().masked_fill(silent, 1.0)
        # One row of ids for all positions: it takes no memory.
        row, logprobs = self._with_impossible(ids.expand(len(listed), len(ids)), listed - total[:, None])
        return CoarseSignal(row, logprobs, others)

    def project_coarse(self, signal: CoarseSignal) -> CoarseSignal:
        """Lists of an endpoint: see :meth:`coarse`."""
        device = signal.ids.device
        if widest(device) != torch.float64:
            return self.project_coarse(signal.to(torch.device("cpu"))).to(device)
        same, occurs = self.same.to(signal.ids.device)[signal.ids], self.occurs.to(signal.ids.device)[signal.ids]
        mass = signal.logprobs.double().exp()
        known = (same != NEVER) & signal.listed
        rest = signal.rest.double() + torch.where(~known & occurs & signal.listed, mass, 0.0).sum(1)
        listed = torch.where(known, mass, 0.0)
        # As in `coarse`.
        rest = torch.where(self._no_others & (listed.sum(1) > 0), 0.0, rest)
        silent = says_nothing((listed.sum(1) + rest).log(), self.teacher_size)
        listed, rest = listed.masked_fill(silent[:, None], 0.0), rest.masked_fill(silent, 1.0)
        total = listed.sum(1) + rest
        logprobs = torch.where(known, (listed / total[:, None]).log(), float("-inf")).to(signal.logprobs.dtype)
        ids, logprobs = self._with_impossible(torch.where(known, same, 0), logprobs)
        return CoarseSignal(ids, logprobs, (rest / total).to(signal.rest.dtype), signal.certain)

    def project_dense(self, logprobs: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Not possible: the student's tokens are not parts of the teacher's.

        Raises:
            VocabularyMismatch: Always.
        """
        raise VocabularyMismatch(
            "The student has another tokenizer than the teacher: there is no distribution of the teacher over its tokens.",
            "Compare them by bits per byte (the metric `fidelity`), or use a student with the teacher's tokenizer.",
        )

    def project_sparse(self, signal: SparseSignal) -> SparseSignal:
        """Not possible, as :meth:`project_dense`."""
        self.coarse(signal)
        raise AssertionError

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.torch import save_file

        names = ("teacher", "student")
        texts = {name: _pack(part) for name, part in zip(names, (self.teacher_bytes, self.student_bytes), strict=True)}
        tensors = {
            "offsets": self.offsets.contiguous(),
            "pieces": self.pieces.contiguous(),
            "sizes": torch.tensor([self.teacher_size, self.student_size, self.student_used]),
            "same": self.same,
            "occurs": self.occurs.to(torch.uint8),
            "by_role": torch.tensor(sorted(self.by_role), dtype=torch.int64),
            "specials": torch.tensor(sorted(self.specials.items()), dtype=torch.int64).reshape(-1, 2),
            "rules": torch.tensor(list(self.rules.encode()), dtype=torch.uint8),
        }
        for name, (lengths, data) in texts.items():
            tensors |= {f"{name}_lengths": lengths, f"{name}_bytes": data}
        with files.replacing(path) as beside:
            save_file(tensors, beside)

    @classmethod
    def of_tensors(cls, tensors: dict[str, torch.Tensor]) -> Alignment:
        """What :meth:`save` wrote."""
        _, size, used = tensors["sizes"].tolist()
        return cls(
            tensors["offsets"],
            tensors["pieces"],
            size,
            used,
            tensors["same"],
            tensors["occurs"].bool(),
            _unpack(tensors["teacher_lengths"], tensors["teacher_bytes"]),
            {int(there): int(here) for there, here in tensors["specials"].tolist()},
            tensors["rules"].numpy().tobytes().decode(),
            _unpack(tensors["student_lengths"], tensors["student_bytes"]),
            # Files of before have none.
            frozenset(tensors["by_role"].tolist()) if "by_role" in tensors else frozenset(),
        )


def load_vocabulary(path: Path) -> VocabularyMap:
    """What the stage `shrink` wrote of a student's vocabulary: a map of ids, or an alignment of two tokenizers.

    Raises:
        VocabularyMismatch: The file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            aligned = "rules" in set(file.keys())
        return Alignment.of_tensors(load_file(path)) if aligned else VocabularyMap.load(path)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise VocabularyMismatch(
            f"{path}: the vocabulary map cannot be read: {error}.", "Run the stage `shrink` again."
        ) from None


def text_logprobs(said: Signal, targets: torch.Tensor) -> torch.Tensor:
    """The teacher's log-probabilities of the text's own tokens, [N]; NaN where a list does not hold the token.

    Args:
        said: In the teacher's ids.
        targets: The text's tokens, [N].
    """
    if isinstance(said, DenseSignal):
        return said.logprobs.gather(1, targets[:, None]).squeeze(1)
    if isinstance(said, CoarseSignal):
        hit = (said.ids == targets[:, None]) & said.listed
        known = torch.where(hit, said.logprobs, 0.0).sum(1)
        return torch.where(hit.any(1), known, float("nan"))
    raise VocabularyMismatch(
        "A sample does not hold the probability of the text.", "Capture with `codec: {kind: hidden}`."
    )


def describe(alignment: Alignment, text: Sequences, most: int = 64) -> dict[str, Any]:
    """How two tokenizations of a text are aligned, and what a student learns from what.

    Args:
        alignment: Of teacher and student.
        text: Of a split.
        most: At most so many sequences are looked at.

    Returns:
        ``student_tokens_per_teacher_token``; the shares of the student's predicted tokens that are learned from the teacher's
        ``distribution``, as parts of ``chunks``, or from ``neither``; ``shared_ids``: the share of the student's ids that the
        teacher has, too.
    """
    rows = [alignment.row(text, index) for index in range(min(most, len(text)))]
    tokens = max(1, sum(int((row.targets != IGNORED).sum()) for row in rows))
    speaks, inside = sum(int(row.speaks.sum()) for row in rows), sum(int((row.chunk >= 0).sum()) for row in rows)
    theirs = max(1, int((text.segments[: len(rows)] >= 0).sum()))
    return {
        "student_tokens_per_teacher_token": round(sum(len(row.ids) for row in rows) / theirs, 5),
        "distribution": round(speaks / tokens, 5),
        "chunks": round(inside / tokens, 5),
        "neither": round(1 - (speaks + inside) / tokens, 5),
        "shared_ids": round(int((alignment.same != NEVER).sum()) / alignment.student_used, 5),
    }


def words_of(found: dict[str, Any]) -> str:
    """What :func:`describe` found, in one line."""
    line = (
        f"another tokenizer: {found['student_tokens_per_teacher_token']:.2f} student tokens per teacher token; learned from "
        f"the teacher's distribution {found['distribution']:.1%}, from whole chunks {found['chunks']:.1%}"
    )
    return line + (f", from neither {found['neither']:.1%}" if found["neither"] > 0 else "")


def _specials(
    teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, theirs: dict[str, int], mine: dict[str, int]
) -> dict[int, int]:
    """The student's special token for each of the teacher's: of the same text, or of the same role."""
    found = {index: mine[text] for text, index in theirs.items() if text in mine}
    for role in ("eos_token_id", "bos_token_id"):
        there, here = getattr(teacher, role), getattr(student, role)
        if there is not None and there not in found and here is not None and here not in found.values():
            found[there] = here
    bos = teacher.bos_token_id
    if bos is not None and bos not in found and bos != teacher.eos_token_id:
        # A student that does without a beginning of text begins with the text.
        found[bos] = LEFT_OUT
    return found


def _same(
    their_ids: dict[str, int], my_ids: dict[str, int], theirs: Sequence[bytes | None], mine: Sequence[bytes | None]
) -> dict[int, int]:
    """Ids with the same bytes, each at most once.

    First those that are written the same way, then the others. A tokenizer may have a byte beside a token of the same text; it
    makes the token of a text, so that the byte has no counterpart in a tokenizer without such bytes.
    """
    found = {
        there: my_ids[text]
        for text, there in their_ids.items()
        if there < len(theirs) and theirs[there] and text in my_ids and mine[my_ids[text]] == theirs[there]
    }
    used, taken = set(found.values()), {theirs[there] for there in found}
    by_bytes: dict[bytes, int] = {}
    for _, here in sorted((is_byte(text), index) for text, index in my_ids.items()):
        data = mine[here]
        if data and here not in used:
            by_bytes.setdefault(data, here)
    for _, there in sorted((is_byte(text), index) for text, index in their_ids.items()):
        data = theirs[there] if there < len(theirs) and there not in found else None
        if data and data not in taken and data in by_bytes:
            found[there] = by_bytes[data]
            taken.add(data)
    return found


def _bare(tokenizer: PreTrainedTokenizerFast) -> str:
    """A tokenizer's rules without what is put around a text."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["post_processor"] = rules["truncation"] = rules["padding"] = None
    return json.dumps(rules, ensure_ascii=False)


def _pieces(rules: str, theirs: Sequence[bytes | None], same: torch.Tensor) -> list[list[int]]:
    """What the student makes of each teacher's id by itself; nothing of one that is no text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(rules)
    found: list[list[int]] = [[index] if index != NEVER else [] for index in same.tolist()]
    asked: list[int] = []
    texts: list[str] = []
    for index, data in enumerate(theirs):
        if data and not found[index]:
            try:
                texts.append(data.decode())
            except UnicodeDecodeError:
                continue
            asked.append(index)
    for index, encoding in zip(asked, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        found[index] = list(encoding.ids)
    return found


def _stretches(data: bytes) -> Iterator[tuple[int, int]]:
    """Stretches of whole characters, and single ``MARK`` bytes, in order; what is neither is left out."""
    begin = 0
    while begin < len(data):
        try:
            data[begin:].decode()
        except UnicodeDecodeError as error:
            end = begin + error.start
            if end > begin:
                yield begin, end
            if data[end : end + 1] == MARK:
                yield end, end + 1
                begin = end + 1
            else:
                begin = end + max(1, error.end - error.start)
            continue
        yield begin, len(data)
        return


def _pack(texts: Sequence[bytes | None]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([-1 if text is None else len(text) for text in texts], dtype=torch.int64)
    return lengths, torch.tensor(list(b"".join(text or b"" for text in texts)), dtype=torch.uint8)


def _unpack(lengths: torch.Tensor, data: torch.Tensor) -> tuple[bytes | None, ...]:
    joined, at = data.numpy().tobytes(), 0
    found: list[bytes | None] = []
    for length in lengths.tolist():
        found.append(None if length < 0 else joined[at : at + length])
        at += max(0, length)
    return tuple(found)

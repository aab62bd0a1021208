"""Sources to the three splits and their data manifest."""

from __future__ import annotations

import array
import functools
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.core import files
from stillroom.core.errors import CorpusError
from stillroom.core.progress import Progress
from stillroom.corpus.cutting import capped, cut, overlap_of
from stillroom.corpus.documents import NO_ANSWER, UNANSWERED, Document
from stillroom.corpus.found import Found
from stillroom.corpus.near_duplicates import near_duplicates
from stillroom.corpus.pieces import PieceList, Pieces
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.sources import name_of, read_source
from stillroom.corpus.split import RULE, SPLITS, sides_of
from stillroom.corpus.store import DocumentStore
from stillroom.corpus.tally import Tally
from stillroom.corpus.tokens import Encoder
from stillroom.recipe.corpus import CorpusConfig, JsonlSource
from stillroom.recipe.routes import routes_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Array = npt.NDArray[Any]

BATCH = 256
"""Most documents that are tokenized together."""
BATCH_BYTES = 1 << 22
"""Most bytes that are tokenized together, unless one document alone has more."""


MEASURED_SHARE = {"validation": (16, 10_000), "heldout": (8, 20_000)}
"""Of each split besides training, without a limit in the recipe: training tokens divided by the first number are its limit, or
the second, if that is more."""


def default_limit(split: str, train_tokens: int) -> int:
    """Most tokens that are taken for validation or held-out text where the recipe does not say."""
    part, least = MEASURED_SHARE[split]
    return max(train_tokens // part, least)


@dataclass
class SourceLedger:
    """What was read of one source, and what became of it."""

    kind: str
    name: str
    licence: str | None
    documents: int = 0
    empty: int = 0
    duplicates: int = 0
    too_long: int = 0
    tally: Tally = field(default_factory=Tally)
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    _digest: Any = field(default_factory=hashlib.sha256)

    def note(self, digest: str) -> None:
        """Count a document's digest into the source's."""
        self._digest.update(bytes.fromhex(digest))

    def leave_out(self, document: Document) -> None:
        """Count a document in which there is nothing to learn."""
        self.empty += 1
        if document.lacks_answer:
            self.tally.notes[NO_ANSWER] += 1

    def as_dict(self) -> dict[str, Any]:
        """The data manifest's entry; the digest covers the digests of all documents in order."""
        return {
            "kind": self.kind,
            "name": self.name,
            "licence": self.licence,
            "digest": self._digest.hexdigest(),
            "documents": self.documents,
            "empty": self.empty,
            "duplicates": self.duplicates,
            "too_long": self.too_long,
            **self.tally.as_dict(),
            "kept": self.kept,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class Corpus:
    """Three splits and the data manifest of where they came from."""

    pieces: dict[str, Pieces]
    ledger: dict[str, Any]

    @functools.cached_property
    def splits(self) -> dict[str, Sequences]:
        """The splits in memory, packed into rows."""
        return {name: Sequences.pack(pieces) for name, pieces in self.pieces.items()}


def build_corpus(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    progress: Progress,
    scratch: Path | None = None,
    written: Path | None = None,
) -> Corpus:
    """Read, split, tokenize, split into pieces and pack.

    Args:
        config: The recipe's section.
        tokenizer: The teacher's tokenizer.
        seed: Order of the documents.
        progress: Draws the bars.
        scratch: A folder for documents on their way; None takes the system's.
        written: JSON Lines that a teacher wrote about the training documents; they are one more source, and train only.

    Raises:
        CorpusError: A source is unreadable, everything is empty, there are too few tokens, or none are left for a teacher.
        NotWritable: A file may not be read.
        MissingDependency: A source needs an extra that is not installed.
    """
    ledgers = [SourceLedger(source.kind, name_of(source), source.licence) for source in config.sources]
    encoder = Encoder(tokenizer, config.add_bos, config.add_eos)
    limits = {name: getattr(config, f"{name}_tokens") for name in SPLITS}
    overlap = overlap_of(config.sequence_length) if config.overlap_tokens is None else config.overlap_tokens
    lists = {
        name: PieceList(config.sequence_length, overlap, config.cross_documents, limit, scratch)
        for name, limit in limits.items()
    }
    taken = {name: array.array("I") for name in SPLITS}
    over = dict.fromkeys(SPLITS, 0)
    too_long = dict.fromkeys(SPLITS, 0)
    with DocumentStore(scratch) as store:
        found = _read(config, ledgers, store, progress)
        sides = sides_of(found.digests, config.validation_share, config.heldout_share)
        if written is not None:
            ledgers.append(SourceLedger("written", "text that a teacher wrote", None))
            # They train only, whatever their digests say.
            _read_written(written, ledgers, found, store)
            sides = np.concatenate([sides, np.full(len(found) - len(sides), SPLITS.index("train"), np.uint8)])
        order = found.order(seed)
        # Training text first: how much of the rest is taken by default is in proportion to it.
        train = sides[order] == SPLITS.index("train")
        order = np.concatenate([order[train], order[~train]])
        left_out: dict[str, int] = {}
        with progress.task("tokenize", total=len(order), unit="documents") as task:
            for batch in _batches(order, sides, lists, store):
                tokens = encoder.encode([store.get(number) for number in batch])
                for number, document in zip(batch, tokens, strict=True):
                    side = SPLITS[sides[number]]
                    if side in MEASURED_SHARE and lists[side].limit is None:
                        lists[side].limit = default_limit(side, lists["train"].tokens)
                    if lists[side].full:
                        continue
                    if config.skip_longer_than is not None and len(document.ids) > config.skip_longer_than:
                        ledgers[found.source(number)].too_long += 1
                        too_long[side] += 1
                        continue
                    pieces = cut(document, config.sequence_length, overlap)
                    if side != "train":
                        pieces, dropped = capped(pieces, config.max_document_tokens)
                        over[side] += dropped
                    lists[side].add(pieces, found.source(number))
                    taken[side].append(number)
                task.advance(len(batch))
            task.advance(task.total - task.done)
        for side in MEASURED_SHARE:
            there = int(np.count_nonzero(sides == SPLITS.index(side))) - too_long[side]
            if limits[side] is None and lists[side].full and len(taken[side]) < there:
                left_out[side] = there - len(taken[side])
        repeated = near_duplicates(
            taken["train"],
            {name: taken[name] for name in ("validation", "heldout")},
            lambda number: (store.get(number), ledgers[found.source(number)].name),
        )
    unlearned = {name: pieces.unlearned for name, pieces in lists.items()}
    made = {name: pieces.finish() for name, pieces in lists.items()}
    for name, limit in limits.items():
        _enough(name, made[name], limit, over[name], len(found), config)
        _count(name, made[name], ledgers)
    _require_learned(config, ledgers)
    ledger = _ledger(ledgers, made, over, unlearned, seed, config) | {
        "near_duplicates": repeated,
        "chats": encoder.chats,
        "chat_template_left_out": dict(encoder.notes.most_common()),
    }
    if left_out:
        ledger["documents_over_default_limit"] = left_out
    return Corpus(made, ledger)


def has_chats(folder: Path) -> bool:
    """Whether a corpus has chats; true of an older one, whose data manifest does not say.

    Args:
        folder: The folder of the stage `corpus`.
    """
    return bool(files.read_json(folder / "ledger.json").get("chats", True))


def _read(config: CorpusConfig, ledgers: list[SourceLedger], store: DocumentStore, progress: Progress) -> Found:
    """Every source's documents into the store, without empty ones and duplicates; a document has the same number in both."""
    found = Found()
    with progress.task("read", total=len(config.sources), unit="sources") as task:
        for index, (source, ledger) in enumerate(zip(config.sources, ledgers, strict=True)):
            for document in itertools.islice(read_source(source, ledger.tally), source.limit):
                ledger.documents += 1
                if ledger.documents % 1000 == 0:
                    task.advance(0, note=f"{ledger.name}: {ledger.documents:,} documents")
                if document.is_empty:
                    ledger.leave_out(document)
                    continue
                digest = document.digest
                ledger.note(digest)
                if found.add(digest, index):
                    store.add(document)
                else:
                    ledger.duplicates += 1
            task.advance(1, note=f"{len(found):,} documents")
    if not found:
        read = sum(ledger.documents for ledger in ledgers)
        names = ", ".join(ledger.name for ledger in ledgers)
        empty = "it was empty" if read == 1 else "all were empty" if read else "none was there"
        unanswered = sum(ledger.tally.notes[NO_ANSWER] for ledger in ledgers)
        empty += f" ({UNANSWERED}: {unanswered})" if unanswered else ""
        raise CorpusError(
            f"The corpus is empty: {read} document{' was' if read == 1 else 's were'} read from {names}, and {empty}.",
            "What is learned is what messages of the role `assistant`, or completions, say; name other sources in the recipe."
            if unanswered
            else "Name other sources in the recipe.",
        )
    return found


def _read_written(path: Path, ledgers: list[SourceLedger], found: Found, store: DocumentStore) -> None:
    """What a teacher wrote, into the store."""
    ledger = ledgers[-1]
    source = JsonlSource(path=path, ignore=("form", "document", "chunk"))
    for document in read_source(source, ledger.tally):
        ledger.documents += 1
        digest = document.digest
        ledger.note(digest)
        if document.is_empty:
            ledger.leave_out(document)
        elif found.add(digest, len(ledgers) - 1):
            store.add(document)
        else:
            ledger.duplicates += 1


def _batches(order: Array, sides: Array, lists: dict[str, PieceList], store: DocumentStore) -> Iterator[list[int]]:
    """Numbers of the documents in the order, some at a time, without those whose split is full."""
    batch: list[int] = []
    size = 0
    for number in map(int, order):
        side = SPLITS[sides[number]]
        if lists[side].full:
            continue
        here = store.size(number)
        if batch and (len(batch) == BATCH or size + here > BATCH_BYTES):
            yield batch
            batch, size = [], 0
            if lists[side].full:
                continue
        batch.append(number)
        size += here
    if batch:
        yield batch


def _count(name: str, pieces: Pieces, ledgers: list[SourceLedger]) -> None:
    """Documents and tokens of each source as they are in a split."""
    own = np.diff(pieces.offsets) - pieces.repeated
    documents = len(pieces.document_sources)
    tokens = np.bincount(pieces.documents, weights=own, minlength=documents).astype(np.int64)
    for index, ledger in enumerate(ledgers):
        mine = tokens[pieces.document_sources == index]
        ledger.kept[name] = int((mine > 0).sum())
        ledger.tokens[name] = int(mine.sum())


def _enough(name: str, pieces: Pieces, limit: int | None, over: int, documents: int, config: CorpusConfig) -> None:
    there = f"{documents:,} document{'s' * (documents != 1)}"
    share = "" if name == "train" else f" or raise `corpus.{name}_share`"
    if config.skip_longer_than is not None:
        share += ", or raise `corpus.skip_longer_than`"
    if int(pieces.targets.sum()) == 0:
        raise CorpusError(
            f"Nothing is left for the {name} split: the corpus has {there} without empty ones and duplicates.",
            f"Add documents{share}; a file of text is one document, and so is a line or row of the other kinds. "
            "Training, validation and held-out text each need one with two tokens or more.",
        )
    if limit is not None and pieces.tokens < limit:
        capped_ = (
            f" `corpus.max_document_tokens` leaves out {over:,} more of long documents: raising it takes them in."
            if over
            else ""
        )
        raise CorpusError(
            f"The recipe asks for {limit:,} {name} tokens, and the corpus ({there}) has {pieces.tokens:,} for it.",
            f"Add text{share}, lower `corpus.{name}_tokens`, or leave it out to take all there is.{capped_}",
        )


def _require_learned(config: CorpusConfig, ledgers: list[SourceLedger]) -> None:
    """Refuse a recipe's teacher, or mixture of teachers, whose sources have no training text left: it would teach nothing."""
    routes = routes_of([source.teacher for source in config.sources])
    for route in routes:
        mine = [ledgers[index] for index in route.sources]
        if len(routes) == 1 or any(ledger.tokens["train"] for ledger in mine):
            continue
        read = "; ".join(
            f"{ledger.name} has {ledger.documents:,}, of them {ledger.duplicates:,} duplicates of earlier ones, "
            f"{ledger.empty:,} empty and {ledger.too_long:,} too long"
            for ledger in mine
        )
        raise CorpusError(
            f"Nothing is left to train on for the teacher `{route.label}`. Documents: {read}.",
            "Of a text in two sources the first one's teacher is learned from: name the teacher there, as a mixture of both if "
            "you like, take the source out, or raise `corpus.train_tokens`.",
        )


def _ledger(
    ledgers: list[SourceLedger],
    made: dict[str, Pieces],
    over: dict[str, int],
    unlearned: dict[str, int],
    seed: int,
    config: CorpusConfig,
) -> dict[str, Any]:
    return {
        "sources": [ledger.as_dict() for ledger in ledgers],
        "splits": {
            name: {
                "sequences": len(pieces.layout),
                "pieces": len(pieces),
                "tokens": pieces.tokens,
                "tokens_repeated": int(pieces.repeated.sum()),
                "tokens_padding": len(pieces.layout) * pieces.length - len(pieces.ids),
                "targets": pieces.row_targets,
                "targets_without_context": pieces.targets_without_context,
                "targets_over_document_limit": over[name],
                "tokens_not_learned_left_out": unlearned[name],
                "documents": sum(ledger.kept[name] for ledger in ledgers),
                "digest": pieces.digest,
            }
            for name, pieces in made.items()
        },
        "documents": sum(ledger.documents for ledger in ledgers),
        "empty": sum(ledger.empty for ledger in ledgers),
        "duplicates": sum(ledger.duplicates for ledger in ledgers),
        "too_long": sum(ledger.too_long for ledger in ledgers),
        "seed": seed,
        "split_by": RULE,
        "validation_share": config.validation_share,
        "heldout_share": config.heldout_share,
        "sequence_length": config.sequence_length,
        "overlap_tokens": next(iter(made.values())).overlap,
        "max_document_tokens": config.max_document_tokens,
        "cross_documents": config.cross_documents,
    }

"""Sources to the three splits and their ledger."""

from __future__ import annotations

import array
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core import files
from stillroom.core.errors import CorpusError
from stillroom.core.progress import Progress
from stillroom.corpus.near_duplicates import near_duplicates
from stillroom.corpus.packing import Packer
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.sources import name_of, read_source
from stillroom.corpus.split import RULE, SPLITS, split_of
from stillroom.corpus.store import DocumentStore
from stillroom.corpus.tokens import Encoder
from stillroom.recipe.corpus import CorpusConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH = 256
"""Most documents that are tokenized together."""
BATCH_BYTES = 1 << 22
"""Most bytes that are tokenized together, unless one document alone has more."""


@dataclass
class SourceLedger:
    """What was read of one source, and what became of it."""

    kind: str
    name: str
    licence: str | None
    documents: int = 0
    empty: int = 0
    duplicates: int = 0
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    _digests: array.array[int] = field(default_factory=lambda: array.array("B"))

    def note(self, digest: str) -> None:
        """Count a document's digest into the source's."""
        self._digests.frombytes(bytes.fromhex(digest))

    def as_dict(self) -> dict[str, Any]:
        """The ledger's entry; the digest covers the digests of all documents in order."""
        return {
            "kind": self.kind,
            "name": self.name,
            "licence": self.licence,
            "digest": files.digest_bytes(self._digests.tobytes()),
            "documents": self.documents,
            "empty": self.empty,
            "duplicates": self.duplicates,
            "kept": self.kept,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class Corpus:
    """Three splits and the ledger of where they came from."""

    splits: dict[str, Sequences]
    ledger: dict[str, Any]


def build_corpus(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    progress: Progress,
    scratch: Path | None = None,
) -> Corpus:
    """Read, split, tokenize and pack.

    Args:
        config: The recipe's section.
        tokenizer: The teacher's tokenizer.
        seed: Order of the documents.
        progress: Draws the bars.
        scratch: A folder for documents on their way; None takes the system's.

    Raises:
        CorpusError: A source is unreadable, everything is empty, or there are too few tokens.
        NotWritable: A file may not be read.
        MissingDependency: A source needs an extra that is not installed.
    """
    ledgers = [SourceLedger(source.kind, name_of(source), source.licence) for source in config.sources]
    encoder = Encoder(tokenizer, config.add_bos, config.add_eos)
    limits = {name: getattr(config, f"{name}_tokens") for name in SPLITS}
    packers = {
        name: Packer(
            config.sequence_length,
            config.cross_documents,
            None if limit is None else -(-limit // config.sequence_length),
        )
        for name, limit in limits.items()
    }
    taken: dict[str, list[str]] = {name: [] for name in SPLITS}
    with DocumentStore(scratch) as store:
        found = _read(config, ledgers, store, progress)
        sides = split_of(list(found), config.validation_share, config.heldout_share)
        # An order that depends on content and seed alone: sorted by a digest of both.
        order = sorted(found, key=lambda digest: files.digest_bytes(f"{seed}:{digest}".encode()))
        with progress.task("tokenize", total=len(order), unit="documents") as task:
            for batch in _batches(order, found, sides, packers, store):
                tokens = encoder.encode([store.get(found[digest][1]) for digest in batch])
                for digest, document in zip(batch, tokens, strict=True):
                    packer = packers[sides[digest]]
                    if not packer.full:
                        packer.add(document, found[digest][0])
                        taken[sides[digest]].append(digest)
                task.advance(len(batch))
            task.advance(task.total - task.done)
        repeated = near_duplicates(
            taken["train"],
            {name: taken[name] for name in ("validation", "heldout")},
            lambda digest: (store.get(found[digest][1]), ledgers[found[digest][0]].name),
        )
    splits = {name: packer.finish(keep_tail=name != "train") for name, packer in packers.items()}
    for name, limit in limits.items():
        _enough(name, splits[name], limit, config, len(found))
        _count(name, splits[name], ledgers)
    return Corpus(splits, _ledger(ledgers, splits, seed, config) | {"near_duplicates": repeated})


def _read(
    config: CorpusConfig, ledgers: list[SourceLedger], store: DocumentStore, progress: Progress
) -> dict[str, tuple[int, int]]:
    """Every source's documents into the store: source and number of each digest, without empty ones and duplicates."""
    found: dict[str, tuple[int, int]] = {}
    with progress.task("read", total=len(config.sources), unit="sources") as task:
        for index, (source, ledger) in enumerate(zip(config.sources, ledgers, strict=True)):
            for document in itertools.islice(read_source(source), source.limit):
                ledger.documents += 1
                if ledger.documents % 1000 == 0:
                    task.advance(0, note=f"{ledger.name}: {ledger.documents:,} documents")
                if document.is_empty:
                    ledger.empty += 1
                    continue
                digest = document.digest
                ledger.note(digest)
                if digest in found:
                    ledger.duplicates += 1
                else:
                    found[digest] = (index, store.add(document))
            task.advance(1, note=f"{len(found):,} documents")
    if not found:
        read = sum(ledger.documents for ledger in ledgers)
        names = ", ".join(ledger.name for ledger in ledgers)
        empty = "it was empty" if read == 1 else "all were empty" if read else "none was there"
        raise CorpusError(
            f"The corpus is empty: {read} document{' was' if read == 1 else 's were'} read from {names}, and {empty}.",
            "Name other sources in the recipe.",
        )
    return found


def _batches(
    order: list[str],
    found: dict[str, tuple[int, int]],
    sides: dict[str, str],
    packers: dict[str, Packer],
    store: DocumentStore,
) -> Iterator[list[str]]:
    """The documents in order, some at a time, without those whose split is full."""
    batch: list[str] = []
    size = 0
    for digest in order:
        if packers[sides[digest]].full:
            continue
        here = store.size(found[digest][1])
        if batch and (len(batch) == BATCH or size + here > BATCH_BYTES):
            yield batch
            batch, size = [], 0
            if packers[sides[digest]].full:
                continue
        batch.append(digest)
        size += here
    if batch:
        yield batch


def _count(name: str, sequences: Sequences, ledgers: list[SourceLedger]) -> None:
    """Documents and tokens of each source as they stand in the packed split."""
    there = sequences.documents[sequences.documents >= 0].to(torch.int64)
    tokens = torch.bincount(there, minlength=len(sequences.document_sources))
    for index, ledger in enumerate(ledgers):
        own = tokens[sequences.document_sources == index]
        ledger.kept[name] = int((own > 0).sum())
        ledger.tokens[name] = int(own.sum())


def _enough(name: str, sequences: Sequences, limit: int | None, config: CorpusConfig, documents: int) -> None:
    there = f"{documents:,} document{'s' * (documents != 1)}"
    share = "" if name == "train" else f" or raise `corpus.{name}_share`"
    if int((sequences.targets >= 0).sum()) == 0:
        raise CorpusError(
            f"Nothing is left for the {name} split: the corpus has {there} without empty ones and duplicates.",
            f"Add documents{share}; a file of text is one document, and so is a line or row of the other kinds. "
            "Training, validation and held-out text each need one with two tokens or more.",
        )
    if limit is not None and len(sequences) < -(-limit // config.sequence_length):
        raise CorpusError(
            f"The recipe asks for {limit:,} {name} tokens, and the corpus ({there}) has {sequences.tokens:,} for it.",
            f"Add text{share}, lower `corpus.{name}_tokens`, or leave it out to take all there is.",
        )


def _ledger(
    ledgers: list[SourceLedger], splits: dict[str, Sequences], seed: int, config: CorpusConfig
) -> dict[str, Any]:
    return {
        "sources": [ledger.as_dict() for ledger in ledgers],
        "splits": {
            name: {
                "sequences": len(sequences),
                "tokens": sequences.tokens,
                "targets": int((sequences.targets >= 0).sum()),
                "documents": sum(ledger.kept[name] for ledger in ledgers),
                "digest": files.digest_json(sequences.digests),
            }
            for name, sequences in splits.items()
        },
        "documents": sum(ledger.documents for ledger in ledgers),
        "empty": sum(ledger.empty for ledger in ledgers),
        "duplicates": sum(ledger.duplicates for ledger in ledgers),
        "seed": seed,
        "split_by": RULE,
        "validation_share": config.validation_share,
        "heldout_share": config.heldout_share,
        "sequence_length": config.sequence_length,
        "cross_documents": config.cross_documents,
    }

"""Sources to the three splits and their ledger. Knows nothing of runs or models' weights.

A document's side is decided by the digest of its content alone: it is never on two sides, and a corpus that grows keeps
its old split. In a corpus so small that a side stays empty, the documents of the lowest digests fill it.
"""

from __future__ import annotations

import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom import files
from stillroom.corpus.config import CorpusConfig
from stillroom.corpus.documents import Document
from stillroom.corpus.packing import Packer
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.sources import name_of, read_source
from stillroom.corpus.tokens import tokenize
from stillroom.errors import CorpusError
from stillroom.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation", "heldout")
BATCH = 256
"""Documents that are tokenized together."""


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
    digest: str = ""
    _digests: array.array[int] = field(default_factory=lambda: array.array("B"))

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


def build_corpus(config: CorpusConfig, tokenizer: PreTrainedTokenizerFast, seed: int, progress: Progress) -> Corpus:
    """Read, split, tokenize and pack.

    Args:
        config: The recipe's section.
        tokenizer: The teacher's tokenizer.
        seed: Order of the documents.
        progress: Draws the bar.

    Raises:
        CorpusError: A source is unreadable, everything is empty, or there are too few tokens.
    """
    ledgers = [SourceLedger(source.kind, name_of(source), source.licence) for source in config.sources]
    seen: dict[str, tuple[int, Document]] = {}
    for index, source in enumerate(config.sources):
        ledger = ledgers[index]
        for document in read_source(source):
            if source.limit is not None and ledger.documents >= source.limit:
                break
            ledger.documents += 1
            if document.is_empty:
                ledger.empty += 1
                continue
            digest = document.digest
            ledger._digests.frombytes(bytes.fromhex(digest))
            if digest in seen:
                ledger.duplicates += 1
                continue
            seen[digest] = (index, document)
    if not seen:
        read = sum(ledger.documents for ledger in ledgers)
        names = ", ".join(ledger.name for ledger in ledgers)
        raise CorpusError(
            f"The corpus is empty: {read} documents were read from {names}, and {'all were empty' if read else 'none was there'}.",
            "Name other sources in the recipe.",
        )
    sides = split_of(sorted(seen), config.validation_share, config.heldout_share)
    # An order that depends on content and seed alone: sorted by a digest of both.
    order = sorted(seen, key=lambda digest: files.digest_bytes(f"{seed}:{digest}".encode()))
    limits = {
        "train": config.train_tokens,
        "validation": config.validation_tokens,
        "heldout": config.heldout_tokens,
    }
    packers = {
        name: Packer(
            config.sequence_length,
            config.cross_documents,
            None if limit is None else -(-limit // config.sequence_length),
        )
        for name, limit in limits.items()
    }
    with progress.task("tokenize", total=len(order), unit="documents") as task:
        for start in range(0, len(order), BATCH):
            digests = [digest for digest in order[start : start + BATCH] if not packers[sides[digest]].full]
            documents = [seen[digest][1] for digest in digests]
            for digest, tokens in zip(
                digests, tokenize(documents, tokenizer, config.add_bos, config.add_eos), strict=True
            ):
                packer = packers[sides[digest]]
                if not packer.full and len(tokens.ids):
                    source_index = seen[digest][0]
                    ledgers[source_index].kept[sides[digest]] += 1
                    ledgers[source_index].tokens[sides[digest]] += packer.add(tokens, source_index)
            task.advance(min(BATCH, len(order) - start))
    splits = {name: packer.finish(keep_tail=name != "train") for name, packer in packers.items()}
    for name, limit in limits.items():
        _enough(name, splits[name], limit, config)
    return Corpus(splits, _ledger(ledgers, splits, seed, config))


def split_of(digests: list[str], validation_share: float, heldout_share: float) -> dict[str, str]:
    """The side of each document: the first 52 bits of its digest, read as a number in [0, 1).

    Held-out takes the lowest numbers, validation the next. Where a side would stay empty although there are enough
    documents, it takes the lowest one of the training side.
    """
    sides = {}
    for digest in digests:
        number = int(digest[:13], 16) / 16**13
        if number < heldout_share:
            sides[digest] = "heldout"
        else:
            sides[digest] = "validation" if number < heldout_share + validation_share else "train"
    for side in ("heldout", "validation"):
        training = sorted(digest for digest in digests if sides[digest] == "train")
        if side not in sides.values() and len(training) > 1:
            sides[training[0]] = side
    if "train" not in sides.values() and len(digests) >= 3:
        sides[max(digests)] = "train"
    return sides


def _enough(name: str, sequences: Sequences, limit: int | None, config: CorpusConfig) -> None:
    key = f"{name}_tokens"
    there = sequences.tokens
    if len(sequences) == 0 or int((sequences.targets >= 0).sum()) == 0:
        raise CorpusError(
            f"The corpus has nothing for the {name} split.",
            "Add documents: every split needs at least one (training, validation, held-out).",
        )
    if limit is not None and there < limit and len(sequences) < -(-limit // config.sequence_length):
        raise CorpusError(
            f"The recipe asks for {limit:,} {name} tokens, and the corpus has {there:,}.",
            f"Add text, lower `corpus.{key}`, or leave it out to take all there is.",
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
                "documents": len(sequences.document_sources),
                "digest": files.digest_json(sequences.digests),
            }
            for name, sequences in splits.items()
        },
        "documents": sum(ledger.documents for ledger in ledgers),
        "empty": sum(ledger.empty for ledger in ledgers),
        "duplicates": sum(ledger.duplicates for ledger in ledgers),
        "seed": seed,
        "split_by": "SHA-256 of the document",
        "sequence_length": config.sequence_length,
        "cross_documents": config.cross_documents,
    }

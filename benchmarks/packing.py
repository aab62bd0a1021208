"""What cutting documents into pieces and packing them costs: context that the teacher misses, and tokens that teach nothing.

    .venv/bin/python -m benchmarks.packing [--quick] [--json FILE]

SmolLM2-135M-Instruct in float32 on Python's own documentation, as plain text and as chats, at the default sequence length and
overlap. `kl_context` is KL(teacher with the whole document before it || teacher as packed) per learned target, in nats: a
sample of documents is run whole, up to the teacher's 8,192 positions, and as the rows of its pieces (`--quick`: a smaller
sample, and the default alone of the curve; the shares are of all documents either way). `wasted_share` is the
share of all tokens of rows that are padding or repeated, over every document. Both are the worst of a corpus of short documents
(those that fit into a sequence) and of mixed ones (all). Of mixed ones the sample is of those that do not fit: the others are
one piece each, for which the short ones are measured, and count with that (`cut_targets_share` is the share of the cut ones'
targets). For long documents (four sequences of the default length and more) there is a curve over overlap and length; an
overlap of 0 is what a document cut anywhere comes to, as release 0.1.0 did it. `--tokens` sets the size of a sample,
`--no-curve` leaves the curve out.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import material, report
from stillroom.corpus.cutting import cut, overlap_of
from stillroom.corpus.pieces import PieceList, Pieces
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.corpus.sources import read_source
from stillroom.corpus.tokens import Encoder, Tokens
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.recipe.corpus import CorpusConfig, PythonDocsSource

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

LENGTH = int(CorpusConfig.model_fields["sequence_length"].default)
WHOLE = 8192
"""Positions that the teacher was trained on: longer documents are shortened to so many tokens."""
LONG = 4 * LENGTH
CHUNK = 256
CURVE = [(512, 0), (512, 128), (1024, 0), (1024, 128), (1024, 256), (1024, 512), (2048, 256), (2048, 512)]
"""Length and overlap."""


@dataclass(frozen=True)
class Found:
    """What packing some documents costs.

    Attributes:
        kl: Per learned target, nats.
        targets: Learned targets that it was measured on.
        continued: Share of them in pieces that do not begin their document.
        overlap: Share of all tokens of rows that are repeated.
        padding: Share of them that is padding.
    """

    kl: float | None
    targets: int
    continued: float
    overlap: float
    padding: float
    cut: float = 1.0
    """Share of all targets that are of documents like those of the sample; the others lose nothing."""

    def as_dict(self) -> dict[str, Any]:
        """Numbers by name."""
        return {
            "kl_context": self.kl,
            "targets": self.targets,
            "continued_share": self.continued,
            "cut_targets_share": self.cut,
            "overlap_share": self.overlap,
            "padding_share": self.padding,
            "wasted_share": self.overlap + self.padding,
        }


def packed(documents: list[Tokens], length: int, overlap: int) -> Pieces:
    """The pieces of documents, in their order."""
    gathered = PieceList(length, overlap)
    for tokens in documents:
        gathered.add(cut(tokens, length, overlap), 0)
    return gathered.finish()


def shares(pieces: Pieces) -> tuple[float, float, float]:
    """Overlap and padding as shares of all tokens of rows, and the share of targets in pieces that go on."""
    rows = Sequences.pack(pieces)
    tokens = rows.ids.numel()
    going_on = int(pieces.targets[~pieces.begins].sum()) / max(1, int(pieces.targets.sum()))
    return int(pieces.repeated.sum()) / tokens, int((rows.segments < 0).sum()) / tokens, going_on


@torch.inference_mode()
def states(model: CausalModel, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states [L, H] of one row."""
    return hidden_states(model, ids[None], positions[None])[0]


@torch.inference_mode()
def whole_states(model: CausalModel, documents: list[Tokens]) -> list[torch.Tensor]:
    """Hidden states of each document, run whole."""
    return [
        states(model, torch.from_numpy(np.asarray(tokens.ids)), torch.arange(len(tokens.ids))) for tokens in documents
    ]


@torch.inference_mode()
def divergence(model: CausalModel, documents: list[Tokens], whole: list[torch.Tensor], pieces: Pieces) -> float:
    """KL per learned target between the teacher on whole documents and on the rows of their pieces, nats."""
    rows = Sequences.pack(pieces)
    total, count = 0.0, 0
    done = [0] * len(documents)
    # Where in its document each piece's own tokens begin, by the address of the piece.
    begins: dict[int, int] = {}
    for index, document in enumerate(pieces.documents.tolist()):
        begins[index] = done[document]
        done[document] += pieces.sizes[index] - int(pieces.repeated[index])
    where = {address: index for index, address in enumerate(pieces.addresses)}
    for row, addresses in enumerate(rows.addresses):
        hidden = states(model, rows.ids[row], rows.positions[row])
        begin = 0
        for address in addresses:
            index = where[address]
            size, repeated = pieces.sizes[index], int(pieces.repeated[index])
            targets = (rows.targets[row, begin : begin + size] != IGNORED).nonzero().squeeze(1)
            mine = hidden[begin + targets]
            theirs = whole[int(pieces.documents[index])][begins[index] - repeated + targets]
            begin += size
            for part in range(0, len(targets), CHUNK):
                context, alone = (
                    torch.log_softmax(logits_from_hidden(model, both[part : part + CHUNK]), dim=1)
                    for both in (theirs, mine)
                )
                total += float((context.exp() * (context - alone)).sum(dtype=torch.float64))
            count += len(targets)
    return total / max(1, count)


def measure(
    model: CausalModel, documents: list[Tokens], sample: list[Tokens], whole: list[torch.Tensor], sizes: tuple[int, int]
) -> Found:
    """Shares over all documents, and the divergence over a sample of them."""
    overlap, padding, going_on = shares(packed(documents, *sizes))
    pieces = packed(sample, *sizes)
    return Found(divergence(model, sample, whole, pieces), int(pieces.targets.sum()), going_on, overlap, padding)


def mixed(
    model: CausalModel, documents: list[Tokens], sample: list[Tokens], uncut: float, sizes: tuple[int, int]
) -> Found:
    """As :func:`measure` where the sample is of documents that are cut, and ``uncut`` is the divergence of the others."""
    pieces = packed(documents, *sizes)
    cut = np.bincount(pieces.documents)[pieces.documents] > 1
    share = int(pieces.targets[cut].sum()) / max(1, int(pieces.targets.sum()))
    found = measure(model, documents, sample, whole_states(model, sample), sizes)
    assert found.kl is not None
    return replace(found, kl=share * found.kl + (1 - share) * uncut, cut=share)


def sample_of(documents: list[Tokens], tokens: int, seed: int) -> list[Tokens]:
    """Documents drawn at random, about so many tokens of them."""
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    found: list[Tokens] = []
    for index in order:
        if found and sum(len(document.ids) for document in found) + len(documents[index].ids) > tokens:
            break
        found.append(documents[index])
    return found


def shortened(tokens: Tokens) -> Tokens:
    """The document, up to as many tokens as the teacher can see."""
    part = slice(WHOLE)
    turns = tuple((start, answer) for start, answer in tokens.turns if answer < WHOLE)
    return Tokens(tokens.ids[part], tokens.learned[part], tokens.bytes[part], tokens.bos, tokens.head, turns)


def corpora(tokenizer: Any) -> dict[str, list[Tokens]]:
    """Tokens of Python's documentation, as text and as chats."""
    encoder = Encoder(tokenizer)
    found = {}
    for form in ("text", "chat"):
        documents = [document for document in read_source(PythonDocsSource(form=form)) if not document.is_empty]
        found[form] = [shortened(tokens) for tokens in encoder.encode(documents)]
    return found


def curve_of(model: CausalModel, long: list[Tokens], budget: int, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """What packing long documents costs at some lengths and overlaps."""
    sample = sample_of(long, budget, seed=1)
    whole = whole_states(model, sample)
    curve = []
    for length, overlap in sizes:
        found = measure(model, long, sample, whole, (length, overlap))
        curve.append({"length": length, "overlap": overlap} | found.as_dict())
        sys.stderr.write(f"long, {curve[-1]}\n")
    return curve


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokens", type=int, help="of each sample; 60,000 if not given, 3,000 with --quick")
    parser.add_argument("--no-curve", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    loaded = material.teacher(torch.float32)
    model = loaded.model
    budget = arguments.tokens or (3000 if arguments.quick else 60_000)
    default = (LENGTH, overlap_of(LENGTH))
    details: dict[str, Any] = {}
    long: list[Tokens] = []
    for form, documents in corpora(loaded.tokenizer).items():
        short = [document for document in documents if len(document.ids) <= LENGTH]
        long = [document for document in documents if len(document.ids) >= LONG] if form == "text" else long
        sample = sample_of(short, budget // 4, seed=1)
        alone = measure(model, short, sample, whole_states(model, sample), default)
        assert alone.kl is not None
        cut_ones = sample_of([document for document in documents if len(document.ids) > LENGTH], budget, seed=1)
        for kind, some, few, found in (
            ("short", short, sample, alone),
            ("mixed", documents, cut_ones, mixed(model, documents, cut_ones, alone.kl, default)),
        ):
            details[f"{kind}, {form}"] = found.as_dict() | {"documents": len(some), "sampled": len(few)}
            sys.stderr.write(f"{kind}, {form}: {details[f'{kind}, {form}']}\n")
    curve = [] if arguments.no_curve else curve_of(model, long, budget, [default] if arguments.quick else CURVE)
    figures = {
        "kl_context": max(entry["kl_context"] for entry in details.values()),
        "wasted_share": max(entry["wasted_share"] for entry in details.values()),
        "overlap_share": max(entry["overlap_share"] for entry in details.values()),
        "padding_share": max(entry["padding_share"] for entry in details.values()),
    }
    report.write(figures, {"corpora": details, "long": curve, "default": default}, arguments.json)


if __name__ == "__main__":
    main()

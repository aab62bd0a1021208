"""A student with another tokenizer than its teacher: bits per byte against the baseline, and against ULD.

    .venv/bin/python -m benchmarks.tokenizers [--quick] [--json FILE] [--work FOLDER] [--pair NAME --gemma FILE]

The text is Python's own documentation, the student a small Llama with random weights. ``--pair`` says who teaches whom:

- ``own`` (the default): SmolLM2-135M-Instruct a student with a byte-level BPE of 8,192 tokens that is trained on the
  training text.
- ``gemma-smollm2``: Gemma 3 270M a student with SmolLM2's tokenizer (49,152 tokens).
- ``smollm2-gemma``: SmolLM2-135M-Instruct a student with Gemma's tokenizer (262,144 tokens), of half the width.

The last two need ``--gemma``, its GGUF file (docs/benchmarks/gemma.md says where from), and take fewer tokens, one sequence
at a time: every position has a distribution over 262,144 tokens on one side. The student is trained on the same tokens in the
same order, at each of some learning rates and for each seed (of weights and order), in four ways: ``baseline`` (cross-entropy
on the text), ``aligned`` (what `student.tokenizer: own` does), ``aligned_mixed`` (the same with half of cross-entropy), and
``uld_mixed`` (Boizard et al. 2024, arXiv 2402.12030: the L1 distance of both sorted distributions where both predict the same
token, with half of cross-entropy). ULD alone says nothing about which token is which, and cannot be trained alone.

``aligned_over_baseline`` and so on are quotients of held-out bits per byte at each way's own best rate (by validation text),
the mean over seeds, with Student's 95 % interval. ``distribution`` and ``chunks`` are the shares of the student's tokens that
are learned from the teacher's distribution and as parts of whole chunks. Where a pair is not ``own``, its name begins its
figures. ``--quick`` takes one seed, one rate and less text; ``--tokens`` says how many training tokens, ``--rate`` which
learning rate alone, ``--seeds`` how many seeds. ``--work`` keeps finished trainings.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from benchmarks import material, report
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import Head
from stillroom.models.load import load_teacher, load_tokenizer
from stillroom.recipe.capture import HiddenCodec
from stillroom.recipe.teacher import GgufTeacher
from stillroom.signals.alignment import Alignment, describe
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import DenseSignal
from stillroom.teachers.capture import cache_identity, capture
from stillroom.teachers.local import LocalTeacher
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LENGTH, BATCH = 128, 4
TOKENS, HELDOUT = 65_536, 8_192
QUICK_TOKENS, QUICK_HELDOUT = 2_048, 1_024
VOCABULARY = 8_192
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
RATES, SEEDS = (1e-3, 2e-3, 4e-3), (0, 1, 2)
WAYS = ("baseline", "aligned", "aligned_mixed", "uld_mixed")
MIXED = 0.5
PAIRS = ("own", "gemma-smollm2", "smollm2-gemma")
LARGE_TOKENS, LARGE_HELDOUT, LARGE_HIDDEN = 16_384, 4_096, 96
"""With Gemma's vocabulary on one side."""


@dataclass(frozen=True)
class World:
    """What all trainings share."""

    alignment: Alignment
    cache: TeacherCache
    train: BatchSource
    validation: BatchSource
    heldout: BatchSource
    bytes_of: dict[str, int]
    rows: int
    hidden: int
    batch: int


def own_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE made on some texts, with the teacher's end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def fresh(rows: int, hidden: int, seed: int) -> Any:
    """A small Llama with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama", vocab_size=rows, tie_word_embeddings=True, **(SHAPE | {"hidden_size": hidden})
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def text_of(tokenizer: PreTrainedTokenizerFast, text: Sequences) -> list[str]:
    """The texts of a split, a row each."""
    return [
        str(tokenizer.decode(ids[segments >= 0].tolist(), skip_special_tokens=True))
        for ids, segments in zip(text.ids, text.segments, strict=True)
    ]


def covered_bytes(source: BatchSource) -> int:
    """Bytes of the text that the student predicts."""
    total = 0
    for index in range(len(source)):
        row = source.sequences.part([index])
        sizes = row.target_bytes[0][row.targets[0] != IGNORED]
        covered = source.covered(index)
        total += int(sizes.sum() if covered is None else sizes[covered].sum())
    return total


@torch.no_grad()
def bits_per_byte(network: LossNetwork, source: BatchSource, size: int) -> float:
    """Bits per byte on a split."""
    nats = 0.0
    for index in range(len(source)):
        batch = replace(source.batch([index]), signal=None, chunks=None)
        nats += float(network(batch, FusedLoss(None), 1.0).cross_entropies.sum())
    return nats / math.log(2) / size


def uld(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """L1 distance of sorted probabilities, summed over positions: [N, V_s] logits, [N, V_t] log-probabilities."""
    mine = logits.softmax(1).sort(dim=1, descending=True).values
    theirs = teacher.exp().sort(dim=1, descending=True).values[:, : mine.shape[1]]
    return (mine - functional.pad(theirs, (0, mine.shape[1] - theirs.shape[1]))).abs().sum()


def uld_step(network: LossNetwork, world: World, rows: list[int]) -> torch.Tensor:
    """The loss of ULD and cross-entropy on a batch."""
    from stillroom.models.forward import hidden_states, output_head

    batch = replace(world.train.batch(rows), signal=None, chunks=None)
    hidden = hidden_states(network.worker, batch.ids, batch.positions)
    head: Head = output_head(network.worker)
    logits = functional.linear(hidden.flatten(0, 1)[batch.rows], head.matrix)
    cross_entropy = functional.cross_entropy(logits, batch.targets, reduction="sum")
    length = batch.ids.shape[1]
    distance = logits.new_zeros(())
    for place, row in enumerate(rows):
        said = world.cache.read(world.train.sequences.addresses[row])[0]
        assert isinstance(said, DenseSignal)
        at = place * length + world.train.speaking(row)
        mine = torch.searchsorted(batch.rows, at)
        distance = distance + uld(logits[mine], said.logprobs[world.train.spoken(row)])
    total: torch.Tensor = (MIXED * cross_entropy + (1 - MIXED) * distance) / len(batch.targets)
    return total


def trained(world: World, way: str, rate: float, seed: int) -> dict[str, float]:
    """Bits per byte of a student after one pass over the training text."""
    network = LossNetwork(fresh(world.rows, world.hidden, seed), torch.float32)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    order = list(range(len(world.train)))
    random.Random(seed).shuffle(order)
    steps = [order[start : start + world.batch] for start in range(0, len(order), world.batch)]
    loss = FusedLoss(
        None if way == "baseline" else make_objective("forward_kl"), MIXED if way.endswith("mixed") else 0.0
    )
    for step, rows in enumerate(steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / (0.1 * len(steps)))
            group["lr"] = rate * warm * (0.525 + 0.475 * math.cos(math.pi * step / len(steps)))
        if way == "uld_mixed":
            value = uld_step(network, world, rows)
        else:
            batch = world.train.batch(rows)
            batch = replace(batch, signal=None, chunks=None) if way == "baseline" else batch
            value = network(batch, loss, float(len(batch.targets))).value
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    network.eval()
    return {
        name: bits_per_byte(network, getattr(world, name), world.bytes_of[name]) for name in ("validation", "heldout")
    }


def prepared(folder: Path, pair: str, gemma: Path | None, tokens: int, heldout_tokens: int) -> World:
    """Text, tokenizer, and the teacher's signals on the training text."""
    configs = {"smollm2": material.TEACHER, "gemma": GgufTeacher(path=str(gemma))}
    taught_by, _, learns = pair.partition("-")
    config = configs["smollm2" if pair == "own" else taught_by]
    teacher = LocalTeacher(load_teacher(config, "cpu", material.fastest()))
    text, rest = material.corpus(teacher.loaded, LENGTH, tokens, 2 * heldout_tokens)
    validation, heldout = rest.part(slice(0, len(rest) // 2)), rest.part(slice(len(rest) // 2, None))
    if pair == "own":
        tokenizer = own_tokenizer(text_of(teacher.loaded.tokenizer, text))
    else:
        tokenizer = load_tokenizer(configs[learns])
    writer = CacheWriter.open(folder, cache_identity(teacher, HiddenCodec(), 1.0, 0))
    with Progress(quiet=True).task("capture", total=text.length * len(text)) as task:
        capture(teacher, text, writer, 1.0, 2048, 16_384, task)
    cache = TeacherCache.open(folder)
    rows = teacher.loaded.model.get_output_embeddings().weight.shape[0]
    mine = VOCABULARY if pair == "own" else max(tokenizer.get_vocab().values()) + 1
    alignment = Alignment.of(teacher.loaded.tokenizer, tokenizer, rows, mine)
    sources = {
        "validation": BatchSource(validation, alignment, None),
        "heldout": BatchSource(heldout, alignment, None),
    }
    sizes = {name: covered_bytes(source) for name, source in sources.items()}
    hidden = LARGE_HIDDEN if learns == "gemma" else SHAPE["hidden_size"]
    train = BatchSource(text, alignment, cache)
    return World(alignment, cache, train, **sources, bytes_of=sizes, rows=mine, hidden=hidden, batch=batch_of(pair))


def batch_of(pair: str) -> int:
    """Sequences of a step."""
    return BATCH if pair == "own" else 1


def compared(pair: str, arguments: argparse.Namespace, folder: Path, kept: Path | None) -> dict[str, Any]:
    """All ways of one pair: figures and details."""
    large = pair != "own"
    whole = (LARGE_TOKENS, LARGE_HELDOUT) if large else (TOKENS, HELDOUT)
    tokens, heldout_tokens = (QUICK_TOKENS, QUICK_HELDOUT) if arguments.quick else whole
    tokens = arguments.tokens or tokens
    rates = (arguments.rate,) if arguments.rate else RATES[1:2] if arguments.quick else RATES
    seeds = SEEDS[: arguments.seeds or (1 if arguments.quick else len(SEEDS))]
    asked = {"pair": pair, "tokens": tokens, "heldout": heldout_tokens, "batch": batch_of(pair)}
    asked |= {"dtype": str(material.fastest())}
    cells = report.Kept(kept, asked)

    @functools.cache
    def world() -> World:
        return prepared(folder, pair, arguments.gemma, tokens, heldout_tokens)

    def shares_of() -> dict[str, Any]:
        made = world()
        return dict(describe(made.alignment, made.train.sequences.part(slice(None)), len(made.train)))

    def run(way: str, rate: float, seed: int) -> dict[str, float]:
        return trained(world(), way, rate, seed)

    shares = cells.cell("shares", shares_of)
    runs: dict[str, dict[str, list[dict[str, float]]]] = {way: {f"{rate:g}": [] for rate in rates} for way in WAYS}
    # Seed by seed, so that an interrupted benchmark has every way of some seeds.
    for seed in seeds:
        for rate in rates:
            for way in WAYS:
                made = functools.partial(run, way, rate, seed)
                runs[way][f"{rate:g}"].append(cells.cell(f"{way}/{rate:g}/{seed}", made))
    best = {
        way: min(by_rate, key=lambda rate: statistics.mean(run["validation"] for run in by_rate[rate]))
        for way, by_rate in runs.items()
    }
    bits = {way: [run["heldout"] for run in runs[way][best[way]]] for way in WAYS}
    figures: dict[str, Any] = {"distribution": shares["distribution"], "chunks": shares["chunks"]}
    for way in WAYS[1:]:
        ratios = [mine / base for mine, base in zip(bits[way], bits["baseline"], strict=True)]
        figures[f"{way}_over_baseline"] = statistics.mean(ratios)
        figures[f"{way}_over_baseline_interval"] = report.interval(ratios)
    details = {"bits_per_byte": bits, "best_rates": best, "runs": runs, "alignment": shares, "train_tokens": tokens}
    return {"figures": figures, "details": details}


def main() -> None:
    """Train all ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--pair", choices=PAIRS, action="append", help="may be given several times")
    parser.add_argument("--gemma", type=Path, help="Gemma 3 270M as a GGUF file")
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--rate", type=float, default=None, help="this learning rate alone")
    parser.add_argument("--seeds", type=int, choices=range(1, len(SEEDS) + 1), help="so many of the three")
    arguments = parser.parse_args()
    pairs = arguments.pair or ["own"]
    if any(pair != "own" for pair in pairs) and arguments.gemma is None:
        parser.error("this pair needs Gemma 3 270M: name its file as --gemma")
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for pair in pairs:
            folder = (arguments.work or Path(temporary)) / pair
            folder.mkdir(parents=True, exist_ok=True)
            kept = None if arguments.work is None else folder / "cells.json"
            found = compared(pair, arguments, folder / "cache", kept)
            before = "" if pair == "own" else f"{pair.replace('-', '_')}_"
            figures |= {f"{before}{name}": value for name, value in found["figures"].items()}
            details |= found["details"] if pair == "own" else {pair: found["details"]}
    report.write(figures, details, arguments.json)


if __name__ == "__main__":
    main()

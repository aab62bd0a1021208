"""A student with another tokenizer than its teacher: bits per byte against the baseline, and against ULD.

    .venv/bin/python -m benchmarks.tokenizers [--quick] [--json FILE]

The teacher is SmolLM2-135M-Instruct, the text Python's own documentation. The student is a small Llama with random weights
and a byte-level BPE of 8,192 tokens that is trained on the training text. It is trained on the same tokens in the same order,
at each of some learning rates and for each seed (of weights and order), in four ways: ``baseline`` (cross-entropy on the text),
``aligned`` (what `student.tokenizer: own` does), ``aligned_mixed`` (the same with half of cross-entropy), and ``uld_mixed``
(Boizard et al. 2024, arXiv 2402.12030: the L1 distance of both sorted distributions where both predict the same token, with
half of cross-entropy). ULD alone says nothing about which token is which, and cannot be trained alone.

``aligned_over_baseline`` and so on are quotients of held-out bits per byte at each way's own best rate (by validation text),
the mean over seeds, with Student's 95 % interval. ``distribution`` and ``chunks`` are the shares of the student's tokens that
are learned from the teacher's distribution and as parts of whole chunks. ``--quick`` takes one seed, one rate and less text;
``--tokens`` says how many training tokens.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from benchmarks import material, report
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import Head
from stillroom.recipe.capture import HiddenCodec
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


@dataclass(frozen=True)
class World:
    """What all trainings share."""

    alignment: Alignment
    cache: TeacherCache
    train: BatchSource
    validation: BatchSource
    heldout: BatchSource
    bytes_of: dict[str, int]


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


def fresh(rows: int, seed: int) -> Any:
    """A small Llama with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model("llama", vocab_size=rows, tie_word_embeddings=True, **SHAPE)
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
    network = LossNetwork(fresh(VOCABULARY, seed), torch.float32)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    order = list(range(len(world.train)))
    random.Random(seed).shuffle(order)
    steps = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
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


def prepared(folder: Path, tokens: int, heldout_tokens: int) -> World:
    """Text, tokenizer, and the teacher's signals on the training text."""
    teacher = LocalTeacher(material.teacher())
    text, rest = material.corpus(teacher.loaded, LENGTH, tokens, 2 * heldout_tokens)
    validation, heldout = rest.part(slice(0, len(rest) // 2)), rest.part(slice(len(rest) // 2, None))
    tokenizer = own_tokenizer(text_of(teacher.loaded.tokenizer, text))
    writer = CacheWriter.open(folder, cache_identity(teacher, HiddenCodec(), 1.0, 0))
    with Progress(quiet=True).task("capture", total=text.length * len(text)) as task:
        capture(teacher, text, writer, 1.0, 2048, 16_384, task)
    cache = TeacherCache.open(folder)
    rows = teacher.loaded.model.get_output_embeddings().weight.shape[0]
    alignment = Alignment.of(teacher.loaded.tokenizer, tokenizer, rows, VOCABULARY)
    sources = {
        "validation": BatchSource(validation, alignment, None),
        "heldout": BatchSource(heldout, alignment, None),
    }
    sizes = {name: covered_bytes(source) for name, source in sources.items()}
    return World(alignment, cache, BatchSource(text, alignment, cache), **sources, bytes_of=sizes)


def main() -> None:
    """Train all ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tokens", type=int, default=None)
    arguments = parser.parse_args()
    tokens, heldout_tokens = (QUICK_TOKENS, QUICK_HELDOUT) if arguments.quick else (TOKENS, HELDOUT)
    tokens = arguments.tokens or tokens
    rates, seeds = (RATES[1:2], SEEDS[:1]) if arguments.quick else (RATES, SEEDS)
    begun = time.monotonic()
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = prepared(Path(folder), tokens, heldout_tokens)
        shares = describe(world.alignment, world.train.sequences.part(slice(None)), len(world.train))
        for way in WAYS:
            runs[way] = {}
            for rate in rates:
                runs[way][f"{rate:g}"] = [trained(world, way, rate, seed) for seed in seeds]
                sys.stderr.write(f"{way} {rate:g} {runs[way][f'{rate:g}']} {time.monotonic() - begun:.0f} s\n")
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
    report.write(figures, details, arguments.json)


if __name__ == "__main__":
    main()

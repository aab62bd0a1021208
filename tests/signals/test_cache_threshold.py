"""The codecs: unbiased where they say so, exact where they can be, and decoded as they were sampled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cache_material import logprobs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import CacheDamaged
from stillroom.recipe.capture import DenseCodec, ThresholdCodec, TopKCodec
from stillroom.signals.cache.codec import sampling_generator
from stillroom.signals.cache.dense import Dense
from stillroom.signals.cache.registry import make_codec
from stillroom.signals.cache.threshold import Threshold
from stillroom.signals.cache.top_k import TopK

SMALLEST_P = 1e-4


def dense_of(signal, size):
    return torch.zeros(len(signal), size).scatter_add_(1, signal.ids, signal.weights)


def sampled(codec, probabilities, seed):
    """The estimate [N, V] of a sample, without packing it."""
    entries = codec.sample([probabilities.clone()], np.random.default_rng(seed))
    row = torch.arange(len(entries.counts)).repeat_interleave(torch.from_numpy(entries.counts)) % len(probabilities)
    weights = torch.from_numpy(entries.levels * (codec.tau / 2 / codec.draws)).float()
    return torch.zeros(probabilities.shape).index_put_((row, torch.from_numpy(entries.ids)), weights, accumulate=True)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    inverse=st.sampled_from([1, 3, 20, 500]),
    size=st.sampled_from([1, 5, 64, 65, 1000]),
    draws=st.integers(1, 3),
    head=st.sampled_from([0, 2]),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_what_is_decoded_is_what_was_sampled(seed, inverse, size, draws, head, counts):
    codec = Threshold(1 / inverse, size, draws, head)
    probabilities = [logprobs_of(count, size, seed + number, 3.0).exp() for number, count in enumerate(counts)]
    samples = [codec.sample([part.clone()], np.random.default_rng(seed)) for part in probabilities]
    learned = codec.learn(samples)
    records = [codec.pack(sample) for sample in samples]
    reader = Threshold(1 / inverse, size, draws, head)
    reader.recall(learned)
    signal = reader.decode(records, counts)
    expected = torch.cat([sampled(codec, part, seed) for part in probabilities])
    assert torch.allclose(dense_of(signal, size), expected, atol=1e-6)
    assert signal.unbiased
    again = Threshold(1 / inverse, size, draws, head)
    again.recall(learned)
    assert [again.pack(sample) for sample in samples] == records


def p_value(mean, truth, tau, encodings):
    """A bound on the p-value of "the mean of so many estimates is the truth": the least of all cells, times their number.

    An estimate over its unit (tau, or tau / 2 above a multiple of it) lies in [0, 1], so that Hoeffding's inequality
    holds: the chance of a mean m where q is expected is at most 2 exp(-n KL(m || q)).
    """
    truth = truth.double()
    unit = torch.where(truth < tau, tau, tau / 2)
    base = torch.where(truth < tau, 0.0, (truth / unit + 1e-9).floor() * unit)
    expected = ((truth - base) / unit).clamp(1e-9, 1 - 1e-9)
    found = ((mean.double() - base) / unit).clamp(0, 1)
    divergence = torch.xlogy(found, found / expected) + torch.xlogy(1 - found, (1 - found) / (1 - expected))
    return min(1.0, 2 * truth.numel() * math.exp(-encodings * float(divergence.max())))


@pytest.mark.parametrize(("draws", "head"), [(1, 0), (2, 0), (1, 3)])
def test_threshold_samples_are_unbiased_and_top_k_is_not(draws, head):
    truth = logprobs_of(12, 40, 7).exp()
    codec = Threshold(1 / 10, 40, draws, head)
    mean = torch.stack([sampled(codec, truth, seed) for seed in range(400)]).mean(0)
    assert p_value(mean, truth, 1 / 10, 400 * draws) > SMALLEST_P
    # The test can tell: a tail that is too heavy by a tenth of tau does not pass, nor does top-k.
    assert p_value(torch.where(truth < 1 / 10, mean + 1 / 100, mean), truth, 1 / 10, 400 * draws) < SMALLEST_P
    top = TopK(8, 40)
    decoded = dense_of(top.decode([top.sample([truth.clone()], np.random.default_rng(0))], [12]), 40)
    renormalised = decoded / decoded.sum(1, keepdim=True)
    assert p_value(renormalised, truth, 1 / 10, 400) < SMALLEST_P


def test_the_error_is_less_than_that_of_as_many_draws_with_replacement():
    truth = logprobs_of(200, 500, 3, 2.5).exp()
    codec = Threshold(1 / 50, 500)
    ours = (sampled(codec, truth, 0) - truth).square().sum(1).mean()
    ids = torch.multinomial(truth, 50, replacement=True, generator=torch.Generator().manual_seed(0))
    drawn = torch.zeros(truth.shape).scatter_add_(1, ids, torch.full(ids.shape, 1 / 50))
    assert ours < 0.6 * (drawn - truth).square().sum(1).mean()


def test_the_kept_mass_stays_within_a_threshold_of_one():
    truth = logprobs_of(100, 300, 5).exp()
    tau = 1 / 20
    codec = Threshold(tau, 300)
    mass = sampled(codec, truth, 1).sum(1)
    heads = (truth >= tau).sum(1)
    # The systematic tail is off by less than tau, each head entry by at most half of it.
    assert ((mass - 1).abs() <= tau * (1 + heads / 2) + 1e-5).all()


def test_the_least_threshold_of_a_recipe_is_one_that_the_format_holds():
    least = next(part.ge for part in ThresholdCodec.model_fields["tau"].metadata if hasattr(part, "ge"))
    truth = logprobs_of(3, 300, 5).exp()
    codec = Threshold(least, 300, head=256)
    sample = codec.sample([truth.clone()], np.random.default_rng(0))
    codec.recall(codec.learn([sample]))
    signal = codec.decode([codec.pack(sample)], [3])
    assert torch.allclose(dense_of(signal, 300), truth, atol=2 * least)


def test_an_id_of_probability_one_is_kept_alone():
    truth = torch.zeros(3, 70)
    truth[:, 69] = 1.0
    estimate = sampled(Threshold(1 / 16, 70), truth, 0)
    assert torch.equal(estimate, truth)


def test_the_head_is_kept_below_the_threshold():
    truth = torch.full((50, 64), 1 / 64)
    truth[:, 9] += 0.01
    truth /= truth.sum(1, keepdim=True)
    seen = torch.stack([sampled(Threshold(1 / 20, 64, 1, 1), truth, seed) for seed in range(40)])
    # Rounded between half a threshold's multiples, not drawn: at most tau / 2 apart.
    assert set((seen[..., 9] * 40).round().unique().tolist()) == {1.0, 2.0}


def test_chunks_and_the_same_generator_give_the_same_bytes():
    truth = logprobs_of(10, 90, 1).exp()
    codec = make_codec(ThresholdCodec(tau=0.1), 90)
    samples = [codec.sample(truth.clone().split(4), sampling_generator(3, "ab" * 32)) for _ in range(2)]
    codec.learn(samples)
    assert codec.pack(samples[0]) == codec.pack(samples[1])
    other = codec.sample(truth.clone().split(4), sampling_generator(4, "ab" * 32))
    assert not np.array_equal(other.ids, samples[0].ids)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.data())
def test_damaged_records_are_refused_or_stay_in_range(seed, data):
    codec = Threshold(1 / 10, 200)
    sample = codec.sample([logprobs_of(20, 200, seed).exp()], np.random.default_rng(seed))
    codec.learn([sample])
    record = bytearray(codec.pack(sample))
    place = data.draw(st.integers(0, len(record) - 1))
    record[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(record), place]))
    try:
        signal = codec.decode([bytes(record[:cut])], [20])
    except CacheDamaged:
        return
    # A bit that stands for another id or level of the same width can only be told by the shard's SHA-256.
    assert int(signal.ids.max()) < 200
    assert cut == len(record)


def test_a_signal_without_its_model_is_refused():
    with pytest.raises(CacheDamaged, match="no model"):
        Threshold(0.1, 10).decode([b""], [1])
    with pytest.raises(CacheDamaged, match="model of the cache is damaged"):
        Threshold(0.1, 10).recall(b"nothing")


def test_dense_signals_come_back_exactly():
    logprobs = logprobs_of(7, 33, 2)
    codec = make_codec(DenseCodec(), 33)
    assert isinstance(codec, Dense)
    record = codec.pack(codec.sample([logprobs.exp()], np.random.default_rng(0)))
    assert len(record) == 4 * 7 * 33
    assert torch.allclose(codec.decode([record, record], [7, 7]).logprobs, logprobs.repeat(2, 1), atol=1e-5)
    with pytest.raises(CacheDamaged, match="wrong length"):
        codec.decode([record], [8])


def test_top_k_keeps_the_best_and_says_what_it_misses():
    logprobs = logprobs_of(5, 300, 4)
    codec = make_codec(TopKCodec(k=4), 300)
    record = codec.pack(codec.sample([logprobs.exp()], np.random.default_rng(0)))
    signal = codec.decode([record], [5])
    best, ids = logprobs.exp().topk(4, dim=1)
    assert torch.equal(signal.ids, ids)
    assert torch.allclose(signal.weights, best, rtol=1e-3)
    assert not signal.unbiased
    assert torch.allclose(codec.missing_mass(record, 5), 1 - best.sum(1), atol=1e-3)
    with pytest.raises(CacheDamaged):
        codec.decode([record[:-3]], [5])

"""Truncation against transformers' warpers, on random logits with ties and -inf.

Where a comparison turns on rounding (a probability that equals its threshold to within 1e-5), both
answers are right: such tokens are found in float64 and left out, and there may be few of them.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as peer

from llmcourse.decoding import Epsilon, Eta, History, MinP, TopK, TopP, Typical
from tests.decoding.fakes import random_logits

ROWS = 64
NOTHING = History.from_prompts([[0]] * ROWS)
LOGITS = st.builds(
    random_logits,
    seed=st.integers(0, 2**31),
    rows=st.just(ROWS),
    vocab_size=st.integers(1, 60),
    scale=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    decimals=st.sampled_from([None, None, 1, 0]),
    masked=st.sampled_from([0.0, 0.3, 0.95]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
many = settings(max_examples=60, deadline=None)  # of 64 rows each


def kept(logits):
    return logits > -math.inf


def theirs(warper, logits):
    return warper(None, logits)


@given(LOGITS, st.integers(1, 70))
@many
def test_top_k_agrees_with_transformers(logits, k):
    assert torch.equal(TopK(k)(logits, NOTHING), theirs(peer.TopKLogitsWarper(k), logits))


@given(LOGITS, st.floats(0.01, 0.99))
@many
def test_top_p_agrees_with_transformers(logits, p):
    """On ties their choice is left to an unstable sort: the logits kept agree, not always the ids."""
    ours, other = TopP(p)(logits, NOTHING), theirs(peer.TopPLogitsWarper(p), logits)
    assert torch.equal(ours.sort().values, other.sort().values)
    ordered = logits.sort().values
    tied = ((ordered[:, 1:] == ordered[:, :-1]) & kept(ordered[:, 1:])).any(-1)
    assert torch.equal(ours[~tied], other[~tied])


@given(LOGITS, st.floats(0.01, 0.99))
@many
def test_top_p_keeps_the_lower_ids_of_a_tie(logits, p):
    ours = TopP(p)(logits, NOTHING)
    cut = kept(logits) & ~kept(ours)
    same = logits[:, :, None] == logits[:, None, :]  # (B, V, V)
    earlier = torch.ones_like(same[0]).tril(-1)  # [i, j]: j < i
    assert not (kept(ours)[:, :, None] & cut[:, None, :] & same & earlier).any()


@given(LOGITS, st.floats(0.01, 0.99))
@many
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits, p):
    """The definition itself, in float64, up to rounding of the mass."""
    ours = TopP(p)(logits, NOTHING)
    probabilities = logits.double().softmax(-1)
    mass = probabilities.where(kept(ours), 0).sum(-1)
    least = probabilities.where(kept(ours), 1).amin(-1)
    assert (mass >= p - 1e-5).all()
    assert ((mass - least < p + 1e-5) | (kept(ours).sum(-1) == 1)).all()


@given(LOGITS, st.one_of(st.floats(1e-4, 1.0), st.just(1.0)))
@many
def test_min_p_agrees_with_transformers(logits, min_p):
    ours, other = MinP(min_p)(logits, NOTHING), theirs(peer.MinPLogitsWarper(min_p), logits)
    p = logits.double().softmax(-1)
    close = (p / p.amax(-1, keepdim=True) / min_p - 1).abs() < 1e-5
    if min_p == 1:  # then even rounding leaves no doubt: equal logits have equal probabilities
        close = torch.zeros_like(close)
    assert ((ours == other) | close).all()


@given(LOGITS, st.floats(1e-4, 0.5))
@many
def test_epsilon_agrees_with_transformers(logits, epsilon):
    ours, other = Epsilon(epsilon)(logits, NOTHING), theirs(peer.EpsilonLogitsWarper(epsilon), logits)
    close = (logits.double().softmax(-1) / epsilon - 1).abs() < 1e-5
    assert ((ours == other) | close).all()


@given(LOGITS, st.floats(1e-4, 0.5))
@many
def test_eta_agrees_with_transformers(logits, epsilon):
    ours, other = Eta(epsilon)(logits, NOTHING), theirs(peer.EtaLogitsWarper(epsilon), logits)
    p = logits.double().softmax(-1)
    spread = torch.special.entr(p).sum(-1, keepdim=True)
    threshold = (math.sqrt(epsilon) * (-spread).exp()).clamp(max=epsilon)
    close = (p / threshold - 1).abs() < 1e-5
    assert ((ours == other) | close).all()


@given(LOGITS, st.floats(0.05, 0.95))
@many
def test_typical_agrees_with_transformers(logits, mass):
    """Doubtful are rows whose mass is met to within rounding, or with two distances as good as equal."""
    ours, other = Typical(mass)(logits, NOTHING), theirs(peer.TypicalLogitsWarper(mass), logits)
    log_p = logits.double().log_softmax(-1)
    distance = (log_p + torch.special.entr(log_p.exp()).sum(-1, keepdim=True)).abs()
    rising, ids = distance.sort(-1)
    reached = (log_p.gather(1, ids).exp().cumsum(-1) - mass).abs().amin(-1) < 1e-5
    near = (rising.diff(dim=-1) < 1e-5 * (1 + rising[:, 1:])) & (logits.gather(1, ids).diff(dim=-1) != 0)
    doubtful = reached | (near & kept(logits.gather(1, ids))[:, 1:]).any(-1)
    assert torch.equal(ours[~doubtful], other[~doubtful])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_typical_rows_are_doubtful(dtype):
    """Keeps the test above from passing by leaving everything out."""
    logits = random_logits(0, 1000, 40, 2.0, None, 0.2, dtype)
    history = History.from_prompts([[0]] * 1000)
    ours = Typical(0.7)(logits, history)
    assert (ours == theirs(peer.TypicalLogitsWarper(0.7), logits)).all(-1).float().mean() > 0.98
    assert (kept(ours).sum(-1) < kept(logits).sum(-1)).float().mean() > 0.9


def test_three_and_four_fifths():
    """k = 3 and p = 0.8 on one small distribution, by hand."""
    logits = torch.tensor([[0.05, 0.5, 0.1, 0.25, 0.1]]).log()
    history = History.from_prompts([[0]])
    assert kept(TopK(2)(logits, history)).tolist() == [[False, True, False, True, False]]
    assert kept(TopK(3)(logits, history)).tolist() == [[False, True, True, True, True]]  # a tie at the third
    assert kept(TopP(0.8)(logits, history)).tolist() == [[False, True, True, True, False]]
    assert kept(MinP(0.3)(logits, history)).tolist() == [[False, True, False, True, False]]


def test_a_mass_that_is_reached_exactly_is_enough():
    assert kept(TopP(0.5)(torch.zeros(1, 4), History.from_prompts([[0]]))).tolist() == [
        [True, True, False, False]
    ]


def test_a_mass_below_rounding_keeps_the_most_probable_token():
    logits = random_logits(0, 20, 5000, 1.0, None, 0.0, torch.float32)
    ours = TopP(1e-9)(logits, History.from_prompts([[0]] * 20))
    assert kept(ours).sum(-1).tolist() == [1] * 20
    assert torch.equal(ours.argmax(-1), logits.argmax(-1))


def test_typical_may_cut_the_most_probable_token():
    logits = torch.tensor([[0.4, *[0.1] * 6]]).log()
    assert kept(Typical(0.3)(logits, History.from_prompts([[0]]))).tolist() == [[False, *[True] * 6]]


def test_eta_sinks_below_epsilon_only_where_the_distribution_is_flat():
    flat, peaked = torch.zeros(1, 100), torch.zeros(1, 100)
    peaked[0, 0] = 6.0
    history = History.from_prompts([[0]])
    assert kept(Eta(0.02)(flat, history)).sum() == 100
    assert kept(Epsilon(0.02)(flat, history)).sum() == 100  # all are the most probable
    assert kept(Eta(0.02)(peaked, history)).sum() == 1


def test_top_k_past_the_vocabulary_keeps_everything():
    logits = torch.randn(2, 5)
    assert torch.equal(TopK(6)(logits, History.from_prompts([[0], [0]])), logits)


@pytest.mark.parametrize("processor", [TopP(1.0), Typical(1.0)])
def test_one_disables(processor):
    logits = torch.tensor([[0.0, -200.0, 30.0]])
    assert torch.equal(processor(logits, History.from_prompts([[0]])), logits)


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [
        (TopK, 0, "top_k must be an integer of at least 1, got 0; use 0 in SamplingParams to disable it"),
        (TopK, -3, "top_k must be an integer of at least 1, got -3"),
        (TopP, 0.0, r"top_p must be in \(0, 1\], got 0.0; use 1.0 to disable it"),
        (TopP, 1.3, r"top_p must be in \(0, 1\], got 1.3; use 1.0 to disable it"),
        (TopP, math.nan, r"top_p must be in \(0, 1\], got nan"),
        (MinP, 0.0, r"min_p must be in \(0, 1\], got 0.0; use 0.0 in SamplingParams to disable it"),
        (MinP, 1.5, r"min_p must be in \(0, 1\], got 1.5"),
        (Typical, -0.1, r"typical_p must be in \(0, 1\], got -0.1; use 1.0 to disable it"),
        (Epsilon, 1.0, r"epsilon must be in \(0, 1\), got 1.0; choose one from 3e-4 to 9e-4 \(Hewitt et al"),
        (Eta, 1.0, r"use 0.0 in SamplingParams to disable it, or 3e-4 to 4e-3 \(Hewitt et al. 2022\)"),
        (Eta, math.inf, r"eta_cutoff must be in \(0, 1\), got inf; use 0.0 in SamplingParams to disable it"),
    ],
)
def test_bad_values_are_refused_when_made(make, value, message):
    with pytest.raises(ValueError, match=message):
        make(value)

"""Draws against exact probabilities.

Each chi-square test rejects at p < 1e-6, so that about twenty of them raise a false alarm once in
50,000 choices of seeds; with the seeds fixed here each either passes always or never. The negative
controls show that the same test does reject a distribution that is 10 % off.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from llmcourse.decoding import (
    Eta,
    History,
    MinP,
    PresencePenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
    apply,
    entropy,
    generate,
    greedy,
    sample,
    sampling,
)
from tests.chi_square import p_value
from tests.decoding.fakes import TableSource, random_logits

FALSE_ALARM_RATE = 1e-6
DRAWS = 50_000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def softmax(logits) -> np.ndarray:
    weights = np.exp(logits.double().numpy() - logits.max().item())
    return weights / weights.sum(-1, keepdims=True)


def draw(logits, seed, draws=DRAWS):
    return sample(logits.expand(draws, -1), seeded(seed)).numpy()


STRATEGIES = {
    "random": [],
    "cold": [Temperature(0.5)],
    "hot": [Temperature(1.7)],
    "top-k": [TopK(10)],
    "top-p": [TopP(0.8)],
    "min-p": [MinP(0.1)],
    "typical": [Typical(0.7)],
    "eta": [Eta(0.02)],
    "all": [PresencePenalty(1.0), Temperature(0.8), TopK(20), TopP(0.9)],
}


@pytest.mark.parametrize("processors", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("masked", [0.0, 0.5], ids=["all tokens", "half masked"])
def test_draws_follow_the_processed_distribution(processors, masked):
    logits = random_logits(11, 1, 40, 1.5, None, masked, torch.float32)
    processed = apply(processors, logits, History.from_prompts([[3, 4]]))
    tokens = draw(processed, seed=5)
    assert p_value(tokens, softmax(processed[0])) > FALSE_ALARM_RATE


@pytest.mark.parametrize("processors", STRATEGIES.values(), ids=STRATEGIES)
def test_cut_tokens_are_never_drawn_and_kept_ones_are(processors):
    logits = random_logits(12, 1, 40, 1.5, None, 0.3, torch.float32)
    processed = apply(processors, logits, History.from_prompts([[3, 4]]))
    drawn = np.bincount(draw(processed, seed=6), minlength=40) > 0
    assert not drawn[processed[0].numpy() == -math.inf].any()
    assert drawn[softmax(processed[0]) > 20 / DRAWS].all()  # each is missed with probability e⁻²⁰


@pytest.mark.parametrize("seed", range(5))
def test_negative_control_a_tilt_of_ten_percent_is_seen(seed):
    logits = random_logits(11, 1, 40, 1.5, None, 0.0, torch.float32)
    tilted = logits.clone()
    tilted[:, ::2] += math.log(1.1)
    assert p_value(draw(tilted, seed), softmax(logits[0])) < FALSE_ALARM_RATE


def test_negative_control_a_token_too_many_is_seen():
    logits = random_logits(11, 1, 40, 1.5, None, 0.0, torch.float32)
    ten = TopK(10)(logits, History.from_prompts([[0]]))
    eleven = TopK(11)(logits, History.from_prompts([[0]]))
    assert p_value(draw(eleven, 0), softmax(ten[0])) < FALSE_ALARM_RATE


def test_one_generator_a_row_draws_from_the_same_distribution():
    logits = random_logits(11, 1, 8, 1.0, None, 0.0, torch.float32)
    tokens = sample(logits.expand(8000, -1), [seeded(seed) for seed in range(8000)])
    assert p_value(tokens.numpy(), softmax(logits[0])) > FALSE_ALARM_RATE


def test_the_loop_draws_whole_texts_from_the_product_of_its_steps():
    """Pairs of tokens from a bigram table: P(a, b | 0) = p(a | 0) p(b | a)."""
    table = random_logits(13, 5, 5, 1.0, None, 0.0, torch.float32)
    generations = generate(TableSource(table), [[0]] * 20_000, max_new_tokens=2, generator=seeded(0))
    pairs = np.array([5 * g.tokens[0] + g.tokens[1] for g in generations])
    p = softmax(table)
    joint = p[0][:, None] * p
    assert p_value(pairs, joint.ravel()) > FALSE_ALARM_RATE
    independent = p[0][:, None] * (p[0] @ p)[None]
    assert p_value(pairs, independent.ravel()) < FALSE_ALARM_RATE  # negative control


@pytest.mark.parametrize("point", [0.0, 1 - 2**-53], ids=["first", "last"])
def test_masked_tokens_are_not_drawn_at_the_ends_of_the_unit_interval(monkeypatch, point):
    monkeypatch.setattr(
        sampling, "uniform", lambda generator, rows: torch.full((rows,), point, dtype=torch.float64)
    )
    logits = torch.full((3, 9), -math.inf)
    logits[:, 3:6] = torch.randn(3, 3, generator=seeded(0))
    assert sample(logits, seeded(0)).tolist() == [3 if point == 0 else 5] * 3


def test_a_masked_token_is_not_drawn_though_a_parallel_sum_rounds_unevenly(monkeypatch):
    """On a GPU a prefix sum may rise by a rounding error where the probability is zero."""
    exact = torch.Tensor.cumsum
    noise = torch.tensor([0.0, 1e-16, 0.0], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda p, dim: exact(p, dim) + noise)
    monkeypatch.setattr(sampling, "uniform", lambda generator, rows: torch.tensor([0.5], dtype=torch.float64))
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    assert sample(logits, seeded(0)).tolist() == [2]


def test_a_tail_too_thin_for_fp32_sums_still_counts(monkeypatch):
    """65,535 tokens of 4e-8 each hold 0.3 % of the mass; next to 1 fp32 cannot tell them apart."""
    weight, tokens = math.exp(-17), torch.arange(2000, 2100, dtype=torch.float64)
    middles = (1 + (tokens - 0.5) * weight) / (1 + (2**16 - 1) * weight)
    monkeypatch.setattr(sampling, "uniform", lambda generator, rows: middles)
    logits = torch.full((1, 2**16), -17.0)
    logits[0, 0] = 0.0
    assert sample(logits.expand(100, -1), seeded(0)).tolist() == tokens.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_every_number_format_draws_the_same_tokens_from_the_same_logits(dtype):
    logits = torch.randn(50, 30, generator=seeded(1)).round(decimals=1).bfloat16()
    expected = sample(logits.double(), seeded(2))
    assert torch.equal(sample(logits.to(dtype), seeded(2)), expected)


def test_seeds_repeat_and_differ():
    logits = torch.randn(20, 50, generator=seeded(1))
    assert torch.equal(sample(logits, seeded(7)), sample(logits, seeded(7)))
    assert not torch.equal(sample(logits, seeded(7)), sample(logits, seeded(8)))


def test_with_a_generator_a_row_a_draw_does_not_depend_on_the_batch():
    logits = torch.randn(4, 50, generator=seeded(1))
    together = sample(logits, [seeded(seed) for seed in range(4)])
    alone = [sample(logits[row : row + 1], [seeded(row)]).item() for row in range(4)]
    assert together.tolist() == alone


def test_generators_must_be_one_a_row():
    with pytest.raises(
        ValueError, match="generator must be a list of 3, got 2; pass one generator for the whole"
    ):
        sample(torch.zeros(3, 5), [seeded(0), seeded(1)])


class OnMps(torch.Tensor):
    """Logits that claim to lie on Apple's GPU, which has no float64."""

    device = torch.device("mps")

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_without_float64_the_cpu_draws_the_same_tokens_and_sends_them_back(monkeypatch):
    logits, sent, to = torch.randn(50, 30, generator=seeded(1)), [], torch.Tensor.to

    def record(tensor, target, *rest):
        if target != torch.device("mps"):
            return to(tensor, target, *rest)
        sent.append(tensor.dtype)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", record)
    tokens = sample(logits.as_subclass(OnMps), seeded(2))
    assert sent == [torch.int64]
    assert torch.equal(tokens, sample(logits, seeded(2)))


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = torch.zeros(1, 5000)
    logits[0, [17, 40, 4000]] = 1.0
    assert greedy(logits).tolist() == [17]


def test_entropy_in_nats():
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf], [0.0, -math.inf, -math.inf, -math.inf]])
    assert entropy(logits).tolist() == pytest.approx([math.log(2), 0.0])
    random = torch.randn(5, 40, generator=seeded(3), dtype=torch.float64)
    assert entropy(random).tolist() == pytest.approx([stats.entropy(softmax(row)) for row in random])

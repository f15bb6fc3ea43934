import math
from random import Random

import numpy as np
import pytest
from scipy import stats

from llmcourse.serving.workload import (
    Arrivals,
    LogNormal,
    Uniform,
    bursty,
    make_requests,
    nano_vllm_requests,
    poisson,
)

SHORT = Uniform(1, 3)
COUNT = 4000


def gaps(arrivals: Arrivals, seed: int = 0) -> np.ndarray:
    rng = Random(seed)
    return np.array([arrivals.gap_s(rng) for _ in range(COUNT)])


def test_poisson_arrivals_have_exponential_gaps():
    """Kolmogorov-Smirnov; a right program fails for one seed in a thousand, and this seed is fixed."""
    assert stats.kstest(gaps(poisson(5.0)), "expon", args=(0, 1 / 5)).pvalue > 1e-3
    assert stats.kstest(gaps(bursty(5.0)), "expon", args=(0, 1 / 5)).pvalue < 1e-3
    assert stats.kstest(gaps(poisson(5.5)), "expon", args=(0, 1 / 5)).pvalue < 1e-3


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_bursts_have_the_rate_and_the_spread_that_they_say(burstiness):
    """Within four standard errors of the mean; the spread within a quarter."""
    drawn = gaps(Arrivals(5.0, burstiness))
    assert abs(drawn.mean() - 0.2) < 4 * 0.2 * math.sqrt(burstiness / COUNT)
    assert drawn.var() / drawn.mean() ** 2 == pytest.approx(burstiness, rel=0.25)


def test_regular_arrivals_and_all_at_once():
    assert set(gaps(Arrivals(4.0, 0.0))) == {0.25} and set(gaps(Arrivals())) == {0.0}


def test_lengths_have_the_distribution_that_they_say():
    rng = Random(0)
    assert {SHORT(rng) for _ in range(100)} == {1, 2, 3} and Uniform(7, 7)(rng) == 7
    drawn = np.array([LogNormal(100, 0.5, 300)(rng) for _ in range(COUNT)])
    assert drawn.min() >= 1 and drawn.max() == 300
    assert abs(np.median(drawn) - 100) < 4  # standard error: 100 · 0.5 · 1.25 / √4000 = 1
    assert (drawn > 100 * math.exp(0.5)).mean() == pytest.approx(0.159, abs=0.024)  # four standard errors


def test_requests_are_the_same_for_the_same_seed_alone():
    one, same, other = (make_requests(20, poisson(5.0), SHORT, SHORT, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    arrivals = [request.arrival_s for request in one]
    assert arrivals == sorted(arrivals) and arrivals[0] == 0.0


def test_what_is_not_changed_stays_as_it_was():
    one = make_requests(20, poisson(5.0), SHORT, SHORT)
    other = make_requests(20, bursty(5.0), SHORT, Uniform(9, 20))
    assert [request.prompt for request in one] == [request.prompt for request in other]
    assert [request.max_tokens for request in one] != [request.max_tokens for request in other]


def test_prompts_may_begin_alike():
    requests = make_requests(5, Arrivals(), SHORT, SHORT, shared_prefix=8)
    assert len({request.prompt[:8] for request in requests}) == 1
    assert {len(request.prompt) for request in requests} <= {9, 10, 11}


def test_nano_vllm_draws_these():
    requests = nano_vllm_requests()
    assert len(requests) == 256
    assert sum(len(request.prompt) for request in requests) == 142_827
    assert sum(request.max_tokens for request in requests) == 133_966


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Uniform(0, 3), "shortest must be an integer of at least 1, got 0"),
        (lambda: Uniform(5, 3), "longest must be an integer of at least 5, got 3"),
        (lambda: LogNormal(0), "median must be an integer of at least 1"),
        (lambda: LogNormal(5, -1.0), "sigma must be at least 0 and finite, got -1"),
        (lambda: LogNormal(5, longest=4), "longest must be an integer of at least 5"),
        (lambda: Arrivals(0.0), "per_s must be positive, got 0"),
        (lambda: Arrivals(1.0, -1.0), "burstiness must be at least 0 and finite"),
        (lambda: Arrivals(1.0, math.inf), "burstiness must be at least 0 and finite"),
        (lambda: make_requests(0, Arrivals(), SHORT, SHORT), "count must be an integer of at least 1"),
        (lambda: make_requests(1, Arrivals(), SHORT, SHORT, seed=-1), "seed must be"),
        (lambda: make_requests(1, Arrivals(), SHORT, SHORT, shared_prefix=-1), "shared_prefix must be"),
        (lambda: make_requests(1, Arrivals(), SHORT, SHORT, vocab_size=0), "vocab_size must be"),
        (lambda: nano_vllm_requests(longest_answer=99), "longest_answer must be at least 100, got 99"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_the_benchmark_of_nobody_is_refused():
    with pytest.raises(ValueError, match="count must be an integer of at least 1, got 0"):
        nano_vllm_requests(0)

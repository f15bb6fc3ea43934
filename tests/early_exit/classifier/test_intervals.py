"""Intervals hold the truth as often as they say, over eight documents as well."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from scipy import stats

from llmcourse.early_exit.classifier.intervals import Spread, mean_of, spread, student_t

LEVEL, DRAWS = 0.95, 2000
# Of 2000 intervals at 95 %, 100 are expected to miss. More than the one number, or fewer than the other,
# would be chance once in 10^5.
MOST = int(stats.binom(DRAWS, 1 - LEVEL).isf(1e-5))
FEWEST = int(stats.binom(DRAWS, 1 - LEVEL).ppf(1e-5))
BOOKS = (500,) * 8
UNLIKE = (800, 800, 800, 800, 400, 200, 100, 100)


@cache
def drawn(sizes: tuple[int, ...], together: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What one method has right and another has not, 1, or the other way round, -1, whose true mean is 0.

    Args:
        sizes: of the documents.
        together: by how much the chances of 1 and of -1 differ from document to document.
    """
    generator = torch.Generator().manual_seed(0)
    documents = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    found = []
    for _ in range(DRAWS):
        better = together * torch.randn(len(sizes), generator=generator)
        uniform = torch.rand(len(documents), generator=generator)
        chances = (0.07 + better).clamp(0, 1)[documents], (0.07 - better).clamp(0, 1)[documents]
        found.append((uniform < chances[0]).double() - (uniform > 1 - chances[1]).double())
    return found, documents


def misses(sizes, half_width, together=0.015):
    """How many intervals of that half width leave 0 out."""
    values, documents = drawn(sizes, together)
    return sum(abs(each.mean().item()) > half_width(each, documents) for each in values)


def jackknife(values, documents):
    return spread(values, documents).half_width(LEVEL)


def test_it_holds_the_truth_as_often_as_it_says_over_eight_documents():
    assert FEWEST <= misses(BOOKS, jackknife) <= MOST


@pytest.mark.parametrize("together", [0.0, 0.015])
def test_it_does_so_where_documents_are_of_unlike_sizes(together):
    assert misses(UNLIKE, jackknife, together) <= MOST


def test_it_does_so_over_many_documents():
    assert FEWEST <= misses((8,) * 100, jackknife) <= MOST


def test_it_does_so_for_a_mean_over_tasks():
    """Eight books decide how sure the mean is, and a hundred small documents add their share."""
    books, many = drawn(BOOKS, 0.015), drawn((8,) * 100, 0.015)
    missed = 0
    for one, other in zip(books[0], many[0], strict=True):
        both = mean_of([spread(one, books[1]), spread(other, many[1])])
        missed += abs(one.mean() + other.mean()).item() / 2 > both.half_width(LEVEL)
    assert FEWEST <= missed <= MOST


def test_a_bootstrap_of_eight_documents_is_too_sure():
    """The negative control: the ends of a percentile bootstrap, as the table's intervals once were."""
    generator, missed = torch.Generator().manual_seed(1), 0
    values, documents = drawn(BOOKS, 0.015)
    for each in values:
        means = torch.zeros(8, dtype=torch.float64).index_add_(0, documents, each) / 500
        again = means[torch.randint(8, (500, 8), generator=generator)].mean(1)
        low, high = torch.quantile(again, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        missed += not low <= 0 <= high
    assert missed > MOST


def test_more_negative_controls():
    """The normal distribution for Student's t; examples for documents; as many degrees as documents."""

    def with_t(t):
        return lambda values, documents: t * math.sqrt(spread(values, documents).variance)

    assert misses(BOOKS, with_t(1.96)) > MOST
    assert misses(BOOKS, lambda values, documents: 1.96 * (values.var() / len(values)).sqrt().item()) > MOST
    few_large = (800,) * 3 + (100,) * 5
    assert misses(few_large, with_t(student_t(LEVEL, 7))) > MOST
    assert misses(few_large, jackknife) <= MOST


def test_of_documents_of_one_size_it_is_the_usual_interval_of_their_means():
    values, documents = torch.randn(6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6)
    found = spread(values, documents)
    assert found.variance == pytest.approx((values.var() / 6).item()) and found.freedom == pytest.approx(5)
    usual = stats.t.interval(LEVEL, 5, scale=math.sqrt(found.variance))
    assert found.half_width(LEVEL) == pytest.approx(usual[1], rel=1e-6)
    twice = spread(values.repeat_interleave(3), documents.repeat_interleave(3) * 7)  # numbers may be left out
    assert (twice.variance, twice.freedom) == pytest.approx((found.variance, found.freedom))


def test_the_variance_is_that_of_means_without_each_document():
    values, documents = drawn(UNLIKE, 0.015)[0][0], drawn(UNLIKE, 0.015)[1]
    without = torch.stack([values[documents != one].mean() for one in range(8)])
    jack = 7 / 8 * (without - values.mean()).square().sum()
    assert spread(values, documents).variance == pytest.approx(jack.item())


@pytest.mark.parametrize("sizes", [(6, 3, 2, 1), (1, 1, 1, 9), (4, 4, 4), (1, 2, 3, 4, 5, 6)])
def test_the_degrees_are_those_of_the_variance_as_a_form_in_all_examples(sizes):
    """The slow truth: the jackknife's variance is y' B y of the examples y; were these independent, its
    degrees would be (tr B)² / tr B² (Bell and McCaffrey 2002)."""
    documents = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    count, groups = len(documents), len(sizes)
    changes = torch.empty(groups, count, dtype=torch.float64)  # of the mean, where a document is left out
    for one in range(groups):
        kept = (documents != one).double()
        changes[one] = kept / kept.sum() - 1 / count
    form = (groups - 1) / groups * changes.T @ changes
    found = spread(torch.randn(count), documents)
    assert found.freedom == pytest.approx((form.trace() ** 2 / (form @ form).trace()).item())


def test_a_document_that_outweighs_all_leaves_one_degree():
    found = spread(torch.randn(2007), torch.cat((torch.zeros(2000), torch.arange(1, 8))).long())
    assert 1 <= found.freedom < 1.01
    one_and_seven = torch.tensor([0] + [1] * 7)  # without rounding it would be 1; with it, a little less
    assert spread(torch.randn(8), one_and_seven).freedom == 1


def test_one_document_tells_nothing_and_no_variance_no_width():
    alone = spread(torch.randn(9), torch.zeros(9, dtype=torch.long))
    assert alone.variance == alone.half_width(LEVEL) == math.inf
    assert spread(torch.ones(9), torch.arange(9)).half_width(LEVEL) == 0
    assert mean_of([alone, Spread(1.0, 3.0)]).half_width(LEVEL) == math.inf
    assert mean_of([Spread(0.0, 3.0)] * 2).half_width(LEVEL) == 0


def test_welch_and_satterthwaite():
    one, nothing = Spread(2.0, 5.0), Spread(0.0, 1.0)
    for spreads, variance, freedom in (([one], 2, 5), ([one] * 3, 2 / 3, 15), ([one, nothing], 0.5, 5)):
        found = mean_of(spreads)
        assert (found.variance, found.freedom) == pytest.approx((variance, freedom))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_quantiles_of_student_are_scipys(level):
    for freedom in (1, 1.03, 1.5, 2, 3.67, 7, 39.4, 723.2, 1e5):
        assert student_t(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-3)


@pytest.mark.parametrize(("level", "freedom"), [(0, 7), (1, 7), (95, 7), (0.95, 0.9), (0.95, math.inf)])
def test_numbers_out_of_range_are_refused(level, freedom):
    with pytest.raises(ValueError, match="must be"):
        student_t(level, freedom)

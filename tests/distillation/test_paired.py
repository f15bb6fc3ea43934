"""Differences by seed: worked by hand, against a test of scipy, and where pairs do not fit."""

import math
import random

import pytest
from scipy import stats

from llmcourse.distillation.paired import paired


def run(kind, seed, nats, student="draft", domain="prose", steps=10):
    return {"student": student, "domain": domain, "kind": kind, "seed": seed, "steps": steps, "nats": nats}


RUNS = [
    *(run("scratch", seed, nats) for seed, nats in enumerate((4.0, 4.2, 4.4))),
    *(run("response", seed, nats) for seed, nats in ((2, 4.2), (0, 3.9), (1, 4.05))),
]


def test_worked_by_hand():
    (found,) = paired(RUNS, "nats")
    assert (found.student, found.domain, found.kind, found.num_seeds) == ("draft", "prose", "response", 3)
    assert found.value.mean == pytest.approx(4.05) and found.baseline.mean == pytest.approx(4.2)
    assert found.difference.mean == pytest.approx(-0.15)
    assert found.difference.error == pytest.approx(0.05 / math.sqrt(3))  # of −0.1, −0.15, −0.2
    assert found.errors == pytest.approx(-0.15 / (0.05 / math.sqrt(3)))
    assert "-0.1500 ± 0.0289 over 3 seeds" in str(found)


def test_it_is_the_paired_test_and_not_that_of_two_heaps():
    draw = random.Random(0)
    luck = [draw.gauss(0, 1) for _ in range(8)]
    first, second = ([5 + each + draw.gauss(shift, 0.05) for each in luck] for shift in (0, 0.1))
    runs = [run(kind, s, v) for kind, values in (("a", first), ("b", second)) for s, v in enumerate(values)]
    (found,) = paired(runs, "nats", baseline="a")
    assert found.errors == pytest.approx(stats.ttest_rel(second, first).statistic)
    assert abs(found.errors) > 3 > abs(stats.ttest_ind(second, first).statistic)


def test_only_seeds_that_both_have_are_compared_and_the_last_run_counts():
    (found,) = paired([*RUNS, run("response", 9, 100.0), run("response", 0, 3.8)], "nats")
    assert found.num_seeds == 3 and found.difference.mean == pytest.approx((-0.2 - 0.15 - 0.2) / 3)


def test_students_and_domains_are_kept_apart():
    others = [run(r["kind"], r["seed"], r["nats"] + 1, "small", "code") for r in RUNS]
    found = paired([*RUNS, *others], "nats")
    assert [(each.student, each.domain) for each in found] == [("draft", "prose"), ("small", "code")]
    assert found[0].difference.mean == pytest.approx(found[1].difference.mean)


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.0), (-0.5, -math.inf), (0.5, math.inf)])
def test_a_difference_without_spread(mean, expected):
    runs = [run("scratch", s, 4.0) for s in (0, 1)] + [run("both", s, 4.0 + mean) for s in (0, 1)]
    assert paired(runs, "nats")[0].errors == expected


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        (RUNS[3:], "baseline must be a kind that was run: response"),
        (RUNS[:4], "seeds of draft prose response must be at least 2 of the baseline's"),
        ([*RUNS, run("both", 0, 4.0, steps=11)], r"runs must be of one number of steps, got \[10, 11\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, says):
    with pytest.raises(ValueError, match=says):
        paired(runs, "nats")

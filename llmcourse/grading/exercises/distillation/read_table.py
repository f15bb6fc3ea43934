"""06.read_table: which claims a table of results bears out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close, Exact, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation import drawn
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
Students were trained in several ways, each with the same seeds, so that runs come in **pairs**: seed $s$ of a
method and seed $s$ of its twin, trained from scratch, begin alike and read the same text in the same order.
`losses` has the validation loss $\ell_{mds}$ of method $m$ on domain $d$ with seed $s$; method 0 is the twin.
What a method gains is its twin's loss less its own, pair by pair, and how far that mean can be trusted is
its standard error, from the spread of **these differences**:

$$\delta_{mds} = \ell_{0ds} - \ell_{mds}, \qquad
\bar\delta_{md} = \frac{1}{S} \sum_s \delta_{mds}, \qquad
e_{md} = \frac{1}{\sqrt S} \sqrt{\frac{1}{S - 1} \sum_s (\delta_{mds} - \bar\delta_{md})^2}$$

A method **wins** a domain where $\bar\delta > k\, e$, and **loses** it where $\bar\delta < -k\, e$; otherwise
nothing is shown there. And of the method as a whole one may say

- `"better"`: it wins at least `domains` of them, and loses none;
- `"worse"`: it loses at least `domains` of them, and wins none;
- `"mixed"`: it wins some and loses some;
- `"not shown"`: anything else.

Write `read_table(losses, k, domains)`.

- `losses`: `float64` tensor of shape `(N, D, S)`, `N` at least 2, `S` at least 2.
- `k`: how many standard errors are asked for, a float above 0. `domains`: in how many domains, at least 1.
- returns `(gains, errors, claims)`: $\bar\delta$ and $e$, `float64` tensors of which the first row is method
  1, shape `(N - 1, D)`; and a list of `N - 1` texts.

No gain is near $k$ errors. All differences of a domain may be alike: then $e$ is 0, and any gain wins.

```python
>>> twin = torch.tensor([[3.0, 3.5, 3.25], [2.0, 2.25, 2.0]], dtype=torch.float64)     # seeds differ a lot
>>> student = twin - torch.tensor([[0.25, 0.25, 0.3125], [0.0, 0.0625, -0.0625]])      # pairs do not
>>> gains, errors, claims = read_table(torch.stack((twin, student)), k=3.0, domains=1)
>>> gains
tensor([[0.2708, 0.0000]], dtype=torch.float64)
>>> errors
tensor([[0.0208, 0.0361]], dtype=torch.float64)
>>> claims
['better']
```
"""

HINTS = (
    "differences = losses[:1] - losses[1:], of shape (N - 1, D, S). Gains and errors are its mean and its "
    "spread along the last dimension.",
    "errors = differences.std(dim=-1) / S ** 0.5: std divides by S − 1 unless told otherwise.",
    "wins = (gains > k * errors).sum(dim=1) and loses = (gains < -k * errors).sum(dim=1) are two numbers for "
    "each method, and a claim follows from these.",
)

SIGN = "These gains have the wrong sign. A lower loss is better: the twin's loss less the method's."
UNPAIRED = (
    "These errors are those of two independent means. The runs are pairs: what both have from a seed "
    "cancels in the difference, and the spread of the differences is what is left."
)
OWN_SPREAD = "That is the standard error of the method's own loss. It is the difference that is claimed."
SPREAD = "That is the standard deviation of one pair. The error of the mean of S pairs is smaller by √S."
ALL_OF_THEM = "The squares were divided by S. With the mean taken from the same numbers it is S − 1."
BY_S = "The standard deviation was divided by S. It is the variance that is; so divide by √S."
BEST_SEED = "That is the best seed. The mean of all is asked for, also of those that went badly."
BEST_OF_EACH = "The best run was compared with the twin's best. Each has the luck of its own best seed in it."
MEDIAN = "That is the median of the pairs. The mean is asked for."
RELATIVE = "These are shares of the twin's loss. Gains are differences, in nats."
WRONG_AXIS = (
    "Means and errors are over the domains here. Seeds are the last dimension; each domain has its own."
)
ANY_GAIN = "Any gain above 0 is taken for a win. A win is more than k standard errors."
ANY_DOMAIN = "One domain is enough for a claim here. It takes `domains` of them."
IGNORES = (
    "Domains in which the method loses were left out. A method that wins some and loses some is mixed, "
    "however many it wins."
)
NET = "Wins and losses were set off against each other. One lost domain is enough for a claim to be mixed."
POOLED = "The domains were averaged first. Each has its own verdict; a claim counts these."
NO_WORSE = "A method that loses is not only not shown to be better: it is worse, and that is to be said."
ALL_DOMAINS = "A claim asks for `domains` of them, not for all."
HINTS_AT = {
    "one domain of the two that it takes": "It wins somewhere, and in too few domains: that is not shown.",
    "gains of two errors": "How many standard errors are asked for is k, whatever one is used to.",
    "two errors are asked for": "How many standard errors are asked for is k, whatever one is used to.",
    "differences that are all alike": (
        "An error of 0 is no missing number: gain > k · error holds for any gain above 0. Do not divide."
    ),
    "one domain is enough": (
        "A claim takes as many domains as `domains` says, here one, also of many; more are as good."
    ),
    "three domains of five": (
        "`domains` says how many it takes. One domain that is won and one that is lost are mixed, however "
        "few these are; and k need be no whole number."
    ),
    "a single method and domain": "The gains have the shape (N − 1, D), also where both are 1: no squeeze().",
    "two seeds": "Two pairs have a spread, with S − 1 = 1.",
}


def read_table(
    losses: Float[Tensor, "N D S"], k: float, domains: int
) -> tuple[Float[Tensor, "L D"], Float[Tensor, "L D"], list[str]]:
    """Paired means, their errors, and what follows."""
    return Table()(losses, k, domains)


def standard_errors(losses, differences):
    return differences.std(-1) / differences.shape[-1] ** 0.5


def claim(wins, loses, domains, size):
    if wins and loses:
        return "mixed"
    if max(wins, loses) < domains:
        return "not shown"
    return "better" if wins else "worse"


@dataclass(frozen=True)
class Table:
    """The reading; the fields are what mutants get wrong.

    Args:
        gains: of the losses and the differences.
        errors: the same.
        sure: of errors and how many are asked for: a gain that is above wins.
        claim: of the numbers of domains won and lost, how many are asked for, and how many there are.
        judged: gains and errors that claims are made from, of all of them.
    """

    gains: Callable = lambda losses, differences: differences.mean(-1)
    errors: Callable = standard_errors
    sure: Callable = lambda errors, k: k * errors
    claim: Callable = claim
    judged: Callable = lambda gains, errors: (gains, errors)

    def __call__(self, losses, k, domains):
        differences = losses[:1] - losses[1:]
        gains, errors = self.gains(losses, differences), self.errors(losses, differences)
        judged, doubt = self.judged(gains, errors)
        sure = self.sure(doubt, k)
        counts = zip((judged > sure).sum(1).tolist(), (judged < -sure).sum(1).tolist(), strict=True)
        return gains, errors, [self.claim(*count, domains, losses.shape[1]) for count in counts]


FIRST, ONE = "all four claims", "one domain of the two that it takes"
ENOUGH, THREE = "one domain is enough", "three domains of five"
TWO, ASKED = "gains of two errors", "two errors are asked for"


def cases(rng: random.Random) -> list[Case]:
    def win():
        return rng.uniform(6, 12)

    def weak():
        return rng.choice((-1, 1)) * rng.uniform(0.3, 1.5)

    def between():
        return rng.uniform(2.3, 2.7)

    def almost():
        return rng.uniform(4.08, 4.25)

    def case(label, methods, seeds=5, k=3.0, domains=2, wrong=(), apart=()):
        """`methods`: for each, functions that draw its gain in each domain, in standard errors."""

        def draw():
            rows = [drawn.gains(rng, [size() for size in method], seeds) for method in methods]
            base = 3 + 0.2 * normal(rng, *rows[0].shape, dtype=torch.float64)
            return {"losses": torch.stack([base, *(base - row for row in rows)]), "k": k, "domains": domains}

        return Case(dict(telling(draw, read_table, wrong, apart)), label)

    def lose():
        return -win()

    four = [
        [win, win, win, weak],
        [lose, lose, weak, lose],
        [win, win, lose, win],
        [weak, win, weak, between],
    ]
    rng.shuffle(four)
    few, four_of_five = [win, weak, win, weak, weak], [win, win, weak, win, win]
    near_k, of_both = [almost] * 5, [win, weak, weak, lose, weak]
    return [
        case(FIRST, four, seeds=4, domains=3, apart=TOLD),
        case(ONE, [[weak, win, weak], [lose, weak, weak]]),
        case(TWO, [[between, between, between], [win, win, between]], wrong=(_always_2,)),
        case(ASKED, [[between, weak, between], [win, lose, win]], k=2.0, wrong=(_always_3,)),
        case("two seeds", [[win, win, weak], [lose, lose, lose]], seeds=2),
        Case(_alike(rng), "differences that are all alike"),
        case(ENOUGH, [[weak, win, weak], [win, win, weak], [weak, lose, weak]], domains=1),
        case(THREE, [few, four_of_five, near_k, of_both], k=4.5, domains=3),
        case("a single method and domain", [[rng.choice((win, lose))]], domains=1),
    ]


def _alike(rng: random.Random) -> dict:
    """Differences in 64ths, of numbers in 64ths: nothing is rounded, and errors are 0."""
    base = torch.tensor([[rng.randint(150, 250) for _ in range(4)] for _ in range(3)], dtype=torch.float64)
    steps = torch.tensor([[[1], [2], [0]], [[0], [0], [0]]], dtype=torch.float64)
    steps = steps[:, rng.sample(range(3), 3)]
    return {"losses": torch.cat((base[None], base - steps)) / 64, "k": 3.0, "domains": 2}


def _unpaired_errors(losses, differences):
    own = losses.std(-1) / losses.shape[-1] ** 0.5
    return (own[:1] ** 2 + own[1:] ** 2).sqrt()


def _net(wins, loses, domains, size):
    net = wins - loses
    return "not shown" if abs(net) < domains else "better" if net > 0 else "worse"


def _ignoring(wins, loses, domains, size):
    return "better" if wins >= domains else "worse" if loses >= domains else "not shown"


def _most(wins, loses, domains, size):
    return claim(wins, loses, size // 2 + 1, size)


def _just_as_many(wins, loses, domains, size):
    found = claim(wins, loses, domains, size)
    return "not shown" if found == "better" and wins != domains else found


def _mixed_if_enough(wins, loses, domains, size):
    found = claim(wins, loses, domains, size)
    return "not shown" if found == "mixed" and wins + loses < domains else found


def _squeezed(losses, k, domains):
    gains, errors, claims = read_table(losses, k, domains)
    return gains.squeeze(), errors.squeeze(), claims


def _without_worse(wins, loses, domains, size):
    found = claim(wins, loses, domains, size)
    return "not shown" if found == "worse" else found


def _pooled_claims(gains, errors):
    size = gains.shape[1]
    mean, doubt = gains.mean(1, keepdim=True), errors.square().sum(1, keepdim=True).sqrt() / size
    return mean.expand_as(gains), doubt.expand_as(gains)


_sign = Table(
    gains=lambda losses, differences: -differences.mean(-1),
)
_unpaired = Table(errors=_unpaired_errors)
_own_spread = Table(errors=lambda losses, differences: losses[1:].std(-1) / losses.shape[-1] ** 0.5)
_spread = Table(errors=lambda losses, differences: differences.std(-1))
_all_of_them = Table(errors=lambda losses, d: d.std(-1, correction=0) / d.shape[-1] ** 0.5)
_by_s = Table(errors=lambda losses, differences: differences.std(-1) / differences.shape[-1])
_best_seed = Table(gains=lambda losses, differences: differences.amax(-1))
_best_of_each = Table(gains=lambda losses, differences: losses[:1].amin(-1) - losses[1:].amin(-1))
_median = Table(gains=lambda losses, differences: differences.median(-1).values)
_relative = Table(gains=lambda losses, differences: (differences / losses[:1]).mean(-1))
_wrong_axis = Table(
    gains=lambda losses, differences: differences.mean(1),
    errors=lambda losses, differences: differences.std(1) / differences.shape[1] ** 0.5,
)
_any_gain = Table(sure=lambda errors, k: 0 * errors)
_any_domain = Table(claim=lambda wins, loses, domains, size: claim(wins, loses, 1, size))
_ignores = Table(claim=_ignoring)
_sets_off = Table(claim=_net)
_pooled = Table(judged=_pooled_claims)
_no_worse = Table(claim=_without_worse)
_all_domains = Table(claim=lambda wins, loses, domains, size: claim(wins, loses, size, size))
_two_domains = Table(claim=lambda wins, loses, domains, size: claim(wins, loses, 2, size))
_majority, _exactly, _enough = Table(claim=_most), Table(claim=_just_as_many), Table(claim=_mixed_if_enough)
_whole = Table(sure=lambda errors, k: int(k) * errors)
_always_2 = Table(sure=lambda errors, k: 2 * errors)
_always_3 = Table(sure=lambda errors, k: 3 * errors)
_least = Table(sure=lambda errors, k: torch.where(errors == 0, torch.inf, k * errors))


def _in_place(losses, k, domains):
    found = read_table(losses, k, domains)
    losses -= losses[:1].clone()
    return found


TOLD = (
    *(_sign, _unpaired, _own_spread, _spread, _all_of_them, _by_s, _best_seed, _best_of_each, _median),
    *(_relative, _wrong_axis, _any_gain, _any_domain, _ignores, _sets_off, _pooled, _no_worse, _all_domains),
)
EXERCISE = Exercise(
    name="06.read_table",
    function="read_table",
    title="What a table shows",
    points=12,
    minutes=20,
    level=4,
    asks=ASKS,
    signature="read_table(losses, k, domains)",
    cases=cases,
    reference=read_table,
    comparison=Parts(
        {
            "gains": Close(atol=1e-9, rtol=1e-6, axes=("method", "domain")),
            "errors": Close(atol=1e-9, rtol=1e-6, axes=("method", "domain")),
            "claims": Exact(item="method"),
        }
    ),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("has gains of the wrong sign", _sign, FIRST, SIGN),
        Mutant("does not see pairs", _unpaired, FIRST, UNPAIRED),
        Mutant("has the method's own error", _own_spread, FIRST, OWN_SPREAD),
        Mutant("has the spread of one pair", _spread, FIRST, SPREAD),
        Mutant("divides squares by S", _all_of_them, FIRST, ALL_OF_THEM),
        Mutant("divides the spread by S", _by_s, FIRST, BY_S),
        Mutant("takes the best seed", _best_seed, FIRST, BEST_SEED),
        Mutant("compares best runs", _best_of_each, FIRST, BEST_OF_EACH),
        Mutant("takes the median", _median, FIRST, MEDIAN),
        Mutant("has relative gains", _relative, FIRST, RELATIVE),
        Mutant("averages domains", _wrong_axis, FIRST, WRONG_AXIS),
        Mutant("believes any gain", _any_gain, FIRST, ANY_GAIN),
        Mutant("believes one domain", _any_domain, FIRST, ANY_DOMAIN),
        Mutant("leaves out lost domains", _ignores, FIRST, IGNORES),
        Mutant("sets wins off against losses", _sets_off, FIRST, NET),
        Mutant("claims of averaged domains", _pooled, FIRST, POOLED),
        Mutant("never says worse", _no_worse, FIRST, NO_WORSE),
        Mutant("asks for all domains", _all_domains, FIRST, ALL_DOMAINS),
        Mutant("always asks for two errors", _always_2, TWO),
        Mutant("always asks for three errors", _always_3, ASKED),
        Mutant("always asks for two domains", _two_domains, ENOUGH),
        Mutant("asks for most domains", _majority, ENOUGH),
        Mutant("asks for just as many", _exactly, ENOUGH),
        Mutant("has nothing mixed of a few", _enough, THREE),
        Mutant("asks for whole numbers of errors", _whole, THREE),
        Mutant("squeezes", _squeezed, "a single method and domain"),
        Mutant("distrusts an error of 0", _least, "differences that are all alike"),
        Mutant("changes its input", _in_place, NoMutation().name),
    ),
)

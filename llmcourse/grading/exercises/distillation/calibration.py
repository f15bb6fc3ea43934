"""06.calibration: the expected calibration error, and the table that it is read from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A model that gives its favourite a probability of 0.8 should be right in 80 % of such cases. Whether it is can
be counted (Guo et al. 2017, section 2). The **confidence** of a position is its largest probability, and it
is **right** where that token is the label. Positions whose confidence lies in the same bin go together; bin
$b$ of $B$, from 1, is the interval $\left(\frac{b-1}{B}, \frac{b}{B}\right]$: its upper end belongs to it.
The **expected calibration error** is

$$\mathrm{ECE} = \sum_{b=1}^{B} \frac{n_b}{N}\, \big|\, \mathrm{acc}_b - \mathrm{conf}_b \,\big|$$

with $n_b$ the number of positions in a bin, $\mathrm{acc}_b$ the share of them that are right, and
$\mathrm{conf}_b$ their mean confidence. What was taught by a sure teacher is often surer than right.

Write `calibration(probs, labels, num_bins)`.

- `probs`: `float32` tensor of shape `(N, V)`, each row a distribution whose largest number is at one token.
- `labels`: `int64` tensor of shape `(N,)`.
- `num_bins`: $B$, at least 1.
- returns `(ece, table)`: the error, a float, and a `float32` tensor of shape `(B, 3)` with $n_b$,
  $\mathrm{conf}_b$ and $\mathrm{acc}_b$ of each bin; all three are 0 where a bin is empty.

```python
>>> probs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4], [0.25, 0.25, 0.5]])
>>> ece, table = calibration(probs, labels=torch.tensor([0, 0, 2, 1]), num_bins=2)
>>> round(ece, 4)                   # 0.5 is in the first bin
0.2
>>> table
tensor([[2.0000, 0.4500, 0.5000],
        [2.0000, 0.8500, 0.5000]])
```
"""

HINTS = (
    "confidence, favourite = probs.max(dim=-1), and right = favourite == labels. The rest is about these two "
    "lists of N numbers.",
    "The bin of a confidence, from 0, is ceil(confidence · B) − 1. Or a loop over the bins: kept = "
    "(confidence > b / B) & (confidence <= (b + 1) / B).",
    "Without a loop: counts = torch.bincount(bins, minlength=B), the sums of confidence and of right the "
    "same with weights=…, and clamp(min=1) for what they are divided by.",
)

PLAIN_MEAN = "That is the plain mean over the bins. Each bin weighs as many positions as it has, n_b / N."
SIGNED = "The gaps have a sign here, so that bins make up for each other. Take |acc − conf| of each bin."
OVERALL = (
    "That is the gap between overall accuracy and overall confidence. Bins that are too sure and others that "
    "are not sure enough cancel in it: take the magnitude bin by bin."
)
LARGEST = (
    "That is the largest gap of a bin, the maximum calibration error. The expected one is a weighted mean."
)
SQUARES = "The gaps were squared. It is their magnitudes that are averaged."
MIDDLES = "The middle of a bin stands for its confidence here. conf is the mean of the confidences in it."
OVER_ALONE = "Only bins that are too sure count here. A gap is |acc − conf|, whichever is larger."
OF_LABEL = "The probability of the label is taken for the confidence. It is the largest of the row."
ACC_SOFT = "acc is the share of positions that are right, not the mean probability of the label."
UNDIVIDED = "The weights are n_b: they are to be divided by N."
SHARES = "The first column has shares. It is to have n_b, the numbers of positions."
SUMS = "conf and acc are sums here. Both are means of the positions in the bin."
EQUAL = "These bins have as many positions each. Here they have the same width, 1/B."
COLUMNS_SWAPPED = "conf and acc are swapped in the table: n, conf, acc."
BY_SECOND = "Right is where the likeliest token is the label. Here the second likeliest is compared with it."
HINTS_AT = {
    "empty bins": "A mean over nothing is NaN. A bin without positions is a row of zeros, and adds nothing.",
    "confidences at an end": (
        "A confidence of exactly b / B is in bin b, the one that ends there; so 1 is in the last. One that "
        "is above, by however little, is in the next: take nothing away before."
    ),
    "one bin": "With B = 1 everything is in one bin, from 0 to 1.",
    "a single position": "With one position there is one bin that is not empty, and its acc is 0 or 1.",
}


def calibration(
    probs: Float[Tensor, "N V"], labels: Int[Tensor, " N"], num_bins: int
) -> tuple[float, Float[Tensor, "B 3"]]:
    """Bins of confidence, and the gaps between it and accuracy."""
    return Calibration()(probs, labels, num_bins)


def upper_ends(confidence, bins):
    return (confidence.double() * bins).ceil().long() - 1


@dataclass(frozen=True)
class Calibration:
    """The table and its error; the fields are what mutants get wrong.

    Args:
        confidence: of the probabilities and the labels.
        right: how far each position is, of the same.
        place: bin of each confidence, from 0, of their number.
        conf: told for each bin, of the mean confidences, the counts and the number of bins.
        gap: of accuracy and confidence.
        error: of the gaps and the counts, both of all bins.
        table: of the counts, confidences and accuracies.
        least: what a mean is divided by at least.
    """

    confidence: Callable = lambda probs, labels: probs.amax(-1)
    right: Callable = lambda probs, labels: probs.argmax(-1) == labels
    place: Callable = upper_ends
    conf: Callable = lambda conf, bins: conf
    gap: Callable = lambda acc, conf: (acc - conf).abs()
    error: Callable = lambda gaps, counts: (gaps * counts).sum() / counts.sum()
    table: Callable = lambda counts, conf, acc: (counts, conf, acc)
    least: int = 1

    def __call__(self, probs, labels, num_bins):
        confidence, right = self.confidence(probs, labels), self.right(probs, labels)
        places = self.place(confidence, num_bins).clamp(max=num_bins - 1)
        counts = torch.bincount(places, minlength=num_bins).double()
        divisors = counts.clamp(min=self.least)
        conf, acc = (
            torch.bincount(places, weights=each.double(), minlength=num_bins) / divisors
            for each in (confidence, right)
        )
        error = self.error(self.gap(acc, self.conf(conf, num_bins)), counts)
        return error.item(), torch.stack(self.table(counts, conf, acc), 1).float()


FIRST, EMPTY, ENDS = "no bin is empty", "empty bins", "confidences at an end"
CLEAR = 0.02  # of a bin's width: so far is a confidence from an end, where it is not drawn to be at one


def cases(rng: random.Random) -> list[Case]:
    def case(label, confidences, bins, wrong=(), apart=()):
        vocab = 4

        def draw():
            drawn = confidences()
            return {
                "probs": torch.tensor([_row(rng, vocab, each) for each in drawn]),
                "labels": torch.tensor([rng.randrange(vocab) for _ in drawn]),
                "num_bins": bins,
            }

        def telling_labels():
            given = draw()
            favourites = given["probs"].argmax(-1)
            half = torch.tensor([rng.random() < 0.5 for _ in favourites])
            given["labels"] = torch.where(half, favourites, given["labels"])
            return given

        return Case(dict(telling(telling_labels, calibration, wrong, apart)), label)

    def within(bins, places):
        return [(place + rng.uniform(CLEAR, 1 - CLEAR)) / bins for place in places]

    def every_bin():
        count = rng.randint(14, 20)
        drawn = within(4, [1] * 4 + [2] * 5 + [3] * 6 + [rng.choice((1, 2, 3)) for _ in range(count)])
        rng.shuffle(drawn)
        # Bin 1 of 3 holds what is in (1/4, 1/3]; nothing lies near an end of thirds either.
        return [c for c in drawn if abs(3 * c - round(3 * c)) > CLEAR] + [0.29, 0.31, 0.3]

    ends = [0.5, 0.75, 1.0]
    above = [0.5 + 2**-22]  # float32 has it, and four times as much
    told = (_lower_ends, _a_little_less)
    return [
        case(FIRST, every_bin, 3, apart=TOLD),
        case(EMPTY, lambda: within(10, rng.choices((4, 5, 8, 9), k=12)), 10, (_nan,)),
        case(ENDS, lambda: ends + above + rng.choices(ends, k=6) + within(4, [1, 2, 3]), 4, told),
        case("one bin", lambda: within(4, rng.choices((1, 2, 3), k=9)), 1),
        case("a single position", lambda: within(5, [rng.choice((2, 3, 4))]), 5),
    ]


def _row(rng: random.Random, vocab: int, confidence: float) -> list[float]:
    """A distribution with this largest probability, at any token; the rest is shared out below it."""
    rest = 1 - confidence
    even = rest / (vocab - 1)
    slack = min(even, confidence - even) * 0.8 / (vocab - 1)  # so that no other is as large
    offsets = [rng.uniform(0.2, 1.0) * slack for _ in range(vocab - 2)]
    others = [even - offset for offset in offsets] + [even + sum(offsets)]
    rng.shuffle(others)
    others.insert(rng.randrange(vocab), confidence)
    return others


def _by_rank(confidence, bins):
    """Bins of the same number of positions."""
    return confidence.argsort().argsort() * bins // len(confidence)


def _of_label(probs, labels):
    return probs.gather(1, labels[:, None])[:, 0]


_plain_mean = Calibration(error=lambda gaps, counts: gaps.mean())
_signed = Calibration(gap=lambda acc, conf: acc - conf)
_overall = Calibration(
    gap=lambda acc, conf: acc - conf, error=lambda gaps, counts: ((gaps * counts).sum() / counts.sum()).abs()
)
_largest = Calibration(error=lambda gaps, counts: gaps.max())
_squares = Calibration(gap=lambda acc, conf: (acc - conf) ** 2)
_middles = Calibration(conf=lambda conf, bins: (torch.arange(bins) + 0.5) / bins)
_label_confidence = Calibration(confidence=_of_label)
_acc_soft = Calibration(right=_of_label)
_undivided = Calibration(error=lambda gaps, counts: (gaps * counts).sum())
_shares = Calibration(table=lambda counts, conf, acc: (counts / counts.sum(), conf, acc))
_sums = Calibration(table=lambda counts, conf, acc: (counts, conf * counts, acc * counts))
_equal = Calibration(place=_by_rank)
_swapped = Calibration(table=lambda counts, conf, acc: (counts, acc, conf))
_second = Calibration(right=lambda probs, labels: probs.argsort(-1)[:, -2] == labels)
_nan = Calibration(least=0)
_a_little_less = Calibration(place=lambda confidence, bins: ((confidence - 1e-6) * bins).floor().long())
_over_alone = Calibration(gap=lambda acc, conf: (conf - acc).clamp(min=0))
_lower_ends = Calibration(place=lambda confidence, bins: (confidence * bins).floor().long())


def _in_place(probs, labels, num_bins):
    found = calibration(probs, labels, num_bins)
    probs[range(len(probs)), probs.argmax(-1)] = 0.0
    return found


TOLD = (
    *(_plain_mean, _signed, _overall, _largest, _squares, _middles, _label_confidence, _acc_soft),
    *(_undivided, _shares, _sums, _equal, _swapped, _second, _over_alone),
)
EXERCISE = Exercise(
    name="06.calibration",
    function="calibration",
    title="As sure as right",
    points=10,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="calibration(probs, labels, num_bins)",
    cases=cases,
    reference=calibration,
    comparison=Parts({"ece": Near(rtol=1e-3), "table": Close(axes=("bin", "column"))}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("has a plain mean over bins", _plain_mean, FIRST, PLAIN_MEAN),
        Mutant("has gaps with a sign", _signed, FIRST, SIGNED),
        Mutant("compares overall means", _overall, FIRST, OVERALL),
        Mutant("takes the largest gap", _largest, FIRST, LARGEST),
        Mutant("squares the gaps", _squares, FIRST, SQUARES),
        Mutant("takes the middles of bins", _middles, FIRST, MIDDLES),
        Mutant("takes the label's probability", _label_confidence, FIRST, OF_LABEL),
        Mutant("has no right and wrong", _acc_soft, FIRST, ACC_SOFT),
        Mutant("does not divide by N", _undivided, FIRST, UNDIVIDED),
        Mutant("tells shares", _shares, FIRST, SHARES),
        Mutant("tells sums", _sums, FIRST, SUMS),
        Mutant("has bins of as many positions", _equal, FIRST, EQUAL),
        Mutant("swaps two columns", _swapped, FIRST, COLUMNS_SWAPPED),
        Mutant("takes the second token", _second, FIRST, BY_SECOND),
        Mutant("divides by an empty bin", _nan, EMPTY),
        Mutant("counts what is too sure alone", _over_alone, FIRST, OVER_ALONE),
        Mutant("takes a little away from confidences", _a_little_less, ENDS),
        Mutant("has bins that hold their lower ends", _lower_ends, ENDS),
        Mutant("changes its input", _in_place, NoMutation().name),
    ),
)

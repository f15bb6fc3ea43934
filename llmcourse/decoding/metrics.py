"""What generated texts look like in numbers: repetition, diversity, calibration.

Texts are sequences of token ids, or of any other symbols: words, characters. All rates lie in
[0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.decoding.errors import require


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple]:
    """All runs of n neighbouring tokens, in order; none if there are fewer than n tokens."""
    require(n >= 1, "n", "at least 1", n, "use 1 to count single tokens")
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def repetition_rate(tokens: Sequence[Hashable], n: int = 4) -> float:
    """The share of a text's n-grams that occurred before in it; 0 for fewer than n tokens.

    seq-rep-n = 1 - |distinct n-grams| / |n-grams|      (Welleck et al. 2020)
    """
    runs = list(ngrams(tokens, n))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """The share of different n-grams among those of all texts together; 0 if there are none.

    Li et al. 2016 ("A Diversity-Promoting Objective Function") divide by the number
    of tokens; dividing by the number of n-grams, as is usual since, makes 1 reachable.
    """
    runs = [run for tokens in sequences for run in ngrams(tokens, n)]
    return len(set(runs)) / len(runs) if runs else 0.0


def bleu(candidate: Sequence[Hashable], references: Sequence[Sequence[Hashable]], max_n: int = 4) -> float:
    """How much of a text is found in others (Papineni et al. 2002, sections 2.1 to 2.3).

        BLEU = min(1, e^(1 - r/c)) · (p_1 · … · p_N)^(1/N)

    p_n is the share of the candidate's n-grams, each counted at most as often as in one of the
    references; c is its length and r that of the reference nearest in length. There is no
    smoothing: one p_n of zero, or fewer than N tokens, gives 0.
    """
    require(max_n >= 1, "max_n", "at least 1", max_n, "use 4 as usual, 1 to compare single tokens")
    precisions = [_clipped_precision(candidate, references, n) for n in range(1, max_n + 1)]
    if min(precisions) == 0:
        return 0.0
    length = len(candidate)
    nearest = min((abs(len(r) - length), len(r)) for r in references)[1]
    brevity = min(1.0, math.exp(1 - nearest / length))
    return brevity * math.prod(precisions) ** (1 / max_n)


def _clipped_precision(candidate, references, n: int) -> float:
    ours = Counter(ngrams(candidate, n))
    theirs = Counter()
    for reference in references:
        theirs |= Counter(ngrams(reference, n))  # the maximum of the counts
    return (ours & theirs).total() / max(1, ours.total())


def self_bleu(sequences: Sequence[Sequence[Hashable]], max_n: int = 4) -> float:
    """How alike several samples are: the mean BLEU of each against all the others.

    1 means that all are the same, 0 that they share nothing (Zhu et al. 2018, "Texygen").

    Raises:
        ValueError: fewer than two sequences.
    """
    count = len(sequences)
    require(count >= 2, "sequences", "at least 2 texts", count, "draw more samples to compare")
    others = ([*sequences[:i], *sequences[i + 1 :]] for i in range(count))
    return sum(bleu(s, o, max_n) for s, o in zip(sequences, others, strict=True)) / count


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose confidence lies in one interval."""

    count: int
    confidence: float  # their mean: what the model promised
    frequency: float  # the share that came true


def calibration(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = 10
) -> list[CalibrationBin]:
    """Probability promised against frequency observed, for a reliability diagram.

    The intervals ((m-1)/M, m/M] are those of Guo et al. 2017, section 2; empty ones are left out.

    Args:
        confidence: the probability of each prediction, such as that of the top token.
        correct: whether the prediction came true.
    """
    require(num_bins >= 1, "num_bins", "at least 1", num_bins, "use 1 for a single mean")
    edges = torch.arange(1, num_bins, dtype=confidence.dtype, device=confidence.device) / num_bins
    index = torch.bucketize(confidence, edges)  # an edge belongs to the interval below it
    bins = []
    for m in index.unique().tolist():
        inside = index == m
        promised, observed = confidence[inside].double().mean(), correct[inside].double().mean()
        bins.append(CalibrationBin(int(inside.sum()), promised.item(), observed.item()))
    return bins


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """The mean distance between promise and frequency (Guo et al. 2017, equation 3).

    ECE = Σ_m |B_m|/N · |frequency(B_m) - confidence(B_m)|
    """
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.frequency - b.confidence) for b in bins) / total if total else 0.0

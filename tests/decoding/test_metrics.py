"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llmcourse.decoding.metrics import (
    CalibrationBin,
    bleu,
    calibration,
    distinct_n,
    expected_calibration_error,
    ngrams,
    repetition_rate,
    self_bleu,
)


def test_ngrams():
    assert list(ngrams([1, 2, 3, 4], 2)) == [(1, 2), (2, 3), (3, 4)]
    assert list(ngrams([1, 2], 3)) == []
    with pytest.raises(ValueError, match="n must be at least 1, got 0; use 1 to count single tokens"):
        ngrams([1, 2], 0)


def test_repetition_rate():
    # abab: bigrams ab, ba, ab: one of three occurred before
    assert repetition_rate("abab", 2) == pytest.approx(1 / 3)
    assert repetition_rate("abab", 1) == pytest.approx(2 / 4)
    assert repetition_rate([7] * 10, 4) == pytest.approx(6 / 7)  # seven 4-grams, all the same
    assert repetition_rate(list(range(10))) == 0
    assert repetition_rate([1, 2, 3]) == 0  # shorter than n


def test_distinct_n():
    assert distinct_n(["ab", "ac"], 1) == pytest.approx(3 / 4)
    assert distinct_n(["aba", "ab"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["ab", "ba"], 2) == 1  # no bigram across the border of two texts
    assert distinct_n([[1], []], 2) == 0


def test_bleu():
    # t and one of the two a's are in the reference: 2 of 3
    assert bleu("taa", ["tab"], max_n=1) == pytest.approx(2 / 3)
    # bigrams ab, bc, cd against ab, bc, ce: 2 of 3; unigrams 3 of 4
    assert bleu("abcd", ["abce"], max_n=2) == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    # clipping takes the best single reference, not the sum of them: "aa" against "a" and "a"
    assert bleu("aa", ["ab", "ac"], max_n=1) == pytest.approx(1 / 2)
    # brevity: c = 2, the reference nearest in length has r = 3
    assert bleu("ab", ["abc", "abcdef"], max_n=1) == pytest.approx(math.exp(1 - 3 / 2))
    # longer than the reference: no penalty, the precision pays for it
    assert bleu("abcd", ["ab"], max_n=1) == pytest.approx(2 / 4)
    assert bleu("abcd", ["abcd"]) == 1
    assert bleu("abcd", ["efgh"]) == 0
    assert bleu("abc", ["abc"]) == 0  # no 4-gram
    assert bleu("", ["abc"], max_n=1) == 0
    assert bleu("abc", [], max_n=1) == 0


def test_bleu_needs_an_order():
    with pytest.raises(ValueError, match="max_n must be at least 1, got 0; use 4 as usual"):
        bleu("abc", ["abc"], max_n=0)


def test_bleu_prefers_the_shorter_of_two_equally_near_references():
    assert bleu("abc", ["abcd", "ab"], max_n=1) == 1  # r = 2, not 4


def test_self_bleu():
    assert self_bleu(["abcd"] * 3) == 1
    assert self_bleu(["abcd", "efgh"]) == 0
    # abcd against efgh and abce as above; efgh shares only e, and no bigram, with the others; abce
    # has a, b, c, e (4 of 4) and ab, bc (2 of 3)
    expected = (math.sqrt(3 / 4 * 2 / 3) + 0 + math.sqrt(4 / 4 * 2 / 3)) / 3
    assert self_bleu(["abcd", "efgh", "abce"], max_n=2) == pytest.approx(expected)
    with pytest.raises(ValueError, match="sequences must be at least 2 texts, got 1; draw more samples"):
        self_bleu(["abcd"])


def test_calibration():
    confidence = torch.tensor([0.15, 0.11, 0.2, 0.9, 0.95, 0.25])
    correct = torch.tensor([True, False, False, True, True, False])
    bins = calibration(confidence, correct, num_bins=5)  # (0, .2], (.2, .4], … (.8, 1]
    assert [b.count for b in bins] == [3, 1, 2]
    assert [b.confidence for b in bins] == pytest.approx([0.46 / 3, 0.25, 0.925])
    assert [b.frequency for b in bins] == pytest.approx([1 / 3, 0, 1])
    edges = calibration(torch.tensor([0.25, 0.5, 0.51]), torch.tensor([True, True, False]), num_bins=4)
    assert [(b.count, b.frequency) for b in edges] == [(1, 1.0), (1, 1.0), (1, 0.0)]
    assert [b.confidence for b in edges] == pytest.approx([0.25, 0.5, 0.51])


def test_calibration_of_one_bin():
    bins = calibration(torch.tensor([0.6, 0.8]), torch.tensor([True, False]), num_bins=1)
    assert len(bins) == 1
    assert (bins[0].count, bins[0].confidence, bins[0].frequency) == (2, pytest.approx(0.7), 0.5)
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0; use 1 for a single mean"):
        calibration(torch.tensor([0.6]), torch.tensor([True]), num_bins=0)


def test_expected_calibration_error():
    bins = [CalibrationBin(3, 0.9, 0.6), CalibrationBin(1, 0.2, 0.3)]
    assert expected_calibration_error(bins) == pytest.approx(0.75 * 0.3 + 0.25 * 0.1)
    assert expected_calibration_error([]) == 0


def test_a_sampler_that_keeps_its_promises_is_calibrated():
    """Draws from the promised probabilities; a false alarm is a deviation of more than 5 sigma.

    The mean of N = 20,000 trials has a standard deviation of at most 0.5 / sqrt(N) = 0.0035, and ten
    bins add up their absolute errors: under sqrt(10) x 0.0035 = 0.011 in expectation. A model that
    promises half of what comes true is caught.
    """
    generator = torch.Generator().manual_seed(0)
    promised = torch.rand(20_000, generator=generator)
    came_true = torch.rand(20_000, generator=generator) < promised
    assert expected_calibration_error(calibration(promised, came_true)) < 0.03
    assert expected_calibration_error(calibration(promised / 2, came_true)) > 0.2

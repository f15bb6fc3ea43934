"""Recorded students: means, paired gains, what is missing, and rows that are none."""

import math

import pytest
import torch

from llmcourse.decoding.metrics import CalibrationBin, calibration, expected_calibration_error
from llmcourse.distillation.quality import NUM_BINS
from llmcourse.distillation.recorded import (
    KINDS,
    OverSeeds,
    gain,
    missing,
    over_seeds,
    pooled,
    reliability,
    students_of,
    studies,
    study_rows,
)


def line(**changes):
    found = {"student": "8M", "parameters": 8_000_000, "kind": "response", "seed": 0, "tokens": 1000}
    found |= {"teacher": "base", "domain": "prose", "nats": 3.4, "teacher_nats": 3.0, "kl": 0.4}
    found |= {"agreement": 0.6, "acceptance": 0.7, "calibration_error": 0.02}
    return found | {"device": "NVIDIA H200", "date": "2026-12-01"} | changes


def twins(own=(3.0, 3.5, 3.4), scratch=(3.2, 3.6, 3.7), **changes):
    rows = [line(seed=seed, nats=nats, **changes) for seed, nats in enumerate(own)]
    return study_rows(rows + [line(seed=n, nats=x, kind="scratch") for n, x in enumerate(scratch)])


def test_means_and_spreads_are_over_seeds():
    found = over_seeds(twins(), "8M", "response", "prose")
    assert found.values == (3.0, 3.5, 3.4) and found.mean == pytest.approx(3.3)
    assert found.error == pytest.approx(torch.tensor([3.0, 3.5, 3.4]).std().item() / math.sqrt(3), rel=1e-5)
    assert over_seeds(twins(), "8M", "both", "prose") is None


def test_a_gain_is_taken_seed_by_seed():
    found = gain(twins(), "8M", "response", "prose")
    assert found.values == pytest.approx((0.2, 0.1, 0.3))
    assert found.errors_from_zero == pytest.approx(0.2 / (0.1 / math.sqrt(3)))  # unpaired it would be 1
    assert gain(twins(own=(3.0,)), "8M", "response", "prose").values == pytest.approx((0.2,))
    assert gain(twins(scratch=()), "8M", "response", "prose") is None


def test_more_agreement_is_a_gain_too():
    rows = study_rows([line(agreement=0.7), line(kind="scratch", agreement=0.6)])
    assert gain(rows, "8M", "response", "prose", "agreement").values == pytest.approx((0.1,))


def test_twins_of_another_budget_are_refused():
    with pytest.raises(
        ValueError, match=r"tokens of 8M \(response, seed 0\) must be those of its twin, 1000"
    ):
        gain(twins(tokens=2000), "8M", "response", "prose")


def test_one_seed_has_no_spread():
    one = OverSeeds((3.0,))
    assert one.error is None and one.errors_from_zero is None and str(one) == "3.0000 (one seed)"
    assert OverSeeds((2.0, 2.0)).errors_from_zero is None  # nor have equal ones
    assert str(OverSeeds((1.0, 3.0))) == "2.0000 ± 1.0000"


def test_the_last_row_of_a_student_counts():
    (row,) = study_rows([line(nats=9.0), line(nats=3.1)])
    assert row.nats == 3.1


def test_students_of_two_studies_are_never_compared():
    """The last one counts, of new weights unless others are asked for."""
    before = [line(seed=n, steps=50, nats=3.0) for n in range(2)]
    last = [line(seed=0, steps=60, nats=3.2), line(seed=0, steps=60, nats=3.3, kind="scratch")]
    stored = [line(seed=0, steps=60, start="stored", nats=2.0)]
    lines = before + last + stored
    assert [row.nats for row in study_rows(lines)] == [3.2, 3.3]
    assert [row.nats for row in study_rows(lines, "stored")] == [2.0]
    assert [row.nats for row in study_rows(lines + before[:1])] == [3.0, 3.0], "it went on"
    for other in ({"device": "A100"}, {"batch_size": 8}, {"length": 32}):
        another = [line(kind="both", steps=60, nats=9.0, **other)]
        assert [row.nats for row in study_rows(another + last)] == [3.2, 3.3]
    assert study_rows([]) == study_rows(stored) == []
    assert [len(chosen) for chosen in studies(lines).values()] == [2, 2, 1]


def test_students_are_in_the_order_of_their_sizes():
    rows = study_rows([line(student="a", parameters=9), line(student="b", parameters=2), line(student="a")])
    assert students_of(rows) == ["b", "a"]


def test_what_is_missing_is_named():
    rows = twins()
    assert missing(rows, ["8M"], ["prose"], kinds=["scratch", "response"], num_seeds=3) == []
    found = missing(rows, ["8M"], ["prose"], num_seeds=4)
    assert found[0] == "8M from scratch on prose (3 of 4 seeds)" and found[-1] == "8M on-policy on prose"
    assert len(missing([], ["8M", "30M"], ["prose", "code"])) == 4 * len(KINDS)


def test_bins_of_seeds_are_put_together():
    generator = torch.Generator().manual_seed(0)
    sides = [torch.rand(200, generator=generator) for _ in range(2)]
    right = [torch.rand(200, generator=generator) < side for side in sides]
    each = [calibration(*pair, NUM_BINS) for pair in zip(sides, right, strict=True)]
    whole = calibration(torch.cat(sides), torch.cat(right), NUM_BINS)
    found = pooled(bin_ for bins in each for bin_ in bins)
    assert [bin_.count for bin_ in found] == [bin_.count for bin_ in whole]
    assert expected_calibration_error(found) == pytest.approx(expected_calibration_error(whole))


def test_bins_at_an_edge_stay_together():
    at_edge = [CalibrationBin(2, 3 / NUM_BINS, 0.2), CalibrationBin(2, 3 / NUM_BINS + 1e-9, 0.4)]
    (found,) = pooled(at_edge)
    assert found.count == 4 and found.frequency == pytest.approx(0.3)


def test_reliability_is_that_of_the_teacher_and_of_each_kind():
    bins, teacher = [[10, 0.5, 0.4]], [[10, 0.6, 0.6]]
    lines = [line(seed=n, bins=bins, teacher_bins=teacher) for n in range(2)] + [line(kind="scratch")]
    found = reliability(study_rows(lines), "8M", "prose")
    assert found == {"teacher": [CalibrationBin(10, 0.6, 0.6)], "response": [CalibrationBin(20, 0.5, 0.4)]}
    assert reliability(study_rows([line()]), "8M", "prose") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "luck"}, "row 1: .*kind must be one of scratch, response, feature, both, on_policy"),
        ({"nats": math.nan}, "nats must be at least 0 and finite, got nan"),
        ({"nats": None}, "row 1: not a row of the study"),
        ({"agreement": 1.2}, r"agreement must be in \[0, 1\], got 1.2"),
        ({"bins": [[0, 0.5, 0.5]]}, "bins must be"),
        ({"bins": [[1, 0.5]]}, "not a row of the study"),
    ],
)
def test_rows_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        study_rows([line(**changes)])


def test_a_row_without_a_key_is_refused():
    whole = line()
    for key in whole.keys() - {"device", "date"}:
        with pytest.raises(ValueError, match=f"row 2: not a row of the study .*{key}"):
            study_rows([whole, {name: value for name, value in whole.items() if name != key}])


def test_measures_are_those_that_there_are():
    with pytest.raises(ValueError, match="measure must be one of nats, kl, agreement, acceptance, cal"):
        over_seeds(twins(), "8M", "response", "prose", "luck")


@pytest.mark.parametrize("other", [[], None, 5, "text"])
def test_what_is_no_row_at_all_is_refused(other):
    with pytest.raises(ValueError, match="row 1: not a row of the study"):
        study_rows([other])

"""What a student has of its teacher, against numbers taken by hand and by other means."""

import math

import pytest
import torch
import torch.nn.functional as F

from llmcourse.decoding.estimate import Estimate
from llmcourse.decoding.metrics import calibration, expected_calibration_error
from llmcourse.distillation import calibration_error, measure
from llmcourse.distillation.quality import promised, seen
from tests.distillation.tiny import VOCAB, tiny_student, tiny_teacher


def test_what_a_place_shows_by_hand():
    p, q = (
        torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]),
        torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]),
    )
    found = seen(q.log() - 1, p.log() + 3, torch.tensor([0, 2]))  # logits are free up to a constant
    assert found.teacher_nats.tolist() == pytest.approx([math.log(2), -math.log(0.7)])
    assert found.nats.tolist() == pytest.approx([math.log(4), -math.log(0.8)])
    first = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert found.kl.tolist() == pytest.approx([first, 0.2 * math.log(2) + 0.7 * math.log(0.7 / 0.8)])
    assert found.agreement.tolist() == [0, 1]
    assert found.acceptance.tolist() == pytest.approx([0.75, 0.9])


def test_the_divergence_is_from_the_teacher():
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward, backward = (
        seen(student, teacher, torch.tensor([0])).kl.item() for student, teacher in ((q, p), (p, q))
    )
    assert forward == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2)) != pytest.approx(backward)


@pytest.fixture(scope="module")
def models():
    return tiny_student(), tiny_teacher()


@pytest.fixture(scope="module")
def streams():
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randint(VOCAB, (100,), generator=generator) for name in ("prose", "code")}


def test_domains_against_windows_read_one_by_one(models, streams):
    student, teacher = models
    measured = measure(student, teacher, streams, length=12)
    assert [each.domain for each in measured] == ["prose", "code"]
    for quality in measured:
        values, kept = {name: [] for name in ("nats", "teacher_nats", "kl", "agreement", "acceptance")}, []
        for start in range(0, 96, 12):  # 8 windows; the rest is too short
            window = streams[quality.domain][start : start + 13]
            ours, theirs = (model(window[None, :-1])[0].detach() for model in (student, teacher))
            p, q = theirs.softmax(-1), ours.softmax(-1)
            values["nats"].append(F.cross_entropy(ours, window[1:]))
            values["teacher_nats"].append(F.cross_entropy(theirs, window[1:]))
            values["kl"].append(F.kl_div(q.log(), p, reduction="batchmean"))
            values["agreement"].append((p.argmax(-1) == q.argmax(-1)).float().mean())
            values["acceptance"].append(torch.minimum(p, q).sum(-1).mean())
            kept.append(promised(ours, window[1:]))
        values = {name: torch.stack(each) for name, each in values.items()}
        values["gap"] = values["nats"] - values["teacher_nats"]
        assert quality.num_tokens == 96
        for name, each in values.items():
            found = getattr(quality, name)
            assert found.mean == pytest.approx(each.mean().item(), abs=1e-5)
            assert found.error == pytest.approx(each.std().item() / math.sqrt(8), abs=1e-5)
        bins = calibration(*(torch.cat(each) for each in zip(*kept, strict=True)), num_bins=15)
        assert quality.calibration_error.mean == pytest.approx(expected_calibration_error(bins), abs=1e-6)
        assert quality.calibration_error.mean != pytest.approx(
            quality.teacher_calibration_error.mean, abs=0.01
        )


def test_a_teacher_is_its_own_best_student(models, streams):
    teacher = models[1]
    for quality in measure(teacher, teacher, streams, length=12):
        assert quality.kl == quality.gap == Estimate(0.0, 0.0) and quality.agreement == Estimate(1.0, 0.0)
        assert quality.acceptance.mean == pytest.approx(1) and quality.nats == quality.teacher_nats
        assert quality.calibration_error == quality.teacher_calibration_error
        assert "the same favourite 1.0000 ± 0.0000" in str(quality)


def test_the_first_windows_are_enough_where_asked(models, streams):
    few = measure(*models, streams, length=12, max_windows=3)
    cut = measure(*models, {name: stream[:37] for name, stream in streams.items()}, length=12)
    assert few == cut and few[0].num_tokens == 36


class TestCalibration:
    @staticmethod
    def drawn(seed: int, shift: float = 0.0, windows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
        """Promises that are kept as often as they say, or `shift` less often; each window has luck."""
        generator = torch.Generator().manual_seed(seed)
        confidence = torch.rand(windows, 50, generator=generator, dtype=torch.float64) * 0.6 + 0.3
        luck = 0.1 * torch.randn(windows, 1, generator=generator, dtype=torch.float64)
        drawn = torch.rand(windows, 50, generator=generator, dtype=torch.float64)
        return confidence, drawn < confidence - shift + luck

    @pytest.mark.parametrize("num_bins", [1, 15])
    def test_the_error_is_that_of_the_reliability_diagram_and_of_the_jackknife(self, num_bins):
        confidence, correct = self.drawn(0, 0.1)
        found = calibration_error(confidence, correct, num_bins)

        def slowly(kept: list[int]) -> float:
            bins = calibration(confidence[kept].flatten(), correct[kept].flatten(), num_bins)
            return expected_calibration_error(bins)

        assert found.mean == pytest.approx(slowly(list(range(40))))
        without = [slowly([other for other in range(40) if other != left]) for left in range(40)]
        mean = sum(without) / 40
        assert found.error == pytest.approx(math.sqrt(39 / 40 * sum((x - mean) ** 2 for x in without)))

    def test_its_standard_error_is_how_far_it_scatters(self):
        """Of 200 draws of all windows; a spread that took places for independent would be half of that."""
        found = [calibration_error(*self.drawn(seed, 0.15), 1) for seed in range(200)]
        scatter = torch.tensor([each.mean for each in found]).std().item()
        claimed = sum(each.error for each in found) / 200
        assert claimed == pytest.approx(scatter, rel=0.2)  # four standard errors of a deviation of 200
        assert math.sqrt(0.24 / 2000) < 0.8 * scatter

    def test_who_promises_too_much_is_told_so(self):
        right, wrong = (calibration_error(*self.drawn(1, shift, 400)).mean for shift in (0, 0.2))
        assert right < 0.04 < 0.18 < wrong

    def test_one_window_has_no_spread(self):
        confidence, correct = self.drawn(0, windows=1)
        with pytest.raises(ValueError, match="confidence must be of at least 2 windows, got 1"):
            calibration_error(confidence, correct)
        with pytest.raises(ValueError, match="num_bins must be an integer of at least 1, got 0"):
            calibration_error(*self.drawn(0), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"length": 49}, r"length must be in \[1, 48\], the shorter context, got 49"),
        ({"max_windows": 1}, "max_windows must be an integer of at least 2, got 1"),
        ({"streams": {}}, "streams must be of one domain at least"),
        ({"streams": {"verse": torch.zeros(24, dtype=torch.long)}}, "tokens of 'verse' must be at least 25"),
        ({"teacher": tiny_teacher(vocab_size=41)}, "teacher's vocabulary must be of 40 tokens .* got 41"),
    ],
)
def test_what_cannot_be_measured_is_refused(models, streams, changes, message):
    given = {"student": models[0], "teacher": models[1], "streams": streams, "length": 12} | changes
    with pytest.raises(ValueError, match=message):
        measure(**given)

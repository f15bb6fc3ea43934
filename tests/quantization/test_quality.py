"""What quantization costs, against numbers taken by hand and by other means."""

import math

import pytest
import torch
import torch.nn.functional as F

from llmcourse.decoding.estimate import Estimate
from llmcourse.quantization.quality import compare, move
from tests.blockwise.tiny import VOCAB, tiny_decoder


def test_what_a_place_shows_by_hand():
    p, q = (
        torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]),
        torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]),
    )
    moved = move(p.log() + 3, q.log() - 1, torch.tensor([0, 2]))  # logits are free up to a constant
    assert moved.reference_nats.tolist() == pytest.approx([math.log(2), -math.log(0.7)])
    assert moved.nats.tolist() == pytest.approx([math.log(4), -math.log(0.8)])
    first = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert moved.kl.tolist() == pytest.approx([first, 0.2 * math.log(2) + 0.7 * math.log(0.7 / 0.8)])
    assert moved.agreement.tolist() == [0, 1]


def test_the_direction_is_from_the_model_in_16_bits():
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward, backward = (move(*pair, torch.tensor([0])).kl.item() for pair in ((p, q), (q, p)))
    assert forward == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2)) != pytest.approx(backward)


@pytest.fixture(scope="module")
def models():
    return tiny_decoder(0).float(), tiny_decoder(1).float()


@pytest.fixture(scope="module")
def streams():
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randint(VOCAB, (100,), generator=generator) for name in ("prose", "code")}


def test_domains_against_windows_read_one_by_one(models, streams):
    measured = compare(*models, streams, length=12)
    assert [each.domain for each in measured] == ["prose", "code"]
    for quality in measured:
        nats, kls, same = [], [], []
        for start in range(0, 96, 12):  # 8 windows; the rest is too short
            window = streams[quality.domain][start : start + 13]
            logits = [model(window[None, :-1])[0] for model in models]
            nats.append([F.cross_entropy(each, window[1:]).item() for each in logits])
            log_p, log_q = (each.log_softmax(-1) for each in logits)
            kls.append(F.kl_div(log_q, log_p, reduction="batchmean", log_target=True).item())
            same.append((log_p.argmax(-1) == log_q.argmax(-1)).float().mean().item())
        reference, quantized = torch.tensor(nats).T
        assert quality.num_tokens == 96
        for found, values in (
            (quality.reference_nats, reference),
            (quality.nats, quantized),
            (quality.rise, quantized - reference),
            (quality.kl, torch.tensor(kls)),
            (quality.agreement, torch.tensor(same)),
        ):
            assert found.mean == pytest.approx(values.mean().item(), abs=1e-5)
            assert found.error == pytest.approx(values.std().item() / math.sqrt(8), abs=1e-5)
        assert quality.perplexity == pytest.approx(math.exp(quantized.mean().item()), rel=1e-5)
        assert quality.reference_perplexity == pytest.approx(math.exp(reference.mean().item()), rel=1e-5)


def test_a_model_beside_itself_has_not_moved(models, streams):
    for quality in compare(models[0], models[0], streams, length=12):
        assert quality.kl == quality.rise == Estimate(0.0, 0.0) and quality.agreement == Estimate(1.0, 0.0)
        assert "the same favourite 100.0% ± 0.0%" in str(quality)


def test_the_first_windows_are_enough_where_asked(models, streams):
    few = compare(*models, streams, length=12, max_windows=3)
    cut = compare(*models, {name: stream[:37] for name, stream in streams.items()}, length=12)
    assert few == cut and few[0].num_tokens == 36


def test_the_error_of_a_mean_is_what_it_says():
    """Of 400 means of 30 numbers, about 68 % lie within one error of the truth, whatever that is."""
    values = torch.randn(400, 30, generator=torch.Generator().manual_seed(1)) * 3 + 7
    estimates = [Estimate.of(row) for row in values]
    within = sum(abs(each.mean - 7) < each.error for each in estimates) / 400
    assert 0.58 < within < 0.77  # four standard errors of a share of 0.675


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"length": 49}, r"length must be in \[1, 48\], the model's context, got 49"),
        ({"max_windows": 1}, "max_windows must be an integer of at least 2, got 1"),
        ({"streams": {}}, "streams must be of one domain at least"),
        (
            {"streams": {"verse": torch.zeros(24, dtype=torch.long)}, "length": 12},
            "tokens of 'verse' must",
        ),
        ({"quantized": tiny_decoder(vocab_size=41).float()}, "quantized must be of 40 tokens, got 41"),
    ],
)
def test_what_cannot_be_measured_is_refused(models, streams, changes, message):
    given = {"reference": models[0], "quantized": models[1], "streams": streams, "length": 12}
    given |= changes
    with pytest.raises(ValueError, match=message):
        compare(**given)

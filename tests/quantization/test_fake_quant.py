"""Fake quantization: forward as the real one, backward as if nothing were rounded; training wins back."""

import pytest
import torch
import torch.nn.functional as F

from llmcourse.model import Decoder
from llmcourse.quantization.affine import quantize_weight
from llmcourse.quantization.fake_quant import FakeQuantLinear, fake_quantized, rounded, trained_weights
from llmcourse.quantization.models import quantize
from tests.training.tiny import tiny_config

SCHEMES = ("int3", "int4", "int8", "int3-g16")


@pytest.fixture
def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(tiny_config(num_layers=2)).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 4), (3, 24), (4, 8), (8, 24)])
def test_rounded_as_a_real_weight_is(bits, group_size, symmetric, dtype):
    generator = torch.Generator().manual_seed(bits)
    w = torch.randn(7, 24, generator=generator, dtype=torch.float64).to(dtype)
    w[3] = 0
    expected = quantize_weight(w, bits, group_size, symmetric).dequantized()
    found = rounded(w, bits, group_size, symmetric)
    assert found.dtype == dtype and torch.equal(found, expected)
    assert not torch.equal(found, w)


def test_the_gradient_passes_as_if_nothing_were_rounded():
    linear = torch.nn.Linear(24, 5)
    layer = FakeQuantLinear(linear, 3, 8, False)
    x, target = torch.randn(6, 24), torch.randn(6, 5)
    F.mse_loss(layer(x), target).backward()
    w = quantize_weight(linear.weight.detach(), 3, 8, False).dequantized().requires_grad_()
    F.mse_loss(F.linear(x, w, linear.bias), target).backward()
    torch.testing.assert_close(layer.weight.grad, w.grad)
    assert layer.weight.grad.abs().min() > 0, "rounding itself would have left 0"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_function_is_that_of_the_quantized_model(model, scheme):
    rows = torch.arange(40).view(2, 20) % 300
    fake = fake_quantized(model, scheme)
    torch.testing.assert_close(fake(rows), quantize(model, scheme, backend="reference", progress=False)(rows))
    assert (fake(rows) - model(rows)).abs().max() > 1e-4
    assert fake.state_dict().keys() == model.state_dict().keys()


def test_the_model_that_was_given_stays_as_it_is(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fake = fake_quantized(model, "int3")
    with torch.no_grad():
        for weight in fake.parameters():
            weight.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert fake.lm_head.weight is fake.model.embed_tokens.weight, "ties hold"


def test_training_wins_back_what_rounding_lost(model):
    rows = torch.randint(300, (8, 16), generator=torch.Generator().manual_seed(1))
    expected = model(rows).log_softmax(-1)
    fake = fake_quantized(model, "int3")

    def loss(student) -> torch.Tensor:
        return F.kl_div(student(rows).log_softmax(-1), expected, log_target=True, reduction="batchmean")

    before, adam = loss(fake).item(), torch.optim.Adam(fake.parameters(), lr=1e-3)
    for _ in range(30):
        adam.zero_grad()
        loss(fake).backward()
        adam.step()
    after = loss(fake).item()
    assert after < before / 2
    real = quantize(trained_weights(fake).requires_grad_(False), "int3", backend="reference", progress=False)
    assert loss(real).item() == pytest.approx(after, rel=1e-4), "and it stays won when it is rounded for good"


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("w8a8", "scheme must be one that rounds weights alone, got 'w8a8'; use int3 or int4"),
        ("int4-gptq", "scheme must be one that rounds weights alone"),
        ("int5", "scheme must be one of"),
        ("int3-g7", r"model\.layers\.0\.self_attn\.q_proj: group_size must divide the 32 columns"),
    ],
)
def test_refused(model, scheme, message):
    with pytest.raises(ValueError, match=message):
        fake_quantized(model, scheme)

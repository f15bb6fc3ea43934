"""Every scheme on a real model: how near it stays, what it leaves alone, where it runs, what it refuses."""

import copy
import functools
import warnings
from dataclasses import replace

import pytest
import torch

from llmcourse import pretrained
from llmcourse.decoding import generate
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.kernels.fp8_linear import Fp8Linear
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.pretrained import fingerprint
from llmcourse.quantization.affine import quantize_weight
from llmcourse.quantization.calibration import CalibrationWarning
from llmcourse.quantization.layers import ReferenceWarning, choose_backend, quantized_layers
from llmcourse.quantization.models import quantize
from llmcourse.quantization.quality import compare
from llmcourse.quantization.schemes import SCHEMES, Scheme
from llmcourse.speculative.engine import SpeculativeEngine
from tests.blockwise.tiny import tiny_decoder
from tests.quantization.measured import calibration, streams
from tests.serving.test_paged_runner import requests, serve, tiny

# KL to the model in fp32, nats per token over the three domains: at most so much, and at least a tenth of it,
# or something else than the scheme was measured.
MOST_KL = {
    "int8": 0.002,
    "int8-gptq": 0.001,
    "int8-awq": 0.002,
    "int4": 0.4,
    "int4-gptq": 0.2,
    "int4-awq": 0.5,
    "int3": 1.5,
    "int3-gptq": 0.8,
    "int3-awq": 1.6,
    "int2": 8.0,
    "int2-gptq": 5.0,
    "int2-awq": 8.0,
    "w8a8": 0.005,
    "w8a8-static": 0.1,
    "smoothquant-w8a8": 0.005,
    "llm.int8": 0.005,
    "fp8": 0.05,
}


@pytest.fixture(scope="module")
def draft():
    return pretrained.load("draft").model


@pytest.fixture(scope="module")
def quantized(draft):
    """Of every scheme, made when it is first asked for."""
    return functools.cache(lambda name: quantize(draft, name, calibration(), progress=False))


@pytest.fixture(scope="module")
def measured(draft, quantized):
    """KL by domain."""

    @functools.cache
    def of(name: str) -> list[float]:
        found = compare(draft, quantized(name), streams(), length=48, max_windows=2)
        return [quality.kl.mean for quality in found]

    return of


def test_every_scheme_has_a_bound():
    assert set(MOST_KL) == set(SCHEMES)


@pytest.mark.parametrize("name", SCHEMES)
def test_logits_stay_near_and_the_model_itself_as_it_was(draft, quantized, measured, name):
    before, model = fingerprint(draft), quantized(name)
    assert MOST_KL[name] / 10 < sum(measured(name)) / 3 < MOST_KL[name]
    assert fingerprint(draft) == before and not quantized_layers(draft)
    assert len(quantized_layers(model)) == 14
    tables = (each.model.embed_tokens.weight.data_ptr() for each in (model, draft))
    assert len(set(tables)) == 1 + (SCHEMES[name].method in ("awq", "smooth"))


@pytest.mark.parametrize("name", ["int8", "int4", "int3-g32", "w8a8", "llm.int8", "fp8"])
def test_layers_hold_what_rounding_gives_of_their_own_weight(draft, name):
    scheme = replace(SCHEMES.get(name, SCHEMES["int3"]), group_size=None) if name in SCHEMES else name
    model = quantize(draft, scheme)
    kinds = {"w8a8": Int8Linear, "llm.int8": MixedLinear, "fp8": Fp8Linear}
    for key, layer in quantized_layers(model).items():
        assert type(layer) is kinds.get(name, PackedLinear), key
        weight = draft.get_submodule(key).weight
        if name == "fp8":
            expected = Fp8Linear.of(weight).dequantized()
        else:
            bits, size = {"int4": (4, None), "int3-g32": (3, 32)}.get(name, (8, None))
            expected = quantize_weight(weight, bits, size, symmetric=bits > 3).dequantized()
        assert torch.allclose(layer.dequantized(), expected, rtol=1e-6, atol=1e-9), key


def test_wider_codes_and_gptq_lose_less_on_every_domain(measured):
    """What the field expects, whatever the bounds: int8 < int4-gptq < int4 < int3-gptq < int3 < int2."""
    order = ("int8", "int4-gptq", "int4", "int3-gptq", "int3", "int2")
    for domain in zip(*map(measured, order), strict=True):
        assert list(domain) == sorted(domain)


@pytest.mark.parametrize("name", ["int8", "int4-gptq", "int3", "w8a8", "w8a8-static", "llm.int8", "fp8"])
def test_engines_and_speculation_write_what_the_loop_writes(draft, quantized, name):
    model = quantized(name)
    prompt = [0, 9, 8, 7, 6, 5, 900]  # alone: which columns hold outliers is a matter of all rows
    (plain,) = (g.tokens for g in generate(model, [prompt], max_new_tokens=8, eos_token_ids=()))
    engine = DecodeEngine(model)
    engine.start([prompt], 24)
    assert engine.decode(8)[0].tolist() == plain
    speculating = SpeculativeEngine(model, draft, draft_length=3)
    assert speculating.generate([prompt], 8).tokens == [plain]


@pytest.mark.parametrize("name", ["int8", "int4", "w8a8", "w8a8-static", "llm.int8", "fp8"])
def test_a_cast_changes_the_model_and_leaves_a_format_its_numbers(draft, quantized, name):
    whole = quantized(name)
    cast = copy.deepcopy(whole).to(torch.bfloat16)
    tokens = torch.arange(5, 37)[None]
    exact, found = whole(tokens), cast(tokens)
    assert found.dtype == torch.bfloat16
    coarse = {"fp8": 0.08, "w8a8-static": 0.08}  # where what bfloat16 moves is moved by a whole step
    assert (found.float() - exact).norm() / exact.norm() < coarse.get(name, 0.02)
    for layer, before in zip(*(quantized_layers(m).values() for m in (cast, whole)), strict=True):
        assert layer.own_dtype or name == "int4"
        for part in layer.own_dtype:
            held, own = getattr(layer, part), getattr(before, part)
            assert held is own is None or (held.dtype == own.dtype and torch.equal(held.float(), own.float()))


@pytest.mark.parametrize("name", ["int4-g16", "w8a8"])
def test_serving_writes_what_the_loop_writes(name):
    model = quantize(tiny(torch.float32), name)
    wanted = requests()
    for state in serve(model, wanted):
        (plain,) = generate(
            model, [state.request.prompt], max_new_tokens=state.request.max_tokens, eos_token_ids=()
        )
        assert state.generated == plain.tokens


def test_biases_stay_and_an_untied_head_can_be_quantized():
    model = tiny_decoder(attention_bias=True, output_bias=True, tie_word_embeddings=False).float()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    made = quantize(model, "int8", layers=("*",))
    assert set(quantized_layers(made)) >= {"lm_head", "model.layers.1.self_attn.o_proj"}
    for name, layer in quantized_layers(made).items():
        bias = model.get_submodule(name).bias
        assert (layer.bias is None) == (bias is None)
        assert bias is None or torch.equal(layer.bias, bias)
    expected, found = (each(torch.arange(20)[None]) for each in (model, made))
    assert 0 < (found - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_a_static_scale_covers_the_largest_input_that_was_seen(draft):
    model, seen = quantize(draft, "w8a8-static", calibration(), progress=False), {}
    for name in quantized_layers(model):
        layer = draft.get_submodule(name)
        note = lambda _, given, name=name: seen.setdefault(name, []).append(given[0].abs().max())  # noqa: E731
        layer.register_forward_pre_hook(note)
    try:
        draft(calibration())
    finally:
        for name in quantized_layers(model):
            draft.get_submodule(name)._forward_pre_hooks.clear()
    for name, layer in quantized_layers(model).items():
        assert layer.input_scale.item() == pytest.approx(max(seen[name]).item() / 127, rel=1e-5), name


def test_smoothing_and_awq_change_norms_of_the_new_model_alone(draft, quantized):
    norms = {name: p.clone() for name, p in draft.named_parameters() if "layernorm" in name}
    for name in ("smoothquant-w8a8", "int4-awq"):
        parameters = dict(quantized(name).named_parameters())
        assert any(not torch.equal(parameters[key], norm) for key, norm in norms.items()), name
        assert all(torch.equal(draft.get_parameter(key), norm) for key, norm in norms.items()), name


def test_patterns_choose_layers_and_the_others_stay(draft):
    model = quantize(draft, "int4", layers=("*.mlp.*",))
    assert len(quantized_layers(model)) == 6
    assert isinstance(model.model.layers[0].self_attn.q_proj, torch.nn.Linear)


def silent():
    """A model whose values are 0, and what its output projection reads."""
    model = tiny_decoder().float()
    model.model.layers[1].self_attn.v_proj.weight.data.zero_()
    return model


def broken(value: float):
    model = tiny_decoder().float()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(tiny_decoder(), "int6"), "scheme must be one of int8, .*, fp8, got 'int6'"),
        (
            lambda: quantize(tiny_decoder(), "int4", layers=("*.fc",)),
            r"got '\*.fc', which matches none; there",
        ),
        (
            lambda: quantize(tiny_decoder(), "int4-g12"),
            r"layers.0.self_attn.q_proj: group_size must divide the 32 columns, got 12; these do: 1, 2",
        ),
        (lambda: quantize(tiny_decoder(), "int4-gptq"), "calibration must be given for the scheme int4-gptq"),
        (lambda: quantize(tiny_decoder(), "w8a8-static"), "calibration must be given for the scheme w8a8-st"),
        (
            lambda: quantize(quantize(tiny_decoder(), "int8"), "int4"),
            "model must be in 16 bits or more, got one whose .* is in few; quantize the one that it was made",
        ),
        (lambda: quantize(broken(torch.nan), "int4"), "layers.1.mlp.up_proj must be finite"),
        (lambda: quantize(broken(torch.inf), "w8a8"), "layers.1.mlp.up_proj must be finite"),
        (lambda: quantize(broken(-torch.inf), "fp8"), "layers.1.mlp.up_proj must be finite"),
        (
            lambda: quantize(silent(), "w8a8-static", torch.arange(40)[None], progress=False),
            r"layers.1.self_attn.o_proj: input_scale must be one positive number, got 0.0",
        ),
        (
            lambda: quantize(broken(torch.nan), "int4-gptq", torch.arange(40)[None], progress=False),
            "layers.1.mlp",
        ),
        (
            lambda: quantize(tiny_decoder(), "int8", backend="triton"),
            "backend must be one that can run, got 't",
        ),
        (lambda: quantize(tiny_decoder(), "int8", backend="cuda"), "backend"),
    ],
)
@pytest.mark.filterwarnings("ignore::llmcourse.quantization.calibration.CalibrationWarning")
def test_what_cannot_be_quantized_is_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_rows_of_zeros_and_of_one_number_are_kept(draft):
    model = tiny_decoder().float()
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight[0], weight[1], weight[2, :16] = 0.0, 0.75, 0.0
    for name in ("int8", "int4", "int2", "w8a8", "llm.int8", "fp8"):
        restored = quantize(model, name).model.layers[0].mlp.up_proj.dequantized()
        assert restored.isfinite().all() and not restored[0].any() and not restored[2, :16].any(), name
        assert torch.allclose(restored[1], weight[1], rtol=0.34), name  # 2 bits: within half a step


def test_too_little_text_is_warned_of_and_still_gives_a_model(draft):
    with pytest.warns(CalibrationWarning, match="fewer than the 384 inputs of model.layers"):
        model = quantize(draft, "int4-gptq", calibration(2, 32), progress=False)
    assert all(layer.dequantized().isfinite().all() for layer in quantized_layers(model).values())


def test_a_device_without_the_kernel_is_told_of_in_one_line_unless_the_backend_was_forced(draft):
    model = quantize(draft, "int4")
    with pytest.warns(ReferenceWarning) as told:
        choose_backend(model, "auto", "int4")
    assert [str(each.message) for each in told] == [
        "int4 has no kernel on cpu in float32 and runs by its reference, which is slower"
    ]
    with pytest.raises(ValueError, match="backend must be one that can run, got 'triton' on cpu"):
        choose_backend(model, "triton", "int4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_backend(model, "reference", "int4")
    assert {layer.backend for layer in quantized_layers(model).values()} == {"reference"}


def test_a_scheme_of_ones_own():
    scheme = Scheme("mine", 5, group_size=8, symmetric=False)
    layers = quantized_layers(quantize(tiny_decoder().float(), scheme))
    assert {(layer.bits, layer.group_size, layer.zero_point is None) for layer in layers.values()} == {
        (5, 8, False)
    }

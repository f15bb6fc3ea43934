"""Engines run on layers in few bits as on any: they write what the weights that these stand for write."""

import copy

import pytest
import torch
from torch import nn

from llmcourse.decoding import generate
from llmcourse.decoding.engine import DecodeEngine, weights
from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import StepState
from llmcourse.decoding.engine.weights import backend_of_format, fuse_layers, multiplied, product_by
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.quantized_linear import QuantizedLinear, SideBySide
from llmcourse.model import Decoder
from tests.decoding.engine.test_engine import PROMPTS, SWITCHES, tiny
from tests.packed_model import as_wide, packed_model

NEW = 12


def plain(model: Decoder) -> list[list[int]]:
    return [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=())]


class Held(QuantizedLinear):
    """A format that brings a product alone: what engines need at the least."""

    def __init__(self, linear: nn.Linear):
        bias = None if linear.bias is None else linear.bias.data
        super().__init__(linear.in_features, linear.out_features, bias)
        self.register_buffer("held", linear.weight.data.clone())

    def product(self, x, backend="auto"):
        return x @ self.held.T

    def dequantized(self):
        return self.held

    @classmethod
    def stacked(cls, parts):
        raise ValueError("not this one")


def held_model(model: Decoder) -> Decoder:
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, Held(module))
    return made


KINDS = {
    "four bits": packed_model,
    "eight bits by channels": lambda model: packed_model(model, bits=8, group_size=None),
    "k_proj and the head as they are": lambda model: packed_model(packed_model(model, "k_proj"), "lm_head"),
    "q_proj of three bits": lambda model: packed_model(packed_model(model, "q_proj"), bits=3),
    "a format with a product alone": held_model,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switches", SWITCHES)
def test_the_same_tokens_as_by_the_weights_that_the_codes_stand_for(kind, switches):
    model = KINDS[kind](tiny(**SWITCHES[switches]))
    expected = plain(as_wide(model))
    assert plain(model) == expected, "by the model's own layers"
    for _ in range(2):  # a second engine over the same layers
        engine = DecodeEngine(model)
        engine.start(PROMPTS, 30)
        assert engine.decode(NEW).tolist() == expected
    assert plain(model) == expected, "whose layers are parts of stacks by now"


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_gives_the_logits_of_the_whole_text(kind):
    model = KINDS[kind](tiny())
    state = StepState(model, 1, 20)
    prefill(state, [[1, 2, 3]])
    state.text[0, 3:5] = torch.tensor([50, 51])
    state.positions += 2
    window = Window(state, 3)
    window.read()
    truth = as_wide(model)(torch.tensor([[1, 2, 3, 50, 51]]))[0, 2:]
    torch.testing.assert_close(window.logits[0], truth)


def test_on_a_gpu_a_format_takes_its_own_kernels_or_none():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert backend_of_format("triton", cuda) == "auto"
    assert backend_of_format("reference", cuda) == "reference"
    assert backend_of_format("triton", cpu) == "triton", "by the interpreter, or refused"


@pytest.mark.parametrize("way", [multiplied, product_by])
def test_every_product_of_an_engine_asks_for_the_backend_of_the_format(monkeypatch, way):
    asked = []
    layer = packed_model(tiny()).model.layers[0].self_attn.o_proj
    monkeypatch.setattr(weights, "backend_of_format", lambda *given: asked.append(given) or "reference")
    x = torch.randn(2, layer.in_features)
    torch.testing.assert_close(way(x, layer, backend="triton"), layer(x))
    assert asked == [("triton", x.device)]


def test_stacks_are_made_once_and_hold_nothing_twice():
    model = packed_model(tiny())
    before = sum(b.nbytes for b in model.buffers())
    first, second = (fuse_layers(model, torch.Tensor.contiguous) for _ in range(2))
    assert all(a.qkv is b.qkv and a.gate_up is b.gate_up for a, b in zip(first, second, strict=True))
    layer = model.model.layers[0].self_attn
    for part in (layer.q_proj, layer.k_proj, layer.v_proj):
        for name in ("words", "scales", "zeros"):
            whole = getattr(first[0].qkv, name).untyped_storage().data_ptr()
            assert getattr(part, name).untyped_storage().data_ptr() == whole
    assert sum(b.nbytes for b in model.buffers()) == before
    assert set(dict(model.named_modules())) == set(dict(packed_model(tiny()).named_modules()))


def test_a_stack_is_made_anew_when_a_part_has_changed():
    model = packed_model(tiny())
    old = fuse_layers(model, torch.Tensor.contiguous)[0].qkv
    model.model.layers[0].self_attn.k_proj.scales *= 2
    new = fuse_layers(model, torch.Tensor.contiguous)[0].qkv
    assert new is not old
    torch.testing.assert_close(new.dequantized()[32:48], model.model.layers[0].self_attn.k_proj.dequantized())


def test_layers_of_different_formats_lie_side_by_side():
    weights = fuse_layers(packed_model(tiny(), "k_proj"), torch.Tensor.contiguous)[0]
    assert isinstance(weights.qkv, SideBySide) and isinstance(weights.gate_up, PackedLinear)
    assert weights.qkv.shape == (64, 32)

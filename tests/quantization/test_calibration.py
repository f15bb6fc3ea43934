"""What calibration sums, in which order layers are visited, and what it refuses."""

import gc
import re
import weakref

import pytest
import torch
from torch import nn
from tqdm.auto import tqdm

from llmcourse import pretrained
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.quantization.affine import quantize_weight
from llmcourse.quantization.awq import AWQSettings, awq_model
from llmcourse.quantization.calibration import (
    CalibrationWarning,
    InputStatistics,
    _check_tokens,
    calibrate,
    layer_by_layer,
    linear_layers,
    place_values,
    windows,
)
from llmcourse.quantization.texts import calibration_rows, token_stream

SHAPE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_layers": 3, "num_heads": 4}
CONFIG = DecoderConfig(**SHAPE, num_kv_heads=2, head_dim=4, max_position_embeddings=64)
QUIET = {"progress": False, "batch_size": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def tokens():
    return torch.randint(50, (5, 20), generator=torch.Generator().manual_seed(1))


def seen(model: Decoder, tokens: torch.Tensor, name: str) -> torch.Tensor:
    """The rows that a layer reads, all texts at once."""
    found = []
    linear = dict(model.named_modules())[name]
    handle = linear.register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(0, 1)))
    model(tokens)
    handle.remove()
    return torch.cat(found)


def by_name(inputs: list[InputStatistics]) -> dict[str, InputStatistics]:
    return {name: statistics for statistics in inputs for name in statistics.names}


def test_sums_are_those_of_all_rows(model, tokens):
    found = by_name(calibrate(model, tokens, layers=("model.layers.*", "lm_head"), **QUIET))
    assert set(found) == set(linear_layers(model, ("*",)))
    for name, statistics in found.items():
        rows = seen(model, tokens, name)
        assert statistics.rows == len(rows) == 100
        assert torch.allclose(statistics.hessian, 2 * rows.T @ rows, rtol=1e-4, atol=1e-3)
        assert torch.allclose(statistics.abs_max, rows.abs().amax(0))
        assert torch.allclose(statistics.abs_mean, rows.abs().mean(0), rtol=1e-5)


def test_layers_that_read_the_same_share_their_sums(model, tokens):
    names = [
        [name.split(".", 3)[-1] for name in inputs.names] for inputs in calibrate(model, tokens, **QUIET)
    ]
    of_layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert [[name.split(".")[-1] for name in part] for part in names] == 3 * of_layer


def test_layer_by_layer_sees_the_same_as_one_run_where_nothing_changes(model, tokens):
    layers = ("model.layers.*", "lm_head")
    whole = by_name(calibrate(model, tokens, layers=layers, **QUIET))
    found = list(layer_by_layer(model, tokens, layers=layers, **QUIET))
    assert [len(of_layer) for of_layer in found] == [4, 4, 4, 1]
    single = by_name([inputs for of_layer in found for inputs in of_layer])
    assert set(single) == set(whole)
    for name, statistics in single.items():
        assert torch.allclose(statistics.hessian, whole[name].hessian, rtol=1e-4, atol=1e-3)


def test_later_layers_see_what_quantized_ones_give(model, tokens):
    """As one run of the model with its first layer quantized does; the layer itself was seen as it was."""
    before = by_name(calibrate(model, tokens, **QUIET))
    steps = layer_by_layer(model, tokens, **QUIET)
    first = by_name(next(steps))
    for name, linear in linear_layers(model, ("model.layers.0.*",)).items():
        place_values(name, linear, quantize_weight(linear.weight, 2))
    second = by_name(next(steps))
    after = by_name(calibrate(model, tokens, **QUIET))
    name, later = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"
    assert torch.allclose(first[name].hessian, before[name].hessian, rtol=1e-4, atol=1e-3)
    assert torch.allclose(second[later].hessian, after[later].hessian, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(second[later].hessian, before[later].hessian, rtol=1e-2)


def test_hessians_of_one_layer_are_held_at_a_time(model, tokens):
    held = []
    for of_layer in layer_by_layer(model, tokens, **QUIET):
        gc.collect()
        assert not any(old() is not None for old in held)
        held += [weakref.ref(inputs) for inputs in of_layer]
        del of_layer
    assert len(held) == 12


def test_layers_behind_the_last_one_wanted_are_not_run(model, tokens, monkeypatch):
    monkeypatch.setattr(model.model.layers[2], "forward", None)
    assert (
        len(list(layer_by_layer(model, tokens, layers=("*.0.mlp.*", "*.1.self_attn.o_proj"), **QUIET))) == 2
    )


def test_hooks_are_gone_afterwards_even_after_an_error(model, tokens):
    calibrate(model, tokens, **QUIET)
    steps = layer_by_layer(model, tokens, **QUIET)
    next(steps)
    steps.close()
    with pytest.raises(ValueError, match="token ids must be in"):
        calibrate(model, tokens + 40, **QUIET)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hessians_may_be_left_out(model, tokens):
    found = calibrate(model, tokens, hessians=False, **QUIET)
    assert all(inputs.hessian is None and inputs.rows == 100 for inputs in found)


def test_progress_is_shown(model, tokens, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")  # the suite itself shows none
    calibrate(model, tokens, batch_size=2)
    list(layer_by_layer(model, tokens, batch_size=2))
    shown = capfd.readouterr().err
    assert "calibrating" in shown and "3/3" in shown and "quantizing" in shown


@pytest.mark.parametrize(
    ("layers", "whole"), [("model.layers.*", "3/3"), ("*.layers.1.mlp.*", "2/2"), ("lm_head", "3/3")]
)
def test_the_bar_of_layers_comes_to_its_end(model, tokens, capfd, monkeypatch, layers, whole):
    """Where it stops short of it, a notebook keeps it."""
    monkeypatch.delenv("TQDM_DISABLE")
    list(layer_by_layer(model, tokens, layers=layers))
    last = capfd.readouterr().err.rstrip().rpartition("\r")[2]
    assert "quantizing: 100%" in last and whole in last


def test_the_bar_of_layers_is_closed_with_the_walk(model, tokens, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    steps = layer_by_layer(model, tokens)
    next(steps)
    before = set(tqdm._instances)
    steps.close()
    assert len(before) == 1 and not set(tqdm._instances)
    assert "0/3" in capfd.readouterr().err


def test_a_name_that_matches_nothing_is_refused_with_those_there_are(model, tokens):
    message = (
        "layers must match linear layers by name, got 'model.layers.*.fc1', which matches none; there are "
        "lm_head, model.layers.*.mlp.down_proj"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        calibrate(model, tokens, layers=("model.layers.*", "model.layers.*.fc1"), **QUIET)
    for none in ((), []):
        with pytest.raises(
            ValueError, match=r"layers must be at least one pattern of names, got .*; leave it"
        ):
            linear_layers(model, none)
    assert list(linear_layers(model, "lm_head")) == ["lm_head"]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_tokens_are_refused(model, shape):
    with pytest.raises(
        ValueError, match=re.escape("token_ids must be texts of equal length, (N, T), and at")
    ):
        calibrate(model, torch.zeros(shape, dtype=torch.long), **QUIET)


def test_tokens_that_are_no_integers_are_refused(model):
    with pytest.raises(ValueError, match=re.escape("token_ids must be integers, got torch.float32; cut")):
        _check_tokens(torch.zeros(3, 4), 8, linear_layers(model))


@pytest.mark.usefixtures("unchecked")
def test_tokens_that_are_no_tensor_of_ids_are_refused(model):
    linears = linear_layers(model)
    for tokens, found in (([[1, 2]], "a list"), ("text", "a str")):
        with pytest.raises(
            ValueError, match=f"token_ids must be a tensor, got {found}; cut them with windows"
        ):
            _check_tokens(tokens, 8, linears)
    with pytest.raises(ValueError, match=r"token_ids must be integers, got torch\.bool; cut"):
        _check_tokens(torch.ones(3, 4, dtype=torch.bool), 8, linears)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("patterns", [None, [1], 3])
def test_patterns_that_are_no_text_are_refused(model, patterns):
    with pytest.raises(ValueError, match=re.escape(f"layers must be patterns of names, got {patterns!r}; ")):
        linear_layers(model, patterns)


def test_too_little_text_is_complained_of_and_named(model):
    message = (
        r"20 tokens of calibration are fewer than the 24 inputs of model.layers.0.mlp.down_proj.*at least 96"
    )
    few = torch.ones(1, 20, dtype=torch.long)
    with pytest.warns(CalibrationWarning, match=message):
        calibrate(model, few, **QUIET)
    with pytest.warns(CalibrationWarning, match=message):
        list(layer_by_layer(model, few, **QUIET))


def test_too_little_text_is_complained_of_by_what_it_is_for(model):
    """No Hessian and no damping where the method has none; one token in the singular."""
    one = torch.ones(1, 1, dtype=torch.long)
    found = {}
    with pytest.warns(CalibrationWarning) as found["magnitude"]:
        calibrate(model, one, hessians=False, **QUIET)
    with pytest.warns(CalibrationWarning) as found["awq"]:
        awq_model(model, one, AWQSettings(4), progress=False)
    for method, words in (
        ("magnitude", "have larger inputs; give more text"),
        ("awq", "the error of its outputs"),
    ):
        message = str(found[method][0].message)
        assert (
            message.startswith("1 token of calibration is fewer than the 24 inputs of") and words in message
        )
        assert "Hessian" not in message and "damping" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_name(model, tokens, value):
    model.model.layers[1].input_layernorm.weight[3] = value
    message = "the inputs of model.layers.1.self_attn.q_proj must be finite, got NaN or infinity in 1 of 16"
    with pytest.raises(ValueError, match=message):
        calibrate(model, tokens, **QUIET)
    with pytest.raises(ValueError, match=message):
        list(layer_by_layer(model, tokens, **QUIET))


def test_divided_statistics_are_those_of_divided_inputs():
    torch.manual_seed(0)
    linear, x, scale = nn.Linear(6, 2), torch.randn(40, 6), torch.rand(6) + 0.5
    found, expected = (InputStatistics.of("a", linear, hessian=True) for _ in range(2))
    found.add(x)
    found.divide(scale)
    expected.add(x / scale)
    assert torch.allclose(found.hessian, expected.hessian, rtol=1e-5)
    assert torch.allclose(found.abs_max, expected.abs_max) and torch.allclose(found.abs_sum, expected.abs_sum)


def test_a_tied_matrix_that_is_placed_leaves_the_embedding():
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    embedding = model.model.embed_tokens.weight.clone()
    place_values("lm_head", model.lm_head, quantize_weight(model.lm_head.weight.detach(), 2))
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert not torch.equal(model.lm_head.weight, embedding)


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained.load("draft").tokenizer


def test_windows_are_pieces_of_the_text(tokenizer):
    texts = ["It was the best of times, " * 30, "def f(x):\n    return x\n" * 40]
    found = windows(texts, tokenizer, count=3, length=50)
    whole = [token for text in texts for token in [0, *tokenizer.encode_plain(text)]]
    joined = " ".join(map(str, whole))
    assert found.shape == (3, 50)
    assert all(" ".join(map(str, row)) in joined for row in found.tolist())
    assert torch.equal(found, windows(texts, tokenizer, count=3, length=50))
    assert not torch.equal(found, windows(texts, tokenizer, count=3, length=50, seed=1))


def test_text_for_too_few_windows_is_complained_of_or_refused(tokenizer):
    with pytest.warns(CalibrationWarning, match="fewer than 20 windows of 8, which overlap"):
        windows(["It was the best of times, it was the worst of times"], tokenizer, count=20, length=8)
    with pytest.raises(ValueError, match="texts must have the 500 tokens of a window at least, got"):
        windows(["It was the best of times"], tokenizer, count=1, length=500)
    with pytest.raises(ValueError, match="count must be an integer of at least 1"):
        windows(["It was"], tokenizer, count=0, length=1)


@pytest.mark.usefixtures("unchecked")
def test_one_text_is_not_taken_for_its_characters(tokenizer):
    one = r"texts must be several, got one, 'It was the best of times'; pass \[text\]"
    text, model = "It was the best of times", Decoder(CONFIG)
    for call in (
        lambda: windows(text, tokenizer, count=1, length=2),
        lambda: token_stream(tokenizer, text),
        lambda: calibration_rows(model, tokenizer, text, count=1, length=2),
    ):
        with pytest.raises(ValueError, match=one):
            call()
    for texts, found in (([1, 2], r"\[1, 2\]"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"texts must be a list of texts, got {found}; pass"):
            windows(texts, tokenizer)

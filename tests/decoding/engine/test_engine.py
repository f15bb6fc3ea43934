"""The engine writes what the plain loop writes, token for token, and keeps the books of its memory."""

import weakref

import pytest
import torch
from scipy.stats import chi2

from llmcourse.decoding import generate
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine import engine as engine_module
from llmcourse.decoding.engine import step as step_module
from llmcourse.decoding.engine.step import StepState
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.roofline import DoesNotFit

PROMPTS = [[5, 6, 7, 8], [1, 2], [9]]
SWITCHES = {
    "grouped heads": {},
    "biases and an untied head": {"attention_bias": True, "output_bias": True, "tie_word_embeddings": False},
    "norms on the heads": {"qk_norm": True},
}


def tiny(dtype=torch.float64, **changes) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(100, 32, 48, 2, 4, 2, 8, 64, **changes)
    model = Decoder(config).to(dtype).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms too, or they would not show
    return model


def plain(model: Decoder, prompts: list[list[int]], count: int) -> list[list[int]]:
    return [g.tokens for g in generate(model, prompts, max_new_tokens=count, eos_token_ids=())]


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_same_tokens_as_the_plain_loop(switches, rows):
    model, prompts = tiny(**SWITCHES[switches]), PROMPTS[:rows]
    expected = plain(model, prompts, 20)
    engine = DecodeEngine(model)
    engine.start(prompts, 30)
    assert engine.decode(12).tolist() == [tokens[:12] for tokens in expected]
    assert engine.decode(8).tolist() == [tokens[12:] for tokens in expected], "it goes on where it was"


def test_the_plain_loop_runs_on_it_as_on_any_source():
    model = tiny()
    assert plain(DecodeEngine(model), PROMPTS, 20) == plain(model, PROMPTS, 20)


def test_logits_are_the_model_s_and_the_fused_weights_are_shared():
    model = tiny()
    engine = DecodeEngine(model)
    engine.start([[1, 2, 3]], 10)
    logits = engine.step(torch.tensor([4]))
    torch.testing.assert_close(logits[0], model(torch.tensor([[1, 2, 3, 4]]))[0, -1])
    model.model.layers[0].self_attn.q_proj.weight.mul_(2.0)  # seen by both
    engine.start([[1, 2, 3]], 10)
    torch.testing.assert_close(engine.step(torch.tensor([4]))[0], model(torch.tensor([[1, 2, 3, 4]]))[0, -1])


@pytest.mark.parametrize("rows", [[2, 0, 0], [1], [0, 1, 2, 2]])
def test_rows_can_be_reordered(rows):
    model = tiny()
    engine = DecodeEngine(model)
    engine.start(PROMPTS, 40)
    begun = engine.decode(5).tolist()
    engine.reorder(torch.tensor(rows))
    expected = plain(model, [PROMPTS[row] + begun[row] for row in rows], 6)
    assert engine.decode(6).tolist() == expected


def test_a_second_start_knows_nothing_of_the_first():
    model = tiny()
    engine = DecodeEngine(model)
    engine.start([[3] * 20], 40)
    engine.decode(10)
    engine.start([[7, 8]], 40)
    assert engine.decode(10).tolist() == plain(model, [[7, 8]], 10)


def test_draws_follow_the_softmax():
    """Chi-square of 4,000 first tokens; an honest sampler fails once in a million."""
    model = tiny(torch.float32)
    engine = DecodeEngine(model)
    logits = engine.start([[1, 2]] * 4000, 4)
    tokens = engine.decode(1, temperature=2.0, seed=1)[:, 0]
    counts = torch.bincount(tokens, minlength=100).double()

    def statistic(temperature: float) -> float:
        expected = (logits[0] / temperature).double().softmax(-1) * len(tokens)
        return ((counts - expected).square() / expected).sum().item()

    cells = (logits[0] / 2.0).softmax(-1) * len(tokens)
    assert cells.min() >= 5, "chi-square asks for that many in every cell"
    assert statistic(2.0) < chi2.isf(1e-6, 99) < statistic(1.0)


def started(prompts=PROMPTS, capacity=20) -> DecodeEngine:
    engine = DecodeEngine(tiny())
    engine.start(prompts, capacity)
    return engine


@pytest.mark.parametrize(
    ("prompts", "capacity", "message"),
    [
        ([], 20, "prompts must hold at least 1 prompt, got 0"),
        ([[1, 2], []], 20, r"prompts\[1\] must hold at least 1 token, got 0"),
        ([[100]], 20, r"prompts\[0\] must hold token ids in \[0, 99\], got 100"),
        ([[1, 2, 3]], 2, r"capacity must be in \[3, 64\].*, got 2"),
        ([[1, 2, 3]], 65, r"capacity must be in \[3, 64\].*, got 65"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompts, capacity, message):
    with pytest.raises(ValueError, match=message):
        DecodeEngine(tiny()).start(prompts, capacity)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda engine: engine.decode(17), "the engine holds 20 tokens a row, 21 are needed"),
        (lambda engine: engine.decode(0), "num_tokens must be at least 1, got 0; ask for one token or more"),
        (
            lambda engine: engine.decode(-2),
            "num_tokens must be at least 1, got -2; ask for one token or more",
        ),
        (lambda engine: engine.decode(3, temperature=-1.0), "temperature must be at least 0"),
        (lambda engine: engine.step(torch.tensor([1, 7])), r"tokens must have shape \(3,\), one a row"),
        (lambda engine: engine.step(torch.tensor([1, 100, 2])), r"tokens must be ids in \[0, 99\]"),
        (lambda engine: engine.step(torch.tensor([1, -1, 2])), r"tokens must be ids in \[0, 99\]"),
        (
            lambda engine: engine.reorder(torch.tensor([0, 1, 3])),
            r"rows must be ids in \[0, 2\], got \[0, 1, 3\]",
        ),
        (
            lambda engine: engine.reorder(torch.tensor([3])),
            r"rows must be ids in \[0, 2\], got \[3\]; number",
        ),
        (lambda engine: engine.reorder(torch.tensor([], dtype=torch.long)), "rows must name at least one"),
    ],
)
def test_a_refusal_changes_nothing(asked, message):
    engine, other = started(), started()
    with pytest.raises(ValueError, match=message):
        asked(engine)
    assert engine.extent == other.extent
    assert torch.equal(engine.decode(16), other.decode(16))


@pytest.mark.parametrize(
    "asked",
    [
        lambda engine: engine.decode(1),
        lambda engine: engine.step(torch.tensor([1])),
        lambda engine: engine.reorder(torch.tensor([0])),
    ],
)
def test_an_engine_that_has_read_nothing_says_so(asked):
    with pytest.raises(ValueError, match="the engine has read no prompt yet; call start first"):
        asked(DecodeEngine(tiny()))


def test_the_old_cache_is_gone_before_the_new_one_is_made(monkeypatch):
    engine, alive = started(), []
    old = weakref.ref(engine._state)

    def made(*arguments):
        alive.append(old() is not None)
        return StepState(*arguments)

    monkeypatch.setattr(engine_module, "StepState", made)
    engine.start(PROMPTS, 40)
    assert alive == [False]


def test_what_does_not_fit_is_refused_before_it_is_allocated(monkeypatch):
    monkeypatch.setattr(step_module, "free_bytes", lambda device: 1000)
    with pytest.raises(DoesNotFit, match=r"batch 3 with context 20 needs .* are free"):
        started()
    monkeypatch.setattr(step_module, "free_bytes", lambda device: None)  # the system does not say
    started()


def test_every_seed_and_temperature_draws_with_what_was_made_for_the_first():
    def drawn(engine, temperature, seed):
        engine.start(PROMPTS, 30)
        return engine.decode(12, temperature=temperature, seed=seed).tolist()

    settings = [(1.0, seed) for seed in range(5)] + [(2.0, 0), (0.0, 0)]
    engine = started(capacity=30)
    found = [drawn(engine, *one) for one in settings]
    assert found == [drawn(started(capacity=30), *one) for one in settings]
    assert len({str(texts) for texts in found}) == len(settings)
    assert len(engine._choices) == 2

"""The engine writes what the plain loop writes, token for token, and keeps the books of its memory."""

import pytest
import torch
from scipy.stats import chi2

from llmcourse.decoding import generate
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine.step import KernelSettings, StepState, weights_ahead
from llmcourse.model import Decoder, DecoderConfig

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


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda e: e.decode(1), "the engine has read no prompt yet; call start first"),
        (lambda e: e.start([[1, 2, 3]], 2), "capacity must be at least the longest prompt, 3 tokens, got 2"),
        (lambda e: (e.start([[1, 2]], 5), e.decode(4)), "holds 5 tokens a row, 6 are needed"),
        (lambda e: (e.start([[1, 2]], 5), e.decode(0)), "num_tokens must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(act, message):
    with pytest.raises(ValueError) as caught:
        act(DecodeEngine(tiny()))
    assert message in str(caught.value)


@pytest.mark.parametrize("ahead", [1, 2])
def test_every_kernel_asks_for_the_weights_that_a_later_one_reads(ahead):
    model = tiny(torch.float32)
    state = StepState(model, 1, 16)
    reads = []
    for w in state.layers:
        reads += [w.qkv, None, w.output, w.gate_up, w.down]
    reads.append(model.lm_head.weight)
    asked = weights_ahead(state, KernelSettings(prefetch_bytes=256, ahead=ahead))
    for launch, found in enumerate(asked):
        later = reads[(launch + ahead) % len(reads)]
        assert (found is None) == (later is None)
        if found is not None:
            assert found.data_ptr() == later.data_ptr() and found.numel() * 4 == 256
    assert not any(found is not None for found in weights_ahead(state, KernelSettings()))

"""The engine writes what decoding writes, token for token, or by the target's law; it keeps to its memory."""

from unittest import mock

import numpy as np
import pytest
import torch

from llmcourse.decoding import generate
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.kernels import drawn_drafts
from llmcourse.kernels.drafts import settle
from llmcourse.kernels.drawn_drafts import settle_drawn
from llmcourse.roofline import DoesNotFit
from llmcourse.speculative import LookupDrafter, ModelDrafter, stream
from llmcourse.speculative.early_layers import first_layers
from llmcourse.speculative.engine import SpeculativeEngine
from llmcourse.speculative.engine import engine as engine_module
from tests.chi_square import p_value
from tests.speculative.tiny import CONTEXT, PROMPTS, VOCAB, near, tiny_decoder

NEW = 16
DRAFTERS = {
    "near": lambda model: near(model),
    "far": lambda model: near(model, 0.3),
    "early layers": lambda model: first_layers(model, 1),
    "itself": lambda model: near(model, 0.0),
    "lookup": lambda model: LookupDrafter(VOCAB),
}


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


@pytest.fixture(scope="module")
def expected(model):
    return [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=())]


@pytest.mark.parametrize("gamma", [1, 3, 7])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_writes_what_decoding_writes(model, expected, drafter, gamma):
    engine = SpeculativeEngine(model, DRAFTERS[drafter](model), draft_length=gamma)
    assert engine.generate(PROMPTS, NEW).tokens == expected
    assert [engine.generate([prompt], NEW).tokens[0] for prompt in PROMPTS] == expected


def test_it_takes_the_steps_of_the_loop(model):
    """The same drafts stand and fall, as long as the loop does not clamp them to the room."""
    drafter, settings = near(model, 0.1), {"max_new_tokens": NEW, "eos_token_ids": ()}
    steps = list(stream(model, PROMPTS[:1], drafter=ModelDrafter(drafter), draft_length=3, **settings))
    engine = SpeculativeEngine(model, drafter, draft_length=3)
    assert [engine.start(PROMPTS[:1], CONTEXT)] == steps[0].tokens
    full = [step.tokens for step in steps[1:] if len(step.drafts[0]) == 3]
    assert [engine.step() for _ in full] == full
    assert full


def test_a_drafter_that_is_always_right_brings_all_tokens(model):
    found = SpeculativeEngine(model, near(model, 0.0), draft_length=4).generate([PROMPTS[0]], 16)
    assert (found.num_steps, found.tally.rate) == (3, 1.0), "one token, then three steps of five"


def test_end_tokens_end_texts_in_the_midst_of_accepted_drafts(model, expected):
    ends = [expected[0][4], expected[3][1]]
    engine = SpeculativeEngine(model, near(model, 0.0), draft_length=5)
    wanted = [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=ends)]
    assert engine.generate(PROMPTS, NEW, eos_token_ids=ends).tokens == wanted
    assert len(set(map(len, wanted))) > 1


def test_texts_reach_the_end_of_the_context(model):
    room = CONTEXT - len(PROMPTS[0])
    engine = SpeculativeEngine(model, near(model), draft_length=6)
    wanted = generate(model, PROMPTS[:1], max_new_tokens=room, eos_token_ids=())[0].tokens
    assert engine.generate(PROMPTS[:1], room).tokens == [wanted]
    for _ in range(5):  # and go on in place
        engine.step()
    assert engine.generate(PROMPTS[:1], room).tokens == [wanted]


def test_rejected_tokens_left_in_the_cache_are_noticed(model, expected):
    def no_rollback(logits, text, positions, last, report, choice, *, backend):
        behind = positions + 1
        settle(logits, text, positions, last, report, choice, backend=backend)
        positions.copy_(behind.clamp(max=last))

    settle = engine_module.settle_greedy
    engine = SpeculativeEngine(model, near(model, 0.3), draft_length=3)
    with mock.patch.object(engine_module, "settle_greedy", no_rollback):
        assert engine.generate(PROMPTS, NEW).tokens != expected


def test_a_window_gives_the_logits_of_one_token_after_the_other(model):
    engine = SpeculativeEngine(model, near(model), draft_length=4)
    engine.start(PROMPTS, 20)
    engine._drafting.draft(engine.choice)
    engine._window.read()
    tokens, logits = engine._window.tokens, engine._window.logits
    plain = DecodeEngine(model)
    plain.start(PROMPTS, 20)
    for column in range(5):
        torch.testing.assert_close(plain.step(tokens[:, column]), logits[:, column], rtol=1e-4, atol=1e-4)


# Texts of four tokens, all of them enumerated, and 2,000 sampled in one batch.
SMALL, LENGTH, NUM_TEXTS, FALSE_ALARM_RATE = 5, 4, 2_000, 1e-4
PROMPT = [1, 2, 1]


def law(model, temperature: float) -> np.ndarray:
    texts, law = torch.tensor([PROMPT]), torch.ones(1, dtype=torch.float64)
    for _ in range(LENGTH):
        p = (model(texts)[:, -1].double() / temperature).softmax(-1)
        law = (law[:, None] * p).flatten()
        new = torch.arange(SMALL).repeat(len(texts))[:, None]
        texts = torch.cat((texts.repeat_interleave(SMALL, 0), new), 1)
    return (law / law.sum()).numpy()


def sampled(model, temperature: float, drafter=None) -> np.ndarray:
    engine = SpeculativeEngine(model, drafter or near(model, 0.08), draft_length=2)
    found = engine.generate([PROMPT] * NUM_TEXTS, LENGTH, temperature=temperature, seed=1)
    assert found.tally.accepted > 500, "drafts stand"
    return np.array(found.tokens) @ (SMALL ** np.arange(LENGTH)[::-1])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_texts_follow_the_law_of_the_target(temperature):
    """An honest engine fails once in ten thousand fresh seeds; the seed is fixed."""
    model = tiny_decoder(vocab_size=SMALL)
    assert p_value(sampled(model, temperature), law(model, temperature)) > FALSE_ALARM_RATE


def test_sampled_texts_follow_the_law_where_drafts_are_looked_up():
    model = tiny_decoder(vocab_size=SMALL)
    assert p_value(sampled(model, 1.0, LookupDrafter(SMALL)), law(model, 1.0)) > FALSE_ALARM_RATE


def test_steps_under_way_bring_the_same_tokens(model):
    engine = SpeculativeEngine(model, near(model), draft_length=3)
    engine.start(PROMPTS, CONTEXT)
    wanted = [engine.step() for _ in range(4)]
    engine.start(PROMPTS, CONTEXT)
    for _ in range(4):
        engine.launch()
    assert [engine.collect() for _ in range(4)] == wanted


def test_what_is_timed_alone_moves_nothing_on(model, expected):
    long = [prompt for prompt in PROMPTS if len(prompt) >= 2]
    for drafter in (near(model), LookupDrafter(VOCAB)):
        engine = SpeculativeEngine(model, drafter, draft_length=2)
        first = [[token] for token in engine.start(long, CONTEXT)]
        engine.draft()
        engine.verify()
        for row, new in zip(first, engine.step(), strict=True):
            row += new
        wanted = [text for text, prompt in zip(expected, PROMPTS, strict=True) if len(prompt) >= 2]
        assert [text[: len(row)] for text, row in zip(wanted, first, strict=True)] == first


def always_accepts(logits, draft_logits, text, positions, last, report, choice, memory, *, backend):
    count = torch.full((len(text),), draft_logits.shape[1])
    bonus = (logits[:, -1] / choice.temperature).softmax(-1).multinomial(1)[:, 0]
    settle(count, bonus, text, positions, last, report)


def forgets_the_temperature(logits, draft_logits, *rest, backend):
    settle_drawn(logits * 0.7, draft_logits, *rest, backend=backend)


def takes_q_of_another_draft(logits, draft_logits, *rest, backend):
    settle_drawn(logits, draft_logits.flip(1), *rest, backend=backend)


def spends_the_chance_of_the_drafts_again(*given, backend):
    drafts_seed = lambda *numbers: hash(numbers)  # noqa: E731
    with mock.patch.object(drawn_drafts, "verdict_seed", drafts_seed):
        settle_drawn(*given, backend=backend)


BUGS = [
    always_accepts,
    forgets_the_temperature,
    takes_q_of_another_draft,
    spends_the_chance_of_the_drafts_again,
]


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_rejected(bug):
    model = tiny_decoder(vocab_size=SMALL)
    with mock.patch.object(engine_module, "settle_drawn", bug):
        assert p_value(sampled(model, 0.7), law(model, 0.7)) < FALSE_ALARM_RATE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_length": 0}, "draft_length must be an integer of at least 1, got 0"),
        ({"draft_length": CONTEXT}, f"draft_length must be below the context of {CONTEXT}, got {CONTEXT}"),
        ({"drafter": tiny_decoder(vocab_size=VOCAB + 1)}, "drafter must be over the 40 tokens"),
        ({"drafter": LookupDrafter(VOCAB + 1)}, "drafter must be over the 40 tokens"),
        ({"drafter": tiny_decoder().double()}, r"drafter must be on the target's device, in its dtype"),
    ],
)
def test_what_cannot_speculate_is_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeEngine(model, settings.pop("drafter", model), **settings)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda engine: engine.generate([[1]], 0), "max_new_tokens must be an integer of at least 1, got 0"),
        (lambda engine: engine.generate([[1]], 20), "max_new_tokens must be at most the 15 that the context"),
        (
            lambda engine: engine.generate([[1]], 4, eos_token_ids=(99,)),
            r"eos_token_ids must be in \[0, 39\], got 99",
        ),
        (
            lambda engine: engine.start([[1]], 9, temperature=-1.0),
            "temperature must be 0, or at least 1.2e-38 and finite",
        ),
        (lambda engine: engine.start([[1]], 9, seed=2**63), r"seed must be below 2\^63"),
        (lambda engine: engine.start([[1]], 0), "capacity must be an integer of at least 1, got 0"),
        (lambda engine: engine.start([[1, 2]], 2), r"capacity must be in \[3, 16\], got 2"),
        (lambda engine: engine.generate([[]], 4), r"prompts\[0\] must hold at least 1 token"),
        (lambda engine: engine.step(), "step must be called after start"),
        (lambda engine: engine.draft(), "draft must be called after start"),
        (lambda engine: engine.verify(), "verify must be called after start"),
        (lambda engine: engine.collect(), "collect must be called after launch"),
    ],
)
def test_what_cannot_be_written_is_refused(model, asked, message):
    engine = SpeculativeEngine(model, tiny_decoder(1, context=16))
    with pytest.raises(ValueError, match=message):
        asked(engine)


def test_a_second_step_is_not_looked_up_before_the_first_is_known(model):
    engine = SpeculativeEngine(model, LookupDrafter(VOCAB))
    engine.start(PROMPTS, 20)
    engine.launch()
    with pytest.raises(ValueError, match="launch must be called with no step under way, got 1; collect it"):
        engine.launch()


def test_a_text_too_short_to_time_verifying_is_refused(model):
    engine = SpeculativeEngine(model, near(model), draft_length=4)
    engine.start([[1, 2]], 20)
    with pytest.raises(
        ValueError, match=r"verify must be called when each text has more than γ.* got 3; take"
    ):
        engine.verify()
    while min(engine._lengths) < 5:
        engine.step()
    engine.verify()


def test_more_drafts_than_attention_takes_are_refused_before_memory_is_made(model):
    with (
        mock.patch.object(engine_module, "resolve", lambda *_: "triton"),
        pytest.raises(ValueError, match="draft_length must be at most 63 for the attention's kernel, got 64"),
    ):
        SpeculativeEngine(model, model, draft_length=64)


def test_what_is_no_model_is_refused(model):
    """By the types that tests check before it is, and then in other words."""
    with pytest.raises(TypeError, match="drafter"):
        SpeculativeEngine(model, ModelDrafter(model))
    with pytest.raises(TypeError, match="target"):
        SpeculativeEngine("base", model)


def test_caches_that_do_not_fit_are_refused_before_they_are_allocated(model, monkeypatch):
    engine = SpeculativeEngine(model, near(model))
    monkeypatch.setattr("llmcourse.decoding.engine.step.free_bytes", lambda device: 1000)
    with pytest.raises(DoesNotFit, match=r"batch 1 with context 25 needs .* are free"):
        engine.start([[1, 2, 3]], 20)

"""The speculative loop against decoding's: the same texts, ends, errors, whatever is drafted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from llmcourse import decoding, pretrained
from llmcourse.decoding import DecodingError, NonFiniteLogitsError, SamplingParams, TopK, TopP
from llmcourse.prompts import one_hundred
from llmcourse.speculative import (
    AdaptiveLength,
    CachedTarget,
    Draft,
    DraftError,
    EarlyLayersDrafter,
    FixedLength,
    LookupDrafter,
    ModelDrafter,
    UncachedTarget,
    generate,
    stream,
)
from tests.decoding.fakes import byte_tokenizer
from tests.speculative.tiny import CONTEXT, PROMPTS, VOCAB, ScriptDrafter, TableTarget, near, tiny_decoder

DRAFTERS = {
    "near": lambda model: ModelDrafter(near(model)),
    "early layers": lambda model: EarlyLayersDrafter(model, 1),
    "lookup": lambda model: LookupDrafter(VOCAB),
}
NEW_TOKENS = 14
LENGTHS = {str(length): length for length in range(1, 9)} | {"adaptive": AdaptiveLength(0.05, prior=0.8)}
PENALTIES = SamplingParams(
    temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.2, no_repeat_ngram_size=3
)
SETTINGS = {
    "plain": {},
    "penalties": {"params": PENALTIES},
    "top-k, top-p": {"processors": [TopK(5), TopP(0.9)]},
}


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


@pytest.fixture(scope="module")
def expected(model):
    """What decoding writes, for each of the settings."""
    return {
        name: decoding.generate(model, PROMPTS, max_new_tokens=NEW_TOKENS, **settings)
        for name, settings in SETTINGS.items()
    }


def finish(steps):
    """All steps of a stream, and what it returns."""
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


def check_equal(ours, theirs):
    assert [g.tokens for g in ours] == [g.tokens for g in theirs]
    assert [g.finish_reason for g in ours] == [g.finish_reason for g in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


# ---- greedy: the same tokens


# Every drafter with every length, every drafter with all settings.
CASES = [
    (drafter, length, [*SETTINGS][(first + second) % len(SETTINGS)])
    for first, drafter in enumerate(DRAFTERS)
    for second, length in enumerate(LENGTHS)
]


@pytest.mark.parametrize(("drafter", "draft_length", "settings"), CASES)
def test_greedy_writes_what_decoding_writes(model, expected, drafter, draft_length, settings):
    made = {"drafter": DRAFTERS[drafter](model), "draft_length": LENGTHS[draft_length]}
    ours = generate(model, PROMPTS, max_new_tokens=NEW_TOKENS, **made, **SETTINGS[settings])
    check_equal(ours, expected[settings])


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_alone_is_greedy_in_a_batch(model, expected, drafter):
    for prompt, whole in zip(PROMPTS, expected["plain"], strict=True):
        alone = generate(model, [prompt], drafter=DRAFTERS[drafter](model), max_new_tokens=NEW_TOKENS)
        check_equal(alone, [whole])


def test_the_slow_truth_writes_the_same(model, expected):
    drafter = ModelDrafter(near(model))
    ours = generate(UncachedTarget(model), PROMPTS, drafter=drafter, max_new_tokens=NEW_TOKENS)
    check_equal(ours, expected["plain"])


def test_an_embedded_model_writes_the_same_in_three_domains():
    target, tokenizer = pretrained.load("small")
    prompts = [tokenizer.encode_prompt(text)[:24] for text in one_hundred()[::11]]
    whole = decoding.generate(target, prompts, max_new_tokens=12)
    draft = pretrained.load("draft").model
    drafters = (ModelDrafter(draft), EarlyLayersDrafter(target, 2), LookupDrafter(target.config.vocab_size))
    for drafter in drafters:
        check_equal(generate(target, prompts, drafter=drafter, max_new_tokens=12), whole)


class Leaky(CachedTarget):
    """Forgets one token fewer than it should: a rejected draft stays in the cache."""

    def start(self, prompts, capacity):
        return super().start(prompts, 4 * capacity)

    def rollback(self, counts):
        super().rollback([max(0, count - 1) for count in counts])


def test_rejected_tokens_left_in_the_cache_are_noticed(model, expected):
    leaky = generate(Leaky(model), PROMPTS, drafter=EarlyLayersDrafter(model, 1), max_new_tokens=NEW_TOKENS)
    assert all(a.tokens != b.tokens for a, b in zip(leaky, expected["plain"], strict=True))


# ---- sampling: laws are compared in test_loop_statistics


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_sampled_row_is_the_same_alone_and_in_a_batch(model, drafter):
    params = SamplingParams(temperature=0.8, top_p=0.95, presence_penalty=0.3)

    def run(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings = {"draft_length": 5, "max_new_tokens": 8, "params": params, "generator": generators}
        return generate(model, prompts, drafter=DRAFTERS[drafter](model), **settings)

    together = run(PROMPTS, range(4))
    for row, prompt in enumerate(PROMPTS):
        check_equal(run([prompt], [row]), together[row : row + 1])


def test_a_seed_gives_one_text_and_the_global_one_is_left_alone(model):
    def run(seed):
        settings = {"generator": torch.Generator().manual_seed(seed), "drafter": ModelDrafter(near(model))}
        return [g.tokens for g in generate(model, PROMPTS, max_new_tokens=20, **settings)]

    before = torch.get_rng_state()
    assert run(1) == run(1) != run(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_log_probs_are_those_of_the_distribution_chosen_from(model):
    settings = {"params": SamplingParams(temperature=0.5), "generator": torch.Generator().manual_seed(0)}
    (ours,) = generate(model, PROMPTS[:1], drafter=ModelDrafter(near(model)), max_new_tokens=12, **settings)
    logits = model(torch.tensor([ours.prompt + ours.tokens]))[0, len(ours.prompt) - 1 : -1]
    wanted = (logits / 0.5).log_softmax(-1).gather(1, torch.tensor(ours.tokens)[:, None])[:, 0]
    assert ours.log_probs == pytest.approx(wanted.tolist(), abs=1e-4)


# ---- steps


def chained(text):
    """Greedy text: each token is followed by the next one."""
    return [9.0 if token == (text[-1] + 1) % 10 else 0.0 for token in range(10)]


def test_a_step_shows_what_stood_and_what_fell():
    drafter = ScriptDrafter(10, [[3, 4, 9], [8]], [[], [2, 5]])
    steps, generations = finish(
        stream(TableTarget(10, chained), [[1], [6]], drafter=drafter, draft_length=3, max_new_tokens=7)
    )
    assert [g.tokens for g in generations] == [[2, 3, 4, 5, 6, 7, 8], [7, 8, 9, 0, 1, 2, 3]]
    first, second, third = steps[:3]
    assert first.drafts == [[], []] and first.tokens == [[2], [7]] and first.num_accepted == [0, 0]
    assert second.drafts == [[3, 4, 9], [8]] and second.num_accepted == [2, 1]
    assert second.next_tokens == [5, 9] and second.tokens == [[3, 4, 5], [8, 9]]
    assert [second.rejected(row) for row in range(2)] == [9, None]
    assert second.p_drafts == [[1, 1, 0], [1]] and second.q_drafts == [[1, 1, 1], [1]]
    assert second.p.argmax(-1).tolist() == [5, 9]
    assert second.q[0].argmax() == 9 and second.q[1].sum() == 0
    assert third.tokens == [[6], [0]] and third.rejected(1) == 2
    assert drafter.accepted[:2] == [[2, 1], [0, 0]]
    assert drafter.asked[:3] == [[3, 3], [2, 3], [1, 2]]  # less the target's own token near the end
    for step in steps:
        assert min(step.draft_s, step.verify_s) >= 0
        assert 0 < step.draft_s + step.verify_s <= step.time_s < 10


def test_a_drafter_that_is_always_right_brings_all_tokens(model):
    drafter = ModelDrafter(model)
    steps, _ = finish(stream(model, PROMPTS[:1], drafter=drafter, draft_length=4, max_new_tokens=21))
    assert [len(step.tokens[0]) for step in steps] == [1, 5, 5, 5, 5]


def test_the_time_of_a_step_leaves_out_its_reader(model):
    steps = stream(model, [[1]], drafter=LookupDrafter(VOCAB), max_new_tokens=8)
    next(steps)
    time.sleep(0.5)
    assert next(steps).time_s < 0.4


# ---- ends of texts


@pytest.mark.parametrize("draft_length", [1, 4, 8])
def test_end_tokens_end_texts_in_the_midst_of_accepted_drafts(model, draft_length):
    plain = decoding.generate(model, PROMPTS, max_new_tokens=14)
    eos = [g.tokens[8 + row] for row, g in enumerate(plain)]
    settings = {"max_new_tokens": 14, "eos_token_ids": eos}
    drafter = ModelDrafter(model)
    ours = generate(model, PROMPTS, drafter=drafter, draft_length=draft_length, **settings)
    check_equal(ours, decoding.generate(model, PROMPTS, **settings))
    assert {g.finish_reason for g in ours} == {"eos"}


@pytest.mark.parametrize("stop", ["d", ["cd", "zz"], "春"])
def test_stop_strings_and_pieces_of_text(tmp_path, stop):
    tokenizer = byte_tokenizer(tmp_path)
    script = tokenizer.encode("ab春眠cabcd efg") * 3
    table = TableTarget(
        tokenizer.vocab_size, lambda text: [9.0 * (t == script[len(text) - 1]) for t in range(257)]
    )
    settings = {"tokenizer": tokenizer, "stop": stop, "max_new_tokens": 30}
    right = ScriptDrafter(257, *[[script[start : start + 4]] for start in range(1, 30, 5)])
    steps, (ours,) = finish(stream(table, [[1]], drafter=right, **settings))
    (theirs,) = decoding.generate(table, [[1]], **settings)
    check_equal([ours], [theirs])
    assert ours.text == theirs.text == "".join(step.texts[0] for step in steps)
    assert len(steps) < len(ours.tokens) / 2


def test_new_tokens_and_drafts_are_clamped_to_the_context(model):
    prompts = [[1] * (CONTEXT - 3), [2], [3] * CONTEXT]
    for length in (3, CONTEXT - 1):
        ours = generate(model, prompts, drafter=ModelDrafter(model), draft_length=length, max_new_tokens=99)
        check_equal(ours, decoding.generate(model, prompts, max_new_tokens=99))
        assert [len(g.tokens) for g in ours] == [3, CONTEXT - 1, 0]
    assert generate(model, prompts[2:], drafter=ModelDrafter(model))[0].tokens == []


# ---- rows that fail


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampled", [False, True])
def test_broken_logits_fail_their_row_where_decoding_fails_it(value, sampled):
    def broken(text):
        return [value if text[0] == 4 and len(text) == 5 else logit for logit in chained(text)]

    settings = {"max_new_tokens": 8, "on_error": "return"}
    if sampled:
        settings |= {"processors": [TopK(1)], "generator": torch.Generator().manual_seed(0)}
    drafter = ScriptDrafter(10, [[6, 7, 8, 9], [3, 4], [1, 2, 3, 4]])
    prompts = [[4], [1], [9]]
    ours = generate(TableTarget(10, broken), prompts, drafter=drafter, **settings)
    theirs = decoding.generate(TableTarget(10, broken), prompts, **settings)
    check_equal(ours, theirs)
    assert [len(g.tokens) for g in ours] == [4, 8, 8]
    assert type(ours[0].error) is type(theirs[0].error)
    assert "row 0, step" in str(ours[0].error) and ours[1].error is None


def test_the_first_error_is_raised_after_the_others_have_ended():
    target = TableTarget(10, lambda text: [math.nan] * 10 if text[0] == 4 else chained(text))
    with pytest.raises(NonFiniteLogitsError, match="row 0, step 0: the logits hold nan") as caught:
        generate(target, [[4], [1]], drafter=LookupDrafter(10), max_new_tokens=5)
    assert [len(g.tokens) for g in caught.value.generations] == [0, 5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[3, 10], [7]], r"drafts must be in \[0, 9\], got 10; use a drafter with the target's own"),
        ([[-1], [7]], r"drafts must be in \[0, 9\], got -1"),
        ([[3] * 5, [7]], r"num_tokens of the draft must be in \[0, 4\], got 5; propose no more"),
    ],
)
def test_a_bad_draft_fails_its_row_alone(rows, message):
    drafter = ScriptDrafter(10, rows)
    ours = generate(
        TableTarget(10, chained), [[1], [6]], drafter=drafter, max_new_tokens=6, on_error="return"
    )
    assert (ours[0].tokens, ours[0].finish_reason) == ([2], "error")
    assert ours[1].tokens == [7, 8, 9, 0, 1, 2] and ours[1].error is None
    with pytest.raises(DraftError, match=f"row 0, step 1: {message}"):
        raise ours[0].error
    assert issubclass(DraftError, DecodingError)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (torch.full((10,), 0.05), r"q's sum at \[0, 0\] must be 1 within 0.001, got 0.5"),
        (torch.full((10,), math.nan), r"q's probabilities at \[0, 0\] must be at least 0, got nan"),
        (torch.eye(10)[9], r"q of a drafted token at \[0, 0\] must be above 0, got 0"),
    ],
)
def test_a_q_that_is_no_distribution_fails_its_row_alone(q, message):
    """Row 1 proposes nothing, so that it has no q to be wrong."""
    drafter = ScriptDrafter(10, [[3, 4], []], q=q)
    settings = {"generator": torch.Generator().manual_seed(0), "processors": [TopK(1)], "max_new_tokens": 6}
    ours = generate(TableTarget(10, chained), [[1], [6]], drafter=drafter, on_error="return", **settings)
    assert ours[0].tokens == [2] and ours[1].tokens == [7, 8, 9, 0, 1, 2]
    with pytest.raises(DraftError, match=f"row 0, step 1: {message}"):
        raise ours[0].error


# ---- arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_length": 0}, "length must be an integer of at least 1, got 0; decode without a drafter"),
        ({"draft_length": -3}, "length must be an integer of at least 1, got -3"),
        ({"draft_length": CONTEXT}, "draft_length must be below the context of 32, got 32; a step cannot"),
        ({"draft_length": FixedLength(99)}, "draft_length must be below the context of 32, got 99"),
        (
            {"drafter": LookupDrafter(VOCAB + 1)},
            "drafter must be over the 40 tokens of the target, got 41, 1",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
        ({"params": SamplingParams()}, "generator must be given where params sample, got None"),
        ({"stop": "x"}, "stop must be left out where there is no tokenizer"),
        ({"eos_token_ids": [VOCAB]}, r"eos_token_ids must be in \[0, 39\], got 40"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_the_call(model, settings, message):
    with pytest.raises(ValueError, match=message):
        stream(model, [[1]], **{"drafter": LookupDrafter(VOCAB)} | settings)


def test_on_error_has_two_values(model):
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'return'"):
        generate.__wrapped__(model, [[1]], drafter=LookupDrafter(VOCAB), on_error="ignore")


def test_a_policy_that_asks_for_more_than_the_room_is_refused(model):
    class Greedy(FixedLength):
        def gamma(self, tally, room):
            return self.length

    with pytest.raises(ValueError, match=r"gamma must be an integer in \[0, 2\], got 4; clamp it"):
        generate(model, [[1]], drafter=LookupDrafter(VOCAB), draft_length=Greedy(4), max_new_tokens=4)


def test_tensors_of_a_draft_for_other_rows_are_refused(model):
    drafter = ScriptDrafter(VOCAB, [[1], [2], [3]])
    with pytest.raises(ValueError, match=r"tokens and num_tokens of a draft must be of shapes \(1, G\)"):
        generate(model, [[1]], drafter=drafter)


@dataclass(frozen=True)
class Stubborn:
    """Proposes a token for every row, whether it was asked to or not."""

    vocab_size: int = 10
    change: Callable[[Draft], object] = lambda draft: draft

    def start(self, prompts, capacity):
        pass

    def draft(self, history, num_drafts, processors=(), generator=None):
        count = len(num_drafts)
        most = max(num_drafts)
        tokens = torch.full((count, most), 3)
        return self.change(Draft(tokens, torch.full((count,), most)))

    def accept(self, num_accepted):
        pass


def test_what_is_proposed_for_an_ended_row_is_left_out():
    """The first row ends at once, the second goes on."""
    target = TableTarget(10, chained)
    found = generate(target, [[1], [6]], drafter=Stubborn(), max_new_tokens=6, eos_token_ids=[2])
    assert [g.tokens for g in found] == [[2], [7, 8, 9, 0, 1, 2]]
    assert found[0].finish_reason == "eos" and found[0].error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: Draft(d.tokens.short(), d.num_tokens), "tokens of a draft must be int32 or int64"),
        (lambda d: Draft(d.tokens, d.num_tokens.short()), "num_tokens of a draft must be int32 or int64"),
        (lambda d: Draft(d.tokens, d.num_tokens, torch.ones(1, 4, 11)), r"q of a draft must be of shape"),
    ],
)
def test_a_draft_of_another_kind_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        generate(TableTarget(10, chained), [[1]], drafter=Stubborn(change=change), max_new_tokens=6)


def test_what_is_no_draft_is_refused():
    with pytest.raises(TypeError, match="Draft"):
        drafter = Stubborn(change=lambda draft: None)
        generate(TableTarget(10, chained), [[1]], drafter=drafter, max_new_tokens=6)

"""Any drafter as an option of a served request: the answers are those without it."""

from __future__ import annotations

import re

import pytest
import torch

from llmcourse.decoding import SamplingParams
from llmcourse.serving import (
    BlockPool,
    ChunkedPrefill,
    Engine,
    PagedCache,
    PagedRunner,
    Request,
    RequestState,
    Scheduler,
)
from llmcourse.serving.speculation import Speculation as Asked
from llmcourse.speculative import (
    AdaptiveLength,
    EarlyLayersDrafter,
    FixedLength,
    LookupDrafter,
    ModelDrafter,
    Speculation,
    Tally,
)
from tests.serving.test_paged_runner import alone, requests, serve, tiny
from tests.speculative.tiny import ScriptDrafter, near

VOCAB = 100
GREEDY = SamplingParams(temperature=0.0)
DRAFTERS = {
    "near": lambda model: ModelDrafter(near(model, 0.01)),
    "early layers": lambda model: EarlyLayersDrafter(model, 1),
    "lookup": lambda model: LookupDrafter(VOCAB),
}
LENGTHS = {"4": 4, "9": 9, "adaptive": AdaptiveLength(0.05, prior=0.8)}


def speculating(wanted: list[Request], option: Speculation) -> list[Request]:
    """Two in three of the requests, all with one option."""
    return [
        Request(r.id, r.prompt, r.max_tokens, r.params, r.seed, speculation=option if i % 3 else None)
        for i, r in enumerate(wanted)
    ]


@pytest.mark.parametrize(
    ("drafter", "length", "settings"),
    [
        ("near", "4", {"overlap": True}),
        ("near", "adaptive", {"policy": "continuous", "num_blocks": 15}),
        ("early layers", "9", {"policy": "continuous", "num_blocks": 15, "overlap": True}),
        ("lookup", "4", {"policy": "traditional"}),
        ("lookup", "adaptive", {"overlap": True}),
    ],
)
def test_greedy_answers_are_those_that_the_model_gives_alone(drafter, length, settings):
    model = tiny()
    option = Speculation(DRAFTERS[drafter](model), LENGTHS[length])
    states = serve(model, speculating(requests(), option), **settings)
    assert [state.generated for state in states] == [alone(model, state.request) for state in states]
    assert any(state.num_accepted for state in states)
    assert settings.get("num_blocks") is None or any(state.num_preemptions for state in states)


def test_a_good_drafter_is_seen_to_be_one():
    """Its copy drafts for each request, with a cache of its own: were one shared, few drafts would stand."""
    model = tiny()
    states = serve(model, speculating(requests(), Speculation(ModelDrafter(model), 5)), policy="continuous")
    for state in states:
        assert state.num_accepted == state.num_drafted
        assert (state.num_drafted > 0) == (state.request.speculation is not None)


def test_a_sampled_answer_by_lookup_is_the_one_without():
    model, params = tiny(), SamplingParams(temperature=0.1)
    plain = serve(model, requests(params=params))
    states = serve(model, speculating(requests(params=params), Speculation(LookupDrafter(VOCAB))))
    assert [state.generated for state in states] == [state.generated for state in plain]
    assert any(state.num_accepted for state in states)


def test_a_seed_gives_one_text():
    """While there is room for all drafts."""
    model, params = tiny(), SamplingParams(temperature=0.8)
    option = Speculation(ModelDrafter(near(model, 0.02)))

    def run(seed: int) -> list[RequestState]:
        wanted = [Request(str(i), [i, 1], 9, params, seed=seed + i, speculation=option) for i in range(4)]
        return serve(model, wanted)

    assert [s.generated for s in run(3)] == [s.generated for s in run(3)]
    assert [s.generated for s in run(3)] != [s.generated for s in run(30)]


# ---- one text


def begun(drafter, length=4, params=GREEDY):
    text = Speculation(drafter, length).begin([1, 2, 1], 20, params, 0)
    text.seen = text._drafter
    return text


def test_what_became_of_a_proposal_is_seen_from_the_text():
    text = begun(ScriptDrafter(9, [[5, 6, 7]], [[5, 6]], [[8]], [[1]]))
    assert text.draft([1, 2, 1], 9) == ([5, 6, 7], None)
    assert text.draft([1, 2, 1, 5, 6, 3], 9) == ([5, 6], None)
    assert text.draft([1, 2, 1, 5, 6, 3], 9) == ([8], None)  # a step was lost
    assert text.draft([1, 2, 1, 5, 6, 3, 4], 9) == ([1], None)
    assert text.seen.accepted == [[2], [0], [0]]
    assert text._tally == Tally(2, 2)
    assert text._history.row(0) == [1, 2, 1, 5, 6, 3, 4]


def test_each_token_without_a_draft_lets_what_was_seen_fade():
    text = begun(ScriptDrafter(9, [[5]], [[]], [[7]], [[1]]), AdaptiveLength(0.05, keep=0.5))
    text.draft([1, 2, 1], 9)
    text.draft([1, 2, 1, 5, 3], 9)
    assert text._tally == Tally(1, 0)
    text.draft([1, 2, 1, 5, 3, 4, 4, 4], 9)  # it was not asked for some steps
    assert text._tally == Tally(1 / 8, 0)
    text.draft([1, 2, 1, 5, 3, 4, 4, 4, 7, 8], 9)
    assert text._tally == Tally(1 + 1 / 16, 0)


def test_a_draft_is_clamped_to_the_room_of_a_step():
    text = begun(ScriptDrafter(9, *[[[5]]] * 3), length=4)
    for most in (9, 2, 1):
        text.draft([1, 2, 1], most)
    assert text.seen.asked == [[4], [2], [1]]


def test_the_option_keeps_its_drafter_as_it_is():
    shared = ScriptDrafter(9, [[5]])
    option = Speculation(shared)
    for _ in range(2):
        option.begin([1], 5, GREEDY, 0)
    assert not hasattr(shared, "capacity") and isinstance(option, Asked) and option.vocab_size == 9


@pytest.mark.parametrize("length", [0, -1, True])
def test_no_draft_length_is_refused(length):
    with pytest.raises(ValueError, match="length must be an integer of at least 1"):
        Speculation(LookupDrafter(9), length)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nonsense", "device must be one that PyTorch knows, got 'nonsense'; use 'cpu'"),
        ("meta", "device must be one that this machine has, got 'meta'; use 'cpu'"),
        ("cuda:99", "device must be one that this machine has, got 'cuda:99'; use 'cpu'"),
    ],
)
def test_a_device_that_is_not_here_is_refused(device, message):
    with pytest.raises(ValueError, match=message):
        Speculation(LookupDrafter(9), device=device)


@pytest.mark.parametrize("length", [64, 10**12])
def test_drafts_as_long_as_the_context_are_refused_before_their_request_is_in_line(length):
    model = tiny()
    cache = PagedCache(model, 60, 4)
    serving = Engine(Scheduler(BlockPool(60, 4), ChunkedPrefill()), PagedRunner(model, cache))
    fine = serving.add(Request("fine", [1, 2], 9, speculation=Speculation(LookupDrafter(VOCAB), 63)))
    with pytest.raises(
        ValueError, match=f"draft_length must be below the context of 64, got {length}; a step"
    ):
        serving.add(Request("ill", [1, 2], 9, speculation=Speculation(LookupDrafter(VOCAB), length)))
    list(serving.stream())
    assert fine.generated == alone(model, fine.request)


class Eager(FixedLength):
    """Asks for more than there is room for."""

    def gamma(self, tally, room):
        return room


def test_a_policy_that_asks_for_too_much_fails_its_request_alone():
    model = tiny()
    ill = Request("ill", [1, 2], 9, speculation=Speculation(LookupDrafter(VOCAB), Eager(60)))
    fine = Request("fine", [1, 2], 9, speculation=Speculation(LookupDrafter(VOCAB)))
    failed, answered = serve(model, [ill, fine])
    assert failed.finish_reason == "error" and "gamma must be an integer in [0, " in str(failed.error)
    assert answered.generated == alone(model, fine)


def test_no_drafter_is_refused():
    with pytest.raises((ValueError, TypeError), match="drafter"):
        Speculation(tiny())


# ---- drafters that go wrong


class Ill(ScriptDrafter):
    """Proposes token 5 with a q that is made for it."""

    def __init__(self, q):
        super().__init__(VOCAB, *[[[5]]] * 50, q=q)


def broken_q(what: str):
    q = torch.full((1, 1, VOCAB), 1 / VOCAB)
    if what == "sum":
        q *= 2
    elif what == "negative":
        q[..., 5:7] += torch.tensor([0.5, -0.5])
    elif what == "zero":
        q[..., 5:7] = torch.tensor([0, 2 / VOCAB])
    else:
        q[..., 3] = torch.nan
    return q


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("sum", "q's sum at [0, 0] must be 1 within 0.001, got 2"),
        ("negative", "q's probabilities at [0, 0] must be at least 0, got -0.49"),
        ("zero", "q of a drafted token at [0, 0] must be above 0, got 0"),
        ("nan", "q's probabilities at [0, 0] must be at least 0, got nan"),
    ],
)
def test_a_q_that_is_no_distribution_fails_its_request_alone(what, message):
    model, params = tiny(), SamplingParams(temperature=1.0)
    ill = Request("ill", [1, 2], 9, params, speculation=Speculation(Ill(broken_q(what))))
    fine = Request("fine", [1, 2], 9, speculation=Speculation(LookupDrafter(VOCAB)))
    failed, answered = serve(model, [ill, fine])
    assert failed.finish_reason == "error" and re.match(re.escape(message), str(failed.error))
    assert answered.generated == alone(model, fine)


@pytest.mark.parametrize("token", [VOCAB, -1])
def test_a_token_outside_the_vocabulary_fails_its_request_alone(token):
    model = tiny()
    ill = Request("ill", [1, 2], 9, speculation=Speculation(ScriptDrafter(VOCAB, *[[[token]]] * 9)))
    fine = Request("fine", [1, 2], 9, speculation=Speculation(LookupDrafter(VOCAB)))
    failed, answered = serve(model, [ill, fine])
    assert failed.finish_reason == "error"
    assert f"drafts must be token ids in [0, {VOCAB - 1}], got {token}" in str(failed.error)
    assert answered.generated == alone(model, fine)

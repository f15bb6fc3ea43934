"""A served model that speculates writes what it writes alone; a drafter spoils its own request at most."""

from __future__ import annotations

import pytest
import torch

from llmcourse.decoding import SamplingParams
from llmcourse.decoding.errors import EverythingMaskedError, NonFiniteLogitsError
from llmcourse.serving import BlockPool, Engine, PagedCache, PagedRunner, Request, Scheduler
from tests.serving.fakes import POLICIES
from tests.serving.test_paged_runner import SETTINGS, SIZE, alone, requests, serve, tiny

overlap = pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
VOCAB = 100


class Knowing:
    """Knows an answer, and drafts it with every third token wrong.

    Args:
        q: what it says that each draft was drawn from, or None.
    """

    vocab_size = VOCAB

    def __init__(self, text: list[int], longest: int, q=None):
        self.text, self.longest, self.q = text, longest, q

    def begin(self, prompt, max_tokens, params, seed):
        return self

    def draft(self, text, most):
        places = range(len(text), min(len(text) + min(most, self.longest), len(self.text)))
        drafts = [(self.text[i] + (i % 3 == 0)) % VOCAB for i in places]
        return drafts, None if self.q is None else self.q[: len(drafts)]

    def verify(self, p, q, drafts, uniform):
        raise ZeroDivisionError("no rule")


def speculating(model, wanted: list[Request], written: list[list[int]]) -> list[Request]:
    """The same requests; of three, one does not speculate, one by few drafts and one by many."""
    return [
        Request(
            r.id,
            r.prompt,
            r.max_tokens,
            r.params,
            r.seed,
            speculation=Knowing([*r.prompt, *tokens], 2 + 5 * (i % 3 - 1)) if i % 3 else None,
        )
        for i, (r, tokens) in enumerate(zip(wanted, written, strict=True))
    ]


def check_drafted(states) -> None:
    for state in states:
        few = state.request.speculation and len(state.generated) < 10
        assert few or (0 < state.num_accepted < state.num_drafted) == bool(state.request.speculation)


@overlap
@pytest.mark.parametrize("policy", POLICIES)
def test_every_answer_is_the_one_that_the_model_gives_alone(policy, overlap):
    model = tiny()
    written = [alone(model, request) for request in requests()]
    states = serve(model, speculating(model, requests(), written), policy=policy, overlap=overlap)
    assert [state.generated for state in states] == written
    assert any(state.num_reused for state in states)
    if "small" not in policy:
        check_drafted(states)


@overlap
def test_whoever_is_preempted_goes_on_where_it_was(overlap):
    model = tiny()
    written = [alone(model, request) for request in requests()]
    wanted = speculating(model, requests(), written)
    states = serve(model, wanted, policy="continuous", num_blocks=15, overlap=overlap)
    assert any(state.num_preemptions and state.num_drafted for state in states)
    assert [state.generated for state in states] == written


def test_in_single_precision_too():
    model = tiny(torch.float32)
    written = [alone(model, request) for request in requests()]
    states = serve(model, speculating(model, requests(), written))
    assert [state.generated for state in states] == written


@pytest.mark.parametrize("settings", SETTINGS)
def test_certain_drafts_change_no_draw(settings):
    """Not only their law: whoever knows the answer drafts just what would be drawn."""
    model, wanted = tiny(), requests(params=SETTINGS[settings])
    written = [state.generated for state in serve(model, wanted)]
    for policy, num_blocks, overlap in (("chunked", 60, True), ("continuous", 15, False)):
        drafted = speculating(model, wanted, written)
        states = serve(model, drafted, policy=policy, num_blocks=num_blocks, overlap=overlap)
        assert [state.generated for state in states] == written
        check_drafted(states)


def test_a_greedy_answer_does_not_ask_what_drafts_were_drawn_from():
    model = tiny()
    request = requests()[3]
    written = alone(model, request)
    q = torch.full((9, VOCAB), 1 / VOCAB)
    asked = Knowing([*request.prompt, *written], 5, q)
    (state,) = serve(model, [Request("a", request.prompt, request.max_tokens, speculation=asked)])
    assert state.generated == written and state.num_accepted > 0


class Lawless(Knowing):
    """Returns a verdict that no rule gives."""

    def verify(self, p, q, drafts, uniform):
        return [*drafts, VOCAB]


@overlap
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Knowing, ZeroDivisionError, "no rule"), (Lawless, ValueError, "what verify returns must be the first")],
)
def test_a_verdict_that_fails_fails_its_request_alone(kind, error, message, overlap):
    model, params = tiny(), SamplingParams(temperature=1.0)
    drafter = kind([5] * 9, 4, torch.full((9, VOCAB), 1 / VOCAB))
    doomed = Request("doomed", [5, 5], 9, params, speculation=drafter)
    fine = Request("fine", [1, 2], max_tokens=9)
    failed, answered = serve(model, [doomed, fine], overlap=overlap)
    assert failed.finish_reason == "error" and isinstance(failed.error, error)
    assert message in str(failed.error) and failed.generated == []
    assert answered.generated == alone(model, fine)


def test_another_vocabulary_is_refused():
    model = tiny()
    runner = PagedRunner(model, PagedCache(model, 40, SIZE), max_running=4)
    engine = Engine(Scheduler(BlockPool(40, SIZE), POLICIES["chunked"], max_running=4), runner)
    other = Knowing([1], 1)
    other.vocab_size = 101
    with pytest.raises(ValueError, match=r"speculation must be over the 100 tokens of the model, got 101; "):
        engine.add(Request("a", [1], speculation=other))
    assert not engine.has_work


@overlap
def test_broken_logits_at_the_first_draft_fail_a_request_alone(overlap):
    model = tiny(output_bias=True, tie_word_embeddings=False)
    model.model.embed_tokens.weight[7] = torch.nan
    doomed = Request("doomed", [1, 7], max_tokens=9, speculation=Knowing([1, 7, 3, 4, 5], 3))
    fine = Request("fine", [1, 2], max_tokens=9)
    failed, answered = serve(model, [doomed, fine], overlap=overlap)
    assert isinstance(failed.error, NonFiniteLogitsError) and "'doomed'" in str(failed.error)
    assert answered.generated == alone(model, fine)


class Accepting(Knowing):
    """Drafts from a vocabulary of 20 all that is left of it, and accepts it all."""

    vocab_size = 20

    def draft(self, text, most):
        drafts = [17, 18, 19][len(text) - 17 :][:most]
        return drafts, torch.full((len(drafts), 20), 1 / 20)

    def verify(self, p, q, drafts, uniform):
        assert p.shape == (len(drafts) + 1, 20) and len(q) == len(drafts) and len(uniform) == len(p)
        return [*drafts, int(p[-1].argmax())]


def test_a_draft_after_which_nothing_is_left_is_not_judged():
    """Whether the text comes to that, the next step tells."""
    params = SamplingParams(no_repeat_ngram_size=1)
    request = Request("a", list(range(17)), 9, params, speculation=Accepting([], 0))
    (state,) = serve(tiny(vocab_size=20), [request])
    assert state.generated == [17, 18, 19] and (state.num_accepted, state.num_drafted) == (2, 3)
    assert isinstance(state.error, EverythingMaskedError)

"""A model as drafter: whatever stood of its last drafts, it goes on as one that reads the text anew."""

from __future__ import annotations

import pytest
import torch

from llmcourse.decoding import History, RepetitionPenalty, Temperature, TopK, generate
from llmcourse.speculative import Drafter, ModelDrafter, distribution
from tests.speculative.tiny import PROMPTS, VOCAB, tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(num_layers=2)


def seeded(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def drafter_of(model, prompts=PROMPTS):
    drafter = ModelDrafter(model)
    drafter.start(prompts, 60)
    return drafter


def test_it_is_a_drafter(model):
    assert isinstance(ModelDrafter(model), Drafter)
    assert ModelDrafter(model).vocab_size == VOCAB


@pytest.mark.parametrize("processors", [[], [RepetitionPenalty(1.3)]], ids=["plain", "penalty"])
def test_greedy_drafts_are_what_the_model_writes(model, processors):
    drafter, history = drafter_of(model), History.from_prompts(PROMPTS, room=40)
    random = torch.Generator().manual_seed(1)
    for asked in ([3, 3, 3, 3], [1, 0, 4, 2], [0, 0, 0, 0], [0, 5, 0, 1], [2, 2, 2, 2]):
        new = torch.randint(VOCAB, (4,), generator=random)  # the target's own token
        history.append(new)
        before = history.tokens.clone()
        draft = drafter.draft(history, asked, processors)
        assert draft.q is None and draft.num_tokens.tolist() == asked
        assert torch.equal(history.tokens, before)
        stood = [int(torch.randint(count + 1, (), generator=random)) for count in asked]
        for row, count in enumerate(asked):
            drafts = draft.tokens[row].tolist()
            assert drafts[count:] == [0] * (len(drafts) - count)
            if count:
                text = [history.row(row)]
                expected = generate(model, text, max_new_tokens=count, processors=processors)
                assert drafts[:count] == expected[0].tokens
        history.extend(draft.tokens, stood)
        drafter.accept(stood)


def test_q_is_what_each_draft_was_drawn_from(model):
    processors = [RepetitionPenalty(1.3), Temperature(0.8), TopK(5)]
    history = History.from_prompts(PROMPTS, room=9)
    draft = drafter_of(model).draft(history, [3] * 4, processors, seeded(4))
    for row in range(4):
        text = list(PROMPTS[row])
        for position, token in enumerate(draft.tokens[row].tolist()):
            alone = History.from_prompts([text])
            expected = distribution(model(torch.tensor([text]))[:, -1], alone, processors)[0]
            torch.testing.assert_close(draft.q[row, position], expected, atol=1e-5, rtol=1e-4)
            assert expected[token] > 0
            text.append(token)


def test_a_row_draws_the_same_alone_and_beside_rows_that_need_more(model):
    asked = [1, 4, 0, 2]
    history = History.from_prompts(PROMPTS)
    together = drafter_of(model).draft(history, asked, [], seeded(4))
    for row, prompt in enumerate(PROMPTS):
        alone = drafter_of(model, [prompt])
        own = alone.draft(History.from_prompts([prompt]), asked[row : row + 1], [], seeded(4)[row : row + 1])
        assert own.tokens[0].tolist() == together.tokens[row, : asked[row]].tolist()


def test_a_row_that_has_ended_rides_along_at_the_end_of_the_cache(model):
    """Its text fills the capacity, while another has five new tokens to be read."""
    drafter = ModelDrafter(model)
    drafter.start([[1] * 8, [2]], 10)
    history = History.from_prompts([[1] * 8, [2]], room=0)
    history.extend(torch.tensor([[0] * 5, [3, 4, 5, 6, 7]]), [0, 5])
    draft = drafter.draft(history, [0, 2])
    assert draft.tokens[1].tolist() == generate(model, [history.row(1)], max_new_tokens=2)[0].tokens


def test_past_its_context_it_proposes_nothing():
    short = tiny_decoder(context=10)
    drafter = drafter_of(short, [[1] * 8, [2] * 9, [3] * 12])
    draft = drafter.draft(History.from_prompts([[1] * 8, [2] * 9, [3] * 12]), [4, 4, 4])
    assert draft.num_tokens.tolist() == [2, 1, 0]

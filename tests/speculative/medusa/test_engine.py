"""Medusa on static memory writes what greedy decoding writes, with the steps of the readable loop."""

import pytest
import torch

from llmcourse.decoding import generate
from llmcourse.roofline import DoesNotFit
from llmcourse.speculative.medusa.candidates import MedusaTree, full, sparse
from llmcourse.speculative.medusa.engine import MedusaEngine
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads
from tests.speculative.tiny import CONTEXT, tiny_decoder

NEW, SMALL = 12, 6  # tokens, and a vocabulary of which a tree can hold every guess
PROMPTS = [[1, 2, 3, 4, 5, 1, 2], [3], [0, 1, 3]]
TREES = {
    "every guess": full([SMALL, SMALL]),
    "a chain": MedusaTree([(0,), (0, 0), (0, 0, 0)]),
    "several": sparse(3, 4),
    "one depth": full([3]),
}


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(vocab_size=SMALL)


@pytest.fixture(scope="module")
def heads(model):
    """That say all kinds of things."""
    torch.manual_seed(0)
    made = MedusaHeads(HeadsConfig.for_model(model, 3, num_blocks=2)).requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def expected(model):
    return [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=())]


@pytest.mark.parametrize("name", TREES)
def test_it_writes_what_greedy_decoding_writes(model, heads, expected, name):
    engine = MedusaEngine(model, heads, TREES[name])
    assert engine.generate(PROMPTS, NEW).tokens == expected
    assert [engine.generate([prompt], NEW).tokens[0] for prompt in PROMPTS] == expected


def test_a_tree_of_every_guess_brings_all_its_depth_and_one(model, heads):
    found = MedusaEngine(model, heads, TREES["every guess"]).generate(PROMPTS[:1], 13)
    assert (found.num_steps, found.tally.rate) == (4, 1.0), "one token, then four steps of three"


def test_it_accepts_what_the_heads_guess_right(model, heads, expected):
    """Of a tree of one node a step: what the first head's favourite was right about, each time."""
    engine = MedusaEngine(model, heads, full([1]))
    engine.start(PROMPTS[:1], CONTEXT)
    text, accepted = [*PROMPTS[0], expected[0][0]], 0
    while len(text) < len(PROMPTS[0]) + NEW:
        hidden = model.hidden_states(torch.tensor([text[:-1]]))[:, -1]
        guess = int(heads.logits(model, hidden, 1)[0, 0].argmax())
        new = engine.step()[0]
        own = int(model(torch.tensor([text]))[0, -1].argmax())
        assert (new[0] == own) and (len(new) == 2) == (guess == own)
        text, accepted = text + new, accepted + len(new) - 1
    assert accepted


@pytest.mark.parametrize("name", TREES)
def test_timing_its_parts_moves_nothing_on(model, heads, expected, name):
    engine = MedusaEngine(model, heads, TREES[name])
    written = [engine.start(PROMPTS[:1], CONTEXT)[0]]
    while len(written) < NEW:
        engine.draft()
        engine.verify()
        written += engine.step()[0]
    assert written[:NEW] == expected[0]


def test_a_row_that_is_full_can_be_timed_all_the_same(model, heads):
    engine = MedusaEngine(model, heads, TREES["every guess"])
    engine.start([[1, 2, 3]], 5)
    for _ in range(8):
        engine.step()
        engine.verify()
    assert engine._lengths == [5] and engine._state.positions.tolist() == [4]


def test_end_tokens_and_the_end_of_the_context(model, heads, expected):
    engine = MedusaEngine(model, heads, TREES["several"])
    ends = [expected[0][3]]
    wanted = [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=ends)]
    assert engine.generate(PROMPTS, NEW, eos_token_ids=ends).tokens == wanted
    room = CONTEXT - len(PROMPTS[0])
    long = generate(model, PROMPTS, max_new_tokens=room, eos_token_ids=())
    assert engine.generate(PROMPTS, room).tokens == [g.tokens for g in long]


def test_what_cannot_be_is_refused(model, heads, monkeypatch):
    with pytest.raises(ValueError, match="depth of the tree must be at most 3"):
        MedusaEngine(model, heads, full([1, 1, 1, 1]))
    with pytest.raises(ValueError, match="tree must be of one node or more, got 0"):
        MedusaEngine(model, heads, MedusaTree([]))
    with pytest.raises(ValueError, match="heads must be on the backbone's device, in its dtype"):
        MedusaEngine(model.double(), heads, full([1]))
    model.float()
    with pytest.raises(ValueError, match="hidden_size of the heads must be the backbone's 32, got 8"):
        MedusaEngine(model, MedusaHeads(HeadsConfig(1, 1, 8, SMALL)), full([1]))
    engine = MedusaEngine(model, heads, full([1]))
    with pytest.raises(ValueError, match="step must be called after start"):
        engine.step()
    with pytest.raises(ValueError, match=r"capacity must be in \[8, 32\], got 33"):
        engine.start(PROMPTS, CONTEXT + 1)
    with pytest.raises(ValueError, match="verify must be called after start"):
        engine.verify()
    monkeypatch.setattr("llmcourse.speculative.medusa.engine.check_room", _no_room)
    with pytest.raises(DoesNotFit):
        MedusaEngine(model, heads, full([1])).start(PROMPTS, CONTEXT)


def _no_room(*_):
    raise DoesNotFit("no room")

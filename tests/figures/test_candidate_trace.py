"""A Medusa text taken apart: the text and the accepted branch are the loop's, q is what the heads said."""

import pytest
import torch

from llmcourse import pretrained
from llmcourse.decoding import SamplingParams
from llmcourse.figures.candidate_trace import (
    candidate_text,
    candidate_trace,
    head_probabilities,
    record_candidates,
)
from llmcourse.speculative.medusa import MedusaTree, generate, sparse, stream
from tests.speculative.medusa.tiny import tiny_heads

PROMPT = "Once upon a time"
TREE = sparse(2, 2)  # five nodes


@pytest.fixture(scope="module")
def base(tiny_checkpoint):
    return pretrained.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def heads(base):
    return tiny_heads(base[0])


@pytest.fixture(scope="module", params=["greedy", "sampled"])
def settings(request):
    if request.param == "greedy":
        return dict
    sampled = SamplingParams(temperature=1.0)
    return lambda: {"params": sampled, "generator": torch.Generator().manual_seed(3)}


def taken(base, heads, settings, tree=TREE, length=8):
    model, tokenizer = base
    limits = {"tree": tree, "max_new_tokens": length}
    return record_candidates(model, heads, tokenizer, PROMPT, **limits, **settings())


@pytest.fixture(scope="module")
def trace(base, heads, settings):
    return taken(base, heads, settings)


@pytest.fixture(scope="module")
def always_right(base, heads):
    """A tree of every token, which cannot miss: two tokens a step, and of the last step one."""
    wide = MedusaTree([(rank,) for rank in range(300)])
    return taken(base, heads, dict, wide, 6)


def test_the_text_is_the_loops(base, heads, settings, trace):
    model, tokenizer = base
    limits = {"tree": TREE, "max_new_tokens": 8}
    (written,) = generate(model, heads, [tokenizer.encode_prompt(PROMPT)], **limits, **settings())
    assert [word.token for step in trace.steps for word in step.gained] == written.tokens
    assert trace.num_tokens(len(trace.steps) - 1) == len(written.tokens) == 8


def test_nodes_are_the_steps_own(base, heads, settings, trace):
    model, tokenizer = base
    limits = {"tree": TREE, "max_new_tokens": 8}
    steps = list(stream(model, heads, [tokenizer.encode_prompt(PROMPT)], **limits, **settings()))
    assert len(steps) == len(trace.steps) and trace.steps[0].nodes == ()
    for step, shown in zip(steps[1:], trace.steps[1:], strict=True):
        assert [node.label for node in shown.nodes] == [tokenizer.label(token) for token in step.drafts[0]]
        assert [node.p for node in shown.nodes] == step.p_drafts[0]
        stood = step.paths[0][: len(step.tokens[0])]
        assert [number for number, node in enumerate(shown.nodes) if node.stands] == list(stood)


def test_q_is_what_the_heads_say_of_the_text_so_far(base, heads, trace):
    """By hand: the state that gave the last token, found by reading that text alone."""
    model, tokenizer = base
    text = tokenizer.encode_prompt(PROMPT)
    for step in trace.steps:
        if step.nodes:
            hidden = model.hidden_states(torch.tensor([text[:-1]]))[0, -1]
            laws = heads.logits(model, hidden).softmax(-1)
            best = laws.sort(descending=True).values  # drafts are the likeliest, by rank
            expected = [best[len(choice) - 1, choice[-1]].item() for choice in TREE.choices]
            assert [node.q for node in step.nodes] == pytest.approx(expected, rel=1e-4)
        text += [word.token for word in step.gained]


def test_branches_that_stand_are_marked(always_right):
    assert [len(step.accepted) for step in always_right.steps] == [0, 1, 1, 1]
    assert [sum(node.stands for node in step.nodes) for step in always_right.steps] == [0, 1, 1, 1]
    (line,) = candidate_text(always_right).lines
    assert {piece.mark for piece in line.pieces} == {"own", "accepted"}
    first = candidate_text(always_right, 0)
    assert "{+" in repr(first) and first.lines[0].before == PROMPT and len(first.lines[0].pieces) == 1


def test_a_text_that_ends_on_its_branch_has_no_token_of_its_own(always_right):
    assert [step.own is None for step in always_right.steps] == [False, False, False, True]


def test_rates_leave_the_prompt_out(always_right):
    assert always_right.rates == (None, 2.0, 2.0, 2.0)


def test_a_step_that_is_not_there_is_refused(always_right):
    with pytest.raises(ValueError, match=r"at must be in \[0, \d\], got 9; \d is the last step"):
        candidate_text(always_right, 9)


def test_two_texts_at_once_are_refused(base, heads):
    model, tokenizer = base
    prompts = [tokenizer.encode_prompt(PROMPT)] * 2
    steps = list(stream(model, heads, prompts, tree=TREE, max_new_tokens=3))
    q = head_probabilities(model, heads, prompts[0], steps)
    with pytest.raises(ValueError, match="steps must be of one text, each with its q"):
        candidate_trace(PROMPT, prompts[0], steps, q, TREE, tokenizer)
    with pytest.raises(ValueError, match="got 0 steps"):
        candidate_trace(PROMPT, prompts[0], [], [], TREE, tokenizer)

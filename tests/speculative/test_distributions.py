"""Processed distributions: each draft is seen by the settings of the next, and greedy is a point mass."""

from __future__ import annotations

import itertools

import pytest
import torch

from llmcourse.decoding import History, SamplingParams, apply
from llmcourse.speculative.distributions import distribution, point_masses, processed
from llmcourse.speculative.verify import verify_drafts

SETTINGS = {
    "plain": SamplingParams(),
    "cold, top-k": SamplingParams(temperature=0.7, top_k=3),
    "top-p": SamplingParams(top_p=0.8),
    "min-p, typical, eta": SamplingParams(min_p=0.1, typical_p=0.9, eta_cutoff=0.01),
    "no bigram twice": SamplingParams(no_repeat_ngram_size=2),
    "penalties": SamplingParams(presence_penalty=1.0, frequency_penalty=0.7, repetition_penalty=1.3),
    "greedy, penalties": SamplingParams(temperature=0.0, repetition_penalty=2.0),
}


def models(vocab_size: int):
    """Logits of target and drafter by the last token, not too unlike each other."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64)
    return target, target + torch.randn(target.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)
def test_each_position_is_what_the_settings_make_of_the_text_so_far(params):
    target, _ = models(6)
    prompts, drafts = [[1, 2, 1], [4]], torch.tensor([[2, 1, 3], [4, 4, 5]])
    history = History.from_prompts(prompts)
    last = torch.cat((torch.tensor([[1], [4]]), drafts), 1)
    ours = processed(target[last], drafts, history, params.processors(), sampled=not params.greedy)
    for row, position in itertools.product(range(2), range(4)):
        text = [*prompts[row], *drafts[row, :position].tolist()]
        alone = History(torch.tensor([text]), torch.tensor([len(text)]), torch.tensor([len(prompts[row])]))
        logits = apply(params.processors(), target[text[-1:]], alone)[0]
        expected = torch.eye(6)[logits.argmax()].double() if params.greedy else logits.softmax(-1)
        torch.testing.assert_close(ours[row, position], expected)
    assert history.lengths.tolist() == [3, 1] and [history.row(0), history.row(1)] == prompts


@pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)
def test_two_drafts_leave_the_law_of_three_tokens_as_it_is(params):
    """All texts of two drafts, each judged exactly: an interval of uniform numbers is as long as its chance.

    The emitted text is extended by the target; the sum over drafts is compared in fp64.
    """
    vocab_size, prompt = 4, [0, 1]
    target, drafter = models(vocab_size)
    settings = {"processors": params.processors(), "sampled": not params.greedy}

    def sides(table, drafts):
        return processed(
            table[torch.tensor([[1, *drafts]])],
            torch.tensor([drafts]),
            History.from_prompts([prompt]),
            **settings,
        )[0]

    law = torch.zeros(vocab_size, vocab_size, vocab_size, dtype=torch.float64)
    expected = torch.zeros_like(law)
    for drafts in itertools.product(range(vocab_size), repeat=2):
        p, q = sides(target, drafts), sides(drafter, drafts)[:2]
        x, y = drafts
        expected[x, y] = p[0, x] * p[1, y] * p[2]
        made = q[0, x] * q[1, y]
        if made == 0:
            continue
        first, second = (min(1.0, (p[i, t] / q[i, t]).item()) for i, t in enumerate(drafts))
        law[x, y] += made * first * second * p[2]
        for token, share in enumerate(replacements(p, q, drafts, first, second)):
            law[x, token] += made * first * (1 - second) * share * sides(target, (x, token))[2]
        for token, share in enumerate(replacements(p, q, drafts, first)):
            for following in range(vocab_size):
                after = sides(target, (token, following))
                law[token, following] += made * (1 - first) * share * after[1, following] * after[2]
    torch.testing.assert_close(law, expected, atol=1e-12, rtol=0)


def replacements(p, q, drafts, *thresholds) -> torch.Tensor:
    """How often each token replaces a draft that just falls, those before it standing, by its intervals."""
    if thresholds[-1] >= 1:
        return torch.zeros(p.shape[1], dtype=torch.float64)
    position = len(thresholds) - 1
    uniform = torch.zeros(1, 3, dtype=torch.float64)
    uniform[0, position] = (thresholds[-1] + 1) / 2
    weights, left = torch.zeros(p.shape[1], dtype=torch.float64), (p[position] - q[position]).clamp(min=0)
    edges = torch.cat((torch.zeros(1), left.cumsum(0) / left.sum()))
    for low, high in itertools.pairwise(edges.tolist()):
        if low == high:
            continue
        uniform[0, 2] = (low + high) / 2
        verdict = verify_drafts(p[None], q[None], torch.tensor([drafts]), uniform)
        assert verdict.num_accepted.tolist() == [position]
        weights[verdict.next_tokens] += high - low
    return weights


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = torch.tensor([[0.0, 2.0, 2.0]])
    assert distribution(logits, History.from_prompts([[0]]), sampled=False).tolist() == [[0, 1, 0]]


def test_half_precision_is_widened():
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    p = distribution(logits, History.from_prompts([[0]]))
    assert p.dtype == torch.float32 and p.sum().item() == pytest.approx(1, abs=1e-5)


def test_point_masses():
    assert point_masses(torch.tensor([[1, 0]]), 3).tolist() == [[[0, 1, 0], [1, 0, 0]]]
    assert point_masses(torch.zeros(2, 0, dtype=torch.long), 3).shape == (2, 0, 3)

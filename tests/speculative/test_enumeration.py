"""Every draft and every interval of uniform numbers, counted in whole numbers: the text is the target's.

Probabilities are quarters, so a draft stands or falls at a multiple of 1/12 and there the next token changes.
The middles of those intervals stand for all uniform numbers: a sum over them is the integral.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest
import torch

from llmcourse.speculative.verify import verify_drafts
from tests.speculative.planted import BUGS

PARTS, STEPS = 4, 12
VOCAB = 3
Text = tuple[int, ...]


class Quarters:
    """A language model whose probabilities, a function of the text so far, are quarters, many of them 0."""

    parts = PARTS

    def __init__(self, seed: str):
        self.seed = seed

    def weights(self, text: Text) -> list[int]:
        rng = random.Random(f"{self.seed} {text}")
        cuts = sorted(rng.choices(range(self.parts + 1), k=VOCAB - 1))
        return [high - low for low, high in itertools.pairwise([0, *cuts, self.parts])]


class Certain(Quarters):
    """The same, greedily: all quarters to the token that had most."""

    def weights(self, text: Text) -> list[int]:
        weights = super().weights(text)
        return [PARTS * (token == weights.index(max(weights))) for token in range(VOCAB)]


def emitted_texts(
    target, drafter, num_drafts: int, columns: int, check=verify_drafts, steps=STEPS
) -> Counter[Text]:
    """How much of all drafts and uniform numbers leads to each text of a step, in whole numbers."""
    # Where a row has no draft, one number stands for all.
    axes = (
        [torch.arange(steps)] * num_drafts
        + [torch.arange(1)] * (columns - num_drafts)
        + [torch.arange(STEPS)]
    )
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, columns + 1).double()
    uniform = (grid + 0.5) / torch.tensor([steps] * columns + [STEPS])
    found = Counter()
    for text in itertools.product(range(VOCAB), repeat=num_drafts):
        if not weight(drafter, text):
            continue
        # What lies past a row's own drafts must not matter.
        p, q = torch.full((columns + 1, VOCAB), torch.nan), torch.full((columns, VOCAB), torch.nan)
        for position in range(num_drafts + 1):
            p[position] = torch.tensor(target.weights(text[:position])) / PARTS
        for position in range(num_drafts):
            q[position] = torch.tensor(drafter.weights(text[:position])) / PARTS
        size = len(uniform)
        drafts = torch.tensor([*text, *[-1] * (columns - num_drafts)], dtype=torch.long).expand(size, columns)
        counts = None if num_drafts == columns else torch.full((size,), num_drafts)
        verdict = check(p.expand(size, -1, -1), q.expand(size, -1, -1), drafts, uniform, counts)
        ends = (verdict.num_accepted * VOCAB + verdict.next_tokens).bincount().tolist()
        for end, share in enumerate(ends):
            found[*text[: end // VOCAB], end % VOCAB] += share * weight(drafter, text)
    return +found  # without zeros


def weight(model, text: Text) -> int:
    """The probability of a text, times 4 to the power of its length."""
    product = 1
    for position, token in enumerate(text):
        product *= model.weights(text[:position])[token]
    return product


def continued(found: Counter[Text], target, length: int) -> dict[Text, Fraction]:
    """The distribution of texts of one length, if the target goes on where a step ended."""
    whole = found.total()
    law = Counter()
    for text, share in found.items():
        for rest in itertools.product(range(VOCAB), repeat=length - len(text)):
            chance = Fraction(weight(target, text + rest), max(1, weight(target, text)) * PARTS ** len(rest))
            law[text + rest] += Fraction(share, whole) * chance
    return {text: chance for text, chance in law.items() if chance}


def law_of(target, length: int) -> dict[Text, Fraction]:
    texts = itertools.product(range(VOCAB), repeat=length)
    return {t: Fraction(weight(target, t), PARTS**length) for t in texts if weight(target, t)}


SETTINGS = {
    "sampled": (Quarters, Quarters),
    "greedy target": (Certain, Quarters),
    "certain drafter": (Quarters, Certain),
    "both greedy": (Certain, Certain),
}


@pytest.mark.parametrize("kinds", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("num_drafts", "seeds"), [(1, 40), (2, 8), (3, 2)], ids=["1 draft", "2", "3"])
def test_the_text_of_a_step_is_distributed_as_the_targets(kinds, num_drafts, seeds):
    for seed in range(seeds):
        target, drafter = (kind(f"{side} {seed}") for side, kind in zip("pq", kinds, strict=True))
        found = emitted_texts(target, drafter, num_drafts, num_drafts)
        assert continued(found, target, num_drafts + 1) == law_of(target, num_drafts + 1)


@pytest.mark.parametrize(("num_drafts", "columns"), [(0, 0), (0, 2), (1, 3), (2, 3)])
def test_rows_with_fewer_drafts_than_others_look_at_their_own_alone(num_drafts, columns):
    target, drafter = Quarters("p"), Quarters("q")
    found = emitted_texts(target, drafter, num_drafts, columns)
    assert continued(found, target, num_drafts + 1) == law_of(target, num_drafts + 1)


def test_a_drafter_that_is_the_target_is_never_corrected():
    target = Quarters("p")
    found = emitted_texts(target, target, 2, 2)
    assert {len(text) for text in found} == {3}
    assert continued(found, target, 3) == law_of(target, 3)


def test_the_share_of_texts_with_an_accepted_first_draft_is_the_overlap():
    """Leviathan et al. 2023, theorem 3.5: β = Σ min(p, q)."""
    for seed in range(20):
        target, drafter = Quarters(f"p {seed}"), Quarters(f"q {seed}")
        found = emitted_texts(target, drafter, 1, 1)
        kept = sum(share for text, share in found.items() if len(text) == 2)
        overlap = sum(map(min, target.weights(()), drafter.weights(())))
        assert Fraction(kept, found.total()) == Fraction(overlap, PARTS)


@pytest.mark.parametrize("bug", [name for name in BUGS if name != "no bonus token"])
def test_every_planted_bug_changes_the_distribution(bug):
    target, drafter = Quarters("p 2"), Quarters("q 2")
    steps = 60 if "biased" in bug else STEPS  # fine enough for 1.1 times a half
    found = emitted_texts(target, drafter, 2, 2, BUGS[bug], steps)
    assert continued(found, target, 3) != law_of(target, 3)


def test_a_lost_bonus_token_shows_in_the_length():
    """The text is still the target's: what is lost is what makes speculation worth its while."""
    target = Quarters("p")
    found = emitted_texts(target, target, 2, 2, BUGS["no bonus token"])
    assert continued(found, target, 3) == law_of(target, 3)
    assert {len(text) for text in found} == {2}

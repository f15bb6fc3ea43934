"""04.accept_drafts: how many drafts stand, each with the probability min(1, p/q)."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A drafter has proposed $\gamma$ tokens for each row of a batch; the target has read them all in one pass. A
draft $x$ that was drawn from $q$ **stands** (is accepted) with probability

$$\min\!\left(1, \frac{p(x)}{q(x)}\right),$$

provided that all drafts before it stand (Leviathan et al. 2023); else it **falls**. What the target finds at
least as likely as the drafter stands for certain; what it would never write falls for certain.

Write `accept_drafts(p, q, drafts, uniforms)`.

- `p`: `float32` tensor of shape `(B, T, V)` with $T = \gamma + 1$: `p[b, i]` is what the target gives each
  token at the place of draft `i`, and `p[b, -1]` is for the token after all of them.
- `q`: `float32` tensor of shape `(B, G, V)` with $G = \gamma$: `q[b, i]` is what draft `i` was drawn from. It
  is never 0 at the draft itself.
- `drafts`: `int64` tensor of shape `(B, G)`.
- `uniforms`: `float32` tensor of shape `(B, G)`, numbers in [0, 1), one for each draft: it stands if its
  number is **less** than the ratio.
- returns how many drafts of each row stand, an `int64` tensor of shape `(B,)`.

```python
>>> p = torch.tensor([[[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]])
>>> q = torch.tensor([[[0.25, 0.75], [0.8, 0.2]]])
>>> drafts = torch.tensor([[1, 0]])                             # with ratios 2/3 and 1/4
>>> accept_drafts(p, q, drafts, torch.tensor([[0.6, 0.1]]))
tensor([2])
>>> accept_drafts(p, q, drafts, torch.tensor([[0.7, 0.1]]))     # the second does not count without the first
tensor([0])
```
"""

HINTS = (
    "Only two numbers of a place matter: what p and what q give the draft itself. Get these first, as two "
    "tensors of shape (B, G).",
    "gather(2, drafts[..., None])[..., 0] takes them, from q and from p without its last place. A draft's "
    "number is compared with their ratio; where that is above 1, every number is less.",
    "With stood = uniforms * q_draft < p_draft, a running product along the row is 1 up to the first that "
    "fell: stood.long().cumprod(-1).sum(-1).",
)

ALWAYS = "A draft was kept that the target doubts: p/q is below its number here. Look at each draft's ratio."
Q_MOVED = (
    "q is read at another place than the draft: q[b, i] is what draft i was drawn from, and p[b, i] judges "
    "it. Only p has a place more, at its end."
)
P_MOVED = (
    "p is read one place late: p[b, i] is for the token at the place of draft i, so the last of the G + 1 is "
    "the one left out."
)
BIASED = (
    "The ratio here and the number are closer than 10 %, and the draft is judged as if the ratio were larger "
    "or smaller. A rule that is nearly min(1, p/q) writes a text that is nearly the target's."
)
HINTS_AT = {
    "standing again after a fall": (
        "After the first draft that falls, the others were read on from a text that will not be: they fall "
        "too, whatever their numbers say."
    ),
    "none stands": "Where the first draft falls, none of the row stands: 0 is a count too.",
    "all stand": "There are G drafts, so at most G can stand; the token after them is no draft.",
    "several rows": "Each row has a count of its own, whatever the others do.",
    "a close call": BIASED,
    "more likely to the target": "A ratio of at least 1 is more than any number in [0, 1): it stands.",
    "never written by the target": (
        "With p = 0 the ratio is 0, and no number is less than that, 0 itself included: less, not equal."
    ),
}


def accept_drafts(
    p: Float[Tensor, "B T V"],
    q: Float[Tensor, "B G V"],
    drafts: Int[Tensor, "B G"],
    uniforms: Float[Tensor, "B G"],
) -> Int[Tensor, " B"]:
    """Counts up to the first draft whose number is not below p/q."""
    return _count(p, q, drafts, uniforms)


def _ratios(p, q, drafts):
    of_drafts = (side.gather(2, drafts[..., None])[..., 0] for side in (p[:, :-1], q))
    p_drafts, q_drafts = of_drafts
    return p_drafts / q_drafts


def _count(p, q, drafts, uniforms, stood=lambda uniforms, ratio: uniforms < ratio):
    """`stood` says which drafts stand by themselves: what most mutants get wrong."""
    return stood(uniforms, _ratios(p, q, drafts)).long().cumprod(-1).sum(-1)


def cases(rng: random.Random) -> list[Case]:
    vocab, gamma = rng.randint(7, 9), rng.randint(5, 6)

    def case(label, counts, wrong=(), apart=(), **settings):
        def draw():
            rows = [_row(rng, vocab, gamma, count, **settings) for count in counts]
            p, q, drafts, uniforms = zip(*rows, strict=True)
            return {
                "p": drawn.distributions(p),
                "q": drawn.distributions(q),
                "drafts": torch.tensor(drafts),
                "uniforms": torch.tensor(uniforms, dtype=torch.float32),
            }

        return Case(drawn.telling(draw, accept_drafts, wrong, apart), label)

    return [
        case("one row", [rng.randint(1, gamma - 2)], OTHERS, MOVED),
        case("standing again after a fall", [rng.randint(1, gamma - 2)], again=True),
        case("none stands", [0]),
        case("all stand", [gamma]),
        case("several rows", [2, gamma, 0, 1], (_first_row_for_all, _worst_row_for_all, _flat)),
        case(
            "a close call", [gamma, gamma - 2, gamma - 1], (_ten_percent_more, _ten_percent_less), near=True
        ),
        case("more likely to the target", [gamma, 2], sure=True),
        case("never written by the target", [rng.randint(1, gamma - 2)], never=True),
    ]


def _row(rng, vocab, gamma, count, again=False, near=False, sure=False, never=False):
    """Distributions in parts, drafts and numbers of a row of which so many drafts stand.

    Args:
        again: whether those behind the one that falls would stand.
        near: whether numbers are within some percent of the ratio.
        sure: whether the target finds those that stand likelier than the drafter.
        never: whether the target gives nothing to the one that falls, whose number is 0.
    """
    places = [drawn.shares(rng, vocab) for _ in range(gamma + 1)]
    drafters, drafts, uniforms = [], [], []
    for place in range(gamma):
        p = places[place]
        q, draft = drawn.doubted(rng, p)
        stands = place < count or (again and place > count)
        if sure and stands:
            p, q = q, p  # the draft that was doubted is the target's favourite now
            places[place] = p
            uniform = drawn.point(rng, 0.95, 1.0)
        elif never and place == count:
            p[(draft + 1) % vocab] += p[draft]
            p[draft], uniform = 0, 0.0
        elif near:
            low, high = (0.93, 0.98) if stands else (1.02, 1.07)
            uniform = drawn.point(rng, low * p[draft] / q[draft], high * p[draft] / q[draft])
        else:
            uniform = (drawn.stands if stands else drawn.falls)(rng, p[draft], q[draft])
        drafters.append(q)
        drafts.append(draft)
        uniforms.append(uniform)
    return places, drafters, drafts, uniforms


def _always(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: ratio >= 0)


def _without_chance(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: ratio >= 1)


def _upside_down(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: uniforms < 1 / ratio)


def _falls_for_stands(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: uniforms >= ratio)


def _of_p_alone(p, q, drafts, uniforms):
    return _count(p, torch.ones_like(q), drafts, uniforms)


def _q_one_place_early(p, q, drafts, uniforms):
    return _count(p, q.roll(1, 1), drafts, uniforms)


def _p_one_place_late(p, q, drafts, uniforms):
    return _count(p.roll(-1, 1), q, drafts, uniforms)


def _the_likeliest(p, q, drafts, uniforms):
    return (p[:, :-1].argmax(-1) == drafts).long().cumprod(-1).sum(-1)


def _counts_all(p, q, drafts, uniforms):
    return (uniforms < _ratios(p, q, drafts)).sum(-1)


def _at_least_one(p, q, drafts, uniforms):
    return accept_drafts(p, q, drafts, uniforms).clamp(min=1)


def _never_all(p, q, drafts, uniforms):
    return accept_drafts(p, q, drafts, uniforms).clamp(max=drafts.shape[1] - 1)


def _counts_the_bonus(p, q, drafts, uniforms):
    counts = accept_drafts(p, q, drafts, uniforms)
    return counts + (counts == drafts.shape[1])


def _first_row_for_all(p, q, drafts, uniforms):
    return accept_drafts(p, q, drafts, uniforms)[:1].expand(len(drafts)).clone()


def _worst_row_for_all(p, q, drafts, uniforms):
    return torch.full((len(drafts),), int(accept_drafts(p, q, drafts, uniforms).min()))


def _flat(p, q, drafts, uniforms):
    """The running product goes on from row to row."""
    stood = (uniforms < _ratios(p, q, drafts)).long()
    return stood.flatten().cumprod(0).view_as(stood).sum(-1)


def _ten_percent_more(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: uniforms < 1.1 * ratio)


def _ten_percent_less(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: uniforms < 0.9 * ratio)


def _ratio_below_one(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: (uniforms < ratio) & (ratio < 1))


def _or_equal(p, q, drafts, uniforms):
    return _count(p, q, drafts, uniforms, lambda uniforms, ratio: uniforms <= ratio)


def _in_place(p, q, drafts, uniforms):
    counts = accept_drafts(p, q, drafts, uniforms)
    uniforms.mul_(q.gather(2, drafts[..., None])[..., 0])
    return counts


MOVED = (_q_one_place_early, _p_one_place_late)
OTHERS = (_always, _without_chance, _upside_down, _falls_for_stands, _of_p_alone, _the_likeliest)

EXERCISE = Exercise(
    name="04.accept_drafts",
    function="accept_drafts",
    title="Which drafts stand",
    points=9,
    minutes=15,
    level=2,
    asks=ASKS,
    signature="accept_drafts(p, q, drafts, uniforms)",
    cases=cases,
    reference=accept_drafts,
    comparison=Close(axes=("row",)),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("always accepts", _always, "one row", ALWAYS),
        Mutant("leaves nothing to chance", _without_chance, "one row"),
        Mutant("has the ratio upside down", _upside_down, "one row"),
        Mutant("takes what falls for what stands", _falls_for_stands, "one row"),
        Mutant("looks at p alone", _of_p_alone, "one row"),
        Mutant("reads q at the wrong place", _q_one_place_early, "one row", Q_MOVED),
        Mutant("reads p one place late", _p_one_place_late, "one row", P_MOVED),
        Mutant("accepts the likeliest token", _the_likeliest, "one row"),
        Mutant("counts what stands behind a fall", _counts_all, "standing again after a fall"),
        Mutant("accepts one at least", _at_least_one, "none stands"),
        Mutant("never accepts all", _never_all, "all stand"),
        Mutant("counts the token after all drafts", _counts_the_bonus, "all stand"),
        Mutant("treats all rows as the first", _first_row_for_all, "several rows"),
        Mutant("treats all rows as the worst", _worst_row_for_all, "several rows"),
        Mutant("goes on counting from row to row", _flat, "several rows"),
        Mutant("accepts 10 % more often", _ten_percent_more, "a close call", BIASED),
        Mutant("accepts 10 % less often", _ten_percent_less, "a close call", BIASED),
        Mutant("refuses what is surely right", _ratio_below_one, "more likely to the target"),
        Mutant("accepts at equality", _or_equal, "never written by the target"),
        Mutant("changes its input", _in_place, NoMutation().name),
    ),
)

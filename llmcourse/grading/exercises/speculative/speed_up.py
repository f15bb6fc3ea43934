"""04.speed_up: tokens a step, and how many times faster that is."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK

ASKS = r"""
Does drafting pay? Say that each draft stands with the same chance $\alpha$, given that those before it do. A
step of $\gamma$ drafts writes the drafts that stand and one token more, the target's own. On average these
are

$$E = 1 + \alpha + \alpha^2 + \dots + \alpha^\gamma$$

tokens. Decoding without drafts would need $E$ passes of the target for them. The step needs one pass, which
reads all drafts at once and takes no longer for that ($v = 1$ in chapter 4), and $\gamma$ drafts, each of
which costs $c$ such passes.

Write `speed_up(alpha, gamma, c)`.

- `alpha`: a number in [0, 1]. `gamma`: an int, at least 0. `c`: a number, at least 0.
- returns `(tokens, faster)`: the expected tokens of a step, and how many times faster than decoding without
  drafts that is. Below 1 it is slower.

```python
>>> speed_up(alpha=0.5, gamma=2, c=0.25)
(1.75, 1.1666666666666667)
>>> tokens, faster = speed_up(alpha=0.8, gamma=5, c=0.05)
>>> round(tokens, 3), round(faster, 2)
(3.689, 2.95)
```
"""

HINTS = (
    "Two questions: how many tokens does a step write, and how many passes of the target would its time be "
    "enough for? The second is the time of the drafts plus that of one pass.",
    "The sum has γ + 1 terms, from α⁰ = 1 on: sum(alpha**i for i in range(gamma + 1)). The closed form "
    "(1 - α^(γ+1)) / (1 - α) says the same, but not where α is 1.",
    "faster = tokens / (gamma * c + 1).",
)

NO_BONUS = (
    "The token after the drafts is missing: even a step whose drafts all fall writes one token of the "
    "target's own. The sum goes up to α^γ and has γ + 1 terms."
)
HINTS_AT = {
    "all drafts stand": (
        "Where α = 1 each of the γ + 1 terms is 1. The closed form of the sum would divide by 0 there."
    ),
    "no draft stands": "With α = 0 only the target's own token is left; 0**0 is 1 in Python.",
    "no drafts": "With γ = 0 a step is a pass of the target, as without drafts: one token, nothing gained.",
    "drafts that cost nothing": "With c = 0 a step takes as long as a pass: as many times faster as tokens.",
    "drafts that do not pay": "A speed-up below 1 is an answer too: then drafting makes it slower.",
}


def speed_up(alpha: float | int, gamma: int, c: float | int) -> tuple[float, float]:
    """A geometric sum, over the time of a step in passes of the target."""
    tokens = float(sum(alpha**place for place in range(gamma + 1)))
    return tokens, tokens / (gamma * c + 1)


def cases(rng: random.Random) -> list[Case]:
    def case(label, alpha, gamma, c):
        return Case({"alpha": alpha, "gamma": gamma, "c": c}, label)

    def gamma():
        return rng.randint(3, 9)

    def alpha():
        return round(rng.uniform(0.4, 0.9), 3)

    def cost():
        return round(rng.uniform(0.05, 0.3), 3)

    return [
        case("a small drafter", alpha(), gamma(), cost()),
        case("a single draft", alpha(), 1, cost()),
        case("all drafts stand", 1.0, gamma(), cost()),
        case("no draft stands", 0.0, gamma(), cost()),
        case("no drafts", alpha(), 0, cost()),
        case("drafts that cost nothing", alpha(), gamma(), 0.0),
        case(
            "drafts that do not pay", round(rng.uniform(0.1, 0.3), 3), gamma(), round(rng.uniform(0.5, 2), 3)
        ),
    ]


def _no_bonus(alpha, gamma, c):
    tokens = sum(alpha**place for place in range(gamma))
    return float(tokens), tokens / (gamma * c + 1)


def _only_drafts(alpha, gamma, c):
    tokens = sum(alpha**place for place in range(1, gamma + 1))
    return float(tokens), tokens / (gamma * c + 1)


def _as_if_independent(alpha, gamma, c):
    tokens = 1 + alpha * gamma
    return float(tokens), tokens / (gamma * c + 1)


def _drafts_for_free(alpha, gamma, c):
    tokens, _ = speed_up(alpha, gamma, c)
    return tokens, tokens


def _one_draft_paid(alpha, gamma, c):
    tokens, _ = speed_up(alpha, gamma, c)
    return tokens, tokens / (c + 1)


def _pass_for_free(alpha, gamma, c):
    tokens, _ = speed_up(alpha, gamma, c)
    return tokens, tokens / (gamma * c) if gamma * c else float("inf")


def _a_pass_for_each_draft(alpha, gamma, c):
    tokens, _ = speed_up(alpha, gamma, c)
    return tokens, tokens / (gamma * c + gamma + 1)


def _pays_for_what_stands(alpha, gamma, c):
    tokens, _ = speed_up(alpha, gamma, c)
    return tokens, tokens / (alpha * gamma * c + 1)


def _swapped(alpha, gamma, c):
    return speed_up(alpha, gamma, c)[::-1]


def _divides_by_0(alpha, gamma, c):
    tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)
    return tokens, tokens / (gamma * c + 1)


def _a_token_where_all_stand(alpha, gamma, c):
    return speed_up(alpha, gamma, c) if alpha < 1 else (1.0, 1 / (gamma * c + 1))


def _nothing_where_none_stands(alpha, gamma, c):
    return speed_up(alpha, gamma, c) if alpha > 0 else (0.0, 0.0)


def _at_least_a_draft(alpha, gamma, c):
    return speed_up(alpha, max(1, gamma), c)


def _never_slower(alpha, gamma, c):
    tokens, faster = speed_up(alpha, gamma, c)
    return tokens, max(1.0, faster) if 0 < alpha < 0.35 else faster


EXERCISE = Exercise(
    name="04.speed_up",
    function="speed_up",
    title="Does drafting pay?",
    points=5,
    minutes=10,
    level=1,
    asks=ASKS,
    signature="speed_up(alpha, gamma, c)",
    cases=cases,
    reference=speed_up,
    comparison=Parts({"tokens": Near(), "faster": Near()}),
    rules=(OWN_WORK,),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("forgets the target's own token", _no_bonus, "a small drafter", NO_BONUS),
        Mutant("counts drafts only", _only_drafts, "a small drafter", NO_BONUS),
        Mutant(
            "counts drafts behind one that fell",
            _as_if_independent,
            "a small drafter",
            "1 + α γ counts every draft that is right. A draft counts only if all before it stand too: draft "
            "i with α to the power of i.",
        ),
        Mutant("has drafts for nothing", _drafts_for_free, "a small drafter"),
        Mutant("pays for one draft", _one_draft_paid, "a small drafter"),
        Mutant("has the target's pass for nothing", _pass_for_free, "a small drafter"),
        Mutant(
            "pays a pass for each token",
            _a_pass_for_each_draft,
            "a small drafter",
            "The target reads all drafts in one pass, which is the whole point: the step costs γ drafts and "
            "one pass.",
        ),
        Mutant("pays for drafts that stand", _pays_for_what_stands, "a small drafter"),
        Mutant("gives the two the other way round", _swapped, "a small drafter"),
        Mutant("divides by 0", _divides_by_0, "all drafts stand"),
        Mutant("writes one token where all stand", _a_token_where_all_stand, "all drafts stand"),
        Mutant("writes nothing where none stands", _nothing_where_none_stands, "no draft stands"),
        Mutant("drafts at least one", _at_least_a_draft, "no drafts"),
        Mutant("is never slower", _never_slower, "drafts that do not pay"),
    ),
)

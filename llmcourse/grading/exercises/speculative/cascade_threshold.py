"""04.cascade_threshold: when a small model's answer is enough, chosen on questions that are held out."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

HELD_OUT, TEST = 16, 10  # questions; shares of 16 are exact in float32 too

ASKS = r"""
A cascade asks a small model first. A judge scores its answer; where the score is at least a threshold the
answer is kept, elsewhere a large model answers the question and its answer is taken. The lower the threshold,
the cheaper; how many answers are right then has to be tried, on questions that are **held out** for it. What
the threshold is worth is measured on others, the **test**: it suits the questions that it was chosen on
better than it should.

Write `cascade_threshold(held_out, test, large_cost, quality)`.

- `held_out`, `test`: lists of questions, each a tuple `(score, small, large)`: the judge's score of the small
  model's answer, a float with $0 \le$ `score` $< 1$; whether the small model's answer is right, and whether
  the large one's is, two bools. Scores may be equal.
- `large_cost`: what an answer of the large model costs, a positive number; one of the small model costs 1,
  and has to be paid for **every** question.
- `quality`: the least share of the held-out questions that the cascade has to answer right; in [0, 1].
- returns `(threshold, right, cost)`: the cheapest threshold of that quality on `held_out`; the share of
  `test` that the cascade answers right with it, and its mean cost there.

Only scores that occur in `held_out` are tried, and 1.0, with which no small answer is kept. Of those of the
required quality take the one that keeps most answers, the lowest. Quality goes up and down with the
threshold, so try all. Raise a `ValueError` where none reaches it.

```python
>>> held_out = [(0.9, True, True), (0.7, True, False), (0.4, False, True), (0.2, False, False)]
>>> test = [(0.8, True, True), (0.5, False, True), (0.3, True, True), (0.1, False, True)]
>>> cascade_threshold(held_out, test, large_cost=6.0, quality=0.75)
(0.7, 1.0, 5.5)
```
"""

HINTS = (
    "Write a function first that says what a cascade makes of a list of questions with a threshold: the "
    "share that is right, and the mean cost. It serves for both lists.",
    "A question is right if (small if score >= threshold else large). It costs 1, and large_cost more if "
    "score < threshold.",
    "Candidates: sorted({score for score, _, _ in held_out} | {1.0}). The first of them with enough right "
    "answers on held_out is the threshold; right and cost are those on test.",
)

ON_TEST = (
    "That is chosen on the test questions, or measured on those it was chosen on. Choose on held_out alone, "
    "measure on test alone: else the figure promises more than new questions will keep."
)
EITHER = (
    "A question counts as right here if either model is right. Where the large model is asked, its answer is "
    "taken, also where the small one was right after all."
)
COST = (
    "Every question pays 1 for the small model, those that go on to the large one as well: they pay "
    "1 + large_cost."
)
HINTS_AT = {
    "quality that goes up and down": (
        "Somewhere above the right threshold the quality is too low for a while. A search that stops there "
        "never sees the cheaper one below: try every score."
    ),
    "exactly the quality": "At least so much is asked for: a threshold that reaches it exactly is enough.",
    "equal scores": (
        "Answers of one score are all kept or all given on: no threshold lies between them. Sort scores, not "
        "questions."
    ),
    "the large model alone": "Where no score will do, 1.0 may: then the large model answers every question.",
    "the small model is enough": "The lowest score that occurs keeps all small answers.",
    "more than can be had": "Look at all candidates, 1.0 too; if none reaches the quality, a ValueError.",
}


def cascade_threshold(
    held_out: list[tuple[float, bool, bool]],
    test: list[tuple[float, bool, bool]],
    large_cost: float | int,
    quality: float | int,
) -> tuple[float, float, float]:
    """The lowest threshold that is good enough on held-out questions, and what it does on others."""
    for threshold in _candidates(held_out):
        if _tried(held_out, threshold, large_cost)[0] >= quality:
            return threshold, *_tried(test, threshold, large_cost)
    raise ValueError(f"quality must be one that a threshold reaches, got {quality}")


def _candidates(questions):
    return sorted({score for score, _, _ in questions} | {1.0})


def _tried(questions, threshold, large_cost, kept=lambda score, threshold: score >= threshold):
    right = [small if kept(score, threshold) else large for score, small, large in questions]
    asked = [not kept(score, threshold) for score, _, _ in questions]
    return sum(right) / len(right), 1 + large_cost * sum(asked) / len(asked)


def _shares(questions):
    """Of each candidate, how many answers are right: as `_tried` has it, by one walk over all questions."""
    right, found = sum(small for _, small, _ in questions), {}
    for score, small, large in sorted(questions):
        found.setdefault(score, right)
        right += large - small
    return [count / len(questions) for count in (*found.values(), right)]


def cases(rng: random.Random) -> list[Case]:
    def questions(count, values):
        drawn_scores = rng.sample(range(20, 980), values)
        scores = [*drawn_scores, *(rng.choice(drawn_scores) for _ in range(count - values))]
        rng.shuffle(scores)
        return [(s / 1000, rng.random() < 0.2 + 0.8 * s / 1000, rng.random() < 0.85) for s in scores]

    def case(label, fits, values=HELD_OUT, wrong=(), apart=(), missed=0.5, raises=None):
        """Questions that fit: by which candidates reach the quality, from the lowest on.

        Args:
            missed: right answers by which the required quality lies below a whole number of them.
        """

        def draw():
            while True:
                held_out, test = questions(HELD_OUT, values), questions(TEST, TEST)
                quality = (rng.randint(6, HELD_OUT) - missed) / HELD_OUT
                shares = _shares(held_out)
                if fits([share >= quality for share in shares], quality in shares):
                    arguments = {"held_out": held_out, "test": test, "large_cost": rng.randint(3, 20)}
                    return arguments | {"quality": quality}

        arguments = draw() if raises else drawn.telling(draw, cascade_threshold, wrong, apart)
        return Case(arguments, label, raises=raises)

    def inside(reached, exact):
        return reached == sorted(reached) and 2 <= reached.count(True) - 1 <= len(reached) - 3

    def up_and_down(reached, exact):
        return not reached[0] and reached[-1] and False in reached[reached.index(True) :]

    return [
        case("a threshold", inside, wrong=DOUBTED, apart=TOLD),
        case("quality that goes up and down", up_and_down),
        case("exactly the quality", lambda *found: inside(*found) and found[1], missed=0, wrong=(_more,)),
        case("equal scores", inside, values=6, wrong=(_by_rank,)),
        case("the large model alone", lambda reached, exact: reached[-1] and not any(reached[:-1])),
        case("the small model is enough", lambda reached, exact: all(reached)),
        case("more than can be had", lambda reached, exact: not any(reached), raises=ValueError),
    ]


def _first(held_out, quality, candidates, **kept):
    found = [t for t in candidates if _tried(held_out, t, 1, **kept)[0] >= quality]
    if not found:
        raise ValueError("none")
    return found[0]


def _chosen_on_test(held_out, test, large_cost, quality):
    threshold = _first(test, quality, _candidates(held_out))
    return threshold, *_tried(test, threshold, large_cost)


def _all_on_test(held_out, test, large_cost, quality):
    return cascade_threshold(test, test, large_cost, quality)


def _either_is_right(held_out, test, large_cost, quality):
    held_out, test = ([(s, small, small or large) for s, small, large in side] for side in (held_out, test))
    return cascade_threshold(held_out, test, large_cost, quality)


def _measured_where_chosen(held_out, test, large_cost, quality):
    threshold = cascade_threshold(held_out, test, large_cost, quality)[0]
    return threshold, *_tried(held_out, threshold, large_cost)


def _small_for_free(held_out, test, large_cost, quality):
    threshold, right, cost = cascade_threshold(held_out, test, large_cost, quality)
    return threshold, right, cost - 1


def _one_or_the_other_paid(held_out, test, large_cost, quality):
    threshold, right, cost = cascade_threshold(held_out, test, large_cost, quality)
    return threshold, right, cost - (cost - 1) / large_cost


def _large_always_paid(held_out, test, large_cost, quality):
    return *cascade_threshold(held_out, test, large_cost, quality)[:2], float(1 + large_cost)


def _highest(held_out, test, large_cost, quality):
    threshold = _first(held_out, quality, _candidates(held_out)[::-1])
    return threshold, *_tried(test, threshold, large_cost)


def _best(held_out, test, large_cost, quality):
    threshold = max(_candidates(held_out), key=lambda t: _tried(held_out, t, 1)[0])
    return threshold, *_tried(test, threshold, large_cost)


def _above_only(held_out, test, large_cost, quality):
    kept = {"kept": lambda score, threshold: score > threshold}
    threshold = _first(held_out, quality, _candidates(held_out), **kept)
    return threshold, *_tried(test, threshold, large_cost, **kept)


def _the_other_way(held_out, test, large_cost, quality):
    kept = {"kept": lambda score, threshold: score < threshold}
    threshold = _first(held_out, quality, _candidates(held_out), **kept)
    return threshold, *_tried(test, threshold, large_cost, **kept)


def _the_score_for_the_quality(held_out, test, large_cost, quality):
    return quality, *_tried(test, quality, large_cost)


def _down_to_the_first_miss(held_out, test, large_cost, quality):
    threshold = cascade_threshold(held_out, test, large_cost, quality)[0]
    for candidate in _candidates(held_out)[::-1]:
        if _tried(held_out, candidate, 1)[0] < quality:
            break
        threshold = candidate
    return threshold, *_tried(test, threshold, large_cost)


def _more(held_out, test, large_cost, quality):
    return cascade_threshold(held_out, test, large_cost, quality + 1e-9)


def _by_rank(held_out, test, large_cost, quality):
    """Keeps the best so many answers, wherever their scores are equal."""
    ranked = sorted(held_out, key=lambda question: -question[0])
    for count in range(len(ranked), -1, -1):
        right = sum(question[1] for question in ranked[:count])
        right += sum(question[2] for question in ranked[count:])
        if right / len(ranked) >= quality:
            threshold = ranked[count - 1][0] if count else 1.0
            return threshold, *_tried(test, threshold, large_cost)
    raise ValueError("none")


def _without_1(held_out, test, large_cost, quality):
    threshold = _first(held_out, quality, _candidates(held_out)[:-1])
    return threshold, *_tried(test, threshold, large_cost)


def _never_all(held_out, test, large_cost, quality):
    threshold = _first(held_out, quality, _candidates(held_out)[1:])
    return threshold, *_tried(test, threshold, large_cost)


def _from_0(held_out, test, large_cost, quality):
    threshold = _first(held_out, quality, [0.0, *_candidates(held_out)])
    return threshold, *_tried(test, threshold, large_cost)


def _large_instead(held_out, test, large_cost, quality):
    try:
        return cascade_threshold(held_out, test, large_cost, quality)
    except ValueError:
        return 1.0, *_tried(test, 1.0, large_cost)


def _sorts_in_place(held_out, test, large_cost, quality):
    result = cascade_threshold(held_out, test, large_cost, quality)
    held_out.sort()
    return result


TOLD = (
    *(_chosen_on_test, _measured_where_chosen, _all_on_test, _either_is_right, _small_for_free),
    *(_one_or_the_other_paid, _large_always_paid, _highest, _best, _above_only),
)
DOUBTED = (_the_other_way, _the_score_for_the_quality)

EXERCISE = Exercise(
    name="04.cascade_threshold",
    function="cascade_threshold",
    title="When a small model is enough",
    points=9,
    minutes=20,
    level=4,
    asks=ASKS,
    signature="cascade_threshold(held_out, test, large_cost, quality)",
    cases=cases,
    reference=cascade_threshold,
    comparison=Parts({"threshold": Near(), "right": Near(), "cost": Near()}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("chooses on the test", _chosen_on_test, "a threshold", ON_TEST),
        Mutant("measures where it chose", _measured_where_chosen, "a threshold", ON_TEST),
        Mutant("does all on the test", _all_on_test, "a threshold", ON_TEST),
        Mutant("counts a question that either model has right", _either_is_right, "a threshold", EITHER),
        Mutant("has the small model for nothing", _small_for_free, "a threshold", COST),
        Mutant("pays for one model a question", _one_or_the_other_paid, "a threshold", COST),
        Mutant("always pays for both", _large_always_paid, "a threshold", COST),
        Mutant(
            "takes the highest threshold",
            _highest,
            "a threshold",
            "That is the dearest threshold that is good enough: it keeps fewest answers of the small model. "
            "The lowest keeps most.",
        ),
        Mutant(
            "takes the best threshold",
            _best,
            "a threshold",
            "That is the best that held-out questions can be answered. Less is asked for, and is cheaper.",
        ),
        Mutant(
            "keeps only what is above the threshold",
            _above_only,
            "a threshold",
            "A score that is the threshold itself is at least the threshold: that answer is kept.",
        ),
        Mutant("keeps what is doubted", _the_other_way, "a threshold"),
        Mutant("takes the quality for the threshold", _the_score_for_the_quality, "a threshold"),
        Mutant("stops at the first miss", _down_to_the_first_miss, "quality that goes up and down"),
        Mutant("asks for more than the quality", _more, "exactly the quality"),
        Mutant("puts a threshold between equal scores", _by_rank, "equal scores"),
        Mutant("does not try 1.0", _without_1, "the large model alone"),
        Mutant("never keeps all", _never_all, "the small model is enough"),
        Mutant("tries 0 too", _from_0, "the small model is enough"),
        Mutant("takes the large model for want of a threshold", _large_instead, "more than can be had"),
        Mutant("sorts its input", _sorts_in_place, NoMutation().name),
    ),
)

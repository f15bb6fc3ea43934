"""04.entropy_exit: leave at the first layer whose distribution is narrow, and run no further one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmcourse.grading.compare import Exact, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises.early_exit import drawn as exits
from llmcourse.grading.exercises.early_exit.layers import (
    Plan,
    just_below,
    with_a_certain_one,
    with_a_far_one,
    with_a_tie,
    with_few_possible,
)
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import OracleCalls

ASKS = r"""
Not every token needs all layers. Give each layer an exit, a head that says what it thinks so far, and stop
where that is sure: where the **entropy** of its distribution is low (DeeBERT, Xin et al. 2020; chapter 4,
*Early exit*),

$$H = -\sum_x p(x) \ln p(x), \qquad p = \mathrm{softmax}(\text{logits}),$$

in nats, over all tokens, with $0 \ln 0 = 0$: also where a finite logit is so far below the others that its
$p$ is 0 in `float32`. The layers behind that exit are not run at all, which is what is gained.

Write `entropy_exit(exit_logits, num_layers, threshold)`.

- `exit_logits`: a function. `exit_logits(n)` runs layer `n`, the first being 1, and returns what its exit
  says, a `float32` tensor of shape `(V,)`. Logits may be `-inf`: these answers are impossible.
- `num_layers`: how many layers there are, at least 1. The last one is the model's own: whoever gets there
  answers there, sure or not.
- `threshold`: in nats, at least 0.
- returns `(layer, answer)`, two ints: the first layer whose entropy, unrounded, is **less** than the
  threshold, else the last; and the likeliest answer there, the first of several that are as likely.

Each layer is run once, in order, and none behind the exit.

```python
>>> said = [torch.tensor([1.0, 0.0, 0.9]), torch.tensor([0.0, 4.0, 0.0]), torch.tensor([9.0, 0.0, 0.0])]
>>> def exit_logits(n):
...     print("runs layer", n)
...     return said[n - 1]
>>> entropy_exit(exit_logits, 3, threshold=0.3)         # the entropies are 1.03, 0.18 and 0.0025
runs layer 1
runs layer 2
(2, 1)
```
"""

HINTS = (
    "A loop over the layers from 1 on, that ends as soon as one is sure. After the loop, the logits that "
    "were read last are those that answer.",
    "log_p = logits.log_softmax(-1); the entropy is -(log_p.exp() * log_p).sum(). Where log_p is -inf, "
    "0 * -inf is NaN: replace these terms by 0.",
    "terms = torch.where(log_p == -math.inf, 0.0, log_p.exp() * log_p). Leave if -terms.sum() < "
    "threshold, or if n == num_layers; the answer is int(logits.argmax()).",
)

BITS = (
    "These are bits: log2 gives numbers that are 1.44 times as large. The threshold is in nats, as the "
    "natural logarithm gives them."
)
FIRST = (
    "It leaves at the first layer, which knows least. Either it compares the other way round, or the "
    "entropy has lost its minus sign: then it is negative, and below any threshold."
)
SHARE = (
    "That is less than the entropy in nats: is something else compared, a share of its largest value ln V, "
    "or 1 - max p?"
)
LATE = "It leaves a layer after the one that was sure. The layer whose entropy is below answers itself."
FROM_0 = "The first layer is number 1: exit_logits(1) is what it says, and 1 the least that can be returned."
LAST_ANSWER = "That is what the last layer would have answered. The answer is that of the exit."
SUREST = "That is the surest of all layers. The first that is sure enough ends it: no later one is run."
HINTS_AT = {
    "never sure": "Where no layer is sure, the last one answers.",
    "a threshold of 0": (
        "Less, not equal: nothing is below 0, so that a threshold of 0 runs all layers, also where one is "
        "certain. (With a small number added within the logarithm an entropy can come out below 0.)"
    ),
    "impossible answers": (
        "A logit of -inf has p = 0, and 0 times its logarithm, -inf, is NaN. In the entropy such a term "
        "counts 0. Replace terms, not logits: with any other logit in its place, p is not 0. And the answer "
        "is a token's number in the whole vocabulary."
    ),
    "next to impossible": (
        "A logit far below the peak is finite, but its p is 0 in float32, and the logarithm of that -inf. "
        "logits.log_softmax(-1) stays finite there; or let every term with p = 0 count 0."
    ),
    "many answers": (
        "The sum is over all tokens: where there are many, the unlikely ones together count for much."
    ),
    "just below the threshold": "Compare the entropy as it is; nothing is to be rounded.",
    "two favourites": "Of several as likely answers take the first, as argmax does.",
    "layers run": (
        "A layer was run for nothing, or twice. Stop the loop at the exit, and keep what a layer said "
        "instead of asking again."
    ),
}


def entropy_exit(exit_logits: Callable, num_layers: int, threshold: float | int) -> tuple[int, int]:
    """Layer by layer, until one is sure."""
    return Leave()(exit_logits, num_layers, threshold)


def nats(logits: Tensor) -> Tensor:
    """The entropy."""
    log_p = logits.log_softmax(-1)
    return -torch.where(log_p == -math.inf, 0.0, log_p.exp() * log_p).sum()


@dataclass(frozen=True)
class Leave:
    """The loop; the fields are what mutants get wrong.

    Args:
        measure: of the logits.
        sure: whether a measure is good enough for the threshold.
        answer: of the logits.
        shift: layers between the one that is sure and the one that answers.
        first: the number of the first layer, in what is returned.
    """

    measure: Callable = nats
    sure: Callable = lambda measure, threshold: measure < threshold
    answer: Callable = lambda logits: int(logits.argmax())
    shift: int = 0
    first: int = 1

    def __call__(self, exit_logits, num_layers, threshold):
        leaves = num_layers
        for number in range(1, num_layers + 1):
            logits = exit_logits(number)
            if number < leaves and self.sure(self.measure(logits), threshold):
                leaves = min(number + self.shift, num_layers)
            if number >= leaves:
                return number + self.first - 1, self.answer(logits)


def cases(rng: random.Random) -> list[Case]:
    def case(label, plan, wrong=(), apart=()):
        arguments = drawn.telling(lambda: plan.arguments(rng), entropy_exit, wrong, apart)
        shown = Oracle("exit_logits", f"a function; runs one of {plan.layers} layers, and gives logits")
        oracles = {"exit_logits": arguments["exit_logits"]}
        return Case({**arguments, "exit_logits": shown}, label, oracles)

    layers = rng.randint(7, 9)
    way = Plan(rng.randint(3, layers - 4), layers)
    never = replace(way, leaves=0)
    tied = replace(way, threshold=0.75, changed=with_a_tie)
    return [
        case("a layer on the way", way, apart=TOLD),
        case("never sure", never, (_only_if_sure, _the_first)),
        case("sure at once", replace(way, leaves=1), (_from_the_second,)),
        case(
            "a threshold of 0", replace(never, threshold=0.0, changed=with_a_certain_one), (_or_equal, _added)
        ),
        case("impossible answers", replace(way, changed=with_few_possible), IMPOSSIBLE),
        case("next to impossible", replace(way, changed=with_a_far_one), (_far_is_not_a_number,)),
        case("two favourites", tied, (_last_of_equals,)),
        case("many answers", replace(way, row=exits.with_tail, more=(40, 50)), (_of_20,)),
        case("just below the threshold", just_below(rng, way), (_rounded,)),
        case("a single layer", Plan(1, 1)),
    ]


_bits = Leave(measure=lambda logits: nats(logits) / math.log(2))
_other_way = Leave(sure=lambda measure, threshold: measure > threshold)
_no_sign = Leave(measure=lambda logits: -nats(logits))
_share = Leave(measure=lambda logits: nats(logits) / math.log(len(logits)))
_late = Leave(shift=1)
_from_0 = Leave(first=0)
_or_equal = Leave(sure=lambda measure, threshold: measure <= threshold)
_not_a_number = Leave(measure=lambda logits: _plain(logits.softmax(-1)))
_as_0 = Leave(measure=lambda logits: nats(logits.nan_to_num(neginf=0.0)))
_clamped = Leave(measure=lambda logits: nats(logits.clamp(min=-10)))
_as_the_least = Leave(measure=lambda logits: nats(logits.clamp(min=logits[logits > -math.inf].min())))
_without_impossible = Leave(answer=lambda logits: int(logits[logits > -math.inf].argmax()))
_far_is_not_a_number = Leave(measure=lambda logits: _plain(logits.softmax(-1)[logits > -math.inf]))
_of_20 = Leave(measure=lambda logits: nats(logits.topk(min(20, len(logits))).values))
_added = Leave(measure=lambda logits: -(logits.softmax(-1) * (logits.softmax(-1) + 1e-6).log()).sum())
_rounded = Leave(measure=lambda logits: round(nats(logits).item(), 2))
_last_of_equals = Leave(answer=lambda logits: len(logits) - 1 - int(logits.flip(0).argmax()))


def _plain(p):
    """The entropy, or NaN where a probability is 0."""
    return -(p * p.log()).sum()


def _all_of(exit_logits, num_layers):
    return [exit_logits(number) for number in range(1, num_layers + 1)]


def _last_answer(exit_logits, num_layers, threshold):
    rows = _all_of(exit_logits, num_layers)
    layer, _ = entropy_exit(lambda number: rows[number - 1], num_layers, threshold)
    return layer, int(rows[-1].argmax())


def _surest(exit_logits, num_layers, threshold):
    found = [float(nats(logits)) for logits in _all_of(exit_logits, num_layers)]
    layer = found.index(min(found)) + 1
    return layer, int(exit_logits(layer).argmax())


def _the_first(exit_logits, num_layers, threshold):
    """The first layer for want of a sure one."""
    said = [exit_logits(1)]
    while len(said) < num_layers and not nats(said[-1]) < threshold:
        said.append(exit_logits(len(said) + 1))
    layer = len(said) if nats(said[-1]) < threshold else 1
    return layer, int(said[layer - 1].argmax())


def _only_if_sure(exit_logits, num_layers, threshold):
    for number in range(1, num_layers + 1):
        logits = exit_logits(number)
        if nats(logits) < threshold:
            return number, int(logits.argmax())
    return None


def _from_the_second(exit_logits, num_layers, threshold):
    exit_logits(1)
    for number in range(2, num_layers + 1):
        logits = exit_logits(number)
        if nats(logits) < threshold or number == num_layers:
            return number, int(logits.argmax())
    return 1, int(exit_logits(1).argmax())


def _runs_all(exit_logits, num_layers, threshold):
    rows = _all_of(exit_logits, num_layers)
    return entropy_exit(lambda number: rows[number - 1], num_layers, threshold)


def _asks_again(exit_logits, num_layers, threshold):
    layer, _ = entropy_exit(exit_logits, num_layers, threshold)
    return layer, int(exit_logits(layer).argmax())


IMPOSSIBLE = (_not_a_number, _as_0, _clamped, _as_the_least, _without_impossible)
AT_ONCE = (_or_equal, _added)
TOLD = (_bits, _other_way, _share, _late, _from_0, _last_answer, _surest)
RUN = OracleCalls("exit_logits", name="layers run")

EXERCISE = Exercise(
    name="04.entropy_exit",
    function="entropy_exit",
    title="Leave when it is sure",
    points=6,
    minutes=10,
    level=2,
    asks=ASKS,
    signature="entropy_exit(exit_logits, num_layers, threshold)",
    cases=cases,
    reference=entropy_exit,
    comparison=Parts({"layer": Exact(), "answer": Exact()}),
    rules=(RUN, OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("counts bits", _bits, "a layer on the way", BITS),
        Mutant("compares the other way", _other_way, "a layer on the way", FIRST),
        Mutant("forgets the sign", _no_sign, "a layer on the way", FIRST),
        Mutant("divides by the largest entropy", _share, "a layer on the way", SHARE),
        Mutant("leaves a layer late", _late, "a layer on the way", LATE),
        Mutant("counts layers from 0", _from_0, "a layer on the way", FROM_0),
        Mutant("answers as the last layer", _last_answer, "a layer on the way", LAST_ANSWER),
        Mutant("takes the surest layer", _surest, "a layer on the way", SUREST),
        Mutant("answers only where it is sure", _only_if_sure, "never sure"),
        Mutant("takes the first layer for want of a sure one", _the_first, "never sure"),
        Mutant("does not ask the first layer", _from_the_second, "sure at once"),
        Mutant("leaves at equality", _or_equal, "a threshold of 0"),
        Mutant("adds a small number within the logarithm", _added, "a threshold of 0"),
        Mutant("multiplies 0 by infinity", _not_a_number, "impossible answers"),
        Mutant("takes 0 for -inf", _as_0, "impossible answers"),
        Mutant("takes -10 for -inf", _clamped, "impossible answers"),
        Mutant("takes the least logit for -inf", _as_the_least, "impossible answers"),
        Mutant("counts possible answers only", _without_impossible, "impossible answers"),
        Mutant("multiplies a p of 0 by infinity", _far_is_not_a_number, "next to impossible"),
        Mutant("takes the last of two favourites", _last_of_equals, "two favourites"),
        Mutant("sums over the 20 likeliest", _of_20, "many answers"),
        Mutant("rounds to two digits", _rounded, "just below the threshold"),
        Mutant("runs all layers", _runs_all, RUN.name),
        Mutant("runs the last layer twice", _asks_again, RUN.name),
    ),
)

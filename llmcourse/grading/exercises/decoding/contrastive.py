"""01.contrastive: what the expert knows and the amateur does not, among what is plausible."""

from __future__ import annotations

import math
import random

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises import inputs
from llmcourse.grading.exercises.hints import KEEP_DTYPE
from llmcourse.grading.rules import Forbid, NewTensor, NoMutation

ASKS = r"""
*Contrastive decoding* (Li et al. 2022) scores a token by how much likelier it is to an expert than to an
amateur, among the tokens that the expert finds plausible:

$$s(v) = \begin{cases} \log P_{\text{expert}}(v) - \log P_{\text{amateur}}(v) &
\text{if } P_{\text{expert}}(v) \ge \alpha \max_w P_{\text{expert}}(w) \\ -\infty & \text{otherwise}
\end{cases}$$

Write `contrastive_scores(expert_logits, amateur_logits, alpha)`.

- `expert_logits`, `amateur_logits`: floating-point tensors of shape `(B, V)`. They are logits, not yet
  log-probabilities. A token may be `-inf` to the expert; it then scores `-inf`.
- `alpha`: a number in [0, 1]. 0 lifts the constraint, 1 leaves only the expert's most probable token.
- returns the scores, a **new** tensor of shape `(B, V)` and of the dtype of the logits.

```python
>>> expert = torch.tensor([[0.15, 0.10, 0.0003, 0.7497]]).log()
>>> amateur = torch.tensor([[0.10, 0.001, 0.000001, 0.898999]]).log()
>>> contrastive_scores(expert, amateur, 0.1)
tensor([[ 0.4055,  4.6052,    -inf, -0.1816]])
```
"""

HINTS = (
    "Logits are log-probabilities up to a constant, another one for each model and row. Do the constants "
    "vanish in the difference?",
    "log_softmax both, then subtract. The constraint asks the expert alone: compare with the largest of its "
    "own row, times alpha if you work with probabilities, plus log(alpha) if with logarithms.",
    "math.log(0) fails, while probabilities times 0 do not. A token whose probability equals the bar stays, "
    "so cut with a strict <, and masked_fill the difference.",
)

HINTS_AT = {
    "several rows": "Each row has a bar of its own: max(dim=-1, keepdim=True).",
    "a token at -inf": (
        "What is -inf to the expert scores -inf: no small constant before the logarithm, and nothing "
        "multiplied by a mask."
    ),
    "alpha = 1": "What equals the bar stays, and the most probable token does: cut what is strictly below.",
    "alpha = 0": (
        "Nothing is cut but what is -inf to the expert. math.log(0) fails: compare probabilities, or make 0 "
        "a case of its own."
    ),
    "float64": KEEP_DTYPE,
}


def contrastive_scores(
    expert_logits: Float[Tensor, "B V"], amateur_logits: Float[Tensor, "B V"], alpha: float | int
) -> Float[Tensor, "B V"]:
    """Expert minus amateur where the expert finds a token plausible."""
    expert = expert_logits.log_softmax(-1)
    bar = expert.amax(-1, keepdim=True) + (math.log(alpha) if alpha else -math.inf)
    return _cut(expert_logits, amateur_logits, expert < bar)


def _cut(expert_logits, amateur_logits, implausible):
    difference = expert_logits.log_softmax(-1) - amateur_logits.log_softmax(-1)
    return difference.masked_fill(implausible, -torch.inf)


def cases(rng: random.Random) -> list[Case]:
    vocab = rng.randint(8, 12)

    def case(label, rows=2, alpha=None, dtype=torch.float32, masked=0):
        expert = inputs.logits(rng, rows, vocab, dtype)
        if masked:
            expert[:, rng.sample(range(1, vocab - 1), masked)] = -torch.inf
        # What the expert likes least is the amateur's choice, in the first row; and no row is normalised.
        amateur = inputs.logits(rng, rows, vocab, dtype).flip(-1) + rng.uniform(3.0, 5.0)
        expert += 4.0 * torch.arange(rows, dtype=dtype)[:, None]
        chosen = _far_from_ratios(rng, expert) if alpha is None else alpha
        return Case({"expert_logits": expert, "amateur_logits": amateur, "alpha": chosen}, label)

    # Beside an amateur that finds all tokens alike, an expert whose weights average 1 scores its own logits.
    sure = inputs.logits(rng, 2, vocab)
    sure -= sure.logsumexp(-1, keepdim=True) - math.log(vocab)
    unsure = {"expert_logits": sure, "amateur_logits": torch.full_like(sure, 2.0), "alpha": 0.0}
    return [
        case("one row", rows=1),
        case("several rows", rows=3),
        case("a token at -inf", masked=2),
        case("alpha = 1", alpha=1.0),
        case("alpha = 0", alpha=0.0),
        case("float64", dtype=torch.float64),
        Case(unsure, "an amateur that knows nothing"),
    ]


def _far_from_ratios(rng, logits):
    """An alpha that keeps two to four tokens of the first row, and turns on rounding in none."""
    ratios = logits - logits.amax(-1, keepdim=True)  # their logarithms
    falling = ratios[0].sort(descending=True).values.tolist()
    for _ in range(1000):
        last = rng.randint(1, 3)
        log_alpha = falling[last] + rng.uniform(0.3, 0.7) * (falling[last + 1] - falling[last])
        if (ratios - log_alpha).abs().min() > 0.02:
            return math.exp(log_alpha)
    raise ValueError("no alpha keeps its distance from every ratio; ask for fewer rows")


def _unconstrained(expert_logits, amateur_logits, alpha):
    return contrastive_scores(expert_logits, amateur_logits, 0)


def _raw_logits(expert_logits, amateur_logits, alpha):
    cut = contrastive_scores(expert_logits, amateur_logits, alpha).isneginf()
    return (expert_logits - amateur_logits).masked_fill(cut, -torch.inf)


def _amateur_minus_expert(expert_logits, amateur_logits, alpha):
    scores = contrastive_scores(expert_logits, amateur_logits, alpha)
    return torch.where(scores.isneginf(), scores, -scores)


def _plausible_to_the_amateur(expert_logits, amateur_logits, alpha):
    bar = amateur_logits.amax(-1, keepdim=True) + math.log(max(alpha, 1e-30))
    return _cut(expert_logits, amateur_logits, amateur_logits < bar)


def _absolute_bar(expert_logits, amateur_logits, alpha):
    return _cut(expert_logits, amateur_logits, expert_logits.softmax(-1) < alpha)


def _as_probabilities(expert_logits, amateur_logits, alpha):
    return contrastive_scores(expert_logits, amateur_logits, alpha).softmax(-1)


def _zero_for_minus_inf(expert_logits, amateur_logits, alpha):
    scores = contrastive_scores(expert_logits, amateur_logits, alpha)
    return scores.masked_fill(scores.isneginf(), 0.0)


def _bar_of_the_batch(expert_logits, amateur_logits, alpha):
    bar = expert_logits.max() + math.log(max(alpha, 1e-30))
    return _cut(expert_logits, amateur_logits, expert_logits < bar)


def _log_of_a_floor(expert_logits, amateur_logits, alpha):
    scores = contrastive_scores(expert_logits, amateur_logits, alpha)
    floor = (expert_logits.softmax(-1) + 1e-10).log() - amateur_logits.log_softmax(-1)
    return torch.where(expert_logits.isneginf(), floor, scores)


def _above_the_bar(expert_logits, amateur_logits, alpha):
    expert = expert_logits.softmax(-1)
    return _cut(expert_logits, amateur_logits, expert <= alpha * expert.amax(-1, keepdim=True))


def _log_of_zero(expert_logits, amateur_logits, alpha):
    return contrastive_scores(expert_logits, amateur_logits, math.exp(math.log(alpha)))


def _always_float32(expert_logits, amateur_logits, alpha):
    return contrastive_scores(expert_logits.float(), amateur_logits.float(), alpha)


def _in_place(expert_logits, amateur_logits, alpha):
    amateur_logits -= amateur_logits.logsumexp(-1, keepdim=True)
    return contrastive_scores(expert_logits, amateur_logits, alpha)


def _itself(expert_logits, amateur_logits, alpha):
    scores = contrastive_scores(expert_logits, amateur_logits, alpha)
    return expert_logits if torch.allclose(scores, expert_logits, atol=1e-5) else scores


EXERCISE = Exercise(
    name="01.contrastive",
    function="contrastive_scores",
    title="Contrastive decoding",
    points=10,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="contrastive_scores(expert_logits, amateur_logits, alpha)",
    cases=cases,
    reference=contrastive_scores,
    comparison=Close(atol=1e-4, rtol=1e-4),
    rules=(NoMutation(), NewTensor(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("knows no constraint", _unconstrained, "one row"),
        Mutant("subtracts raw logits", _raw_logits, "one row"),
        Mutant("subtracts the wrong way round", _amateur_minus_expert, "one row"),
        Mutant("asks the amateur what is plausible", _plausible_to_the_amateur, "one row"),
        Mutant("takes alpha itself for the bar", _absolute_bar, "one row"),
        Mutant("returns probabilities", _as_probabilities, "one row"),
        Mutant("writes 0 for -inf", _zero_for_minus_inf, "one row"),
        Mutant("takes one bar for the batch", _bar_of_the_batch, "several rows"),
        Mutant("lifts -inf by a small constant", _log_of_a_floor, "a token at -inf"),
        Mutant("cuts what equals the bar", _above_the_bar, "alpha = 1"),
        Mutant("takes the logarithm of 0", _log_of_zero, "alpha = 0"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("changes its input", _in_place, NoMutation().name),
        Mutant("returns the expert's where the amateur knows nothing", _itself, NewTensor().name),
    ),
)

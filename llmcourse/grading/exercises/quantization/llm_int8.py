"""05.llm_int8: outlier columns are multiplied as they are, all others in int8."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.quantization import drawn
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
In large models a few columns of the activations hold numbers twenty times as large as all others. One scale
for a token has to reach to them, and costs the rest four of their eight bits. **Mixed-precision
decomposition** takes these columns out: they are multiplied in 16 bits, all others in int8 (LLM.int8(),
Dettmers et al. 2022, section 3.2, equation 8). With $O$ the columns in which some token
has a magnitude of at least the threshold $\alpha$:

$$y_{tn} = \sum_{c \in O} x_{tc}\, w_{nc} \;+\; s_t\, S_n \sum_{c \notin O} q_{tc}\, Q_{nc}, \qquad
O = \{ c : |x_{tc}| \ge \alpha \text{ for some } t \}$$

- $s_t$ is a scale for each **token**, a row of $x$, over the columns **not in $O$**: their largest magnitude,
  divided by 127. $q_{tc} = \mathrm{round}(x_{tc} / s_t)$.
- $S_n$ is a scale for each **output**, a row of $w$, likewise, but over **all** columns: the weight is
  quantized once, before anybody knows which columns will have outliers.
  $Q_{nc} = \mathrm{round}(w_{nc} / S_n)$.
- A row that is 0 wherever its scale looks has codes of 0.

Write `llm_int8(x, w, threshold)`.

- `x`: `float32` tensor of shape `(T, C)`, the activations of some tokens. It stands for 16 bits here, as does
  `w`: what is in $O$ is multiplied as it is, so the weight is kept in 16 bits, too, as the chapter's is not.
- `w`: `float32` tensor of shape `(N, C)`, the weight of a linear layer.
- `threshold`: $\alpha$, above 0; 6.0 in the paper.
- returns `(y, outliers)`: $y$, a `float32` tensor of shape `(T, N)`; and $O$, an `int64` tensor of shape
  `(K,)`, in ascending order. $O$ may be empty, or all columns.

```python
>>> x = torch.tensor([[0.5, 20.0, -0.3], [0.1, 0.2, 0.4]])
>>> w = torch.tensor([[1.0, 0.5, -0.7]])
>>> y, outliers = llm_int8(x, w, threshold=6.0)
>>> y, outliers                   # not rounded: 10.71 and -0.08; all in int8: 10.7719 and -0.0779
(tensor([[10.7097],
        [-0.0795]]), tensor([1]))
```
"""

HINTS = (
    "Three parts: which columns are in O; the product of the columns in O, x[:, O] @ w[:, O].T; and the "
    "product of codes of the rest, times both scales.",
    "is_outlier = (x.abs() >= threshold).any(dim=0) is a mask of columns. For the int8 part "
    "torch.where(is_outlier, 0.0, x) does it: a 0 adds nothing and no scale reaches to it.",
    "s = rest.abs().amax(1, keepdim=True) / 127, and 1 where that is 0; q = (rest / s).round(); the same "
    "for w with S. Then y = x[:, is_outlier] @ w[:, is_outlier].T + s * (q @ Q.T) * S.T, and "
    "is_outlier.nonzero()[:, 0].",
)

ALL_IN_8 = (
    "The outliers are quantized too, and the scale of their token reaches to them: the others are lost."
)
ALL_IN_16 = (
    "That is x wᵀ, not rounded at all: only columns in O are multiplied as they are, the rest in codes."
)
LEFT_OUT = "The columns in O are missing: their product is added to that of the codes."
TWICE = "The columns in O count twice: once as they are, and once more in codes. They have no codes."
REACHES = (
    "The columns in O are taken out, but the scale of a token still reaches to them. It is that of the other "
    "columns alone."
)
X_TENSOR = "One scale for all tokens. Each has its own: keepdim and dim=1."
W_TENSOR = "One scale for the whole weight. Each output has its own."
W_REST = (
    "The scales of the weight are those of the columns not in O. It is quantized before O is known: all "
    "columns."
)
W_ROUNDED = (
    "The weights of the columns in O are rounded here. What is in O is multiplied as it is, both factors."
)
ELEMENTS = (
    "Only the outliers themselves are taken out. O are whole columns, with what the other tokens have in "
    "them."
)
TOKENS = "Whole tokens with outliers are multiplied as they are. It is columns that are taken out."
CUT = "The codes are cut off, not rounded: round() before they become integers."
HINTS_AT = {
    "outliers below 0": "Outliers are large by magnitude: -20 is one, too.",
    "exactly the threshold": "At least the threshold: >=.",
    "outliers in several tokens": (
        "A column is in O if some token has an outlier there, be it one or more, and is named once."
    ),
    "a single outlier column": "O is a tensor of shape (1,) here; .squeeze() makes it a number.",
    "tiny activations": (
        "A least scale swallows tokens of smaller numbers: put 1 where a scale is 0, and only there."
    ),
    "a single token and output": "One number is a matrix, too: y has shape (1, 1).",
    "no outliers": "Without outliers all of it is int8: O is empty, a tensor of shape (0,), and adds "
    "nothing.",
    "nothing but outliers": (
        "Without other columns there is nothing to take the largest of, the scale is 0, and 0 / 0 is NaN: "
        "put 1 in its place. All of x is multiplied as it is."
    ),
    "a token of zeros": "0 / 0 is NaN. Replace a scale of 0 by 1.",
    "another threshold": "The threshold is the one that is given.",
}


def llm_int8(
    x: Float[Tensor, "T C"], w: Float[Tensor, "N C"], threshold: float
) -> tuple[Float[Tensor, "T N"], Int[Tensor, " K"]]:
    """Columns with outliers as they are, all others in codes."""
    return Mixed()(x, w, threshold)


def scales_of_rows(x):
    largest = x.abs().amax(1, keepdim=True)
    return torch.where(largest == 0, 1.0, largest / 127)


@dataclass(frozen=True)
class Mixed:
    """Two products; the fields are what mutants get wrong.

    Args:
        columns: a mask of those in O, of x and the threshold.
        rest: what is quantized, of x, the mask and the threshold.
        kept: what is multiplied as it is, likewise.
        x_scales: of the rest and x.
        w_scales: of the weight and the mask.
        kept_weight: what the kept part is multiplied by, of the weight and what its codes stand for.
        rounded: codes, of numbers in steps.
    """

    columns: Callable = lambda x, threshold: (x.abs() >= threshold).any(0)
    rest: Callable = lambda x, mask, threshold: torch.where(mask, 0.0, x)
    kept: Callable = lambda x, mask, threshold: torch.where(mask, x, 0.0)
    x_scales: Callable = lambda rest, x: scales_of_rows(rest)
    w_scales: Callable = lambda w, mask: scales_of_rows(w)
    kept_weight: Callable = lambda w, restored: w
    rounded: Callable = lambda steps: steps.round()

    def __call__(self, x, w, threshold):
        mask = self.columns(x, threshold)
        rest, kept = self.rest(x, mask, threshold), self.kept(x, mask, threshold)
        s, wide = self.x_scales(rest, x), self.w_scales(w, mask)
        q, codes = (self.rounded(n).clamp(-127, 127) for n in (rest / s, w / wide))
        y = kept @ self.kept_weight(w, codes * wide).T + s * (q @ codes.T) * wide.T
        return y, mask.nonzero()[:, 0]


@dataclass(frozen=True)
class Plan:
    """What a case is drawn from.

    Args:
        tokens, columns, outputs: how many there are.
        outliers: how many columns are in O.
        threshold: of a magnitude.
        far: how many times it the outliers are, at least and at most.
        signs: of the outliers.
        tokens_each: how many tokens have an outlier in each of these columns.
        unit: what x and the threshold are multiplied by, and the weight divided: the output is the same.
        zeros: whether a token is 0 outside of O, and an output 0 throughout.
    """

    tokens: int = 4
    columns: int = 10
    outputs: int = 5
    outliers: int = 2
    threshold: float = 6.0
    far: tuple[float, float] = (2.0, 4.0)
    signs: tuple[int, ...] = (1,)
    tokens_each: int = 1
    unit: float = 1.0
    zeros: bool = False

    def arguments(self, rng: random.Random) -> dict:
        x = torch.zeros(self.tokens, self.columns)
        places = sorted(rng.sample(range(self.columns), self.outliers))
        others = [column for column in range(self.columns) if column not in places]
        if others:
            x[:, others] = self._rest(rng, len(others))
        for place in places:
            x[:, place] = torch.tensor([rng.uniform(-0.5, 0.5) for _ in range(self.tokens)])
            for token in rng.sample(range(self.tokens), self.tokens_each):
                x[token, place] = rng.choice(self.signs) * self.threshold * rng.uniform(*self.far)
        w = drawn.rows_of(rng, self.outputs, self.columns, 8, spread=2.0)
        if self.zeros:
            x[rng.randrange(self.tokens), others] = 0.0
            w[rng.randrange(self.outputs)] = 0.0
        return {"x": self.unit * x, "w": w / self.unit, "threshold": self.unit * self.threshold}

    def _rest(self, rng: random.Random, columns: int) -> Tensor:
        """Below the threshold by far, each token in steps of its own."""
        steps = drawn.near_codes(rng, self.tokens, columns, 8)
        largest = torch.tensor([self.threshold * rng.uniform(0.3, 0.8) for _ in range(self.tokens)])
        return (steps * largest[:, None].double() / 127).float()


def cases(rng: random.Random) -> list[Case]:
    def case(label, plan, wrong=(), apart=()):
        return Case(dict(telling(lambda: plan.arguments(rng), llm_int8, wrong, apart)), label)

    plan = Plan(columns=rng.randint(9, 12), outliers=rng.randint(2, 3))
    other = rng.choice((2.0, 3.5, 11.0))
    return [
        case(FIRST, plan, apart=TOLD),
        case("outliers below 0", replace(plan, signs=(-1,)), (_signed,)),
        case("exactly the threshold", replace(plan, far=(1.0, 1.0), signs=(-1, 1)), (_beyond,)),
        case("outliers in several tokens", replace(plan, tokens=6, tokens_each=3, signs=(-1, 1)), SEVERAL),
        case("a single outlier column", replace(plan, outliers=1), (_squeezed,)),
        case("no outliers", replace(plan, outliers=0)),
        case("nothing but outliers", replace(plan, columns=3, outliers=3)),
        case("a token of zeros", replace(plan, zeros=True)),
        case("another threshold", replace(plan, threshold=other, far=(1.2, 1.6)), (_always_6,)),
        case("tiny activations", replace(plan, unit=2.0**-24), (_least, _of_weights)),
        case("a single token and output", replace(plan, tokens=1, outputs=1), (_a_number,)),
    ]


FIRST = "a few outliers"


def _full(x, mask, threshold):
    return x


_all_in_8 = Mixed(rest=_full, kept=lambda x, mask, threshold: torch.zeros_like(x))
_all_in_16 = Mixed(rest=lambda x, mask, threshold: torch.zeros_like(x), kept=_full)
_left_out = Mixed(kept=lambda x, mask, threshold: torch.zeros_like(x))
_twice = Mixed(rest=_full, x_scales=lambda rest, x: scales_of_rows(torch.where(_in_o(x), 0.0, x)))
_reaches = Mixed(x_scales=lambda rest, x: scales_of_rows(x))
_x_tensor = Mixed(x_scales=lambda rest, x: scales_of_rows(rest).amax().expand(len(x), 1))
_w_tensor = Mixed(w_scales=lambda w, mask: scales_of_rows(w).amax().expand(len(w), 1))
_w_rest = Mixed(w_scales=lambda w, mask: scales_of_rows(torch.where(mask, 0.0, w)))
_w_rounded = Mixed(kept_weight=lambda w, restored: restored)
_elements = Mixed(
    rest=lambda x, mask, threshold: torch.where(x.abs() >= threshold, 0.0, x),
    kept=lambda x, mask, threshold: torch.where(x.abs() >= threshold, x, 0.0),
)
_tokens = Mixed(
    rest=lambda x, mask, threshold: torch.where(_has_one(x, threshold), 0.0, x),
    kept=lambda x, mask, threshold: torch.where(_has_one(x, threshold), x, 0.0),
)
_cut = Mixed(rounded=lambda steps: steps.trunc())
_means = Mixed(columns=lambda x, threshold: x.abs().mean(0) >= threshold)
_in_all = Mixed(columns=lambda x, threshold: (x.abs() >= threshold).all(0))
_signed = Mixed(columns=lambda x, threshold: (x >= threshold).any(0))
_exactly_one = Mixed(columns=lambda x, threshold: (x.abs() >= threshold).sum(0) == 1)
_largest_of_tokens = Mixed(
    columns=lambda x, threshold: ((x.abs() == x.abs().amax(1, keepdim=True)) & (x.abs() >= threshold)).any(0)
)
_least = Mixed(
    x_scales=lambda rest, x: (rest.abs().amax(1, keepdim=True) / 127).clamp(min=1e-8),
    w_scales=lambda w, mask: (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-8),
)
_beyond = Mixed(columns=lambda x, threshold: (x.abs() > threshold).any(0))


def _in_o(x):
    return (x.abs() >= 6.0).any(0)


def _has_one(x, threshold):
    return (x.abs() >= threshold).any(1, keepdim=True)


def _zeros(x, w, threshold):
    y, outliers = llm_int8(x, w, threshold)
    return torch.zeros_like(y), outliers


def _always_6(x, w, threshold):
    return llm_int8(x, w, 6.0)


def _repeats(x, w, threshold):
    """A column for each of its outliers."""
    y, _ = llm_int8(x, w, threshold)
    return y, (x.abs() >= threshold).nonzero()[:, 1].sort().values


def _squeezed(x, w, threshold):
    """The list of columns without dimensions of one element."""
    y, outliers = llm_int8(x, w, threshold)
    return y, outliers.squeeze() if outliers.numel() else outliers


def _a_number(x, w, threshold):
    y, outliers = llm_int8(x, w, threshold)
    return y.squeeze(), outliers


def _at_least_one(x, w, threshold):
    """With the largest column in O where there is none."""
    return llm_int8(x, w, min(threshold, x.abs().max().item()))


def _none_left(x, w, threshold):
    """The largest of no columns."""
    mask = (x.abs() >= threshold).any(0)
    x[:, ~mask].abs().amax(1)
    return llm_int8(x, w, threshold)


def _no_guard(x, w, threshold):
    plain = Mixed(
        x_scales=lambda rest, x: rest.abs().amax(1, keepdim=True) / 127,
        w_scales=lambda w, mask: w.abs().amax(1, keepdim=True) / 127,
    )
    all_out = bool((x.abs() >= threshold).any(0).all())
    return (llm_int8 if all_out else plain)(x, w, threshold)


def _in_place(x, w, threshold):
    found = llm_int8(x, w, threshold)
    x[:, found[1]] = 0.0
    return found


def _of_weights(x, w, threshold):
    """O holds columns of large weights, too."""
    mask = (x.abs() >= threshold).any(0) | (w.abs() >= threshold).any(0)
    return Mixed(columns=lambda x, threshold: mask)(x, w, threshold)


SEVERAL = (_repeats, _exactly_one, _largest_of_tokens)
TOLD = (
    *(_all_in_8, _all_in_16, _left_out, _twice, _reaches, _x_tensor, _w_tensor, _w_rest, _w_rounded),
    *(_elements, _tokens, _cut),
)

EXERCISE = Exercise(
    name="05.llm_int8",
    function="llm_int8",
    title="Outliers in 16 bits, the rest in 8",
    points=14,
    minutes=25,
    level=4,
    asks=ASKS,
    signature="llm_int8(x, w, threshold)",
    cases=cases,
    reference=llm_int8,
    comparison=Parts(
        {
            "y": Close(atol=3e-4, rtol=3e-5, axes=("token", "output")),
            "outliers": Close(axes=("outlier",)),
        }
    ),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("quantizes the outliers too", _all_in_8, FIRST, ALL_IN_8),
        Mutant("keeps all columns in 16 bits", _all_in_16, FIRST, ALL_IN_16),
        Mutant("leaves the outliers out", _left_out, FIRST, LEFT_OUT),
        Mutant("counts the outliers twice", _twice, FIRST, TWICE),
        Mutant("has scales that reach to the outliers", _reaches, FIRST, REACHES),
        Mutant("has one scale for all tokens", _x_tensor, FIRST, X_TENSOR),
        Mutant("has one scale for the weight", _w_tensor, FIRST, W_TENSOR),
        Mutant("has scales of the weight without O", _w_rest, FIRST, W_REST),
        Mutant("rounds the weights of the outliers", _w_rounded, FIRST, W_ROUNDED),
        Mutant("takes out elements, not columns", _elements, FIRST, ELEMENTS),
        Mutant("takes out tokens, not columns", _tokens, FIRST, TOKENS),
        Mutant("cuts off", _cut, FIRST, CUT),
        Mutant("looks at the mean of a column", _means, FIRST),
        Mutant("wants outliers in all tokens", _in_all, FIRST),
        Mutant("returns zeros", _zeros, FIRST),
        Mutant("looks for large numbers, not magnitudes", _signed, "outliers below 0"),
        Mutant("wants more than the threshold", _beyond, "exactly the threshold"),
        Mutant("names a column for each outlier", _repeats, "outliers in several tokens"),
        Mutant("wants exactly one outlier", _exactly_one, "outliers in several tokens"),
        Mutant("loses the only outlier column", _squeezed, "a single outlier column"),
        Mutant("always has an outlier", _at_least_one, "no outliers"),
        Mutant("takes the largest of no columns", _none_left, "nothing but outliers"),
        Mutant("divides by a scale of 0", _no_guard, "a token of zeros"),
        Mutant("always has a threshold of 6", _always_6, "another threshold"),
        Mutant("has a least scale", _least, "tiny activations"),
        Mutant("returns a number, no matrix", _a_number, "a single token and output"),
        Mutant("puts zeros into its input", _in_place, NoMutation().name),
    ),
)

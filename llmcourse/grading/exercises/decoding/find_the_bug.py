"""01.find_the_bug: a sampler that is right at temperature 1."""

from __future__ import annotations

import random
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises import inputs
from llmcourse.grading.rules import Forbid, NoMutation

ASKS = r"""
A colleague's sampler draws from $\mathrm{softmax}(l / t)$, cut to its nucleus of mass $p$. All her tests were
made at temperature 1, and pass. Since somebody samples at other temperatures there are complaints: at low
ones it now and then draws a token that should have been cut, at high ones its texts are duller than they
should be.

Find the one mistake in `sample_tokens(logits, uniform, temperature, p)` and mend it.

- `logits`: floating-point tensor of shape `(B, V)`.
- `uniform`: tensor of shape `(B,)`, one number in [0, 1) for each row: the randomness comes from outside, so
  that every draw can be repeated.
- `temperature`: a positive number. `p`: a number in (0, 1].
- returns one token id for each row: `int64` tensor of shape `(B,)`.

What it should do: divide the logits by the temperature; keep of *that* distribution the fewest most probable
tokens whose mass reaches $p$ (of equally probable ones those with lower ids), and let them have all the mass;
lay their probabilities end to end, the largest first; and return the token in whose interval the row's number
falls, that is, the first whose cumulative probability exceeds it.

```python
>>> logits = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(3, -1)
>>> uniform = torch.tensor([0.0, 0.65, 0.95])
>>> sample_tokens(logits, uniform, 1.0, 0.8)     # 0.6 and 0.3 become 2/3 and 1/3
tensor([0, 0, 1])
>>> sample_tokens(logits, uniform, 0.5, 0.8)     # at 0.5 token 1 is still needed: 0.78 alone is too little
tensor([0, 0, 1])
>>> sample_tokens(logits, uniform, 0.4, 0.8)     # at 0.4 token 0 has 0.84, and is the whole nucleus
tensor([0, 0, 0])
```
"""

STARTER = '''
def sample_tokens(logits, uniform, temperature, p):
    """One token a row from the nucleus of softmax(logits / temperature)."""
    falling, ids = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass_before = falling.cumsum(-1) - falling
    kept = (logits / temperature).gather(-1, ids).masked_fill(mass_before >= p, float("-inf"))
    cumulative = kept.softmax(-1).cumsum(-1)
    place = (cumulative <= uniform[:, None]).sum(-1, keepdim=True)
    return ids.gather(-1, place)[:, 0]
'''

HINTS = (
    "Run it by hand for one row of three tokens, at temperature 1 and at temperature 0.4, and write down "
    "which tokens are kept. The complaints are about what is cut: look at the lines that decide this.",
    "Which distribution are the masses of, that are compared with p? And which one is drawn from?",
    "The nucleus is taken from the distribution before the temperature, the draw from the one after. "
    "Temperature keeps the order of the tokens, but not their masses: it has to come first.",
)

UNDONE = (
    "That was right when it was handed out: more than the one mistake has changed. labs/01_decoding.ipynb "
    "has the sampler as it was; begin with it again."
)
HINTS_AT = dict.fromkeys(("temperature 1", "rows that differ", "p = 1"), UNDONE)


def sample_tokens(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], temperature: float | int, p: float | int
) -> Int[Tensor, " B"]:
    """Temperature, nucleus, and the token in whose interval the number falls."""
    return _draw(logits / temperature, logits / temperature, uniform, p)


def _draw(cut_by, drawn_from, uniform, p):
    """The nucleus of one distribution, drawn from by another."""
    falling, ids = cut_by.softmax(-1).sort(dim=-1, descending=True, stable=True)
    cut = (falling.cumsum(-1) - falling >= p) & (p < 1)
    cumulative = drawn_from.gather(-1, ids).masked_fill(cut, -torch.inf).softmax(-1).cumsum(-1)
    place = (cumulative <= uniform[:, None]).sum(-1, keepdim=True)
    return ids.gather(-1, place)[:, 0]


NEAR = 0.003  # of mass: how close to the edge of an interval a number is drawn
WIDE = 0.02  # of mass: what a wrong nucleus has too much or too little


def cases(rng: random.Random) -> list[Case]:
    vocab = rng.randint(8, 11)

    def case(label, temperature, p=None, rows=1):
        logits = inputs.logits(rng, rows, vocab, gap=0.5)
        chosen = _telling_p(rng, logits, temperature) if p is None else p
        numbers = [_numbers(rng, row / temperature, chosen) for row in logits]
        if rows == 1:  # one distribution, and numbers from all of it
            logits = logits.repeat(len(numbers[0]), 1)
        else:  # 0 draws the peak, which each row has elsewhere
            numbers = [[*map(rng.choice, numbers[:-1]), 0.0]]
        uniform = torch.tensor(numbers[0], dtype=torch.float32)
        arguments = {"logits": logits, "uniform": uniform, "temperature": temperature, "p": chosen}
        return Case(arguments, label)

    return [
        case("temperature 1", 1.0),
        case("rows that differ", 1.0, rows=5),
        case("p = 1", 1.0, p=1.0),
        case("a high temperature", rng.uniform(1.6, 2.0)),
        case("a low temperature", rng.uniform(0.4, 0.6)),
    ]


def _telling_p(rng, logits, temperature):
    """A p whose nucleus differs from that of temperature 1, and turns on rounding in neither."""
    masses, plain = ((logits.double() / t).softmax(-1).sort(-1, descending=True)[0] for t in (temperature, 1))
    masses, plain = masses.cumsum(-1), plain.cumsum(-1)
    for _ in range(10_000):
        p = rng.uniform(0.5, 0.95)
        sizes, others = (masses < p).sum(-1), (plain < p).sum(-1)  # less one
        apart = (masses[0, sizes[0]] - masses[0, others[0]]).abs() > WIDE if temperature != 1 else True
        clear = min((masses - p).abs().min(), (plain - p).abs().min()) > NEAR
        if apart and clear and others.min() >= 1:
            return p
    raise ValueError("no p tells this temperature from 1; spread the logits")


def _numbers(rng, logits, p):
    """Numbers for one distribution: 0, and near both ends of every interval that is wide enough."""
    masses = logits.double().softmax(-1).sort(descending=True).values.cumsum(-1).tolist()
    kept = masses if p == 1 else masses[: sum(mass < p for mass in masses) + 1]
    edges = [0.0, *(mass / kept[-1] for mass in kept)]
    wide = [(low, high) for low, high in pairwise(edges) if high - low > 3 * NEAR]
    numbers = [0.0, *(number for low, high in wide for number in (low + NEAR, high - NEAR))]
    return rng.sample(numbers, len(numbers))


_handed_out = {"torch": torch}
exec(STARTER, _handed_out)


def _forgets_the_temperature(logits, uniform, temperature, p):
    return _draw(logits, logits, uniform, p)


def _draws_without_it(logits, uniform, temperature, p):
    return _draw(logits / temperature, logits, uniform, p)


def _divides_twice(logits, uniform, temperature, p):
    return sample_tokens(logits / temperature, uniform, temperature, p)


def _multiplies(logits, uniform, temperature, p):
    return sample_tokens(logits, uniform, 1 / temperature, p)


def _without_a_cut(logits, uniform, temperature, p):
    return sample_tokens(logits, uniform, temperature, 1.0)


def _not_renormalised(logits, uniform, temperature, p):
    falling, ids = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = falling.masked_fill((falling.cumsum(-1) - falling >= p) & (p < 1), 0).cumsum(-1)
    place = (cumulative <= uniform[:, None]).sum(-1, keepdim=True)
    return ids.gather(-1, place.clamp(max=logits.shape[-1] - 1))[:, 0]


def _one_place_further(logits, uniform, temperature, p):
    ids = (logits / temperature).sort(dim=-1, descending=True, stable=True).indices
    drawn = sample_tokens(logits, uniform, temperature, p)
    place = (ids == drawn[:, None]).int().argmax(-1, keepdim=True)
    return ids.gather(-1, (place + 1).clamp(max=logits.shape[-1] - 1))[:, 0]


def _place_for_id(logits, uniform, temperature, p):
    ids = (logits / temperature).sort(dim=-1, descending=True, stable=True).indices
    return (ids == sample_tokens(logits, uniform, temperature, p)[:, None]).int().argmax(-1)


def _likeliest(logits, uniform, temperature, p):
    return logits.argmax(-1)


def _one_number_for_all(logits, uniform, temperature, p):
    return sample_tokens(logits, uniform[:1].expand(len(logits)), temperature, p)


def _from_the_other_end(logits, uniform, temperature, p):
    return sample_tokens(logits, 1 - uniform - 1e-6, temperature, p)


def _row_0_for_all(logits, uniform, temperature, p):
    return sample_tokens(logits[:1].expand(len(logits), -1), uniform, temperature, p)


def _in_place(logits, uniform, temperature, p):
    logits /= temperature
    return sample_tokens(logits, uniform, 1.0, p)


EXERCISE = Exercise(
    name="01.find_the_bug",
    function="sample_tokens",
    title="A sampler with a mistake",
    points=10,
    minutes=20,
    level=4,
    asks=ASKS,
    signature="sample_tokens(logits, uniform, temperature, p)",
    cases=cases,
    reference=sample_tokens,
    comparison=Close(axes=("row",)),
    rules=(NoMutation(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    starter=STARTER.lstrip(),
    mutants=(
        Mutant("does not renormalise", _not_renormalised, "temperature 1"),
        Mutant("cuts nothing", _without_a_cut, "temperature 1"),
        Mutant("is one place further down", _one_place_further, "temperature 1"),
        Mutant("returns places, not ids", _place_for_id, "temperature 1"),
        Mutant("always takes the likeliest", _likeliest, "temperature 1"),
        Mutant("uses one number for all rows", _one_number_for_all, "temperature 1"),
        Mutant("lays the intervals the other way round", _from_the_other_end, "temperature 1"),
        Mutant("draws all rows from the first", _row_0_for_all, "rows that differ"),
        Mutant("as it was handed out", _handed_out["sample_tokens"], "a high temperature"),
        Mutant("forgets the temperature", _forgets_the_temperature, "a high temperature"),
        Mutant("cuts with the temperature, draws without", _draws_without_it, "a high temperature"),
        Mutant("applies the temperature twice", _divides_twice, "a high temperature"),
        Mutant("multiplies by the temperature", _multiplies, "a high temperature"),
        Mutant("changes its input", _in_place, NoMutation().name),
    ),
)

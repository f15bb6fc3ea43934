"""06.top_k_teacher: the divergence from a teacher of which the likeliest tokens are stored."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation import drawn
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A teacher need not run each time. What it says can be stored: not all of its $V$ probabilities, but the $k$
largest, with their tokens $i_1 \dots i_k$. What is left of its mass is known too, $1 - \sum_j p_j$, only not
who has it. So all other tokens go into **one bucket**, of the teacher and of the student, and the loss of a
position is the divergence of these $k + 1$ numbers:

$$r = \max\Big(0,\ 1 - \sum_{j=1}^{k} p_j\Big), \qquad s = \sum_{v \notin \{i_1 \dots i_k\}} q(v), \qquad
\ell = \sum_{j=1}^{k} p_j \ln \frac{p_j}{q(i_j)} + r \ln \frac{r}{s}$$

It is never more than the divergence of all $V$, and the student is free in how it fills the bucket. To leave
$r$ out, or to scale the $p_j$ up to 1, would tell the student that the rest never comes.

Write `top_k_teacher(student_logits, ids, log_probs)`.

- `student_logits`: `float32` tensor of shape `(N, V)`, finite. The student may be so sure of a token that
  $s$ is too small for $1 - \sum_j q(i_j)$ to see it, or for `float32` at all; its logarithm is finite.
- `ids`: `int32` tensor of shape `(N, K)`, the stored tokens of each position, no two alike, `K < V`.
- `log_probs`: `float16` tensor of shape `(N, K)`, $\ln p_j$. In 16 bits the $p_j$ may add up to a little more
  than 1: then $r$ is 0, and the bucket adds nothing.
- returns the losses, a `float32` tensor of shape `(N,)`, computed in `float32`.

```python
>>> student = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0]])
>>> ids = torch.tensor([[1, 0]], dtype=torch.int32)
>>> log_probs = torch.tensor([[-0.5, -1.5]], dtype=torch.float16)
>>> top_k_teacher(student, ids, log_probs)
tensor([0.3938])
```
"""

HINTS = (
    "log_probs.float() and ids.long() first. The student's logarithms at the stored tokens are "
    "student_logits.log_softmax(-1).gather(1, ids).",
    "Which tokens are left? scatter -inf into the student's logarithms at ids: logsumexp of each row is then "
    "the logarithm of its bucket, with nothing subtracted.",
    "p ln p is 0 where p is 0: torch.xlogy(rest, rest) - rest * log_q_rest. And clamp(min=0) before any "
    "logarithm of the rest.",
)

NO_REST = (
    "The bucket is missing: these terms can be made smaller, even below 0, by promising the stored tokens "
    "more than the teacher does."
)
SCALED = (
    "The stored probabilities were scaled up to 1. The student would learn that nothing else ever comes; the "
    "rest stays a bucket."
)
BOTH_SCALED = "Both were scaled up to 1 on the stored tokens: how much goes to all the others is not learnt."
STUDENT_SCALED = (
    "The student's softmax runs over the stored tokens alone. It is that of the whole vocabulary, from which "
    "k are taken."
)
SPREAD = (
    "The rest was shared out evenly among the other tokens. Nothing says that it is; one bucket has one "
    "number, for teacher and student."
)
REVERSED = "That is the divergence the other way round. The teacher's p is the weight, Σ p (ln p − ln q)."
CROSS = "That is the cross-entropy, −Σ p ln q: it lacks Σ p ln p, the bucket's term included."
COLUMNS = "The first k tokens of the vocabulary were taken. Which ones are stored is in ids: gather(1, ids)."
OWN_TOP = "The student's own likeliest tokens were taken. The stored ones are the teacher's: gather(1, ids)."
BITS = "The stored logarithms are natural ones, and so is the loss: exp and log, not 2 ** and log2."
LOGS_ADDED = (
    "The bucket's logarithm is not the sum, or the mean, of the logarithms of its tokens: their "
    "probabilities are added, logsumexp."
)
HALF_BUCKET = "The bucket has a term with q's rest only: r ln r is missing."
UNWEIGHTED = "The terms are weighted with 1/k each. Their weights are the teacher's probabilities."
SORTED = "The student's numbers were sorted. Each stored p belongs to the token in ids at the same place."
HINTS_AT = {
    "a student that is very sure": (
        "1 − Σ q is 0, or noise, where the student is sure of stored tokens, and ln 0 is -inf; a least "
        "number in its place changes the loss. logsumexp over the tokens that are left has it exactly."
    ),
    "stored probabilities above 1": (
        "In 16 bits the stored ones add up to more than 1 here: the rest is below 0, and its logarithm NaN. "
        "It counts as 0, and 0 ln 0 as 0."
    ),
    "one stored token": (
        "With k = 1 there are two numbers each: the token's, and all the rest. There is one position: the "
        "losses have the shape (1,), which squeeze() would take away."
    ),
    "a large vocabulary": "Whatever V and k are: float16 is how it is stored, not how it is computed.",
}


def top_k_teacher(
    student_logits: Float[Tensor, "N V"], ids: Int[Tensor, "N K"], log_probs: Float[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """The divergence of k tokens and a bucket."""
    return Stored()(student_logits, ids, log_probs)


def left_over(log_q, ids):
    return log_q.scatter(1, ids, -torch.inf).logsumexp(1)


@dataclass(frozen=True)
class Stored:
    """The loss; the fields are what mutants get wrong.

    Args:
        stored: probabilities of their logarithms.
        rest: of the stored probabilities.
        kept: the student's logarithms at the tokens, of its logits and the tokens.
        bucket: the student's logarithm of the rest, of all its logarithms and the tokens.
        term: of tokens, of p and both logarithms.
        rest_term: of the bucket, of p's rest and the logarithm of q's.
    """

    stored: Callable = lambda log_probs: log_probs.float().exp()
    rest: Callable = lambda p: (1 - p.sum(1)).clamp(min=0)
    kept: Callable = lambda z, ids: z.log_softmax(-1).gather(1, ids)
    bucket: Callable = left_over
    term: Callable = lambda p, log_q: torch.xlogy(p, p) - p * log_q
    rest_term: Callable = lambda p, log_q: torch.xlogy(p, p) - p * log_q

    def __call__(self, student_logits, ids, log_probs):
        ids, p = ids.long(), self.stored(log_probs)
        rest = self.rest(p)
        bucket = self.bucket(student_logits.log_softmax(-1), ids)
        terms = self.term(p, self.kept(student_logits, ids))
        return terms.sum(1) + self.rest_term(rest, bucket)


FIRST = "some stored tokens"


def cases(rng: random.Random) -> list[Case]:
    def case(label, k, vocab, student=drawn.logits, probs=None, rows=0, wrong=(), apart=()):
        rows = rows or rng.randint(3, 5)

        def draw():
            ids = torch.tensor([rng.sample(range(vocab), k) for _ in range(rows)], dtype=torch.int32)
            stored = torch.tensor([(probs or _shares)(rng, k) for _ in range(rows)], dtype=torch.float64)
            z = student(rng, rows, vocab)
            if student is not drawn.logits:
                z[range(rows), ids[:, 0].long()] = z.amax(1) + LEAD
            return {"student_logits": z, "ids": ids, "log_probs": stored.log().half()}

        return Case(dict(telling(draw, top_k_teacher, wrong, apart)), label)

    return [
        case(FIRST, rng.randint(3, 4), rng.randint(9, 12), apart=TOLD),
        case("one stored token", 1, rng.randint(5, 8), rows=1),
        case("a large vocabulary", 16, 300),
        case("a student that is very sure", 3, rng.randint(8, 10), _plain),
        case("stored probabilities above 1", 2, rng.randint(6, 8), probs=_above_1),
    ]


LEAD = 120.0  # of logits: what is left is e⁻¹²⁰, far below what 1 − q can hold, and float32 too


def _plain(rng: random.Random, rows: int, vocab: int) -> Tensor:
    return drawn.far_apart(rng, drawn.logits(rng, rows, vocab, 1.0))


def _shares(rng: random.Random, k: int) -> list[float]:
    """Falling probabilities that leave something over."""
    parts = sorted((rng.uniform(0.2, 1.0) for _ in range(k)), reverse=True)
    mass = rng.uniform(0.55, 0.85)
    return [mass * part / sum(parts) for part in parts]


def _above_1(rng: random.Random, k: int) -> list[float]:
    """Two of which 16 bits make a sum that is above 1 by more than rounding in 32 bits."""
    while True:
        first = rng.uniform(0.55, 0.9)
        rounded = torch.tensor([first, 1 - first], dtype=torch.float64).log().half().double().exp()
        if rounded.sum() > 1 + 2e-5:
            return [first, 1 - first]


def _even(student_logits, ids, log_probs):
    p, size = log_probs.float().exp(), student_logits.shape[1]
    share = (1 - p.sum(1, keepdim=True)).clamp(min=0) / (size - p.shape[1])
    p = share.expand(len(p), size).scatter(1, ids.long(), p)
    return (torch.xlogy(p, p) - p * student_logits.log_softmax(-1)).sum(1)


def _reversed(student_logits, ids, log_probs):
    log_q = student_logits.log_softmax(-1)
    p_rest = (1 - log_probs.float().exp().sum(1)).clamp(min=1e-9)
    kept, rest = log_q.gather(1, ids.long()), left_over(log_q, ids.long())
    return (kept.exp() * (kept - log_probs)).sum(1) + rest.exp() * (rest - p_rest.log())


def _in_half(student_logits, ids, log_probs):
    """Sixteen bits all the way."""
    p, log_q = log_probs.exp(), student_logits.log_softmax(-1).half()
    rest = (1 - p.sum(1)).clamp(min=0)
    terms = (p * (log_probs - log_q.gather(1, ids.long()))).sum(1)
    return (terms + torch.xlogy(rest, rest) - rest * left_over(log_q, ids.long())).float()


def _in_place(student_logits, ids, log_probs):
    losses = top_k_teacher(student_logits, ids, log_probs)
    student_logits.scatter_(1, ids.long(), -torch.inf)
    return losses


def _squeezed(student_logits, ids, log_probs):
    return top_k_teacher(student_logits, ids, log_probs).squeeze()


def _exp_in_half(log_probs):
    return log_probs.exp().float()


def _softmax_of_stored(log_probs):
    return log_probs.float().softmax(-1)


def _kept_scaled(z, ids):
    return z.gather(1, ids).log_softmax(-1)


def _by_difference(log_q, ids, least=0.0):
    return (1 - log_q.gather(1, ids).exp().sum(1)).clamp(min=least).log()


_no_rest = Stored(rest_term=lambda p, log_q: 0.0)
_scaled = Stored(stored=_softmax_of_stored, rest_term=lambda p, log_q: 0.0)
_both_scaled = Stored(stored=_softmax_of_stored, kept=_kept_scaled, rest_term=lambda p, log_q: 0.0)
_student_scaled = Stored(kept=_kept_scaled)
_cross = Stored(term=lambda p, log_q: -p * log_q, rest_term=lambda p, log_q: -p * log_q)
_columns = Stored(
    kept=lambda z, ids: z.log_softmax(-1)[:, : ids.shape[1]],
    bucket=lambda log_q, ids: log_q[:, ids.shape[1] :].logsumexp(1),
)
_own_top = Stored(
    kept=lambda z, ids: z.log_softmax(-1).topk(ids.shape[1]).values,
    bucket=lambda log_q, ids: left_over(log_q, log_q.topk(ids.shape[1]).indices),
)
_bits = Stored(stored=lambda log_probs: 2 ** log_probs.float())
_logs_added = Stored(
    bucket=lambda log_q, ids: log_q.scatter(1, ids, 0.0).sum(1) / (log_q.shape[1] - ids.shape[1])
)
_half_bucket = Stored(rest_term=lambda p, log_q: -p * log_q)
_unweighted = Stored(term=lambda p, log_q: (p.log() - log_q) / p.shape[1])
_rounded = Stored(stored=_exp_in_half)
_sorted = Stored(kept=lambda z, ids: z.log_softmax(-1).gather(1, ids.sort(1).values))
_difference = Stored(bucket=_by_difference)
_least = Stored(bucket=lambda log_q, ids: _by_difference(log_q, ids, 1e-9))
_zeros = Stored(bucket=lambda log_q, ids: log_q.exp().scatter(1, ids, 0.0).sum(1).log())
_low = Stored(bucket=lambda log_q, ids: log_q.scatter(1, ids, -100.0).logsumexp(1))
_below_0 = Stored(rest=lambda p: 1 - p.sum(1), rest_term=lambda p, log_q: p * (p.log() - log_q))
_zero_log = Stored(rest_term=lambda p, log_q: p * (p.log() - log_q))

TOLD = (
    *(_no_rest, _scaled, _both_scaled, _student_scaled, _even, _reversed, _cross, _columns, _own_top),
    *(_bits, _logs_added, _half_bucket, _unweighted, _sorted),
)
EXERCISE = Exercise(
    name="06.top_k_teacher",
    function="top_k_teacher",
    title="A teacher that is stored",
    points=12,
    minutes=25,
    level=4,
    asks=ASKS,
    signature="top_k_teacher(student_logits, ids, log_probs)",
    cases=cases,
    reference=top_k_teacher,
    comparison=Close(atol=2e-5, rtol=2e-5, axes=("row",)),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("leaves the rest out", _no_rest, FIRST, NO_REST),
        Mutant("scales the teacher up", _scaled, FIRST, SCALED),
        Mutant("scales both up", _both_scaled, FIRST, BOTH_SCALED),
        Mutant("scales the student up", _student_scaled, FIRST, STUDENT_SCALED),
        Mutant("spreads the rest evenly", _even, FIRST, SPREAD),
        Mutant("has the divergence the wrong way round", _reversed, FIRST, REVERSED),
        Mutant("has the cross-entropy", _cross, FIRST, CROSS),
        Mutant("takes the first tokens", _columns, FIRST, COLUMNS),
        Mutant("takes the student's likeliest", _own_top, FIRST, OWN_TOP),
        Mutant("takes powers of two", _bits, FIRST, BITS),
        Mutant("adds logarithms for the bucket", _logs_added, FIRST, LOGS_ADDED),
        Mutant("has half of the bucket's term", _half_bucket, FIRST, HALF_BUCKET),
        Mutant("weighs all tokens alike", _unweighted, FIRST, UNWEIGHTED),
        Mutant("sorts the tokens", _sorted, FIRST, SORTED),
        Mutant("computes in 16 bits", _in_half, FIRST),
        Mutant("takes exp in 16 bits", _rounded, FIRST),
        Mutant("squeezes", _squeezed, "one stored token"),
        Mutant("has 0 for probabilities that are taken out", _zeros, "a student that is very sure"),
        Mutant("has a low number for what is taken out", _low, "a student that is very sure"),
        Mutant("subtracts the student's from 1", _difference, "a student that is very sure"),
        Mutant("has a least rest of the student", _least, "a student that is very sure"),
        Mutant("lets the rest go below 0", _below_0, "stored probabilities above 1"),
        Mutant("has 0 times an infinity", _zero_log, "stored probabilities above 1"),
        Mutant("changes its input", _in_place, NoMutation().name),
    ),
)

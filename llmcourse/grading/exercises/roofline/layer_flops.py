"""02.layer_flops: the matrix products of a decoder layer."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Near
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.rules import LIBRARIES, Forbid

ASKS = r"""
A decoder layer, as in Llama: $B$ texts, each with $T$ new tokens that look at $S$ keys ($S = T$ in prefill,
$T = 1$ in a decoding step). There are $N$ query heads and $N_{kv}$ key/value heads of $D$ features, and an
MLP of width $H'$. Its matrix products, for the $BT$ tokens together:

| product | of one token |
|---|---|
| queries, keys and values | $H$ features times a matrix of $N D$ columns, and twice one of $N_{kv} D$ |
| scores $q K^\top$ | in each of the $N$ query heads, with all $S$ keys |
| weighted sum of values | in each of the $N$ query heads, over all $S$ values |
| output | $N D$ features back to $H$ |
| gate and up (SwiGLU) | $H$ features to $H'$, twice |
| down | $H'$ features to $H$ |

Write `layer_flops(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp)`.

- the arguments are $B, T, S, H, N, N_{kv}, D, H'$, all ints. $N D$ need not be $H$.
- returns the FLOPs of all these products together, an int.

Norms, RoPE, softmax and additions are left out, as PyTorch's `FlopCounterMode` leaves them out. It counts all
$T S$ pairs of token and key, also those that the causal mask discards; do the same.

```python
>>> layer_flops(1, 1, 1, hidden=2, heads=1, kv_heads=1, head_dim=2, mlp=3)
76
>>> layer_flops(1, 1, 228, 4096, 32, 8, 128, 14336) * 32       # Llama-3-8B's layers, one step at 228 keys
14078181376
```
"""

HINTS = (
    "Go through the table row by row, and write the shape of both matrices of each product. A product of n "
    "× m and m × p takes 2nmp FLOPs.",
    "The linear layers have B · T rows: 2 · B · T · (inputs · outputs), summed over seven matrices. "
    "Attention has no weights: every token meets every key in every query head.",
    "Scores: B · T · S · N dot products of length D, so 2 · B · T · S · N · D; the weighted sum takes as "
    "many again. Grouped heads make K and V narrower, and these two no cheaper.",
)

HINTS_AT = {
    "many keys": "One new token and S keys: attention takes S times what it takes with one key.",
    "several new tokens": (
        "Every new token has its own query: scores and weighted sums grow with T · S, all linear layers "
        "with T."
    ),
    "a batch": "Every row of the batch does all of it, attention included.",
    "grouped heads": (
        "The matrices of K and V have N_kv · D columns each. The queries still have N heads, and each of "
        "them meets keys: attention itself counts N."
    ),
    "heads that are not H / N wide": (
        "N · D is not H here: the matrix of the queries is H × (N · D), the output matrix (N · D) × H."
    ),
}


def layer_flops(
    batch: int, new_tokens: int, keys: int, hidden: int, heads: int, kv_heads: int, head_dim: int, mlp: int
) -> int:
    """Two for each weight and token, and two for each feature of each pair of token and key, twice."""
    weights = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * mlp
    pairs = 2 * new_tokens * keys * heads * head_dim
    return 2 * batch * (new_tokens * weights + pairs)


def cases(rng: random.Random) -> list[Case]:
    def case(label, batch, new_tokens, keys, hidden, heads, kv_heads, head_dim):
        arguments = {"batch": batch, "new_tokens": new_tokens, "keys": keys, "hidden": hidden, "heads": heads}
        arguments |= {"kv_heads": kv_heads, "head_dim": head_dim, "mlp": hidden + 8 * rng.randint(3, 40)}
        return Case(arguments, label)

    def equal(label, batch, new_tokens, keys):
        heads, head_dim = rng.choice((4, 6, 8, 12)), rng.choice((32, 48, 64))
        return case(label, batch, new_tokens, keys, heads * head_dim, heads, heads, head_dim)

    kv_heads, group, head_dim = rng.choice((2, 3, 4)), rng.choice((2, 3, 5)), rng.choice((32, 48, 64))
    heads = kv_heads * group
    past, new, batch = rng.randint(500, 2000), rng.randint(5, 50), rng.randint(3, 40)
    return [
        equal("one token", 1, 1, 1),
        equal("many keys", 1, 1, past),
        equal("several new tokens", 1, new, past + new),
        equal("a batch", batch, 1, past),
        case("grouped heads", 1, 1, past, heads * head_dim, heads, kv_heads, head_dim),
        case(
            "heads that are not H / N wide", batch, new, new, heads * head_dim // 2, heads, kv_heads, head_dim
        ),
    ]


def _one_flop(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
    return layer_flops(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp) // 2


def _two_mlp_matrices(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
    return layer_flops(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp) - (
        2 * batch * new_tokens * hidden * mlp
    )


def _no_output(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
    return layer_flops(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp) - (
        2 * batch * new_tokens * hidden * heads * head_dim
    )


def _attention(part):
    """An answer that is right but for attention, which costs `part(…)`."""

    def answer(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
        linear = layer_flops(batch, new_tokens, 0, hidden, heads, kv_heads, head_dim, mlp)
        return linear + part(batch, new_tokens, keys, heads, kv_heads, head_dim)

    return answer


_scores_alone = _attention(lambda b, t, s, n, kv, d: 2 * b * t * s * n * d)
_among_the_new = _attention(lambda b, t, s, n, kv, d: 4 * b * t * t * n * d)
_one_query = _attention(lambda b, t, s, n, kv, d: 4 * b * s * n * d)
_one_row = _attention(lambda b, t, s, n, kv, d: 4 * t * s * n * d)
_grouped_attention = _attention(lambda b, t, s, n, kv, d: 4 * b * t * s * kv * d)


def _not_grouped(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
    return layer_flops(batch, new_tokens, keys, hidden, heads, heads, head_dim, mlp)


def _square(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
    """Takes the queries to be as wide as the residual stream."""
    width = hidden + kv_heads * head_dim
    return 2 * batch * new_tokens * (2 * hidden * width + 3 * hidden * mlp + 2 * keys * heads * head_dim)


EXERCISE = Exercise(
    name="02.layer_flops",
    function="layer_flops",
    title="What a layer computes",
    points=10,
    minutes=20,
    level=3,
    asks=ASKS,
    signature="layer_flops(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp)",
    cases=cases,
    reference=layer_flops,
    comparison=Near(rtol=0.0),
    rules=(Forbid(names=(*LIBRARIES, "costs", "FlopCounterMode")),),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("counts one FLOP for two", _one_flop, "one token"),
        Mutant("gives the MLP two matrices", _two_mlp_matrices, "one token"),
        Mutant("forgets the output matrix", _no_output, "one token"),
        Mutant("counts the scores and not the weighted sum", _scores_alone, "one token"),
        Mutant("lets new tokens look at new ones alone", _among_the_new, "many keys"),
        Mutant("has one query for all new tokens", _one_query, "several new tokens"),
        Mutant("has attention in one row alone", _one_row, "a batch"),
        Mutant("makes K and V as wide as Q", _not_grouped, "grouped heads"),
        Mutant("counts attention in the key/value heads", _grouped_attention, "grouped heads"),
        Mutant("takes Q to be as wide as the stream", _square, "heads that are not H / N wide"),
    ),
)

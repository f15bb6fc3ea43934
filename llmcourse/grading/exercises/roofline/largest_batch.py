"""02.largest_batch: how many texts fit beside the weights."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Exact, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.rules import LIBRARIES, Forbid

ASKS = r"""
Memory holds the weights, and for each text of the batch a cache: the key and the value of every one of its
tokens, in every layer and every **key/value head**. (Activations are left out here; in practice leave a tenth
free for them.)

Write `largest_batch(memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context,
cache_bits)`.

- `memory_gib`: memory in GiB, of $2^{30}$ bytes. `parameters`: how many weights the model has, `weight_bits`:
  bits of each, 16 in bf16, 4 in int4.
- `layers`, `heads`, `kv_heads`, `head_dim`: of the model. With grouped queries `kv_heads` is less than
  `heads`.
- `context`: tokens that each text may have. `cache_bits`: bits of a number in the cache, which need not be
  those of a weight.
- returns a tuple `(token_bytes, weight_bytes, batch)`: bytes of one cached token, all layers together; bytes
  of the weights; and the largest number of texts that fit, an int, 0 where not even one does.

```python
>>> largest_batch(80, 8_030_261_248, 16, 32, 32, 8, 128, 8192, 16)     # Llama-3-8B, bf16, on an A100
(131072.0, 16060522496.0, 65)
>>> largest_batch(12, 8_030_261_248, 16, 32, 32, 8, 128, 8192, 16)     # too large by itself
(131072.0, 16060522496.0, 0)
```
"""

HINTS = (
    "First one number in one layer: how many numbers does a key have, over all heads that have keys? Then "
    "times the value, times the layers, times the bytes.",
    "token_bytes = 2 · layers · kv_heads · head_dim · cache_bits / 8; weight_bytes = parameters · "
    "weight_bits / 8. A text takes context · token_bytes.",
    "What is left of memory_gib · 2³⁰ after the weights, divided by what a text takes, rounded down: "
    "int(free // row). Less than 0 can be left.",
)

HINTS_AT = {
    "grouped heads": "Queries are not kept. Keys and values exist in kv_heads heads, whatever shares them.",
    "weights of few bits": "weight_bits is for the weights alone: parameters · weight_bits / 8 bytes.",
    "a cache of 8 bits": "The cache has bits of its own, cache_bits, whatever the weights have.",
    "memory that is full to the last byte": (
        "What fills the memory exactly still fits: round down, and subtract nothing. Memory is in GiB, 2³⁰ "
        "bytes."
    ),
    "no room for a text": "Less than one text's cache is left: rounding down gives 0.",
    "weights that are too large": "Nothing is left, the difference is negative; the answer is 0: max helps.",
}


def largest_batch(
    memory_gib: float | int,
    parameters: int,
    weight_bits: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    cache_bits: int,
) -> tuple[float, float, int]:
    """Free bytes over the bytes of a row, rounded down."""
    token_bytes = 2 * layers * kv_heads * head_dim * cache_bits / 8
    weight_bytes = parameters * weight_bits / 8
    free_bytes = memory_gib * 2**30 - weight_bytes
    return token_bytes, weight_bytes, max(0, int(free_bytes // (context * token_bytes)))


def cases(rng: random.Random) -> list[Case]:
    def case(label, *, rows, groups=1, weight_bits=16, cache_bits=16, parameters=None, memory_gib=None):
        """With memory for so many rows, a number well away from a whole one."""
        kv_heads, head_dim, layers = rng.choice((4, 8, 12)), rng.choice((64, 96, 128)), rng.randint(12, 48)
        parameters = parameters or rng.randint(5 * 10**8, 15 * 10**8)
        memory_gib = memory_gib or rng.randint(40, 60)
        left_bytes = abs(memory_gib * 2**30 - parameters * weight_bits // 8)
        token_bytes = 2 * layers * kv_heads * head_dim * cache_bits // 8
        arguments = {"memory_gib": memory_gib, "parameters": parameters, "weight_bits": weight_bits}
        arguments |= {"layers": layers, "heads": kv_heads * groups, "kv_heads": kv_heads}
        arguments |= {"head_dim": head_dim, "context": round(left_bytes / (rows * token_bytes))}
        return Case(arguments | {"cache_bits": cache_bits}, label)

    def two():
        """Rows, and so few that neither the weights nor 10⁹ for 2³⁰ bytes would make a difference."""
        return rng.uniform(2.3, 2.7)

    # Powers of 2 throughout: 2 GiB of weights, and rows of 1 GiB.
    full = {"memory_gib": 2 + rng.randint(3, 20), "parameters": 2**30, "weight_bits": 16, "layers": 32}
    full |= {"heads": rng.choice((8, 32)), "kv_heads": 8, "head_dim": 128, "context": 8192, "cache_bits": 16}
    return [
        case("as many key heads as query heads", rows=two()),
        case("grouped heads", rows=two(), groups=rng.choice((2, 4, 8))),
        case("weights of few bits", rows=two(), weight_bits=rng.choice((4, 8))),
        case("a cache of 8 bits", rows=two(), groups=2, cache_bits=8),
        Case(full, "memory that is full to the last byte"),
        case("no room for a text", rows=rng.uniform(0.3, 0.7), groups=4),
        case("weights that are too large", rows=two(), parameters=10**10, memory_gib=rng.randint(8, 16)),
    ]


def _changed(**changes):
    """An answer that is right but for some arguments, each made of all of them."""

    def answer(memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, cache_bits):
        given = {"memory_gib": memory_gib, "parameters": parameters, "weight_bits": weight_bits}
        given |= {"layers": layers, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        given |= {"context": context, "cache_bits": cache_bits}
        return largest_batch(**given | {name: change(given) for name, change in changes.items()})

    return answer


_keys_alone = _changed(layers=lambda given: given["layers"] / 2)
_one_layer = _changed(layers=lambda given: 1)
_bits_for_bytes = _changed(
    weight_bits=lambda given: 8 * given["weight_bits"], cache_bits=lambda given: 8 * given["cache_bits"]
)
_query_heads = _changed(kv_heads=lambda given: given["heads"])
_always_16 = _changed(weight_bits=lambda given: 16)
_bits_of_the_weights = _changed(cache_bits=lambda given: given["weight_bits"])
_decimal = _changed(memory_gib=lambda given: given["memory_gib"] * 1e9 / 2**30)


def _weights_forgotten(
    memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, cache_bits
):
    sizes = (layers, heads, kv_heads, head_dim, context, cache_bits)
    token_bytes, _, batch = largest_batch(memory_gib, 0, weight_bits, *sizes)
    return token_bytes, parameters * weight_bits / 8, batch


def _less_than_full(
    memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, cache_bits
):
    sizes = (layers, heads, kv_heads, head_dim, context, cache_bits)
    token_bytes, weight_bytes, batch = largest_batch(memory_gib, parameters, weight_bits, *sizes)
    exact = batch and weight_bytes + batch * context * token_bytes == memory_gib * 2**30
    return token_bytes, weight_bytes, batch - bool(exact)


def _at_least_one(
    memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, cache_bits
):
    sizes = (layers, heads, kv_heads, head_dim, context, cache_bits)
    *sizes_in_bytes, batch = largest_batch(memory_gib, parameters, weight_bits, *sizes)
    return *sizes_in_bytes, max(1, batch)


def _negative(memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, cache_bits):
    sizes = (layers, heads, kv_heads, head_dim, context, cache_bits)
    token_bytes, weight_bytes, _ = largest_batch(memory_gib, parameters, weight_bits, *sizes)
    return token_bytes, weight_bytes, int((memory_gib * 2**30 - weight_bytes) // (context * token_bytes))


EXERCISE = Exercise(
    name="02.largest_batch",
    function="largest_batch",
    title="How many texts fit",
    points=9,
    minutes=15,
    level=2,
    asks=ASKS,
    signature=(
        "largest_batch(memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, "
        "cache_bits)"
    ),
    cases=cases,
    reference=largest_batch,
    comparison=Parts({"token_bytes": Near(), "weight_bytes": Near(), "batch": Exact()}),
    rules=(Forbid(names=(*LIBRARIES, "roofline", "costs")),),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("keeps keys and no values", _keys_alone, "as many key heads as query heads"),
        Mutant("keeps one layer", _one_layer, "as many key heads as query heads"),
        Mutant("takes bits for bytes", _bits_for_bytes, "as many key heads as query heads"),
        Mutant("keeps the query heads", _query_heads, "grouped heads"),
        Mutant("takes all weights for bf16", _always_16, "weights of few bits"),
        Mutant("gives the cache the bits of the weights", _bits_of_the_weights, "weights of few bits"),
        Mutant("takes GiB for GB", _decimal, "memory that is full to the last byte"),
        Mutant("forgets the weights", _weights_forgotten, "memory that is full to the last byte"),
        Mutant("leaves the last byte free", _less_than_full, "memory that is full to the last byte"),
        Mutant("always has room for one", _at_least_one, "no room for a text"),
        Mutant("has a negative batch", _negative, "weights that are too large"),
    ),
)

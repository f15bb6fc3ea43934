"""02.ridge: a datasheet's two numbers, and the roof that they make."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Exact, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.rules import LIBRARIES, Forbid

ASKS = r"""
A datasheet gives two numbers, in units and with a footnote that are easily misread. The A100 80GB: *2,039
GB/s*, and *312 TFLOPS, 624 with sparsity*, in bf16.

- Bandwidths are sold in GB/s of $10^9$ bytes, peaks in TFLOP/s of $10^{12}$. (Only memory comes in GiB,
  $2^{30}$: who takes 2,039 GB/s for GiB/s gets the 142.51 of the lecture's slide instead of 153.0.)
- *With sparsity* means that half of the weights are zeros in a pattern which the hardware skips. A dense
  matrix reaches half of that figure. Many datasheets print the sparse figure alone.

Write `roof(bandwidth_gb, peak_tflops, sparse, intensity)`.

- `bandwidth_gb`: GB/s. `peak_tflops`: TFLOP/s, as printed. `sparse`: whether that figure is one with
  sparsity.
- `intensity`: of an operation on dense numbers, in FLOP/byte.
- returns a tuple `(ridge, attainable, bound)`: the machine's ridge for dense numbers in FLOP/byte; the FLOP/s
  (not TFLOP/s) that the operation can reach at best; and `"memory"` or `"compute"`, whichever is the limit.
  An operation exactly on the ridge counts as `"memory"`.

```python
>>> roof(2039, 312, False, 1.0)
(153.01618440411966, 2039000000000.0, 'memory')
>>> roof(2039, 624, True, 200.0)
(153.01618440411966, 312000000000000.0, 'compute')
```
"""

HINTS = (
    "Bring both numbers into plain units first: byte/s and FLOP/s, for dense numbers. The ridge is the "
    "intensity at which both limits are equally slow.",
    "ridge = peak / bandwidth. An operation of intensity I gets I FLOPs done with each byte that arrives: "
    "at most I · bandwidth FLOP/s, and never more than the peak.",
    "attainable = min(peak, intensity · bandwidth). Use the dense peak in all three results: halve it at "
    "the very beginning if sparse is True.",
)

HINTS_AT = {
    "above the ridge": "Nothing is faster than the peak: intensity · bandwidth counts below the ridge alone.",
    "a peak with sparsity": "The printed figure counts skipped zeros as work. Dense numbers reach half.",
    "between dense and sparse": (
        "Here the printed peak gives another answer than the dense one. Compare with the ridge that is "
        "returned, and take the minimum with the dense peak."
    ),
    "on the ridge": "Both limits are equal there; the text says what to call it.",
}


def roof(
    bandwidth_gb: float | int, peak_tflops: float | int, sparse: bool, intensity: float | int
) -> tuple[float, float, str]:
    """Dense peak over bandwidth, and the lower of the two limits."""
    peak, bandwidth = peak_tflops * 1e12 / (2 if sparse else 1), bandwidth_gb * 1e9
    ridge = peak / bandwidth
    return ridge, min(peak, intensity * bandwidth), "compute" if intensity > ridge else "memory"


def cases(rng: random.Random) -> list[Case]:
    def case(label, times_the_ridge, sparse):
        bandwidth_gb, dense = rng.randint(300, 8000), rng.randint(60, 2200)
        intensity = round(times_the_ridge * dense * 1e3 / bandwidth_gb, 2)
        printed = 2 * dense if sparse else dense
        arguments = {"bandwidth_gb": bandwidth_gb, "peak_tflops": printed, "sparse": sparse}
        return Case(arguments | {"intensity": intensity}, label)

    # Whole numbers, so that the intensity is the ridge exactly.
    ridge, bandwidth_tb = rng.choice((32, 64, 128, 256)), rng.randint(1, 8)
    on_it = {"bandwidth_gb": 1000 * bandwidth_tb, "peak_tflops": ridge * bandwidth_tb, "sparse": False}
    return [
        case("below the ridge", rng.uniform(0.05, 0.8), False),
        case("above the ridge", rng.uniform(2.2, 9), False),
        case("a peak with sparsity", rng.uniform(0.05, 0.8), True),
        case("between dense and sparse", rng.uniform(1.2, 1.8), True),
        Case(on_it | {"intensity": float(ridge)}, "on the ridge"),
    ]


def _gib(bandwidth_gb, peak_tflops, sparse, intensity):
    return roof(bandwidth_gb * 2**30 / 1e9, peak_tflops, sparse, intensity)


def _binary_tera(bandwidth_gb, peak_tflops, sparse, intensity):
    return roof(bandwidth_gb, peak_tflops * 2**40 / 1e12, sparse, intensity)


def _upside_down(bandwidth_gb, peak_tflops, sparse, intensity):
    ridge, attainable, bound = roof(bandwidth_gb, peak_tflops, sparse, intensity)
    return 1 / ridge, attainable, bound


def _swaps_the_bounds(bandwidth_gb, peak_tflops, sparse, intensity):
    ridge, attainable, bound = roof(bandwidth_gb, peak_tflops, sparse, intensity)
    return ridge, attainable, {"memory": "compute", "compute": "memory"}[bound]


def _tera(bandwidth_gb, peak_tflops, sparse, intensity):
    ridge, attainable, bound = roof(bandwidth_gb, peak_tflops, sparse, intensity)
    return ridge, attainable / 1e12, bound


def _without_a_roof(bandwidth_gb, peak_tflops, sparse, intensity):
    ridge, _, bound = roof(bandwidth_gb, peak_tflops, sparse, intensity)
    return ridge, intensity * bandwidth_gb * 1e9, bound


def _always_memory(bandwidth_gb, peak_tflops, sparse, intensity):
    return *roof(bandwidth_gb, peak_tflops, sparse, intensity)[:2], "memory"


def _as_printed(bandwidth_gb, peak_tflops, sparse, intensity):
    return roof(bandwidth_gb, peak_tflops, False, intensity)


def _printed_for_the_bound(bandwidth_gb, peak_tflops, sparse, intensity):
    ridge, attainable, _ = roof(bandwidth_gb, peak_tflops, sparse, intensity)
    return ridge, attainable, roof(bandwidth_gb, peak_tflops, False, intensity)[2]


def _printed_for_the_roof(bandwidth_gb, peak_tflops, sparse, intensity):
    ridge, _, bound = roof(bandwidth_gb, peak_tflops, sparse, intensity)
    return ridge, roof(bandwidth_gb, peak_tflops, False, intensity)[1], bound


def _compute_on_the_ridge(bandwidth_gb, peak_tflops, sparse, intensity):
    ridge, attainable, _ = roof(bandwidth_gb, peak_tflops, sparse, intensity)
    return ridge, attainable, "memory" if intensity < ridge else "compute"


EXERCISE = Exercise(
    name="02.ridge",
    function="roof",
    title="The ridge of a datasheet",
    points=7,
    minutes=15,
    level=2,
    asks=ASKS,
    signature="roof(bandwidth_gb, peak_tflops, sparse, intensity)",
    cases=cases,
    reference=roof,
    comparison=Parts({"ridge": Near(), "attainable": Near(), "bound": Exact()}),
    rules=(Forbid(names=(*LIBRARIES, "roofline")),),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("takes GB/s for GiB/s", _gib, "below the ridge"),
        Mutant("takes TFLOP/s for 2⁴⁰ FLOP/s", _binary_tera, "below the ridge"),
        Mutant("divides bandwidth by peak", _upside_down, "below the ridge"),
        Mutant("swaps the bounds", _swaps_the_bounds, "below the ridge"),
        Mutant("returns TFLOP/s", _tera, "below the ridge"),
        Mutant("has no roof", _without_a_roof, "above the ridge"),
        Mutant("is always bound by memory", _always_memory, "above the ridge"),
        Mutant("takes a peak with sparsity for a dense one", _as_printed, "a peak with sparsity"),
        Mutant("judges the bound by the printed peak", _printed_for_the_bound, "between dense and sparse"),
        Mutant("has its roof at the printed peak", _printed_for_the_roof, "between dense and sparse"),
        Mutant("says compute on the ridge", _compute_on_the_ridge, "on the ridge"),
    ),
)

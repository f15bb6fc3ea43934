"""05.triton_int8: a kernel that multiplies codes, adds in int32, and puts the scales in at the end.

Triton's interpreter runs it on any CPU, as that of 03.triton_softmax.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.triton_softmax import BESIDE, no_triton
from llmcourse.grading.exercises.quantization import programs
from llmcourse.grading.exercises.quantization.drawn import OWN_PARTS
from llmcourse.grading.rules import LIBRARIES, Forbid, NoMutation, OneLaunch, Only

ASKS = r"""
With activations and weights in int8, a linear layer is a product of integers: twice the rate of 16 bits on
the tensor cores, and half of the bytes. The sums are **exact**, if they are kept in int32; the scales come in
once, at the end, when a sum is complete (the *epilogue*):

$$y_{tn} = s_t\, S_n \sum_k q_{tk}\, Q_{nk}$$

Write a Triton kernel, above the function, and `int8_matmul(x, w, x_scales, w_scales, tile)`, which launches
it.

- `x`: contiguous `int8` tensor of shape `(M, K)`: $q$, the codes of $M$ tokens.
- `w`: contiguous `int8` tensor of shape `(N, K)`: $Q$, the codes of a weight, a row for each output.
- `x_scales`, `w_scales`: `float32` tensors of shapes `(M,)` and `(N,)`: $s$ and $S$.
- `tile`: a power of two, from 32 to 128. Each program makes `tile` × `tile` numbers of the result, and walks
  along $K$ in steps of `tile`. No size need be a multiple of it.
- returns $y$, a new `float32` tensor of shape `(M, N)`.

One launch, in which each program loads the codes of its rows and of its columns **once** (so `x` is loaded as
often as there are tiles beside each other, and `w` as there are below each other) and the scales once, and
each number of the result is stored once. What lies outside of the matrices is masked. The sums are exact:
floats have no room for every integer from $2^{24}$ on, int8 none from 128 on. PyTorch makes the result's
memory; nothing else of it runs. `tl.dot(a, b)` of two int8 tiles gives int32; where the sum
so far is its third argument, it has to be told: `tl.dot(a, b, acc, out_dtype=tl.int32)`.

The setup cell has imported `triton` and `tl`, and the kernel runs on the CPU, in Python, as in
03.triton_softmax; where there is no Triton, `check` says that it was not run, and the points are given where
the lab is graded.

```python
>>> x, w = torch.tensor([[127, -3]], dtype=torch.int8), torch.tensor([[100, 20], [-1, 5]], dtype=torch.int8)
>>> int8_matmul(x, w, torch.tensor([0.5]), torch.tensor([0.01, 1.0]), tile=32)     # of 12,640 and -142
tensor([[ 63.2000, -71.0000]])
```
"""

HINTS = (
    "A grid of two dimensions: triton.cdiv(M, tile) programs along the rows, triton.cdiv(N, tile) along the "
    "columns. In the kernel, rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), and columns likewise.",
    "acc = tl.zeros((BLOCK, BLOCK), dtype=tl.int32), then a loop over the starts along K, with "
    "k = start + tl.arange(0, BLOCK): a tile of x with pointers x_ptr + rows[:, None] * K + k[None, :], one "
    "of w with w_ptr + columns[None, :] * K + k[:, None], and acc += tl.dot(x, w).",
    "Each load has a mask, (rows[:, None] < M) & (k[None, :] < K) for x, and other=0. Behind the loop load "
    "both scales, multiply acc.to(tl.float32) by x_scales[:, None] and w_scales[None, :], and store at "
    "rows[:, None] * N + columns[None, :] with a mask.",
)

NO_X = "The scales of the tokens are missing."
NO_W = "The scales of the weight are missing."
SWAPPED = (
    "The scales are the other way round: those of x belong to rows of the result, those of w to columns."
)
IN_INT8 = "The sums are kept in int8 here, and wrap around from 128 on. tl.zeros((…), dtype=tl.int32)."
AS_K_N = (
    "w is read as if it were of shape (K, N). It is (N, K): from one k to the next it is 1 element, not N."
)
CUT = "The result is cut off to whole numbers: it is a float32 tensor."
HINTS_AT = {
    "large codes": (
        "A product of two codes is up to 16,129: a sum of few of them has no room in int16, either."
    ),
    "more columns than a tile": (
        "A loop goes over all of K, in steps of a tile. And the scales wait until the sum is complete: "
        "inside of the loop they would count for the earlier steps again."
    ),
    "several tiles": (
        "Each program has its own rows and its own columns: two numbers say which it is, and the grid has "
        "as many as there are tiles, in the order that the kernel reads them."
    ),
    "odd sizes": (
        "Masks in three places: rows and k of x, columns and k of w, rows and columns of the result. What "
        "is masked counts 0; triton.cdiv rounds up, and the last step along K is one, too."
    ),
    "a sum that cancels": (
        "Somewhere integers become floats before the sum is complete. Beyond 2²⁴ they are rounded, and when "
        "the large parts cancel, the rounding is what is left. Both tiles stay int8, acc int32, to the end "
        "of the loop."
    ),
    "one kernel": (
        "All in one launch, a grid of tiles of tile × tile, masks at every load and store: nothing outside "
        "of the matrices is read, and nothing inside twice by the same program."
    ),
    "nothing else of PyTorch": "torch.empty(…) is all that PyTorch does here; the arithmetic is the "
    "kernel's.",
}

ANSWER = """
import torch
import triton
import triton.language as tl


@triton.jit
def kernel(x_ptr, w_ptr, s_ptr, S_ptr, y_ptr, M, N, K, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.int32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x_mask = (rows[:, None] < M) & (k[None, :] < K)
        w_mask = (columns[None, :] < N) & (k[:, None] < K)
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_mask, other=0)
        w = tl.load(w_ptr + columns[None, :] * K + k[:, None], mask=w_mask, other=0)
        acc += tl.dot(x, w)
    s = tl.load(s_ptr + rows, mask=rows < M, other=0.0)
    S = tl.load(S_ptr + columns, mask=columns < N, other=0.0)
    y = acc.to(tl.float32) * s[:, None] * S[None, :]
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(y_ptr + rows[:, None] * N + columns[None, :], y, mask=inside)


def int8_matmul(x, w, x_scales, w_scales, tile):
    (M, K), N = x.shape, len(w)
    y = torch.full((M, N), torch.nan)
    grid = (triton.cdiv(M, tile), triton.cdiv(N, tile))
    kernel[grid](x, w, x_scales, w_scales, y, M, N, K, BLOCK=tile)
    return y
"""


def written(*changes: tuple[str, str]) -> Callable:
    """The answer with these texts replaced."""
    return programs.written(ANSWER, "int8_matmul", *changes)


def int8_matmul(
    x: Int[Tensor, "M K"],
    w: Int[Tensor, "N K"],
    x_scales: Float[Tensor, " M"],
    w_scales: Float[Tensor, " N"],
    tile: int,
) -> Float[Tensor, "M N"]:
    """What the kernel has to come to: exact sums, and the scales in float64."""
    sums = (x.double() @ w.double().T).round()
    return (sums * x_scales.double()[:, None] * w_scales.double()).float()


def loads(rows: int, columns: int, depth: int, tile: int) -> int:
    """The most numbers that are loaded: codes and scales, once by each program that needs them."""
    beside, below = -(-columns // tile), -(-rows // tile)
    return beside * rows * (depth + 1) + below * columns * (depth + 1)


def cases(rng: random.Random) -> list[Case]:
    def case(label, x, w, tile=32):
        scales = [torch.tensor([rng.uniform(0.004, 0.02) for _ in range(len(codes))]) for codes in (x, w)]
        allows = {"loads": loads(len(x), *w.shape, tile), "stores": len(x) * len(w)}
        arguments = {"x": x, "w": w, "x_scales": scales[0], "w_scales": scales[1], "tile": tile}
        return Case(arguments, label, allows=allows)

    def codes(rows, columns, low=-128, high=127):
        values = [[rng.randint(low, high) for _ in range(columns)] for _ in range(rows)]
        return torch.tensor(values, dtype=torch.int8)

    odd = rng.randint(
        37, 60
    )  # of several steps; without signs no sum cancels by chance, as the last one does
    return [
        case(FIRST, codes(32, 32, -15, 15), codes(32, 32, -15, 15)),
        case("large codes", codes(32, 32, 100), codes(32, 32, 100)),
        case("more columns than a tile", codes(32, 96, 0), codes(32, 96, 0)),
        case("several tiles", codes(64, 32), codes(96, 32)),
        case("odd sizes", codes(rng.randint(5, 9), odd, 0), codes(rng.randint(10, 14), odd, 0)),
        case(
            "odd sizes of several tiles", codes(rng.randint(33, 36), 35, 0), codes(rng.randint(37, 40), 35, 0)
        ),
        case("a larger tile", codes(40, 20), codes(50, 20), tile=64),
        case("a single number", codes(1, 1), codes(1, 1)),
        case("a sum that cancels", *_cancelling(rng, codes), tile=128),
    ]


FIRST, HALF = "one tile", 1500


def _cancelling(rng, codes):
    """Sums that pass 2²⁴, and come back: the second half takes away what the first has added."""
    x, w = codes(4, HALF, 110), codes(5, HALF, 110)
    order = torch.tensor(rng.sample(range(HALF), HALF))
    rest = 17
    halves = [(x, x[:, order], codes(4, rest)), (w, -w[:, order], codes(5, rest))]
    return [torch.cat(parts, 1) for parts in halves]


def _library(x, w, x_scales, w_scales, tile):
    return (x.float() @ w.float().T) * x_scales[:, None] * w_scales


LOOP = "        acc += tl.dot(x, w)\n"
Y = "acc.to(tl.float32) * s[:, None] * S[None, :]"
LAUNCH = "    kernel[grid](x, w, x_scales, w_scales, y, M, N, K, BLOCK=tile)\n"
# With rows to spare behind the last, whose memory may be written too.
STORES_EVERY_LANE = (
    ("y, mask=inside)", "y)"),
    ("torch.full((M, N), torch.nan)", "torch.full((M + 2 * tile, N), torch.nan)[:M]"),
)
SCALES = """\
    s = tl.load(s_ptr + rows, mask=rows < M, other=0.0)
    S = tl.load(S_ptr + columns, mask=columns < N, other=0.0)
"""
SCALES_FIRST = (
    (SCALES, ""),
    (
        "    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.int32)\n",
        SCALES + "    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)\n",
    ),
)
SCALES_IN_THE_LOOP = (
    *SCALES_FIRST,
    (LOOP, LOOP + "        acc = acc * s[:, None] * S[None, :]\n"),
    (Y, "acc"),
)
SCALES_AT_EACH_STEP = (
    *SCALES_FIRST,
    (LOOP, "        acc += tl.dot(x, w).to(tl.float32) * s[:, None] * S[None, :]\n"),
    (Y, "acc"),
)
IN_FLOATS = (
    ("dtype=tl.int32", "dtype=tl.float32"),
    (LOOP, "        acc += tl.dot(x.to(tl.float32), w.to(tl.float32))\n"),
)

ONE_KERNEL = OneLaunch(loads_at_most=True)
# What makes a tensor, or another view of one.
MAKING = (
    "empty empty_like empty_strided new_empty zeros zeros_like new_zeros full full_like new_full zero_ fill_"
)
VIEWS = (
    "view reshape select slice unsqueeze squeeze expand as_strided detach alias contiguous clone t transpose "
    "permute"
)
NOT_TORCH = Only(
    frozenset(f"{MAKING} {VIEWS}".split()), "the kernel does the arithmetic", "nothing else of PyTorch"
)
OWN_WORK = Forbid(names=(*LIBRARIES, *BESIDE, "interpreter"), parts=OWN_PARTS)

EXERCISE = Exercise(
    name="05.triton_int8",
    function="int8_matmul",
    title="A kernel for codes",
    points=14,
    minutes=30,
    level=4,
    asks=ASKS,
    signature="int8_matmul(x, w, x_scales, w_scales, tile)",
    cases=cases,
    reference=int8_matmul,
    comparison=Close(atol=1e-6, rtol=1e-5, axes=("token", "output")),
    rules=(NOT_TORCH, ONE_KERNEL, NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("leaves out the scales of x", written((Y, Y.replace(" * s[:, None]", ""))), FIRST, NO_X),
        Mutant("leaves out the scales of w", written((Y, Y.replace(" * S[None, :]", ""))), FIRST, NO_W),
        Mutant(
            "swaps the scales",
            written((Y, Y.replace("s[:, None] * S[None, :]", "s[None, :] * S[:, None]"))),
            FIRST,
            SWAPPED,
        ),
        Mutant(
            "adds in int8",
            written((LOOP, "        acc = (acc + tl.dot(x, w)).to(tl.int8).to(tl.int32)\n")),
            FIRST,
            IN_INT8,
        ),
        Mutant(
            "reads w as (K, N)",
            written(("columns[None, :] * K + k[:, None]", "columns[None, :] + k[:, None] * N")),
            FIRST,
            AS_K_N,
        ),
        Mutant("cuts the result off", written((Y, f"({Y}).to(tl.int32).to(tl.float32)")), FIRST, CUT),
        Mutant("returns zeros", written((Y, f"0.0 * {Y}")), FIRST),
        Mutant(
            "adds in int16",
            written((LOOP, "        acc = (acc + tl.dot(x, w)).to(tl.int16).to(tl.int32)\n")),
            "large codes",
        ),
        Mutant(
            "takes one step along K",
            written(("range(0, K, BLOCK)", "range(0, 1, BLOCK)")),
            "more columns than a tile",
        ),
        Mutant("multiplies by scales in the loop", written(*SCALES_IN_THE_LOOP), "more columns than a tile"),
        Mutant("forgets the steps before", written(("acc +=", "acc =")), "more columns than a tile"),
        Mutant(
            "runs a single program",
            written(("grid = (triton.cdiv(M, tile), triton.cdiv(N, tile))", "grid = (1, 1)")),
            "several tiles",
        ),
        Mutant(
            "swaps rows and columns of the grid",
            written(
                ("triton.cdiv(M, tile), triton.cdiv(N, tile)", "triton.cdiv(N, tile), triton.cdiv(M, tile)")
            ),
            "several tiles",
        ),
        Mutant(
            "has tiles of 32 always",
            written(
                ("BLOCK=tile", "BLOCK=32"), ("cdiv(M, tile)", "cdiv(M, 32)"), ("cdiv(N, tile)", "cdiv(N, 32)")
            ),
            ONE_KERNEL.name,
        ),
        Mutant(
            "has tiles of one size",
            written(
                ("BLOCK=tile", "BLOCK=16"), ("cdiv(M, tile)", "cdiv(M, 16)"), ("cdiv(N, tile)", "cdiv(N, 16)")
            ),
            ONE_KERNEL.name,
        ),
        Mutant(
            "drops the last step along K",
            written(("range(0, K, BLOCK)", "range(0, K // BLOCK * BLOCK, BLOCK)")),
            "odd sizes",
        ),
        Mutant(
            "begins with k = 0 again behind the last",
            written(("k = start + tl.arange(0, BLOCK)", "k = (start + tl.arange(0, BLOCK)) % K")),
            "odd sizes",
        ),
        Mutant("stores every lane", written(*STORES_EVERY_LANE), ONE_KERNEL.name),
        Mutant("adds in floats", written(*IN_FLOATS), "a sum that cancels"),
        Mutant("scales each step", written(*SCALES_AT_EACH_STEP), "a sum that cancels"),
        Mutant("calls the library", _library, NOT_TORCH.name),
        Mutant(
            "calls the library and launches for show",
            written(
                ("    return y\n", "    return (x.float() @ w.float().T) * x_scales[:, None] * w_scales\n")
            ),
            NOT_TORCH.name,
        ),
        Mutant("launches twice", written((LAUNCH, LAUNCH + LAUNCH)), ONE_KERNEL.name),
    ),
    obstacle=no_triton,
)

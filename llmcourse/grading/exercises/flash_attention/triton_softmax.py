"""03.triton_softmax: a kernel of the student's own, which Triton's interpreter runs on any CPU.

The wrong answers are programs, as a student would write them: what they consist of is a text in which a
line is changed. Triton is imported when one of them is called.
"""

from __future__ import annotations

import importlib.util
import itertools
import linecache
import platform
import random
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.drawn import COURSE
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.rules import LIBRARIES, Forbid, NoMutation, OneLaunch, Only

ASKS = r"""
PyTorch's three operations of a softmax (largest, exponentials and their sum, division) each read a row from
slow memory or write it there. A kernel reads it *once*, does all of it on the chip, and writes it once. That
is the whole gain, and it is counted here: numbers loaded, numbers stored.

Write a Triton kernel, above the function, and `triton_softmax(x)`, which launches it.

- `x`: contiguous `float32` tensor of shape `(B, V)`, `V` any number from 1 to 4,096. Some elements may be
  `-inf`, but never all of a row.
- returns a new tensor of shape `(B, V)`, the softmax of each row.

One launch for all rows. The kernel loads each element of `x` once and stores each element of the result
once: lanes past the end of a row are masked. PyTorch makes the result's memory; nothing else of it runs.
`tl.softmax` is what you build.
The setup cell has imported `triton` and `tl`, and has set `TRITON_INTERPRET=1`: the kernel runs on the CPU,
in Python, element by element as on a GPU, but slowly. There is no Triton for macOS and Windows: `check`
then says that it was not run, and the points are given where the lab is graded.

```python
>>> triton_softmax(torch.tensor([[1.0, 2.0, 3.0], [0.0, float("-inf"), 0.0]]))
tensor([[0.0900, 0.2447, 0.6652],
        [0.5000, 0.0000, 0.5000]])
```
"""

HINTS = (
    "One program for each row: softmax_kernel[(rows,)](…). In the kernel, tl.program_id(0) says which row it "
    "is, and x_ptr + row * columns points to its first element.",
    "A block has a power of two of lanes: BLOCK=triton.next_power_of_2(columns), a parameter declared "
    "BLOCK: tl.constexpr. lane = tl.arange(0, BLOCK), and mask=lane < columns for the load and for the "
    "store.",
    "tl.load(x_ptr + row * columns + lane, mask=lane < columns, other=-float('inf')): what a masked lane "
    "holds must count neither as the largest nor in the sum. Then tl.max(x, axis=0), tl.exp, tl.sum(e, "
    "axis=0), and tl.store with the same pointers into out_ptr, and the same mask.",
)

HINTS_AT = {
    "a row that is no power of two": (
        "The lanes behind the row's end need a mask twice. In the load, with a value that is neither the "
        "largest nor adds to the sum, as they take part in tl.max and tl.sum; and in the store, or they are "
        "written over the next row."
    ),
    "large scores": "The largest of a row is subtracted before tl.exp, or e^90 is more than float32 holds.",
    "low scores": (
        "A masked lane that counts as 0 is larger than all of these, and every exponential is then 0 in "
        "float32."
    ),
    "a long row": (
        "A block of a fixed size holds only so many columns: BLOCK=triton.next_power_of_2(columns) grows "
        "with the row."
    ),
    "one kernel": (
        "All in one launch, with a grid of as many programs as there are rows; one tl.load, whose result is "
        "used three times, and one tl.store."
    ),
    "nothing else of PyTorch": (
        "torch.empty_like(x) is all that PyTorch does here; the arithmetic is the kernel's."
    ),
}

NOT_INSTALLED = "Triton is not installed; `pip install triton` brings it"

ANSWER = """
import torch
import triton
import triton.language as tl


@triton.jit
def kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + lane, mask=lane < columns, other=-float("inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    result = e / tl.sum(e, axis=0)
    tl.store(out_ptr + row * columns + lane, result, mask=lane < columns)


def triton_softmax(x):
    out = torch.full_like(x, torch.nan)
    kernel[(x.shape[0],)](x, out, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
    return out
"""


def no_triton() -> str:
    """Why no kernel runs here; empty where one does."""
    if importlib.util.find_spec("triton"):
        return ""
    system = platform.system()
    return NOT_INSTALLED if system == "Linux" else f"there is no Triton for {system or 'this system'}"


def written(*changes: tuple[str, str]) -> Callable:
    """The answer as a program with these texts replaced; it is run when it is first called."""
    source = ANSWER
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)

    def triton_softmax(x):
        return _run(source)(x)

    return triton_softmax


_numbers = itertools.count()


@cache
def _run(source: str) -> Callable:
    """What a program defines; Triton finds the kernel's text as it finds that of a notebook's cell."""
    name, names = f"<answer {next(_numbers)}>", {"__name__": "__main__"}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), names)
    return names["triton_softmax"]


def triton_softmax(x: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """What the kernel has to come to, in float64."""
    weights = (x.double() - x.double().amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True)).float()


def cases(rng: random.Random) -> list[Case]:
    def case(label, rows, columns, shift=0.0, spread=2.0, hidden=False):
        x = spread * normal(rng, rows, columns) + shift
        if hidden:
            places = torch.tensor([rng.sample(range(columns), columns // 2) for _ in range(rows)])
            x = x.scatter(1, places, -torch.inf)
        allows = dict.fromkeys(("loads", "stores"), x.numel())
        return Case({"x": x}, label, allows=allows)

    odd = rng.choice((5, 6, 7, 11, 13))
    return [
        case("one row", 1, rng.choice((4, 8))),
        case("several rows", 3, rng.choice((4, 8))),
        case("a row that is no power of two", 2, odd),
        case("large scores", 2, odd, shift=rng.uniform(200, 300)),
        case("low scores", 2, odd, shift=rng.uniform(-300, -200)),
        case("hidden scores", 2, odd, hidden=True),
        case("one column", 2, 1),
        case("a long row", 1, rng.randint(2100, 4000)),
    ]


def _library(x):
    return x.softmax(-1)


OTHER_KERNEL = (
    "    return out\n",
    "    kernel[(x.shape[0],)](x, out, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))\n    return "
    "out\n",
)
A_LAUNCH_A_ROW = (
    "    kernel[(x.shape[0],)](x, out, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))\n",
    "    for i in range(x.shape[0]):\n"
    "        kernel[(1,)](x[i], out[i], x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))\n",
)
LOADS_AGAIN = (
    "tl.max(x, axis=0))",
    "tl.max(tl.load(x_ptr + row * columns + lane, mask=lane < columns, other=-float('inf')), axis=0))",
)
# With a row to spare behind the last, whose memory may be written too.
STORES_EVERY_LANE = (
    ("result, mask=lane < columns)", "result)"),
    ("torch.full_like(x, torch.nan)", "x.new_full((x.shape[0] + 1, x.shape[1]), torch.nan)[:-1]"),
)
LAUNCHED_FOR_SHOW = ("    return out\n", "    return x.softmax(-1)\n")

ONE_KERNEL = OneLaunch()
# What makes a tensor, or another view of one.
MAKING = (
    "empty empty_like empty_strided new_empty zeros zeros_like new_zeros full full_like new_full zero_ fill_"
)
VIEWS = "view reshape select slice unsqueeze squeeze expand as_strided detach alias contiguous clone"
NOT_TORCH = Only(
    frozenset(f"{MAKING} {VIEWS}".split()), "the kernel does the arithmetic", "nothing else of PyTorch"
)
# Ways around both PyTorch and the kernel: values read in Python, and memory written by another library.
BESIDE = (
    "numpy",
    "__array__",
    "__array_interface__",
    "__dlpack__",
    "data_ptr",
    "tolist",
    "item",
    "memoryview",
)
OWN_WORK = Forbid(names=(*LIBRARIES, *COURSE, *BESIDE, "interpreter", "softmax"))

EXERCISE = Exercise(
    name="03.triton_softmax",
    function="triton_softmax",
    title="A kernel of your own",
    points=14,
    minutes=30,
    level=4,
    asks=ASKS,
    signature="triton_softmax(x)",
    cases=cases,
    reference=triton_softmax,
    comparison=Close(atol=2e-6, rtol=2e-5, axes=("row", "column")),
    rules=(NOT_TORCH, ONE_KERNEL, NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("does not divide", written(("e / tl.sum(e, axis=0)", "e")), "one row"),
        Mutant("leaves the first row to all programs", written(("tl.program_id(0)", "0")), "several rows"),
        Mutant("runs a single program", written(("(x.shape[0],)", "(1,)")), "several rows"),
        Mutant(
            "counts masked lanes as 0",
            written(('other=-float("inf")', "other=0.0")),
            "a row that is no power of two",
        ),
        Mutant("subtracts no peak", written(("x - tl.max(x, axis=0)", "x")), "large scores"),
        Mutant(
            "takes 0 for the peak of low scores",
            written(("tl.max(x, axis=0)", "tl.maximum(tl.max(x, axis=0), 0.0)")),
            "low scores",
        ),
        Mutant("calls the library", _library, NOT_TORCH.name),
        Mutant("calls the library and launches for show", written(LAUNCHED_FOR_SHOW), NOT_TORCH.name),
        Mutant("stores every lane", written(*STORES_EVERY_LANE), ONE_KERNEL.name),
        Mutant(
            "has blocks of one size",
            written(("BLOCK=triton.next_power_of_2(x.shape[1])", "BLOCK=1024")),
            "a long row",
        ),
        Mutant("loads each number twice", written(LOADS_AGAIN), ONE_KERNEL.name),
        Mutant("launches a kernel for each row", written(A_LAUNCH_A_ROW), ONE_KERNEL.name),
        Mutant("launches twice", written(OTHER_KERNEL), ONE_KERNEL.name),
        Mutant(
            "writes into its input",
            written(("torch.full_like(x, torch.nan)", "x")),
            NoMutation().name,
        ),
    ),
    obstacle=no_triton,
)

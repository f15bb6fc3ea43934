"""A kernel in Gluon run without a GPU: its own Python code over NumPy arrays, one program after the other.

Gluon has no interpreter. What is checked so is all that does not lie in the machine: places, masks, slots,
phases, and the order of sums. Everything is as late as it may be. A copy makes its slot useless at once, and
brings the numbers when its barrier is waited for; products are taken of what lies there when they are waited
for. So a slot that is asked for again too early, or read too early, shows as NaN. Layouts, fences and
barriers among threads are not seen: a program is one thread here.
"""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from triton.runtime.jit import JITFunction

LAYOUTS = ("layout_of_x", "layout_of_products", "_layout_of_outputs")
NOTHING = (*LAYOUTS, "start_next", "wait_for_input", "fence_async_shared")  # to be done


def rounded(numbers: np.ndarray) -> np.ndarray:
    """To bfloat16, the nearest."""
    return torch.from_numpy(np.array(numbers, dtype=np.float32)).bfloat16().float().numpy()


class Array:
    """A tensor in registers, and what is done with numbers."""

    def __init__(self, numbers: Any):
        self.numbers = np.asarray(numbers)
        self.shape, self.type = self.numbers.shape, types.SimpleNamespace(layout=None)

    def to(self, dtype: object) -> Array:
        return Array(rounded(self.numbers) if dtype is torch.bfloat16 else self.numbers)

    def __getitem__(self, at: object) -> Array:
        return Array(self.numbers[at])


def _operator(name: str) -> Callable[..., Array]:
    def apply(self: Array, *others: Any) -> Array:
        return Array(getattr(self.numbers, name)(*(getattr(one, "numbers", one) for one in others)))

    return apply


for _name in ("add", "radd", "mul", "rmul", "truediv", "rtruediv", "neg", "lt", "and"):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))


class Sums(Array):
    """Of products: those that are not waited for are not taken yet."""

    def __init__(self, numbers: np.ndarray):
        super().__init__(numbers)
        self.pending: list[tuple[Shared, Shared]] = []


class Shared:
    """Shared memory; what it is indexed by is the first axis."""

    def __init__(self, numbers: np.ndarray):
        self.numbers, self.shape = numbers, numbers.shape

    def index(self, at: int) -> Shared:
        assert 0 <= at < len(self.numbers)
        return Shared(self.numbers[at])

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.numbers.transpose(order))

    def load(self, layout: object) -> Array:
        return Array(self.numbers.copy())

    def store(self, value: Array) -> None:
        self.numbers[:] = value.numbers


class Barrier:
    """An `mbarrier`: bytes that are expected, copies that bring them, and phases that have ended."""

    def __init__(self):
        self.expected, self.copies, self.phases = None, [], 0

    def expect(self, size: int) -> None:
        assert self.expected is None, "asked for again before it was waited for"
        self.expected = size

    def wait(self, parity: int) -> None:
        if self.phases % 2 != parity:
            return  # the phase of this parity has ended
        assert sum(size for size, _ in self.copies) == self.expected, "waited for what nobody brings"
        for _, arrive in self.copies:
            arrive()
        self.expected, self.copies, self.phases = None, [], self.phases + 1


class Barriers:
    def __init__(self, count: int):
        self.held, self.shape = [Barrier() for _ in range(count)], (count,)

    def index(self, at: int) -> Barrier:
        return self.held[at]


class Pointer:
    """An address in flat memory; many, after places have been added."""

    def __init__(self, memory: np.ndarray, dtype: torch.dtype, at: Any = 0):
        self.memory, self.at = memory, np.asarray(at)
        self.dtype = types.SimpleNamespace(element_ty=dtype)

    def __add__(self, places: Any) -> Pointer:
        at = self.at + getattr(places, "numbers", places)
        return Pointer(self.memory, self.dtype.element_ty, at)


class Descriptor:
    """A matrix in memory of which tiles are copied; beyond it there are zeros."""

    def __init__(self, matrix: np.ndarray, rows: int, columns: int):
        self.matrix, self.dtype, self.layout = matrix, torch.bfloat16, None
        self.block_type = types.SimpleNamespace(nbytes=rows * columns * 2, shape=(rows, columns))

    def tile(self, row: int, column: int) -> np.ndarray:
        rows, columns = self.block_type.shape
        found = np.zeros((rows, columns), np.float32)
        part = self.matrix[row : row + rows, column : column + columns]
        found[: part.shape[0], : part.shape[1]] = part
        return found


class Number(int):
    """A program's own, which is cast like a tensor."""

    def to(self, dtype: object) -> Number:
        return self


def load(pointer: Pointer, mask: Array | None = None, other: float = 0.0, cache_modifier: str = "") -> Array:
    if mask is None:
        return Array(pointer.memory[pointer.at])
    held, at = np.broadcast_arrays(mask.numbers, pointer.at)
    return Array(np.where(held, pointer.memory[np.where(held, at, 0)], np.float32(other)))


def store(pointer: Pointer, value: Any, mask: Array | None = None) -> None:
    held = np.ones(pointer.at.shape, bool) if mask is None else mask.numbers
    pointer.memory[pointer.at[held]] = np.broadcast_to(getattr(value, "numbers", value), held.shape)[held]


def atomic_add(pointer: Pointer, value: int, sem: str) -> int:
    assert sem == "acq_rel"
    before = int(pointer.memory[pointer.at])
    pointer.memory[pointer.at] += value
    return before


def expect(barrier: Barrier, size: int, pred: bool = True) -> None:
    if pred:
        barrier.expect(size)


def copy(tensor: Descriptor, at: Sequence[int], barrier: Barrier, to: Shared, pred: bool = True) -> None:
    if pred:
        tile = tensor.tile(*at)
        to.numbers[...] = np.nan
        barrier.copies.append((tensor.block_type.nbytes, lambda: to.numbers.__setitem__(..., tile)))


def multiply(a: Shared, b: Shared, sums: Sums, is_async: bool) -> Sums:
    sums.pending.append((a, b))
    return sums


def finished(sums: Sums, up_sums: Sums, gated: bool) -> tuple[Sums, Sums]:
    found = []
    for one in (sums, up_sums):
        found.append(Sums(sum((a.numbers @ b.numbers for a, b in one.pending), one.numbers)))
    return tuple(found)


def language(program: Sequence[int]) -> types.SimpleNamespace:
    """What of `gl` the kernel uses, for the program of these numbers."""
    return types.SimpleNamespace(
        program_id=lambda axis: Number(program[axis]),
        allocate_shared_memory=lambda dtype, shape, layout: Shared(np.full(shape, np.nan, np.float32)),
        arange=lambda begin, end, layout: Array(np.arange(begin, end)),
        zeros=lambda shape, dtype, layout: Array(np.zeros(shape, np.float32)),
        load=load,
        store=store,
        atomic_add=atomic_add,
        static_range=range,
        sum=lambda x, axis: Array(x.numbers.sum(axis)),
        sqrt=lambda x: Array(np.sqrt(x.numbers)),
        exp=lambda x: Array(np.exp(x.numbers)),
        convert_layout=lambda x, layout: x,
        SliceLayout=lambda axis, layout: None,
        float32=np.float32,
        int64=np.int64,
    )


def names_of(program: Sequence[int]) -> dict[str, object]:
    """What the kernel's names mean here."""
    return {
        **{name: lambda *_: None for name in NOTHING},
        "gl": language(program),
        "tl": types.SimpleNamespace(debug_barrier=lambda: None),
        "tma": types.SimpleNamespace(async_copy_global_to_shared=copy),
        "mbarrier": types.SimpleNamespace(init=lambda *_, count: None, expect=expect, wait=Barrier.wait),
        "barriers": Barriers,
        "warpgroup_mma": multiply,
        "warpgroup_mma_init": lambda array: Sums(array.numbers),
        "finished": finished,
    }


def python_of(function: JITFunction, names: Mapping[str, object]) -> Callable:
    """The Python code of a jitted function, and of all that it calls, in which these names mean this."""
    fn = inspect.unwrap(function.fn)
    own = fn.__globals__ | names
    for name in set(fn.__code__.co_names) - set(names):
        if isinstance(own.get(name), JITFunction):
            own[name] = python_of(own[name], names)
    return types.FunctionType(fn.__code__, own, fn.__name__, fn.__defaults__, fn.__closure__)


def run(
    kernel: JITFunction,
    grid: Sequence[int],
    arguments: Sequence[object],
    constants: Mapping[str, object],
    seed: int = 0,
    **other_names: object,
) -> None:
    """All programs of a launch, in an order that the seed draws.

    Args:
        other_names: what a name of the kernel means instead, to plant a bug.
    """
    programs = list(itertools.product(*map(range, grid)))
    for number in np.random.default_rng(seed).permutation(len(programs)):
        python_of(kernel, names_of(programs[number]) | other_names)(*arguments, **constants)

"""A kernel in Gluon run without a GPU: its own Python code over NumPy arrays, one program after the other.

Gluon has no interpreter. What is checked so is all that does not lie in the machine: places, masks, slots,
phases, and the order of sums. Everything is as late as it may be. A copy makes its slot useless at once, and
brings the numbers when its barrier is waited for; products are taken of what lies there when they are waited
for. So a slot that is asked for again too early, or read too early, shows as NaN. Layouts, fences and
barriers among threads are not seen: consumer and producer are one thread each here, of which the producer is
always as far ahead as barriers let it.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from triton.runtime.jit import JITFunction

LAYOUTS = ("_layout_of_products", "layout_of_rows")
NOTHING = (*LAYOUTS, "start_next", "wait_for_input", "fence_async_shared")  # to be done


def rounded(numbers: np.ndarray) -> np.ndarray:
    """To bfloat16, the nearest."""
    return torch.from_numpy(np.array(numbers, dtype=np.float32)).bfloat16().float().numpy()


class Array:
    """A tensor in registers, and what is done with numbers."""

    def __init__(self, numbers: Any):
        self.numbers = np.asarray(numbers)
        self.shape, self.type, self.dtype = self.numbers.shape, types.SimpleNamespace(layout=None), None

    def to(self, dtype: object) -> Array:
        return Array(rounded(self.numbers) if dtype is torch.bfloat16 else self.numbers)

    def __getitem__(self, at: object) -> Array:
        return Array(self.numbers[at])


def _operator(name: str) -> Callable[..., Array]:
    def apply(self: Array, *others: Any) -> Array:
        return Array(getattr(self.numbers, name)(*(getattr(one, "numbers", one) for one in others)))

    return apply


for _name in ("add", "radd", "sub", "mul", "rmul", "truediv", "rtruediv", "neg", "lt", "and"):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))


class Sums(Array):
    """Of products: those that are not waited for are not taken yet."""

    def __init__(self, numbers: np.ndarray):
        super().__init__(numbers)
        self.pending: list[tuple[Array, Shared]] = []


class Shared:
    """Shared memory; what it is indexed by is the first axis."""

    def __init__(self, numbers: np.ndarray):
        self.numbers, self.shape, self.dtype = numbers, numbers.shape, None

    def index(self, at: int) -> Shared:
        assert 0 <= at < len(self.numbers)
        return Shared(self.numbers[at])

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.numbers.transpose(order))

    def load(self, layout: object) -> Array:
        return Array(self.numbers.copy())

    def _reinterpret(self, dtype: object, shape: Sequence[int], layout: object) -> Shared:
        assert tuple(shape) == self.shape
        return self


class Turns:
    """Who runs: the producer until it waits for what is not there, then the consumer until it arrives."""

    def __init__(self):
        self.produces, self.may_produce, self.may_consume = False, *map(threading.Semaphore, (0, 0))
        self.failure: BaseException | None = None

    def to_producer(self) -> None:
        if self.produces:
            self.may_produce.release()
            self.may_consume.acquire()
        if self.failure:
            raise self.failure

    def to_consumer(self) -> None:
        self.may_consume.release()
        self.may_produce.acquire()

    def run(
        self, parts: Sequence[tuple[Callable, Sequence]], warps: Sequence[int], registers: object
    ) -> None:
        """`gl.warp_specialize`, with one producer."""
        (consume, given), (produce, its_own) = parts
        assert len(warps) == 1

        def thread() -> None:
            self.may_produce.acquire()
            try:
                produce(*its_own)
            except BaseException as failure:
                self.failure = failure
            self.produces = False
            self.may_consume.release()

        other = threading.Thread(target=thread, daemon=True)
        other.start()
        self.produces = True
        self.to_producer()
        consume(*given)
        assert not self.produces, "the producer waits for what nobody does"
        other.join()


class Barrier:
    """An `mbarrier`: bytes that are expected, copies that bring them, and phases that have ended."""

    def __init__(self, turns: Turns):
        self.turns, self.expected, self.copies, self.phases = turns, None, [], 0

    def expect(self, size: int) -> None:
        assert self.expected is None, "asked for again before it was waited for"
        self.expected = size

    def arrive(self, count: int) -> None:
        assert count == 1 and self.expected is None
        self.phases += 1
        self.turns.to_producer()

    def wait(self, parity: int) -> None:
        while self.phases % 2 == parity and self.expected is None:
            assert threading.current_thread() is not threading.main_thread(), (
                "waits for what nobody asked for"
            )
            self.turns.to_consumer()
        if self.phases % 2 != parity:
            return  # the phase of this parity has ended
        assert sum(size for size, _ in self.copies) == self.expected, "waited for what nobody brings"
        for _, arrive in self.copies:
            arrive()
        self.expected, self.copies, self.phases = None, [], self.phases + 1


class Barriers:
    def __init__(self, count: int, turns: Turns):
        self.held, self.shape = [Barrier(turns) for _ in range(count)], (count,)

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
    held = np.broadcast_to(True if mask is None else mask.numbers, pointer.at.shape)
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


def multiply(a: Array, b: Shared, sums: Array, is_async: bool) -> Sums:
    found = Sums(sums.numbers)
    found.pending = [*getattr(sums, "pending", ()), (a, b)]
    return found


def finished(sums: Array, up_sums: Array, tile_of_x: Array, gated: bool) -> tuple[Array, Array]:
    found = []
    for one in (sums, up_sums):
        found.append(Array(sum((a.numbers @ b.numbers for a, b in getattr(one, "pending", ())), one.numbers)))
    return tuple(found)


def weighted(x: Array, gain: Array) -> Array:
    return Array(rounded(x.numbers * gain.numbers))


def allocate(dtype: object, shape: Sequence[int], layout: object, value: Array | None = None) -> Shared:
    return Shared(np.full(shape, np.nan, np.float32) if value is None else value.numbers)


def language(program: Sequence[int], turns: Turns) -> types.SimpleNamespace:
    """What of `gl` the kernel uses, for the program of these numbers."""
    return types.SimpleNamespace(
        program_id=lambda axis: Number(program[axis]),
        allocate_shared_memory=allocate,
        warp_specialize=turns.run,
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
        SwizzledSharedLayout=lambda *_: None,
        DotOperandLayout=lambda **_: None,
        float32=np.float32,
        int64=np.int64,
    )


def names_of(program: Sequence[int]) -> dict[str, object]:
    """What the kernel's names mean here."""
    turns = Turns()
    waits = {"expect": expect, "wait": Barrier.wait, "arrive": Barrier.arrive, "init": lambda *_, count: None}
    return {
        **{name: lambda *_: None for name in NOTHING},
        "BATCH": 64,
        "PRODUCER_REGISTERS": 24,
        "gl": language(program, turns),
        "tl": types.SimpleNamespace(debug_barrier=lambda: None),
        "tma": types.SimpleNamespace(async_copy_global_to_shared=copy),
        "mbarrier": types.SimpleNamespace(**waits),
        "barriers": lambda count: Barriers(count, turns),
        "warpgroup_mma": multiply,
        "_finished": finished,
        "_weighted": weighted,
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
    names: Callable[[Sequence[int]], dict[str, object]] = names_of,
    **other_names: object,
) -> None:
    """All programs of a launch, in an order that the seed draws.

    Args:
        names: what those of the kernel mean, for a program of these numbers.
        other_names: what a name of the kernel means instead, to plant a bug.
    """
    programs = list(itertools.product(*map(range, grid)))
    for number in np.random.default_rng(seed).permutation(len(programs)):
        python_of(kernel, names(programs[number]) | other_names)(*arguments, **constants)

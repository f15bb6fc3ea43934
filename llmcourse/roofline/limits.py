"""The limit: no operation ends before its bytes are moved and its FLOPs are done.

    time ≥ max(bytes / bandwidth, FLOPs / peak);   FLOP/s ≤ min(peak, intensity · bandwidth)

(Williams, Waterman and Patterson 2009.) Where the two are equal lies the ridge, peak / bandwidth in
FLOP/byte: an operation of lower intensity is bound by memory, one of higher by arithmetic. Operations
follow one another, so the times of a layer and a model add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from llmcourse.costs import BF16, Cost, Precision, Shapes, Step, model_costs, total
from llmcourse.costs.counting import repeated_costs
from llmcourse.costs.operations import Operation, model_operations
from llmcourse.costs.shapes import check_at_least

Bound = Literal["memory", "compute"]


@runtime_checkable
class Limits(Protocol):
    """What a machine can do, on paper (`hardware.Datasheet`) or as measured (`hardware.Ceilings`)."""

    @property
    def name(self) -> str: ...
    @property
    def bytes_per_s(self) -> float: ...
    def flops_per_s(self, dtype: str | torch.dtype) -> float: ...


def ridge(machine: Limits, dtype: str | torch.dtype = "bf16") -> float:
    """FLOP/byte from which arithmetic is the limit: 153.0 for an A100 80GB (312e12 / 2039e9)."""
    return machine.flops_per_s(dtype) / machine.bytes_per_s


def misread_ridge(machine: Limits, dtype: str | torch.dtype = "bf16") -> float:
    """The ridge if GB/s are taken for GiB/s: 142.51 for an A100 80GB, the lecture's figure.

    312e12 / (2039 · 2³⁰). Bandwidths are given in GB/s, 10⁹ bytes; memory sizes in GiB, 2³⁰.
    """
    return ridge(machine, dtype) * 1e9 / 2**30


def attainable(machine: Limits, intensity: int | float, dtype: str | torch.dtype = "bf16") -> float:
    """FLOP/s that an operation of this intensity can reach: the roof.

    Raises:
        ValueError: `intensity` is negative.
    """
    if not intensity >= 0:
        raise ValueError(
            f"intensity must be at least 0 FLOP/byte, got {intensity}; it is FLOPs over bytes, both counts"
        )
    return min(machine.flops_per_s(dtype), intensity * machine.bytes_per_s)


@dataclass(frozen=True)
class Prediction:
    """The least time of one operation, all its runs together.

    Attributes:
        memory_s, compute_s: what each resource needs; the longer one is the time.
    """

    cost: Cost
    memory_s: float
    compute_s: float

    @property
    def name(self) -> str:
        return self.cost.name

    @property
    def time_s(self) -> float:
        return max(self.memory_s, self.compute_s)

    @property
    def bound(self) -> Bound:
        return "compute" if self.compute_s > self.memory_s else "memory"

    @property
    def flops_per_s(self) -> float:
        """Reached in that time: the point on the roof."""
        return self.cost.flops / self.time_s if self.time_s else 0.0


@dataclass(frozen=True)
class StepPrediction:
    """The least time of a whole step: its operations one after the other.

    Attributes:
        step: what is predicted.
        machine: its name.
        operations: in order, those of a layer once for all layers.
    """

    step: Step
    machine: str
    operations: tuple[Prediction, ...]

    @property
    def time_s(self) -> float:
        return sum(operation.time_s for operation in self.operations)

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all rows a second."""
        return self.step.batch * self.step.new_tokens / self.time_s

    @property
    def bound(self) -> Bound:
        """The resource that all operations together need longer."""
        memory_s = sum(operation.memory_s for operation in self.operations)
        return "compute" if sum(operation.compute_s for operation in self.operations) > memory_s else "memory"

    @property
    def cost(self) -> Cost:
        return total((operation.cost for operation in self.operations), "step")


def predict(cost: Cost, machine: Limits, dtype: str | torch.dtype = "bf16") -> Prediction:
    """The least time of an operation, whose arithmetic is done in `dtype`.

    Raises:
        ValueError: the machine lacks the format.
    """
    return Prediction(cost, cost.traffic_bytes / machine.bytes_per_s, cost.flops / machine.flops_per_s(dtype))


def predict_step(
    shapes: Shapes,
    step: Step,
    machine: Limits,
    precision: Precision = BF16,
    *,
    attention: str = "fused",
    skip_masked: bool = False,
    compute: str | torch.dtype | None = None,
) -> StepPrediction:
    """The least time of one forward pass of the whole model.

    Args:
        compute: the format that is calculated in; as the activations if None, which is also what
            weights and caches of fewer bits are turned into.
        attention, skip_masked: as `costs.model_costs`.

    Raises:
        ValueError: the machine lacks the format.
    """
    costs = model_costs(shapes, step, precision, attention=attention, skip_masked=skip_masked)
    dtype = precision.activations if compute is None else compute
    return StepPrediction(step, machine.name, predict_all(costs, machine, dtype))


def predict_all(
    costs: Iterable[Cost], machine: Limits, dtype: str | torch.dtype = "bf16"
) -> tuple[Prediction, ...]:
    """`predict` for each of several operations, those of a layer for instance."""
    return tuple(predict(cost, machine, dtype) for cost in costs)


def turning_batch(
    shapes: Shapes,
    machine: Limits,
    precision: Precision = BF16,
    *,
    context: int = 1,
    attention: str = "fused",
    compute: str | torch.dtype | None = None,
    operation: str | None = None,
    largest: int = 2**20,
) -> int | None:
    """The smallest batch whose decoding step is bound by arithmetic.

    A batch reads the weights once, but keys and values for every row: with a long context the
    intensity levels off below the ridge, and no batch turns.

    Args:
        context: keys that each row looks at.
        operation: the one to look at, by its name, "gate and up projection" for instance; the
            sums of the whole step if None.
        largest: batch up to which is searched.

    Returns:
        None where no batch up to `largest` is bound by arithmetic.

    Raises:
        ValueError: no operation has that name, a size is below 1, or the machine lacks the format.
    """
    check_at_least("largest", largest, 1)
    dtype = precision.activations if compute is None else compute
    operations = _chosen(model_operations(shapes, Step.decode(1, context), attention=attention), operation)

    def computes(batch: int) -> bool:
        costs = repeated_costs(operations, shapes, Step.decode(batch, context), precision)
        return predict(total(costs), machine, dtype).bound == "compute"

    return _first(computes, largest)


def _chosen(
    operations: tuple[tuple[int, Operation], ...], name: str | None
) -> tuple[tuple[int, Operation], ...]:
    chosen = tuple((times, one) for times, one in operations if name in (None, one.name))
    if chosen:
        return chosen
    names = ", ".join(one.name for _, one in operations)
    raise ValueError(f"operation must be one of {names}, got {name!r}; use None for the whole step")


def _first(holds: Callable[[int], bool], largest: int) -> int | None:
    """The smallest number in [1, largest] for which `holds`, which stays true once it is."""
    if not holds(largest):
        return None
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high

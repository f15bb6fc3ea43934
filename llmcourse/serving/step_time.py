"""How long a step takes at least, from what it computes: the roofline of chapter 2 for mixed batches.

The matrices see all tokens of the step as one batch and are read once; attention reads the cache of each
request apart, as one operation over all of them. Bytes and FLOPs are those of `costs`: outside attention
they grow linearly with the tokens (and the head's with the samples), and attention of one token grows
linearly with the keys it looks at, so a few counted steps give every other one.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from llmcourse.costs import BF16, Cost, Precision, Shapes, Step, model_costs
from llmcourse.decoding.errors import require
from llmcourse.roofline import Limits
from llmcourse.serving.schedule import Schedule

ATTENTION, HEAD = "attention", "output head"


class _Line(NamedTuple):
    """Bytes and FLOPs of an operation, growing linearly with a number: at 0, and for each one more."""

    base_bytes: int
    more_bytes: int
    base_flops: int
    more_flops: int


class RooflineTime:
    """Seconds of a step on a machine that reaches its limits; a cost model for `clock.simulate`.

    Args:
        shapes: of the model.
        machine: what it can do, on paper (`hardware.datasheet`) or as measured (`hardware.Ceilings`).
        precision: of weights, cache and activations; arithmetic is done in that of the activations.
        overhead_s: of every step, for what no roofline sees: launches, sampling, the scheduler itself.

    Raises:
        ValueError: an overhead that is negative or not finite, or a format that the machine lacks.
    """

    def __init__(
        self, shapes: Shapes, machine: Limits, precision: Precision = BF16, *, overhead_s: float = 0.0
    ):
        require(
            0 <= overhead_s < float("inf"),
            "overhead_s",
            "at least 0 and finite",
            overhead_s,
            "use 0 for none",
        )
        self.overhead_s = overhead_s
        self._shapes, self._precision = shapes, precision
        self._bytes_per_s = machine.bytes_per_s
        self._flops_per_s = machine.flops_per_s(precision.activations)
        one, two = (self._counted(Step.chunk(1, n, 0, logit_positions=1)) for n in (1, 2))
        self._by_token = [_through(one[name], two[name]) for name in one if name not in (ATTENTION, HEAD)]
        one, two = (self._counted(Step.chunk(n, 1, 0))[HEAD] for n in (1, 2))
        self._by_sample = _through(one, two)
        one, two = (self._counted(Step.decode(1, n))[ATTENTION] for n in (1, 2))
        self._by_key = _through(one, two)
        self._attention = cache(self._count_attention)

    def __call__(self, schedule: Schedule) -> float:
        num_tokens = schedule.num_tokens
        num_samples = sum(chunk.samples for chunk in schedule.chunks) + schedule.num_drafts
        time_s = self.overhead_s + sum(self._time_s(line, num_tokens) for line in self._by_token)
        if num_samples:
            time_s += self._time_s(self._by_sample, num_samples)
        return time_s + self._attention_s(schedule)

    def _time_s(self, line: _Line, number: int) -> float:
        return max(
            (line.base_bytes + number * line.more_bytes) / self._bytes_per_s,
            (line.base_flops + number * line.more_flops) / self._flops_per_s,
        )

    def _attention_s(self, schedule: Schedule) -> float:
        """Of all requests together, in one kernel."""
        traffic_bytes = flops = num_rows = num_keys = 0
        for _, start, stop, _ in schedule.chunks:
            if stop - start == 1:
                num_rows += 1
                num_keys += stop
            else:
                more_bytes, more_flops = self._attention(stop - start, start)
                traffic_bytes += more_bytes
                flops += more_flops
        line = self._by_key
        traffic_bytes += num_rows * line.base_bytes + num_keys * line.more_bytes
        flops += num_rows * line.base_flops + num_keys * line.more_flops
        return max(traffic_bytes / self._bytes_per_s, flops / self._flops_per_s)

    def _count_attention(self, num_tokens: int, past: int) -> tuple[int, int]:
        """Bytes and FLOPs of a piece of a prompt."""
        cost = self._counted(Step.chunk(1, num_tokens, past))[ATTENTION]
        return cost.traffic_bytes, cost.flops

    def _counted(self, step: Step) -> dict[str, Cost]:
        """The costs of a step by the names of its operations; a causal kernel skips what is masked."""
        costs = model_costs(self._shapes, step, self._precision, skip_masked=True)
        return {cost.name: cost for cost in costs}


def _through(one: Cost, two: Cost) -> _Line:
    """The line through the costs at 1 and at 2."""
    more_bytes, more_flops = two.traffic_bytes - one.traffic_bytes, two.flops - one.flops
    return _Line(one.traffic_bytes - more_bytes, more_bytes, one.flops - more_flops, more_flops)

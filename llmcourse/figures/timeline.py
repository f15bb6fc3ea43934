"""A service as the lecture draws it: a row for each slot, a column for each step, and what it did there.

A cell is a piece of a prompt, a token of an answer, or the answer's END; where a slot computes nothing, it is
held by a request that gets no tokens in this step, wasted while others wait, or idle because nobody does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.figures.style import seconds
from llmcourse.serving.clock import Cell, ClockStep, Trace
from llmcourse.serving.metrics import Metrics, measure

Kind = Literal["prompt", "token", "end", "held", "wasted", "idle"]
BUSY = ("prompt", "token", "end")


class Box(NamedTuple):
    """What one slot did for a while.

    Attributes:
        id: of the request; "" where the slot computes nothing for any.
        num_tokens: computed.
    """

    slot: int
    start_s: float
    end_s: float
    kind: Kind
    id: str
    num_tokens: int

    @property
    def busy(self) -> bool:
        return self.kind in BUSY


@dataclass(frozen=True)
class Timeline:
    """One policy's picture, and its figures.

    Attributes:
        name: of the policy.
        note: how it chooses, in a few words; "" says nothing.
        boxes: of every slot from the beginning to `end_s`, in the order of time.
        arrivals: seconds.
        end_s: where the picture ends, with the service or before it.
        same_steps: how long every step takes, if all take the same; None otherwise.
        used: the share of the slots' time until `end_s` in which they computed.
        metrics: of the whole service.
    """

    name: str
    num_slots: int
    boxes: tuple[Box, ...]
    arrivals: tuple[float, ...]
    end_s: float
    same_steps: float | None
    used: float
    metrics: Metrics
    note: str = ""

    @property
    def figures(self) -> str:
        """Utilisation, time to the first token, gaps between tokens and throughput, in a line."""
        m = self.metrics
        parts = [
            f"slots used {self.used:.0%}",
            f"TTFT p50 {seconds(m.ttft_p50_s)}, p99 {seconds(m.ttft_p99_s)}",
            f"ITL p50 {_or_dash(m.itl_p50_s)}, p99 {_or_dash(m.itl_p99_s)}",
            f"{_speed(m.output_tokens_per_s)} tokens/s",
            f"done after {seconds(m.duration_s)}",
        ]
        return " · ".join(parts)


def timeline(
    name: str, trace: Trace, num_slots: int, until_s: int | float = math.inf, note: str = ""
) -> Timeline:
    """The picture of a trace.

    Args:
        num_slots: rows, of the scheduler that made the trace.
        until_s: what is later is left out of the picture; the metrics are of everything.
        note: as in `Timeline`.

    Raises:
        ValueError: fewer slots than the trace has, a time that is not positive, or nothing was answered.
    """
    slots = max((cell.slot + 1 for step in trace.steps for cell in step.cells), default=1)
    require_integer(slots, "num_slots", num_slots, "give that of the scheduler")
    require_number(lambda t: t > 0, "until_s", "above 0", until_s, "use math.inf for all")
    metrics = measure(trace)
    end_s = min(trace.end_s, until_s)
    boxes = [_cut(box, end_s) for box in _boxes(trace, num_slots) if box.start_s < end_s]
    lengths = {round(step.end_s - step.start_s, 9) for step in trace.steps}
    busy_s = sum(box.end_s - box.start_s for box in boxes if box.busy)
    return Timeline(
        name=name,
        num_slots=num_slots,
        boxes=tuple(boxes),
        arrivals=tuple(t.request.arrival_s for t in trace.timelines),
        end_s=float(end_s),
        same_steps=lengths.pop() if len(lengths) == 1 else None,
        used=busy_s / (num_slots * end_s),
        metrics=metrics,
        note=note,
    )


def grid_of(shown: Timeline) -> list[list[str]]:
    """A row a slot, a column a step, as `serving.lecture_grid.grid`: names, END, "" where nothing runs."""
    columns = {start: place for place, start in enumerate(sorted({box.start_s for box in shown.boxes}))}
    rows = [[""] * len(columns) for _ in range(shown.num_slots)]
    for box in shown.boxes:
        rows[box.slot][columns[box.start_s]] = "END" if box.kind == "end" else box.id if box.busy else ""
    return rows


def metrics_table(timelines: Sequence[Timeline]) -> list[tuple[str, ...]]:
    """A head and a row a policy, in words: what the field measures besides the `figures`.

    E2E is the time from a request's arrival to the end of its answer.
    """
    head = ("policy", "TPOT p50", "TPOT p99", "E2E p50", "E2E p99", "answers/s")
    return [head, *(_metrics_row(one) for one in timelines)]


def _metrics_row(one: Timeline) -> tuple[str, ...]:
    m = one.metrics
    latencies = (m.tpot_p50_s, m.tpot_p99_s, m.e2e_p50_s, m.e2e_p99_s)
    return (one.name, *map(_or_dash, latencies), _speed(m.requests_per_s))


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def _or_dash(time_s: float) -> str:
    return "–" if math.isnan(time_s) else seconds(time_s)


def _cut(box: Box, end_s: int | float) -> Box:
    return box if box.end_s <= end_s else box._replace(end_s=end_s)


def _boxes(trace: Trace, num_slots: int) -> list[Box]:
    """Of every slot in every step, and idle ones between the end of work and the next arrival."""
    found: list[Box] = []
    keepers = _keepers(trace.steps)
    now = 0.0
    for number, step in enumerate(trace.steps):
        if step.start_s > now:
            found += [Box(slot, now, step.start_s, "idle", "", 0) for slot in range(num_slots)]
        cells = {cell.slot: cell for cell in step.cells}
        for slot in range(num_slots):
            if slot in cells:
                found.append(_busy(step, cells[slot]))
            else:
                keeper = keepers.get((number, slot), "")
                kind: Kind = "held" if keeper else "wasted" if step.num_waiting else "idle"
                found.append(Box(slot, step.start_s, step.end_s, kind, keeper, 0))
        now = step.end_s
    return found


def _busy(step: ClockStep, cell: Cell) -> Box:
    kind: Kind = "end" if cell.ended else "token" if cell.decodes else "prompt"
    return Box(cell.slot, step.start_s, step.end_s, kind, cell.id, cell.num_tokens)


def _keepers(steps: Sequence[ClockStep]) -> Mapping[tuple[int, int], str]:
    """By (step, slot), who holds a slot without computing: the cells before and after are its own."""
    keepers: dict[tuple[int, int], str] = {}
    last: dict[int, tuple[int, Cell]] = {}
    for number, step in enumerate(steps):
        for cell in step.cells:
            if cell.slot in last:
                since, before = last[cell.slot]
                if before.id == cell.id and not before.ended:
                    keepers |= {(between, cell.slot): cell.id for between in range(since + 1, number)}
            last[cell.slot] = (number, cell)
    return keepers

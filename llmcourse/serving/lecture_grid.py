"""The lecture's picture of batching: four slots, eight steps, and what runs in each.

The answers of S1 to S4 end at the steps T6, T8, T5 and T7. Traditional batching leaves their slots empty
until T8; continuous batching gives them to S5 at T6, S6 at T7 and S7 at T8.
"""

from __future__ import annotations

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.clock import Cost, Trace, one_second, simulate
from llmcourse.serving.policies import Policy
from llmcourse.serving.request import Request, RequestState
from llmcourse.serving.runner import FunctionRunner
from llmcourse.serving.scheduler import Scheduler

END = 0
# Steps that each answer takes, END included; those of S5 to S7 go on past the picture's edge.
LECTURE_LENGTHS = {"S1": 6, "S2": 8, "S3": 5, "S4": 7, "S5": 4, "S6": 3, "S7": 2}
NUM_SLOTS, NUM_STEPS = 4, 8


def lecture_trace(
    policy: Policy,
    lengths: dict[str, int] = LECTURE_LENGTHS,
    slots: int = NUM_SLOTS,
    cost: Cost = one_second,
) -> Trace:
    """The lecture's requests under a policy; every step takes one second, as long as no other cost is given.

    Args:
        lengths: steps that each answer takes, END included.
        slots: how many requests run at once.
        cost: seconds that a step takes.

    Raises:
        ValueError: a length or the number of slots below 1, or more slots than the policy serves in a step.
    """

    def next_token(state: RequestState) -> int:
        return END if state.num_generated + 1 == lengths[state.id] else 1

    requests = [
        Request(name, [1], max_tokens=length, stop_token_ids=[END]) for name, length in lengths.items()
    ]
    pool = BlockPool(sum(lengths.values()), 1)
    scheduler = Scheduler(pool, policy, max_running=slots)
    return simulate(requests, scheduler, cost, FunctionRunner(next_token))


def grid(trace: Trace, slots: int = NUM_SLOTS, steps: int = NUM_STEPS) -> list[list[str]]:
    """A row a slot, a column a step: a request's name, END where its answer ends, "" where nothing runs."""
    rows = [[""] * steps for _ in range(slots)]
    for column, step in enumerate(trace.steps[:steps]):
        for cell in step.cells:
            rows[cell.slot][column] = "END" if cell.ended else cell.id
    return rows

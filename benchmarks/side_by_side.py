"""Ours and others at the same work: first whether they are right, then how fast, in turns.

Right means no further from the truth than twice the peers' error in the same dtype, plus 1e-5, with new
memory full of NaN. In turns, because a chip's clock follows its power and temperature: what runs minutes
after the other runs on another machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from unittest import mock

import torch
from torch import Tensor

from llmcourse.timing import Timing, measure

ROUNDS = 4
TURN_S = 0.03  # that is timed, in each turn, after half as much that is not
FEWEST, MOST = 3, 60  # runs in a turn
UNLIKE = 0.02  # relative to the truth; 16 bits explain a few thousandths


def check(
    runs: Mapping[str, Callable[[], Sequence[Tensor]]], truth: Sequence[Tensor], peers: Sequence[str]
) -> dict[str, float]:
    """The largest error of each run, over the one that is allowed to it.

    Args:
        runs: by name; each returns as many tensors as there are in `truth`.
        peers: names of those whose error, the larger one, is allowed twice.

    Raises:
        ValueError: a run is wrong, or left something unwritten; a peer that computes something else is too.
    """
    theirs = [_errors(name, runs[name](), truth) for name in peers]
    allowed = [2 * max(errors) + 1e-5 for errors in zip(*theirs, strict=True)]
    found = {}
    for name, run in runs.items():
        with poisoned():
            results = run()
        errors = _errors(name, results, truth)
        found[name] = max(error / most for error, most in zip(errors, allowed, strict=True))
        if not found[name] <= 1:
            raise ValueError(
                f"{name} must err at most twice as much as {', '.join(peers)}, got {found[name]:.2f} of that"
            )
    return found


def _errors(name: str, found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """The largest of each tensor."""
    errors = []
    for ours, wide in zip(found, truth, strict=True):
        difference = ours.to(wide.dtype) - wide
        unlike = (difference.norm() / wide.norm()).item()
        if not unlike <= UNLIKE:  # nor is NaN
            raise ValueError(f"{name} must differ from the truth by at most {UNLIKE}, got {unlike:.3g}")
        errors.append(difference.abs().max().item())
    return errors


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN, in every thread: gradients are taken in one of their own."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*arguments, **options) -> Tensor:
            x = make(*arguments, **options)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return made

    with (
        mock.patch.object(torch, "empty", poison(torch.empty)),
        mock.patch.object(torch, "empty_like", poison(torch.empty_like)),
        mock.patch.object(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty)),
    ):
        yield


def time_in_turns(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    turn_s: float = TURN_S,
) -> dict[str, Timing]:
    """All times of each run; every other round goes backwards, so that none always follows the same one."""
    once = {name: measure(run, device=device, warmup=2, repeats=1).median_s for name, run in runs.items()}
    times: dict[str, tuple[float, ...]] = {name: () for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            repeats = max(FEWEST, min(MOST, int(turn_s / max(once[name], 1e-6))))
            warmup = (repeats + 1) // 2
            times[name] += measure(runs[name], device=device, warmup=warmup, repeats=repeats).times_s
    return {name: Timing(found) for name, found in times.items()}


class Graph:
    """`work` on the GPU, recorded once and launched as a whole.

    Attributes:
        work: kept, since the graph goes on using the memory that it holds.
    """

    def __init__(self, work: Callable[[], object]):
        self.work = work
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            work()

    def __call__(self) -> None:
        self.graph.replay()

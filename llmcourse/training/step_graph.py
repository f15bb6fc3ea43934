"""A step of training recorded as a CUDA graph: forward, backward and update are one launch.

With models as small as ours a GPU runs a step's thousand kernels faster than Python can start them. What a
recording bakes in are addresses, so batches are copied to one place, rates are tensors on the device, and
gradients stay where they are. Losses must not ask the device anything, and all shapes must be fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmcourse.decoding.engine.graphs import recorded

Record = Callable[..., Callable[[], None]]


def recorded_update(
    update: Callable[[Sequence[Tensor]], Tensor],
    batch: Sequence[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
    record: Record = recorded,
) -> Callable[[Sequence[Tensor]], Tensor]:
    """Does what `update` does, by replaying one step; weights and states of the optimizers stay as they are.

    Random numbers, of dropout, go on behind those that recording drew: not the ones of a run without it.

    Args:
        update: one step on a batch, which returns its loss and leaves no gradients that the next one needs.
        batch: any, of the shapes of all others.
        optimizers: whose states begin with zeros, as those of AdamW and Muon; they must be able to keep their
            numbers on the device (`fused` in AdamW). Their rates become tensors, to be filled in place.
        record: as `decoding.engine.graphs.recorded`.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if device.type == "cuda" and "capturable" in group:
            group["capturable"] = True
    inputs = [part.clone() for part in batch]
    loss = torch.zeros((), device=device)

    def step() -> None:
        loss.copy_(update(inputs))

    weights = [weight.detach() for group in groups for weight in group["params"]]
    known = _states(optimizers)
    replay = record(step, device, keep=[*weights, *known])
    for state in _states(optimizers):
        if not any(state is one for one in known):  # made by the steps that recording takes
            state.zero_()

    def replayed(given: Sequence[Tensor]) -> Tensor:
        for place, part in zip(inputs, given, strict=True):
            place.copy_(part)
        replay()
        return loss.clone()

    return replayed


def _states(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    of_weights = (state for optimizer in optimizers for state in optimizer.state.values())
    return [value for state in of_weights for value in state.values() if isinstance(value, Tensor)]

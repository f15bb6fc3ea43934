"""Several processes: each holds a part of the student, of its gradients and of the optimizers' states.

The engine is PyTorch's FSDP2 (`fully_shard`; Zhao et al. 2023, section 3): a layer's weights are gathered
before it runs and let go behind it, and gradients are averaged where their part lives. Muon needs matrices
whole, so it gathers what it makes orthogonal. What is kept in a file is whole too: any number of processes
can go on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmcourse.model import Decoder
from llmcourse.training.muon import BatchedMuon


def world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard(trained: nn.Module, student: Decoder) -> None:
    """Cuts a module into parts, in place: each layer of the student apart, and the rest together.

    Args:
        trained: whose `forward` runs the student, and gives the loss.
        student: within it.
    """
    from torch.distributed.fsdp import fully_shard  # seconds, which one process alone can spare

    for layer in student.model.layers:
        fully_shard(layer)
    fully_shard(trained)


def is_part(tensor: Any) -> bool:
    """Whether it is a tensor of which each process holds a part."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Any) -> Any:
    """A tensor of which processes hold parts, put together in each; anything else as it is."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def parted_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as the other one is."""
    if not is_part(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


class ShardedMuon(BatchedMuon):
    """Muon over parts of matrices, which are gathered to be made orthogonal."""

    def steps(self, looked_ahead: Sequence[Tensor], rate: float | Tensor, group: dict) -> list[Tensor]:
        steps = super().steps([whole(matrix) for matrix in looked_ahead], rate, group)
        return [parted_like(step, matrix) for step, matrix in zip(steps, looked_ahead, strict=True)]


class Whole(nn.Module):
    """A module for `checkpoint.save_state` and `load_state`: its state is whole, whoever holds what part.

    Its `state_dict` has to be asked for by all processes together.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self._module = (module,)  # not registered: names stay what they are

    def parameters(self, recurse: bool = True) -> Iterable[nn.Parameter]:
        return self._module[0].parameters(recurse)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: whole(tensor.detach()) for name, tensor in self._module[0].state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        ours = self._module[0].state_dict()
        if ours.keys() != state.keys():
            raise ValueError(f"the weights must be {', '.join(ours)}, got {', '.join(state)}")
        for name, tensor in ours.items():
            tensor.copy_(parted_like(state[name].to(tensor.device), tensor))


class WholeOptimizer:
    """The same of an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self._optimizer.state_dict()
        held = {place: {k: whole(v) for k, v in each.items()} for place, each in state["state"].items()}
        return state | {"state": held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]

        def part(value: Any, weight: Tensor) -> Any:
            same = isinstance(value, Tensor) and value.shape == weight.shape
            return parted_like(value.to(weight.device), weight) if same else value

        held = {
            place: {name: part(value, weights[place]) for name, value in each.items()}
            for place, each in state["state"].items()
        }
        self._optimizer.load_state_dict(state | {"state": held})


class Kept(nn.Module):
    """A state that was put together already, in place of the module whose it is."""

    def __init__(self, state: dict[str, Any]):
        super().__init__()
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        return self._state


def any_process(wishes: Sequence[bool], device: torch.device) -> tuple[bool, ...]:
    """For each wish whether any process has it: all of them must leave, or save, at the same step."""
    if world()[1] == 1:
        return tuple(wishes)
    flags = torch.tensor([float(wish) for wish in wishes], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return tuple(flag > 0 for flag in flags.tolist())


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of what each process has."""
    count = world()[1]
    if count == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / count


def whole_copy(model: Decoder) -> Decoder:
    """A model of which processes hold parts, in each of them; one that is whole is returned as it is.

    All processes have to ask together.
    """
    if not any(map(is_part, model.parameters())):
        return model
    copy = Decoder(model.config).to(model.device)
    copy.load_state_dict({name: whole(tensor.detach()) for name, tensor in model.state_dict().items()})
    return copy.eval()

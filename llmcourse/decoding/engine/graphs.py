"""A step recorded once as a CUDA graph and replayed: one launch for hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def recorded(
    step: Callable[[], None], device: torch.device, keep: Sequence[torch.Tensor] = (), pool: object = None
) -> Callable[[], None]:
    """A function that does what `step` does, by replaying its kernels.

    Args:
        step: works on memory of fixed address, and asks nothing of the device. The caller keeps the owner of
            that memory as long as it replays: the recording itself holds addresses alone.
        keep: tensors that get their contents back after the runs that recording takes.
        pool: memory that recordings share of which no two run at once; memory of its own if None.
    """
    contents = [tensor.clone() for tensor in keep]
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # compiles the kernels, which a recording must not
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            step()
    for tensor, held in zip(keep, contents, strict=True):
        tensor.copy_(held)
    return graph.replay

"""What steps report comes to the host while the next step runs already."""

from __future__ import annotations

from collections import deque

import torch
from jaxtyping import Int
from torch import Tensor


class Reports:
    """Copies of a tensor that every step overwrites, first in, first out.

    On a GPU a copy is one more thing in the queue, and the host waits for it alone, not for what was launched
    after it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, report: Int[Tensor, "B N"]) -> None:
        """Asks for a copy of what stands there when all that was launched before is done."""
        if self.device.type != "cuda":
            return self._sent.append((report.clone(), None))
        copy = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        copy.copy_(report, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._sent.append((copy, arrived))

    def receive(self) -> list[list[int]]:
        """The oldest copy, as soon as it has come."""
        copy, arrived = self._sent.popleft()
        if arrived is not None:
            arrived.synchronize()
        return copy.tolist()

    def clear(self) -> None:
        self._sent.clear()

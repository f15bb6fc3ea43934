"""Many small arrays to a GPU in one transfer, for which nobody waits: each costs as much as another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes, so that kernels may load four numbers at once


class Transfer:
    """Memory on a device for arrays of fixed shapes and dtypes.

    Args:
        arrays: as they will be sent, as far as shapes and dtypes go.
        device: of the tensors.

    Attributes:
        tensors: where the arrays arrive, views of one buffer.
    """

    def __init__(self, arrays: Sequence[np.ndarray], device: torch.device):
        self._begins = np.cumsum([0, *(_padded(array.nbytes) for array in arrays)]).tolist()
        self._buffer = torch.empty(self._begins[-1], dtype=torch.uint8, device=device)
        self.tensors = [
            _viewed(self._buffer[begin : begin + array.nbytes], array)
            for begin, array in zip(self._begins, arrays, strict=False)
        ]

    def send(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Begins to copy; what the device does next finds the arrays in `tensors`."""
        pinned = torch.empty(len(self._buffer), dtype=torch.uint8, pin_memory=self._buffer.is_cuda)
        there = pinned.numpy()
        for begin, array in zip(self._begins, arrays, strict=False):
            there[begin : begin + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._buffer.copy_(pinned, non_blocking=True)
        return self.tensors


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _viewed(part: Tensor, array: np.ndarray) -> Tensor:
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    return part.view(dtype).view(array.shape)

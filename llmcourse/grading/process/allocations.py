"""How many bytes the tensors of a call take up at once: what tells tiles from a whole matrix.

Best effort in a student's process: memory that is no tensor's, such as NumPy's or that of a list, is not
seen, nor what one operation of PyTorch takes and gives back before it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Allocations:
    """The memory of tensors that are alive, and the most that it was.

    Args:
        given: tensors whose memory is not counted, also inside of lists, tuples and dicts: a call's
            arguments.

    Attributes:
        peak_bytes: so far.
    """

    def __init__(self, given: Any = ()):
        self.peak_bytes = 0
        self._bytes = 0  # an upper bound: what has died meanwhile is found out when it matters
        self._given = [StorageWeakRef(storage) for storage in _storages(given)]
        self._known = {reference.cdata for reference in self._given}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def note(self, value: Any) -> None:
        """Takes in what an operation returned: memory is counted once, however many views there are of it."""
        for storage in _storages(value):
            if storage._cdata in self._known or storage._cdata in self._alive:
                continue
            reference = StorageWeakRef(storage)  # while it is held, no other memory has this address
            self._alive[reference.cdata] = reference, storage.nbytes()
            self._bytes += storage.nbytes()
            if self._bytes > self.peak_bytes:
                self._forget_the_dead()
                self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _forget_the_dead(self) -> None:
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        self._bytes = sum(size for _, size in self._alive.values())


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    if type(value) is torch.Tensor:
        if value.layout is torch.strided and not value.is_meta:
            yield value.untyped_storage()
    elif type(value) is dict:
        yield from _storages(list(value.values()))
    elif type(value) is list or type(value) is tuple:  # `in` would ask a student's metaclass
        for item in value:
            yield from _storages(item)

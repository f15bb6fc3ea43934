"""How much memory operations hold at their peak, counted as they are dispatched: sizes ("meta") will do."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """`peak` is the most bytes that were alive at once of all that was made inside.

    Each operation is looked at when it has ended; what it allocates and frees within does not show.
    """

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.known = {StorageWeakRef(x.untyped_storage()).cdata for x in known}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, torch.Tensor):
                self._note(x.untyped_storage())
        self.alive = {key: pair for key, pair in self.alive.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = StorageWeakRef(storage)
        if key.cdata not in self.known:
            self.alive[key.cdata] = key, storage.nbytes()

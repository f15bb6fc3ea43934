"""Which PyTorch operations run: what rules such as "without torch.softmax" look at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

MAX_NAMES = 1_000


class Operations(TorchDispatchMode):
    """Notes the name of each operation below autograd, as `softmax` for `aten.softmax.int`.

    What PyTorch composes of smaller operations may show as those: `softmax` as `_softmax`.
    """

    def __init__(self):
        super().__init__()
        self._seen: set[str] = set()
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._paused and len(self._seen) < MAX_NAMES:
            self._seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would import its compiler, for most of a second, to keep it away from us

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is not noted."""
        self._paused, before = True, self._paused
        try:
            yield
        finally:
            self._paused = before

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted, each once."""
        return tuple(sorted(self._seen))

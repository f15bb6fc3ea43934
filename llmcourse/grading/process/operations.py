"""Which PyTorch operations run, and what their results take up: what rules about the mechanism look at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from llmcourse.grading.process.allocations import Allocations

MAX_NAMES = 1_000


class Operations(TorchDispatchMode):
    """Notes the name of each operation below autograd, as `softmax` for `aten.softmax.int`.

    What PyTorch composes of smaller operations may show as those: `softmax` as `_softmax`.

    Args:
        given: arguments, whose memory is not counted.

    Attributes:
        allocations: the memory of what the operations returned.
    """

    def __init__(self, given: Any = ()):
        super().__init__()
        self.allocations = Allocations(given)
        self._seen: set[str] = set()
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._paused and len(self._seen) < MAX_NAMES:
            self._seen.add(func.overloadpacket.__name__)
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            self.allocations.note(result)
        return result

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

"""Which arguments share memory with what was returned: no copy was made, or of a part only.

Best effort in a student's process, where this runs beside the student's code, which can make it say
anything. What it says takes points away and never gives any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

Span = tuple[torch.device, int, int]


def aliased(value: Any, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the arguments whose memory a tensor in `value` lies in, as itself, a view or a NumPy array's.

    Args:
        value: tensors, also inside of lists, tuples and dicts.
        arguments: by name; they may hold tensors in the same way.
    """
    returned = list(_spans(value))
    return tuple(
        name
        for name, argument in arguments.items()
        if any(_overlap(one, other) for one in _spans(argument) for other in returned)
    )


def _spans(value: Any) -> Iterator[Span]:
    """Where the memory of each tensor begins and ends."""
    waiting, seen = [value], set()  # a list may hold itself
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if type(thing) is torch.Tensor and thing.layout is torch.strided and not thing.is_meta:
            storage = thing.untyped_storage()
            yield thing.device, storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        elif type(thing) is dict:
            waiting += thing.values()
        elif type(thing) is list or type(thing) is tuple:  # `in` would ask a student's metaclass
            waiting += thing


def _overlap(one: Span, other: Span) -> bool:
    return one[0] == other[0] and max(one[1], other[1]) < min(one[2], other[2])

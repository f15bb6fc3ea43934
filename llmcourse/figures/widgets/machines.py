"""Machines and formats to choose from in views of costs."""

from __future__ import annotations

from collections.abc import Mapping

from llmcourse.costs import Precision
from llmcourse.hardware import DATASHEETS, stored_ceilings
from llmcourse.roofline import Limits

FLOATS = ("bf16", "fp16", "fp32")
WEIGHTS = (*FLOATS, "fp8", "int8", "int4")
CACHES = ("as computed", "fp8", "int8", "int4")
GROUP_SIZE = 128  # numbers of 8 or 4 bits that share a 16-bit scale


def known_machines() -> dict[str, Limits]:
    """Every datasheet that names a peak to calculate with, and first this machine, once it was measured."""
    here = stored_ceilings()
    sheets = {name: sheet for name, sheet in DATASHEETS.items() if set(FLOATS) & set(sheet.peaks)}
    return ({f"this machine ({here.name})": here} if here else {}) | sheets


def arithmetic(machine: Limits, weights: str) -> str:
    """The format to calculate in: that of the weights, or for fewer bits the 16-bit one that is there."""
    if weights in FLOATS:
        return weights
    return next((dtype for dtype in FLOATS if dtype in machine.peaks), FLOATS[0])


def precision(machine: Limits, weights: str, cache: str) -> Precision:
    """Formats of a step on a machine; `cache` is one of `CACHES`."""
    computed = arithmetic(machine, weights)
    kept = None if cache == CACHES[0] else cache
    return Precision(weights, computed, kept, group_size=GROUP_SIZE, cache_group_size=GROUP_SIZE)


def check_arithmetic(machine: Limits, weights: str) -> None:
    """Refuses weights in a format that the machine does not calculate in.

    Raises:
        ValueError: the message is for the reader of a view.
    """
    if weights in FLOATS and weights not in machine.peaks:
        *others, last = (name for name in WEIGHTS if name not in FLOATS or name in machine.peaks)
        raise ValueError(
            f"{machine.name} has no {weights}: choose {', '.join(others)} or {last} under weights."
        )


def with_scales(cache: str) -> str:
    """What to say after the bytes of a cached token: few bits come with scales."""
    return "" if cache == CACHES[0] else ", with scales"


def chosen(name: str | None, options: Mapping[str, object], argument: str) -> str:
    """The name, or the first of the options for None.

    Raises:
        ValueError: there is no such option.
    """
    if name is None:
        return next(iter(options))
    if name not in options:
        raise ValueError(f"{argument} must be one of {', '.join(options)}, got {name!r}")
    return name

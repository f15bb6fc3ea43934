"""Programmatic dependent launch: a kernel starts before the one that feeds it has ended.

Hopper and later start the programs of the next kernel as soon as all of this one's have called
`gdc_launch_dependents` and there is room on the chip. They may do whatever needs no result of this
kernel, such as requesting their own weights, and then wait in `gdc_wait` until it has ended and its
writes are visible. So weights keep streaming while one kernel hands over to the next.
(CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".)

Asking the L2 cache for the weights of kernels further on, which PTX can do without registers, was measured
too: it held up what the current kernel was waiting for, and a step took 1 to 13 % longer.

Because every kernel waits before it ends, waiting for the previous one is waiting for all before it. What
is read before the wait, though, must not come from a kernel that may still be running: weights and gains,
angles and positions, block tables, the cache below the positions. `pdl=True` promises that. In a step they
are all there when its first kernel starts, which waits for all before it.

Older GPUs do not know these instructions: there the kernels are compiled and launched without them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llmcourse.kernels.capabilities import compiles_for


@triton.jit
def start_next(PDL: tl.constexpr):
    """Lets the next kernel start as soon as there is room; nothing without PDL."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_input(PDL: tl.constexpr):
    """Waits for the previous kernel; nothing without PDL."""
    if PDL:
        gdc_wait()


def takes_part(asked: bool) -> bool:
    """Whether a kernel does what it is asked to: only if Hopper or later is what Triton compiles for now."""
    return asked and compiles_for(90)


def options(pdl: bool) -> dict[str, bool]:
    """The kernel's switch and the launch's, which only go together; both off where the GPU has no PDL."""
    return {"PDL": True, "launch_pdl": True} if takes_part(pdl) else {"PDL": False}

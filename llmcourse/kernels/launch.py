"""Programmatic dependent launch: a kernel starts before the one that feeds it has ended.

Hopper and later start the programs of the next kernel as soon as all of this one's have called
`gdc_launch_dependents` and there is room on the chip. They may do whatever needs no result of this
kernel, such as requesting their own weights, and then wait in `gdc_wait` until it has ended and its
writes are visible. So weights keep streaming while one kernel hands over to the next.
(CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".)

Because every kernel waits before it ends, waiting for the previous one is waiting for all before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_input(PDL: tl.constexpr):
    """Lets the next kernel start, then waits for the previous one; nothing without PDL."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def prefetch_to_l2(pointers):
    """Asks for the 128-byte lines of these addresses, without waiting and without registers."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


def options(pdl: bool) -> dict[str, bool]:
    """The launch option that goes with `PDL=True`; the interpreter knows no such option."""
    return {"launch_pdl": True} if pdl else {}


def supports_pdl(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)

"""Programmatic dependent launch: a kernel starts before the one that feeds it has ended.

Hopper and later start the programs of the next kernel as soon as all of this one's have called
`gdc_launch_dependents` and there is room on the chip. They may do whatever needs no result of this
kernel, such as requesting their own weights, and then wait in `gdc_wait` until it has ended and its
writes are visible. So weights keep streaming while one kernel hands over to the next.
(CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".)

Because every kernel waits before it ends, waiting for the previous one is waiting for all before it.
Older GPUs do not know these instructions: there the kernels are compiled and launched without them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime import driver

from llmcourse.kernels.backend import interpreted


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


@triton.jit
def prefetch_to_l2(pointers):
    """Asks for the 128-byte lines of these addresses, without waiting and without registers."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def prefetch_next(next_ptr, program, num_programs, next_bytes, PREFETCH: tl.constexpr, THREADS: tl.constexpr):
    """This program's share of the first `next_bytes` of what a later kernel reads, on its way to the L2.

    While a kernel waits for its input, for other programs or for its own last bytes, the memory would
    stand idle. Each thread asks for one piece, and nothing waits for it (PTX ISA,
    `cp.async.bulk.prefetch.L2`; sizes are multiples of 16 bytes).
    """
    if PREFETCH:
        piece = tl.cdiv(tl.cdiv(next_bytes, num_programs * THREADS), 128) * 128
        start = (program * THREADS + tl.arange(0, THREADS)) * piece
        size = tl.minimum(piece, next_bytes - start)  # not positive beyond the end
        tl.inline_asm_elementwise(
            """{ .reg .pred some; setp.gt.s32 some, $2, 0;
            @some cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }""",
            "=r,l,r",
            [next_ptr.to(tl.pointer_type(tl.int8)) + start, size],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


def takes_part(asked: bool) -> bool:
    """Whether a kernel does what it is asked to: only if Hopper or later is what Triton compiles for now."""
    if not asked or interpreted():
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def num_bytes(prefetch: Tensor | None) -> int:
    """What `prefetch_next` is to ask for: a multiple of 16 bytes; none where the GPU has no such request."""
    if not takes_part(prefetch is not None):
        return 0
    return prefetch.numel() * prefetch.element_size() // 16 * 16


def options(pdl: bool) -> dict[str, bool]:
    """The kernel's switch and the launch's, which only go together; both off where the GPU has no PDL."""
    return {"PDL": True, "launch_pdl": True} if takes_part(pdl) else {"PDL": False}

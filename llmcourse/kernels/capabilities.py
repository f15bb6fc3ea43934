"""What the GPU that Triton compiles for can do, and what this Triton can say to it."""

from __future__ import annotations

import functools
import inspect

from triton.runtime import driver

from llmcourse.kernels.backend import interpreted


def shared_bytes() -> int:
    """The most shared memory of one program where kernels run (CUDA C++ Programming Guide, "Compute
    Capabilities"); 0 in the interpreter."""
    if not compiles_for(80):
        return 0
    arch = driver.active.get_current_target().arch
    return {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}.get(arch, 99) * 1024


def runs_gluon(least: int) -> bool:
    """Whether kernels in Gluon can run: it has no interpreter, and asks for a recent Triton.

    Args:
        least: the oldest architecture that knows the kernel's instructions, as 10 · major + minor.
    """
    return compiles_for(least) and _has_gluon()


def runs_wgmma() -> bool:
    """Whether kernels in Gluon can multiply by four warps together (`wgmma`): on Hopper and nowhere else."""
    return runs_gluon(90) and not compiles_for(100) and _has_warp_groups()


def compiles_for(least: int) -> bool:
    """Whether Triton compiles for a CUDA GPU of at least this architecture, 10 · major + minor."""
    if interpreted():
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= least


@functools.cache
def _has_gluon() -> bool:
    """Whether this Triton has what our kernels use of it."""
    try:
        from triton.experimental import gluon  # noqa: F401
        from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2  # noqa: F401
        from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma  # noqa: F401
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _has_warp_groups() -> bool:
    """Whether this Triton has what kernels use of it beside, whose warps do different things: from 3.6 on."""
    try:
        from triton.experimental.gluon.language import warp_specialize
        from triton.experimental.gluon.language.nvidia.hopper import (  # noqa: F401
            fence_async_shared,
            warpgroup_mma,
            warpgroup_mma_init,
            warpgroup_mma_wait,
        )
    except ImportError:
        return False
    return "functions_and_args" in inspect.signature(warp_specialize).parameters

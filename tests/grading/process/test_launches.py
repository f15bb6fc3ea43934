"""Launches of kernels are counted where Triton interprets them, in a process of its own."""

import os
import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest

from llmcourse.grading.process.launches import Launches

PROGRAM = """
import torch
{setup}
import triton, triton.language as tl
from llmcourse.grading.process.observe import observe

@triton.jit
def by_block(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    x = tl.make_block_ptr(x_ptr, (n,), (1,), (tl.program_id(0) * BLOCK,), (BLOCK,), (0,))
    out = tl.make_block_ptr(out_ptr, (n,), (1,), (tl.program_id(0) * BLOCK,), (BLOCK,), (0,))
    x = tl.load(x, boundary_check=(0,), padding_option="zero")
    tl.store(out, 2 * x, boundary_check=(0,))

@triton.jit
def doubled(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane, mask=lane < n)
    tl.store(out_ptr + lane, 2 * x, mask=lane < n)
    if n > 5:
        tl.load(x_ptr)

def answer(x):
    out = torch.empty_like(x)
    for launch in range(2):
        doubled[(3,)](x, out, len(x), BLOCK=4)
    return out

for n in (5, 10):
    seen = observe(answer, {{"x": torch.ones(n)}}, {{}})
    counts = {{name: seen.counts[name] for name in ("launches", "loads", "stores")}}
    print(seen.raised or seen.value.tolist() == [2.0] * n, seen.operations, counts)
def answer_by_block(x):
    out = torch.empty_like(x)
    by_block[(3,)](x, out, len(x), BLOCK=4)
    return out

seen = observe(answer_by_block, {{"x": torch.ones(10)}}, {{}})
counts = {{name: seen.counts[name] for name in ("launches", "loads", "stores")}}
print(seen.raised or seen.value.tolist() == [2.0] * 10, seen.operations, counts)
before = triton.runtime.interpreter.GridExecutor.__call__
observe(answer, {{"x": torch.ones(3)}}, {{}})
print(triton.runtime.interpreter.GridExecutor.__call__ is before)
"""
INTERPRET = "import os; os.environ['TRITON_INTERPRET'] = '1'"


UNMASKED = """
import os; os.environ['TRITON_INTERPRET'] = '1'
import torch, triton, triton.language as tl
from llmcourse.grading.process.observe import observe

@triton.jit
def everywhere(x_ptr, out_ptr, far, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane * far)
    tl.store(out_ptr + lane, x + 1)

memory = bytearray(32)  # the result has the first five floats of it, and three lanes lie behind them

def answer(x, far):
    out = torch.frombuffer(memory, dtype=torch.float32, count=5)
    everywhere[(1,)](x, out, far, BLOCK=8)
    return out.clone()

for far in (1, 10**12):
    seen = observe(answer, {"x": torch.zeros(8), "far": far}, {})
    print(seen.raised or seen.value[0].item(), seen.counts["loads"], seen.counts["stores"], any(memory[20:]))

from llmcourse.grading.lab_view import once_written
with once_written(answer):
    print(answer(torch.zeros(8), 1)[0].item(), any(memory[20:]))
"""
linux_only = pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")


@linux_only
def test_what_no_mask_holds_back_is_counted_and_harms_nothing():
    done = subprocess.run([sys.executable, "-"], input=UNMASKED, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["1.0 8 8 False"] * 2 + ["1.0 False"], done.stderr


@linux_only
def test_launches_loads_and_stores_are_counted_and_the_interpreters_own_doing_is_not():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = PROGRAM.format(setup=INTERPRET)
    done = subprocess.run(
        [sys.executable, "-"], input=program, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "True ('empty_like',) {'launches': 2, 'loads': 10, 'stores': 10}",
        "True ('empty_like',) {'launches': 2, 'loads': 26, 'stores': 20}",
        "True ('empty_like',) {'launches': 1, 'loads': 10, 'stores': 10}",
        "True",
    ], done.stderr


def test_nothing_is_counted_or_changed_without_triton(monkeypatch):
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    with Launches(nullcontext) as launches:
        assert launches.counts == {"launches": 0, "loads": 0, "stores": 0}
        assert launches._replaced == []

"""The kernels of packed codes, compiled for three generations of GPUs that are not here, fit each of them."""

import concurrent.futures
import multiprocessing
import platform

import pytest
import torch

if platform.system() != "Linux":
    pytest.skip("Triton is made for Linux only", allow_module_level=True)

from tests.kernels.compiled import Compiled
from tests.kernels.compiled_packed import compiled_any_packed, compiled_packed
from tests.kernels.test_compiled import SHARED_BYTES, name_of, names_of

BF16, FP32 = torch.bfloat16, torch.float32
SPARED_BYTES = 8  # one number, which a ring with shared sums lays aside behind its loop, once
STEPS = [
    *[(compiled_packed, width, 1, BF16, gpu) for width in (4, 8) for gpu in SHARED_BYTES],
    *[(compiled_packed, width, rows, BF16, 90) for width in (4, 8) for rows in (8, 16, 24, 64)],
    (compiled_packed, 4, 1, FP32, 90),
]
OTHERS = [(compiled_any_packed, dtype, gpu) for dtype in (BF16, FP32) for gpu in SHARED_BYTES]
ALL = [*STEPS, *OTHERS]


@pytest.fixture(scope="module")
def kernels() -> dict[tuple, list[Compiled]]:
    """What each job compiled; one at a time, since other tests have the other cores."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        running = {job: pool.submit(*job) for job in ALL}
        return {job: future.result() for job, future in running.items()}


@pytest.mark.parametrize("job", ALL, ids=name_of)
def test_no_kernel_spills_and_each_fits_the_shared_memory(kernels, job):
    limit = SHARED_BYTES[job[-1]]
    assert [k for k in kernels[job] if k.spilled_bytes > SPARED_BYTES or k.shared_bytes > limit] == []
    assert all(k.registers for k in kernels[job])


@pytest.mark.parametrize("job", STEPS, ids=name_of)
def test_a_step_launches_what_it_says(kernels, job):
    """One kernel a matrix, as in 16 bits, which starts early on Hopper; norms of many rows are apart."""
    _, _, num_tokens, dtype, gpu = job
    ring = "packed_ring" if gpu >= 90 and dtype == BF16 else "packed"
    embed, attention = "embed", "decode_attention"
    if num_tokens > 1:
        embed, attention = "embed_window", "append_attention"
    norm, swiglu = (["rms_norm"], ["swiglu"]) if num_tokens > 16 else ([], [])
    expected = [embed, *norm, ring, attention, ring, *norm, ring, *swiglu, ring, *norm, ring]
    assert names_of(kernels[job]) == expected
    assert all(kernel.has_pdl == (gpu >= 90) for kernel in kernels[job])


def test_layers_that_no_ring_takes_have_a_kernel_too(kernels):
    for job in OTHERS:
        assert names_of(kernels[job]) == ["packed", "packed", "dequantize"] * 3

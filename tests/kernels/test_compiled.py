"""Every kernel, compiled for three generations of GPUs that are not here, fits each of them."""

import concurrent.futures
import multiprocessing
import platform

import pytest
import torch

if platform.system() != "Linux":
    pytest.skip("Triton is made for Linux only", allow_module_level=True)

from llmcourse.kernels.tiles import Tile
from tests.kernels.compiled import (
    Compiled,
    compiled_bias,
    compiled_divergence,
    compiled_few_rows,
    compiled_flash,
    compiled_gptq_block,
    compiled_guesses,
    compiled_paged,
    compiled_paged_step,
    compiled_rows,
    compiled_simple,
    compiled_split_rings,
    compiled_staged,
    compiled_step,
    compiled_tree,
    compiled_unaligned,
    compiled_varlen,
    compiled_window,
    compiled_with,
)
from tests.kernels.compiled_int8 import compiled_int8, compiled_wide_int8

# The most shared memory of one program (CUDA C++ Programming Guide, "Compute Capabilities").
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
JOBS = [
    *[(compiled_step, "Llama-3-8B", BF16, gpu) for gpu in SHARED_BYTES],
    *[(compiled_step, "base", FP32, gpu) for gpu in SHARED_BYTES],
    *[(compiled_step, name, BF16, 90) for name in ("Qwen3-0.6B", "Llama-2-7B")],
    (compiled_step, "Llama-2-7B", FP32, 90),
    *[(compiled_rows, dtype, gpu) for dtype in (BF16, FP32) for gpu in SHARED_BYTES],
    *[(compiled_paged, size, BF16, gpu) for size in (128, 256) for gpu in SHARED_BYTES],
    *[(compiled_paged, size, FP32, 89) for size in (128, 256)],
    *[(compiled_paged_step, "Llama-3-8B", BF16, gpu) for gpu in SHARED_BYTES],
    *[(compiled_paged_step, name, BF16, 90) for name in ("Qwen3-0.6B", "Llama-2-7B")],
    *[(compiled_paged_step, name, FP32, 89) for name in ("base", "Llama-2-7B")],
    *[(compiled_window, "Llama-3-8B", BF16, 8, gpu) for gpu in SHARED_BYTES],
    (compiled_window, "Qwen3-0.6B", BF16, 8, 90),
    (compiled_window, "Llama-3-8B", BF16, 2, 90),
    (compiled_rows, FP16, 89),  # where shared memory is least
]
TREES = [
    *[(compiled_tree, "Llama-3-8B", 64, gpu) for gpu in SHARED_BYTES],
    (compiled_tree, "Qwen3-0.6B", 20, 90),
]
GUESSES = [
    *[(compiled_guesses, "Llama-3-8B", BF16, gpu) for gpu in SHARED_BYTES],
    (compiled_guesses, "base", BF16, 90),
    (compiled_guesses, "base", FP32, 89),
]
FEW_ROWS = [(compiled_few_rows, num_rows) for num_rows in (2, 9, 17, 64)]
SPLIT = [(compiled_split_rings, num_rows) for num_rows in (24, 64)]
GPTQ = [(compiled_gptq_block, columns, gpu) for columns in (64, 128) for gpu in SHARED_BYTES]
DIVERGENCES = [
    *[(compiled_divergence, kind, 128256, BF16, 90) for kind in ("forward_kl", "reverse_kl")],
    *[(compiled_divergence, "jensen_shannon", 128256, BF16, gpu) for gpu in SHARED_BYTES],
    (compiled_divergence, "forward_kl", 50257, BF16, 90),
    *[(compiled_divergence, "jensen_shannon", 50257, FP32, gpu) for gpu in (89, 90)],
]
INT8 = [
    *[(compiled_int8, num_rows, BF16, gpu) for num_rows in (1, 64, 4096) for gpu in SHARED_BYTES],
    *[(compiled_int8, 64, FP32, gpu) for gpu in (80, 89)],
]
WIDE_INT8 = [(compiled_wide_int8, turns) for turns in (False, True)]
STAGED = [(compiled_staged, head_dim, gpu) for head_dim in (64, 128, 256) for gpu in SHARED_BYTES]
FLASH_JOBS = [
    *[(compiled_flash, size, "causal", BF16, gpu) for size in (64, 128) for gpu in (80, 89)],
    *[(compiled_flash, 128, "full", BF16, gpu) for gpu in (80, 89)],
    *[(compiled_flash, 128, "all", BF16, gpu) for gpu in SHARED_BYTES],
    *[(compiled_flash, size, "causal", BF16, 89) for size in (32, 96, 256)],
    *[(compiled_flash, size, "causal", FP32, 90) for size in (64, 128)],
    (compiled_flash, 96, "causal", BF16, 90),
]
HOPPER_JOBS = [
    *[(compiled_flash, size, kind, BF16, 90) for size in (64, 128) for kind in ("full", "causal")],
    (compiled_flash, 128, "causal", FP16, 90),
]
SIMPLE_JOBS = [
    *[(compiled_simple, size, "causal", BF16, 90) for size in (64, 128)],
    (compiled_simple, 128, "full", BF16, 90),
    (compiled_unaligned, 64),
]
VARLEN_JOBS = [
    *[(compiled_varlen, 128, "all", gpu) for gpu in (80, 89)],
    (compiled_varlen, 128, "causal", 90),
    *[(compiled_varlen, size, "causal", 89) for size in (64, 256)],
]
BIAS_JOBS = [
    *[(compiled_bias, 128, "all", dtype, 4096, gpu) for dtype in (BF16, FP32) for gpu in SHARED_BYTES],
    *[(compiled_bias, size, "causal", BF16, 1, 89) for size in (64, 256)],
    (compiled_bias, 128, "full", BF16, 4096, 90),
]
READABLE_JOBS = [*FLASH_JOBS, *SIMPLE_JOBS, *VARLEN_JOBS, *BIAS_JOBS]
ALL = [*JOBS, *TREES, *GUESSES, *FEW_ROWS, *SPLIT, *GPTQ, *INT8, *WIDE_INT8, *STAGED, *DIVERGENCES]
ALL += [*HOPPER_JOBS, *READABLE_JOBS]
# Of a thread, and not a loss: an address that is stored once by a program and loaded once a tile of queries.
KEPT_BYTES = {("_warp_specialized_forward_kernel", 128, True): 8}  # by head size and causality
TOO_MUCH = (compiled_with, Tile(32, 1024, 4), 80)  # 1,024 bytes of weights a thread in one step


@pytest.fixture(scope="module")
def kernels() -> dict[tuple, list[Compiled]]:
    """What each job compiled; one at a time, since other tests have the other cores."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        running = {job: pool.submit(*job) for job in (*ALL, TOO_MUCH)}
        return {job: future.result() for job, future in running.items()}


def name_of(job: object) -> str:
    kind = job[0].__name__.removeprefix("compiled_")
    return "-".join([kind, *(str(part).removeprefix("torch.") for part in job[1:])])


def kept(kernel: Compiled, job: tuple) -> int:
    """What may be stored and loaded, each."""
    return 2 * KEPT_BYTES.get((kernel.kernel, job[1], kernel.constants.get("CAUSAL")), 0)


def names_of(kernels: list[Compiled]) -> list[str]:
    return [kernel.kernel.strip("_").removesuffix("_kernel") for kernel in kernels]


@pytest.mark.parametrize("job", ALL, ids=name_of)
def test_no_kernel_spills_and_each_fits_the_shared_memory(kernels, job):
    limit = SHARED_BYTES.get(job[-1], SHARED_BYTES[90])
    assert [k for k in kernels[job] if k.spilled_bytes > kept(k, job) or k.shared_bytes > limit] == []
    assert all(k.registers for k in kernels[job])


@pytest.mark.parametrize("job", [*INT8, *WIDE_INT8], ids=name_of)
def test_products_in_8_bits_take_the_kernels_made_for_them(kernels, job):
    """And the tensor cores' products on Hopper never wait for each other where they need not."""
    found = {kernel.kernel for kernel in kernels[job]}
    wide = job[0] is compiled_wide_int8 or (job[1] == 4096 and job[-1] == 90)
    assert ("_wide_int8_matmul_kernel" in found) == wide
    assert "_int8_matmul_kernel" in found  # on Hopper for a list that is too long
    assert not any(kernel.serialized for kernel in kernels[job])
    if job[0] is compiled_int8:
        few = job[1] == 1
        assert ("_find_columns_kernel" in found) == few
        assert ({"_flag_columns_kernel", "_list_columns_kernel"} <= found) == (not few)
        flags = [kernel for kernel in kernels[job] if kernel.kernel == "_flag_columns_kernel"]
        most = 0 if job[2] is BF16 else 64  # a thread has the eight columns of a byte, or half of them
        assert all(kernel.shared_bytes <= most for kernel in flags)


def test_several_rows_and_staged_attention_compile_what_they_say(kernels):
    expected = {
        2: {"_ring_kernel"},
        9: {"_ring_kernel", "_matmul_kernel"},
        17: {"_matmul_kernel", "_split_ring_kernel"},
    }
    expected |= {64: {"_split_ring_kernel"}}
    for job in FEW_ROWS:
        assert {kernel.kernel for kernel in kernels[job]} == expected[job[1]]
        tiles = [kernel.constants for kernel in kernels[job] if kernel.kernel == "_matmul_kernel"]
        widest = max((tile["BLOCK_K"] * tile["STAGES"] for tile in tiles), default=768)
        assert widest == (640 if job[1] == 17 else 768), "the tiles that were measured"
    for job in STAGED:
        assert [kernel.kernel for kernel in kernels[job]] == ["_staged_attention_kernel"] * 2
        assert all(kernel.has_pdl == (job[-1] >= 90) for kernel in kernels[job])


def test_programs_that_share_columns_fit_by_twos_and_multiply_without_waiting(kernels):
    """With what the driver adds to each, and four warps for the producer, which give registers up later."""
    ring = "split_ring"
    for job in SPLIT:
        assert names_of(kernels[job]) == [
            "embed_window",
            ring,
            "append_attention",
            ring,
            ring,
            ring,
            ring,
            ring,
        ]
        found = [kernel for kernel in kernels[job] if kernel.kernel == "_split_ring_kernel"]
        assert all(kernel.has_pdl and not kernel.serialized for kernel in found)
        for kernel in found:
            assert 2 * (kernel.shared_bytes + 1024) <= 228 * 1024
            assert 2 * 32 * (kernel.constants["num_warps"] + 4) * kernel.registers <= 65536


def test_rows_of_logits_are_on_their_way_to_shared_memory_whatever_the_vocabulary(kernels):
    """Two tiles each of student and teacher ahead, 16 bytes at a time; a program fills its multiprocessor."""
    for job in DIVERGENCES:
        *rounds, scaled = kernels[job]
        assert names_of(kernels[job]) == ["vocabulary_divergence"] * 3 + ["scale"] and not scaled.shared_bytes
        for kernel in rounds:
            tile = kernel.constants["LANES"] * kernel.constants["REPEATS"] * job[3].itemsize
            assert kernel.shared_bytes == 4 * tile and tile == 2 * 16 * 32 * kernel.constants["num_warps"]
            assert 32 * kernel.constants["num_warps"] * kernel.registers <= 65536


def test_a_kernel_that_spills_is_seen(kernels):
    (kernel,) = kernels[TOO_MUCH]
    assert kernel.spilled_bytes > 0


@pytest.mark.parametrize("job", JOBS, ids=name_of)
def test_kernels_start_early_from_hopper_on_only(kernels, job):
    """All but choice and verdict, which end a step, and what prompts need, which takes longer than that."""
    found = kernels[job]
    early = dict(zip(names_of(found), (kernel.has_pdl for kernel in found), strict=True))
    late = {"choose", "best_of_chunk", "best_of_row", "rotate_and_store", "paged_attention"}
    late |= {"settle_greedy", "verify", "next_token"}
    assert early == {name: job[-1] >= 90 and name not in late for name in early}


def test_a_step_launches_what_it_says(kernels):
    """Five kernels a layer, one before and two behind; each of the two ways to choose is one."""
    for job in JOBS:
        if job[0] is compiled_step:
            small = job[1] == "Qwen3-0.6B" and job[-1] >= 90
            matrix, attention = ("strip", "staged_attention") if small else ("gemv", "decode_attention")
            assert names_of(kernels[job]) == [
                "embed", matrix, attention, matrix, matrix, matrix, "gemv", "choose", "choose",
            ]  # fmt: skip


def test_a_window_launches_as_many_as_a_step(kernels):
    for job in JOBS:
        if job[0] is compiled_window:
            hopper = {"Llama-3-8B": "ring", "Qwen3-0.6B": "rows_strip"}[job[1]]
            matmul = hopper if job[-1] >= 90 else "matmul"
            assert names_of(kernels[job]) == [
                "embed_window", matmul, "append_attention", matmul, matmul, matmul, matmul,
                "settle_greedy", "verify", "next_token",
            ]  # fmt: skip
            assert not any(kernel.serialized for kernel in kernels[job])


def test_a_tree_takes_four_launches_beside_its_products(kernels):
    for job in TREES:
        assert names_of(kernels[job]) == ["append_attention", "settle_tree", "keep_path", "path_end"]
        assert kernels[job][0].has_pdl == (job[-1] >= 90)


def test_heads_take_four_launches_each_of_which_starts_early(kernels):
    """The last once more for another tree."""
    for job in GUESSES:
        product = {(BF16, "Llama-3-8B"): "ring", (BF16, "base"): "rows_strip"}.get((job[2], job[1]))
        several = product if job[-1] >= 90 else "matmul"
        found = kernels[job]
        assert names_of(found) == ["gemv", "silu_residual", several, "draft_ranked", "draft_ranked"]
        assert all(kernel.has_pdl == (job[-1] >= 90) for kernel in found)


def test_a_served_step_launches_what_it_says(kernels):
    """Six kernels a layer, two of them for pieces of prompts, three behind; products are the library's."""
    for job in JOBS:
        if job[0] is compiled_paged_step:
            assert names_of(kernels[job]) == [
                "rms_norm", "paged_decode", "rotate_and_store", "paged_attention", "rms_norm", "swiglu",
                "rms_norm", "best_of_chunk", "best_of_row",
            ]  # fmt: skip


def test_three_programs_that_decode_over_blocks_fit_on_a_multiprocessor_of_hopper(kernels):
    jobs = [job for job in JOBS if job[0] is compiled_paged_step and job[-1] == 90]
    assert jobs
    for job in jobs:
        found = {kernel.kernel: kernel for kernel in kernels[job]}["_paged_decode_kernel"]
        threads, reserved = 128, 1024  # of a program; shared memory that the driver adds to each
        assert 3 * (found.shared_bytes + reserved) <= 228 * 1024
        assert 3 * threads * found.registers <= 65536


@pytest.mark.parametrize("job", READABLE_JOBS, ids=name_of)
def test_flash_attention_is_three_kernels_and_one_for_a_bias_that_learns(kernels, job):
    biased = ["bias_gradient"] if job in BIAS_JOBS else []
    assert names_of(kernels[job]) == ["forward", "backward_queries", "backward_keys", *biased]


@pytest.mark.parametrize("job", HOPPER_JOBS, ids=name_of)
def test_flash_attention_on_hopper_takes_the_kernels_made_for_it(kernels, job):
    assert names_of(kernels[job]) == ["warp_specialized_forward", "prepare", "backward", "finish"]
    assert not any(kernel.serialized for kernel in kernels[job])

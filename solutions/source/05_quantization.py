# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] name="05-title"
# # Lab 5 · Quantization
#
# You build what chapter 5 explains. First numbers and codes: a range onto integers and back, a scale for each row of
# a weight, where a range should end, and two codes in a byte. Then the two methods of the lecture: GPTQ, in which
# columns take up the errors of others, and LLM.int8(), which keeps outliers in 16 bits. At the end a kernel that
# multiplies codes. There are {{ exercises }} exercises for **{{ points }} points**, about {{ minutes }} minutes in
# all. Any laptop will do, nothing is downloaded.
#
# **How to work** is as in [lab 1](../labs/01_decoding.ipynb): run the setup cell, write your answer in place of
# `raise NotImplementedError(…)`, keep the line `# Exercise 05.…` with the function's name and parameters, run the
# check below it, and read its hints. The exercises do not call each other: begin where you like.
#
# **How it is graded**, too. No number of a check lies in the middle between two codes, so ties do not matter. In the
# last exercise what the kernel loads and stores is counted, as in [lab 3](../labs/03_flash_attention_and_batching.ipynb).
# An answer may use all of PyTorch and Python, but not PyTorch's own quantization, nor the course's `quantization` and
# `kernels`, which is what you build.
#
# **A sign.** The lecture writes $X_q = R(X / S) - Z$ and $\tilde X = S\,(X_q + Z)$. This lab, like nearly all papers and
# libraries, writes $\tilde x = S\,(q - Z)$, so that $Z$ is itself the code of the number 0. The codes are the same;
# $Z$ has the other sign.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $b$ | bits of a code | 比特数 | `bits` |
# | $x,\ q,\ \tilde x$ | a number; its code; what the code stands for | 原始值；量化值；反量化值 | `x`, `codes`, `restored` |
# | | to quantize; to dequantize | 量化；反量化 | |
# | $S,\ Z$ | scale, the length of a step; zero point | 缩放因子；零点 | `scale`, `zero_point` |
# | | symmetric ($Z = 0$), asymmetric | 对称量化；非对称量化 | |
# | | granularity: a scale for a tensor, a channel, a token | 量化粒度:张量、通道、词元 | `scales` |
# | $\lVert W - \tilde W \rVert^2$ | quantization error | 量化误差 | `error` |
# | $r$ | to clip: share of the largest magnitude at which a range ends | 截断 | `shares` |
# | $\mathrm{clamp}(\cdot, \pm a)$ | kept between $-a$ and $a$ | 限制在范围内 | `clamp(-a, a)` |
# | | to pack: two codes in a byte | 打包 | `packed` |
# | $H = 2 X^\top X$ | Hessian of a layer's output error; calibration text | 海森矩阵；校准数据 | `hessian`, `inverse` |
# | $U$ | Cholesky factor of $H^{-1}$ | 楚列斯基分解 | |
# | $O,\ \alpha$ | outlier columns; threshold of a magnitude | 异常值；阈值 | `outliers`, `threshold` |
# | | mixed-precision decomposition | 混合精度分解 | |

# %% name="05-setup"
import os
from unittest.mock import MagicMock

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU
try:
    import triton
    import triton.language as tl
except ImportError:  # there is none for macOS and Windows: stand-ins that compute nothing, so that cells run
    triton = tl = MagicMock()
import torch

from llmcourse.grading import selfcheck
from llmcourse.grading.selfcheck import check

torch.set_num_threads(1)  # with tensors this small, two threads mostly wait for each other

# %% [markdown] name="05-demos-text"
# **Demonstrations** run your functions on larger inputs: a layer of the embedded model `base`, and what it reads of
# some source code of Python's library. They give no points, and need no edit. Where one says *predict*, write a
# number down before you run it; a guess that was wrong is remembered best.

# %% name="05-models" tags=["demo"]
import inspect
import random
import sys

from llmcourse import hardware, pretrained
from llmcourse.grading.lab_view import once_written, points_so_far

numbers = torch.Generator().manual_seed(5)
base, tokenizer = pretrained.load("base", dtype=torch.float32)
layer = base.get_submodule("model.layers.2.mlp.gate_proj")
read = []  # what the layer reads, a row for each token
layer.register_forward_hook(lambda _, given, __: read.append(given[0].flatten(0, 1)))
with torch.no_grad():
    base(torch.tensor(tokenizer.encode_prompt(inspect.getsource(random))[:1024]).view(2, 512))
x, weight = read[0], layer.weight.detach().contiguous()  # (1024, 320) and (896, 320)

# %% [markdown] name="05-codes-text"
# ## Numbers and codes

# %% [markdown]
# {{ statement 05.affine }}


# %%
# Exercise 05.affine
def affine(x, low, high, bits):
    """Codes of a range, its scale and zero point, and what the codes stand for."""
    ### BEGIN SOLUTION
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (highest - lowest)
    zero_point = round(lowest - low / scale)
    codes = ((x / scale).round() + zero_point).clamp(lowest, highest).to(torch.int8)
    return codes, scale, zero_point, scale * (codes.float() - zero_point)
    ### END SOLUTION


# %%
check("05.affine", affine)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.affine", affine, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-affine-text"
# **Demonstration.** The lecture's example with your zero point, and with the slide's, 152, which is cut off where
# yours is rounded. *Predict*: one step is 0.0486. How far off is the worst of the six numbers, in each of the two?

# %% name="05-affine-demo" tags=["demo", "nbval-check-output"]
with once_written(affine):
    example = torch.tensor([1.2, 2.4, 3.6, 11.2, 12.4, 13.6])
    codes, scale, zero_point, restored = affine(example, 1.2, 13.6, 8)
    slide_codes = ((example / scale).round() - 152).clamp(-128, 127)
    for z, q, back in (
        (zero_point, codes, restored),
        (-152, slide_codes.to(torch.int8), scale * (slide_codes + 152)),
    ):
        worst = (back - example).abs().max()
        print(f"Z = {z}: codes {q.tolist()}, back as {[round(n, 2) for n in back.tolist()]}", end="; ")
        print(f"at worst {worst:.3f} off, {worst / scale:.2f} steps")

# %% [markdown]
# {{ statement 05.per_channel }}


# %%
# Exercise 05.per_channel
def per_channel(w, bits):
    """Symmetric codes with a scale for each row, the scales, and the error."""
    ### BEGIN SOLUTION
    scales = w.abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    scales = torch.where(scales == 0, 1.0, scales)
    codes = (w / scales[:, None]).round()
    error = (w - scales[:, None] * codes).square().sum().item()
    return codes.to(torch.int8), scales, error
    ### END SOLUTION


# %%
check("05.per_channel", per_channel)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.per_channel", per_channel, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-channel-text"
# **Demonstration.** The layer's weight with one scale, the matrix as a single row, and with one for each row; the
# error is given as a share of $\lVert W \rVert^2$. *Predict*: by what factor does the error grow with each bit less?

# %% name="05-channel-demo" tags=["demo", "nbval-check-output"]
with once_written(per_channel):
    for bits in (8, 6, 4, 3, 2):
        errors = [per_channel(rows, bits)[2] / weight.square().sum() for rows in (weight.view(1, -1), weight)]
        print(f"{bits} bits: {errors[0]:.2g} with one scale, {errors[1]:.2g} with one for each row")

# %% [markdown]
# {{ statement 05.clip_range }}


# %%
# Exercise 05.clip_range
def clip_range(w, bits, shares):
    """For each row the scale of the share with the least squared error, and that error."""
    ### BEGIN SOLUTION
    top, scales, errors = 2 ** (bits - 1) - 1, [], []
    for share in shares:
        scale = share * w.abs().amax(dim=1) / top
        codes = (w / scale[:, None]).round().clamp(-top, top)
        scales.append(scale)
        errors.append((w - scale[:, None] * codes).square().sum(dim=1))
    scales, errors = torch.stack(scales), torch.stack(errors)
    best = errors.argmin(dim=0, keepdim=True)
    return scales.gather(0, best)[0], errors.gather(0, best)[0]
    ### END SOLUTION


# %%
check("05.clip_range", clip_range)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.clip_range", clip_range, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-clip-text"
# **Demonstration.** Where the ranges of the layer's rows end with the least error, on average, and what that saves.
# *Predict*: with 2 bits there are three codes, -1, 0 and 1. At which share of the largest magnitude should 1 lie?

# %% name="05-clip-demo" tags=["demo", "nbval-check-output"]
with once_written(clip_range):
    shares = [step / 20 for step in range(20, 4, -1)]
    for bits in (8, 4, 3, 2):
        (scales, errors), (widest, plain) = (clip_range(weight, bits, tried) for tried in (shares, [1.0]))
        share, saved = (scales / widest).mean(), 1 - errors.sum() / plain.sum()
        print(f"{bits} bits: ranges end at {share:.2f} of the largest, {saved:.0%} less error")

# %% [markdown]
# {{ statement 05.pack_int4 }}


# %%
# Exercise 05.pack_int4
def pack_int4(codes):
    """Two neighbours of a row in a byte, the first in its low half."""
    ### BEGIN SOLUTION
    odd = codes.shape[1] % 2
    nibbles = torch.nn.functional.pad(codes, (0, odd)).to(torch.uint8) & 15
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    ### END SOLUTION


# %%
check("05.pack_int4", pack_int4)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.pack_int4", pack_int4, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-pack-text"
# **Demonstration.** What a matrix of Llama-3-8B, 14,336 × 4,096, takes up in 4 bits with scales in 16 bits, one for
# each row or for each group of a row. *Predict*: how many bits is that a number, for groups of 32?

# %% name="05-pack-demo" tags=["demo", "nbval-check-output"]
with once_written(pack_int4):
    rows, columns = 14_336, 4_096
    row_bytes = pack_int4(torch.zeros(1, columns, dtype=torch.int8)).nbytes
    for group in (columns, 128, 32):
        total_bytes = rows * (row_bytes + 2 * columns // group)
        bits = 8 * total_bytes / (rows * columns)
        print(f"groups of {group:5,}: {total_bytes / 2**20:.1f} MiB, {bits:.3f} bits a number", end="; ")
        print(f"bf16 is {16 / bits:.2f} times as large")

# %% [markdown]
# {{ statement 05.unpack_int4 }}


# %%
# Exercise 05.unpack_int4
def unpack_int4(packed, columns):
    """The codes of each byte, low half first, with their signs."""
    ### BEGIN SOLUTION
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :columns].to(torch.int8)
    return (nibbles ^ 8) - 8
    ### END SOLUTION


# %%
check("05.unpack_int4", unpack_int4)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.unpack_int4", unpack_int4, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-unpack-text"
# **Demonstration.** There and back: every byte there is, and a matrix with an odd number of columns. And without
# extending signs? *Predict*: which share of the codes is then wrong, and how far off is what they stand for?

# %% name="05-unpack-demo" tags=["demo", "nbval-check-output"]
with once_written(pack_int4, unpack_int4):
    every_byte = torch.arange(256).to(torch.uint8)[None]
    codes = torch.randint(-8, 8, (64, 33), generator=numbers).to(torch.int8)
    print("every byte comes back:", torch.equal(pack_int4(unpack_int4(every_byte, 512)), every_byte))
    print("so do the codes:", torch.equal(unpack_int4(pack_int4(codes), 33), codes))
    unsigned = torch.where(codes < 0, codes + 16, codes)
    wrong = unsigned != codes
    print(f"without signs {wrong.float().mean():.0%} are wrong, each by {(unsigned - codes).max()} steps")

# %% [markdown] name="05-gptq-text"
# ## Errors that others take up

# %% [markdown]
# {{ statement 05.gptq_column }}


# %%
# Exercise 05.gptq_column
def gptq_column(w, inverse, column, scales, bits):
    """The codes of a column, the weight that takes up their error, and the inverse without the column."""
    ### BEGIN SOLUTION
    top = 2 ** (bits - 1) - 1
    codes = (w[:, column] / scales).round().clamp(-top, top)
    error = (w[:, column] - scales * codes) / inverse[column, column]
    moved = w - torch.outer(error, inverse[column])
    left = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes.to(torch.int8), moved, left
    ### END SOLUTION


# %%
check("05.gptq_column", gptq_column)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.gptq_column", gptq_column, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-column-text"
# **Demonstration.** 32 outputs of the layer in 3 bits, column after column: the error of the output on what the
# layer reads, as a share of the output, while the rest of the columns takes it up. *Predict*: when half of the
# columns are rounded, is the error half of that at the end?

# %% name="05-hessian" tags=["demo"]
x_wide, few = x.double(), weight[:32].double()
hessian = 2 * x_wide.T @ x_wide
hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))  # so that it has an inverse


def output_error(changed):
    """Of a weight in place of `few`: how far the output is off, squared, as a share of the output squared."""
    return ((x_wide @ (changed - few).T).square().sum() / (x_wide @ few.T).square().sum()).item()


# %% name="05-column-demo" tags=["demo"]
with once_written(gptq_column):
    scales = few.abs().amax(1) / 3
    alone = scales[:, None] * (few / scales[:, None]).round()
    moved, inverse = few, torch.linalg.inv(hessian)
    for column in range(len(hessian)):
        _, moved, inverse = gptq_column(moved, inverse, column, scales, 3)
        if column + 1 in (1, 80, 160, 240, 320):
            plain = torch.cat((alone[:, : column + 1], few[:, column + 1 :]), 1)
            print(f"{column + 1:3} columns: {output_error(moved):.1%}, alone {output_error(plain):.1%}")

# %% [markdown]
# {{ statement 05.gptq }}


# %%
# Exercise 05.gptq
def gptq(w, hessian, scales, bits):
    """The codes of all columns, each rounded when those before it have handed on their errors."""
    ### BEGIN SOLUTION
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    top, w, columns = 2 ** (bits - 1) - 1, w.clone(), []
    for j in range(w.shape[1]):
        codes = (w[:, j] / scales).round().clamp(-top, top)
        error = (w[:, j] - scales * codes) / factor[j, j]
        w[:, j + 1 :] -= torch.outer(error, factor[j, j + 1 :])
        columns.append(codes)
    return torch.stack(columns, dim=1).to(torch.int8)
    ### END SOLUTION


# %%
check("05.gptq", gptq)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.gptq", gptq, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-loss-text"
# **Demonstration.** The same outputs in some bits: the error of the output, rounded alone and by your GPTQ, as a share of
# the output. And the error of the weight itself, which GPTQ does not look at. *Predict*: which way does that go?

# %% name="05-loss-demo" tags=["demo"]
with once_written(gptq):
    for bits in (8, 4, 3, 2):
        scales = few.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        ways = scales * (few / scales).round(), scales * gptq(few, hessian, scales[:, 0], bits).double()
        outputs = [output_error(way) for way in ways]
        weights = [((way - few).square().sum() / few.square().sum()).item() for way in ways]
        print(f"{bits} bits: output {outputs[0]:.2g} alone, {outputs[1]:.2g} by GPTQ", end="; ")
        print(f"weight {weights[0]:.2g} and {weights[1]:.2g}")

# %% [markdown] name="05-outliers-text"
# ## Activations, too

# %% [markdown]
# {{ statement 05.llm_int8 }}


# %%
# Exercise 05.llm_int8
def llm_int8(x, w, threshold):
    """The output with outlier columns as they are and the rest in int8, and which columns these are."""

    ### BEGIN SOLUTION
    def coded(rows):
        scales = rows.abs().amax(dim=1, keepdim=True) / 127
        scales = torch.where(scales == 0, 1.0, scales)
        return (rows / scales).round(), scales

    is_outlier = (x.abs() >= threshold).any(dim=0)
    q, x_scales = coded(torch.where(is_outlier, 0.0, x))  # no scale reaches to an outlier
    codes, w_scales = coded(w)
    as_they_are = x[:, is_outlier] @ w[:, is_outlier].T
    return as_they_are + x_scales * (q @ codes.T) * w_scales.T, is_outlier.nonzero()[:, 0]
    ### END SOLUTION


# %%
check("05.llm_int8", llm_int8)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.llm_int8", llm_int8, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-outlier-text"
# **Demonstration.** A model as small as `base` has hardly any outliers. So two columns of what the layer reads are
# multiplied by a factor, and those of the weight divided by it: the output is the same, and the numbers are as in
# large models. *Predict*: with outliers of 200, what is the error of int8 alone, and with two columns taken out?

# %% name="05-outlier-demo" tags=["demo"]
with once_written(llm_int8):
    expected = x @ weight.T
    for factor in (1, 4, 16, 64):
        scale = torch.ones(320)
        scale[[17, 200]] = factor
        for threshold in (float("inf"), 6.5):
            y, outliers = llm_int8(x * scale, weight / scale, threshold)
            error = (y - expected).square().sum() / expected.square().sum()
            print(f"{len(outliers)} columns taken out, error {error:.3%}", end="; ")
        print(f"largest magnitude {(x * scale).abs().max():.0f}")

# %% [markdown] name="05-kernel-text"
# ## A kernel

# %% [markdown]
# {{ statement 05.triton_int8 }}


# %%
# Exercise 05.triton_int8
### BEGIN SOLUTION
@triton.jit
def int8_kernel(x_ptr, w_ptr, x_scales_ptr, w_scales_ptr, y_ptr, M, N, K, BLOCK: tl.constexpr):
    down, across = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    rows, columns = tl.program_id(0) * BLOCK + down, tl.program_id(1) * BLOCK + across
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.int32)
    for k in range(0, K, BLOCK):
        x = tl.load(x_ptr + rows * K + k + across, mask=(rows < M) & (k + across < K), other=0)
        w = tl.load(w_ptr + columns * K + k + down, mask=(columns < N) & (k + down < K), other=0)
        acc += tl.dot(x, w)
    s, S = tl.load(x_scales_ptr + rows, rows < M), tl.load(w_scales_ptr + columns, columns < N)
    tl.store(y_ptr + rows * N + columns, acc.to(tl.float32) * s * S, mask=(rows < M) & (columns < N))


### END SOLUTION


def int8_matmul(x, w, x_scales, w_scales, tile):
    """The product of codes, times both scales, by a kernel."""
    ### BEGIN SOLUTION
    (M, K), N, y = x.shape, len(w), x_scales.new_empty(len(x), len(w))
    grid = triton.cdiv(M, tile), triton.cdiv(N, tile)
    int8_kernel[grid](x, w, x_scales, w_scales, y, M, N, K, BLOCK=tile)
    return y
    ### END SOLUTION


# %%
check("05.triton_int8", int8_matmul)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("05.triton_int8", int8_matmul, seed)
### END HIDDEN TESTS

# %% [markdown] name="05-int8-text"
# **Demonstration.** Your kernel on the layer, where there is Triton; and what the roofline of an H200 says of a
# matrix of Llama-3-8B, 14,336 × 4,096, for some numbers of tokens, in bf16 and with int8 for both factors.
# *Predict*: from how many tokens on is it the arithmetic that takes the time, in either?

# %% name="05-int8-demo" tags=["demo", "nbval-check-output"]
with once_written(int8_matmul):
    (q, s), (codes, S) = (
        ((rows / scales).round().to(torch.int8), scales[:, 0])
        for rows, scales in ((m, m.abs().amax(1, keepdim=True) / 127) for m in (x[:40], weight[:100]))
    )
    same = "no Triton here: not run"
    if "triton" in sys.modules:
        same = torch.allclose(
            int8_matmul(q, codes, s, S, 64), (q.double() @ codes.double().T).float() * s[:, None] * S
        )
    print(f"40 tokens, 100 outputs, as exact sums have it: {same}")

# %% name="05-roofline-demo" tags=["demo", "nbval-check-output"]
h200 = hardware.datasheet("H200")
for tokens in (1, 64, 192, 256, 1024):
    times = {}
    for name, size in (("bf16", 2), ("int8", 1)):
        moved = size * (14_336 * 4_096 + tokens * 4_096) + 2 * tokens * 14_336
        compute_s = 2 * tokens * 14_336 * 4_096 / h200.flops_per_s(name)
        times[name] = max(moved / h200.bytes_per_s, compute_s)
        bound = "arithmetic" if times[name] == compute_s else "bandwidth"
        print(f"{tokens:5,} tokens in {name}: {times[name] * 1e6:6.1f} µs, bound by {bound}", end="; ")
    print(f"{times['bf16'] / times['int8']:.2f} times as fast")

# %% [markdown] name="05-end"
# ## Points so far
#
# All answers as they now stand, examined as `check` does. Restart the kernel and run all before you hand the
# notebook in: the grader runs your cells from top to bottom, too.

# %% name="05-points" tags=["demo", "nbval-check-output"]
points_so_far("05_quantization", globals())

# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Chapter 3 · FlashAttention and batching
#
# Chapter 2 left two things on the table. Attention writes a matrix of scores that nobody asked for; and a decoding
# step reads all the weights, whether it serves one reader or fifty. Both are mended without changing a single
# answer: the first inside a kernel, the second in the scheduler around the model. This chapter takes the two apart,
# runs them, and counts what they save.
#
# **When you have worked through this chapter you can**
#
# - derive the online softmax, and compute attention tile by tile without ever holding its scores,
# - count the bytes that naive and tiled attention move, and predict where the saving ends,
# - explain the backward pass without a score matrix, skipped tiles, and splits for decoding,
# - schedule requests by traditional and by continuous batching, on paper and in code,
# - serve a model from a paged cache, with shared prefixes and preemption, and show that no answer changes,
# - choose a policy by its time to the first token, the gaps between tokens, and goodput.
#
# **Time** about 90 minutes of reading and playing; the cells run in under three minutes.
# **Hardware** any laptop; the speed of the kernels is measured where there is a GPU, and recorded elsewhere.
#
# | symbol | term | 中文 |
# |---|---|---|
# | $Q,\ K,\ V$; $T,\ S,\ D$ | queries, keys, values; numbers of queries and keys, features of a head | 查询，键，值；查询数，键的个数，头维度 |
# | $s = q k^\top / \sqrt D$ | a score | 得分 |
# | $m,\ l,\ o$ | largest score so far, sum of exponentials, sum of the values that they weigh | 当前最大值，指数和，加权和 |
# | $L = m + \ln l$ | log-sum-exp of a row | 对数指数和 |
# | $B_q,\ B_k$ | rows of a tile of queries, and of keys | 分块大小 |
# | SRAM, HBM | memory on the chip, slow memory | 片上内存，显存 |
# | | prefill, decoding step | 全量解码，增量解码 |
# | | traditional, continuous batching | 传统批次推理，连续批处理 |
# | | chunked prefill: prompts in pieces | 动态分割 |
# | | block, block table, preemption | 缓存块，块表，抢占 |
# | TTFT, TPOT, ITL | time to first token, per output token, between two tokens | 首词元延迟，平均词元延迟，词元间隔 |
# | goodput | requests a second that are served as promised | 有效吞吐 |

# %% tags=["nbval-check-output"]
import os

import torch

from llmcourse import attention, hardware, pretrained, progress, prompts, roofline, serving, timing
from llmcourse.costs import LLAMA_3_8B, QWEN3_0_6B, Precision, Step
from llmcourse.decoding import SamplingParams, generate
from llmcourse.figures import against_length, kernel_bars, load_curve, recorded, widgets
from llmcourse.figures.step_tokens import plot_step_tokens

torch.set_num_threads(1)  # with models this small, two threads mostly wait for each other
device, h200 = hardware.default_device(), hardware.datasheet("H200")
os.environ |= {} if device.type == "cuda" else {"TRITON_INTERPRET": "1"}  # before Triton is imported
base, tokenizer = pretrained.load("base", device=device, dtype=torch.float64)
print(f"base: {base.config.num_layers} layers, {base.config.num_heads} heads of {base.config.head_dim}")

# %% [markdown]
# # Part one: attention that forgets its scores
#
# ## 3.1 A matrix that nobody asked for
#
# $$O = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{D}}\right) V .$$
#
# (The slide divides by $D$. It is $\sqrt D$: a sum of $D$ products of numbers of variance 1 has variance $D$, hence
# deviation $\sqrt D$; divided by $D$ all scores would be close to 0 and all weights close to equal.)
#
# Naively these are three operations, each a kernel of its own: $QK^\top$ writes $T \cdot S$ scores to slow memory,
# the softmax reads and writes them, the product with $V$ reads them. The result has $T \cdot D$ numbers.
#
# ## 3.2 Online softmax
#
# A softmax seems to need all scores at once: first the largest, so that no exponential overflows, then their sum,
# then the weights. It does not (Milakov and Gimelshein 2018). Keep three things of the scores seen so far, $m$, $l$
# and $o$; when a score $s$ with its value $v$ comes,
#
# $$m' = \max(m, s), \qquad l' = l \, e^{m - m'} + e^{s - m'}, \qquad o' = o \, e^{m - m'} + e^{s - m'} v .$$
#
# A larger score makes all that was summed before it smaller, by the same factor in $l$ and in $o$. At the end $o / l$
# is the softmax-weighted mean. Try it with real numbers: listen to an attention of `base`, take one row of one head,
# and compute it in a single walk. (The first cell also divides the wrong way, to see what it does.)

# %% tags=["nbval-check-output"]
heard = []


def listening(q, k, v, mask=None):
    heard.append((q, k, v))
    return attention.sdpa(q, k, v, mask)


ids = tokenizer.encode_prompt(" ".join(prompts.PROSE[3:8]))[:48]
base.attention = listening
base(torch.tensor([ids], device=device))
base.attention = attention.sdpa
q, k, v = (x.cpu()[0, [head]] for x, head in zip(heard[1], (9, 1, 1), strict=True))  # layer 2, last head
for name, divisor in (("√D", q.shape[-1] ** 0.5), ("D", q.shape[-1])):
    print(f"divided by {name}: {(q[0, -1] @ k[0].T / divisor).softmax(-1).max():.0%} on one token")

# %% tags=["nbval-check-output"]
import math

from llmcourse.figures.softmax_rows import plot_watched_row, watch_row

scores, values = q[0, -1] @ k[0].T / q.shape[-1] ** 0.5, v[0]
m, total, o = -math.inf, 0.0, torch.zeros(values.shape[-1], dtype=torch.float64)
for score, value in zip(scores.tolist(), values, strict=True):
    peak = max(m, score)
    fade, weight = math.exp(m - peak), math.exp(score - peak)
    m, total, o = peak, total * fade + weight, o * fade + weight * value
print("as the definition has it:", torch.allclose(o / total, scores.softmax(-1) @ values))
watched = watch_row(scores, values[:, :3])
expected = sum(1 / i for i in range(2, len(scores) + 1))
print(f"{watched.num_rescaled} new maxima after the first; {expected:.1f} would be expected in random order")
plot_watched_row(watched)

# %% [markdown]
# Orange lines mark where a new maximum came and everything before it faded. At every point the result is right for
# the keys seen *so far*, and at the end for all of them. (Of $n$ scores in random order the $i$-th is a new maximum with
# probability $1/i$: about $\ln n$ of them.)
#
# ## 3.3 Tiles: the scores never leave the chip
#
# FlashAttention (Dao et al. 2022, loops as in Dao 2023) keeps a tile of $B_q$ queries with their $m$, $l$, $o$ in SRAM
# and walks over the keys, $B_k$ at a time: make the scores of the two tiles, join them to the running softmax,
# forget them. Only the result is written. For each tile of queries all keys and values are read once more:
#
# $$\text{numbers moved} = \underbrace{2\,T D}_{Q,\ O} + \underbrace{\left\lceil T / B_q \right\rceil \cdot 2\,S D}_{K,\ V,\
# \text{once a tile}} \qquad\text{instead of}\qquad 2\,T D + 2\,S D + 4\,T S .$$
#
# Play it with the numbers of `base`: which block is in SRAM, what is known of the watched row, and the bytes so
# far. With *no later key*, tiles above the diagonal are not even read.
#
# ### Predict: how much less is moved?
#
# The scores grow with the square of the length. Does the saving? Commit yourself, in the cell after the player: at
# 32,768 tokens, with heads of 64 features in 16 bits and tiles of 128 queries, how many times fewer bytes do tiles
# move? (What `MY_GUESS` holds there is only our first guess. Put yours in its place before you run it.)
# `attention.tiled_attention` then counts what it really reads and writes.

# %%
from llmcourse.figures.widgets.tile_player import TileInputs

widgets.TilePlayer(tuple(x[0].float() for x in (q, k, v)), inputs=TileInputs(row=29, step=11))

# %% tags=["nbval-check-output"]
MY_GUESS = 500  # times fewer bytes, at 32,768 tokens
D, TILE = 64, 128
sizes = {"query_tile": TILE, "key_tile": TILE}


def moved(length, causal):
    """Bytes of one head: of three operations, and of tiles, which also write L, 4 bytes a row."""
    keys = sum(min(first + TILE, length) if causal else length for first in range(0, length, TILE))
    return 2 * (4 * length * D + 4 * length**2), 2 * (2 * length * D + 2 * keys * D) + 4 * length


for length in (512, 2048, 8192, 32_768):
    full, causal = (moved(length, causal) for causal in (False, True))
    print(f"{length:6,} tokens: {full[0] / full[1]:.1f} times fewer, causal {causal[0] / causal[1]:.1f}")
print(f"your guess: {MY_GUESS}")

# %% tags=["nbval-check-output"]
x = torch.randn(3, 1, 1, 1000, D, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
for causal in (False, True):
    naive, tiled = attention.SlowMemory(), attention.SlowMemory()
    attention.unfused_attention(*x, causal=causal, memory=naive)
    attention.tiled_attention(*x, causal=causal, memory=tiled, **sizes)
    counted = naive.traffic_bytes, tiled.traffic_bytes
    print("bytes counted on the way:", counted, "as predicted:", counted == moved(1000, causal))
for length in (2048, 32_768):
    naive, tiled = (1e6 * traffic / h200.bytes_per_s for traffic in moved(length, causal=False))
    products = 1e6 * 4 * length**2 * D / h200.flops_per_s("bf16")
    print(f"H200, {length:6,} tokens, µs: naive {naive:.1f}, tiles {tiled:.1f}, products {products:.1f}")
    print(f"    as many times the products: naive {naive / products:.1f}, tiles {tiled / products:.1f}")
longest = math.isqrt(h200.memory_bytes // (2 * 32))
print(f"32 heads fill an H200 with scores at {longest:,} tokens")

# %% [markdown]
# The saving of traffic levels off, at $2 B_q / D$, or twice that with a causal mask: the keys are read again for every tile,
# and there are ever more tiles. What grows without limit is the saving of *memory*. Is it worth it? On paper, for an
# H200, naive attention waits for its traffic, which takes far longer than its two products, $4\,TSD$ FLOPs. Tiles bring the
# two to the same order, and as neighbouring tiles ask for the same keys at about the same time, most of that comes from
# the L2 cache: a good kernel is bound by arithmetic.
#
# ## 3.4 Measure: memory and time against length
#
# Now on this machine. On a CPU the tiles are PyTorch's operations in a Python loop, so expect the memory of
# FlashAttention without its speed; beside them PyTorch's own fused kernel. On a GPU it is the kernel of this package.
# Memory is what tensors take up at once, inputs aside. *Predict* the slopes: memory and time, naive and tiled.

# %%
from llmcourse.grading.process.observe import observe
from llmcourse.kernels.flash_attention import flash_attention


def on_length(name, function, length, heads):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    qkv = torch.randn(3, 1, heads, length, D, device=device, dtype=dtype)
    with torch.no_grad():
        seen = observe(function, dict(zip("qkv", qkv, strict=True)), {})
        if isinstance(seen.raised, torch.OutOfMemoryError):
            return against_length.LengthRow(name, length)  # no time, no memory: it did not fit
        taken = timing.measure(lambda: function(*qkv), device=device, warmup=1, repeats=3)
    return against_length.LengthRow(name, length, taken.median_s, seen.counts["peak_bytes"])


# %%
def tiled(q, k, v):
    return attention.tiled_attention(q, k, v, **sizes)[0]


WAYS = {"naive": attention.unfused_attention, "tiles, in Python": tiled, "fused, PyTorch": attention.sdpa}
lengths, heads = (256, 512, 1024, 2048, 4096), 2
if device.type == "cuda":
    WAYS = {"naive": attention.unfused_attention, "flash_attention": flash_attention}
    lengths, heads = tuple(2**power for power in range(10, 18)), 16
pairs = [(name, length) for name in WAYS for length in lengths]
rows = [on_length(name, WAYS[name], length, heads) for name, length in progress.bar(pairs, "runs")]
title = f"Causal attention on {hardware.this_machine(device).name}"
against_length.plot_against_length(rows, title, f"{heads} heads of {D}")

# %% [markdown]
# Memory is as predicted: a slope of 2 for the scores; for tiles one that nears 1 from below, because at first the tile
# itself outweighs the result. *Time* has a slope around 2 for all, since nobody has less arithmetic to do: FlashAttention
# is exact, and saves traffic, not FLOPs (but for the tiles that a causal mask hides, half of them). A Python loop pays
# thousands of starts for its tiles, and loses even to the naive way where texts are short. The speed comes from putting
# the loop into the kernel.
#
# ## 3.5 The kernel
#
# One program for each tile of queries; the first cell prints its loop from the package. `join` is the online softmax of 3.2,
# in base 2 because the hardware has an `exp2`; `fade` is the factor of the orange lines.
#
# Then it runs it. Triton compiles it for a GPU; on a CPU its interpreter runs the same text program by program, slowly,
# which is how it is tested here. (On macOS and Windows there is no Triton, and the reference takes its place.)
# The length is no multiple of anything, four query heads share a key head, and *gradients* are taken too.
#
# The second cell: of a causal mask a tile sees one of three things. All of it is visible; or none, and it is skipped;
# or the diagonal runs through. *Predict* for 4,096 tokens in tiles of 128: which share of the tiles is computed, and how much
# faster is causal than full attention?

# %%
from importlib import resources, util

backend = "triton" if util.find_spec("triton") else "reference"
source = resources.files("llmcourse.kernels").joinpath("flash_attention_triton.py").read_text("utf-8")
start = source.index("    for start in range(")
print(source[start : source.index("    total = tl.where(", start)])
numbers, results = torch.Generator(device).manual_seed(0), []
q, grad_out = torch.randn(2, 1, 4, 45, 32, device=device, generator=numbers)
k, v = torch.randn(2, 1, 1, 45, 32, device=device, generator=numbers)
inputs = [x.requires_grad_() for x in (q, k, v)]
for out in (flash_attention(*inputs, backend=backend), attention.attention_reference(*inputs)):
    results.append((out, *torch.autograd.grad(out, inputs, grad_out)))
for name, ours, theirs in zip(("O", "dQ", "dK", "dV"), *results, strict=True):
    print(f"{backend}: {name} differs by at most {(ours - theirs).abs().max().item():.0e}")

# %%
from llmcourse.figures.tiles import walk_tiles

x = torch.randn(3, 1, 1, 4096, D, device=device)
for length in (128, 512, 4096):
    walk, side = walk_tiles(*x[:, 0, 0, :length].cpu(), **sizes), math.ceil(length / TILE)
    computed = 1 - walk.num_skipped / side**2
    print(f"{length:5,} tokens: {computed:4.0%} of the tiles computed, {1 / side:4.0%} on the diagonal")


def taken(causal):
    once = {"device": device, "warmup": 1, "repeats": 3}
    return timing.measure(lambda: attention.tiled_attention(*x, causal=causal, **sizes), **once).median_s


print(f"tiles in Python: causal is {taken(False) / taken(True):.2f} times as fast as full")

# %% [markdown]
# ## 3.6 Backwards without the scores
#
# The usual backward pass reads the weights $P = \mathrm{softmax}(Z)$ of the scores $Z$, so the forward pass has to keep
# them: $T \cdot S$ numbers a head, for every layer, until the gradients come. But of a row whose log-sum-exp $L$ is known,
# any weight can be made again from its score, $P = e^{Z - L}$, and $Z$ from $q$ and $k$. $T$ numbers are kept, and more is computed: five
# products of matrices in place of the forward pass's two.
#
# $$dV = P^\top dO, \qquad dZ = P \circ (dO\,V^\top - \delta), \quad \delta = \mathrm{rowsum}(dO \circ O), \qquad
# dQ = \tfrac{1}{\sqrt D}\, dZ\,K, \qquad dK = \tfrac{1}{\sqrt D}\, dZ^\top Q .$$
#
# Below, a tile of keys at a time, from what the tiled forward pass returned:

# %% tags=["nbval-check-output"]
inputs = torch.randn(4, 1, 1, 200, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
(q, k, v), grad_out = [x.clone().requires_grad_() for x in inputs[:3]], inputs[3]
wanted = torch.autograd.grad(attention.attention_reference(q, k, v), (q, k, v), grad_out)
with torch.no_grad():
    out, log_sum_exp = attention.tiled_attention(q, k, v)
    delta, scale = (grad_out * out).sum(-1, keepdim=True), q.shape[-1] ** -0.5
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for keys in torch.arange(200).split(64):
        weights = (scale * q @ k[:, :, keys].mT - log_sum_exp[..., None]).exp()
        weights = weights.masked_fill(keys > torch.arange(200)[:, None], 0.0)
        d_scores = scale * weights * (grad_out @ v[:, :, keys].mT - delta)
        dv[:, :, keys], dk[:, :, keys] = weights.mT @ grad_out, d_scores.mT @ q
        dq += d_scores @ k[:, :, keys]
print("the gradients of the definition:", all(map(torch.allclose, (dq, dk, dv), wanted)))

# %% [markdown]
# ## 3.7 How fast, on a GPU
#
# The limit is the rate at which the same GPU multiplies large matrices. No attention reaches it: exponentials run on
# other, far slower units and have to be hidden behind the products. The peer is NVIDIA's own kernel in cuDNN. The limit is
# measured in the same process as the bars that it belongs to; where two figures have different ones, the line below them
# says so. 16,384 tokens in all, in texts of 4,096 or 16,384, hidden size 2,048; FLOPs are counted as $4\,T S D$ a head,
# half of it if causal, two and a half times as much backwards. *Predict* before you look, and say why: full or causal,
# heads of 64 or of 128, short texts or long ones: which comes nearer to the limit? And which is faster, forward or backward?

# %%
if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):  # which cuDNN's kernel needs
    from torch.nn.attention import SDPBackend, sdpa_kernel

    x = torch.randn(3, 4, 16, 4096, 128, device=device, dtype=torch.bfloat16)
    flops = 4 * 4 * 16 * 4096**2 * 128
    ours = timing.measure(lambda: flash_attention(*x, causal=False), device=device)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        cudnn = timing.measure(lambda: torch.nn.functional.scaled_dot_product_attention(*x), device=device)
    for name, taken in (("ours", ours), ("cuDNN", cudnn)):
        print(f"here, 4,096 tokens, heads of 128, full: {name} {flops / taken.median_s / 1e12:.0f} TFLOP/s")
rows = {}
for title, names in (("forward", kernel_bars.FLASH_FORWARD), ("backward", kernel_bars.FLASH_BACKWARD)):
    rows[title] = recorded.all_of(names)
    display(kernel_bars.plot_kernels(rows[title], f"FlashAttention, {title}, bf16", names))
print(kernel_bars.compare_limits(rows))

# %% [markdown]
# What can pull each of them down: tiles on the diagonal are half wasted, and the longer rows of a causal mask end later than
# the others; heads of 64 have as many exponentials for half the products; a short text has few tiles in a row, so that the
# beginning and the end of each weigh more; and backwards there are five products, more to be kept on the chip, and
# sums to which many tiles contribute. The diagonal weighs less the longer the text: compare causal with full at 4,096
# tokens, then at 16,384. Where causal has caught up with full, or passed it, its mask costs nothing any more.
#
# ## 3.8 Decoding: one query, many splits
#
# A decoding step has one query. There is no matrix of scores to avoid, and nothing to reuse: attention reads the
# cache once, and its limit is bandwidth. The trouble is another one. With a program for each sequence and key/value
# head, one long text keeps few multiprocessors busy. So the *keys* are split among programs, each of which gives its own
# $m_i, l_i, o_i$, and the last to end joins them by the same rule (Flash-Decoding, Dao et al. 2023):
#
# $$m = \max_i m_i, \qquad o = \frac{\sum_i e^{m_i - m} o_i}{\sum_i e^{m_i - m} l_i} .$$

# %% tags=["nbval-check-output"]
scores = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
values = torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
nothing = attention.RunningSoftmax.before((), 4, scores)
parts = [nothing.join(*split) for split in zip(scores.split(300), values.split(300), strict=True)]
m = max(part.peak for part in parts)
shares = [(part.peak - m).exp() for part in parts]
joined = sum(f * p.mixed for f, p in zip(shares, parts, strict=True))
joined /= sum(f * p.total for f, p in zip(shares, parts, strict=True))
print(f"{len(parts)} splits give the same as one:", torch.allclose(joined, scores.softmax(0) @ values))
kv_heads, multiprocessors = LLAMA_3_8B.num_kv_heads, 132  # of an H200
for batch in (1, 16, 64):
    busy = min(1, batch * kv_heads / multiprocessors)
    print(f"batch {batch:2}, {kv_heads} key/value heads: {busy:4.0%} of an H200 busy without splits")

# %%
for title, names in (
    ("Decode attention, bf16", kernel_bars.DECODE_ATTENTION),
    ("The same over a paged cache", kernel_bars.PAGED_ATTENTION),
):
    display(kernel_bars.plot_kernels(recorded.all_of(names), title, names))

# %% [markdown]
# The limit here is a plain copy. (A little more than 100 % is possible: a copy writes as much as it reads, and reading
# alone is faster.) One long text is the hardest case: it is over so soon that starting, splitting and joining take a good
# part of the time. *Paged* means that keys lie in blocks, found through a table: that is the cache of part two. Whoever
# reads through a table looks up every block first: compare the two figures, where both are recorded.
#
# # Part two: many requests at once
#
# ## 3.9 Traditional batching, continuous batching
#
# Answers have different lengths, and nobody knows them ahead. *Traditional* batching (传统批次推理) starts a batch and waits for its
# longest answer; finished rows stay empty. *Continuous* batching (连续批处理, Yu et al. 2022) decides anew before every step:
# a request is one prefill (全量解码) and any number of single steps (单步增量解码), and a slot that is free now is
# filled now. (One limit is kept: a step that has `token_budget` tokens takes no more prompts, or a crowd that comes at
# once would make it endless; who is left over joins the next.) *Predict* from the lengths of the lecture's picture, S1 to
# S4 ending at T6, T8, T5 and T7: which share of its 32 cells is used? (Put your guess in the place of ours.)
#
# The picture flatters traditional batching: its prompts are all of one length. A batch of fixed shape, as `generate` of
# most libraries computes it, is as long as its longest prompt, and all rows ride on until the longest answer is there:
# the rest is *padding*. The second cell takes 256 requests with prompts and answers of 100 to 1,024 tokens, those of a
# benchmark which we shall meet again. *Predict* here, too: which share of what is computed is padding?

# %% tags=["nbval-check-output"]
from llmcourse.serving.lecture_grid import NUM_SLOTS, NUM_STEPS

MY_GUESS = 0.9  # of the cells, with traditional batching
POLICIES = {"traditional": serving.TraditionalBatching(), "continuous": serving.ContinuousBatching()}
lecture = {name: serving.lecture_trace(policy) for name, policy in POLICIES.items()}
for name, trace in lecture.items():
    grid = serving.grid(trace)
    used = sum(cell != "" for row in grid for cell in row) / (NUM_SLOTS * NUM_STEPS)
    print(f"{name} batching: {used:.0%} of the cells used")
    for row in grid:
        print("    " + " ".join(f"{cell or '·':4}" for cell in row))
print(f"your guess for traditional batching: {MY_GUESS:.0%}")

# %% tags=["nbval-check-output"]
crowd = serving.nano_vllm_requests()


def num_tokens(requests):
    return sum(len(request.prompt) for request in requests), sum(request.max_tokens for request in requests)


wanted = num_tokens(crowd)
print(f"{len(crowd)} requests: {wanted[0]:,} tokens of prompts, {wanted[1]:,} of answers")
for batch in (256, 8):
    spent = num_tokens(serving.padded(crowd, batch))
    prompt, answer = (1 - w / s for w, s in zip(wanted, spent, strict=True))
    print(
        f"batches of {batch:3}: {prompt:.0%} of the prompts' and {answer:.0%} of the answers' tokens are padding"
    )

# %% [markdown]
# Cell for cell the lecture's picture, and nobody drew it: it is what the scheduler of this package decided, on a clock
# where every step takes one second. S6 takes S1's slot from T7, S5 takes S3's from T6, S7 takes S4's at T8. And *packing* does
# away with padding: the new tokens of all requests stand one after the other, as one long row, and attention is
# told where each request begins (`flash_attention_varlen` for prompts, `paged_attention` for everything).
#
# ## 3.10 A cache in blocks
#
# How much memory does a request get, if nobody knows how long its answer will be? The longest possible, and much of it is
# never used. PagedAttention (Kwon et al. 2023) does what an operating system does: memory is cut into blocks of 16 tokens, a
# request takes one more when the last is full, and a *block table* says which are its own. For the 256 requests of 3.9 the
# first cell compares the memory that is set aside with what is in use when all answers are complete.
#
# Then serve `base` from such a cache. A *scheduler* says which tokens of which requests a step computes, a *runner* computes
# them over the paged cache, an *engine* goes round. Eight texts of three domains and of different lengths, every other one
# sampled, under its own seed: first each alone, then all of them in four slots, under each policy. *Predict*: whose answer
# changes?

# %% tags=["nbval-check-output"]
from llmcourse.roofline import kv_bytes_per_token

used = [request.max_length for request in crowd]
most = 2 * 1024
ways = {f"room for {most:,} tokens each": [most] * len(crowd)}
ways |= {f"blocks of {size} tokens": [-(-n // size) * size for n in used] for size in (256, 16)}
for name, taken in ways.items():
    size = sum(taken) * kv_bytes_per_token(QWEN3_0_6B) / 1e9
    print(f"{name:27}{size:6.1f} GB for Qwen3-0.6B, {1 - sum(used) / sum(taken):5.1%} of it never used")


# %%
def engine_of(policy, num_blocks=64, max_running=8, model=base, **options):
    pool = serving.BlockPool(num_blocks, 16, **options)
    scheduler = serving.Scheduler(pool, policy, max_running=max_running)
    cache = serving.PagedCache(model, num_blocks, 16)
    return serving.Engine(scheduler, serving.PagedRunner(model, cache, max_running=max_running))


def serve(engine, requests):
    """How far each has come at the end, and after how many steps that was."""
    states, steps = [engine.add(request) for request in requests], 0
    while engine.has_work:
        engine.step()
        steps += 1
    return states, steps


# %% tags=["nbval-check-output"]
encoded = [tokenizer.encode_prompt(t) for t in (*prompts.PROSE[:3], *prompts.VERSE[:2], *prompts.CODE[:3])]
kinds = (SamplingParams(temperature=0), SamplingParams(temperature=0.8, top_p=0.9))
requests = [
    serving.Request(str(i), prompt, max_tokens=20 - 2 * i, params=kinds[i % 2], seed=i)
    for i, prompt in enumerate(encoded)
]
alone = [serve(engine_of(serving.ContinuousBatching()), [r])[0][0].generated for r in requests]
greedy = [generate(base, [r.prompt], max_new_tokens=r.max_tokens, eos_token_ids=())[0] for r in requests[::2]]
print("greedy answers are those of generate:", [g.tokens for g in greedy] == alone[::2])
POLICIES["chunked prefill"] = serving.ChunkedPrefill(token_budget=12)
for name, policy in POLICIES.items():
    states, steps = serve(engine_of(policy, max_running=4), requests)
    same = [state.generated for state in states] == alone
    print(f"{name:16}{steps:4} steps for {sum(map(len, alone))} tokens; every answer as alone: {same}")

# %% [markdown]
# Batching changes *when* a token is computed, never which. Two things make it so: attention keeps requests apart by their
# tables, and a draw depends on the request's seed and the token's position alone, not on who else is in the batch. (In
# double precision rounding decides nothing. In bf16 a batch of another size may take another kernel, which rounds
# otherwise, and now and then a close decision falls the other way: the text is as good, but not the same.)
#
# ### Sharing what begins alike, and giving back
#
# Full blocks are known by what they hold, so a prompt that begins like an earlier one takes over its blocks, and computes
# only the rest. Below, three questions about one text. Then the opposite of plenty: a pool too small for all. The
# least urgent request is *preempted*: it gives back its blocks, waits, and is computed again later, prompt and answer so
# far in one prefill.

# %% tags=["nbval-check-output"]
story, engine = tokenizer.encode_prompt(" ".join(prompts.PROSE[:6])), engine_of(serving.ContinuousBatching())
for number, question in enumerate(("Who was he?", "Where was it?", "What did she say?")):
    request = serving.Request(str(number), [*story, *tokenizer.encode(question)], max_tokens=4)
    state = engine.add(request)
    engine.step()  # one step after each arrival: all three go on together
    print(f"{len(request.prompt)} tokens, {state.num_reused:2} of them found; blocks {state.blocks}")
for num_blocks in (64, 8):
    engine = engine_of(serving.ContinuousBatching(), num_blocks)
    states, steps = serve(engine, requests)
    preempted = sum(state.num_preemptions for state in states)
    same = [state.generated for state in states] == alone
    print(f"{num_blocks} blocks: {steps} steps, {preempted} preemptions; every answer as alone: {same}")
    assert engine.scheduler.pool.num_free == num_blocks  # every block was given back

# %% [markdown]
# ## 3.11 Whole prompts, or prompts in pieces
#
# Continuous batching has a flaw that the grid does not show, for its steps all take a second. A step with a prompt of
# 4,000 tokens takes many times as long as one that decodes, and *everybody's* next token waits for it. The lecture's dynamic
# splitting (动态分割), elsewhere *chunked prefill* (Agrawal et al. 2024): decode first, then fill the step with a piece of a
# prompt, up to a budget of tokens. As chapter 2 says, decoding leaves the arithmetic idle and prefill the memory, so
# the two share a step well. *Predict*, from chapter 2, for Llama-3-8B on an H200: at how many tokens of a prompt does a
# step begin to take longer? The first cell asks the roofline, and then serves a few requests with long prompts on the
# *virtual clock*: the scheduler is the real one, the seconds are the roofline's.
#
# The second cell measures on this machine. Three answers are being written by `base`; a tenth of a second later a prompt
# of 480 tokens comes in. How long is the longest pause that the three notice, and what does the newcomer pay?

# %% tags=["nbval-check-output"]
for n in (1, 128, 256, 512, 1024, 4096):
    step = roofline.predict_step(LLAMA_3_8B, Step.prefill(1, n), h200)
    print(f"{n:5,} tokens of a prompt: {1e3 * step.time_s:5.1f} ms, bound by {step.bound}")


def on_the_clock(requests, policy, cost, slots=32):
    pool = serving.BlockPool(8000, 256, reuse_prefixes=False)  # blocks for all
    return serving.simulate(requests, serving.Scheduler(pool, policy, max_running=slots), cost)


step_time, lengths = serving.RooflineTime(LLAMA_3_8B, h200), [serving.LogNormal(n, 0.7) for n in (2000, 60)]
some = serving.make_requests(14, serving.poisson(12), *lengths, seed=3)
served = {"whole prompts": serving.ContinuousBatching(), "pieces of 512": serving.ChunkedPrefill(512)}
plot_step_tokens({name: on_the_clock(some, policy, step_time) for name, policy in served.items()})

# %%
from llmcourse.serving.metrics import inter_token, ttft

base32, _ = pretrained.load("base", device=device)
writers = [serving.Request(str(i), encoded[i], max_tokens=60) for i in range(3)]
newcomer = serving.Request("long", [5] * 480, max_tokens=2, arrival_s=0.1)
ways = {f"pieces of {n}": serving.ChunkedPrefill(n + 3) for n in (64, 16)}  # and a token for each writer
for name, policy in ({"whole prompts": serving.ContinuousBatching()} | ways).items():
    engine = engine_of(policy, 64, 4, base32, reuse_prefixes=False)
    *writing, late = serving.replay([*writers, newcomer], engine).timelines
    pause = max(gap for one in writing for gap in inter_token(one))
    print(f"{name:13}: longest pause {1e3 * pause:4.0f} ms, the newcomer waits {1e3 * ttft(late):5.0f} ms")

# %% [markdown]
# While a piece of a prompt is small it rides along nearly for nothing: the weights are read anyway. Then arithmetic sets the
# pace, and a whole long prompt stalls all others for as long as dozens of tokens. The smaller the pieces, the shorter
# the pause, and the longer the newcomer waits: every piece reads the weights and, in attention, all keys before it again.
#
# ## 3.12 Policies on one timeline
#
# Below each policy are its figures: the share of the slots' time that was used, TTFT, ITL, throughput. Try the presets.
# Then find a load at which traditional batching is as good as any; lower the token budget until the throughput suffers;
# and see what a crowd that comes at once does to TTFT.

# %%
widgets.BatchingTimeline(preset="long prompts, short answers")

# %% [markdown]
# ## 3.13 Load, and goodput
#
# A service is not as good as its throughput: tokens that come too late help nobody. Promise a first token within half a
# second and 10 ms a token on average (a *service level objective*); *goodput* counts the requests a second for which both are
# kept (Zhong et al. 2024). Raise the load until nine in ten no longer are. *Predict* the order of the three policies, and
# by which factor the last one is behind. (In the figure a dotted line marks the last load of the sweep that a policy bears.)

# %% tags=["nbval-check-output"]
promise = serving.Objective(ttft_s=0.5, tpot_s=0.01)
lengths = serving.LogNormal(1024, 0.7, 4096), serving.LogNormal(64, 0.7, 256)
served["traditional"], rates = serving.TraditionalBatching(), (2, 5, 10, 20, 30, 40, 50, 60)


def under_load(policy, rate):
    come = serving.make_requests(80, serving.poisson(rate), *lengths, seed=1)
    return serving.measure(on_the_clock(come, policy, step_time), promise)


loads = {name: lambda rate, policy=policy: under_load(policy, rate) for name, policy in served.items()}
curves = load_curve.sweep(loads, rates)
print("\n".join(f"{c.name:13}: nine in ten in time up to {c.capacity():g} requests a second" for c in curves))
title = "Llama-3-8B on an H200, by the roofline"
load_curve.plot_load(curves, title, "80 requests; prompts of about 1,024 tokens")

# %% [markdown]
# Traditional batching has the *shortest* gaps between tokens (nobody new ever comes in) and by far the worst goodput: whoever
# waits for a batch to end waits too long. Continuous batching with whole prompts breaks the second promise, chunked prefill
# keeps it longest.
#
# ## 3.14 Measured: predicted, and what is lost
#
# The same engine on this machine, on a real clock: 16 requests at once in 4 slots, the best of three runs. *Predicted* is
# the roofline of the ceilings that are measured here, for the very same schedule.

# %%
here, in_turn = hardware.measure_ceilings(device, refresh=True), serving.TraditionalBatching()
cost = serving.RooflineTime(base.config, here, Precision.uniform("fp32"))
lengths = serving.Uniform(4, 60), serving.Uniform(4, 40)
few = serving.make_requests(16, serving.Arrivals(), *lengths, vocab_size=base.config.vocab_size)
ways = {"padded batches": (serving.padded(few, 4), in_turn), "traditional, packed": (few, in_turn)}
ways |= {"continuous": (few, serving.ContinuousBatching()), "pieces of 16": (few, serving.ChunkedPrefill(16))}
times = {name: [] for name in ways}
for name, (asked, policy) in progress.bar(3 * [*ways.items()], "runs"):  # a busy machine hits all of them
    engine = engine_of(policy, 32, 4, base32, reuse_prefixes=False)
    times[name].append(serving.replay(asked, engine).end_s)
print(f"base on {here.name}: tokens of answers a second")
for name, way in ways.items():
    best, taken = on_the_clock(*way, cost, slots=4).end_s, min(times[name])
    speed = [num_tokens(few)[1] / time_s for time_s in (best, taken)]
    print(f"{name:20}predicted {speed[0]:6,.0f}, measured {speed[1]:6,.0f}: {best / taken:.0%}")

# %% [markdown]
# Compare the *orders* first: what is predicted follows from the numbers of steps and of tokens, and so does most of what is
# measured. (Neighbours differ by little: if two have changed places, the machine was busy; run the cell again.) The
# absolute figures are far apart: a roofline knows no Python, and a step of this small model starts hundreds of small
# operations, some for each request (chapter 2). The reference that serves on a CPU goes through the requests of a step one by one, so that full
# slots gain less here than they should. On a GPU the engine replays captured graphs and schedules the next step while
# this one runs; what then keeps it from the roofline are attention over many short caches, and the ends of kernels.
# That is for larger models: of the shape of Qwen3-0.6B, and the 256 requests of 3.9. Below, what the roofline of a datasheet
# promises, computed here; then what a GPU has made of it, where that is recorded. Whole prompts and pieces are compared while
# requests come in over time, once as they are, and once with a document of 3,072 tokens for every third prompt: which of the
# two needs pieces?

# %%
cost = serving.RooflineTime(QWEN3_0_6B, h200)
ways = {"one padded batch": (serving.padded(crowd, 256), serving.TraditionalBatching())}
whole = serving.ContinuousBatching(16_384)  # tokens, as in the benchmark: fewer steps for so large a crowd
ways |= {"continuous batching": (crowd, whole)}
best = {name: on_the_clock(*way, cost, slots=256).end_s for name, way in ways.items()}
for name, time_s in best.items():
    print(f"{name:20}at most {num_tokens(crowd)[1] / time_s:7,.0f} tokens/s by the roofline")
print(f"{best['one padded batch'] / best['continuous batching']:.1f} times as many, with the same kernels")
for title, names in (("All at once", kernel_bars.SERVING), ("Whole or pieces", kernel_bars.CHUNKED_PREFILL)):
    rows = recorded.all_of(names)
    display(kernel_bars.plot_kernels(rows, f"{title}, Qwen3-0.6B's shape, bf16", names))
    print("\n".join(map(recorded.told, rows)))

# %% [markdown]
# ## 3.15 A server
#
# `python -m llmcourse serve` puts this engine behind HTTP, with the routes of OpenAI's API, so that any client of it can be
# pointed here. Below one is started on a free port, asked once with streaming, and ended; what it prints first is a `curl`
# command to try from a terminal while yours runs. Invalid parameters are answered with 400 and the parameter's name, a full queue
# with 429, and a client that goes away frees its blocks.

# %%
import json
import subprocess
import sys
from urllib.request import ProxyHandler, build_opener

command = [sys.executable, "-m", "llmcourse", "serve", "--port", "0", "--max-running", "8"]
body = {"model": "base", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "stream": True}
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
        print(hello := server.stdout.readline() + server.stdout.readline())
        ask = build_opener(ProxyHandler({})).open
        with ask(hello.split()[3] + "/completions", json.dumps(body).encode(), 60) as reply:
            print("|".join(json.loads(row[6:])["choices"][0]["text"] for row in reply if b"{" in row))
    finally:
        server.terminate()

# %% [markdown]
# ## 3.16 What goes wrong
#
# | belief | where it fails | what you saw |
# |---|---|---|
# | FlashAttention does less arithmetic | it does as much, and more backwards; traffic and memory shrink | 3.4, 3.6 |
# | the saving of traffic grows with the length | it levels off at a ratio of tile and head size; only memory goes on | 3.3 |
# | tiles are faster | not in Python, not for short texts, and not in decoding, which has no scores to avoid | 3.4, 3.8 |
# | one kernel is good for all | one query needs splits, many queries need tiles | 3.8 |
# | it is exact, so it is bit for bit the same | sums in another order round otherwise | 3.5, 3.10 |
# | continuous batching is better for everybody | whoever decodes is stalled by every new prompt | 3.11 |
# | smaller pieces are better | the prompt waits longer, and weights and keys are read again | 3.11 |
# | a paged cache costs nothing | a look into the table for every block, a half-empty last block | 3.10, 3.8 if recorded |
# | preemption only delays | everything that was computed is computed again | 3.10 |
# | throughput is what counts | beyond some load it still rises while promises are broken | 3.13 |
#
# ## Lab
#
# [Lab 3](../labs/03_flash_attention_and_batching.ipynb) has you build both parts: the bytes of tiles, the online softmax,
# tiled attention whose memory is checked, a causal mask for ragged tiles, a softmax in Triton, the blocks of a cache, the
# scheduler of the lecture's grid; and mend an attention over blocks. To warm up, here in this notebook:
#
# 1. (10 min) Which tile would halve the traffic of 3.3 once more, and does it fit? An H200 has 228 KiB of SRAM on each
#    multiprocessor: add up the tiles of $Q$, $K$, $V$ and the scores for $D = 64$ and $D = 256$. The tile player
#    shows the sum for its own sizes.
# 2. (15 min) In 3.10 find the smallest pool in which all eight requests are served, and predict it from the longest
#    request. What does the scheduler say one block below?
# 3. (15 min) Change the promise of 3.13 until traditional batching has the highest goodput of the three. Who would ask
#    for such a service?
#
# ## Summary
#
# - A softmax can be computed over scores that are forgotten at once: attention then needs memory for its result alone, and a
#   good kernel is bound by arithmetic, forwards and backwards.
# - Scheduling anew at every step fills the slots, blocks of memory fill the cache, and pieces of prompts keep the gaps short;
#   none of them changes an answer.
# - Choose a policy by what was promised: throughput, time to the first token and gaps pull in different directions.
#
# **Sources** Milakov and Gimelshein 2018 (online softmax) · Dao et al. 2022, Dao 2023, Shah et al. 2024 (FlashAttention 1 to 3) ·
# Dao et al. 2023 (Flash-Decoding) · Yu et al. 2022 (Orca: continuous batching) · Kwon et al. 2023 (PagedAttention) · Agrawal
# et al. 2024 (Sarathi-Serve: chunked prefill) · Zhong et al. 2024 (DistServe: goodput)

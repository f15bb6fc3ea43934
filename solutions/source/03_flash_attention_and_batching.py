# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] name="03-title"
# # Lab 3 · FlashAttention and batching
#
# You build what chapter 3 explains: a softmax that sees each score once, attention whose scores are never all
# there, a kernel that does it on the chip; then the memory and the scheduler of an engine that serves many
# requests at once. There are {{ exercises }} exercises for **{{ points }} points**, about {{ minutes }} minutes in
# all. Any laptop will do, nothing is downloaded.
#
# **How to work** is as in [lab 1](../labs/01_decoding.ipynb): run the setup cell, write your answer in place of
# `raise NotImplementedError(…)`, keep the line `# Exercise 03.…` with the function's name and parameters, run the
# check below it, and read its hints. The exercises do not call each other: begin where you like.
#
# **How it is graded**, too, with one addition: some exercises ask *how* a result comes about. How often a block is
# read, how much memory your tensors take up at once, what a kernel loads and stores: that is counted while your
# function runs, in `check` as in grading. Values that are right are not enough there. The counting is best effort,
# and meant for answers that are written in good faith. An answer may use all of PyTorch and Python except where
# the exercise says otherwise, but not NumPy, and not the course's own `attention`, `kernels`, `kv_cache` and
# `serving`, which are what you build.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $T,\ S,\ D$ | queries; keys, or slots of a block; features of a head | 查询数；键的个数；头维度 | `num_queries`, `num_keys`, `head_dim` |
# | $s,\ m$ | a score; the largest so far, the peak | 得分；当前最大值 | `scores`, `peak` |
# | $l,\ o$ | the sum of the exponentials; that of the values they weigh | 指数和；加权和 | `total`, `mixed` |
# | $m + \ln l$ | the log-sum-exp of a row | 对数指数和 | `log_sum_exp` |
# | | a tile of queries and keys | 分块 | `tile` |
# | | slow memory; memory on the chip | 显存 (HBM);片上内存 (SRAM) | |
# | | a block of the cache; the blocks of a request; who shares a block | 缓存块；块表；引用计数 | `block`, `table`, `users` |
# | | traditional, continuous batching | 传统批次推理；连续批处理 | |

# %% name="03-setup"
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

# %% [markdown] name="03-demos-text"
# **Demonstrations** run your functions on larger inputs. They give no points, and need no edit. Where one says
# *predict*, write a number down before you run it; a guess that was wrong is remembered best.

# %% name="03-models" tags=["demo"]
from llmcourse import hardware, serving
from llmcourse.grading.lab_view import once_written, points_so_far

numbers = torch.Generator().manual_seed(3)

# %% [markdown] name="03-attention-text"
# ## Attention, tile by tile

# %% [markdown]
# {{ statement 03.traffic }}


# %%
# Exercise 03.traffic
def traffic(num_queries, num_keys, head_dim, query_tile, number_bytes):
    """Bytes that attention moves: in three operations, and in tiles."""
    ### BEGIN SOLUTION
    q_numbers = out_numbers = num_queries * head_dim
    kv_numbers = 2 * num_keys * head_dim
    matrix = num_queries * num_keys  # scores written and read, weights written and read
    unfused = q_numbers + kv_numbers + 4 * matrix + out_numbers
    num_tiles = -(-num_queries // query_tile)
    tiled = q_numbers + num_tiles * kv_numbers + out_numbers
    return number_bytes * unfused, number_bytes * tiled
    ### END SOLUTION


# %%
check("03.traffic", traffic)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.traffic", traffic, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-traffic-text"
# **Demonstration.** One head of 64 features in bf16, tiles of 128 queries. *Predict*: the scores grow with the
# square of the length. Does the saving grow with it? And what takes more time on an H200, moving the bytes of the
# tiles or the $4\,T S D$ FLOP of the two products? (Counted here is what tiles ask for. Keys that many of them ask
# for at once come from the L2 cache, and a good kernel is bound by its products.)

# %% name="03-traffic-demo" tags=["demo", "nbval-check-output"]
with once_written(traffic):
    h200 = hardware.datasheet("H200")
    for length in (512, 2048, 8192, 32_768):
        unfused, tiled = traffic(length, length, 64, 128, 2)
        times = [moved / h200.bytes_per_s * 1e6 for moved in (unfused, tiled)]
        compute = 4 * length**2 * 64 / h200.flops_per_s("bf16") * 1e6
        print(f"{length:6,} tokens: three operations move {unfused / tiled:.1f} times as much;", end=" ")
        print(f"{times[0]:7.1f} µs, tiles {times[1]:6.1f} µs, products {compute:6.1f} µs")

# %% [markdown]
# {{ statement 03.online_softmax }}


# %%
# Exercise 03.online_softmax
def online_softmax(read, num_blocks):
    """The weighted mean of the values and the log-sum-exp of each row, block by block."""
    ### BEGIN SOLUTION
    peak = total = mixed = None
    for number in range(num_blocks):
        scores, values = read(number)
        if peak is None:
            peak = scores.new_full(scores.shape[:1], -torch.inf)
            total, mixed = torch.zeros_like(peak), scores.new_zeros(len(scores), values.shape[1])
        new_peak = torch.maximum(peak, scores.amax(-1))
        shift = torch.where(new_peak == -torch.inf, 0.0, new_peak)  # -inf - (-inf) is no number
        fade, weights = (peak - shift).exp(), (scores - shift[:, None]).exp()
        total = total * fade + weights.sum(-1)
        mixed = mixed * fade[:, None] + weights @ values
        peak = new_peak
    result = torch.where((total == 0)[:, None], 0.0, mixed / total[:, None])
    return result, peak + total.log()
    ### END SOLUTION


# %%
check("03.online_softmax", online_softmax)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.online_softmax", online_softmax, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-online-text"
# **Demonstration.** A row of 4,000 scores, in one block and in many. *Predict*: scores of a text are in no order.
# How often does a new block of 40 bring a new peak, so that all before it is scaled down: 100 times, 10, 5?

# %% name="03-online-demo" tags=["demo", "nbval-check-output"]
with once_written(online_softmax):
    scores, values = torch.randn(1, 4000, generator=numbers), torch.randn(4000, 2, generator=numbers)
    for size in (4000, 400, 40):
        row, rows = scores.split(size, dim=1), values.split(size)
        result, log_sum_exp = online_softmax(lambda i, row=row, rows=rows: (row[i], rows[i]), len(row))
        peaks = torch.stack([block.max() for block in row])
        new = int((peaks[1:] > peaks.cummax(0).values[:-1]).sum())
        print(f"{len(row):3} blocks: log-sum-exp {log_sum_exp.item():.4f}, {new} new peaks after the first")

# %% [markdown]
# {{ statement 03.tiled_attention }}


# %%
# Exercise 03.tiled_attention
def tiled_attention(q, k, v, tile):
    """Attention of one head, a tile of scores at a time."""
    ### BEGIN SOLUTION
    out = torch.empty_like(q)
    for first in range(0, len(q), tile):
        rows = q[first : first + tile] / q.shape[-1] ** 0.5
        peak = rows.new_full((len(rows),), -torch.inf)
        total, mixed = torch.zeros_like(peak), torch.zeros_like(rows)
        for start in range(0, len(k), tile):
            scores = rows @ k[start : start + tile].T
            new_peak = torch.maximum(peak, scores.amax(-1))
            fade, weights = (peak - new_peak).exp(), (scores - new_peak[:, None]).exp()
            total = total * fade + weights.sum(-1)
            mixed = mixed * fade[:, None] + weights @ v[start : start + tile]
            peak = new_peak
        out[first : first + tile] = mixed / total[:, None]
    return out
    ### END SOLUTION


# %%
check("03.tiled_attention", tiled_attention)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.tiled_attention", tiled_attention, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-tiled-text"
# **Demonstration.** The same attention from yours and from PyTorch, and how much the largest of your tensors would
# be without tiles. *Predict*: how long may the text be until its scores alone, in bf16, fill the 141 GB of an H200,
# for 32 heads of one layer?

# %% name="03-tiled-demo" tags=["demo", "nbval-check-output"]
with once_written(tiled_attention):
    q, k, v = (torch.randn(700, 16, generator=numbers) for _ in "qkv")
    for tile in (16, 100, 700):
        mine = tiled_attention(q, k, v, tile)
        expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        print(
            f"tile {tile:3}: a tile of scores has {tile**2:7,} numbers, all of them {len(q) * len(k):,};",
            end=" ",
        )
        print(f"the same as PyTorch's: {torch.allclose(mine, expected, atol=1e-5)}")
    longest = int((h200.memory_bytes / 2 / 32) ** 0.5)
    print(f"32 heads fill the memory with scores at {longest:,} tokens")

# %% [markdown]
# {{ statement 03.causal_tile }}


# %%
# Exercise 03.causal_tile
def causal_tile(first_query, first_key, tile, num_queries, num_keys):
    """Which keys of a tile its queries may see: bool (rows, columns), or None."""
    ### BEGIN SOLUTION
    last_query, last_key = min(first_query + tile, num_queries), min(first_key + tile, num_keys)
    position = torch.arange(first_query, last_query) + num_keys - num_queries
    visible = torch.arange(first_key, last_key) <= position[:, None]
    return visible if visible.any() else None
    ### END SOLUTION


# %%
check("03.causal_tile", causal_tile)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.causal_tile", causal_tile, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-causal-text"
# **Demonstration.** All tiles of 22 queries, which are the last of 30 keys: `█` for one without a mask, `▚` for one
# that needs it, `·` for one that is not computed. *Predict*: of a long text in tiles, which share is not computed,
# and which needs a mask?

# %% name="03-causal-demo" tags=["demo", "nbval-check-output"]
with once_written(causal_tile):
    for num_queries, num_keys, tile in ((22, 30, 4), (400, 400, 4)):
        tiles = [
            [causal_tile(i, j, tile, num_queries, num_keys) for j in range(0, num_keys, tile)]
            for i in range(0, num_queries, tile)
        ]
        rows = ["".join("·" if m is None else "█" if m.all() else "▚" for m in row) for row in tiles]
        picture = "".join(rows)
        print("\n".join(rows) if len(rows) < 10 else f"{num_keys} keys in tiles of {tile}:")
        print({kind: f"{picture.count(kind) / len(picture):.0%}" for kind in "█▚·"})

# %% [markdown] name="03-kernel-text"
# ## A kernel

# %% [markdown]
# {{ statement 03.triton_softmax }}


# %%
# Exercise 03.triton_softmax
### BEGIN SOLUTION
@triton.jit
def softmax_kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row, lane = tl.program_id(0), tl.arange(0, BLOCK)
    inside = lane < columns
    x = tl.load(x_ptr + row * columns + lane, mask=inside, other=-float("inf"))
    exponentials = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * columns + lane, exponentials / tl.sum(exponentials, axis=0), mask=inside)


### END SOLUTION


def triton_softmax(x):
    """The softmax of each row, by a kernel."""
    ### BEGIN SOLUTION
    (rows, columns), out = x.shape, torch.empty_like(x)
    softmax_kernel[(rows,)](x, out, columns, BLOCK=triton.next_power_of_2(columns))
    return out
    ### END SOLUTION


# %%
check("03.triton_softmax", triton_softmax)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.triton_softmax", triton_softmax, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-kernel-demo-text"
# **Demonstration.** How many lanes of a block are wasted on rows of some vocabularies, and your kernel on a row of
# 3,000, where there is Triton. *Predict*: for which length is it the most, and how much at worst?

# %% name="03-kernel-demo" tags=["demo", "nbval-check-output"]
import sys

with once_written(triton_softmax):
    x, same = 3 * torch.randn(2, 3000, generator=numbers), "no Triton here: not run"
    if "triton" in sys.modules:
        same = torch.allclose(triton_softmax(x), x.softmax(-1), atol=1e-6)
    print(f"a row of 3,000, as PyTorch has it: {same}")
    for columns in (1000, 1025, 3000, 32_000, 50_257, 151_936):
        block = 1 << (columns - 1).bit_length()  # the next power of two
        print(f"{columns:7,} columns: {block:7,} lanes, {1 - columns / block:.0%} of them masked")

# %% [markdown] name="03-serving-text"
# ## Serving many
#
# First the memory: blocks that are shared. Then the scheduler of the lecture's picture. At the end you mend the
# attention that reads those blocks.

# %% [markdown]
# {{ statement 03.block_pool }}


# %%
# Exercise 03.block_pool
def block_pool(num_blocks, commands):
    """The result of each command, and the users of each block at the end."""
    ### BEGIN SOLUTION
    users, results = [0] * num_blocks, []
    for command, argument in commands:
        if command == "allocate":
            free = [block for block in range(num_blocks) if users[block] == 0]
            fits = argument <= len(free)
            for block in free[:argument] if fits else []:
                users[block] = 1
            results.append(free[:argument] if fits else "out of blocks")
            continue
        in_use = all(users[block] for block in argument)
        if command == "free" and (not in_use or len(set(argument)) < len(argument)):
            results.append("double free")
        elif not in_use:
            results.append("not in use")
        else:
            for block in argument:
                users[block] += 1 if command == "share" else -1
            shared = [users[block] for block in argument]
            results.append(shared if command == "share" else [b for b in argument if users[b] == 0])
    return results, users
    ### END SOLUTION


# %%
check("03.block_pool", block_pool)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.block_pool", block_pool, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-pool-text"
# **Demonstration.** Sixteen questions about one text of 4,000 tokens, each with 100 tokens of its own, in blocks of
# 16. *Predict*: how much less memory do they need when they share the blocks of the text?

# %% name="03-pool-demo" tags=["demo", "nbval-check-output"]
with once_written(block_pool):
    text, own = 4000 // 16, -(-100 // 16)
    alone = [("allocate", text + own)] * 16
    together = [("allocate", text + own), *[("share", list(range(text))), ("allocate", own)] * 15]
    for name, commands in (("alone", alone), ("together", together)):
        _, users = block_pool(16 * (text + own), commands)
        used = sum(count > 0 for count in users)
        print(f"{name:8}: {used:5,} blocks in use, users of the first: {users[0]}")

# %% [markdown]
# {{ statement 03.continuous_batching }}


# %%
# Exercise 03.continuous_batching
def continuous_batching(requests, num_slots, room, num_steps):
    """What each slot does in each step: a name, END, or nothing."""
    ### BEGIN SOLUTION
    needs = {name: prompt + answer - 1 for name, _, prompt, answer in requests}
    line = [request for request in requests if needs[request[0]] <= room]
    slots, grid = [None] * num_slots, [[""] * num_steps for _ in range(num_slots)]
    for step in range(num_steps):
        while line and line[0][1] <= step and None in slots:
            taken = sum(needs[running[0]] for running in slots if running)
            if taken + needs[line[0][0]] > room:
                break  # nobody overtakes
            name, _, _, answer = line.pop(0)
            slots[slots.index(None)] = [name, answer]
        for slot, running in enumerate(slots):
            if running:
                running[1] -= 1
                grid[slot][step] = running[0] if running[1] else "END"
                if running[1] == 0:
                    slots[slot] = None
    return grid
    ### END SOLUTION


# %%
check("03.continuous_batching", continuous_batching)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.continuous_batching", continuous_batching, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-batching-text"
# **Demonstration.** Your scheduler and traditional batching, which fills its slots when the last of a batch is done.
# *Predict*: answers of 1 to 60 tokens, every length as likely as another, in batches of 8. Which share of the slots
# is empty in the traditional way?

# %% name="03-batching-demo" tags=["demo", "nbval-check-output"]
with once_written(continuous_batching):
    lengths = torch.randint(1, 61, (160,), generator=numbers).tolist()
    mine = continuous_batching([(f"S{i}", 0, 1, n) for i, n in enumerate(lengths)], 8, 10_000, 2000)
    trace = serving.lecture_trace(
        serving.TraditionalBatching(), {f"S{i}": n for i, n in enumerate(lengths)}, slots=8
    )
    for name, grid in (("continuous", mine), ("traditional", serving.grid(trace, 8, 2000))):
        steps = max(step + 1 for row in grid for step, cell in enumerate(row) if cell)
        print(f"{name:11}: {steps:4} steps, {1 - sum(lengths) / (8 * steps):.0%} of the slots empty")

# %% [markdown]
# {{ statement 03.find_the_bug }}

# %%
# Exercise 03.find_the_bug
# {{ starter 03.find_the_bug }}


### BEGIN SOLUTION
def paged_attention(q, keys, values, tables, lengths):
    """One query for each request, over the tokens in the blocks of its table."""
    size, rows = keys.shape[1], []
    for query, table, length in zip(q, tables, lengths, strict=True):
        peak, total, mixed = torch.tensor(float("-inf")), torch.tensor(0.0), torch.zeros_like(query)
        for place, block in enumerate(table):
            held = min(size, length - place * size)  # also where the last block is full
            scores = keys[block] @ query / query.shape[-1] ** 0.5
            scores[held:] = float("-inf")  # left over from others
            new = torch.maximum(peak, scores.max())
            fade, weights = (peak - new).exp(), (scores - new).exp()
            total = total * fade + weights.sum()
            mixed = mixed * fade + weights @ values[block]
            peak = new
        rows.append(mixed / total)
    return torch.stack(rows)


### END SOLUTION

# %%
check("03.find_the_bug", paged_attention)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("03.find_the_bug", paged_attention, seed)
### END HIDDEN TESTS

# %% [markdown] name="03-bug-text"
# **Demonstration.** A test that would have found it: the size of the blocks is nobody's business, so a text gets the
# same whatever it is. Your pool gives the blocks. Which lengths tell blocks of 4 from one block that holds all?

# %% name="03-bug-demo" tags=["demo", "nbval-check-output"]
with once_written(block_pool, paged_attention):
    keys, values = (torch.randn(1, 24, 8, generator=numbers) for _ in "kv")
    query, differ = torch.randn(1, 8, generator=numbers), []
    for length in range(1, 24):
        whole = paged_attention(query, keys, values, [[0]], [length])
        (table,), _ = block_pool(6, [("allocate", -(-length // 4))])
        blocks = [pool.view(6, 4, 8) for pool in (keys, values)]
        if not torch.allclose(paged_attention(query, *blocks, [table], [length]), whole, atol=1e-5):
            differ.append(length)
    print("lengths at which the size of the blocks makes a difference:", differ or "none")

# %% [markdown] name="03-end"
# ## Points so far
#
# All answers as they now stand, examined as `check` does. Restart the kernel and run all before you hand the
# notebook in: the grader runs your cells from top to bottom, too.

# %% name="03-points" tags=["demo", "nbval-check-output"]
points_so_far("03_flash_attention_and_batching", globals())

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
# # Chapter 2 · The KV cache and the roofline
#
# A model that writes a thousand tokens reads its own text a thousand times, unless it remembers what it
# computed. Remembering changes *what kind of work* is left: no longer arithmetic, but moving bytes. This
# chapter predicts from shapes alone how fast that work can be, measures how fast it is, and puts both
# on one plot.
#
# **When you have worked through this chapter you can**
#
# - write greedy decoding with a key/value cache, and show that it changes no logit,
# - count FLOPs and bytes of every operation of a decoder layer, for prefill and for a decoding step,
# - find a machine's ridge, and say which operations are bound by memory and which by arithmetic,
# - predict tokens per second and the memory of a model, and name the batch size where the limit changes,
# - measure the same on your machine and explain the difference.
#
# **Time** about 75 minutes of reading and playing; the cells run in under three minutes.
# **Hardware** any laptop; the numbers of a GPU come from datasheets and recorded runs where there is none.
#
# | symbol | term | 中文 |
# |---|---|---|
# | $B,\ T,\ S$ | sequences in a batch, new tokens of each, keys that they look at | 批大小，新词元数，键的个数 |
# | $H,\ H'$ | features of the residual stream, and inside the MLP | 隐藏维度，中间维度 |
# | $N,\ N_{kv},\ D$ | query heads, key/value heads, features of a head | 查询头数，键值头数，头维度 |
# | $K_{past},\ V_{past}$ | keys and values that were kept: the KV cache | 键值缓存 |
# | | prefill: the whole prompt in one pass | 全量解码 |
# | | decoding step: one more token, with the cache | 增量解码 |
# | FLOP/s, byte/s | compute and bandwidth of a machine | 算力，带宽 |
# | FLOP, byte | work and traffic of an operation | 运算量，访存量 |
# | $I$ = FLOP / byte | arithmetic intensity | 计算强度 |
# | $I^*$ | the ridge: compute over bandwidth | 计算强度上限 |
# | $I < I^*,\ I > I^*$ | memory-bound, compute-bound | 带宽瓶颈，计算瓶颈 |

# %% tags=["nbval-check-output"]
import torch
from torch.nn import functional as F

from llmcourse import costs, decoding, hardware, pretrained, progress, roofline, timing
from llmcourse.costs import LLAMA_2_7B, LLAMA_3_8B, Precision, Step
from llmcourse.decoding import generate
from llmcourse.figures import cost_table, growth, memory_bars, recorded, widgets
from llmcourse.figures.roofline_data import Measured, roofline_data
from llmcourse.figures.roofline_plot import plot_roofline

torch.set_num_threads(1)  # with models this small, two threads mostly wait for each other
device = hardware.default_device()
base, tokenizer = pretrained.load("base", device=device, dtype=torch.float64)
encode = tokenizer.encode_prompt
print(f"base: {base.num_parameters / 1e6:.1f} M parameters, {base.config.num_layers} layers")

# %% [markdown]
# ## 2.1 Recomputing, or remembering
#
# In attention a token's query meets the keys and values of all tokens before it:
#
# $$\mathrm{Attention}(q, K, V) = \mathrm{softmax}\!\left(\frac{q K^\top}{\sqrt{D}}\right) V .$$
#
# (Two later slides divide by $D$; it is $\sqrt{D}$, Vaswani et al. 2017.) A token looks only backwards, so its
# key and value never change once they are computed. Keep them, and a new token costs one row instead of the
# whole text. That is the lecture's algorithm:
#
# > $P, K_{past}, V_{past} = \mathcal{M}(u)$;&emsp; $\hat u = \arg\max P$;&emsp; $u \leftarrow u \oplus [\hat u]$ &emsp;*(prefill, 全量解码)*<br>
# > **while** $\hat u$ is not the end token, and $u$ is not too long:<br>
# > &emsp;&emsp; $P, k, v = \mathcal{M}(\hat u, K_{past}, V_{past})$;&emsp; $\hat u = \arg\max P$;&emsp; $u \leftarrow u \oplus [\hat u]$<br>
# > &emsp;&emsp; $K_{past}, V_{past} \leftarrow K_{past} \oplus k,\ V_{past} \oplus v$ &emsp;*(one incremental step, 增量解码)*
#
# Below it stands in a dozen lines. `model.new_cache` allocates the memory once; a forward pass with a cache
# appends to it.


# %% tags=["nbval-check-output"]
@torch.inference_mode()
def decode_greedily(model, tokens, max_new_tokens):
    cache = model.new_cache(batch_size=1, capacity=len(tokens) + max_new_tokens)
    logits = model(torch.tensor([tokens], device=device), cache)[0, -1]  # prefill
    token = int(logits.argmax())
    while token not in model.config.eos_token_ids and cache.extent < cache.capacity:
        tokens = [*tokens, token]
        one = torch.tensor([[token]], device=device)
        logits = model(one, cache)[0, -1]  # one incremental step
        token = int(logits.argmax())
    return tokens


text = decode_greedily(base, encode("Once upon a time there was"), 40)
print(tokenizer.decode(text[1:]))

# %% [markdown]
# Does remembering change anything? The logits after *every* token, once from one pass over the whole text, once
# from a prefill of half of it and then token by token. In double precision they agree to rounding.

# %% tags=["nbval-check-output"]
ids = torch.tensor([text], device=device)
half, cache = len(text) // 2, base.new_cache(1, len(text))
with torch.inference_mode():
    whole = base(ids)
    pieces = [base(ids[:, :half], cache)]
    pieces += [base(ids[:, i : i + 1], cache) for i in range(half, len(text))]
    cache.truncate([half])  # rolling back is a change of lengths: nothing is copied or erased
    again = base(ids[:, half : half + 1], cache)
off = (torch.cat(pieces, dim=1) - whole).abs().max().item()
print(f"the largest logit is {whole.abs().max().item():.1f}")
print("cached and recomputed differ by less than 1e-10:", off < 1e-10)
print("after rolling back, the same logits again:", torch.equal(again, pieces[1]))

# %% [markdown]
# ### Predict: how much does it save?
#
# Without a cache the $n$-th token costs a pass over $n$ tokens; $n$ tokens cost about
# $\sum_{i \le n} i \approx n^2/2$ token-passes. With one they cost $n$. The ratio is $n / 2$, if a pass over one
# token costs $1/n$ of a pass over $n$. Does it? Commit yourself: how many times faster is the cache
# over 256 new tokens, on this machine? (What `MY_GUESS` holds in the next cell is only our first guess. Put yours in
# its place before you run it.)

# %% tags=["nbval-check-output"]
MY_GUESS = 128  # times faster, for 256 new tokens

n = 256


def step_flops(step):
    return costs.total(costs.model_costs(base.config, step)).flops


recompute = sum(step_flops(Step.prefill(1, i, cache=False)) for i in range(1, n + 1))
remember = sum(step_flops(Step.decode(1, i)) for i in range(1, n + 1))
print(f"FLOPs for {n} tokens: {recompute / 1e9:,.0f} G without a cache,", end=" ")
print(f"{remember / 1e9:.1f} G with one")
print(f"ratio of FLOPs: {recompute / remember:.0f}; your guess: {MY_GUESS}")

# %%
base32, _ = pretrained.load("base", device=device)
start, lengths = encode("Once upon"), (4, 8, 16, 32, 64, 128, 256)


def seconds_after(source):
    """Seconds until each of the lengths is reached, one sequence, greedy."""
    steps = decoding.stream(source, [start], max_new_tokens=max(lengths), eos_token_ids=())
    times = [step.time_s for step in progress.bar(steps, "tokens", total=max(lengths))]
    return [sum(times[:length]) for length in lengths]


generate(base32, [start], max_new_tokens=16)  # warm up
without, with_cache = seconds_after(decoding.UncachedLogits(base32)), seconds_after(base32)
print(f"{n} tokens: {without[-1]:.2f} s without, {with_cache[-1]:.2f} s with a cache,")
print(f"{without[-1] / with_cache[-1]:.1f} times faster; your guess was {MY_GUESS}")

# %%
curves = [
    growth.Curve("without a cache", lengths, without),
    growth.Curve("with a cache", lengths, with_cache),
]
powers = ", ".join(f"{c.name} n^{c.exponent(start=64):.2f}" for c in curves)
growth.plot_growth(
    curves,
    "Time for a text of n tokens",
    f"base, fp32; from 64 tokens on: {powers}",
    x_label="new tokens",
    y_label="seconds",
)

# %% [markdown]
# Quadratic against linear, as predicted: on log-log axes the slopes go towards 2 and stay at 1. But the
# *factor* is nowhere near the ratio of the FLOPs. A pass over one token does 1/256 of the work of a pass over
# 256, and takes far more than 1/256 of the time. Something other than arithmetic takes the time. To say what, and
# how much of it is unavoidable, we need two numbers of the machine and two of the model.
#
# ## 2.2 Two numbers of a machine, two of an operation
#
# | of the machine | | of the operation | |
# |---|---|---|---|
# | compute (算力) | FLOP/s | work (运算量) | FLOP |
# | bandwidth (带宽) | byte/s | traffic (访存量) | byte |
# | **ridge** (计算强度上限) $I^*$ | FLOP/byte | **arithmetic intensity** (计算强度) $I$ | FLOP/byte |
#
# $$t \ge \max\left(\frac{\text{FLOP}}{\text{FLOP/s}},\ \frac{\text{byte}}{\text{byte/s}}\right)
# \qquad\Longleftrightarrow\qquad \text{FLOP/s reached} \le \min(\text{peak},\ I \cdot \text{bandwidth})$$
#
# This is the *roofline* (Williams et al. 2009). Below the ridge memory is the limit, above it arithmetic. What
# are the ridges of machines that you may meet?

# %% tags=["nbval-check-output"]
NAMES = ("laptop CPU", "T4", "V100 32GB", "RTX 4090", "A100 80GB")
NAMES += ("H100 SXM", "H200", "B200", "MI300X")
print("ridge: FLOP/byte in bf16, or in fp16 or fp32 where the machine lacks it")
print(f"{'':16}{'GiB':>6}{'GB/s':>8}{'TFLOP/s':>9}{'ridge':>8}")
for name in NAMES:
    sheet = hardware.datasheet(name)
    dtype = next(d for d in ("bf16", "fp16", "fp32") if d in sheet.peaks)
    memory, bandwidth = sheet.memory_bytes / 2**30, sheet.bytes_per_s / 1e9
    peak, ridge = sheet.flops_per_s(dtype) / 1e12, roofline.ridge(sheet, dtype)
    print(f"{name:16}{memory:6.0f}{bandwidth:8,.0f}{peak:9,.1f}{ridge:8.1f}   {dtype}")

# %% [markdown]
# ### The slide says 142.51 for the A100. Why?
#
# $312 \cdot 10^{12} / (2039 \cdot 10^9) = 153.0$. Bandwidths are sold in GB/s of $10^9$ bytes, memory in GiB of
# $2^{30}$. Take one for the other and the ridge shrinks by 7 %:

# %% tags=["nbval-check-output"]
a100 = hardware.datasheet("A100 80GB")
print(f"{a100.flops_per_s('bf16'):.3g} / {a100.bytes_per_s:.4g}", end=" ")
print(f"= {roofline.ridge(a100):.1f} FLOP/byte")
print(f"with 2039 GB/s read as GiB/s: {roofline.misread_ridge(a100):.2f} FLOP/byte")

# %% [markdown]
# ## 2.3 Counting a layer
#
# A product $A_{n \times m} B_{m \times p}$ takes $2nmp$ FLOPs and moves $nm + mp + np$ numbers, so per number
#
# $$\frac{2nmp}{nm + mp + np} = \frac{2}{\frac1n + \frac1m + \frac1p}:$$
#
# the *smallest* of the three sizes decides. For a linear layer over a batch these are $H$, $H$ and $BT$. In
# prefill $BT$ is thousands; in a decoding step $T = 1$, and the intensity is about $B$.
#
# The next two tables are made by `costs` from the operations themselves, with the lecture's sizes, $B = 8$,
# $T = 1024$, $H = 4096$, $D = 128$ (and $H' = 11008$ of Llama-2-7B, which the slide leaves open). First prefill,
# nine operations; each is judged by its exact intensity against the A100's ridge.

# %% tags=["nbval-check-output"]
cost_table.cost_table(costs.layer_table(step=costs.LECTURE_PREFILL), roofline.ridge(a100))

# %% [markdown]
# Two columns, since the lecture's numbers are $O(\dots)$ evaluated: constants dropped, elements counted
# instead of bytes. Two FLOPs a multiplication over two bytes a number cancel, so in 16 bits they come out
# about right, and in fp32 or int8 they would not. Exactly counted, a matrix that is read and one that is written
# are two: the output projection ④ has 1638 and not 2730.7, and unfused attention ③ moves its scores four times
# and has 57.3, not 114.7.
#
# **Either number lies below the ridge.** The slide calls all of prefill compute-bound; its linear layers are,
# but attention, as counted here, is memory-bound. The way out is not to write the scores at all (*fused*
# attention, chapter 3):

# %% tags=["nbval-check-output"]
for kind in ("unfused", "fused"):
    rows = costs.layer_table(attention=kind)
    attention = next(row for row in rows if row.name == "attention")
    moved = attention.cost.traffic_bytes / 1e9
    print(f"{kind:8}{moved:6.2f} GB moved,", end=" ")
    print(f"{attention.cost.intensity:6.1f} FLOP/byte,", end=" ")
    print(f"bound by {roofline.predict(attention.cost, a100).bound}")

# %% [markdown]
# Now one decoding step, ten operations: the cache write ③ is new, and computes nothing.

# %% tags=["nbval-check-output"]
cost_table.cost_table(costs.layer_table(step=costs.LECTURE_DECODE), roofline.ridge(a100))

# %% [markdown]
# A decoding step does two FLOPs with each number that it reads, for each row that shares it. A weight is shared by
# the batch: 8.0 FLOP/byte for $B = 8$. Cached keys and values are not, since every row has its own: about 1.0,
# whatever the batch. All of it lies far below 153.
#
# Is the count right? PyTorch can count the products of a real forward pass; the two numbers must be equal, not
# close.

# %% tags=["nbval-check-output"]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

for batch, new, past in ((2, 100, 0), (3, 1, 99), (2, 16, 50)):
    cache = base.new_cache(batch, past + new)
    ids = torch.zeros(batch, past + new, dtype=torch.long, device=device)
    if past:
        base(ids[:, :past], cache)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        base(ids[:, past:], cache)
    operations = costs.model_costs(base.config, Step.chunk(batch, new, past))
    ours, theirs = costs.total(operations).matmul_flops, counter.get_total_flops()
    print(f"{batch} × {new} new after {past}: ours {ours:,}, PyTorch's {theirs:,}")

# %% [markdown]
# ## 2.4 On the roofline
#
# Every operation of a layer as a point, in both steps, on an A100. (Prefill fills a cache here, as it does in
# use, so both steps have the ten operations of the second table.) *Predict* before you look: which points lie
# on the flat part?

# %% tags=["nbval-check-output"]
STEPS = {"prefill": Step.prefill(8, 1024), "decode": Step.decode(8, 1024)}


def layer_points(machine, shapes, attention, dtype="bf16"):
    numbers = Precision.uniform(dtype)
    points = {}
    for name, step in STEPS.items():
        layer = costs.layer_costs(shapes, step, numbers, attention=attention)
        points[name] = roofline.predict_all(layer, machine, dtype)
    return points


points = roofline_data(a100, layer_points(a100, LLAMA_2_7B, "unfused"))
subtitle = "8 × 1,024 tokens, bf16, unfused attention"
plot_roofline(points, "A layer of Llama-2-7B on an A100", subtitle)

# %% [markdown]
# Prefill's linear layers stand on the flat roof: the A100 is busy computing. Everything else, and all of decoding,
# hangs on the slope: it waits for memory. The shares of the time tell what is worth optimising. Unfused attention in
# prefill takes more than twice its share of the arithmetic; RoPE, norms and SwiGLU do next to no arithmetic
# and still take time, which is why they are fused into their neighbours.
#
# Play: fuse the attention, then raise the batch and see which points of the decoding step move to the right, and
# which never do. Change the weights to int4: what happens to the speed, and why not by four at every batch?

# %%
here = hardware.measure_ceilings(device, refresh=True)
machines = {"this machine": here} | hardware.DATASHEETS
machines = {name: m for name, m in machines.items() if {"fp32", "bf16", "fp16"} & set(m.peaks)}
widgets.RooflineExplorer(machines, machine="A100 80GB", model="Llama-3-8B")

# %% [markdown]
# ## 2.5 Where the batch size moves the points
#
# A batch reads the weights once for all of its rows: the linear layers climb the slope with $B$, and turn
# compute-bound near $B = I^*$. Attention does not: each row reads its own cache. With a long context the cache
# soon outweighs the weights, and the step as a whole levels off below the ridge.

# %% tags=["nbval-check-output"]
for name in ("A100 80GB", "H200"):
    machine = hardware.datasheet(name)
    linear = roofline.turning_batch(LLAMA_3_8B, machine, operation="gate and up projection")
    print(f"{name}, ridge {roofline.ridge(machine):.0f}:", end=" ")
    print(f"Llama-3-8B's linear layers turn at batch {linear};")
    for context in (128, 1024, 8192):
        whole = roofline.turning_batch(LLAMA_3_8B, machine, context=context)
        turn = "never" if whole is None else f"at batch {whole}"
        print(f"    the whole step, context {context:5,}: {turn}")

# %% tags=["nbval-check-output"]
batches = tuple(2**power for power in range(10))
curves = []
for context in (128, 1024, 8192):
    steps = [roofline.predict_step(LLAMA_3_8B, Step.decode(b, context), a100) for b in batches]
    speeds = [step.tokens_per_s for step in steps]
    curves.append(growth.Curve(f"context {context:,}", batches, speeds, "predicted"))
growth.plot_growth(
    curves,
    "Batching: nearly free, until the caches are what is read",
    "Llama-3-8B, bf16, A100 80GB: all rows together, at best (whether or not it fits)",
    x_label="batch (rows)",
    y_label="tokens/s",
)

# %% [markdown]
# ## 2.6 Will it fit?
#
# $$\text{memory} = \text{weights} + B \cdot S \cdot \underbrace{2 \cdot \text{layers} \cdot N_{kv} \cdot D
# \cdot \text{bytes}}_{\text{one cached token}} + \text{activations}$$
#
# Llama-2-7B has as many key/value heads as query heads, 32. Llama-3-8B shares each among four query heads
# (*grouped-query attention*, 分组查询注意力, Ainslie et al. 2023). *Predict*: the 8B model is the larger one. Which
# of the two needs more memory for eight texts of 8,192 tokens?

# %% tags=["nbval-check-output"]
needs = {}
for name in ("Llama-2-7B", "Llama-3-8B"):
    shapes = costs.MODELS[name]
    token = roofline.kv_bytes_per_token(shapes)
    rows = roofline.largest_batch(shapes, 8192, a100.memory_bytes)
    print(f"{name}: weights {costs.weight_bytes(shapes) / 1e9:.1f} GB,", end=" ")
    print(f"{token:,} bytes a cached token, on an A100 at most {rows} rows of 8,192 tokens")
    for batch in (8, 24):
        needs[f"{name}, {batch} × 8,192"] = roofline.memory_needed(shapes, batch, 8192)
memory_bars.plot_memory(
    needs, {"A100 80GB": a100.memory_bytes}, "Grouped queries: a quarter of the cache", "bf16"
)

# %%
widgets.MemoryCalculator(machines, machine="RTX 4090", model="Llama-3-8B")

# %% [markdown]
# The smaller cache is not only a matter of fitting. It is read in every step, so it is also bandwidth.
# (80 "GB" of memory are 80 GiB, 85.9 GB: the same trap as in 2.2, in the other direction.)
#
# ## 2.7 Measure: does the roof hold?
#
# The roof of the machine at hand was measured before the first widget: a copy and a read of a large buffer, and
# the fastest product in each format. No datasheet figure enters below. First a single linear
# layer, $X_{M \times 2048} W_{2048 \times 8192}$, for growing $M$: its intensity grows with $M$, so it should
# climb the slope and then lie flat. (The weights rotate through copies, so that they come from memory and not
# from a cache.)

# %%
print(f"{here.name}: {here}")
K, N = 2048, 8192
weight = timing.Rotation(torch.randn(N, K, device=device))
runs, settings = [], {"device": device, "warmup": 2, "repeats": 7}
for rows in (1, 4, 16, 64, 256):
    x = torch.randn(rows, K, device=device)
    taken = timing.measure(lambda x=x: F.linear(x, *weight()), **settings)
    flops, traffic = 2 * rows * K * N, 4 * (rows * K + K * N + rows * N)
    runs.append(Measured(f"{rows}", flops / traffic, flops / taken.median_s))
plot_roofline(
    roofline_data(here, {}, "fp32", measured=runs),
    f"One linear layer on {here.name}",
    "fp32, the number is M",
)

# %% [markdown]
# ### The whole model: predicted over measured
#
# Now `base` in fp32. For each step the prediction adds up $\max(\text{memory}, \text{arithmetic})$ over its
# operations; no constant is fitted. 100 % would mean that the step runs at the roof.

# %%
fp32 = Precision.uniform("fp32")


def time_step(batch, new, past):
    cache = base32.new_cache(batch, past + new)
    ids = torch.randint(base32.config.vocab_size, (batch, past + new), device=device)

    def run():
        base32(ids[:, past:], cache)
        cache.truncate([past] * batch)

    with torch.inference_mode():
        if past:
            base32(ids[:, :past], cache)
        return timing.measure(run, device=device, warmup=2, repeats=7)


# %%
measured, roofs = {}, {}
decoding_steps = [(batch, 1, 255) for batch in (1, 4, 16, 64)]
for batch, new, past in progress.bar((*decoding_steps, (1, 256, 0), (4, 512, 0)), "steps"):
    name = f"decode × {batch}" if new == 1 else f"prefill {batch} × {new}"
    step = Step.chunk(batch, new, past)
    roofs[name] = roof = roofline.predict_step(base.config, step, here, fp32)
    measured[name] = taken = time_step(batch, new, past)
    print(f"{name:16}predicted {roof.time_s * 1e3:7.2f} ms ({roof.bound}),", end=" ")
    print(f"measured {taken.median_s * 1e3:7.2f} ms ± {taken.spread / 2:.0%}:", end=" ")
    print(f"{roof.time_s / taken.median_s:4.0%}")

# %%
runs = [
    Measured(name, step.cost.intensity, step.cost.flops / measured[name].median_s)
    for name, step in roofs.items()
]
layer = layer_points(here, base.config, "fused", "fp32")
points = roofline_data(here, layer, "fp32", measured=runs)
marks = "points: a layer, 8 × 1,024 tokens; triangles: whole steps, measured"
plot_roofline(points, f"base on {here.name}", marks)

# %%
sizes = (1, 2, 4, 8, 16, 32, 64)
speed = [size / time_step(size, 1, 255).median_s for size in progress.bar(sizes, "batches")]
steps = [Step.decode(size, 256) for size in sizes]
best = [roofline.predict_step(base.config, step, here, fp32).tokens_per_s for step in steps]
curves = [
    growth.Curve("measured", sizes, speed, group="base"),
    growth.Curve("roofline", sizes, best, "predicted", "base"),
]
growth.plot_growth(
    curves,
    f"Batching on {here.name}",
    f"base, fp32, context 256: batch {sizes[-1]} is {speed[-1] / speed[0]:.1f} × as fast as one row",
    x_label="batch (rows)",
    y_label="tokens/s",
)

# %% [markdown]
# Large steps come nearest to the roof, small ones stay far below it. Each step starts some two hundred small operations, and
# a start costs time that has nothing to do with FLOPs or bytes. Products of a few rows are what libraries do
# worst: look at M = 4 and 16 above. (More than 100 % is possible too: `base` is small enough to stay in a large
# processor cache, which is faster than the memory that the roof was measured with.) A roofline is a
# *limit*, and a list of suspects for what is lost below it: starts, caches, kernels that are not perfect.
#
# ## 2.8 On a GPU
#
# There the gap is wider at first: the memory delivers `base` in microseconds, and Python needs milliseconds to
# ask for it (1.10). The remedy is to ask once: static shapes, one captured CUDA graph for a whole step, and kernels
# that join what can be joined. `decoding.DecodeEngine` does so, on every machine with the same tokens; on a CPU, where
# there is no graph, it only joins matrices and prepares once a step what all layers share:

# %%
engine = decoding.DecodeEngine(pretrained.load("base", device=device).model)
start = encode("Once upon a time there was")


def written(source):
    return generate(source, [start], max_new_tokens=64, eos_token_ids=())[0].tokens


speeds = {}
for name, source in (("plain loop", base32), ("engine", engine)):
    taken = timing.measure(lambda source=source: written(source), device=device, repeats=5, progress=name)
    speeds[name] = 64 / taken.median_s
print(", ".join(f"{name}: {speed:,.0f} tokens/s" for name, speed in speeds.items()))
print("the same tokens:", written(base32) == written(engine))

# %% [markdown]
# Models of billions of weights fill the memory bus. Runs of `benchmarks/decode.py` with two of them, and with a
# smaller one, are recorded, with the limit, the peer and the ceilings that were measured in the same process; *predicted* is what `roofline`
# says of these ceilings. `benchmarks/dram_bytes.py` asks the GPU itself how many bytes an operation moved: Nsight
# Compute reads the counters of its memory, here for one layer of Llama-3-8B, each operation with a cold cache.

# %%
MODELS = ("llama3_8b", "llama2_7b", "qwen3_0.6b")
runs = recorded.all_of(f"decode_{model}_bf16_b1" for model in MODELS)
for row in runs:
    print(recorded.told(row))
    print(f"    predicted over measured {row['predicted_over_measured']:.2f}")
if not runs:
    print("No run is stored here: `python benchmarks/decode.py` makes them on a large GPU.")
OPERATIONS = ("qkv", "output", "gate_and_up")
found = recorded.all_of(
    f"dram_bytes_{step}_{name}_projection" for step in ("decode", "prefill") for name in OPERATIONS
)
print(f"\n{'name':44}{'counted':>11}{'by costs':>11}{'ratio':>6}")
for row in found:
    print(f"{row['name']:44}{row['value']:8,.0f} MB{row['limit']:8,.0f} MB{row['ratio_limit']:6.2f}")

# %%
h200 = hardware.datasheet("H200")
sizes = (1, 2, 4, 8, 16, 32, 64)
steps = [Step.decode(size, 228) for size in sizes]
best = [roofline.predict_step(LLAMA_3_8B, step, h200).tokens_per_s for step in steps]
curves = [growth.Curve("roofline, datasheet", sizes, best, "predicted")]
found = recorded.all_of(f"decode_llama3_8b_bf16_b{size}" for size in sizes)
found = [row for row in found if "H200" in row["device"]]
if len(found) == len(sizes):
    predicted = [1e3 * n / row["predicted_step_ms"] for n, row in zip(sizes, found, strict=True)]
    curves.append(growth.Curve("roofline, its own ceilings", sizes, predicted, "predicted", "H200"))
    curves.append(growth.Curve("recorded", sizes, [row["value"] for row in found], group="H200"))
names = {"x_label": "batch (rows)", "y_label": "tokens/s"}
growth.plot_growth(curves, "Llama-3-8B on an H200", "bf16, context 228: predicted, and recorded", **names)

# %% [markdown]
# *The small model* is the farthest from its roof, and yet the farthest ahead of its peer. A layer of it is 31 MB of
# weights: 7 µs of reading, in five kernels, each of which needs the result of the one before. Handing over (the
# last program ends, the next loads its input, multiplies, stores) takes about as long again, and the roofline
# knows nothing of it. `llmcourse.kernels.linear_gluon` has the weights of three kernels ahead on their way meanwhile;
# what is left to gain lies in fewer, larger kernels.
#
# *The bytes*: in decoding every one is read once, and the count is right. Of a prompt of 65,536 tokens `costs` counts
# every matrix once too, its *compulsory* traffic; there they are many times the L2 cache, and tiles of the product
# read them again. It does not matter for the time: even four times the bytes would take less than the arithmetic.
#
# ## 2.9 What goes wrong
#
# | belief | where it fails | what you saw |
# |---|---|---|
# | the cache saves as much time as FLOPs | the remaining step is bound by memory and start-up costs | 2.1 |
# | prefill is compute-bound | unfused attention lies below the ridge; so does a short prompt, with $BT < I^*$ | 2.3, 2.4 |
# | the ridge is a constant of the GPU | it depends on the format, and on GB against GiB | 2.2 |
# | a larger batch always pays | long contexts: each row reads its own cache | 2.5 |
# | four bits are four times as fast | only what reads weights gains; the cache and the arithmetic stay | explorer in 2.4 |
# | the memory is the weights | with many long texts the cache is larger | 2.6 |
# | 100 % of the roofline is reachable | the roof knows no launches, no caches, no imperfect kernels | 2.7 |
#
# ## Lab
#
# [Lab 2](../labs/02_kv_cache_and_roofline.ipynb) has twelve exercises: you count FLOPs and bytes, find the ridge
# and the batch where the limit changes, build the cache with its masks, its loop and its rollback, mend a decoding
# step, and predict tokens per second, scored on how near you come to what was measured. To warm up, here in
# this notebook:
#
# 1. (10 min) How many times faster is the cache for 1,000 tokens? In the first code cell of *Predict* in 2.1 set
#    `MY_GUESS` to what you would say *now*, and change `n = 256` to `n = 1000` for the ratio of the FLOPs. Then
#    compute the ratio of the times from a few measured steps, without running 1,000 uncached ones.
# 2. (15 min) With the roofline explorer, find the shortest prompt whose prefill is compute-bound in all linear
#    layers at batch 1, on three machines, to a factor of two: the slider knows powers of two. Predict it from the
#    ridge first.
# 3. (15 min) Would you rather have twice the bandwidth or twice the compute, for one user, and for a hundred?
#    Answer with `roofline.predict_step` and a datasheet whose numbers you change (`dataclasses.replace`).
#
# ## Summary
#
# - The KV cache turns quadratic work into linear work, and arithmetic into memory traffic: prefill computes, decoding
#   reads.
# - FLOPs and bytes follow from shapes; compared with the ridge they say what bounds each operation, and how fast
#   it can be at best.
# - Batching shares the reading of weights but not of caches; grouped queries and fewer bits shrink what is
#   read.
#
# **Sources** Williams, Waterman and Patterson 2009 (roofline) · Vaswani et al. 2017 (attention) · Pope et al. 2022
# (cost of inference) · Ainslie et al. 2023 (grouped-query attention) · Dao et al. 2022 (fused attention) · NVIDIA A100
# datasheet 2021

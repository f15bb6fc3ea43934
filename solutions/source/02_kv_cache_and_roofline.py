# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] name="02-title"
# # Lab 2 · The KV cache and the roofline
#
# You predict what a model must cost, build the cache that makes a token cheap, and predict tokens a second that
# somebody has measured: what [chapter 2](../notebooks/02_kv_cache_and_roofline.ipynb) did with `costs`,
# `roofline` and `kv_cache`, in your own hand. There are {{ exercises }} exercises for **{{ points }} points**, about
# {{ minutes }} minutes in all. Any laptop will do, nothing is downloaded.
#
# **How to work** is as in [lab 1](../labs/01_decoding.ipynb): run the setup cell, write your answer in place of
# `raise NotImplementedError(…)`, keep the line `# Exercise 02.…` with the function's name and parameters, run the
# check below it, and read its hints. The three parts do not need each other: begin where you like.
#
# **How it is graded**, too, with one addition: the last exercise asks for a prediction, and the nearer it comes to
# what was measured, the more of its points it earns. `check` says how many. Every other answer is right or not.
# An answer may use all of PyTorch and Python except where the exercise says otherwise, but not the course's own
# `costs`, `roofline`, `kv_cache` and `attention`, which are what you build.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $B,\ T,\ S$ | rows of the batch; new tokens; keys, or slots of a cache | 批大小；新词元数；键的个数 | `batch`, `new_tokens`, `keys` |
# | $H,\ H'$ | features of the residual stream; of the MLP | 隐藏维度；中间维度 | `hidden`, `mlp` |
# | $N,\ N_{kv},\ D$ | query heads; key/value heads; features of a head | 查询头数；键值头数；头维度 | `heads`, `kv_heads`, `head_dim` |
# | $V$ | tokens in the vocabulary | 词表大小 | `vocab` |
# | FLOP, byte | work and traffic of an operation | 运算量；访存量 | `flops`, `moved_bytes` |
# | FLOP/s, byte/s | peak and bandwidth of a machine | 算力；带宽 | `flops_per_s`, `bytes_per_s` |
# | $I,\ I^*$ | arithmetic intensity; the ridge, where both limits are equal | 计算强度；计算强度上限 | `intensity`, `ridge` |
# | | prefill; decoding step | 全量解码；增量解码 | |
# | | key/value cache; rolling it back | 键值缓存；回滚 | `keys`, `values`, `lengths` |

# %% name="02-setup"
import torch

from llmcourse.grading import selfcheck
from llmcourse.grading.selfcheck import check

torch.set_num_threads(1)  # with tensors this small, two threads mostly wait for each other

# %% [markdown] name="02-models-text"
# **Demonstrations** run your functions on the course's models and on datasheets. They give no points, and need
# no edit. The models are loaded in double precision: what they write is then the same on every machine.

# %% name="02-models" tags=["demo"]
import copy
import time
from functools import partial

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from llmcourse import costs, hardware, pretrained, timing
from llmcourse.grading.lab_view import once_written, points_so_far

(base, tokenizer), (draft, _) = (pretrained.load(name, dtype=torch.float64) for name in ("base", "draft"))
OPENING = "There was once upon a time a poor woodcutter"

# %% [markdown] name="02-counting-text"
# ## Counting
#
# What an operation must compute and must move follows from its shapes. With the two numbers of a datasheet they
# say how fast it can be at best, what the limit is, and what fits.

# %% [markdown]
# {{ statement 02.linear_costs }}


# %%
# Exercise 02.linear_costs
def linear_costs(rows, n_in, n_out, number_bytes):
    """FLOPs, bytes moved, and FLOPs a byte of a linear layer."""
    ### BEGIN SOLUTION
    flops = 2 * rows * n_in * n_out  # a multiplication and an addition for each row and weight
    numbers = rows * n_in + n_in * n_out + rows * n_out  # X and W are read, the result is written
    moved_bytes = numbers * number_bytes
    return flops, moved_bytes, flops / moved_bytes
    ### END SOLUTION


# %%
check("02.linear_costs", linear_costs)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.linear_costs", linear_costs, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-linear-text"
# **Demonstration.** One matrix of Llama-3-8B, 4096 × 14336 in bf16, as more and more rows share it. The ridge of an
# A100 is 153 FLOP/byte: how many rows does the matrix need before the A100 computes more than it waits?

# %% name="02-linear-demo" tags=["demo", "nbval-check-output"]
with once_written(linear_costs):
    for rows in (1, 8, 64, 160, 512, 4096):
        flops, moved_bytes, intensity = linear_costs(rows, 4096, 14_336, 2)
        print(
            f"{rows:5} rows: {flops / 1e9:7.2f} GFLOP, {moved_bytes / 1e6:6.1f} MB, {intensity:6.1f} FLOP/byte"
        )

# %% [markdown]
# {{ statement 02.layer_flops }}


# %%
# Exercise 02.layer_flops
def layer_flops(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
    """FLOPs of the matrix products of a decoder layer."""
    ### BEGIN SOLUTION
    rows, width, kv_width = batch * new_tokens, heads * head_dim, kv_heads * head_dim
    qkv = hidden * (width + 2 * kv_width)
    output = width * hidden
    swiglu = 3 * hidden * mlp  # gate, up and down
    scores = batch * new_tokens * keys * heads * head_dim  # and the weighted sum takes as many again
    return 2 * rows * (qkv + output + swiglu) + 2 * 2 * scores
    ### END SOLUTION


# %%
check("02.layer_flops", layer_flops)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.layer_flops", layer_flops, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-layer-text"
# **Demonstration.** PyTorch counts the products of a real forward pass of `base`: its six layers, and the output
# matrix that makes the logits. The two numbers must be equal, not close.

# %% name="02-layer-demo" tags=["demo", "nbval-check-output"]
c = base.config
sizes = (c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size)
with once_written(layer_flops), torch.no_grad():
    for batch, new, past in ((1, 64, 0), (8, 1, 63), (2, 16, 50)):
        cache, ids = base.new_cache(batch, past + new), torch.zeros(batch, past + new, dtype=torch.long)
        if past:
            base(ids[:, :past], cache)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            base(ids[:, past:], cache)
        logits = 2 * batch * new * c.hidden_size * c.vocab_size
        mine = c.num_layers * layer_flops(batch, new, past + new, *sizes) + logits
        print(
            f"{batch} × {new:2} new after {past:2}: yours {mine:,}, PyTorch's {counter.get_total_flops():,}"
        )

# %% [markdown]
# {{ statement 02.ridge }}


# %%
# Exercise 02.ridge
def roof(bandwidth_gb, peak_tflops, sparse, intensity):
    """The ridge for dense numbers, the FLOP/s that can be reached, and what limits them."""
    ### BEGIN SOLUTION
    bandwidth = bandwidth_gb * 1e9  # GB/s are 10⁹ bytes a second; GiB are for memory alone
    peak = peak_tflops * 1e12
    if sparse:
        peak /= 2
    ridge = peak / bandwidth
    attainable = min(peak, intensity * bandwidth)
    return ridge, attainable, "compute" if intensity > ridge else "memory"
    ### END SOLUTION


# %%
check("02.ridge", roof)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.ridge", roof, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-ridge-text"
# **Demonstration.** The machines of chapter 2, with the ridge that follows from each datasheet, and a decoding step
# of eight rows (about 8 FLOP/byte) and a prefill (about 1,000) under each roof.

# %% name="02-ridge-demo" tags=["demo", "nbval-check-output"]
with once_written(roof):
    for name in ("A100 80GB", "RTX 4090", "H100 SXM", "H200", "B200"):
        sheet = hardware.datasheet(name)
        bandwidth, peak = sheet.bytes_per_s / 1e9, sheet.flops_per_s("bf16") / 1e12
        ridge, decode, _ = roof(bandwidth, peak, False, 8.0)
        _, prefill, bound = roof(bandwidth, peak, False, 1000.0)
        print(f"{name:10} ridge {ridge:6.1f}; decoding {decode / 1e12:5.1f} TFLOP/s,", end=" ")
        print(f"prefill {prefill / 1e12:6.1f}, bound by {bound}")

# %% [markdown]
# {{ statement 02.turning_batch }}


# %%
# Exercise 02.turning_batch
def turning_batch(row_flops, shared_bytes, row_bytes, ridge):
    """The smallest batch that is bound by arithmetic, None where there is none."""
    ### BEGIN SOLUTION
    # B · row_flops > ridge · (shared_bytes + B · row_bytes), solved for B:
    gain = row_flops - ridge * row_bytes
    if gain <= 0:  # each row brings more bytes than its FLOPs are worth
        return None
    return int(ridge * shared_bytes // gain) + 1  # the first whole number above
    ### END SOLUTION


# %%
check("02.turning_batch", turning_batch)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.turning_batch", turning_batch, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-turning-text"
# **Demonstration.** Llama-3-8B on an H200, a whole decoding step, from `costs`: FLOPs and cache of a row, weights of
# all. *Predict* first: up to which context does any batch turn at all?

# %% name="02-turning-demo" tags=["demo", "nbval-check-output"]
with once_written(turning_batch):
    h200 = hardware.datasheet("H200")
    ridge = h200.flops_per_s("bf16") / h200.bytes_per_s
    for context in (32, 128, 512, 2048):
        one, two = (
            costs.total(costs.model_costs(costs.LLAMA_3_8B, costs.Step.decode(rows, context)))
            for rows in (1, 2)
        )
        row_bytes = two.traffic_bytes - one.traffic_bytes
        batch = turning_batch(one.flops, one.traffic_bytes - row_bytes, row_bytes, ridge)
        print(f"context {context:5,}: {'never' if batch is None else f'from batch {batch:,} on'}")

# %% [markdown]
# {{ statement 02.largest_batch }}


# %%
# Exercise 02.largest_batch
def largest_batch(
    memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, cache_bits
):
    """Bytes of a cached token, bytes of the weights, and how many texts fit beside them."""
    ### BEGIN SOLUTION
    token_bytes = 2 * layers * kv_heads * head_dim * cache_bits / 8  # a key and a value
    weight_bytes = parameters * weight_bits / 8
    free_bytes = memory_gib * 2**30 - weight_bytes
    fitting = int(free_bytes // (context * token_bytes))
    return token_bytes, weight_bytes, max(fitting, 0)
    ### END SOLUTION


# %%
check("02.largest_batch", largest_batch)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.largest_batch", largest_batch, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-largest-text"
# **Demonstration.** Who serves how many? The 7B model has a key/value head for each query head, the 8B model one
# for four of them. Then fewer bits, first for the weights, then for the cache: what does each buy?

# %% name="02-largest-demo" tags=["demo", "nbval-check-output"]
with once_written(largest_batch):
    for memory, weight_bits, cache_bits in ((24, 16, 16), (80, 16, 16), (80, 4, 16), (80, 4, 8)):
        fitting = {}
        for name in ("Llama-2-7B", "Llama-3-8B"):
            m = costs.MODELS[name]
            sizes = (m.num_layers, m.num_heads, m.num_kv_heads, m.head_dim)
            numbers = (memory, costs.num_parameters(m), weight_bits)
            fitting[name] = largest_batch(*numbers, *sizes, 4096, cache_bits)[2]
        print(
            f"{memory} GiB, weights of {weight_bits:2} bits, cache of {cache_bits:2}: texts of 4,096 tokens",
            fitting,
        )

# %% [markdown] name="02-cache-text"
# ## The cache
#
# First the slots: where the key and value of a token are kept, and who may look at them. Then one step of
# attention against them, the loop around it, and what chapter 4 will need, rolling back. At the end you mend a
# decoding step that somebody else wrote. Answers may not use `llmcourse.kv_cache`, `llmcourse.attention` or
# PyTorch's own attention: they are what you build.

# %% [markdown]
# {{ statement 02.visible }}


# %%
# Exercise 02.visible
def visible(lengths, num_new, capacity):
    """Which of the slots each new token may look at: bool (B, T, S)."""
    ### BEGIN SOLUTION
    position = lengths[:, None] + torch.arange(num_new)  # (B, T), each row from its own end on
    slot = torch.arange(capacity)
    return slot[None, None, :] <= position[:, :, None]
    ### END SOLUTION


# %%
check("02.visible", visible)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.visible", visible, seed)
### END HIDDEN TESTS

# %% [markdown]
# {{ statement 02.write_cache }}


# %%
# Exercise 02.write_cache
def write_cache(keys, values, lengths, k, v):
    """The same two buffers with the new tokens written into each row's next slots, and the new lengths."""
    ### BEGIN SOLUTION
    capacity, num_new = keys.shape[2], k.shape[2]
    ends = lengths + num_new
    if int(ends.max()) > capacity:  # before anything is written
        raise ValueError(f"the cache holds {capacity} tokens a row, {int(ends.max())} are needed")
    for row, (start, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True)):
        keys[row, :, start:end] = k[row]
        values[row, :, start:end] = v[row]
    return keys, values, ends
    ### END SOLUTION


# %%
check("02.write_cache", write_cache)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.write_cache", write_cache, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-cache-demo-text"
# **Demonstration.** What the course's model asks of a cache, answered by your two functions. Two texts of
# different lengths go on together, token by token; then each alone, without a cache, reading its whole text for
# every token. In double precision the logits agree to rounding.


# %% name="02-cache-class" tags=["demo"]
class MyCache:
    def __init__(self, model, rows, capacity, fill=0.0):
        shape = (rows, model.config.num_kv_heads, capacity, model.config.head_dim)
        layers = range(model.config.num_layers)
        self.keys, self.values = ([torch.full(shape, fill, dtype=model.dtype) for _ in layers] for _ in "kv")
        self.lengths, self.batch_size = torch.zeros(rows, dtype=torch.long), rows
        self.num_layers, self.num_kv_heads, self.head_dim = len(layers), shape[1], shape[3]
        self.dtype, self.device = model.dtype, model.device  # what a model asks of its cache

    def reserve(self, num_new):  # before a pass: positions of the new tokens, and what each may look at
        held, self.lengths = self.lengths, self.lengths + num_new
        return held[:, None] + torch.arange(num_new), visible(held, num_new, self.keys[0].shape[2])

    def write(self, layer, k, v, positions):  # in each layer
        return write_cache(self.keys[layer], self.values[layer], positions[:, 0], k, v)[:2]


# %% name="02-cache-demo" tags=["demo", "nbval-check-output"]
with once_written(visible, write_cache), torch.no_grad():
    texts = [tokenizer.encode_prompt(text) for text in (OPENING, "import numpy as np\n\ndef")]
    cache, furthest = MyCache(base, rows=2, capacity=64), 0.0
    longest = max(map(len, texts))
    base(torch.tensor([text[:-1] + [0] * (longest - len(text)) for text in texts]), cache)
    cache.lengths = torch.tensor([len(text) - 1 for text in texts])  # what was filled up is forgotten
    for _ in range(20):
        logits = base(torch.tensor([text[-1:] for text in texts]), cache)[:, 0]
        for text, row in zip(texts, logits, strict=True):
            furthest = max(furthest, float((row - base(torch.tensor([text]))[0, -1]).abs().max()))
            text.append(int(row.argmax()))
    print(*map(tokenizer.decode, (text[1:] for text in texts)), sep="\n\n")
    print(f"\nlogits with and without a cache differ by less than 1e-10: {furthest < 1e-10}")

# %% [markdown]
# {{ statement 02.cached_attention }}


# %%
# Exercise 02.cached_attention
def cached_attention(q, keys, values, lengths):
    """The mixture of values (B, H, D) for one query a row, over the slots that the row holds."""
    ### BEGIN SOLUTION
    group = q.shape[1] // keys.shape[1]
    held = torch.arange(keys.shape[2]) < lengths[:, None]  # (B, S)
    # Not only their weights: 0 times NaN would be NaN.
    keys = torch.where(held[:, None, :, None], keys, 0.0).repeat_interleave(group, dim=1)
    values = torch.where(held[:, None, :, None], values, 0.0).repeat_interleave(group, dim=1)
    scores = (keys @ q[..., None])[..., 0] / q.shape[-1] ** 0.5  # (B, H, S)
    weights = torch.where(held[:, None], scores, -torch.inf).softmax(dim=-1)
    return (weights[:, :, None] @ values)[:, :, 0]
    ### END SOLUTION


# %%
check("02.cached_attention", cached_attention)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.cached_attention", cached_attention, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-attention-text"
# **Demonstration.** The course's model with your attention in all of its layers, and a cache that is full of
# NaN before the first token comes. If a single unused slot were looked at, NaN would be all that is left.


# %% name="02-attention-demo" tags=["demo", "nbval-check-output"]
def my_attention(q, k, v, mask):  # as the model calls it: (B, H, T, D), here with T = 1
    return cached_attention(q[:, :, 0], k, v, mask[:, 0].sum(dim=-1))[:, :, None]


with once_written(visible, write_cache, cached_attention), torch.no_grad():
    mine = copy.copy(base)  # the same weights
    mine.attention = my_attention
    ids = torch.tensor([tokenizer.encode_prompt(OPENING)])
    cache = MyCache(base, rows=1, capacity=32, fill=torch.nan)
    pieces = [mine(ids[:, i : i + 1], cache) for i in range(ids.shape[1])]
    off = (torch.cat(pieces, dim=1) - base(ids)).abs().max()
    print(f"the logits after all {ids.shape[1]} tokens differ by less than 1e-10: {bool(off < 1e-10)}")

# %% [markdown]
# {{ statement 02.cached_loop }}


# %%
# Exercise 02.cached_loop
def cached_loop(step, prompt, chunk, max_new_tokens, end_token):
    """The new tokens that follow the prompt; each token is read once."""
    ### BEGIN SOLUTION
    if max_new_tokens == 0:
        return []
    cache = None
    for start in range(0, len(prompt), chunk):  # prefill
        logits, cache = step(prompt[start : start + chunk], cache)
    new = []
    while True:
        new.append(int(logits.argmax()))
        if new[-1] == end_token or len(new) == max_new_tokens:
            return new  # the last token is written, but not read
        logits, cache = step([new[-1]], cache)
    ### END SOLUTION


# %%
check("02.cached_loop", cached_loop)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.cached_loop", cached_loop, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-loop-text"
# **Demonstration.** Your loop around two models: one keeps keys and values in a cache, the other keeps only
# the text, and reads it all again for each token. They write the same; what does a token cost, as the text
# grows? *Predict* before you run it: which of the two columns grows?


# %% name="02-loop-models" tags=["demo"]
@torch.no_grad()
def remembering(tokens, cache, model=base):
    cache = model.new_cache(1, 512) if cache is None else cache
    return model(torch.tensor([tokens]), cache)[0, -1], cache


@torch.no_grad()
def rereading(tokens, text):
    text = [*(text or []), *tokens]
    return base(torch.tensor([text]))[0, -1], text


# %% name="02-loop-demo" tags=["demo"]
with once_written(cached_loop):
    start, times, written = tokenizer.encode_prompt(OPENING), {rereading: [], remembering: []}, []
    started = time.perf_counter()
    for step, marks in times.items():

        def noting_the_time(tokens, kept, step=step, marks=marks):
            marks.append(time.perf_counter() - started)
            return step(tokens, kept)

        written.append(cached_loop(noting_the_time, start, 64, 98, end_token=-1))
    print("the same text:", written[0] == written[1])
    for after in range(1, 97, 24):
        spent = (torch.tensor(marks).diff()[after : after + 24] for marks in times.values())
        again, cached = (1e3 * float(seconds.median()) for seconds in spent)
        print(f"{len(start) + after:4} tokens: {again:5.1f} ms read again, {cached:5.1f} ms with the cache")

# %% [markdown]
# {{ statement 02.rollback }}


# %%
# Exercise 02.rollback
def rollback(lengths, draft, target):
    """New lengths (B,) without what was rejected, and the token (B,) that the model writes next in each row."""
    ### BEGIN SOLUTION
    rows, drafted = draft.shape
    if len(lengths) != rows:
        raise ValueError(f"lengths must have {rows} entries, as the draft has rows, got {len(lengths)}")
    if int(lengths.min()) < drafted + 1:
        raise ValueError(f"rows must hold at least {drafted + 1} tokens, got {lengths.tolist()}")
    right = draft == target[:, :drafted]
    accepted = right.int().cumprod(dim=1).sum(dim=1)  # up to the first that is wrong
    return lengths - drafted + accepted, target[torch.arange(rows), accepted]
    ### END SOLUTION


# %%
check("02.rollback", rollback)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.rollback", rollback, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-rollback-text"
# **Demonstration.** What it is good for: a small model guesses four tokens, the large one reads them in one
# step, and your cache is rolled back to what was right. The text is that of the large model alone, and takes
# fewer of its steps. For which text do the two models agree more often?

# %% name="02-rollback-demo" tags=["demo", "nbval-check-output"]
with once_written(visible, write_cache, cached_loop, rollback), torch.no_grad():
    for opening in (OPENING, "import numpy as np\n\ndef"):
        start = tokenizer.encode_prompt(opening)
        cache, text, steps = MyCache(base, rows=1, capacity=128), list(start), 0
        base(torch.tensor([text[:-1]]), cache)
        while len(text) < len(start) + 40:
            guess = cached_loop(partial(remembering, model=draft), text, 512, 4, end_token=-1)
            choices = base(torch.tensor([[text[-1], *guess]]), cache).argmax(dim=-1)
            cache.lengths, following = rollback(cache.lengths, torch.tensor([guess]), choices)
            text += guess[: int(cache.lengths[0]) - len(text)] + following.tolist()
            steps += 1
        alone = cached_loop(remembering, start, 512, len(text) - len(start), end_token=-1)
        print(f"{len(alone)} tokens in {steps} steps; as without a draft: {alone == text[len(start) :]}")

# %% [markdown]
# {{ statement 02.find_the_bug }}

# %%
# Exercise 02.find_the_bug
# {{ starter 02.find_the_bug }}


### BEGIN SOLUTION
def decode_step(q, k, v, keys, values, lengths):
    """Attention of one new token a row, whose key and value are written into the cache."""
    rows, slots = torch.arange(len(lengths)), torch.arange(int(lengths.max()) + 1)
    frequencies = 10_000.0 ** -(torch.arange(0, q.shape[-1], 2) / q.shape[-1])
    angles = slots[:, None] * frequencies  # (slots, D/2), a row for each position
    newest = angles[lengths, None]  # (B, 1, D/2): each row's own position, not that of the longest
    q, k = (rotated(x, newest.cos(), newest.sin()) for x in (q, k))
    keys[rows, :, lengths], values[rows, :, lengths] = k, v
    group = q.shape[1] // k.shape[1]
    seen_keys = keys[:, :, : len(slots)].repeat_interleave(group, dim=1)  # (B, H, slots, D)
    seen_values = values[:, :, : len(slots)].repeat_interleave(group, dim=1)
    scores = (seen_keys @ q[..., None])[..., 0] / q.shape[-1] ** 0.5
    behind = slots > lengths[:, None]
    weights = scores.masked_fill(behind[:, None], float("-inf")).softmax(-1)
    return (weights[:, :, None] @ seen_values)[:, :, 0], keys, values


### END SOLUTION

# %%
check("02.find_the_bug", decode_step)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.find_the_bug", decode_step, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-bug-text"
# **Demonstration.** A test that would have found it: what a row gets must not depend on who shares its batch.
# Six tokens are written into each of three rows; two of the rows are then rolled back.

# %% name="02-bug-demo" tags=["demo", "nbval-check-output"]
with once_written(write_cache, decode_step):
    numbers, held = torch.Generator().manual_seed(2), torch.tensor([2, 6, 4])
    q, k, v = (torch.randn(3, heads, 8, generator=numbers) for heads in (4, 2, 2))
    past = (torch.randn(3, 2, 6, 8, generator=numbers) for _ in "kv")
    empty = (torch.zeros(3, 2, 10, 8) for _ in "kv")
    keys, values, _ = write_cache(*empty, torch.zeros(3, dtype=torch.long), *past)
    together = decode_step(q, k, v, keys.clone(), values.clone(), held)[0]
    for row in range(3):
        alone = decode_step(*(part[row : row + 1].clone() for part in (q, k, v, keys, values, held)))[0]
        same = torch.allclose(alone[0], together[row], atol=1e-5)
        print(f"the row of {int(held[row])} tokens gets the same alone and in the batch: {same}")

# %% [markdown] name="02-predict-text"
# ## Predict, then measure
#
# Everything that you counted, in one number: tokens a second.

# %% [markdown]
# {{ statement 02.predict_tokens }}


# %%
# Exercise 02.predict_tokens
def predict_tokens(model, batch, context, number_bytes, machine):
    """Tokens a second of all rows of a decoding step."""
    ### BEGIN SOLUTION
    hidden, layers = model["hidden"], model["layers"]
    width, kv_width = model["heads"] * model["head_dim"], model["kv_heads"] * model["head_dim"]
    layer = hidden * (width + 2 * kv_width) + width * hidden + 3 * hidden * model["mlp"]
    weights = layers * layer + hidden * model["vocab"]
    cached = batch * context * layers * 2 * kv_width
    flops = 2 * batch * weights + 4 * batch * context * layers * width
    bytes_s = number_bytes * (weights + cached) / machine["bytes_per_s"]
    flops_s = flops / machine["flops_per_s"]
    return batch / (max(bytes_s, flops_s) + machine["starts"] * machine["start_s"])
    ### END SOLUTION


# %%
check("02.predict_tokens", predict_tokens)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("02.predict_tokens", predict_tokens, seed)
### END HIDDEN TESTS

# %% [markdown] name="02-measure-text"
# **Demonstration.** The same on the machine in front of you. Its ceilings are measured (some seconds), and what
# an operation costs to start is measured on `draft`, the smallest model. With these your function predicts
# `base`, which is then run. How far off is it, and in which direction? Three things that `machine` does not know: a
# product of a few rows is what libraries do worst; a large processor cache holds all of `base`; and whatever
# else the machine is doing takes its part.


# %% name="02-starts" tags=["demo"]
class Starts(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


here = hardware.measure_ceilings("cpu", refresh=True)
print(f"{here.name}: {here.bytes_per_s / 1e9:.1f} GB/s, {here.flops_per_s('fp32') / 1e9:.0f} GFLOP/s in fp32")


# %% name="02-measure" tags=["demo"]
@torch.inference_mode()
def measured(model, batch, context):  # seconds of a decoding step, and the operations in it
    cache = model.new_cache(batch, context)
    model(torch.zeros(batch, context - 1, dtype=torch.long), cache)

    def step():
        model(torch.zeros(batch, 1, dtype=torch.long), cache)
        cache.truncate([context - 1] * batch)

    seconds = timing.measure(step, device="cpu", warmup=2, repeats=5).median_s
    with Starts() as counter:
        step()
    return seconds, counter.count


# %% name="02-shapes" tags=["demo"]
def shapes(c):
    model = {
        "layers": c.num_layers,
        "hidden": c.hidden_size,
        "heads": c.num_heads,
        "kv_heads": c.num_kv_heads,
    }
    return model | {"head_dim": c.head_dim, "mlp": c.intermediate_size, "vocab": c.vocab_size}


base32, draft32 = (pretrained.load(name)[0] for name in ("base", "draft"))
ceilings = {"bytes_per_s": here.bytes_per_s, "flops_per_s": here.flops_per_s("fp32")}

# %% name="02-measure-demo" tags=["demo"]
with once_written(predict_tokens):
    seconds, starts = measured(draft32, 1, 128)
    at_once = ceilings | {"starts": 0, "start_s": 0.0}
    left = seconds - 1 / predict_tokens(shapes(draft32.config), 1, 128, 4, at_once)
    print(f"a start costs {left / starts * 1e6:.1f} µs")
    for batch, context in ((1, 16), (1, 128), (4, 128), (16, 128)):
        seconds, starts_here = measured(base32, batch, context)
        machine = ceilings | {"starts": starts_here, "start_s": left / starts}
        tokens = predict_tokens(shapes(base32.config), batch, context, 4, machine)
        print(f"batch {batch:2}, context {context:3}: predicted {tokens:6.0f} tokens/s,", end=" ")
        print(f"measured {batch / seconds:6.0f}; prediction over measurement {tokens * seconds / batch:.2f}")

# %% [markdown] name="02-end"
# ## Points so far
#
# All answers as they now stand, examined as `check` does. Restart the kernel and run all before you hand the
# notebook in: the grader runs your cells from top to bottom, too.

# %% name="02-points" tags=["demo", "nbval-check-output"]
points_so_far("02_kv_cache_and_roofline", globals())

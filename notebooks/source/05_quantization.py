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
# # Chapter 5 · Quantization
#
# A decoding step reads all the weights (chapter 2). Chapters 3 and 4 do more with one reading: they serve more readers,
# or write more tokens. This chapter makes the reading itself shorter. A weight of 16 bits becomes a *code* of 8, 4 or
# fewer, that is a whole number, and a few numbers say what the codes stand for. Then the same is done to activations, which
# makes the arithmetic cheaper, and to the KV cache, which lets more requests in. Nothing of this is exact. So each part
# asks two things: what is saved, and what is lost; and it measures the loss in several ways, since each of them alone
# can be fooled.
#
# **When you have worked through this chapter you can**
#
# - quantize and dequantize by hand, find $S$ and $Z$, and tell which of two signs a text uses for $Z$,
# - choose granularity and range, and predict the error of $b$ bits in decibels,
# - say where the points of int4, NF4, FP8 and MXFP4 lie, and pack codes into bytes,
# - predict from bytes alone how much faster a quantized model decodes, and from which batch on it no longer does,
# - derive GPTQ's update of a column, run it on a real layer, and compare rounding, GPTQ and AWQ at 8 to 2 bits,
# - find outliers in activations, make some, and choose among W8A8, SmoothQuant and LLM.int8(),
# - say how many requests more a cache in int8 or int4 lets in, and what it does to the text,
# - run a quantized model through decoding, serving and speculation, and say on which machine it is faster.
#
# **Time** about 90 minutes of reading and playing; the cells run in under three minutes.
# **Hardware** any laptop; the speed of low-bit kernels was recorded on a GPU, and is measured where there is one.
#
# | symbol | term | 中文 |
# |---|---|---|
# | $b$; $q$ | bits of a code; the code | 比特数；量化值 |
# | $S,\ Z$ | scale, the length of a step; zero point | 缩放因子；零点 |
# | $\tilde x$ | what a code stands for: dequantized | 反量化 |
# | $\Delta = \lVert X - \tilde X \rVert^2$ | quantization error | 量化误差 |
# | | symmetric ($Z = 0$), asymmetric | 对称量化，非对称量化 |
# | | granularity: what shares a scale, by tensor, channel, token, group | 量化粒度：张量，通道，词元，组 |
# | | to clip: a range that leaves some numbers out | 截断 |
# | SNR | signal-to-noise ratio, in dB: $10 \log_{10} (\lVert X \rVert^2 / \Delta)$ | 信噪比 |
# | | post-training quantization; calibration text | 训练后量化；校准数据 |
# | $\lVert X w - X w_q \rVert^2$ | what a layer's output loses | 重构误差 |
# | $H = 2 X^\top X$; $U$ | its Hessian; the Cholesky factor of $H^{-1}$ | 海森矩阵；楚列斯基分解 |
# | RTN, GPTQ, AWQ | rounding to the nearest; two methods that look at text | 就近取整 |
# | W8A8, W4A16 | bits of weights and of activations | 权重，激活值 |
# | | outlier; mixed-precision decomposition | 异常值；混合精度分解 |
# | KL | Kullback-Leibler divergence to the 16-bit model, nats a token | KL 散度 |

# %% tags=["nbval-check-output"]
import math
from itertools import product

import torch

from llmcourse import hardware, pretrained, progress, roofline
from llmcourse.figures import recorded, widgets

torch.set_num_threads(1)  # with models this small, two threads mostly wait for each other
h200, names = hardware.datasheet("H200"), ("draft", "small", "base")
family = {name: pretrained.load(name) for name in names}
base, tokenizer = family["base"]
for name, (model, _) in family.items():
    size, inside = (sum(w.numel() for w in part.parameters()) for part in (model, model.model.layers))
    print(f"{name:6}{size / 1e6:5.1f} M parameters, {inside / size:.0%} of them in layers")

# %% [markdown]
# (What is not in layers is the embedding, which is the output matrix, too. In our models it keeps its bits, as in most
# of the literature; in these small models it is a larger share than in large ones.)
#
# # Part one: numbers
#
# ## 5.1 A number, its code, and back
#
# There are $2^b$ codes, the whole numbers from $-2^{b-1}$ to $2^{b-1} - 1$. To *quantize* (量化) is to choose a code, to
# *dequantize* (反量化) is to say what it stands for; $R$ rounds to the nearest whole number:
#
# $$q = \mathrm{clamp}\big(R(x / S) + Z\big), \qquad \tilde x = S\,(q - Z), \qquad \Delta = \lVert X - \tilde X \rVert^2 .$$
#
# $S$ is the length of a step, and $Z$ is the code of the number 0. Inside the range nothing is more than half a step off.
#
# **Two signs.** The lecture defines $X_q = R(X/S) - Z$ and $\tilde X = S\,(X_q + Z)$: its $Z$ is an offset to be
# added back. The codes are the same, $Z$ has the other sign. And it calculates an example, in int8: the six numbers
# of the first cell, of which the least should get the code $-128$ and the largest $127$. By its own definition that
# means
#
# $$S\,(-128 + Z) = 1.2, \qquad S\,(127 + Z) = 13.6 .$$
#
# The slide prints $S \cdot 127 + Z = 13.6$ instead, where $Z$ would be counted in the units of $X$, and then $Z =
# -152$. *Predict*: which sign has $Z$ by the two equations here? It is no whole number, so it must be rounded: what
# goes wrong if it is cut off (152), what if it is rounded (153), and which worst error is smaller?

# %% tags=["nbval-check-output"]
from llmcourse.figures.number_lines import plot_number_lines
from llmcourse.quantization import affine, lecture_example

found = *lecture_example.exact_parameters(), lecture_example.misread_zero_point()
print("S = {:.5f}, Z = {:.2f}; by the equation as printed Z = {:.2f}".format(*map(float, found)))
print("the slide:", *lecture_example.SLIDE_CODES, "  back:", *lecture_example.SLIDE_RESTORED)
examples = [lecture_example.worked_example(zero_point) for zero_point in (152, 153)]
for one in examples:
    print(f"Z = {one.zero_point}:  ", *one.codes, "  back:", *(f"{float(x):.2f}" for x in one.restored))
    print(f"    worst error {one.worst_error:.4f}, Δ = {one.squared_error:.6f}")
numbers = torch.tensor([float(x) for x in lecture_example.NUMBERS])
usual = affine.quantize(numbers, symmetric=False)
worst = (usual.dequantized() - numbers).abs().max()
print(f"our own sign, a range from 0 on: S = {usual.scale:.5f}, Z = {usual.zero_point}, worst {worst:.4f}")
plot_number_lines(examples)

# %% [markdown]
# The slide's codes follow from its own definitions with $Z = +152$, digit for digit. (Of the numbers that come back
# only the last one is off, in the last digit.) The sign on the slide is the other convention's: $-152$ is right in
# $\tilde x = S\,(q - Z)$, and wrong where, as on that slide, $\tilde X = S\,(X_q + Z)$. Whoever mixes the two is off by $2 S
# Z$, more than the whole range.
#
# Cut off, the largest number asks for code 128, which int8 does not have, and is clamped. Rounded to 153 nothing is
# clamped, all codes but the last are one less, and the worst error is about half as large, less than half a step. So
# round $Z$, too. And the last printed line: nearly everybody lets a range reach to 0, so that 0 is exactly a code
# (padding, a ReLU's zeros), and $Z$ a code as well. These six numbers are all above 0, and pay for it with a longer
# step.
#
# ## 5.2 What shares a scale, and where its range ends
#
# Three choices, each of which makes steps shorter, and each has its price.
#
# - **Symmetric or asymmetric** (对称, 非对称): $Z = 0$ and a range $[-a, a]$; or a zero point for each scale, and a range that
#   fits both ends.
# - **Granularity** (量化粒度): one scale for a whole *tensor*; or one for each *channel*, which in a weight is a row,
#   all that makes one output (the slide's column, 列维度, since it writes $Xw$); or for each *group* of neighbours in a
#   row; or, in activations, for each *token*. The fewer numbers share a scale, the shorter its step, and the more
#   scales there are to be stored: 16 bits for 64 weights are a quarter of a bit a weight.
# - **The range** from least to largest (*min–max*); or one that ends at a *percentile*, here the 99th, and clips what
#   lies beyond; or the one with the least squared error (*MSE*), found by trying shorter and shorter ones.
#
# *Predict* for a real weight of `base` in 4 bits, in decibels (10 dB are a tenth of the squared error): what does a
# scale for each row bring over one for the tensor? Groups of 64 over rows? A zero point? And where does clipping help
# most? The second cell shows why it helps at all, and the explorer has all of this under your fingers, for every
# layer. Look for a layer in which a tensor's scale is nearly as good as a row's; and find the cheapest way to 20 dB,
# in bits a weight.

# %% tags=["nbval-check-output"]
from llmcourse.figures.rounded_weight import GRANULARITIES, RoundingInputs, round_weight
from llmcourse.quantization.ranges import RANGE_METHODS

layer = "model.layers.2.mlp.down_proj"
weight = base.get_submodule(layer).weight.data
peak = (weight.abs().max() / weight.std()).item()
print(
    f"{layer}, {len(weight)} rows of {weight.shape[1]}; its largest number is {peak:.0f} standard deviations\n"
)
print(f"{'':26}bits a weight   " + "".join(f"{method:>12}" for method in RANGE_METHODS))
for symmetric, granularity in product((True, False), GRANULARITIES):
    given = [RoundingInputs(4, symmetric, granularity, method) for method in RANGE_METHODS]
    ways = [round_weight(weight, one) for one in given]
    name = f"{'symmetric' if symmetric else 'asymmetric'}, {granularity}"
    print(f"{name:26}{ways[0].bits_per_weight:10.2f}      " + "".join(f"{w.snr_db:9.1f} dB" for w in ways))

# %%
from llmcourse.figures.clip_trade_off import clip_trade_off, plot_clip_trade_off

below = f"{layer} of base, a symmetric range for each row"
display(plot_clip_trade_off([clip_trade_off(weight, bits) for bits in (2, 4, 8)], subtitle=below))
widgets.QuantizerExplorer(base, layer=layer.removeprefix("model."))

# %% [markdown]
# One number far out decides over the step of all that share its scale: with one scale for the tensor most numbers
# are rounded to 0. A scale for each row confines the damage to its row, a group to a few dozen numbers.
# Clipping does the same by giving one up for the many: it helps most where ranges are wide and codes are few, and
# hardly at all at 8 bits, where a step is short anyway. (The search shortens both ends of an asymmetric range by one
# ratio; where a single number sticks out at one end, a percentile does better. And in a group of 32 there is hardly a
# number beyond the 99th percentile.) A zero point brings about a decibel in small groups, since few numbers seldom
# reach as far down as up. But it has to be stored: compare with symmetric groups of the same bits a weight. (The
# explorer looks at some rows alone, always with the row of the largest number, so its figures lie below the table's.)
#
# ## 5.3 Six decibels a bit
#
# How good can $b$ bits be? Spread over $[-a, a]$, a step is $S = 2a / (2^b - 1)$; where it is short, errors are
# spread evenly over $[-S/2, S/2]$, and their mean square is $S^2 / 12$. With a standard deviation $\sigma$ of what is
# rounded,
#
# $$\mathrm{SNR} = 10 \log_{10} \frac{\sigma^2}{S^2 / 12} \approx 6.02\, b + 4.77 - 20 \log_{10} \frac{a}{\sigma} .$$
#
# A bit halves the step and quarters the squared error: 6 dB, whatever is rounded. What differs is $a / \sigma$, how far the
# largest number lies out. *Predict*: where will this formula be wrong, for few bits or for many? And which SNR do 4
# bits give, for normally distributed numbers? (What `MY_GUESS` holds is only our first guess: put yours in its place.)

# %% tags=["nbval-check-output"]
MY_GUESS = 24  # dB, for normal numbers in 4 bits


def snr_db(x, restored):
    return 10 * math.log10(x.square().sum().item() / affine.quantization_error(x, restored))


drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
for name, x in ((f"normal numbers (your guess: {MY_GUESS})", drawn), ("the weight", weight)):
    print(f"{name}, a scale for each row; dB by the formula, min–max, least squared error")
    for bits in (8, 6, 4, 3, 2):
        found = [affine.quantize_weight(x, bits, range_method=method) for method in ("minmax", "mse")]
        noise = (found[0].scale.square() / 12).mean().item()
        told = 10 * math.log10(x.square().mean().item() / noise), *(snr_db(x, q.dequantized()) for q in found)
        print(f"  {bits} bits" + "".join(f"{db:8.1f}" for db in told))

# %% [markdown]
# For min–max the formula holds farther down than its assumption does: at 2 bits, where steps are longer than most of what
# is rounded, it is still off by half a decibel at most. The last column is another matter. The fewer the bits, the more
# clipping is worth, at 2 bits three quarters of another bit. So 8 bits are good enough for nearly everything, 4 depend
# on what shares a scale and where its range ends, and below that one has to look at what the numbers are *for* (part
# two).
#
# ## 5.4 Points that are not evenly spaced; and packing
#
# A code may stand for anything. The *floating-point* formats have a sign, an exponent and a mantissa: e4m3 and e5m2
# (FP8) are named by the bits of both. Their points lie twice as densely with every halving, so that small numbers
# keep their relative precision. *NF4* has its 16 points where normally distributed numbers are equally often, so that
# no code is wasted. *MXFP4* (e2m1) has a scale for every 32 neighbours that is a power of two, and takes one byte.
# *Predict*: which of the two FP8 formats keeps this weight better, and is either as good as int8? Which is the best
# with 4 bits? (Mind the last column: scales are bits, too.)
#
# Codes have to lie in memory without gaps, or nothing is saved. The second cell packs some, and unpacks them.

# %%
from llmcourse.figures.format_points import plot_code_points
from llmcourse.quantization.formats import FORMATS

within = weight.reshape(-1, 64) / weight.reshape(-1, 64).abs().amax(1, keepdim=True)
points = {"int4": range(-8, 8)} | {name: known.points for name, known in FORMATS.items()}
below = f"numbers of {layer}, over the largest of 64 neighbours"
display(plot_code_points(points, subtitle=below, numbers=within.numpy()))
shared = {"granularity": "group", "scale_dtype": torch.float16}
found = {f"int4, groups of {n}": affine.quantize(weight, bits=4, group_size=n, **shared) for n in (32, 64)}
found["int8, a row"] = affine.quantize(weight, granularity="channel")
found |= {name: known.encode(weight) for name, known in FORMATS.items()}
for name, one in found.items():
    restored = one.decoded() if name in FORMATS else one.dequantized(torch.float32)
    print(f"{name:20}{snr_db(weight, restored):5.1f} dB, {one.bits_per_number:.2f} bits a weight with scales")

# %% tags=["nbval-check-output"]
from llmcourse.quantization.packing import pack_bytes, unpack_bytes

codes = affine.quantize_weight(weight, 4, 64).codes
packed = pack_bytes(codes, 4)
print("codes", *codes[0, :4].tolist(), "and 8 each:", *(codes[0, :4] + 8).tolist())
print("bytes", *(f"{byte:08b}" for byte in packed[0, :2].tolist()), "(the first code has the lowest bits)")
for bits in (8, 4, 3, 2):
    codes = affine.quantize_weight(weight, bits).codes
    packed = pack_bytes(codes, bits)
    same = torch.equal(unpack_bytes(packed, bits, codes.shape[1]), codes)
    print(f"{bits} bits: {packed.nbytes:,} of {2 * weight.numel():,} bytes; unpacked the same: {same}")

# %% [markdown]
# With 8 bits, an even grid beats floating point on a weight: its numbers are all of about one size, and what the
# exponent costs the mantissa lacks. FP8 shines where sizes differ wildly, as in activations (5.8). Among 4 bits NF4
# gets more out of a code than the even grid between $\pm$ its largest number, and MXFP4 less, as its scales can only
# double; compare at equal bits with scales. (With a zero point, or a range by MSE, the even grid of 5.2 is as good.
# In the figure every format may be scaled freely, and the words beside it are for that; the printed lines have the
# formats' own scales.) FP8, and MXFP4 on newer GPUs, are formats that the tensor cores multiply; on an H200 NF4 and
# int4 must first be turned into 16 bits.
#
# # Part two: weights alone
#
# ## 5.5 What a bit is worth
#
# A decoding step at batch 1 reads every weight once and does next to no arithmetic: its time is bytes over bandwidth
# (chapter 2). Kernels read codes, and make numbers of them on the chip, in registers; the products are still those of
# 16 bits, *W4A16*. *Predict* for Llama-3-8B on an H200: how many times faster is int4 in groups of 128, with a scale
# of 16 bits each, than 16 bits, for one sequence? And for 256 of them? What happens to a prefill of 2,048 tokens? (Here,
# and in 5.12, the output matrix has few bits, too.)

# %% tags=["nbval-check-output"]
from llmcourse.costs import LLAMA_3_8B, Precision, Step, weight_bytes

MY_GUESS = 4.0  # times faster at batch 1
formats = {"bf16": Precision(), "int8": Precision("int8"), "int4": Precision("int4", group_size=128)}
steps = {f"batch {batch}": Step.decode(batch, 1024) for batch in (1, 16, 64, 256)}
steps["prefill"] = Step.prefill(1, 2048)
ways = {name: (precision, None) for name, precision in formats.items()} | {"W8A8": (formats["int8"], "int8")}
print("Llama-3-8B on an H200, by the roofline: times as fast as bf16; your guess:", MY_GUESS)
for name, (precision, compute) in ways.items():
    row = f"{name}: {weight_bytes(LLAMA_3_8B, precision) / 1e9:4.1f} GB"
    for kind, step in steps.items():
        plain = roofline.predict_step(LLAMA_3_8B, step, h200)
        fewer = roofline.predict_step(LLAMA_3_8B, step, h200, precision, compute=compute)
        row += f", {kind} {plain.time_s / fewer.time_s:.2f}"
    print(row)

# %% [markdown]
# At batch 1 the gain is nearly that of the bytes. (Not quite: scales are read, too, and so are keys and values.) With
# the batch, the cache grows and the weights do not, and the gain shrinks; then the arithmetic sets the pace, and bits
# of weights are worth nothing. In prefill they never were: there only products in fewer bits help, which is part
# three. What real kernels make of this limit is shown in 5.12.
#
# ## 5.6 Which rounding?
#
# Nobody needs $W$; what is needed is $XW$. So the lecture's aim (训练后量化, *post-training* quantization) is not
# $\lVert W - \tilde W \rVert^2$ but, for each output with weights $w$,
#
# $$\min_{w_q} \lVert X w - X w_q \rVert^2 = \min_{\delta} \tfrac12\, \delta^\top H \delta, \qquad H = 2 X^\top X, \quad \delta = w_q - w ,$$
#
# with $X$ what the layer reads of some *calibration* text. Rounding to the nearest (RTN) makes each $\delta_j$ small.
# But inputs are *correlated*: if channel 2 mostly moves with channel 1, then an error in $w_1$ can be made up for by
# an opposite one in $w_2$. Round column $j$, so that $\delta_j = e$ is settled, and ask what the other columns should
# do, which are still free. Minimizing the quadratic form under that condition (Hassibi and Stork 1993) gives
#
# $$\delta = \frac{e}{[H^{-1}]_{jj}}\, [H^{-1}]_{j,:} , \qquad \text{at a loss of } \frac{e^2}{2\, [H^{-1}]_{jj}} .$$
#
# Then the next column is rounded as it is *now*, and so on: that is *error feedback*, and GPTQ (Frantar et al. 2022)
# is this with the columns in one order for all rows, so that one matrix serves them all: row $j$ of the upper
# Cholesky factor $U$, $H^{-1} = U^\top U$, holds what column $j$ needs when all before it are settled. It works group
# by group of columns （按列维度分组，逐组量化）, for speed alone.
#
# With uncorrelated inputs $H$ is diagonal, nothing can be passed on, and rounding is best. *Predict* for rows of four
# weights in 2 bits: which share of rounding's loss is left as the correlation $\rho$ grows? And does GPTQ, which is
# greedy, find the best of all $4^4$ choices of codes?

# %% tags=["nbval-check-output"]
from llmcourse.quantization.gptq import GPTQSettings, gptq_reference
from llmcourse.quantization.hessian import damped_factor, output_error

weights = torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
choices = torch.cartesian_prod(*4 * [torch.arange(-2, 2)]).double()  # all codes of four weights
plain = affine.quantize_weight(weights, 2)
every = (plain.scale[:, None] * choices - weights[:, None]).flatten(0, 1)
for rho in (0, 0.5, 0.9, 0.99):
    hessian = 2 * ((1 - rho) * torch.eye(4) + rho).double()
    greedy = gptq_reference(weights, hessian, GPTQSettings(bits=2, damping=1e-6))
    lost = [output_error(q.dequantized() - weights, hessian) for q in (plain, greedy)]
    best = output_error(every, hessian).view(300, -1).amin(1)
    shares = [loss.sum() / lost[0].sum() for loss in (lost[1], best)]
    print("ρ = {}: GPTQ leaves {:.0%} of rounding's loss, the best codes {:.0%}".format(rho, *shares))

# %% [markdown]
# Feedback is worth much where channels move together. Greed costs something: a column never knows what those behind it will
# need. (Trying all codes is out of the question for rows of hundreds.)
#
# Now a real layer. Text of three domains is at hand: source code of the standard library, and prose and verse as
# `base` writes them behind openings that it knows. Half of it is for calibration, the other half for measuring:
# whoever measures on what was calibrated on measures luck. The loop below is GPTQ, whole: after column $j$, `left[:,
# j]` is its own rounded value, and all columns behind it have been corrected. *Damping* adds a hundredth of the mean
# of $H$'s diagonal, for directions that the text never showed.

# %%
from llmcourse.quantization import texts
from llmcourse.quantization.calibration import calibrate, windows

found = {}
for use in ("calibrate", "measure"):
    found[use] = texts.texts_at_hand(base, tokenizer, use, num_tokens=64)
    print(f"texts to {use}:", ", ".join(f"{len(each)} of {domain}" for domain, each in found[use].items()))
rows = torch.cat([windows(each, tokenizer, count=8, length=128) for each in found["calibrate"].values()])
streams = {domain: texts.token_stream(tokenizer, each) for domain, each in found["measure"].items()}
hessians = {name: one.hessian for one in calibrate(base, rows, progress=False) for name in one.names}
print(f"{len(rows)} windows of {rows.shape[1]} tokens to calibrate on")

# %%
from llmcourse.quantization.grid import nearest_codes

plain = affine.quantize_weight(weight, 3)
left, factor = weight.clone(), damped_factor(hessians[layer], 0.01)
for j in range(left.shape[1]):
    codes = nearest_codes(left[:, j : j + 1], plain.scale, None, bits=3)
    error = (left[:, j] - (plain.scale * codes)[:, 0]) / factor[j, j]
    left[:, j:] -= error[:, None] * factor[j, j:]
package = gptq_reference(weight, hessians[layer], GPTQSettings(bits=3)).dequantized()
print("the package's codes are those of this loop:", torch.allclose(left, package, atol=1e-4))
for name, restored in (("rounding", plain.dequantized()), ("GPTQ", left)):
    lost = output_error(restored - weight, hessians[layer]).sum().item()
    print(f"{name:9}SNR of the weight {snr_db(weight, restored):4.1f} dB, ‖Xw − Xw_q‖² {lost:,.0f}")

# %% [markdown]
# Look at both columns: the *weight* is farther from what it was than after rounding, and the *output* is nearer. (GPTQ's
# numbers are not the nearest ones any more, and that is the point.)
#
# ## 5.7 Whole models: 8, 4, 3, 2 bits
#
# **AWQ** (Lin et al. 2023) leaves rounding as it is and changes what is rounded. Weights that meet large activations
# matter most: multiply such an input channel of $W$ by $s > 1$ and divide the channel of $X$ by it. The function
# stays the same, the division can be folded into the norm before, and a weight that is twice as large is rounded half
# as coarsely. How much, $s = (\text{mean}\,|x|)^\alpha$, is found by trying some $\alpha$ for every input. With so
# little to choose, little text will do.
#
# First layer by layer: what is left of the loss of rounding. Then all of `base` at four widths (8 bits by rows,
# others in groups of 64, with zero points at 3 and 2 bits), by three numbers: *perplexity* $e^{\text{loss}}$; *KL* of
# the 16-bit model's distribution to the quantized one's, which sees every token and cannot fall by chance; and how
# often both have the same favourite, which is what greedy decoding would notice. *Predict*: at how many bits does the
# text begin to suffer? In which domain? And what is GPTQ worth, in bits?

# %%
import copy

from llmcourse.figures.layer_errors import plot_layer_errors
from llmcourse.quantization.awq import AWQSettings, awq_model
from llmcourse.quantization.gptq import gptq_model

whole = {"GPTQ": (gptq_model, GPTQSettings), "AWQ": (awq_model, AWQSettings)}
for name, (method, settings) in whole.items():
    whole[name] = method(copy.deepcopy(base), rows, settings(3, 64, symmetric=False))
below = "base, 3 bits, groups of 64, calibration text; each layer reads what the rounded ones before it give"
plot_layer_errors(whole, subtitle=below)

# %%
from llmcourse.quantization import quality, quantize


def compared(model, scheme):
    quantized = model if scheme == "none" else quantize(model, scheme, rows, progress=False)
    found = quality.compare(model, quantized, streams, length=128, max_windows=4)
    told = (f"{q.domain} {q.perplexity:6.1f}, {q.kl.mean:.4f}, {q.agreement.mean:4.0%}" for q in found)
    print(f"    {scheme:18}{'   '.join(told)}")
    return found


print("base: perplexity, KL to what it was, same favourite")
compared(base, "none")
schemes = [f"int{bits}{method}" for bits, method in product((8, 4, 3, 2), ("", "-gptq", "-awq"))]
of_base = {scheme: compared(base, scheme) for scheme in progress.bar(schemes, "schemes")}

# %% [markdown]
# **Layer by layer** GPTQ lowers every bar, as it must: this package's keeps rounding in any row where that loses
# less. AWQ chooses one scale for all layers that read the same input, so that one of them may lose what the others
# win. In models as small as these it has little to protect: there are few channels, and none that is much larger than
# all others (5.8).
#
# **Read down**: 8 bits cost nearly nothing, 4 bits little, 3 bits plainly something, and at 2
# bits rounding leaves ruins. GPTQ lowers the KL in every domain at every width; with it, a width loses far less than
# by rounding, but not as little as one bit more would. **Read across**: with 4 bits the KL is about the same for all
# domains, and yet favourites change least in code, where the next token is often settled (chapter 4). And perplexity
# is the bluntest of the three: it depends on the text far more than on the last bits of a weight, and may even fall
# below that of the first line. Nine favourites in ten sound good, too, until you remember that a text goes its own
# way from the first that differs.
#
# ## The larger the model, the closer
#
# The lecture's claim for 3 and 4 bits against 16. Ours are three models of one family, trained alike; all in groups
# of 64. *Predict* from 5.3 what changes with size: the weights' SNR, or how much an error matters? Left: perplexity
# against bits. Right: KL against parameters. (Where runs of larger models are recorded, they are drawn below.)

# %%
few, here = ("int4", "int4-gptq", "int3", "int3-gptq"), []
for name, (model, _) in progress.bar(family.items(), "models"):
    groups = torch.cat([w.data.reshape(-1, 64) for w in model.model.layers.parameters() if w.ndim == 2])
    snr = snr_db(groups, affine.quantize_weight(groups, 4).dequantized())
    print(f"{name}, whose weights have {snr:.1f} dB in 4 bits, groups of 64")
    for scheme in few:
        for q in of_base[scheme] if name == "base" else compared(model, f"{scheme}-g64"):
            row = {"model": name, "parameters": model.num_parameters, "scheme": scheme, "domain": q.domain}
            row |= {"perplexity": q.perplexity, "reference_perplexity": q.reference_perplexity}
            here.append(row | {"kl": q.kl.mean})
worst = max(q.kl.error / q.kl.mean for each in of_base.values() for q in each)
print(f"    as in the table above; the standard error of a KL there was up to {worst:.0%} of it")

# %%
from llmcourse.figures.bits_curve import plot_bits, points_of

below = "groups of 64, measured here"
display(plot_bits(points_of(here, "prose"), "The family, prose", below, method="gptq"))
print(f"KL of {' > '.join(names)}")
for scheme in few:
    kls = {(row["model"], row["domain"]): row["kl"] for row in here if row["scheme"] == scheme}
    told = (f"{domain} " + " > ".join(f"{kls[name, domain]:.3f}" for name in names) for domain in streams)
    print(f"{scheme:9} {'; '.join(told)}")

# %%
more = [row for row in recorded.raw_rows("quantize_quality") if row["scheme"] in few]
more = {(row["model"], row["scheme"], row["domain"]): row for row in more}.values()  # the latest of each
paths = sorted((recorded.RESULTS / "raw").glob("quantize_quality_*.jsonl"))
on = (path.stem.removeprefix("quantize_quality_").replace("_", " ") for path in paths)
below = f"recorded on {', '.join(on)}"
for domain in dict.fromkeys(row["domain"] for row in more):
    display(plot_bits(points_of(more, domain), f"More sizes, {domain}", below, method="gptq"))
print(", ".join(sorted({row["model"] for row in more})) or "More sizes are not recorded yet.")

# %% [markdown]
# The larger the model, the smaller the KL, at the same bits a weight, in every row of the table. And yet the weights
# of all three are rounded equally well: 6 dB a bit know nothing of models. So it must be what an error *does* to the
# function that shrinks with size, and not the error. Why is not settled by three models, which differ in depth and in
# how well they were trained, too.
#
# The recorded pictures go on to models of 411 and 923 million parameters, in which even 3 bits cost next to nothing.
# Do not believe it too soon: these two were trained for two minutes each, and without any rounding they are worse at
# these texts than `draft` (look where their curves end on the left). Who has learnt little has little to lose. Between
# the two of them the larger one is not the closer one any more by GPTQ, least of all in code. "The larger, the closer"
# is a statement about models that were trained as well as each other.
#
# # Part three: weights and activations
#
# ## 5.8 Outliers
#
# If activations are int8 as well (*W8A8*), the product itself is one of whole numbers, on units that are twice as fast:
#
# $$Y \approx s_X\, s_W\, (Q_X Q_W^\top) .$$
#
# The scale $s_W$ may differ from output to output, $s_X$ from token to token, and both come out of the sum. A scale
# for each *input* channel would not: that is what makes activations hard. Weights are known beforehand; an
# activation's scale is either measured on the way, for each token (*dynamic*), or taken from calibration, one for all
# (*static*), which is faster. And beyond some scale of model a few dimensions carry *outliers* (异常值): numbers twenty
# times as large as all others, in the same few channels, for every token (Dettmers et al. 2022). One of them in a
# row, and a step for the largest number costs all others four bits of their eight.
#
# *Predict*: do our small models have any? The paper counts magnitudes from 6 on. The cell counts, for each input of a
# layer, how many channels reach that, and by how much the largest channel stands out over the median one; layers lie
# beside each other. Last it asks, of the one that stands out most, for how many tokens it does.

# %%
from llmcourse.figures.outlier_split import read_inputs
from llmcourse.quantization.outliers import errors_by_scale, find_outliers, scaled_channels

for name, (model, _) in progress.bar(family.items(), "models"):
    seen = find_outliers(calibrate(model, rows, hessians=False, progress=False))
    print(f"{name}: channels that reach {seen[0].threshold:g}, of all; largest over median channel")
    for part in ("q_proj", "o_proj", "gate_proj", "down_proj"):
        of_part = [one for one in seen if one.names[0].endswith(part)]
        row = "".join(f"{len(one.columns):5}/{one.num_channels} {one.ratio:5.1f} ×" for one in of_part)
        print(f"    {part:10}{row}")
x = torch.cat([read_inputs(base, row)[layer.removeprefix("model.")].x.abs() for row in rows.tolist()])
far = (x[:, x.amax(0).argmax()] > x.max() / 2).nonzero()[:, 0]
which = dict.fromkeys(tokenizer.label(token) for token in rows.flatten()[far].tolist())
print(f"{layer}: half of {x.max():.0f} is reached at {len(far)} of {len(x):,} tokens:", *which)
errors = errors_by_scale(base, rows[:8], (1, 4, 16, 64, 256), (53, 256))

# %% [markdown]
# Outliers in the paper's sense they are not. Behind a norm the largest channel is mostly a few times the median one,
# and where many channels reach 6, the whole input is simply larger: a threshold in absolute numbers was made for
# other models. What stands out most are some inputs of `down_proj`, which are products of two numbers; and there it
# is not a channel that is large for every token, but a few *tokens* that are large in it: the first that the model
# reads, and `<|endoftext|>`, which parts texts. (In large models, too, activations are *massive* at the first token:
# Sun et al. 2024.) A scale for each token confines that to these few.
#
# So let us make some. Channels between a norm and the layers that read it can be scaled at will: multiply the norm's
# gain by $f$ in some channels, and divide the same columns of $W$ by $f$. The function is *exactly* the same (powers
# of two round nothing), but rounding no longer sees the same numbers. Large models arrive there by training. Three
# answers to that:
#
# - **By token** instead of by tensor: helps where *tokens* differ. Outliers are channels.
# - **LLM.int8()** (Dettmers et al. 2022), the lecture's mixed-precision decomposition (混合精度分解): columns of $X$ with
#   outliers, $O$, are multiplied in 16 bits, all others in int8, and both are added:
#   $Y \approx \sum_{h \in O} x_h w_h^\top + s_X\, s_W \sum_{k \notin O} q_k Q_k^\top$.
# - **SmoothQuant** (Xiao et al. 2022): undo it. $Y = (X\,\mathrm{diag}(s)^{-1})\,(\mathrm{diag}(s)\,W)$ with
#   $s_j = \max|X_j|^{1/2} / \max|W_j|^{1/2}$, folded into the norm beforehand; nothing is left to do at run time.
#
# *Predict*: from which factor on is int8 by token as bad as it was by tensor without outliers? And then for the whole
# model with two channels 16 times as large: which of the schemes notice?

# %%
from llmcourse.figures.outlier_growth import plot_outlier_growth

below = "base, two channels behind every norm scaled, its function unchanged; inputs of layers in int8"
display(plot_outlier_growth(errors, subtitle=below))
scaled = scaled_channels(base, 16, (53, 256))
print("the same function:", torch.equal(scaled(rows[:4]), base(rows[:4])))
for name, model in (("base", base), ("two channels, 16 times", scaled)):
    print(f"{name}: perplexity, KL to what it was, same favourite")
    schemes = ("int8", "w8a8", "w8a8-static", "llm.int8", "smoothquant-w8a8", "fp8")
    for scheme in progress.bar(schemes, "schemes"):
        compared(model, scheme)

# %% [markdown]
# (`int8` are weights alone, for comparison.) With channels four times as large, int8 by token is already worse than
# it was by tensor. On `base` as it is, a scale for each token costs next to nothing, and a static one plainly
# something: one number for all tokens and all texts has to cover the largest. With two large channels plain W8A8
# loses as much as 4-bit weights do, and static scales far more. SmoothQuant does not notice: it finds just the factor
# that was put in, and its numbers are those from before. And FP8 hardly does: every number has an exponent of its
# own. (For activations as tame as those of `base` it is the coarser of the two.)
#
# LLM.int8() mends most of it, but not all. Why? Its *activations* are exact in those columns; the weights are not: to
# find outliers as they come, all columns must be there in int8, and here they were divided by 16 before they were
# rounded with the scale of their row. (See `int8`, which rounds no activation and loses nearly as much.) Where
# calibration names the columns beforehand, their weights can be kept in 16 bits, as the equation says. The next cell
# does so for one layer, and then look at the map: which columns keep 16 bits at which threshold, and what is lost
# without them? (The map leaves weights as they are, so its errors are those of activations alone.) Find the threshold
# from which on the error rises; and for `base` itself, what a threshold of 6 would do to the last layers.

# %%
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.mixed_linear import MixedLinear

given = read_inputs(scaled, rows[0].tolist())["layers.2.mlp.up_proj"]
exact, columns = given.x @ given.weight.T, (given.maxima >= 20).nonzero()[:, 0]
q, others = (affine.quantize_weight(w, 8) for w in (given.weight, given.weight.index_fill(1, columns, 0)))
kept = {"columns": columns, "kept": given.weight[:, columns]}
ways = {"W8A8": Int8Linear(q.codes, q.scale), "LLM.int8()": MixedLinear(q.codes, q.scale, threshold=20)}
ways[f"LLM.int8(), columns {columns.tolist()} known"] = MixedLinear(others.codes, others.scale, **kept)
for name, linear in ways.items():
    print(f"{name:34} error {(linear(given.x) - exact).norm() / exact.norm():.2%}")
two = {"base": family["base"], "base, two channels × 16": (scaled, tokenizer)}
widgets.OutlierMap(two, model="base, two channels × 16", layer="layers.2.mlp.up_proj")

# %% [markdown]
# # Part four: the cache
#
# ## 5.9 A KV cache in few bits
#
# With long texts or many of them the cache is larger than the weights, and is read just as often. Keys and values are
# rounded as they are written, with a scale for each token and head: nothing has to be calibrated, and nothing is
# rounded twice. *Predict*, for Llama-3-8B on an H200 with texts of 8,192 tokens: how many fit at once with a cache in
# 16, 8 and 4 bits; how many if the weights are int4, too? And which of the two forgives less, keys or values?


# %% tags=["nbval-check-output"]
caches = {"bf16": {}} | {kind: {"cache": kind, "cache_group_size": 128} for kind in ("int8", "int4")}
print("Llama-3-8B on an H200, a tenth of it free, texts of 8,192 tokens")
for name, kind in caches.items():
    precisions = Precision(**kind), Precision("int4", group_size=128, **kind)
    fit = [roofline.largest_batch(LLAMA_3_8B, 8192, h200.memory_bytes * 9 // 10, p) for p in precisions]
    size = roofline.kv_bytes_per_token(LLAMA_3_8B, precisions[0])
    times = [roofline.predict_step(LLAMA_3_8B, Step.decode(64, 8192), h200, p).time_s for p in precisions]
    print(f"cache in {name}: {size:7,} bytes a token; with weights in bf16, and in int4: ", end="")
    print(f"{fit[0]}, {fit[1]} texts fit; a step of 64 takes {1e3 * times[0]:.1f}, {1e3 * times[1]:.1f} ms")

# %%
from llmcourse import decoding, prompts
from llmcourse.decoding import generate
from llmcourse.quantization.cache import QuantizedKVCache, quantized_cache_logits
from llmcourse.quantization.cache_error import cache_errors

openings = [*prompts.PROSE[:4], *prompts.VERSE[:4], *prompts.CODE[:4]]
asked = {"prompts": [tokenizer.encode_prompt(opening) for opening in openings], "tokenizer": tokenizer}
print("what comes out of attention: its squared error, as a share of its square")
for bits in progress.bar((8, 4, 3, 2), "bits"):
    lost = cache_errors(base, rows, bits)
    through = (100 * sum(each) / len(each) for each in (lost.from_keys, lost.from_values))
    size = QuantizedKVCache.of(base, 1, 1, bits=bits).bytes_per_token
    half = base.new_cache(1, 1).bytes_per_token // 2  # in 16 bits
    row = "{:.3f} % through keys, {:.3f} % through values".format(*through)
    print(f"{bits} bits, {size} bytes a token, not {half}: {row}; KL {lost.kl_divergence:.4f}")

# %%
exact = generate(base, **asked, max_new_tokens=32)
print("16 bits:", repr(exact[0].text))
print("   ", decoding.reread(base, asked["prompts"], [one.tokens for one in exact]))
for bits in progress.bar((8, 4, 3, 2), "bits"):
    new = generate(quantized_cache_logits(base, bits), **asked, max_new_tokens=32)
    same = sum(a.tokens == b.tokens for a, b in zip(exact, new, strict=True))
    print(f"{bits} bits, {same} of {len(new)} texts the same: {new[0].text!r}")
    print("   ", decoding.reread(base, asked["prompts"], [one.tokens for one in new]))

# %% [markdown]
# An error in a value is averaged with those of all other tokens; one in a key moves the weights of attention, through
# an exponential. So keys forgive less, and below 4 bits one would give *them* a scale for each channel (Liu et al.
# 2024, KIVI). In 8 bits most texts stay the same. With 4 bits most go their own way, but are they worse? Read again
# by `base` with its exact cache, they are about as likely, though not all their tokens are its favourites any more.
# With 3 bits they are less likely, with 2 they fall apart. (Heads of 32 numbers, as here, pay more for their scales
# than heads of 128 do. And a smaller cache is faster twice: as many texts take a shorter step, as the last column
# above has it, and more of them fit, chapter 3.)
#
# # Part five: through the chapters
#
# ## 5.10 The same engines
#
# To the rest of the course a quantized model is a model: `quantize` swaps its linear layers for others, and nothing
# else knows. So everything that was proved about decoding, serving and speculation must hold for it, about *its own*
# text: batches, blocks of a cache and drafts change no token. In double precision, below. And a new role: a quantized
# copy of the target is a *drafter* that mostly agrees with it, and costs a half or a quarter of a pass where
# bytes set the pace (4.4). *Predict* its acceptance $\alpha$ for 4 and for 3 bits, beside that of `draft`; and
# whether rounding `draft` itself hurts.

# %% tags=["nbval-check-output"]
from llmcourse import serving, timing

wide = {name: pretrained.load(name, dtype=torch.float64).model for name in ("base", "draft")}
int4, how = quantize(wide["base"], "int4"), {"prompts": asked["prompts"][::2], "max_new_tokens": 24}
how["eos_token_ids"] = ()
alone = [one.tokens for one in generate(int4, **how)]
ways = {"DecodeEngine": [one.tokens for one in generate(decoding.DecodeEngine(int4), **how)]}
scheduler = serving.Scheduler(serving.BlockPool(64, 16), serving.ChunkedPrefill(12), max_running=4)
runner = serving.PagedRunner(int4, serving.PagedCache(int4, 64, 16), max_running=4)
server = serving.Engine(scheduler, runner)
states = [server.add(serving.Request(str(i), text, max_tokens=24)) for i, text in enumerate(how["prompts"])]
while server.has_work:
    server.step()
ways["serving in pieces"] = [state.generated for state in states]
print("\n".join(f"int4 through {name}: the text of generate: {text == alone}" for name, text in ways.items()))

# %% tags=["nbval-check-output"]
from llmcourse import speculative
from llmcourse.speculative import ModelDrafter, measured

targets = {"base": wide["base"], "int4": int4}
plain = {name: [one.tokens for one in generate(model, **how)] for name, model in targets.items()}
drafters = {"draft": wide["draft"], "draft in int4": quantize(wide["draft"], "int4")}
drafters |= {f"base in {scheme}": quantize(wide["base"], scheme) for scheme in ("int8", "int4", "int3")}
for target, name in progress.bar([*product(["base"], drafters), ("int4", "draft")], "drafters"):
    model = targets[target]
    steps = list(speculative.stream(model, drafter=ModelDrafter(drafters[name]), draft_length=4, **how))
    alpha, gained = measured.tally(steps).rate, measured.tokens_per_step(steps)
    same = measured.written(steps) == plain[target]
    print(f"{target}, drafts by {name:13} α = {alpha:.2f}, {gained:.2f} tokens a step; its own text: {same}")

# %%
import tempfile
from pathlib import Path

from llmcourse.quantization import stored

half = pretrained.load("base", dtype=torch.bfloat16).model
for scheme in ("int8", "int4", "w8a8"):
    with tempfile.TemporaryDirectory() as folder:
        quantized, place = quantize(half, scheme), Path(folder) / scheme
        stored.save(quantized, place, "base", scheme)
        loaded = stored.load(place, dtype=torch.bfloat16, backend="reference").model
        share = (place / "model.safetensors").stat().st_size / sum(p.nbytes for p in half.parameters())
        read = stored.describe(place)
    same = torch.equal(loaded(rows[:1]), quantized(rows[:1]))
    print(f"{scheme}: {share:.0%} of the bytes of bf16; read as {read.name}, loaded the same: {same}")

# %% [markdown]
# What is promised is that `int4` writes *its own* text everywhere. That is not the text of `base`, which only a
# verification by `base` itself guarantees: a quantized drafter may be as coarse as it likes, the text does not
# notice, and the fewer bits, the more drafts fall. (Rounding `draft` costs it hardly any of its acceptance.)
#
# On disk a model shrinks less than its layers do, since the embedding keeps its 16 bits. There the format is that of
# *compressed-tensors*, which vLLM and transformers read: `python -m llmcourse quantize base int4-gptq FOLDER` writes
# such a folder, and `generate` and `serve` take it by its path.
#
# ## 5.11 On this machine
#
# *Predict*: by the bytes of its layers a step of int8 should be up to four times as fast as one in 32 bits, and int4
# nearly eight times. What does the clock say here? (On a machine with a GPU the comparison is with bf16, and runs on
# kernels.)

# %%
device = hardware.default_device()
dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
model, engines, size = pretrained.load("base", device=device, dtype=dtype).model, {}, {}
for scheme in ("none", "int8", "int4", "w8a8", "llm.int8"):
    one = model if scheme == "none" else quantize(model, scheme)
    size[scheme] = sum(t.nbytes for t in (*one.model.layers.parameters(), *one.model.layers.buffers()))
    engines[scheme] = decoding.DecodeEngine(one)
    engines[scheme].start([asked["prompts"][0]], 512)
runs = {name: lambda one=one: one.decode(8) for name, one in engines.items()}
taken = {name: t.median_s for name, t in timing.measure_in_turns(runs, device=device, repeats=7).items()}
print(f"base on {hardware.this_machine(device).name}, batch 1, beside {dtype}")
for name, time_s in taken.items():
    print(f"{name:9}{size['none'] / size[name]:5.2f} × by bytes, {taken['none'] / time_s:.2f} × by the clock")

# %% [markdown]
# On a CPU, weights in few bits are *slower*, and that is no measuring error. There the reference runs: it unpacks
# codes, writes them out as whole matrices, and only then multiplies, so that a step moves more bytes than before.
# W8A8 multiplies codes as they are and comes nearer, but quantizes its input before every product. And `base` fits
# into the caches of many a CPU, so that bandwidth was not the limit in the first place. Fewer bits are faster only
# where a kernel unpacks them on the chip, *and* reading weights is what takes the time. Programs for CPUs have such
# kernels; this course writes its own for GPUs.
#
# ## 5.12 On a GPU
#
# What a kernel has to do in the time that reading 4 bits takes: cut eight codes out of a word, make 16 bits of each,
# multiply by a scale for every 128, and feed the tensor cores; for 64 rows as for one, and with no second kernel for
# anything. *Predict*, from 5.5: the speed-up of int4 over bf16 at $M = 1$, and from which number of rows $M$
# (sequences decoded together) it falls. W8A8 has to find a scale for each token first, before it can multiply: at
# which $M$ does that pay?
#
# Bars are runs of `benchmarks/linear_low_bit.py` and `linear_w8a8.py`, each beside its limit and its peers in the
# same process; then whole models of Llama-3-8B's shape (`decode_low_bit.py`), and GPTQ itself.

# %%
from llmcourse.figures import kernel_bars, low_bit_bars

titles = {"int4": "Weights in int4, groups of 128", "int8": "Weights in int8"}
titles |= {"w8a8": "Weights and activations in int8", "llm_int8": "LLM.int8(), 0.5 % of the columns outliers"}
for kind, title in titles.items():
    sizes = {"rows": low_bit_bars.ROWS if kind in ("int4", "int8") else (1, 16, 64, 4096, 8192)}
    wanted = low_bit_bars.names_of(kind, **sizes)
    rows_of_kind = recorded.all_of([*wanted, *low_bit_bars.names_of(kind, **sizes, peer="tinygemm")])
    display(low_bit_bars.plot_low_bit(rows_of_kind, kind, title, wanted))
wanted = [f"decode_llama3_8b_{kind}_b1" for kind in ("bf16", "int8", "int4")]
display(kernel_bars.plot_kernels(recorded.all_of(wanted), "Llama-3-8B's shape, batch 1", wanted))
print("\n".join(map(recorded.told, recorded.all_of([*wanted, "gptq_llama3_8b"]))))
if not recorded.recorded("gptq_llama3_8b"):
    print("GPTQ on a GPU is not recorded yet.")

# %% [markdown]
# Where a bar is missing, its benchmark has not been recorded yet, and the figure says so. Read the others against
# three marks. The dashed line at 1: below it 16 bits are faster. The line of the limit: for few rows bytes over bandwidth, for
# thousands of rows the rate of int8 products of PyTorch, which our own product is ahead of. The diamond: what PyTorch
# has for int4 (tinygemm); for whole models in int8 and int4, our own decoding in bf16.
#
# A matrix of int4 is read in a few microseconds, so that starting, filling the memory pipeline and the last wave weigh
# more than they do in 16 bits, and codes have to become numbers in a quarter of the time: both lie between bar and
# limit. Look how the gain falls with $M$: each program reads all of $X$ for its few rows of $W$, and the more of $X$
# there is, the less the bytes of $W$ are what counts. W8A8 pays from the first row on, since it reads half the bytes, and
# again where arithmetic is the limit. LLM.int8() pays there too; for a few dozen rows it is mostly *slower* than 16 bits, for
# finding the outliers and multiplying them apart are steps of their own, however little there is to do. A whole model
# gains less than its matrices, since attention, norms and the cache stay as they were.
#
# ## 5.13 What goes wrong
#
# | belief | where it fails | what you saw |
# |---|---|---|
# | $Z$ is $Z$ | two conventions with opposite signs | 5.1 |
# | min–max loses nothing | it loses the many for the sake of one | 5.2 |
# | a zero point is free precision | it is stored, too: compare at equal bits | 5.2 |
# | 4-bit formats are alike | count the bits of scales, and where the points lie | 5.4 |
# | FP8 is more precise than int8 | for numbers of one size it is less | 5.4, 5.8 |
# | four times fewer bits are four times the speed | scales, cache, kernels; and not for large batches or prefill | 5.5, 5.12 |
# | the nearest codes are the best codes | the nearest weights, not the nearest outputs | 5.6 |
# | a lower layer loss is a better model | mostly; measure on text that was not calibrated on | 5.7 |
# | perplexity hardly moved, so the model is the same | look at KL, and at favourites | 5.7 |
# | what works on a large model works on a small one | the smaller, the more it loses | 5.7 |
# | outliers are numbers above 6 | above the others of their row; 6 was one paper's models | 5.8 |
# | LLM.int8() is exact in its columns | activations are; weights only if the columns are known beforehand | 5.8 |
# | static scales are as good as dynamic ones | one number has to do for all tokens | 5.8 |
# | keys and values are alike | keys forgive less | 5.9 |
# | a quantized model is faster | where a kernel unpacks on the chip, and bytes were the limit | 5.11 |
# | lossless speculation with an int4 target is lossless | it keeps the text of the int4 model | 5.10 |
#
# **On the slides.** The example's equations want $Z$ inside the bracket; its printed $-152$ has the other
# convention's sign, and cutting off instead of rounding costs twice the worst error (5.1). That post-training
# quantization minimizes $\lVert Xw - Xw_q \rVert^2$ is right, and it is not what rounding does. "The larger the
# model, the closer" held for our three sizes, too. That outliers appear beyond some scale is true of the models that
# were looked at; ours have a few large tokens and no such dimensions, so we made some.
#
# ## Lab
#
# [Lab 5](../labs/05_quantization.ipynb) has you build the parts: codes and scales, a scale for each row, where a
# range should end, two codes in a byte; a column of GPTQ and then all of them; outlier columns and their product; a
# kernel that multiplies codes. To warm up, here in this notebook:
#
# 1. (5 min) In 5.1 find six numbers for which cutting $Z$ off is no worse than rounding it. (`exact_parameters` and
#    `worked_example` take other numbers than the slide's, as their last argument.)
# 2. (10 min) In 5.3 replace the normal numbers by uniform ones. Where does the formula hold now, and does clipping
#    still pay?
# 3. (15 min) In 5.6 walk through the columns from the last to the first, or with the largest diagonal of $H$ first
#    (`act_order`). Which loses least?
# 4. (15 min) Calibrate GPTQ in 5.7 on code alone. Which domain gains, which one loses?
# 5. (10 min) In 5.8 scale 40 channels instead of two. Which of the schemes is first to give in, and why?
# 6. (10 min) In 5.9 ask how many texts fit if the cache has 8 bits and a text 1,024 tokens. Is the cache still the
#    right thing to shrink?
#
# ## Summary
#
# - A code stands for $S\,(q - Z)$; a bit is worth 6 dB, and what shares a scale, and where its range ends, are worth bits.
# - Weights alone: int8 for nearly nothing, int4 for little, less only with methods that look at text; GPTQ passes each
#   column's error on to those that are still free, and larger models lose less.
# - Fewer bits are faster where bytes were the limit and a kernel unpacks on the chip; activations in int8 speed up what is
#   bound by arithmetic, if outliers are smoothed away or kept apart; and a smaller cache lets more requests in.
#
# **Sources** Jacob et al. 2018 (affine quantization) · Nagel et al. 2021 (ranges, granularity: a white paper) ·
# Micikevicius et al. 2022 (FP8) · Dettmers et al. 2023 (QLoRA: NF4) · OCP Microscaling Formats 1.0 (MXFP4) · Hassibi
# and Stork 1993 (Optimal Brain Surgeon) · Frantar et al. 2022 (GPTQ) · Lin et al. 2023 (AWQ) · Dettmers et al. 2022
# (LLM.int8()) · Xiao et al. 2022 (SmoothQuant) · Sun et al. 2024 (massive activations) · Liu et al. 2024 (KIVI) ·
# Frantar et al. 2024 (Marlin: kernels for int4)

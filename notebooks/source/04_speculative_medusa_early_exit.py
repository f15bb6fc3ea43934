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
# # Chapter 4 · Speculative decoding, Medusa and early exit
#
# A decoding step reads all the weights, and the arithmetic waits (chapter 2). Chapter 3 filled the idle units with
# the texts of *other* readers. But what if there is one reader, who would like to see the text sooner? Then the
# units can be filled with guesses about that reader's own next tokens: cheap ones, checked by the large model,
# several in one pass. Done right, not one token of the text changes, and that can be proved. From here on a guess
# is a *draft*, whoever makes it the *drafter*, and the large model the *target*. The first half of the chapter has
# several models work together. The second half has one do with less: heads on it that look further ahead, blocks that
# are written at once, layers that are skipped; and asks of each whether the text stays what it was.
#
# **When you have worked through this chapter you can**
#
# - state the acceptance rule and its residual, compute both by hand, and prove that the text is the target's,
# - predict tokens a step and speed-up from $\alpha$, $\gamma$ and $c$, and choose $\gamma$,
# - say for a kind of text and a drafter how often drafts will stand (that is, be accepted), and why,
# - draft with a smaller model, by lookup, and with the target's own first layers,
# - name the loads and settings under which speculation is slower than decoding,
# - build a cascade: train its judge, choose thresholds on held-out questions, and tell a gain from random mixing,
# - say how far ahead Medusa's heads see, search a tree of their guesses, and read it in one pass,
# - name the verdicts on a tree that keep the text, and measure what the one that does not keep it changes,
# - turn the dial from autoregressive to non-autoregressive, and say what each turn costs,
# - choose a rule and a threshold of early exit for a budget, and tell layers that are saved from time that is.
#
# **Time** about 100 minutes of reading and playing; the cells run in under three minutes.
# **Hardware** any laptop; the speed of large models is predicted, and 4.9 shows what was recorded on a GPU.
#
# | symbol | term | 中文 |
# |---|---|---|
# | | speculative decoding | 推测解码 |
# | $p,\ q$ | distributions of the target and of the drafter | 目标模型的分布，草稿器的分布 |
# | $\gamma$ | drafts a step | 每步草稿词元数 |
# | | verify; a draft stands, or falls and is corrected | 验证；接受，拒绝，修改 |
# | $\min(1, p/q)$ | chance that a draft stands | 接受概率 |
# | $p' \propto \max(0, p - q)$ | residual, which corrections are drawn from | 残差分布 |
# | | bonus: the target's own token where all drafts stand | 额外词元 |
# | $\beta = \sum \min(p, q)$; $\alpha$ | overlap at one place; share of the drafts reached that stand | 重叠度；接受率 |
# | $c$ | cost of a draft, in one-token passes of the target | 草稿的相对开销 |
# | $v(n)$ | cost of a pass over $n$ tokens, in the same unit | 验证的相对开销 |
# | | self-speculation, lookup | 自推测，查找 |
# | | cascade decoding, judge (a binary classifier), threshold, held out | 级联解码，评判器（二分类器），阈值，留出集 |
# | $\lambda$ | share of questions that a mixture gives to the larger model | 混合比例 |
# | $K$, $q_k$ | Medusa's heads, and the distribution of the $k$-th | 预测头 |
# | $N$ | nodes of a candidate tree; tree attention; branch | 候选树，树注意力，分支 |
# | $a_k(r)$, $E$ | how often rank $r$ of head $k$ is right; tokens a step gains | 预测准确率，每步词元数 |
# | $c_h$ | cost of all heads once, in one-token passes | 预测头的相对开销 |
# | $\epsilon,\ \delta$ | bar of typical acceptance | 典型接受阈值 |
# | $n$, $T$ | block size and passes a block: autoregressive, semi-, non-autoregressive | 组大小，迭代次数；自回归，半自回归，非自回归 |
# | $\hat p_l$, $H$, $\tau$ | what the exit after layer $l$ says, its entropy, a threshold: early exit | 早退机制，熵，阈值 |

# %% tags=["nbval-check-output"]
import torch

from llmcourse import decoding, hardware, pretrained, progress, prompts, roofline, speculative, timing
from llmcourse.costs import LLAMA_3_8B, Step
from llmcourse.decoding import SamplingParams, generate
from llmcourse.figures import recorded, speculation_speed, widgets
from llmcourse.speculative import EarlyLayersDrafter, ModelDrafter, engine, measured

torch.set_num_threads(1)  # with models this small, two threads mostly wait for each other
device, h200, names = hardware.default_device(), hardware.datasheet("H200"), ("draft", "small", "base")
family = {name: pretrained.load(name, device=device, dtype=torch.float64) for name in names}
(base, tokenizer), draft = family["base"], family["draft"].model
encode = tokenizer.encode_prompt  # token ids, after the <|endoftext|> that every training text began with
for name, (model, _) in family.items():
    print(f"{name:6}{model.num_parameters / 1e6:5.1f} M parameters, {model.config.num_layers} layers")

# %% [markdown]
# # Part one: several tokens for one pass
#
# ## 4.1 A pass over five tokens: on paper hardly more than one
#
# Everything in this part hangs on one number: $v(n)$, the time of a pass over $n$ tokens, counted in passes over
# one. *Predict*, before you run the cell: how many tokens can Llama-3-8B read on an H200 before its pass takes a
# twentieth longer? (What `MY_GUESS` holds is only our first guess: put yours in its place. Where a *Predict* has no
# such line, write your answer down.) The cell asks the roofline, and then measures `base` here, and $c$, a pass
# over one token of each drafter, in the same unit. (What a GPU has made of eight tokens is told in 4.9.)

# %%
MY_GUESS = 8  # tokens
ids = torch.tensor([encode(prompts.PROSE[11])], device=device)
fast = {name: pretrained.load(name, device=device).model for name in names}  # fp32: for all that is timed
paper = {n: roofline.predict_step(LLAMA_3_8B, Step.chunk(1, n, 1024), h200).time_s for n in range(1, 257)}
most = max(n for n, time_s in paper.items() if time_s <= 1.05 * paper[1])
print(f"Llama-3-8B on an H200, by the roofline: {most} tokens within 1.05 passes; your guess: {MY_GUESS}")
passes = {n: lambda n=n: fast["base"](ids[:, :n]) for n in range(1, 8)}
passes |= {name: lambda name=name: fast[name](ids[:, :1]) for name in ("draft", "small")}
taken = timing.measure_in_turns(passes, device=device)
v_and_c = {key: taken[key].median_s / taken[1].median_s for key in passes}
print("base here:", ", ".join(f"v({n}) = {v_and_c[n]:.2f}" for n in range(1, 8)))
for name in ("draft", "small"):
    weights = family[name].model.num_parameters / base.num_parameters
    print(f"{name}: {weights:.0%} of the weights, c = {v_and_c[name]:.2f}")

# %% [markdown]
# A model of a few million weights is no memory-bound giant, and $v$ rises earlier than on paper. On a CPU a matrix
# product with two rows runs through other code than one with a single row, so there is a jump from one token to
# two; from there every token adds a little. And to start an operation costs the drafter as much as the target: the
# more of the time goes to starting, the farther $c$ lies above the share of the weights. These $v$ and $c$ go into
# the prediction of 4.7.
#
# ## 4.2 The rule, by numbers
#
# The slide says: the small model writes 3 to 5 tokens, the large one *rejects and modifies* (拒绝与修改), and the
# quality does not suffer. How must one reject for this to be true? Draw a draft $x$ from the drafter's distribution
# $q$; $p$ is the target's at the same place. Then (Leviathan et al. 2023; Chen et al. 2023)
#
# $$\text{keep } x \text{ with probability } \min\!\Big(1, \frac{p(x)}{q(x)}\Big), \quad\text{else draw from}\quad
# p'(x) = \frac{\max(0,\, p(x) - q(x))}{\sum_{x'} \max(0,\, p(x') - q(x'))} .$$
#
# A token arrives as a draft with probability $q \cdot \min(1, p/q) = \min(p, q)$. Some draft falls with probability
# $1 - \sum \min(p, q) = \sum \max(0, p - q)$, which is just what $p'$ is divided by; so a token arrives as a correction
# with probability $p - \min(p, q)$. Together: $p$. (Where $p = q$ no draft ever falls and nothing has to be corrected;
# $p'$ may then be anything, say $p$.)
#
# *Predict* for the four drinks of the cell, from its two lists `p` and `q`: how often does a draft stand, and which
# drinks can a correction be? Which would come too often if a correction were drawn from $p$ itself?

# %% tags=["nbval-check-output"]
drinks = ("coffee", "tea", "water", "ink")
p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
q = torch.tensor([0.3, 0.5, 0.1, 0.1], dtype=torch.float64)
overlap, left = speculative.acceptance(p, q), speculative.residual(p[None], q[None])[0]
as_draft, as_correction = torch.minimum(p, q), (1 - overlap) * left
naive = as_draft + (1 - overlap) * p
print(f"a draft stands with β = {overlap:.2f}\n")
print("          q     p   stands    as draft + as correction = together   corrected from p")
for row, drink in enumerate(drinks):
    stands = min(1.0, (p[row] / q[row]).item())
    both = as_draft[row] + as_correction[row]
    print(f"{drink:8}{q[row]:.2f}  {p[row]:.2f}   {stands:4.0%}  ", end="")
    print(f"{as_draft[row]:11.2f}   {as_correction[row]:13.2f}   {both:10.2f}   {naive[row]:16.2f}")

# %% [markdown]
# *Ink* is drafted now and then and never comes through; *coffee*, which the drafter underrates, is what most
# corrections are. Drawn from $p$, corrections would bring what the drafter overrates a second time: too much tea.
#
# ## 4.3 Proof by counting
#
# One token is easily believed. It is less easy with several drafts in a row, each given those before it, and a
# *bonus* token where all stand. (The target has read the last draft, too, so it knows what follows.) So leave
# nothing to chance: a vocabulary of three tokens, probabilities in quarters that depend on the token before, and
# $\gamma = 2$. In practice a draft stands if a uniform random number $u$ is below $p/q$, and one number more draws
# the token after the drafts. Here, what a number decides changes only at multiples of 1/12, so the middles of the
# twelve intervals speak for all numbers. Every pair of drafts, with every triple of these middles, goes through
# `verify_drafts`, the function that this package decodes with; where a step brings fewer than three tokens the
# target goes on; and everything is added up in fractions.
#
# Beside it a rule that accepts every draft. *Predict* for each how far the texts of three tokens are from the
# target's distribution: half the sum of all differences, 0 for none, 1 for nothing in common.

# %%
import math
from collections import Counter
from fractions import Fraction
from itertools import chain, pairwise, product

P = torch.tensor([[2, 1, 1], [0, 3, 1], [1, 1, 2]]) / 4  # a row for each token before
Q = torch.tensor([[1, 3, 0], [2, 1, 1], [1, 2, 1]]) / 4


def chance(model, text, last=0):
    return math.prod(Fraction(model[step].item()) for step in pairwise((last, *text)))


def always_accept(p, q, *others):
    return speculative.verify_drafts(torch.cat((q, p[:, -1:]), 1), q, *others)


# %% tags=["nbval-check-output"]
def misplaced(verify):
    off = {text: chance(P, text) for text in product(range(3), repeat=3)}
    numbers = torch.cartesian_prod(*3 * [(torch.arange(12) + 0.5) / 12])  # for two drafts and what follows
    for drafts in (pair for pair in product(range(3), repeat=2) if chance(Q, pair)):
        p, q = (side.expand(len(numbers), -1, -1) for side in (P[[0, *drafts]], Q[[0, drafts[0]]]))
        rows = torch.tensor(drafts).expand(len(numbers), 2)
        for text, count in Counter(map(tuple, verify(p, q, rows, numbers).emitted(rows))).items():
            for rest in product(range(3), repeat=3 - len(text)):
                share = Fraction(count, len(numbers)) * chance(Q, drafts)
                off[*text, *rest] -= share * chance(P, rest, text[-1])
    return sum(map(abs, off.values())) / 2


for rule in (speculative.verify_drafts, always_accept):
    print(f"{rule.__name__}: {misplaced(rule)} of all texts are not where the target has them")

# %% [markdown]
# Not "close to zero": zero for these distributions, and by 4.2, place by place, for all. Nothing in the proof asks where
# $p$ and $q$ come from, so it holds for any sampling settings, if *both* are the distributions that tokens are really
# drawn from: after temperature, top-k, top-p and penalties, and a penalty at the third draft has seen the first two.
# Greedy decoding is the case in which $p$ is certain: a draft stands if it is the target's *favourite*, its likeliest
# token. (Sampled texts are equal in distribution, not token for token: the same random numbers are used for other things.)
#
# ## 4.4 What it brings: $\alpha$, $\gamma$, $c$
#
# Let each draft stand with chance $\alpha$, whatever the others did. Of $\gamma$ drafts the first $k$ stand with $\alpha^k$, and the
# target adds one token always. A step costs $\gamma$ drafts and a pass over $\gamma + 1$ tokens:
#
# $$E = 1 + \alpha + \dots + \alpha^\gamma = \frac{1 - \alpha^{\gamma + 1}}{1 - \alpha}, \qquad
# \text{speed-up} = \frac{E}{\gamma c + v(\gamma + 1)} .$$
#
# *Predict*: four drafts, four out of five stand, a draft costs a tenth of a pass, and verifying is free ($v = 1$).
# How many tokens does a step bring, and how many times faster is the text? (`MY_GUESS` again holds ours.) The slide
# promises "about two times" (两倍左右) with 3 to 5 drafts: the cell says which $\alpha$ that takes.

# %% tags=["nbval-check-output"]
MY_GUESS = 3.0  # times faster
tokens, gain = speculative.expected_tokens(0.8, 4), speculative.speed_up(0.8, 4, 0.1)
print(f"α = 0.8, γ = 4, c = 0.1: {tokens:.2f} tokens a step, {gain:.2f} times faster; your guess: {MY_GUESS}")
hundredths = [n / 100 for n in range(101)]
for gamma in (3, 4, 5):
    least = {c: min(a for a in hundredths if speculative.speed_up(a, gamma, c) >= 2) for c in (0, 0.1, 0.2)}
    print(f"γ = {gamma}: twice as fast from", ", ".join(f"α = {a} (c = {c})" for c, a in least.items()))
print("\nbest γ up to 16, and the speed-up with it")
for c in (0.02, 0.1, 0.3, 0.6):
    best = {a: speculative.best_draft_length(a, c, 16) for a in (0.3, 0.5, 0.7, 0.8, 0.9)}
    row = (f"α = {a}: {g:2}, {speculative.speed_up(a, g, c):.2f}" for a, g in best.items())
    print(f"c = {c:4}   " + "   ".join(row))

# %% [markdown]
# A best $\gamma$ of 0 means: do not draft. With $v = 1$ drafting pays if and only if $\alpha > c$. Read a row from left to
# right: long drafts pay where nearly all stand, or cost next to nothing, and there every hundredth of $\alpha$ counts. "Twice as fast" is no property of
# the method, but of a pair of models, a text and a machine.
#
# ## 4.5 A text in three colours
#
# The lecture prints a text ("japan ' s benchmark …") line by line, each line a step: what the small model wrote (小模型生成),
# what the large one rejected (大模型拒绝), and what it wrote instead (大模型修改). Here `draft` writes for `base`, greedily, and one of
# twelve texts is shown. Which of its words are left to the large model? And how many of the twelve differ from what `base`
# writes alone?
#
# Then play a *sampled* text step by step, in the player below it. At each rejection the bars show $p$, $q$ and the
# residual that the correction is drawn from. Set the temperature to 0 and see both sides become certain; let `base`
# draft for itself and see nothing fall; then look for a draft that stands although $p < q$.

# %%
from llmcourse.figures.speculation_plot import told
from llmcourse.figures.speculation_strip import line_by_step
from llmcourse.figures.speculation_trace import speculation_trace

openings = [*prompts.PROSE[:4], *prompts.VERSE[:4], *prompts.CODE[:4]]
given = {"prompts": [encode(opening) for opening in openings], "tokenizer": tokenizer, "max_new_tokens": 24}
steps = list(speculative.stream(base, drafter=ModelDrafter(draft), **given))
read = tokenizer.decode, tokenizer.label
traces = [speculation_trace(opening, steps, *read, row=row) for row, opening in enumerate(openings)]
alone = [opening + one.text for opening, one in zip(openings, generate(base, **given), strict=True)]
print(sum(trace.text() != text for trace, text in zip(traces, alone, strict=True)), "of 12 texts differ")
print(told(traces[3].phases[-1].counts))
display(line_by_step(traces[3]))
widgets.TracePlayer(family, "Once upon a time there was", target="base", drafter="draft")

# %% [markdown]
# ## 4.6 Prose, verse, code: how often drafts stand
#
# Three domains that all three models have seen in training, six beginnings of each. *Predict* the order of the three, first for
# greedy decoding, then for sampling at temperature 1; and by how much `small`, with twice the weights of `draft`, is the
# better drafter. The first cell measures.
#
# The second asks why. It takes texts that `base` has sampled and has both models read every place of them: how undecided is the
# target (entropy $H$ in nats), how large is the overlap $\beta = \sum \min(p, q)$, and how often is the favourite the same?

# %% tags=["nbval-check-output"]
TEXTS = {"prose": prompts.PROSE[:6], "verse": prompts.VERSE[:6], "code": prompts.CODE[:6]}


def settings(domain, t):
    numbers = [torch.Generator().manual_seed(seed) for seed in range(6)]
    choice = {"params": SamplingParams(temperature=t), "generator": numbers, "max_new_tokens": 24}
    return choice | {"prompts": [encode(text) for text in TEXTS[domain]]}


for (name, t), domain in progress.bar([*product((("draft", 0), ("small", 0), ("draft", 1)), TEXTS)], "runs"):
    drafter = ModelDrafter(family[name].model)
    steps = list(speculative.stream(base, drafter=drafter, draft_length=4, **settings(domain, t)))
    alpha, gained = measured.tally(steps).rate, measured.tokens_per_step(steps)
    tokens = f"tokens a step: predicted {speculative.expected_tokens(alpha, 4):.2f}, measured {gained:.2f}"
    print(f"{name}, temperature {t}, {domain}: α = {alpha:.2f}, {tokens}")

# %% tags=["nbval-check-output"]
seen = {}
for domain in TEXTS:
    texts = [(g.prompt, g.tokens) for g in generate(base, **settings(domain, 1))]
    at = [(torch.tensor([[*prompt, *new]], device=device), len(prompt) - 1) for prompt, new in texts]
    sides = [[model(ids)[0, start:-1] for ids, start in at] for model in (base, draft)]
    seen[domain] = [torch.cat(side).cpu() for side in sides]
for domain, sides in seen.items():
    (p, q), undecided = (side.softmax(-1) for side in sides), decoding.entropy(sides[0])
    beta, agree = speculative.acceptance(p, q), (p.argmax(-1) == q.argmax(-1)).double()
    print(f"{domain}: H = {undecided.mean():.1f}, β = {beta.mean():.2f}, same favourite {agree.mean():.0%}")
    for low, high in pairwise((0.0, 0.5, 2.0, 4.0, 10.0)):  # nats
        here = (low <= undecided) & (undecided < high)
        row = f"β = {beta[here].mean():.2f}, same favourite {agree[here].mean():.0%}"
        print(f"    H from {low:g} to {high:g}: {here.double().mean():4.0%} of the places, {row}")

# %% [markdown]
# Greedily, code goes first and verse last: what comes next in code is often settled by the lines before, and both models
# know it; in a poem hardly anything is settled but the marks and the ends of lines. Sampled, the three lie close
# together. Verse has two kinds of places, certain ones, where nearly everything stands, and wide open ones; and where both sides
# spread over many words they overlap by *spreading*, without agreeing on a favourite. So "how predictable is the text?"
# decides greedy acceptance, and for sampling it is only half the answer: what counts is the overlap.
#
# (Measured is a little less than predicted. Easy places come together, and so do hard ones: drafts do not stand
# independently of one another. And at the end of a text fewer are asked for. $\alpha$ counts drafts that were
# *reached*: those behind a fallen one are dropped and count for nothing. So the second and later drafts of a step
# are mostly reached where the text is easy, and $\alpha$ lies above the mean $\beta$ of all places. The first step
# of a text, which reads its prompt, is left out. With six texts a difference of a few hundredths says
# nothing.)
#
# ## 4.7 $\gamma$ against speed: predicted, measured
#
# Now the clock, on this machine, one text at a time. From steps with $\gamma = 4$ take $\alpha$; $c$ and $v$ are those of 4.1; theory
# then says what any other $\gamma$ would bring. *Predict* for code and for verse: the best $\gamma$, and whether it
# pays at all. Dashed is what was predicted, marks are what the clock says.


# %%
from functools import partial


def with_drafts(drafter, draft_length):
    return partial(speculative.stream, drafter=drafter, draft_length=draft_length)


def in_turns(domain, ways, rounds=3):
    """The fastest run of two texts in each way, as its steps; and the time of a token without drafts."""
    texts, best, ways = [[encode(text)] for text in TEXTS[domain][:2]], {}, {"plain": decoding.stream, **ways}
    for _, (name, way) in progress.bar([*product(range(rounds), ways.items())], domain):
        run = [step for text in texts for step in way(fast["base"], prompts=text, max_new_tokens=32)]
        best[name] = min(run, best.get(name, run), key=lambda steps: sum(step.time_s for step in steps))
    times = sorted(step.time_s for step in best.pop("plain"))
    return best, times[len(times) // 2]


# %%
from llmcourse.figures.growth import Curve

gammas, curves = (1, 2, 3, 4, 6), []
for domain in ("code", "verse"):
    runs, one_s = in_turns(domain, {n: with_drafts(ModelDrafter(fast["draft"]), n) for n in gammas})
    alpha, c = measured.tally(runs[4]).rate, measured.draft_cost(runs[4], one_s)
    says = [speculative.speed_up(alpha, gamma, v_and_c["draft"], v_and_c.get) for gamma in gammas]
    clock = [measured.measured_speed_up(runs[gamma], one_s) for gamma in gammas]
    curves += [Curve(domain, gammas, clock), Curve(f"{domain}, predicted", gammas, says, "predicted", domain)]
    v = measured.verify_cost(runs[4], one_s)
    inside = f"c = {c:.2f}, v(5) = {v(5):.2f}, theory {speculative.speed_up(alpha, 4, c, v):.2f}"
    best = gammas[clock.index(max(clock))]
    print(f"{domain}: α = {alpha:.2f}, fastest γ = {best}; with γ = 4 {inside}, clock {clock[3]:.2f}")
title = f"Drafts by draft, verified by base, on {hardware.this_machine(device).name}"
speculation_speed.plot_draft_lengths(curves, title)

# %% [markdown]
# Where all marks lie below 1, drafting with a model does not pay on this machine, whatever the $\gamma$. Why a
# solid line lies below its dashed one is told by the printed $c$ and $v$. Inside a step to verify takes longer than
# the bare pass of 4.1: distributions are made of logits, drafts are judged, caches rolled back, all of it by
# Python. (A draft takes longer, too, but so does the plain token that it is counted in.) With the costs *as the
# steps of $\gamma = 4$ had them* theory comes near the clock, as it should. The formula is right, then, and $c$ and
# $v$ are where speed is won or lost: where a pass takes a millisecond, the work around it weighs as much. And look
# at verse: drafts that fall have been paid for, and the more of them a step asks for, the slower the text.
#
# ## 4.8 Other lengths, other drafters
#
# **Adaptive lengths.** One $\gamma$ for all texts is a compromise. `AdaptiveLength` estimates $\alpha$ for each
# text, from its latest drafts most, and asks `best_draft_length` of 4.4 before every step. It may say 0 for a
# while, and then tries again.
#
# A drafter needs the target's vocabulary, and nothing else: the proof holds for every $q$, and a bad one costs time, not truth.
# Two that need no second model:
#
# **Lookup** (Saxena 2023) finds the last few tokens earlier in the text, and proposes what followed them there. $c$
# is nearly 0, and $q$ is certain: 1 for the draft $x$, so that $\beta$ is simply $p(x)$.
#
# **Self-speculation** (Elhoushi et al. 2024) drafts with the target's own first layers, followed at once by its
# last norm and its output head. No second model has to be stored; $c$ is about the share of the layers.
#
# *Predict*: in which domain does the adaptive one draft more? Which drafter is best for code? And how good are half of
# the layers of `base`, which was never trained to be read there?

# %%
line = tokenizer.encode("for name in names:\n    print(name)\nfor name in")
print("lookup goes on with", repr(tokenizer.decode(speculative.look_up(torch.tensor(line), 4))))
adaptive = speculative.AdaptiveLength(min(v_and_c["draft"], 0.5), 8, prior=0.9)
layers, drafters = base.config.num_layers, {"small": with_drafts(ModelDrafter(fast["small"]), 4)}
drafters["draft, adaptive"] = with_drafts(ModelDrafter(fast["draft"]), adaptive)
drafters["lookup"] = with_drafts(speculative.LookupDrafter(base.config.vocab_size), 4)
for count in (layers // 2, layers - 1):
    drafters[f"{count} of {layers} layers"] = with_drafts(EarlyLayersDrafter(fast["base"], count), 4)
timed = {domain: in_turns(domain, drafters) for domain in ("code", "prose")}
for domain, name in product(timed, drafters):
    steps, one_s = timed[domain][0][name], timed[domain][1]
    later = [len(step.drafts[0]) for step in steps if step.index]  # the first of each reads its prompt
    row = f"{sum(later) / len(later):.1f} drafts a step, α = {measured.tally(steps).rate or 0:.2f}"
    print(f"{domain:6}{name:16}{row}, {measured.measured_speed_up(steps, one_s):.2f} times as fast")

# %% [markdown]
# Lookup drafts nothing where nothing repeats, and then costs nothing. (These are two texts of a kind: a tenth more
# or less means nothing. And greedy texts of small models like to repeat themselves, which flatters it.) The first
# half of the layers seldom says what all of them say: the last layers are where `base` decides, and its head has
# only ever read the last one. With all layers but one drafts are better, but cost nearly a pass each. Training
# heads for the layers in between is early exit, later in this chapter; training heads that look further ahead is
# Medusa.
#
# ## 4.9 The whole step on the device
#
# `SpeculativeEngine` does a whole step in memory that never moves: $\gamma$ passes of the drafter, one of the
# target, the judging of the drafts and the rollback of both caches. On a GPU that is one captured CUDA graph
# (chapter 2), and a single round trip tells the host which tokens the text has gained. On a CPU it saves what
# Python does around a pass. What it is compared with saves as much: `DecodeEngine` of chapter 2. *Predict*: which
# of $\alpha$, $c$ and $v$ can an engine change, and is the text still the same?
#
# The second cell shows runs of `benchmarks/speculative.py`, one text at a time but for the last rows. The mark in a
# bar is the prediction from the $\gamma$, $\alpha$, $c$ and $v(\gamma + 1)$ beside it, measured in the same run;
# *of* says how much of it was reached. Batches have none: the formula of 4.4 is for one text.

# %%
plain, gamma = decoding.DecodeEngine(fast["base"]), 2
ours = engine.SpeculativeEngine(fast["base"], fast["draft"], draft_length=gamma)
ways = {"token": lambda: plain.decode(1), "step": ours.step, "drafts": ours.draft, "verify": ours.verify}
for domain in ("code", "verse"):
    text = [encode(TEXTS[domain][0])]
    found = ours.generate(text, 32)
    for one in (plain, ours):
        one.start(text, len(text[0]) + 128)
    same, taken = plain.decode(32).tolist() == found.tokens, timing.measure_in_turns(ways, device=device)
    step, drafts, v = (taken[way].median_s / taken["token"].median_s for way in ("step", "drafts", "verify"))
    alpha, gained = found.tally.rate, 1 + found.tally.accepted / found.num_steps  # tokens a step
    print(f"{domain}: α = {alpha:.2f}, c = {drafts / gamma:.2f}, v({gamma + 1}) = {v:.2f}: ", end="")
    says = speculative.expected_tokens(alpha, gamma) / (drafts + v)
    print(f"predicted {says:.2f}, measured {gained / step:.2f} times as fast; the same tokens: {same}")

# %%
SETTINGS = speculation_speed.SETTINGS
title = "Speculation, predicted and measured"
display(speculation_speed.plot_recorded(recorded.all_of(SETTINGS), title, SETTINGS))
rows = recorded.all_of(("verify8_llama3_8b", "speculative_parity"))
print("\n".join(map(recorded.told, rows)) or "What verifying costs there is not recorded yet, either.")

# %% [markdown]
# Not $\alpha$, which belongs to two models and a text. An engine shortens drafts and verification, but the plain
# token as well, and $c$ and $v$ are counted in plain tokens, so that they need not get smaller. Against a slow loop
# anything is fast, so a speed-up says nothing without the decoder that it was measured over. And a recorded bar is
# to be read beside its mark: where both agree, $\alpha$, $c$ and $v$ are the whole story of its height. Batches have
# no mark, since theory knows one text: a batch is done when the slowest of its rows is, and several tokens of every
# row are not read for the price of one. And theory with $v = 1$, as the paper has it, promises a little more than any
# of these rows, since a pass over several tokens costs a little more than one over a single token. The prompts are
# of the kinds of text that both models were trained on, so they agree more often than they would on a stranger's.
# (Models are named by their size and by the script that trained them. Printed last is a pass over eight tokens of
# Llama-3-8B's shape, where reading the weights is what takes the time: 1 would be eight tokens for the price of one.)
#
# "The same tokens" has a limit, too. A pass over several tokens and one over a single one add up in different orders, and in
# 16 bits two tokens that are as good as equally likely may change places. In float32, as above, the texts were the same.
#
# ## 4.10 Where it is slower
#
# **Batches.** The arithmetic that speculation fills is idle only while few texts are decoded. *Predict*: from which
# batch on is Llama-3-8B on an H200 slower with four drafts than without, if each costs a tenth of a pass, and
# stands four times in five, or half of the time? Does it matter how long the texts are? (These are the roofline's
# figures; batches on a real GPU stand in the last rows of 4.9, and gain far less. The roofline knows nothing of
# launches, of the slowest row, or of a $\gamma$ that was chosen for a single text.)
#
# **Temperature.** "High temperature, low acceptance": is that so? Both sides are flattened. *Predict* for the three
# domains which way $\alpha$ goes, for a drafter that samples from its $q$, and for one that proposes its favourite, as
# lookup does. The last six rows of the cell read the places of 4.6 again, with other temperatures.

# %% tags=["nbval-check-output"]
print("Llama-3-8B on an H200, γ = 4, c = 0.1: times as fast with α = 0.8, and with α = 0.5")
for batch in (1, 8, 32, 64, 128, 256):
    row = ""
    for context in (128, 1024, 8192):
        one, five = (roofline.predict_step(LLAMA_3_8B, Step.chunk(batch, n, context), h200) for n in (1, 5))
        v = five.time_s / one.time_s
        gains = (f"{speculative.speed_up(alpha, 4, 0.1, lambda n, v=v: v):.2f}" for alpha in (0.8, 0.5))
        row += f"   {context:5,} tokens: v(5) = {v:.2f}, " + ", ".join(gains)
    print(f"batch {batch:3}{row}")
for (domain, sides), way in product(seen.items(), ("sampled", "favourite")):
    pairs = {t: [(side / t).softmax(-1) for side in sides] for t in (0.3, 0.7, 1.0, 1.5, 2.0)}
    beta = {t: p.gather(-1, q.argmax(-1, keepdim=True)) for t, (p, q) in pairs.items()}
    if way == "sampled":
        beta = {t: speculative.acceptance(*pair) for t, pair in pairs.items()}
    print(f"{domain:6}{way:10} " + ", ".join(f"{each.mean():.2f} at {t}" for t, each in beta.items()))

# %% [markdown]
# With the batch $v(n)$ rises towards $n$, as every token then costs its arithmetic, and drafts that fall are
# arithmetic for nothing. Long texts hold it down: a pass reads the cache of a text once for all its drafts, and
# with long texts that reading is most of the time, drafts or not. So a serving engine speculates while it has few
# requests, or long ones with drafts that stand, and stops when it is busy.
#
# Temperature is less simple than its reputation. In code, where both are certain of the same token, heat makes the certain
# uncertain, and $\alpha$ falls. In verse and prose both sides disagree about favourites, and heat makes them *alike*: in the
# limit both are uniform. What always suffers is a drafter that is certain: its draft stands with $p(x)$, and that shrinks.
#
# # Part two: several models, one answer
#
# ## 4.11 Cascades
#
# Speculation keeps the large model's text, and asks it for every step. A cascade (级联解码) asks it as little as it
# can: models in order of cost; each gives a whole *answer*; a judge for each, a binary classifier (二分类器), gives the
# answer a *score*, the probability that it is right; stop at the first whose score reaches the model's *threshold*.
# All answers up to there are paid for. Here quality *does* change, both ways: a fooled judge keeps a wrong answer,
# and sometimes the small model knows what the large one does not. So it takes questions whose answers can be
# checked: the end of a line of Python, which must be the statement that its author wrote; the last line of a
# quatrain, which must rhyme.
#
# The judge sees no right answer, only the text and how sure its model was: log-probabilities, entropies, whether
# the line parses. It is a logistic regression (*trained classifier*), trained on a third of the documents; its
# baseline (*calibrated confidence*) is the mean log-probability alone, turned into a probability on the same
# documents. All answers are recorded ones, but for the few of the first cell, on lines of `textwrap.py`; ▸ is where
# the answer begins. *Predict*: which model is wrong there most often, and does its judge know?
#
# Thresholds are chosen on a second third of the documents, the *held-out* questions, and what they are worth is
# told on the last, the *test*: whoever chooses and reports on the same questions reports luck. The choice is the
# best for a *budget*: what a question may cost on average, in percent of what an answer of `base` costs. The
# opponent is not the large model alone but *mixing*: ask the large model with chance $\lambda$, else a small one.
# That is a straight line between the models, and needs no judge at all; a cascade below it is worse than throwing
# dice. (± is the half of a 95 % interval.) Above all stands an *oracle*: it knows beforehand which answers are
# right, and for each question pays only for the answer that it takes; no cascade can do better for the same cost.
# *Predict*: for 60 % of the cost of `base`, will the cascade have more answers right than `base` alone, or fewer?
# And what is the baseline worth against dice?
#
# The explorer then has the whole curve. Try verse, where a model of twice the size makes a leap; seconds instead of FLOPs, in
# which small models are less cheap than they look; and thresholds by hand, starting from what was chosen.

# %%
import inspect
import textwrap

from llmcourse.figures import cascade_answers
from llmcourse.speculative.tasks import code_lines

tasks = cascade_answers.recorded_tasks()
lines = code_lines({"textwrap.py": inspect.getsource(textwrap)}, tokenizer)
train = tasks["code"].answered.side("train")
for name, judge in zip(names, train.judges(), strict=True):
    answers = speculative.ModelAnswers(fast[name], tokenizer, max_new_tokens=12)(lines)
    for line, answer in zip(lines, answers, strict=True):
        score = judge.scores(torch.tensor([answer.features], dtype=torch.float64)).item()
        mark = "✓" if line.correct(answer.text) else "✗"
        print(f"{name:6}{mark} score {score:.2f}   {line.start.strip()}▸{answer.text}")

# %% tags=["nbval-check-output"]
from llmcourse.figures.cascade_plot import against_mixing
from llmcourse.figures.widgets.cascade_explorer import CascadeInputs, choose, rule

explorer = widgets.CascadeExplorer(tasks, task="code")
study = explorer.studies["code"]["FLOPs"]
print(f"base alone: {study.data.singles[-1].quality:.1%} of the test questions right")
for kind, (_, test) in study.ledgers.items():
    low, high = (test.scores[:, 0] < 0.1).double().mean(), (test.scores[:, 0] >= 0.7).double().mean()
    print(f"{kind}: of draft's answers {low:.0%} score below 0.1, {high:.0%} from 0.7 on")
    for budget in (40, 60, 80):
        tried = choose(study, CascadeInputs(judge=kind, budget=budget))
        held_out, best = tried.found.quality, speculative.oracle(test, tried.cost)
        right = f"right {held_out:.1%} held out, {tried.quality:.1%} test, {best:.1%} oracle"
        print(f"  budget {budget} %: {rule(tried.policy, names)}\n      {right}; {against_mixing(tried)}")
explorer

# %% [markdown]
# Look at the two shares first: the classifier puts most answers near 0 or high up, where a decision can be made;
# the confidence leaves nearly all in between, though it is calibrated as well. What was promised on held-out
# questions is more, by some points, than what comes true on the test, since the best of many thresholds is also the
# luckiest. The classifier's cascade is above mixing; at these budgets the confidence alone cannot be told from it.
# And the oracle shows how much is left for better judges: already the smallest of these budgets would pay for all
# that any of the three models knows.
#
# # Part three: heads that look ahead
#
# ## 4.12 Medusa: the token after the next
#
# A drafting model has to be trained, stored, and run $\gamma$ times a step. Medusa (Cai et al. 2024) has none. From the
# last hidden state $h_t$ the output matrix $W$ makes the distribution of the next token; $K$ small heads read the same
# $h_t$, and head $k$ guesses the token $k$ places *behind* the next one:
#
# $$h_t^{(k)} = h_t + \mathrm{SiLU}(W_k h_t + b_k), \qquad q_k = \mathrm{softmax}\big(W h_t^{(k)}\big), \qquad k = 1 \dots K .$$
#
# The model itself, which is the target here and is called the *backbone*, was frozen while they were trained
# ("Medusa-1"), so that its own text cannot have changed. $W_k$ and $b_k$ begin at zero: an untrained head says what the
# backbone says of the *next* token. In the paper every head has an output matrix of its own; ours borrow $W$. The slide
# has two heads, for the second and the third token (第二个词和第三个词); here there are four, for tokens 2 to 5. All guesses are
# made at once, without attention and without a cache. But no head is told what the others guessed: head 2 names the
# third token without knowing the second.
#
# *Predict* for the three domains of 4.6 how often a head's favourite is the token that came, for token 2 and for token
# 5; and whether more often in texts that `base` wrote greedily, or in those that it sampled at temperature 1. (In
# brackets: how often the token is among the head's four likeliest.) And what share of the weights of a pass do four
# heads multiply by?

# %%
from llmcourse.speculative import medusa
from llmcourse.speculative.medusa.search import ranks_behind

quick = fast["base"]
heads = medusa.load_heads("base", quick)
stored, output = sum(weight.numel() for weight in heads.parameters()), base.lm_head.weight.numel()
shares = (size / base.num_parameters for size in (stored, stored + heads.config.num_heads * output))
print("the heads store {:.1%} of the weights of base, and multiply by {:.0%}".format(*shares))
own, found = {}, {}
for domain, t in product(TEXTS, (0, 1)):
    own[domain, t] = generate(quick, **settings(domain, t))
    found[domain, t] = torch.cat([ranks_behind(quick, heads, g.prompt, g.tokens) for g in own[domain, t]])
    among = medusa.rank_accuracies(found[domain, t], 4).cumsum(-1).tolist()
    row = ", ".join(f"token {k} {best:4.0%} ({four:4.0%})" for k, (best, *_, four) in enumerate(among, 2))
    print(f"{domain:6}temperature {t}: {row}")

# %% [markdown]
# Two things are against a head: the farther it looks, the less is settled by what it has read; and which way the text
# takes is decided by tokens that it never sees. So guesses mostly get worse with the distance. But where a text keeps
# time, as verse does by its marks, a later token is hardly harder: compare its rows with those of prose and code. No
# head can foresee a
# draw, so that sampled texts should be the harder ones; where they are not, they are other texts, and only six of them.
# And the second to fourth choices are worth something. Why try only one? (As for the weights: a head is small, its
# product with $W$ is not. In a model whose vocabulary is most of its weights that is no trifle; in Llama-3-8B one head
# multiplies by less than a tenth of the weights.)
#
# ## 4.13 Candidates as a tree
#
# Take several guesses of every head, and try their combinations. A *node* is named by ranks: (0,) is the favourite of
# head 1; (1, 0) that of head 2, behind the second choice of head 1. As heads do not see each other, (0, 0) and (1, 0)
# hold the same token, behind different ones. A *full* tree takes all combinations of the $w_k$ likeliest tokens of each
# head: $w_1 + w_1 w_2 + \dots$ nodes. But third choices behind second choices hardly ever come true: a *sparse* tree
# has only the nodes with $\prod (\text{rank} + 1) \le 4$.
#
# **Tree attention** reads all nodes in one pass, written behind the text's last token in any order that has parents
# before children. A node sees the text, the nodes above it, and itself; its position is its depth, whatever lies beside
# it. Afterwards the cache keeps the branch that stands. *Predict* on paper the mask of the full tree of two guesses by
# two heads: seven rows, the last token's first. And how many nodes has a full tree of 4, 2, 2 and 1 guesses? The cell
# draws the mask, fills the sparse tree with random tokens (a mask must hold for any), reads it in one pass, and then
# the slow way, every node as a text of its own.
#
# **Which nodes?** Let head $k$ have the right token at rank $r$ with frequency $a_k(r)$ on calibration texts. If heads
# were right or wrong apart from one another, a step would gain, with the backbone's own token,
#
# $$E = 1 + \sum_{\text{nodes}} \prod_{k=1}^{\text{depth}} a_k(r_k) ,$$
#
# for of all branches one is true, and each of its nodes that is in the tree is a token gained. So adding the node with
# the largest product, again and again, gives the best tree of each size. The second cell searches so, on other openings
# than those of 4.12, and then counts on the texts of 4.12. *Predict* the order of the three trees, all as large as the
# full one. Then follow a text in the viewer: which candidates were tried, and which branch stood?

# %% tags=["nbval-check-output"]
trees = {"full": medusa.full((4, 2, 2, 1)), "sparse": medusa.sparse(num_heads=4, width=4)}
for name, tree in trees.items():
    print(f"{name}: {len(tree)} nodes, {len(tree.tree.paths)} branches")
small = medusa.full((2, 2))
mask = medusa.mask_of(small.tree)
for name, sees, depth in zip(("last token", *small.choices), mask.sees.tolist(), mask.depths, strict=True):
    print(f"{name!s:11}" + " ".join("■" if seen_by else "·" for seen_by in sees) + f"   position + {depth}")
tree, text, target = trees["sparse"].tree, encode(TEXTS["code"][0]), medusa.TreeTarget(base)
drawn = torch.randint(base.config.vocab_size, (1, len(tree)), generator=torch.Generator().manual_seed(0))
target.start_hidden([text[:-1]], capacity=len(text) + len(tree))
written = torch.cat((torch.tensor([text[-1:]]), drawn), 1).to(device)
at_once = base.lm_head(target.read_tree(written, medusa.mask_of(tree, device)))
slowly = speculative.read_tree(base, [text], drawn.to(device), tree)
print("one pass says of each node what its own text says:", torch.allclose(at_once, slowly, atol=1e-9))

# %%
others = {"prose": prompts.PROSE[6:14], "verse": prompts.VERSE[6:14], "code": prompts.standard_library()[:8]}
others = [[encode(text) for text in texts] for texts in others.values()]
calibration = torch.cat([medusa.written_ranks(quick, heads, texts, num_tokens=32) for texts in others])
shares = medusa.rank_accuracies(calibration)
trees["searched"] = medusa.search(shares, len(trees["full"]))
for name, tree in trees.items():
    counted = (f"{domain} {medusa.observed_tokens(tree, found[domain, 0]):.2f}" for domain in TEXTS)
    says = f"{medusa.expected_tokens(tree, shares):.2f} tokens a step expected"
    print(f"{name:9}{says}, {medusa.observed_tokens(tree, calibration):.2f} counted; on 4.12:", *counted)
tree = medusa.search(shares, 15)
print("the best 15, by depth:", *Counter(map(len, tree.choices)).values(), *tree.choices)
widgets.CandidateTreeViewer(
    quick, tokenizer, heads, TEXTS["code"][0], trees={"searched": tree, "full, 2 × 2": small}
)

# %% [markdown]
# One pass over 45 tokens says what 45 texts say. The search goes deep where heads are often right, and wide where they
# are not: how many nodes it puts at each depth says which heads are worth something. The full tree spends most of its
# nodes on combinations that never come. *Expected* takes heads to err apart from one another, *counted* does not: it
# follows every place of the same texts. Heads can be right together, where the text is easy, and wrong together; by
# how much the two numbers differ says whether that matters here.
#
# ## 4.14 Three verdicts, and the clock
#
# **Greedy.** The longest branch stands whose nodes are all the backbone's favourite behind their parents. The text is
# that of greedy decoding.
#
# **Lossless.** At each node try the children in turn, against what is left of the target's distribution there. With
# $r_0 = p$, child $x_i \sim q_i$ stands with probability $\min(1, r_{i-1}(x_i) / q_i(x_i))$; if it falls, it takes its
# share with it, $r_i \propto \max(0, r_{i-1} - q_i)$, and the next one is tried (Miao et al. 2024). It is the rule of
# 4.2, asked again and again, and each round leaves the distribution as it is: what it lets through and
# what it leaves add up to what it was given, $\min(r, q) + \max(0, r - q) = r$. A head's likeliest tokens are *certain*
# drafts, as those of lookup are ($q_i$ is 1 at $x_i$); or they are *drawn* from the heads without replacement ($q_i$ is
# the head's distribution without those drawn before, rescaled).
#
# **Typical.** A draft stands if it is likely enough: $p(x) > \min(\epsilon, \delta e^{-H(p)})$ (here $\epsilon = 0.09$,
# $\delta = 0.3$), and the longest such branch is taken. Where the backbone is sure, the bar is $\epsilon$; where it is not, many tokens pass. What passes is
# taken *with certainty*, although it has only $p(x)$: so the text has another distribution. How far off? The total
# variation of a step's first token is $1 - p(x)$ where a draft $x$ was taken, and 0 elsewhere. And the finished texts
# are read once more: the mean log-probability of their tokens (when sampled as it should be: minus the backbone's mean
# entropy), and how often they are its favourite, which is how far they *agree* with greedy decoding.
#
# *Predict*, for the tree of 15 nodes: which verdict gains most tokens a pass; where `draft` with four drafts in a row
# stands beside it, on the same prompts; and in which rows the two numbers are those of plain sampling. (Eighteen short
# texts: two tenths of a nat and several points of favourites are chance.)
#
# The first cell tries the verdicts, the second asks the clock. A step costs a pass over the last token and $N$ nodes,
# and the heads, which take as long as $c_h$ of them: $E / (v(N + 1) + c_h)$ times as fast. $E$ was counted in 4.13, $v$ is the
# machine's. *Predict* the best size of a tree on this one, and on an H200 by the roofline.

# %%
tried = partial(medusa.stream, quick, heads, tree=tree)
drafts = partial(speculative.stream, quick, drafter=ModelDrafter(fast["draft"]), draft_length=4)
typical = partial(tried, typical=medusa.TypicalAcceptance())
ways = {"greedy": (0, tried), "greedy, draft": (0, drafts), "greedy, typical": (0, typical)}
ways |= {"sampled": (1, partial(tried, tree=medusa.MedusaTree([]))), "lossless": (1, tried)}
ways |= {"lossless, drawn": (1, partial(tried, drafting="drawn")), "lossless, draft": (1, drafts)}
given = [encode(text) for text in chain(*TEXTS.values())]
for name, (t, way) in progress.bar((ways | {"typical": (1, typical)}).items(), "ways"):
    runs = [list(way(**settings(domain, t))) for domain in TEXTS]
    row = ", ".join(f"{d} {measured.tokens_per_pass(run):.2f}" for d, run in zip(TEXTS, runs, strict=True))
    again = decoding.reread(base, given, [*chain(*map(measured.written, runs))])
    print(f"{name:16}{row} tokens a pass; {again}")
rows = chain(*(zip(s.p_drafts, s.paths, s.active, strict=True) for s in chain(*runs) if s.index))
off = [1 - p[path[0]] if path else 0 for p, path, active in rows if active]
print(f"typical: the first token of a step is {sum(off) / len(off):.2f} from the target's distribution")

# %%
shapes = {n: medusa.search(shares, n) for n in (3, 15, 44)}
wide = torch.tensor([encode(prompts.PROSE[0] * 4)], device=device)
runs = {n: partial(quick, wide[:, : n + 1]) for n in (0, *shapes)}
runs["heads"] = partial(heads.logits, quick, quick.hidden_states(wide)[:, -1])
taken = timing.measure_in_turns(runs, device=device)
v = {key: time.median_s / taken[0].median_s for key, time in taken.items()}
print(f"Llama-3-8B, H200, by the roofline: v(45) = {paper[45] / paper[1]:.3f}; here c_h = {v['heads']:.2f}")
ways = {n: partial(medusa.stream, heads=heads, tree=shape) for n, shape in shapes.items()}
for domain in ("code", "verse"):
    runs, one_s = in_turns(domain, ways | {"draft": with_drafts(ModelDrafter(fast["draft"]), 2)}, rounds=2)
    print(f"{domain}: draft, γ = 2: {measured.measured_speed_up(runs['draft'], one_s):.2f} times as fast")
    for n, shape in shapes.items():
        says = medusa.observed_tokens(shape, found[domain, 0]) / (v[n] + v["heads"])
        clock = measured.measured_speed_up(runs[n], one_s)
        print(f"    {n:2} nodes: v({n + 1}) = {v[n]:.2f}, predicted {says:.2f}, measured {clock:.2f}")

# %% [markdown]
# Greedy: every token is the backbone's favourite, whoever guessed. Lossless: the two numbers are those of plain
# sampling up to chance, and must be, for the distribution is the same. (Typical stands out here, by about twice what is
# chance; of fewer texts, or with a milder bar, nobody could tell it by these two numbers. So the proof stands above, and
# the distance is computed.) Of the three verdicts on the tree typical gains most, and
# pays with the text: what heads like comes too often. Where it samples, the total variation says so, exactly, even if
# the finished texts look hardly different; with greedy decoding it takes what is *not* the favourite, and from there on
# the text is another one. The slide says that Medusa does not affect quality (不影响生成质量): with the first two verdicts
# that is so, exactly; the third, which the paper proposes for speed, is another matter.
#
# **Where Medusa loses.** On this machine every node takes time, and $W$ is multiplied by four times a step before
# anything is read: predicted and measured say for each size what is left; below 1 plain decoding is
# faster. (They count in different units: *predicted* in bare passes, *measured* in decoding steps with all their Python,
# of which a plain step has some as well, and a verdict more.) By the roofline 44 nodes cost the H200 a few percent of a
# pass: there a larger tree should be the better one. (What a GPU made of that is printed at the end of 4.16: dozens of nodes
# cost a good part of a pass, since kernels for so many rows do not read the weights as fast, and the best tree is mostly a
# smaller one.) And that is *one* text: in a batch of $B$ they are $B (N + 1)$ tokens,
# and the idle arithmetic is used up earlier than by chains of four (4.10). Beside a drafting model: a head knows
# nothing of the tokens between, a drafter has written them itself, so it gains more tokens a pass;
# but it runs $\gamma$ times, one after another. In sampling, certain drafts lose what 4.10 said they lose. And heads
# belong to one set of weights: fine-tune the backbone, and they guess for a model that is gone. (They are refused then:
# they know their backbone by a hash.)
#
# # Part four: blocks
#
# ## 4.15 One dial from autoregressive to non-autoregressive
#
# Heads guess several tokens apart from one another, and the backbone checks. What if nobody checks? The slide has three
# ways side by side: autoregressive (one token after another), *semi-autoregressive* (组内非自回归，组间自回归: groups in order,
# tokens inside a group at once) and *non-autoregressive* (all tokens at once). They are one dial. With blocks of $n$
# tokens
#
# $$p(x_1 \dots x_L) \approx \prod_{\text{blocks } b}\ \prod_{i \in b} p(x_i \mid \text{all before } b) ;$$
#
# $n = 1$ is the chain rule, exact; $n = L$ is non-autoregressive; what lies between is semi-autoregressive (Wang et al.
# 2018; Gu et al. 2018). The error is named by the formula: inside a block no token knows another. Where a text may go
# on with *New York* or *Los Angeles*, it may write *New Angeles*.
#
# A second dial mends some of it. In $T$ passes over a block each settles its share, the surest guesses first, and the
# others are guessed again with those in view (*unmask*: Chang et al. 2022; *remask* takes settled ones back as well:
# Ghazvininejad et al. 2019). A pass brings $n / T$ tokens. Here `base` is frozen; small adapters and embeddings of masks, at work on the
# tokens of a block alone, have learnt to fill it (as in Lin et al. 2024). A block's first token is `base`'s own, so
# that $n = 1$ writes the autoregressive text, token for token.
#
# *Predict*: which domain loses least by blocks of 2, and of 32? And two ways to two tokens a pass: blocks of 2 in one
# pass, or of 8 in four. Which is better? Three panels, since no number stands alone: loss under `base` is low for a
# text that repeats itself, which the share of different pairs gives away; and form is what a program can check, lines
# of code that parse, and verses as long as their first. Then watch a text fill in.

# %%
from llmcourse import blockwise
from llmcourse.figures.block_dial import plot_dial

adapted, qualities = blockwise.load_adapters("base", quick), []
for domain, passes, size in progress.bar([*product(TEXTS, (1, 2, 4), (1, 2, 4, 8, 32))], "settings"):
    if passes <= size:
        dial = {"block_size": size, "passes": passes, "form": None if domain == "prose" else domain}
        texts = tokenizer, TEXTS[domain], domain
        qualities.append(blockwise.measure(adapted, *texts, max_new_tokens=32, **dial))
display(plot_dial(qualities, "Quality against tokens a pass", "32 tokens, greedy; blocks of 1, 2, 4, 8, 32"))
for domain in TEXTS:
    two = (q for q in qualities if q.domain == domain and q.block_size == 2 * q.passes)
    losses = ", ".join(f"blocks of {q.block_size} {q.nats_per_token:.2f} nats" for q in two)
    print(f"{domain}, two tokens a pass: {losses}")
widgets.BlockPlayer(adapted, tokenizer, TEXTS["prose"][0])

# %% [markdown]
# From left to right quality is paid for speed. The loss mostly rises with the block, for what a block's tokens do not
# know of each other is lost; the share of different pairs mostly falls, for places that know nothing of each other all
# guess the same frequent token. Form breaks soon: one mark in the wrong place, and a verse is too long; one bracket that
# nobody closes, and a program does not parse. (But how much is there to break? See what share of `base`'s own lines, at
# one token a pass, form a program. Six texts of 32 tokens are few: a step in that panel may be one poem; and whoever
# writes the same again and again can keep a form, too.) Further passes move a point to the left: points above one
# another bring equally many tokens a pass. The rows below the figure have those of two tokens: there you see whether
# these adapters gain more from second looks at a long block than from a short one.
#
# The pictures of the slide have no price on them: this is the price. And tokens a pass are not the speed, as a pass
# over a block costs $v(n)$. If the same guesses are *verified* instead of kept, they are drafts, and nothing is lost at
# all: that separates this part from the one before.
#
# # Part five: fewer layers
#
# ## 4.16 Early exit
#
# All methods so far leave the pass as it is. Must all layers run for a token that is clear after two? In 4.8 the first
# layers, read by a head that was made for the last one, seldom knew the answer. So give every layer $l$ an exit, a head
# that was trained for it:
#
# $$\hat p_l = \mathrm{softmax}\big(W (I + M_l)\, \mathrm{RMSNorm}_l(x_l)\big) ,$$
#
# with $x_l$ what layer $l$ hands on, $M_l$ learnt and $W$ the model's own (Belrose et al. 2023). A token leaves at the first exit that is sure, by one
# of three rules:
#
# | rule | leaves after layer $l$ if | |
# |---|---|---|
# | entropy | $H(\hat p_l) < \tau$ | the slide's （熵值较低，则提前退出）; Xin et al. 2020 (DeeBERT) |
# | confidence | $\max \hat p_l > \tau$ | Schuster et al. 2022 (CALM) |
# | patience | the favourite has been confirmed by $\tau$ exits in a row | Zhou et al. 2020 (PABEE) |
#
# **The threshold** follows from a budget. Calibration texts are read once by all layers; then every threshold is a
# point, of mean layers and of how often the exit's favourite is the whole model's; take the best within the budget.
# What it is worth is told on other texts, as in 4.11. *Predict*: how often does the exit say what the whole model says,
# if two thirds of the layers may run on average, and which rule is best? Where in the map will the line lie low? (A
# column is a token, and says how unsure each exit is of the *next* one. The cells after it go on with entropy, the slide's rule.)
#
# **What a skipped layer leaves behind.** A token that left after layer 2 has no keys and values above it, and later
# tokens that go higher look for them. *Propagate*: hand its state up as it is, $x_l = x_2$, and make keys and values of
# that: two small products a layer, never caught up with, and lossy (Schuster et al. 2022). *Recompute*: keep the state,
# and let the next token that goes higher take along all that were left behind: every key is what it should be, the
# layers do run in the end, but for several tokens at a time, which read the weights once (Chen et al. 2023, EE-LLM).
#
# **Self-speculation** (Elhoushi et al. 2024) makes it lossless: what leaves early is only a *draft*, all layers verify
# several at once, and the rule now says how long to draft: an exit that is unsure drafts no further. *Predict* for the next cells:
# whose text is the whole model's? And how much faster is leaving early by the clock, if a third of the layers is saved?
#
# **A classifier** answers once a text; no later token looks for its keys, and no vocabulary stands in the way. That is what the
# slide's table is about. Here it is made again, with an encoder of twelve layers that was pre-trained on the course's
# kinds of text (`llmcourse.training.classifier`), and fine-tuned for each row on each of three tasks: does this docstring belong to
# this function; does this paragraph follow that one; which of four poets wrote these lines. (In pairs the encoder is told which
# tokens both texts have; what counting them reaches alone stands below the table.) *Half the layers* is a shallower model. DeeBERT
# trains the exits after the model and asks for their entropy; PABEE trains all at once and asks for patience (a whole number:
# so that it meets the budget, some texts, drawn by lot, must be patient for one exit more, which is ours and not the paper's). The slide's last
# row reads more than one layer: the *past*, the states of all layers so far, and a guess of the *future*, in which a small product
# imitates the state of every layer that would still come (Liao et al. 2021). Thresholds are chosen on validation texts for
# twice the speed in layers, and told on others. *Predict*: which row loses most? And what is twice the speed worth by the clock?

# %%
from llmcourse import early_exit

exits, budget = early_exit.load_heads("base", quick), 4  # layers a token, on average
behind = [[*g.prompt, *g.tokens] for texts in others for g in generate(quick, texts, max_new_tokens=32)]
chosen_on = early_exit.read_texts(exits, behind)
told_on = early_exit.read_texts(exits, [[*g.prompt, *g.tokens] for domain in TEXTS for g in own[domain, 0]])
shown = ", ".join(f"{share:.0%} after {n}" for n, share in enumerate(told_on.agreement().tolist(), 1))
weights = sum(weight.numel() for weight in base.model.layers[0].parameters())
print(f"as the whole model: {shown} layers; an exit has the weights of {output / weights:.1f} layers")
for signal in ("patience", "confidence", "entropy"):
    best = early_exit.most_agreement(early_exit.curve(chosen_on, signal), budget)
    told = early_exit.heat_of(told_on, range(len(told_on.targets)), best.rule)
    says = f"{best.rule}: {best.mean_layers:.2f} layers, {best.agreement:.0%} as the whole model"
    print(f"{says}; on the texts of 4.12: {told.mean_layers:.2f} layers, {told.agreement:.0%}")
widgets.ExitExplorer(exits, tokenizer, TEXTS["code"][0])

# %%
for skipped in ("propagate", "recompute"):
    early = early_exit.generate_early(exits, given, best.rule, skipped=skipped, max_new_tokens=24)
    ran, new = sum(one.mean_layers for one in early) / len(early), [one.generation.tokens for one in early]
    print(f"leaving early, {skipped}: {ran:.2f} layers a token; {decoding.reread(base, given, new)}")
drafter = partial(early_exit.ExitDrafter, layer=budget, sure=early_exit.ConfidenceRule(0.3))
steps = list(with_drafts(drafter(exits), 4)(quick, given, max_new_tokens=24))
rate, new = measured.tokens_per_pass(steps), decoding.reread(base, given, measured.written(steps))
print(f"drafting early: {rate:.2f} tokens a pass of all layers; {new}")

# %%
one = early_exit.most_agreement(early_exit.curve(chosen_on.only([1]), "entropy"), budget)
leaving = {None: best.rule, (1,): one.rule}
leaving = {asked: early_exit.EarlyExitLogits(exits, rule, exits=asked) for asked, rule in leaving.items()}
ways = {name: lambda model, s=source, **how: decoding.stream(s, **how) for name, source in leaving.items()}
runs, one_s = in_turns("code", ways | {3: with_drafts(drafter(exits), 4)}, rounds=2)
times = [[step.time_s for step in runs[asked] if step.index] for asked in leaving]
speeds = [one_s * len(taken) / sum(taken) for taken in times] + [measured.measured_speed_up(runs[3], one_s)]
print(f"the first exit alone, with a threshold of its own: {one.agreement:.0%} the same as promised")
print("times as fast: all exits asked {:.2f}, the first {:.2f}; drafting early {:.2f}".format(*speeds))

# %%
from llmcourse.early_exit.classifier.recorded import read_recorded
from llmcourse.figures import exit_table, exit_trade_off

names = [f"{way}_{domain}_b1" for way, domain in product(("medusa", "early_exit"), TEXTS)]
print("\n".join(map(recorded.told, recorded.all_of(("tree64_llama3_8b", *names)))))
display(exit_table.exit_table(("docstring", "following", "author")))
answered = read_recorded(recorded.RESULTS / "raw/exit_table_nvidia_h200.json.xz")
below = "thresholds chosen on validation texts, scores of 500 test texts; dashed: all leave after one layer"
exit_trade_off.plot_trade_off(answered, "What each speed costs a classifier", below)

# %% [markdown]
# **Read.** Compare the first line, where all tokens leave after the same layer, with the rules at a mean of as many: what lies
# between them is what leaving at the right moment is worth. Patience has few thresholds, and the best one
# within the budget may run far fewer layers than it might: compare rules at equal layers, in the explorer's lower panel.
# As long as a text is only read, the exits keep about what their threshold promised.
#
# **Written.** But whoever leaves early *writes* another text: from the first token that differs on it goes its
# own way, and only the reading again tells how good it is. Not every token is the favourite any more, and the log-probability shows by how much less likely they are.
# *Recompute* repairs the keys, not the choice; the oftener a token goes all the way up, the more layers it runs in the
# end, though several tokens at a time. Self-speculation writes the whole model's text, all of it. (A drafted token is
# read by the first layers twice here. As in LayerSkip, `shared=True` and `speculative.SharedLayersTarget` let the
# verification begin behind them. But then the last draft, from which nothing is drafted, passes them alone: where a
# pass over five tokens takes as long as one over a single token, nothing is gained by it.)
#
# **By the clock.** A third of the layers is not a third of the time: what is below 1 is *slower* than the whole model.
# An exit multiplies by the whole vocabulary, in `base` the weights of several layers; asked after every layer, it costs
# about what is skipped, or more. A single exit, with a threshold of its own for the same budget, costs less, and need
# not agree less often; and where layers are larger, the balance is another one: in Llama-3-8B an exit is as large as two or three
# of its thirty-two layers. Count layers *and* seconds.
#
# The first lines of the last cell are **recorded** on a GPU. `tree64_llama3_8b` is the time of a plain step over that of a step
# which reads a tree of 64 tokens, at Llama-3-8B's shape: 1 would be the tree for nothing. The others are speed-ups on greedy texts of larger
# targets that were trained for the purpose, with Medusa (`benchmarks/medusa.py`, the best tree for each domain), and
# drafted early with a shared cache (`benchmarks/early_exit.py`); beside each stands what its parts promise together.
# The heads there learnt, unlike those of `base`, from texts that their target had written itself, greedily
# (`llmcourse.training.medusa --own-text`): behind such texts they will have to guess. There they are right far oftener than
# heads that learnt from people's texts, and on people's texts less often; measure heads where they will work. (Greedy texts also
# repeat themselves, the more the less a model knows, and what repeats is easily foreseen: with a target that was trained for
# longer than those few minutes, expect less.) The target that drafts early was trained with one exit from the start
# (`llmcourse.training.exits --exits 1 --objective last`): those of `base` came after the model. Where tokens are foreseen worst,
# in verse, drafting early does not pay.
#
# **The classifiers' table.** The table has the slide's order: at twice the speed in layers the last row comes nearest to the full
# model, then PABEE, then the shallower model, then DeeBERT. But look at the intervals before you believe all of it: DeeBERT, whose exits
# were trained after the model, is behind; between the others nothing is proved. On docstrings, where counting words goes far, the
# first exits know nearly as much as the last, every row is ahead of the full model, and that is what noise looks like
# (of 500 texts one standard error is more than a point; mind the panels' different scales). What a *rule* is worth is the height
# of its curve above the dashed line of its colour, on which all texts leave after the same layer: the two cross and cross back
# up to twice the speed, so that training all exits together does more than leaving at the right moment. Beyond it, follow the last
# row on the two other tasks: it falls latest. PABEE and the last row do not begin at the full model, for their
# layers were trained otherwise. (One training each, with one seed; the table has all test texts, the figure the first 500 of each
# task. A book, or a poet's variants of one poem, lie on one side of the split, and the intervals are for other books than these:
# a jackknife over documents and Student's t.)
#
# And the clock is the other half of the truth. Half the layers come close to twice as fast. Those who ask after every layer
# do not, for at this size a layer is a few dozen short operations, which Python launches one by one, an exit and its rule are
# hardly fewer, and whether to go on has to be waited for; guessing the future, a product for each layer to come, eats
# nearly all that it saves. (As one recorded graph all layers would be far faster; but nobody leaves a graph half-way.)
#
# ## 4.17 What goes wrong
#
# | belief | where it fails | what you saw |
# |---|---|---|
# | speculation trades quality for speed | the distribution is the target's, exactly; only wrong rules change it | 4.3 |
# | a rejected draft may be replaced from $p$ | then the drafter's favourites come too often | 4.2, 4.3 |
# | it makes decoding twice as fast | for some $\alpha$, $c$ and $\gamma$; it can be slower, too | 4.4, 4.7 |
# | the better drafter is the faster one | it drafts better and costs more | 4.7, 4.8 |
# | longer drafts are better | later ones are reached ever less often, and all are paid for | 4.4, 4.7 |
# | a drafter of a fifth of the weights costs a fifth | not where starting operations takes the time | 4.1 |
# | verifying is free | until arithmetic is the limit: large batches of short texts, small machines | 4.1, 4.10 |
# | heat lowers the acceptance | of certain drafts always, of sampled ones where both sides were sure | 4.10 |
# | the first layers nearly know the answer | not those of a model that was never trained to | 4.8 |
# | cascades, too, keep the quality | answers are the small model's; quality can fall, or rise | 4.11 |
# | a cascade is better than its large model alone, so it is good | compare with mixing at the same cost, on new questions | 4.11 |
# | heads cost next to nothing | each is a product with the whole vocabulary | 4.12, 4.14 |
# | the farther a head looks, the worse it guesses | mostly; in verse, which keeps time, hardly | 4.12 |
# | the larger tree is the faster one | every node is read, and the last ones hardly ever stand | 4.13, 4.14 |
# | Medusa leaves the text as it is | with the greedy and the lossless verdict; not with typical acceptance | 4.14 |
# | tokens a pass are the speed-up | a pass over $n$ tokens costs $v(n)$, and heads and verdicts cost, too | 4.14, 4.15 |
# | blocks are free speed | what a block's tokens do not know of each other is lost; verified, it is not | 4.15 |
# | a low loss is a good text | a text that repeats itself has one, too | 4.15 |
# | half of the layers take half of the time | asking exits takes time, and so do catching up and guessing ahead | 4.16 |
# | nine tokens in ten agree, so nine tenths of the text are the same | up to the first that differs | 4.16 |
#
# **On the slides.** That speculation does not lower the quality (不会降低大模型解码质量) is right, for the rule above and for
# greedy matching, and for nothing looser. "Usually about two times" (一般带来两倍左右加速) leaves out what it depends on: 4.4
# says which $\alpha$ it takes, 4.10 at which load it is gone. And the cascade's slide is silent on quality, which is
# the very thing that its thresholds trade. Of Medusa the same is said (不影响生成质量), and it holds for the first two
# verdicts of 4.14, not for typical acceptance. Its factor (推理加速) is the paper's, for large models and one text at a
# time. The three ways of 4.15 are drawn without their price. The slide on early exit (早退机制) shows a table that stays
# close to the full models at about twice the speed. It is a table of *classifiers*, which answer once a text and have
# neither a cache nor a vocabulary to multiply by; its scores are lower than the full model's in most columns, by little
# or by much; and its speed-ups count layers, not seconds. 4.16 has the same table with both.
#
# ## Lab
#
# [Lab 4](../labs/04_speculative_medusa_early_exit.ipynb) has you build the parts: the acceptance rule and its residual,
# the loop whose cache is rolled back, expected speed-up, a lookup drafter, the threshold of a cascade; Medusa's
# candidates and their mask, the verdict on a tree, the rules of early exit and a threshold for a budget, blocks with
# refinement. To warm up, here in this notebook:
#
# 1. (10 min) Change `q` in 4.2 so that no draft ever falls; then so that all fall. What is $p'$ in each case?
# 2. (15 min) In 4.3 let the second draft be judged by the distribution of the first place. Which texts come too often?
# 3. (15 min) Find a prompt for which lookup beats `small` in 4.8, and one for which it never drafts.
# 4. (15 min) In 4.11 choose thresholds on a tenth of the held-out questions. `study.ledgers` has the held-out and the test
#    questions under each judge, `.rows` takes some of them, `speculative.pareto_frontier` finds the policies to choose from, and
#    `speculative.apply_policy` tries one out. How far do promise and test differ?
# 5. (10 min) In 4.13 draw the mask of a chain of four and of four siblings. Which of the two is ordinary causal attention?
# 6. (15 min) In 4.14 raise `delta` and `epsilon` of `TypicalAcceptance` to 1. Predict the total variation first. Why is it not 0?
# 7. (15 min) In 4.15 let `measure` refine by `"remask"`. For how many passes can that differ at all?
# 8. (15 min) In 4.16 keep only one exit: `chosen_on.only([n])` is what would have been read. Which $n$ from 1 to 4 agrees most within the budget?
#
# ## Summary
#
# - Where reading the weights takes the time, a pass over a few tokens costs hardly more than one over a single token; accept
#   with $\min(1, p/q)$, correct from $\max(0, p - q)$, and the text is exactly the target's, whoever drafts.
# - Acceptance $\alpha$, cost $c$ and the price $v$ of verifying decide the speed: measure them, choose $\gamma$, and stop
#   where the batch is large.
# - A cascade saves whole calls and does change answers: train its judge, choose on held-out questions, and beat mixing.
# - Medusa's heads guess ahead at once, and a searched tree of their guesses is read in one pass; greedy and lossless
#   verdicts keep the text, typical acceptance does not.
# - Block size and passes are one dial from autoregressive to non-autoregressive, and it is paid in quality.
# - Early exit saves layers, not as many seconds, and changes the text; as a drafter it changes nothing.
#
# **Sources** Leviathan et al. 2023, Chen et al. 2023 (speculative decoding and sampling) · Saxena 2023 (prompt lookup)
# · Zhang et al. 2024 (Draft & Verify), Elhoushi et al. 2024 (LayerSkip) · Chen, Zaharia and Zou 2023 (FrugalGPT) ·
# Platt 1999 (calibration) · Cai et al. 2024 (Medusa) · Miao et al. 2024 (SpecInfer: trees, and the verdict on them) ·
# Gu et al. 2018, Wang et al. 2018 (non- and semi-autoregressive decoding) · Chang et al. 2022 (MaskGIT), Ghazvininejad
# et al. 2019 (Mask-Predict) · Lin et al. 2024 (BiTA) · Belrose et al. 2023 (tuned lens) · Xin et al. 2020 (DeeBERT),
# Zhou et al. 2020 (PABEE), Liao et al. 2021 (past and future), Schuster et al. 2022 (CALM), Chen et al. 2023 (EE-LLM)

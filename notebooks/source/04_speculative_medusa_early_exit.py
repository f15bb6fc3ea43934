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
# is a *draft*, whoever makes it the *drafter*, and the large model the *target*.
#
# **When you have worked through this chapter you can**
#
# - state the acceptance rule and its residual, compute both by hand, and prove that the text is the target's,
# - predict tokens a step and speed-up from $\alpha$, $\gamma$ and $c$, and choose $\gamma$,
# - say for a kind of text and a drafter how often drafts will stand (that is, be accepted), and why,
# - draft with a smaller model, by lookup, and with the target's own first layers,
# - name the loads and settings under which speculation is slower than decoding,
# - build a cascade: train its judge, choose thresholds on held-out questions, and tell a gain from random mixing.
#
# **Time** about 50 minutes for this part; its cells run in under two minutes.
# **Hardware** any laptop; the speed of large models is predicted, and 4.9 shows what was recorded on a GPU.
#
# | symbol | term | 中文 |
# |---|---|---|
# | | speculative decoding | 推测解码 |
# | $p,\ q$ | distributions of the target and of the drafter | 大模型的分布,小模型的分布 |
# | $\gamma$ | drafts a step | 每步草稿词元数 |
# | | verify; a draft stands, or falls and is corrected | 验证;接受,拒绝,修改 |
# | $\min(1, p/q)$ | chance that a draft stands | 接受概率 |
# | $p' \propto \max(0, p - q)$ | residual, which corrections are drawn from | 残差分布 |
# | | bonus: the target's own token where all drafts stand | 额外词元 |
# | $\beta = \sum \min(p, q)$; $\alpha$ | overlap at one place; share of the drafts reached that stand | 重叠度;接受率 |
# | $c$ | cost of a draft, in one-token passes of the target | 草稿的相对开销 |
# | $v(n)$ | cost of a pass over $n$ tokens, in the same unit | 验证的相对开销 |
# | | self-speculation, lookup | 自推测,查找 |
# | | cascade decoding, judge (a binary classifier), threshold, held out | 级联解码,二分类器,阈值,留出集 |
# | $\lambda$ | share of questions that a mixture gives to the larger model | 混合比例 |

# %% tags=["nbval-check-output"]
import torch

from llmcourse import decoding, hardware, pretrained, prompts, roofline, speculative, timing
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
from itertools import pairwise, product

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
# Then play a *sampled* text step by step, in the second cell. At each rejection the bars show $p$, $q$ and the
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
line_by_step(traces[3])

# %%
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


for (name, t), domain in product((("draft", 0), ("small", 0), ("draft", 1)), TEXTS):
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
    texts, best = [[encode(text)] for text in TEXTS[domain][:2]], {}
    for _, (name, way) in product(range(rounds), {"plain": decoding.stream, **ways}.items()):
        run = [step for text in texts for step in way(fast["base"], text, max_new_tokens=32)]
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
# lookup does. The second cell reads the places of 4.6 again, with other temperatures.

# %% tags=["nbval-check-output"]
print("Llama-3-8B on an H200, γ = 4, c = 0.1: times as fast with α = 0.8, and with α = 0.5")
for batch in (1, 8, 32, 64, 128, 256):
    row = ""
    for context in (128, 1024, 8192):
        chunks = {n: Step.chunk(batch, n, context) for n in (1, 5)}
        times = {n: roofline.predict_step(LLAMA_3_8B, chunk, h200).time_s for n, chunk in chunks.items()}
        v = {n: time_s / times[1] for n, time_s in times.items()}
        gains = (f"{speculative.speed_up(alpha, 4, 0.1, v.get):.2f}" for alpha in (0.8, 0.5))
        row += f"   {context:5,} tokens: v(5) = {v[5]:.2f}, " + ", ".join(gains)
    print(f"batch {batch:3}{row}")

# %% tags=["nbval-check-output"]
for (domain, sides), way in product(seen.items(), ("sampled", "favourite")):
    row = []
    for temperature in (0.3, 0.7, 1.0, 1.5, 2.0):
        p, q = ((side / temperature).softmax(-1) for side in sides)
        certain = speculative.point_masses(q.argmax(-1)[:, None], q.shape[-1], q.dtype)[:, 0]
        beta = speculative.acceptance(p, q if way == "sampled" else certain).mean()
        row.append(f"{beta:.2f} at {temperature}")
    print(f"{domain:6}{way:10} " + ", ".join(row))

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
    scores = test.scores[:, 0]
    low, high = (scores < 0.1).double().mean(), (scores >= 0.7).double().mean()
    print(f"{kind}: of draft's answers {low:.0%} score below 0.1, {high:.0%} from 0.7 on")
    for budget in (40, 60, 80):
        tried = choose(study, CascadeInputs(judge=kind, budget=budget))
        held_out, best = tried.found.quality, speculative.oracle(test, tried.cost)
        right = f"right {held_out:.1%} held out, {tried.quality:.1%} test, {best:.1%} oracle"
        print(f"  budget {budget} %: {rule(tried.policy, names)}\n      {right}; {against_mixing(tried)}")

# %%
explorer

# %% [markdown]
# Look at the two shares first: the classifier puts most answers near 0 or high up, where a decision can be made;
# the confidence leaves nearly all in between, though it is calibrated as well. What was promised on held-out
# questions is more, by some points, than what comes true on the test, since the best of many thresholds is also the
# luckiest. The classifier's cascade is above mixing; at these budgets the confidence alone cannot be told from it.
# And the oracle shows how much is left for better judges: already the smallest of these budgets would pay for all
# that any of the three models knows.
#
# ## 4.12 What goes wrong
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
#
# **On the slides.** That speculation does not lower the quality (不会降低大模型解码质量) is right, for the rule above and for greedy
# matching, and for nothing looser. "Usually about two times" (一般带来两倍左右加速) leaves out what it depends on: 4.4 says which
# $\alpha$ it takes, 4.10 at which load it is gone. And the cascade's slide is silent on quality, which is
# the very thing that its thresholds trade.
#
# ## Lab
#
# [Lab 4](../labs/04_speculative_medusa_early_exit.ipynb) has you build both parts: the acceptance rule and its residual, the loop whose cache is rolled back, expected speed-up,
# a lookup drafter, the threshold of a cascade. To warm up, here in this notebook:
#
# 1. (10 min) Change `q` in 4.2 so that no draft ever falls; then so that all fall. What is $p'$ in each case?
# 2. (15 min) In 4.3 let the second draft be judged by the distribution of the first place. Which texts come too often?
# 3. (15 min) Find a prompt for which lookup beats `small` in 4.8, and one for which it never drafts.
# 4. (15 min) In 4.11 choose thresholds on a tenth of the held-out questions. `study.ledgers` has the held-out and the test
#    questions under each judge, `.rows` takes some of them, `speculative.pareto_frontier` finds the policies to choose from, and
#    `speculative.apply_policy` tries one out. How far do promise and test differ?
#
# ## Summary
#
# - Where reading the weights takes the time, a pass over a few tokens costs hardly more than one over a single token; accept
#   with $\min(1, p/q)$, correct from $\max(0, p - q)$, and the text is exactly the target's, whoever drafts.
# - Acceptance $\alpha$, cost $c$ and the price $v$ of verifying decide the speed: measure them, choose $\gamma$, and stop
#   where the batch is large.
# - A cascade saves whole calls and does change answers: train its judge, choose on held-out questions, and beat mixing.
#
# **Sources** Leviathan et al. 2023, Chen et al. 2023 (speculative decoding and sampling) · Saxena 2023 (prompt lookup) · Zhang et
# al. 2024 (Draft & Verify), Elhoushi et al. 2024 (LayerSkip) · Chen, Zaharia and Zou 2023 (FrugalGPT) · Platt 1999
# (calibration)
